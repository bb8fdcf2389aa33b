//! The descriptors of one chain, one after the other (section 2.7.5).
//!
//! It ends where virtio-queue's own iterator does, which looks each descriptor up in guest memory; here a table is looked up
//! once, and so has to be memory from the first descriptor to the last. Each descriptor is read once.

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
    pub(super) fn new(memory: &'m GuestMemory, table: VolatileSlice<'m>, entries: u16, head: u16) -> Self {
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

#[cfg(test)]
mod tests {
    use virtio_queue::{Queue, QueueOwnedT as _, QueueT as _};

    use super::*;
    use crate::devices::virtio::test_driver::{Driver, INDIRECT, NEXT, WRITE};
    use crate::memory::GuestAddress;

    /// A repeatable sequence (Marsaglia's xorshift).
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % bound
        }

        fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
            choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
        }

        /// Makes sense often enough for chains of some length, and sometimes none.
        fn descriptor(&mut self, tables: &[u64]) -> (u64, u32, u16, u16) {
            let flags = self.one_of(&[
                0,
                NEXT,
                NEXT,
                NEXT,
                NEXT | WRITE,
                WRITE,
                INDIRECT,
                INDIRECT | NEXT,
            ]);
            let next = u16::try_from(self.below(9)).unwrap();
            if flags & INDIRECT != 0 {
                let length = self.one_of(&[0, 16, 32, 64, 64, 96, 33, 16 << 16, u32::MAX - 15]);
                return (self.one_of(tables), length, flags, next);
            }
            let length = self.one_of(&[0, 1, 12, 4096, 4096, 1 << 31]);
            (self.one_of(&[0x10000, 0x20000, u64::MAX]), length, flags, next)
        }
    }

    #[test]
    fn chains_end_where_those_of_the_library_end() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let (mut longest, mut through_tables) = (0, 0);
        let driver = Driver::new(8);
        for _ in 0..1000 {
            // A table, one that is not aligned, one outside of memory.
            let tables = [0x5000, 0x5000, 0x6008, u64::MAX - 64];
            for index in 0..8 {
                driver.write_descriptor(index, random.descriptor(&tables));
                driver.write_entry(0x5000, index, random.descriptor(&tables));
                driver.write_entry(0x6008, index, random.descriptor(&tables));
            }
            let state = driver.state();
            for head in 0..9 {
                driver.forget();
                driver.offer(head);
                let mut queue = Queue::new(8).unwrap();
                queue
                    .try_set_desc_table_address(GuestAddress(state.descriptors))
                    .unwrap();
                queue
                    .try_set_avail_ring_address(GuestAddress(state.available))
                    .unwrap();
                queue.try_set_used_ring_address(GuestAddress(state.used)).unwrap();
                queue.set_ready(true);
                let theirs = queue.iter(&driver.memory).unwrap().next().unwrap();
                let table = driver
                    .memory
                    .get_slice(GuestAddress(state.descriptors), 128)
                    .unwrap();
                let ours = Descriptors::new(&driver.memory, table, 8, head);
                let fields = |descriptor: Descriptor| {
                    (
                        descriptor.addr(),
                        descriptor.len(),
                        descriptor.flags(),
                        descriptor.next(),
                    )
                };
                let ours: Vec<_> = ours.map(fields).collect();
                assert_eq!(ours, theirs.map(fields).collect::<Vec<_>>());
                longest = longest.max(ours.len());
                let (_, _, flags, _) = driver.descriptor(head % 8);
                through_tables += usize::from(flags & INDIRECT != 0 && !ours.is_empty());
            }
        }
        assert!(longest > 6 && through_tables > 100, "{longest}, {through_tables}");
    }

    #[test]
    fn a_table_is_memory_as_a_whole() {
        let driver = Driver::new(8);
        let count = |address: u64| {
            driver.write_descriptor(0, (address, 32, INDIRECT, 0));
            let table = driver
                .memory
                .get_slice(GuestAddress(driver.state().descriptors), 128);
            Descriptors::new(&driver.memory, table.unwrap(), 8, 0).count()
        };
        // Memory ends at 4 MiB, and holds descriptors without a successor there.
        assert_eq!(count(0x3f_ffe0), 1);
        assert_eq!(count(0x3f_fff0), 0);
    }
}
