//! Contents of files, which go between a file and the slot of a request without a copy in between.

use std::io;

use fuse_backend_rs::abi::fuse_abi::{WRITE_CACHE, WriteOut};
use fuse_backend_rs::api::filesystem::{Context, FileSystem as _, ZeroCopyReader, ZeroCopyWriter};
use fuse_backend_rs::common::file_buf::FileVolatileSlice;
use fuse_backend_rs::common::file_traits::FileReadWriteVolatile;
use fuse_backend_rs::passthrough::PassthroughFs;
use rvm_vmm::devices::virtio::fs::OUT_HEADER_BYTES;
use rvm_vmm::memory::VolatileSlice;
use vm_memory::ByteValued as _;

use crate::request::{Request, WRITE_HEAD_BYTES};

/// Reads or writes as a request asks for, which lies in `slot`; returns the bytes of the answer's body, which is there then.
///
/// # Errors
/// Those of the host's file system; `EINVAL` for a size that no slot has.
pub(crate) fn move_data(
    files: &PassthroughFs,
    request: &Request<'_>,
    slot: VolatileSlice<'_>,
) -> io::Result<usize> {
    let asked = Asked::parse(request).ok_or_else(invalid)?;
    let (context, node, size) = (Context::default(), request.node(), asked.size);
    let place = |start| {
        let data = slot.subslice(start, size as usize);
        data.map(Place).map_err(|_| invalid())
    };
    if !request.is_write() {
        let mut into = place(OUT_HEADER_BYTES)?;
        return files.read(
            &context,
            node,
            asked.handle,
            &mut into,
            size,
            asked.offset,
            None,
            asked.flags,
        );
    }
    let mut from = place(WRITE_HEAD_BYTES)?;
    let delayed = asked.fuse_flags & WRITE_CACHE != 0;
    let written = files.write(
        &context,
        node,
        asked.handle,
        &mut from,
        size,
        asked.offset,
        None,
        delayed,
        asked.flags,
        asked.fuse_flags,
    )?;
    let answer = WriteOut {
        size: u32::try_from(written).unwrap_or(u32::MAX),
        ..WriteOut::default()
    };
    let body = slot.offset(OUT_HEADER_BYTES).map_err(|_| invalid())?;
    body.copy_from(answer.as_slice());
    Ok(size_of::<WriteOut>())
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

/// `struct fuse_read_in` or `struct fuse_write_in`, which have the same shape. Whose locks it is about means nothing: they are
/// not mandatory.
struct Asked {
    handle: u64,
    offset: u64,
    size: u32,
    fuse_flags: u32,
    flags: u32,
}

impl Asked {
    fn parse(request: &Request<'_>) -> Option<Self> {
        let body = request.body();
        let long = |at: usize| Some(u64::from_le_bytes(*body.get(at..)?.first_chunk()?));
        let word = |at: usize| Some(u32::from_le_bytes(*body.get(at..)?.first_chunk()?));
        Some(Self {
            handle: long(0)?,
            offset: long(8)?,
            size: word(16)?,
            fuse_flags: word(20)?,
            flags: word(32)?,
        })
    }
}

/// Where data is read to or written from. One call moves all of it, or what there is.
struct Place<'a>(VolatileSlice<'a>);

impl<'a> Place<'a> {
    fn first(&self, count: usize) -> io::Result<FileVolatileSlice<'a>> {
        let part = self
            .0
            .subslice(0, count.min(self.0.len()))
            .map_err(|_| invalid())?;
        Ok(FileVolatileSlice::from_volatile_slice(&part))
    }
}

impl ZeroCopyReader for Place<'_> {
    fn read_to(
        &mut self,
        file: &mut dyn FileReadWriteVolatile,
        count: usize,
        offset: u64,
    ) -> io::Result<usize> {
        file.write_at_volatile(self.first(count)?, offset)
    }
}

impl ZeroCopyWriter for Place<'_> {
    fn write_from(
        &mut self,
        file: &mut dyn FileReadWriteVolatile,
        count: usize,
        offset: u64,
    ) -> io::Result<usize> {
        file.read_at_volatile(self.first(count)?, offset)
    }

    fn available_bytes(&self) -> usize {
        self.0.len()
    }
}

/// The library asks for these as well, and reads and writes by the ones above alone.
impl io::Read for Place<'_> {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// As above.
impl io::Write for Place<'_> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
