//! The registers of a device as its driver reads them (section 4.2.2): a page that the guest sees and cannot write.
//!
//! A read of the guest is one of its memory, without an exit: looking for devices at boot is mostly reads, and so is the
//! cause of every interrupt. A write does leave the guest. Whoever serves it has changed the page before the guest goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_STATUS};

use crate::memory::{GuestAddress, GuestMemory, VolatileMemory as _, VolatileSlice};
use crate::sys::{self, owned_slice::OwnedSlice};

/// Bytes of a device's page, as of its place in the guest's memory.
pub(super) const BYTES: usize = sys::PAGE_BYTES;

/// The registers of one device. Clones share the same page.
#[derive(Clone, Debug)]
pub struct Registers(Arc<OwnedSlice>);

impl Registers {
    /// The registers at `address` of `pages`; `None` if there is no page.
    #[must_use]
    pub fn new(pages: &GuestMemory, address: u64) -> Option<Self> {
        let page = OwnedSlice::new(pages, GuestAddress(address), BYTES)?;
        Some(Self(Arc::new(page)))
    }

    /// The registers of a device that no guest sees.
    #[cfg(any(test, feature = "fuzzing"))]
    #[expect(clippy::unwrap_used, reason = "without a page, a test has to stop")]
    pub(crate) fn of_test() -> Self {
        let pages = GuestMemory::from_ranges(&[(GuestAddress(0), BYTES)]).unwrap();
        Self::new(&pages, 0).unwrap()
    }

    pub(super) fn page(&self) -> VolatileSlice<'_> {
        self.0.get()
    }

    /// Does something to a register. Each is an aligned word of the page, hence there.
    fn with(&self, register: u32, change: impl FnOnce(&AtomicU32) -> u32) -> u32 {
        let page = self.page();
        let word = page.get_atomic_ref::<AtomicU32>(register as usize);
        word.map(change).unwrap_or_default()
    }

    pub(super) fn load(&self, register: u32) -> u32 {
        self.with(register, |word| u32::from_le(word.load(Ordering::SeqCst)))
    }

    pub(super) fn store(&self, register: u32, value: u32) {
        self.with(register, |word| word.swap(value.to_le(), Ordering::SeqCst));
    }

    /// Why the driver was interrupted.
    pub(super) fn causes(&self) -> u32 {
        self.load(VIRTIO_MMIO_INTERRUPT_STATUS)
    }

    pub(super) fn add_causes(&self, causes: u32) {
        self.with(VIRTIO_MMIO_INTERRUPT_STATUS, |word| {
            word.fetch_or(causes.to_le(), Ordering::SeqCst)
        });
    }

    pub(super) fn remove_causes(&self, causes: u32) {
        self.with(VIRTIO_MMIO_INTERRUPT_STATUS, |word| {
            word.fetch_and(!causes.to_le(), Ordering::SeqCst)
        });
    }

    /// What the driver has set of the device's status. That the device has failed stays what it was.
    pub(super) fn set_status(&self, status: u32) {
        let failed = VIRTIO_CONFIG_S_NEEDS_RESET.to_le();
        self.with(VIRTIO_MMIO_STATUS, |word| {
            let change = |before| Some((before & failed) | (status.to_le() & !failed));
            let changed = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change);
            changed.unwrap_or_else(|before| before)
        });
    }

    pub(super) fn set_needs_reset(&self, failed: bool) {
        let bit = VIRTIO_CONFIG_S_NEEDS_RESET.to_le();
        self.with(VIRTIO_MMIO_STATUS, |word| {
            if failed {
                word.fetch_or(bit, Ordering::SeqCst)
            } else {
                word.fetch_and(!bit, Ordering::SeqCst)
            }
        });
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.load(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_fails_while_its_driver_sets_the_status_has_failed() {
        let registers = Registers::of_test();
        registers.set_status(3);
        registers.set_needs_reset(true);
        registers.set_status(11);
        assert_eq!(
            registers.load(VIRTIO_MMIO_STATUS),
            11 | VIRTIO_CONFIG_S_NEEDS_RESET
        );
        assert!(registers.needs_reset());
        registers.set_needs_reset(false);
        // A driver cannot say that it has.
        registers.set_status(u32::MAX);
        assert!(!registers.needs_reset());
    }

    #[test]
    fn a_page_is_there_as_a_whole() {
        let pages = GuestMemory::from_ranges(&[(GuestAddress(0x10000), 2 * BYTES)]).unwrap();
        for (address, there) in [
            (0x10000, true),
            (0x11000, true),
            (0x11800, false),
            (0xf000, false),
        ] {
            assert_eq!(Registers::new(&pages, address).is_some(), there, "{address:#x}");
        }
        let (first, second) = (Registers::new(&pages, 0x10000), Registers::new(&pages, 0x11000));
        first.unwrap().store(0, 7);
        assert_eq!(second.unwrap().load(0), 0);
    }
}
