//! The bytes behind a disk: files whose contents follow each other.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::SECTOR_BYTES;
use crate::resources;

/// A read-only file may end this much before its part of the disk does; the rest reads as zeros.
pub(super) const PADDING: u64 = 4095;

/// A disk.
#[derive(Debug)]
pub struct Disk {
    /// In the order of their sectors, without gaps.
    parts: Vec<Part>,
    bytes: u64,
    read_only: bool,
    /// Whether a write waits for room on the host.
    waits_for_room: AtomicBool,
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

/// A byte of a disk, as its files have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// Which of the files.
    pub(super) place: usize,
    /// The byte's offset in the file.
    pub(super) offset: u64,
    /// Bytes of the disk from here on that the file backs.
    pub(super) left: u64,
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
            waits_for_room: AtomicBool::new(false),
        })
    }

    /// A writable disk on a device that is always full.
    #[cfg(test)]
    pub(super) fn without_room(bytes: u64) -> Self {
        let file = File::options().read(true).write(true).open("/dev/full").unwrap();
        Self {
            parts: vec![Part {
                file,
                start: 0,
                end: bytes,
            }],
            bytes,
            read_only: false,
            waits_for_room: AtomicBool::new(false),
        }
    }

    /// Says whether a write waits for room on the host.
    pub(super) fn set_waits_for_room(&self, waits: bool) {
        self.waits_for_room.store(waits, Ordering::Relaxed);
    }

    /// Whether one does.
    pub(super) fn waits_for_room(&self) -> bool {
        self.waits_for_room.load(Ordering::Relaxed)
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

    /// The files, in the order of their places.
    pub(super) fn files(&self) -> impl ExactSizeIterator<Item = &File> {
        self.parts.iter().map(|part| &part.file)
    }

    /// Where the byte at `offset` lies.
    pub(super) fn locate(&self, offset: u64) -> Option<Location> {
        let place = self.parts.partition_point(|part| part.end <= offset);
        let part = self.parts.get(place)?;
        Some(Location {
            place,
            offset: offset.checked_sub(part.start)?,
            left: part.end.checked_sub(offset)?,
        })
    }
}
