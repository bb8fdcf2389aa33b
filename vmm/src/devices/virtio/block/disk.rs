//! The bytes behind a disk: files whose contents follow each other.

use std::fs::File;
use std::io;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::config::SECTOR_BYTES;
use crate::devices::virtio::chain::Buffers;
use crate::resources;
use crate::sys;

/// A read-only file may end this much before its part of the disk does.
const PADDING: u64 = 4095;

/// A disk.
#[derive(Debug)]
pub struct Disk {
    /// In the order of their sectors, without gaps.
    parts: Vec<Part>,
    bytes: u64,
    read_only: bool,
}

#[derive(Debug)]
struct Part {
    file: File,
    start: u64,
    end: u64,
}

/// Why a disk was refused.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file cannot be looked at.
    #[error("cannot inspect part {part} of a disk")]
    Inspect {
        /// Index of the part.
        part: usize,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The file is shorter than the configuration says.
    #[error("part {part} of a disk has {actual} bytes, not {wanted}")]
    Short {
        /// Index of the part.
        part: usize,
        /// Length of the file.
        actual: u64,
        /// Length in the configuration.
        wanted: u64,
    },
    /// The parts are more than a disk can hold, or none.
    #[error("a disk must have parts of whole sectors")]
    Size,
}

/// A stretch of a disk, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl Disk {
    /// Checks the files and puts them together.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn new(resource: resources::Disk) -> Result<Self, DiskError> {
        let read_only = resource.read_only;
        let mut parts = Vec::with_capacity(resource.parts.len());
        let mut start: u64 = 0;
        for (part, resources::Part { file, bytes }) in resource.parts.into_iter().enumerate() {
            let actual = file
                .metadata()
                .map_err(|source| DiskError::Inspect { part, source })?
                .len();
            let padding = if read_only { PADDING } else { 0 };
            if actual.saturating_add(padding) < bytes {
                return Err(DiskError::Short {
                    part,
                    actual,
                    wanted: bytes,
                });
            }
            let end = start.checked_add(bytes).ok_or(DiskError::Size)?;
            parts.push(Part { file, start, end });
            start = end;
        }
        if start == 0 || !start.is_multiple_of(SECTOR_BYTES) {
            return Err(DiskError::Size);
        }
        Ok(Self {
            parts,
            bytes: start,
            read_only,
        })
    }

    /// Number of files.
    #[must_use]
    pub(super) fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Number of sectors.
    pub(super) fn sectors(&self) -> u64 {
        self.bytes / SECTOR_BYTES
    }

    /// Whether writes are refused.
    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The extent of `bytes` bytes from `sector` on; `None` if it is not whole sectors or not all on the disk.
    pub(super) fn extent(&self, sector: u64, bytes: u64) -> Option<Extent> {
        let offset = sector.checked_mul(SECTOR_BYTES)?;
        let end = offset.checked_add(bytes)?;
        (end <= self.bytes && bytes.is_multiple_of(SECTOR_BYTES)).then_some(Extent { offset, bytes })
    }

    /// Reads into guest memory; `buffers` are as long as the extent.
    pub(super) fn read(&self, extent: Extent, buffers: &Buffers<'_>) -> io::Result<()> {
        let (mut offset, mut rest) = (extent.offset, buffers.clone());
        while !rest.is_empty() {
            let part = self.part_at(offset)?;
            let (here, after) = split(&rest, part.end - offset)?;
            read_exactly(&part.file, &here, offset - part.start)?;
            offset += u64::try_from(here.len()).map_err(io::Error::other)?;
            rest = after;
        }
        Ok(())
    }

    /// Writes guest memory; `buffers` are as long as the extent.
    pub(super) fn write(&self, extent: Extent, buffers: &Buffers<'_>) -> io::Result<()> {
        let (file, mut offset, mut rest) = (self.writable()?, extent.offset, buffers.clone());
        while !rest.is_empty() {
            let written = sys::write_at(file, rest.slices(), offset)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += u64::try_from(written).map_err(io::Error::other)?;
            rest = split(&rest, u64::try_from(written).map_err(io::Error::other)?)?.1;
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub(super) fn flush(&self) -> io::Result<()> {
        if self.read_only {
            Ok(())
        } else {
            self.writable()?.sync_data()
        }
    }

    /// Gives the extent's space back to the host; it reads as zeros then.
    pub(super) fn discard(&self, extent: Extent) -> io::Result<()> {
        self.allocate(extent, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE)
    }

    /// Makes the extent read as zeros and keeps its space, where the host's file system can do that.
    pub(super) fn zero(&self, extent: Extent) -> io::Result<()> {
        match self.allocate(extent, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE) {
            Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
                self.discard(extent)
            }
            result => result,
        }
    }

    fn allocate(&self, extent: Extent, flags: FallocateFlags) -> io::Result<()> {
        Ok(rustix::fs::fallocate(
            self.writable()?,
            flags,
            extent.offset,
            extent.bytes,
        )?)
    }

    /// The one file of a writable disk.
    fn writable(&self) -> io::Result<&File> {
        match self.parts.as_slice() {
            [part] if !self.read_only => Ok(&part.file),
            _ => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        }
    }

    fn part_at(&self, offset: u64) -> io::Result<&Part> {
        let index = self.parts.partition_point(|part| part.end <= offset);
        self.parts
            .get(index)
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

fn split<'m>(buffers: &Buffers<'m>, bytes: u64) -> io::Result<(Buffers<'m>, Buffers<'m>)> {
    let count = usize::try_from(bytes).unwrap_or(usize::MAX).min(buffers.len());
    buffers
        .split_at(count)
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Fills `buffers` from `file`. Up to [`PADDING`] bytes behind its end are zeros.
fn read_exactly(file: &File, buffers: &Buffers<'_>, mut offset: u64) -> io::Result<()> {
    let mut rest = buffers.clone();
    while !rest.is_empty() {
        let read = u64::try_from(sys::read_at(file, rest.slices(), offset)?).map_err(io::Error::other)?;
        if read == 0 {
            if u64::try_from(rest.len()).map_err(io::Error::other)? > PADDING {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            rest.fill_zero();
            return Ok(());
        }
        offset += read;
        rest = split(&rest, read)?.1;
    }
    Ok(())
}
