//! Where an access of the guest to an I/O port or a device address ends up.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device on a bus. Offsets count from the start of the range under which it was added.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes. What the device does not know stays as it is: all ones.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes `data`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device that several threads reach.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Address ranges and the devices behind them.
#[derive(Clone, Default)]
pub struct Bus {
    /// Sorted by start, without overlaps.
    devices: Vec<(Range<u64>, SharedDevice)>,
}

/// Two devices want the same address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("two devices claim addresses {:#x} to {:#x}", .0.start, .0.end)]
pub struct Overlap(pub Range<u64>);

impl Bus {
    /// Puts `device` at `range`.
    ///
    /// # Errors
    /// [`Overlap`] if another device has a part of it.
    pub fn add(&mut self, range: Range<u64>, device: SharedDevice) -> Result<(), Overlap> {
        let index = self
            .devices
            .partition_point(|(other, _)| other.start < range.start);
        let follows = self
            .devices
            .get(index)
            .is_some_and(|(next, _)| next.start < range.end);
        let precedes = index
            .checked_sub(1)
            .and_then(|index| self.devices.get(index))
            .is_some_and(|(previous, _)| previous.end > range.start);
        if follows || precedes || range.is_empty() {
            return Err(Overlap(range));
        }
        self.devices.insert(index, (range, device));
        Ok(())
    }

    /// Reads; an address without a device reads as all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((offset, device)) = self.find(address) {
            lock(device).read(offset, data);
        }
    }

    /// Writes; an address without a device swallows it.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address) {
            lock(device).write(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(u64, &Mutex<dyn BusDevice>)> {
        let index = self
            .devices
            .partition_point(|(range, _)| range.start <= address)
            .checked_sub(1)?;
        let (range, device) = self.devices.get(index)?;
        range
            .contains(&address)
            .then(|| (address - range.start, &**device))
    }
}

/// Locks without regard to poisoning: a thread that panicked takes the whole process with it in a release build, and in
/// a test the panic itself is the finding.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Recorder(Vec<(u64, u8)>);

    impl BusDevice for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data[0] = u8::try_from(offset).unwrap();
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data[0]));
        }
    }

    #[test]
    fn accesses_reach_the_device_of_their_range() {
        let (first, second) = (
            Arc::new(Mutex::new(Recorder(vec![]))),
            Arc::new(Mutex::new(Recorder(vec![]))),
        );
        let mut bus = Bus::default();
        bus.add(0x20..0x28, second.clone()).unwrap();
        bus.add(0x10..0x18, first.clone()).unwrap();
        let mut data = [0; 2];
        bus.read(0x27, &mut data);
        assert_eq!(data, [7, 0xff]);
        bus.read(0x28, &mut data);
        assert_eq!(data, [0xff, 0xff]);
        bus.write(0x11, &[9]);
        bus.write(0x18, &[1]);
        bus.write(0x1f, &[1]);
        bus.write(0x0f, &[1]);
        assert_eq!(lock(&first).0, [(1, 9)]);
        assert!(lock(&second).0.is_empty());
    }

    #[test]
    fn overlaps_are_refused() {
        let device = || Arc::new(Mutex::new(Recorder(vec![])));
        let mut bus = Bus::default();
        bus.add(0x10..0x18, device()).unwrap();
        for range in [
            0x17..0x19,
            0x0f..0x11,
            0x10..0x18,
            0x12..0x13,
            0x00..0x100,
            0x30..0x30,
        ] {
            assert_eq!(bus.add(range.clone(), device()), Err(Overlap(range)));
        }
        bus.add(0x18..0x20, device()).unwrap();
        bus.add(0x08..0x10, device()).unwrap();
    }
}
