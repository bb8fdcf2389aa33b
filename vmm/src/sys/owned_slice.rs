//! A stretch of guest memory that keeps the memory: for what is looked at so often that looking it up each time would cost
//! more than the look.

use std::fmt;
use std::ptr::NonNull;

use crate::memory::{GuestAddress, GuestMemory, GuestMemoryBackend as _, VolatileSlice};

/// A stretch of guest memory, looked up once.
pub(crate) struct OwnedSlice {
    start: NonNull<u8>,
    bytes: usize,
    /// What `start` points into.
    _memory: GuestMemory,
}

// SAFETY: it is a part of guest memory, which is shared between threads and only accessed through volatile copies.
unsafe impl Send for OwnedSlice {}
// SAFETY: as above.
unsafe impl Sync for OwnedSlice {}

impl OwnedSlice {
    /// `None` if it is not all there in one piece.
    pub(crate) fn new(memory: &GuestMemory, address: GuestAddress, bytes: usize) -> Option<Self> {
        let slice = memory.get_slice(address, bytes).ok()?;
        Some(Self {
            start: NonNull::new(slice.ptr_guard_mut().as_ptr())?,
            bytes,
            _memory: memory.clone(),
        })
    }

    pub(crate) fn get(&self) -> VolatileSlice<'_> {
        // SAFETY: the slice was within guest memory, whose regions stay where they are as long as they exist, which is as
        // long as `_memory` has its share of them.
        unsafe { VolatileSlice::new(self.start.as_ptr(), self.bytes) }
    }
}

impl fmt::Debug for OwnedSlice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes of guest memory", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Bytes as _;

    #[test]
    fn a_slice_keeps_its_memory() {
        let memory = crate::memory::allocate(1).unwrap();
        let slice = OwnedSlice::new(&memory, GuestAddress(0x1000), 8).unwrap();
        memory.write_obj(0x1234_u64, GuestAddress(0x1000)).unwrap();
        assert_eq!(slice.get().read_obj::<u64>(0).unwrap(), 0x1234);
        drop(memory);
        slice.get().write_obj(5_u64, 0).unwrap();
        assert_eq!(slice.get().read_obj::<u64>(0).unwrap(), 5);
        assert!(slice.get().read_obj::<u64>(1).is_err());
    }

    #[test]
    fn what_is_not_in_one_piece_is_refused() {
        let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
        let memory = GuestMemory::from_ranges(&ranges).unwrap();
        let is_there = |address, bytes| OwnedSlice::new(&memory, GuestAddress(address), bytes).is_some();
        assert!(is_there(0, 0x1000) && is_there(0x1000, 0x1000));
        assert!(!is_there(0xff8, 16) && !is_there(0x1ff8, 16) && !is_there(u64::MAX, 16));
    }
}
