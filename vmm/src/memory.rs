//! Guest memory: how it is laid out around the hole below 4 GiB, and where it comes from.
//!
//! It is private anonymous memory without a swap reservation. Nothing else maps it: devices copy between it and the
//! host's files and sockets, so it needs no shared mapping, and a private one takes huge pages and lets a saved machine
//! be mapped copy-on-write in its place.
//!
//! Huge pages are asked for, and addresses here and in the guest agree modulo their size, without which KVM could not
//! map them: a boot touches a few thousand small pages, and each costs an exit. The price is that memory is taken 2 MiB at
//! a time. So the blocks of which a guest is known to touch little are left to small pages: those of the kernel's image that
//! are mostly padding.
//!
//! This is the only module that names the vm-memory crate, so that a move to another of its generations stays small.

use std::fs::File;
use std::io;

use crate::sys;

pub use vm_memory::{
    ByteValued, Bytes, GuestAddress, GuestMemory as GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion,
    VolatileMemory, VolatileMemoryError,
};

/// A stretch of guest memory in this process, which the guest may change at any time.
pub type VolatileSlice<'a> = vm_memory::VolatileSlice<'a>;

/// All memory of one guest. Clones share the same memory.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// A contiguous part of guest memory.
type GuestRegion = vm_memory::GuestRegionMmap<()>;

/// The mapping behind it.
pub type Mapping = vm_memory::MmapRegion<()>;

/// Describes a mapping to be made of an existing one.
pub type MappingBuilder = vm_memory::mmap::MmapRegionBuilder<()>;

/// Start of the hole in which devices live; memory below it is contiguous from address 0.
pub const HOLE_START: u64 = 0xc000_0000;

/// End of the hole: what does not fit below it continues here.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host cannot map that much.
    #[error("cannot map {mib} MiB of guest memory")]
    Map {
        /// The size asked for.
        mib: u32,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Not even a few pages.
    #[error("cannot map the pages of devices")]
    Pages(#[source] io::Error),
    /// Zero, or more than addresses of this host reach.
    #[error("{mib} MiB of guest memory is not possible on this machine")]
    Size {
        /// The size asked for.
        mib: u32,
    },
}

/// The ranges (start, bytes) of `bytes` of memory, lowest first.
#[must_use]
pub fn layout(bytes: u64) -> Vec<(u64, u64)> {
    if bytes <= HOLE_START {
        return vec![(0, bytes)];
    }
    vec![(0, HOLE_START), (HOLE_END, bytes - HOLE_START)]
}

/// Each contiguous part: its address in the guest, its address in this process, and its length.
pub fn regions(memory: &GuestMemory) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
    let part = |region: &GuestRegion| (region.start_addr().0, region.as_ptr() as u64, region.len());
    memory.iter().map(part)
}

/// Maps `mib` MiB of guest memory.
///
/// # Errors
/// [`MemoryError`] if the size is zero or the host cannot map it.
pub fn allocate(mib: u32) -> Result<GuestMemory, MemoryError> {
    if mib == 0 {
        return Err(MemoryError::Size { mib });
    }
    let ranges = layout(u64::from(mib) << 20)
        .into_iter()
        .map(|(start, bytes)| Ok((GuestAddress(start), usize::try_from(bytes)?)))
        .collect::<Result<Vec<_>, std::num::TryFromIntError>>()
        .map_err(|_| MemoryError::Size { mib })?;
    let failed = |source| MemoryError::Map { mib, source };
    let regions = ranges
        .into_iter()
        .map(|(start, bytes)| {
            let region = sys::map_guest_memory(bytes)?;
            GuestRegion::new(region, start).ok_or_else(|| io::ErrorKind::InvalidInput.into())
        })
        .collect::<io::Result<Vec<_>>>()
        .map_err(failed)?;
    GuestMemory::from_regions(regions).map_err(|error| failed(io::Error::other(error)))
}

/// Maps `count` small pages at `start`, for what a guest sees beside its memory: devices cannot be told to use them.
///
/// # Errors
/// [`MemoryError::Pages`].
pub fn allocate_pages(start: u64, count: usize) -> Result<GuestMemory, MemoryError> {
    let ranges = [(GuestAddress(start), count * sys::PAGE_BYTES)];
    GuestMemory::from_ranges(&ranges).map_err(|error| MemoryError::Pages(io::Error::other(error)))
}

/// Maps the first `bytes` of a file, so that all who have mapped it see what each writes.
///
/// # Errors
/// Those of `mmap(2)`, and where the file is shorter.
pub fn map_shared(file: File, bytes: usize) -> io::Result<Mapping> {
    Mapping::from_file(vm_memory::FileOffset::new(file, 0), bytes).map_err(io::Error::other)
}

/// What the host can back by one page, if it is asked to, in bytes.
pub const BLOCK_BYTES: u64 = 2 << 20;

/// Lets small pages back the blocks that the addresses from `start` up to `end` belong to: for blocks of which little is
/// ever touched. What lies beyond memory is left out.
///
/// # Errors
/// If `start` lies beyond memory.
pub fn use_small_pages(memory: &GuestMemory, start: u64, end: u64) -> Result<(), GuestMemoryError> {
    let start = start & !(BLOCK_BYTES - 1);
    let end = end.next_multiple_of(BLOCK_BYTES).min(low_end(memory));
    sys::use_small_pages(&slice(memory, start, end.saturating_sub(start))?);
    Ok(())
}

/// A stretch of memory.
///
/// # Errors
/// If it is not all there in one piece.
pub fn slice(memory: &GuestMemory, start: u64, bytes: u64) -> Result<VolatileSlice<'_>, GuestMemoryError> {
    let count = usize::try_from(bytes).map_err(|_| GuestMemoryError::InvalidBackendAddress)?;
    memory.get_slice(GuestAddress(start), count)
}

/// End of the memory that lies below the hole, which is where the kernel and its ramdisk go.
#[must_use]
pub fn low_end(memory: &GuestMemory) -> u64 {
    memory
        .iter()
        .next()
        .map_or(0, |region| region.start_addr().0 + region.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_goes_around_the_hole() {
        let check = |bytes, expected: &[(u64, u64)]| assert_eq!(layout(bytes), expected);
        check(128 << 20, &[(0, 128 << 20)]);
        check(3 * GIB, &[(0, 3 * GIB)]);
        check(3 * GIB + 4096, &[(0, 3 * GIB), (4 * GIB, 4096)]);
        check(64 * GIB, &[(0, 3 * GIB), (4 * GIB, 61 * GIB)]);
    }

    #[test]
    fn allocated_memory_is_zero_and_ends_where_it_should() {
        let memory = allocate(4096).unwrap();
        assert_eq!(low_end(&memory), HOLE_START);
        assert_eq!(memory.last_addr(), GuestAddress(5 * GIB - 1));
        assert_eq!(memory.read_obj::<u64>(GuestAddress(4 * GIB)).unwrap(), 0);
        assert!(memory.read_obj::<u8>(GuestAddress(HOLE_START)).is_err());
        assert!(matches!(allocate(0), Err(MemoryError::Size { .. })));
    }
}
