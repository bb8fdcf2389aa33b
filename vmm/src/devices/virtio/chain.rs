//! A descriptor chain, checked as a whole before a device touches any of it.
//!
//! How a driver cuts a request into descriptors means nothing (section 2.7.4): devices see two stretches of bytes, one
//! to read and one to write.

use super::descriptors::Descriptors;
use crate::memory::{GuestAddress, GuestMemory, GuestMemoryBackend, VolatileSlice};

/// Why a chain was refused. Any of these means that the driver is broken or hostile.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// It has no descriptors, or its end cannot be reached: a loop, an index or a table outside of memory.
    #[error("a descriptor chain does not end")]
    Unterminated,
    /// More descriptors than the queue has (section 2.7.5.3.1 forbids it for indirect tables as well).
    #[error("a descriptor chain is longer than its queue")]
    TooLong,
    /// A buffer that is not guest memory.
    #[error("a descriptor points outside of guest memory")]
    Address,
    /// A readable buffer behind a writable one (section 2.7.4.2).
    #[error("a descriptor chain has a readable buffer behind a writable one")]
    Order,
}

/// A checked chain.
#[derive(Debug, Default)]
pub struct Chain<'m> {
    /// Index by which it is given back.
    pub head: u16,
    /// What the device reads.
    pub readable: Buffers<'m>,
    /// What the device writes.
    pub writable: Buffers<'m>,
    /// Where that is, for a device that answers later.
    pub writable_at: Extents,
}

impl<'m> Chain<'m> {
    /// Becomes the chain at `head` of a queue with `queue_size` descriptors, once that was checked.
    ///
    /// # Errors
    /// [`ChainError`]; what this chain is then means nothing.
    pub(super) fn fill(
        &mut self,
        head: u16,
        mut descriptors: Descriptors<'_>,
        memory: &'m GuestMemory,
        queue_size: u16,
    ) -> Result<(), ChainError> {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        self.writable_at.0.clear();
        for count in 0.. {
            let descriptor = descriptors.next().ok_or(ChainError::Unterminated)?;
            if count == queue_size {
                return Err(ChainError::TooLong);
            }
            let bytes = usize::try_from(descriptor.len()).map_err(|_| ChainError::Address)?;
            let buffers = if descriptor.is_write_only() {
                self.writable_at.0.push((descriptor.addr(), bytes));
                &mut self.writable
            } else if self.writable.slices.is_empty() {
                &mut self.readable
            } else {
                return Err(ChainError::Order);
            };
            buffers.add(memory, descriptor.addr(), bytes)?;
            if !descriptor.has_next() {
                break;
            }
        }
        Ok(())
    }
}

/// Stretches of guest memory by their addresses: what outlives a look at them. There are as many as descriptors in the
/// chain at most.
#[derive(Clone, Debug, Default)]
pub struct Extents(Vec<(GuestAddress, usize)>);

impl Extents {
    /// The stretches themselves.
    ///
    /// # Errors
    /// [`ChainError::Address`], but not for what a chain was checked with: guest memory stays.
    pub fn resolve<'m>(&self, memory: &'m GuestMemory) -> Result<Buffers<'m>, ChainError> {
        let mut buffers = Buffers::default();
        for (address, bytes) in &self.0 {
            buffers.add(memory, *address, *bytes)?;
        }
        Ok(buffers)
    }
}

/// Stretches of guest memory that follow each other. The guest may change them at any time, so each byte is read once.
#[derive(Clone, Debug, Default)]
pub struct Buffers<'m> {
    slices: Vec<VolatileSlice<'m>>,
    bytes: usize,
}

impl<'m> Buffers<'m> {
    fn add(
        &mut self,
        memory: &'m GuestMemory,
        address: GuestAddress,
        bytes: usize,
    ) -> Result<(), ChainError> {
        // Nearly all are in one region.
        if let Ok(slice) = memory.get_slice(address, bytes) {
            self.push(slice);
            return Ok(());
        }
        for slice in memory.get_slices(address, bytes) {
            self.push(slice.map_err(|_| ChainError::Address)?);
        }
        Ok(())
    }

    fn push(&mut self, slice: VolatileSlice<'m>) {
        if !slice.is_empty() {
            self.bytes += slice.len();
            self.slices.push(slice);
        }
    }

    fn clear(&mut self) {
        self.slices.clear();
        self.bytes = 0;
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The stretches, for a vectored system call.
    #[must_use]
    pub fn slices(&self) -> &[VolatileSlice<'m>] {
        &self.slices
    }

    /// The first `count` bytes and the rest; `None` if there are fewer.
    #[must_use]
    pub fn split_at(&self, count: usize) -> Option<(Self, Self)> {
        let (mut first, mut rest) = (Self::default(), Self::default());
        for slice in &self.slices {
            let here = (count - first.bytes).min(slice.len());
            let (before, after) = slice.split_at(here).ok()?;
            first.push(before);
            rest.push(after);
        }
        (first.bytes == count).then_some((first, rest))
    }

    /// The first `N` bytes, copied; `None` if there are fewer.
    #[must_use]
    pub fn read<const N: usize>(&self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.copy_to(&mut bytes) == N).then_some(bytes)
    }

    /// Copies as much as fits to `into`; returns how much.
    pub fn copy_to(&self, into: &mut [u8]) -> usize {
        let mut copied = 0;
        for slice in &self.slices {
            let Some(rest) = into.get_mut(copied..).filter(|rest| !rest.is_empty()) else {
                break;
            };
            copied += slice.copy_to(rest);
        }
        copied
    }

    /// Copies as much of `from` as fits; returns how much.
    pub fn copy_from(&self, from: &[u8]) -> usize {
        let mut copied = 0;
        for slice in &self.slices {
            let rest = from.get(copied..).unwrap_or_default();
            slice.copy_from(rest);
            copied += slice.len().min(rest.len());
        }
        copied
    }

    /// Copies as much as fits to `into`.
    pub fn copy_to_memory(&self, into: &VolatileSlice<'_>) {
        let mut copied = 0;
        for slice in &self.slices {
            let Ok(rest) = into.offset(copied) else { break };
            slice.copy_to_volatile_slice(rest);
            copied += slice.len();
        }
    }

    /// Copies the first `bytes` of `from`, or as much of them as fits.
    pub fn copy_from_memory(&self, from: &VolatileSlice<'_>, bytes: usize) {
        let mut copied = 0;
        for slice in &self.slices {
            let rest = bytes.saturating_sub(copied).min(slice.len());
            let Ok(part) = from.subslice(copied, rest) else {
                break;
            };
            part.copy_to_volatile_slice(*slice);
            copied += rest;
        }
    }

    /// Sets everything to zero.
    pub fn fill_zero(&self) {
        const ZEROS: [u8; 4096] = [0; 4096];
        for slice in &self.slices {
            let mut rest = *slice;
            while !rest.is_empty() {
                rest.copy_from(&ZEROS);
                let Ok(next) = rest.offset(rest.len().min(ZEROS.len())) else {
                    break;
                };
                rest = next;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::ring::RingError;
    use crate::devices::virtio::test_driver::{Driver, INDIRECT, NEXT, WRITE};

    /// Offers one chain and says what the device makes of it: bytes to read, bytes to write.
    fn check(descriptors: &[(u64, u32, u16, u16)], expected: Result<(usize, usize), ChainError>) {
        let driver = Driver::new(8);
        for (index, descriptor) in (0..).zip(descriptors) {
            driver.write_descriptor(index, *descriptor);
        }
        driver.offer(0);
        let mut ring = driver.ring();
        let result = match ring.pop(&driver.memory) {
            Ok(chain) => chain
                .map(|chain| (chain.readable.len(), chain.writable.len()))
                .ok_or("no chain"),
            Err(RingError::Chain(error)) => {
                assert_eq!(Err(error), expected);
                return;
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(result.ok(), expected.ok());
    }

    #[test]
    fn chains_are_accepted_or_refused_as_a_whole() {
        check(&[(0x10000, 16, 0, 0)], Ok((16, 0)));
        check(
            &[
                (0x10000, 16, NEXT, 1),
                (0x11000, 512, WRITE | NEXT, 2),
                (0x12000, 1, WRITE, 0),
            ],
            Ok((16, 513)),
        );
        check(&[(0x10000, 0, NEXT, 1), (0x11000, 8, 0, 0)], Ok((8, 0)));
        // A loop, an index outside of the table, and descriptors in the wrong order.
        check(&[(0x10000, 16, NEXT, 0)], Err(ChainError::Unterminated));
        check(&[(0x10000, 16, NEXT, 8)], Err(ChainError::Unterminated));
        check(
            &[(0x10000, 16, NEXT | WRITE, 1), (0x11000, 8, 0, 0)],
            Err(ChainError::Order),
        );
        // Outside of memory, across its end, and around the end of the address space.
        check(&[(0x4000_0000, 16, 0, 0)], Err(ChainError::Address));
        check(&[(0x3f_fff0, 32, 0, 0)], Err(ChainError::Address));
        check(&[(u64::MAX - 4, 16, WRITE, 0)], Err(ChainError::Address));
        // 4 GiB in all.
        check(
            &[(0x10000, 1, NEXT, 1), (0x10000, u32::MAX, 0, 0)],
            Err(ChainError::Unterminated),
        );
    }

    #[test]
    fn indirect_tables_are_checked_alike() {
        let with_table = |table_bytes: u32, flags: u16, entries: &[(u64, u32, u16, u16)], expected| {
            let driver = Driver::new(8);
            driver.write_descriptor(0, (0x20000, table_bytes, INDIRECT | flags, 0));
            for (index, entry) in (0..).zip(entries) {
                driver.write_entry(0x20000, index, *entry);
            }
            driver.offer(0);
            let mut ring = driver.ring();
            let result = ring
                .pop(&driver.memory)
                .map(|chain| chain.map(|chain| chain.readable.len()));
            match result {
                Ok(length) => assert_eq!(Ok(length.unwrap_or(0)), expected),
                Err(RingError::Chain(error)) => assert_eq!(Err(error), expected),
                Err(error) => panic!("{error}"),
            }
        };
        with_table(32, 0, &[(0x10000, 16, NEXT, 1), (0x11000, 8, 0, 0)], Ok(24));
        with_table(33, 0, &[(0x10000, 16, 0, 0)], Err(ChainError::Unterminated));
        with_table(0, 0, &[], Err(ChainError::Unterminated));
        with_table(
            32,
            0,
            &[(0x21000, 16, INDIRECT, 0)],
            Err(ChainError::Unterminated),
        );
        with_table(
            16,
            0,
            &[(0x10000, 16, NEXT, 1), (0x11000, 8, 0, 0)],
            Err(ChainError::Unterminated),
        );
        let long: Vec<_> = (1..=9)
            .map(|next| (0x10000, 1, if next < 9 { NEXT } else { 0 }, next))
            .collect();
        with_table(9 * 16, 0, &long, Err(ChainError::TooLong));
        with_table(8 * 16, 0, &[&long[..7], &[(0x10000, 1, 0, 0)]].concat(), Ok(8));
    }

    #[test]
    fn buffers_are_split_and_copied_across_descriptors() {
        let driver = Driver::new(8);
        driver.write_descriptor(0, (0x10000, 3, NEXT, 1));
        driver.write_descriptor(1, (0x20000, 5, 0, 0));
        driver.write(0x10000, b"abc");
        driver.write(0x20000, b"defgh");
        driver.offer(0);
        let mut ring = driver.ring();
        let buffers = ring.pop(&driver.memory).unwrap().unwrap().readable;
        assert_eq!(buffers.read::<8>().as_ref(), Some(b"abcdefgh"));
        assert_eq!(buffers.read::<9>(), None);
        let (first, rest) = buffers.split_at(4).unwrap();
        assert_eq!(
            (first.read::<4>(), rest.read::<4>()),
            (Some(*b"abcd"), Some(*b"efgh"))
        );
        assert_eq!((first.len(), rest.len()), (4, 4));
        assert!(buffers.split_at(9).is_none());
        assert!(buffers.split_at(8).is_some_and(|(_, rest)| rest.is_empty()));
        assert_eq!(rest.copy_from(b"WXYZ!"), 4);
        assert_eq!(buffers.read::<8>().as_ref(), Some(b"abcdWXYZ"));
        first.fill_zero();
        assert_eq!(buffers.read::<8>().as_ref(), Some(b"\0\0\0\0WXYZ"));
        // To other memory and back, of which there may be less.
        let mut other = [1; 10];
        let memory = VolatileSlice::from(other.as_mut_slice());
        rest.copy_to_memory(&memory);
        buffers.copy_to_memory(&memory.offset(6).unwrap());
        buffers.copy_from_memory(&memory, 5);
        assert_eq!(buffers.read::<8>().as_ref(), Some(b"WXYZ\x01XYZ"));
        buffers.copy_from_memory(&memory, 100);
        assert_eq!(buffers.read::<8>().as_ref(), Some(b"WXYZ\x01\x01\0\0"));
        assert_eq!(other, *b"WXYZ\x01\x01\0\0\0\0");
    }
}
