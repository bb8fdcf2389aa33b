//! Contents of files, which go between a file and the slot of a request without a copy in between.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};

use fuse_backend_rs::abi::fuse_abi::{EntryOut, WRITE_CACHE, WriteOut};
use fuse_backend_rs::api::filesystem::{Context, FileSystem as _, ZeroCopyReader, ZeroCopyWriter};
use fuse_backend_rs::common::file_buf::FileVolatileSlice;
use fuse_backend_rs::common::file_traits::FileReadWriteVolatile;
use fuse_backend_rs::passthrough::PassthroughFs;
use rvm_vmm::devices::virtio::fs::OUT_HEADER_BYTES;
use rvm_vmm::memory::VolatileSlice;
use vm_memory::ByteValued as _;

use crate::request::{CREATE, OPEN, RELEASE, Request, WRITE_HEAD_BYTES};

/// Reads or writes as a request asks for, which lies in `slot`; returns the bytes of the answer's body, which is there then.
///
/// # Errors
/// Those of the host's file system; `EINVAL` for a size that no slot has.
pub(crate) fn move_data(
    files: &PassthroughFs,
    durable: &DurableHandles,
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
    if let Some(to) = durable.missing(asked.handle, asked.flags) {
        files.fsync(&context, node, to == Durability::Data, asked.handle)?;
    }
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

/// What is to be on the disk when a write is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Durability {
    /// Data, and what it takes to find that again (`O_DSYNC`).
    Data,
    /// The file's times as well (`O_SYNC`).
    All,
}

impl Durability {
    /// What flags of open(2) ask for.
    fn of(flags: i32) -> Option<Self> {
        match flags & libc::O_SYNC {
            libc::O_SYNC => Some(Self::All),
            libc::O_DSYNC => Some(Self::Data),
            _ => None,
        }
    }
}

/// Handles of files that were opened to have each write on the disk: there the kernel sees to it. A write to another one may ask
/// for the same (`RWF_DSYNC`, `RWF_SYNC`), and the library would set that as a flag of the file, which fcntl(2) does not do.
#[derive(Debug, Default)]
pub(crate) struct DurableHandles(Mutex<BTreeMap<u64, Durability>>);

impl DurableHandles {
    /// Learns of a request that was done, and of the body of its answer.
    pub(crate) fn learn(&self, request: &Request<'_>, answer: &[u8]) {
        let long = |bytes: &[u8], at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let flags = request.body().first_chunk();
        let asked = flags.and_then(|flags| Durability::of(i32::from_le_bytes(*flags)));
        let made = match request.opcode {
            OPEN => long(answer, 0),
            CREATE => long(answer, size_of::<EntryOut>()),
            _ => None,
        };
        if let (Some(handle), Some(durability)) = (made, asked) {
            self.with(|all| all.insert(handle, durability));
        } else if request.opcode == RELEASE
            && let Some(handle) = long(request.body(), 0)
        {
            self.with(|all| all.remove(&handle));
        }
    }

    /// Forgets all.
    pub(crate) fn clear(&self) {
        self.with(BTreeMap::clear);
    }

    /// What is left to do after a write with these flags.
    pub(crate) fn missing(&self, handle: u64, flags: u32) -> Option<Durability> {
        let asked = Durability::of(flags.cast_signed())?;
        let had = self.with(|all| all.get(&handle).copied());
        (had < Some(asked)).then_some(asked)
    }

    fn with<T>(&self, act: impl FnOnce(&mut BTreeMap<u64, Durability>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
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
