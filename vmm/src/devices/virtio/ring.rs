//! A split virtqueue from the device's side (section 2.7).

use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::chain::{Chain, ChainError};
use super::descriptors::Descriptors;
use crate::memory::{Bytes as _, GuestAddress, GuestMemory, VolatileMemoryError};
use crate::sys::owned_slice::OwnedSlice;

/// Where a queue lies and how far it was used: what a guest can see of it, and all that is needed to go on with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingState {
    /// Number of descriptors.
    pub size: u16,
    /// The driver has enabled it.
    pub ready: bool,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// Next entry of the available ring to be taken.
    pub next_available: u16,
    /// Next entry of the used ring to be filled.
    pub next_used: u16,
}

/// Why a queue is not used any more. The driver is broken or hostile; the device needs a reset.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// Its addresses are misaligned or outside of memory, or its size is not a power of two within the maximum.
    #[error("the queue is not valid")]
    Invalid,
    /// The ring indices make no sense, or memory under the ring is gone.
    #[error("the rings are corrupt: {0}")]
    Corrupt(virtio_queue::Error),
    /// A chain.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A buffer is too small for what has to go into it, or a request lacks a part that it must have.
    #[error("a request is malformed")]
    Malformed,
}

/// How far a queue was served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The driver wants an interrupt.
    pub signal: bool,
    /// There is more to do, and nothing will announce it.
    pub more: bool,
}

/// A queue in use. Its three parts are looked up once: a frame may take dozens of chains, and each is read in several
/// places.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    parts: Parts,
    /// Where the used ring ended when the driver was last asked whether it wants an interrupt.
    asked: u16,
}

impl Ring {
    /// Takes a queue into use.
    ///
    /// # Errors
    /// [`RingError::Invalid`].
    pub fn new(
        state: RingState,
        maximum: u16,
        event_index: bool,
        memory: &GuestMemory,
    ) -> Result<Self, RingError> {
        let state = virtio_queue::QueueState {
            max_size: maximum,
            next_avail: state.next_available,
            next_used: state.next_used,
            event_idx_enabled: event_index,
            size: state.size,
            ready: state.ready,
            desc_table: state.descriptors,
            avail_ring: state.available,
            used_ring: state.used,
        };
        let queue = Queue::try_from(state).map_err(|_| RingError::Invalid)?;
        if !queue.is_valid(memory) {
            return Err(RingError::Invalid);
        }
        Ok(Self {
            queue,
            parts: Parts::new(&state, memory).ok_or(RingError::Invalid)?,
            asked: state.next_used,
        })
    }

    /// The queue's state.
    #[must_use]
    pub fn state(&self) -> RingState {
        let state = self.queue.state();
        RingState {
            size: state.size,
            ready: state.ready,
            descriptors: state.desc_table,
            available: state.avail_ring,
            used: state.used_ring,
            next_available: state.next_avail,
            next_used: state.next_used,
        }
    }

    /// Takes the next chain that the driver has made available.
    ///
    /// # Errors
    /// [`RingError`]; the queue must not be used any more then.
    pub fn pop<'m>(&mut self, memory: &'m GuestMemory) -> Result<Option<Chain<'m>>, RingError> {
        let mut chain = Chain::default();
        Ok(self.pop_into(memory, &mut chain)?.then_some(chain))
    }

    /// As [`Ring::pop`], but into a chain that was used before, so that nothing is allocated. Returns whether there was one.
    ///
    /// # Errors
    /// As [`Ring::pop`].
    pub fn pop_into<'m>(
        &mut self,
        memory: &'m GuestMemory,
        chain: &mut Chain<'m>,
    ) -> Result<bool, RingError> {
        let (next, size) = (self.queue.next_avail(), self.queue.size());
        let available = self.parts.available.get();
        // What the driver wrote before the index must be visible once that is.
        let end: u16 = available.load(2, Ordering::Acquire).map_err(lost)?;
        let offered = u16::from_le(end).wrapping_sub(next);
        if offered > size {
            return Err(RingError::Corrupt(virtio_queue::Error::InvalidAvailRingIndex));
        }
        if offered == 0 {
            return Ok(false);
        }
        // Section 2.7.6: a flag word and an index, then entries of one word each. The size is a power of two.
        let entry = 4 + 2 * usize::from(next & (size - 1));
        let head = u16::from_le(available.load(entry, Ordering::Relaxed).map_err(lost)?);
        self.queue.set_next_avail(next.wrapping_add(1));
        let table = self.parts.descriptors.get();
        chain.fill(head, Descriptors::new(memory, table, size, head), memory, size)?;
        Ok(true)
    }

    /// Puts back the chain that was taken last.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back to the driver, with `written` bytes in its writable part.
    ///
    /// # Errors
    /// [`RingError::Corrupt`].
    pub fn complete(&mut self, head: u16, written: u32) -> Result<(), RingError> {
        self.complete_together(&[(head, written)])
    }

    /// Gives several chains back, so that the driver sees all of them or none: head, and bytes in the writable part.
    ///
    /// # Errors
    /// [`RingError::Corrupt`].
    pub fn complete_together(&mut self, chains: &[(u16, u32)]) -> Result<(), RingError> {
        let (size, used) = (self.queue.size(), self.parts.used.get());
        let mut next = self.queue.next_used();
        for (head, written) in chains {
            if *head >= size {
                return Err(RingError::Corrupt(virtio_queue::Error::InvalidDescriptorIndex));
            }
            // Section 2.7.8: a flag word and an index, then entries of two words each.
            let entry = 4 + 8 * usize::from(next & (size - 1));
            for (offset, word) in [(entry, u32::from(*head)), (entry + 4, *written)] {
                used.store(word.to_le(), offset, Ordering::Relaxed)
                    .map_err(lost)?;
            }
            next = next.wrapping_add(1);
        }
        self.queue.set_next_used(next);
        // The driver must find the entries once it sees the index.
        used.store(next.to_le(), 2, Ordering::Release).map_err(lost)
    }

    /// Takes chains as long as `ready` says so, at most `limit`, and gives each back with as many bytes written as `serve`
    /// answers. Where that is `None` the chain is put back, and the driver is not asked for more.
    ///
    /// # Errors
    /// [`RingError`], also those of `serve`.
    pub fn serve<T>(
        &mut self,
        memory: &GuestMemory,
        limit: usize,
        context: &mut T,
        ready: impl Fn(&T) -> bool,
        mut serve: impl FnMut(&mut T, &Chain<'_>) -> Result<Option<u32>, RingError>,
    ) -> Result<Outcome, RingError> {
        let (mut served, mut looks, mut more) = (0, 0, false);
        let mut chain = Chain::default();
        self.disable_notifications(memory)?;
        while ready(context) {
            // A driver that offers something and takes it back, again and again, is one that has much to do.
            if served == limit || looks == limit {
                more = true;
                break;
            }
            if !self.pop_into(memory, &mut chain)? {
                if self.enable_notifications(memory)? {
                    looks += 1;
                    continue;
                }
                break;
            }
            let Some(written) = serve(context, &chain)? else {
                self.undo_pop();
                break;
            };
            self.complete(chain.head, written)?;
            served += 1;
        }
        let signal = served > 0 && self.needs_interrupt()?;
        Ok(Outcome { signal, more })
    }

    /// Whether the driver wants an interrupt for what was given back since the last call.
    ///
    /// # Errors
    /// [`RingError::Corrupt`].
    pub fn needs_interrupt(&mut self) -> Result<bool, RingError> {
        let (next, asked) = (self.queue.next_used(), self.asked);
        self.asked = next;
        // What was given back must be visible before it is read what the driver wants (section 2.7.7.2).
        fence(Ordering::SeqCst);
        if !self.queue.event_idx_enabled() {
            let flags = self.available_word(0)?;
            return Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let event = self.available_word(4 + 2 * usize::from(self.queue.size()))?;
        Ok(next.wrapping_sub(event).wrapping_sub(1) < next.wrapping_sub(asked))
    }

    /// A word of the available ring.
    fn available_word(&self, offset: usize) -> Result<u16, RingError> {
        let word = self.parts.available.get().load(offset, Ordering::Relaxed);
        word.map(u16::from_le).map_err(lost)
    }

    /// Asks the driver not to notify; while the device is looking at the queue anyway.
    ///
    /// # Errors
    /// [`RingError::Corrupt`].
    pub fn disable_notifications(&mut self, memory: &GuestMemory) -> Result<(), RingError> {
        self.queue
            .disable_notification(memory)
            .map_err(RingError::Corrupt)
    }

    /// Asks the driver to notify. If it returns true, there is more to take already, and no notification will come for
    /// it.
    ///
    /// # Errors
    /// [`RingError::Corrupt`].
    pub fn enable_notifications(&mut self, memory: &GuestMemory) -> Result<bool, RingError> {
        self.queue.enable_notification(memory).map_err(RingError::Corrupt)
    }
}

/// Where a queue is. Each part is one piece of memory.
#[derive(Debug)]
struct Parts {
    descriptors: OwnedSlice,
    available: OwnedSlice,
    used: OwnedSlice,
}

impl Parts {
    /// Finds descriptor table and rings (sections 2.7.5, 2.7.6 and 2.7.8, with event indices), if they are in memory and can be
    /// told apart.
    ///
    /// They have to be memory from the first byte to the last: the library's own check looks at their ends only, and so
    /// finds nothing wrong with a ring that begins in the hole below memory. And what the device writes, the used ring, may
    /// not be what the driver tells it: with a flag of one in the place of the index of the other, each look at an empty
    /// queue would make it seem to have something.
    fn new(state: &virtio_queue::QueueState, memory: &GuestMemory) -> Option<Self> {
        let size = u64::from(state.size);
        let descriptors = (state.desc_table, 16 * size);
        let available = (state.avail_ring, 6 + 2 * size);
        let used = (state.used_ring, 6 + 8 * size);
        let find = |(address, bytes): (u64, u64)| {
            OwnedSlice::new(memory, GuestAddress(address), usize::try_from(bytes).ok()?)
        };
        let parts = Self {
            descriptors: find(descriptors)?,
            available: find(available)?,
            used: find(used)?,
        };
        // What is in memory ends without an overflow.
        let apart =
            |one: (u64, u64), other: (u64, u64)| one.0 + one.1 <= other.0 || other.0 + other.1 <= one.0;
        (apart(used, available) && apart(used, descriptors)).then_some(parts)
    }
}

/// What is within a part is there; this says so where it would not be.
fn lost(error: VolatileMemoryError) -> RingError {
    RingError::Corrupt(virtio_queue::Error::GuestMemory(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::test_driver::Driver;

    #[test]
    fn only_valid_queues_are_taken_into_use() {
        let driver = Driver::new(8);
        let check = |change: fn(&mut RingState), valid: bool| {
            let mut state = driver.state();
            change(&mut state);
            assert_eq!(
                Ring::new(state, 8, true, &driver.memory).is_ok(),
                valid,
                "{state:?}"
            );
        };
        check(|_| (), true);
        check(|state| state.size = 4, true);
        check(|state| state.size = 0, false);
        check(|state| state.size = 16, false);
        check(|state| state.size = 3, false);
        check(|state| state.ready = false, false);
        check(|state| state.descriptors += 8, false);
        check(|state| state.available += 1, false);
        check(|state| state.used += 2, false);
        check(|state| state.used = 0x4000_0000, false);
        check(|state| state.descriptors = u64::MAX - 15, false);
    }

    #[test]
    fn a_ring_that_begins_outside_of_memory_is_not_valid() {
        let ranges = [(GuestAddress(0), 0x4000), (GuestAddress(0x5000), 0x1000)];
        let memory = GuestMemory::from_ranges(&ranges).unwrap();
        let valid = |address: fn(&mut RingState) -> &mut u64, value| {
            let mut state = Driver::new(8).state();
            (state.descriptors, state.available, state.used) = (0, 0x1000, 0x2000);
            *address(&mut state) = value;
            Ring::new(state, 8, true, &memory).is_ok()
        };
        for address in [
            (|state| &mut state.descriptors) as fn(&mut RingState) -> &mut u64,
            |state| &mut state.available,
            |state| &mut state.used,
        ] {
            assert!(valid(address, 0x5000));
            assert!(
                !valid(address, 0x4ff0),
                "it begins in the hole and ends in memory"
            );
            assert!(
                !valid(address, 0x3ff0),
                "it begins in memory and ends in the hole"
            );
        }
    }

    #[test]
    fn a_used_ring_may_not_be_what_the_driver_writes() {
        let driver = Driver::new(8);
        let valid = |used| {
            let state = RingState {
                used,
                ..driver.state()
            };
            Ring::new(state, 8, false, &driver.memory).is_ok()
        };
        let RingState {
            descriptors,
            available,
            ..
        } = driver.state();
        // Eight descriptors take 128 bytes, the rings 22 and 70.
        for (used, expected) in [
            (available, false),
            (available - 68, false),
            (available - 72, true),
            (available + 20, false),
            (available + 24, true),
            (descriptors + 124, false),
            (descriptors + 128, true),
        ] {
            assert_eq!(valid(used), expected, "{used:#x}");
        }
    }

    #[test]
    fn an_index_that_jumps_is_corrupt() {
        let driver = Driver::new(8);
        driver.set_available_index(9);
        assert!(matches!(
            driver.ring().pop(&driver.memory),
            Err(RingError::Corrupt(_))
        ));
        driver.set_available_index(8);
        driver.write_descriptor(0, (0x10000, 1, 0, 0));
        assert!(driver.ring().pop(&driver.memory).is_ok());
    }

    #[test]
    fn a_queue_goes_on_from_its_state() {
        let driver = Driver::new(8);
        driver.write_descriptor(0, (0x10000, 1, 0, 0));
        driver.write_descriptor(1, (0x10000, 2, 0, 0));
        driver.offer(0);
        driver.offer(1);
        let mut ring = driver.ring();
        let head = ring.pop(&driver.memory).unwrap().unwrap().head;
        ring.complete(head, 7).unwrap();
        let state: RingState = serde_json::from_str(&serde_json::to_string(&ring.state()).unwrap()).unwrap();
        let mut ring = Ring::new(state, 8, true, &driver.memory).unwrap();
        let chain = ring.pop(&driver.memory).unwrap().unwrap();
        assert_eq!((chain.head, chain.readable.len()), (1, 2));
        ring.undo_pop();
        assert_eq!(ring.pop(&driver.memory).unwrap().unwrap().head, 1);
        ring.complete(1, 9).unwrap();
        assert_eq!(driver.used(), [(0, 7), (1, 9)]);
    }

    #[test]
    fn chains_are_given_back_together() {
        let driver = Driver::new(4);
        let mut ring = driver.ring();
        ring.complete(3, 1).unwrap();
        ring.complete_together(&[(0, 5), (2, 6), (1, 7), (3, 8)]).unwrap();
        // The first entry was written over by the last.
        assert_eq!(driver.used()[1..], [(0, 5), (2, 6), (1, 7), (3, 8)]);
        assert_eq!(ring.state().next_used, 5);
        let beyond = ring.complete_together(&[(0, 0), (4, 0)]);
        assert!(matches!(beyond, Err(RingError::Corrupt(_))));
        assert_eq!(driver.used().len(), 5, "nothing of it was given back");
    }

    #[test]
    fn interrupts_come_when_the_driver_wants_them() {
        let driver = Driver::new(8);
        let state = driver.state();
        let write_word = |address: u64, value: u16| driver.write(address, &value.to_le_bytes());
        // With an index, once the used ring goes past it, however many entries came since the last question.
        let mut ring = Ring::new(state, 8, true, &driver.memory).unwrap();
        let mut check = |event: u16, completed: u16, expected| {
            write_word(state.available + 4 + 2 * 8, event);
            let chains: Vec<_> = (0..completed).map(|head| (head, 0)).collect();
            ring.complete_together(&chains).unwrap();
            let context = (event, completed);
            assert_eq!(ring.needs_interrupt().unwrap(), expected, "{context:?}");
        };
        check(0, 1, true);
        check(3, 2, false);
        check(3, 0, false);
        check(3, 4, true);
        check(3, 1, false);
        check(u16::MAX, 1, false);
        // With a flag.
        let mut ring = Ring::new(state, 8, false, &driver.memory).unwrap();
        assert!(ring.needs_interrupt().unwrap());
        write_word(state.available, 1);
        assert!(!ring.needs_interrupt().unwrap());
    }
}
