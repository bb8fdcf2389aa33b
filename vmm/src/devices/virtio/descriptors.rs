//! The descriptors of one chain, one after the other (section 2.7.5).
//!
//! It ends where virtio-queue's own iterator does, which looks each descriptor up in guest memory; here a table is looked up
//! once. Each descriptor is read once.

use virtio_queue::desc::split::Descriptor;

use crate::memory::{GuestMemory, GuestMemoryBackend as _, VolatileMemory as _, VolatileSlice};

const DESCRIPTOR_BYTES: u32 = 16;

/// Reads a chain. There are at most as many descriptors as in its table.
#[derive(Debug)]
pub(super) struct Descriptors<'m> {
    memory: &'m GuestMemory,
    table: VolatileSlice<'m>,
    /// Descriptors in the table.
    entries: u16,
    next: u16,
    /// How many may still come.
    left: u16,
    /// Of those that have come.
    bytes: u32,
    indirect: bool,
}

impl<'m> Descriptors<'m> {
    /// The chain at `head` of a table with `entries` descriptors.
    pub(super) fn new(
        memory: &'m GuestMemory,
        table: VolatileSlice<'m>,
        entries: u16,
        head: u16,
    ) -> Self {
        Self {
            memory,
            table,
            entries,
            next: head,
            left: entries,
            bytes: 0,
            indirect: false,
        }
    }

    /// Goes on in the table that `descriptor` names (section 2.7.5.3): it holds whole descriptors, none of which names a
    /// table.
    fn enter(&mut self, descriptor: Descriptor) -> Option<()> {
        if self.indirect || !descriptor.len().is_multiple_of(DESCRIPTOR_BYTES) {
            return None;
        }
        let entries = u16::try_from(descriptor.len() / DESCRIPTOR_BYTES).ok()?;
        let bytes = usize::try_from(descriptor.len()).ok()?;
        *self = Self {
            table: self.memory.get_slice(descriptor.addr(), bytes).ok()?,
            indirect: true,
            bytes: self.bytes,
            ..Self::new(self.memory, self.table, entries, 0)
        };
        Some(())
    }

    fn read(&self) -> Option<Descriptor> {
        if self.left == 0 || self.next >= self.entries {
            return None;
        }
        let place = self.table.get_ref::<Descriptor>(16 * usize::from(self.next));
        Some(place.ok()?.load())
    }
}

impl Iterator for Descriptors<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        let mut descriptor = self.read()?;
        if descriptor.refers_to_indirect_table() {
            self.enter(descriptor)?;
            descriptor = self.read()?;
            if descriptor.refers_to_indirect_table() {
                return None;
            }
        }
        // Section 2.7.5.2: a chain is at most 4 GiB long.
        self.bytes = self.bytes.checked_add(descriptor.len())?;
        if descriptor.has_next() {
            self.next = descriptor.next();
            self.left -= 1;
        } else {
            self.left = 0;
        }
        Some(descriptor)
    }
}
