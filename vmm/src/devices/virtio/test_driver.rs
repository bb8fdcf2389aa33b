//! The other side of a queue, for tests: a driver that writes descriptors, well-formed or not, into guest memory.

use std::cell::Cell;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS,
};

use super::mmio::MmioTransport;
use super::ring::{Ring, RingState};
use crate::bus::BusDevice as _;
use crate::memory::{Bytes, GuestAddress, GuestMemory};

/// The buffer continues in another descriptor.
pub(crate) const NEXT: u16 = 1;
/// The device writes the buffer.
pub(crate) const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub(crate) const INDIRECT: u16 = 4;

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x3000;
const USED: u64 = 0x4000;
const QUEUE_BYTES: u64 = 0x4000;
/// Buffers are taken from here on, 768 KiB for each queue; four queues have 4 MiB of memory.
const BUFFERS: u64 = 0x8_0000;

/// Starts the device behind `transport` on the queues of `drivers`, as a driver without features of its own does.
pub(crate) fn start(transport: &mut MmioTransport, drivers: &[Driver]) {
    let mut write = |register: u32, value: u32| transport.write(u64::from(register), &value.to_le_bytes());
    for status in [ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
        write(VIRTIO_MMIO_STATUS, status);
    }
    write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    write(VIRTIO_MMIO_DRIVER_FEATURES, 1); // VIRTIO_F_VERSION_1
    write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    for (index, driver) in (0..).zip(drivers) {
        let state = driver.state();
        write(VIRTIO_MMIO_QUEUE_SEL, index);
        write(VIRTIO_MMIO_QUEUE_NUM, u32::from(state.size));
        // All queues are in the first 4 GiB.
        for (register, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, state.descriptors),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, state.available),
            (VIRTIO_MMIO_QUEUE_USED_LOW, state.used),
        ] {
            write(register, u32::try_from(address).unwrap());
        }
        write(VIRTIO_MMIO_QUEUE_READY, 1);
    }
    write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

/// Address, length, flags, next.
pub(crate) type Descriptor = (u64, u32, u16, u16);

/// One queue in 4 MiB of guest memory.
pub(crate) struct Driver {
    pub(crate) memory: GuestMemory,
    base: u64,
    size: u16,
    next_descriptor: Cell<u16>,
    next_buffer: Cell<u64>,
}

impl Driver {
    pub(crate) fn new(size: u16) -> Self {
        Self::in_memory(crate::memory::allocate(4).unwrap(), size, 0)
    }

    /// Queue number `index` of several in the same memory.
    pub(crate) fn in_memory(memory: GuestMemory, size: u16, index: u64) -> Self {
        assert!(size <= 256 && index < 5);
        let next_buffer = Cell::new(BUFFERS + index * 0xc_0000);
        Self {
            memory,
            base: index * QUEUE_BYTES,
            size,
            next_descriptor: Cell::new(0),
            next_buffer,
        }
    }

    pub(crate) fn state(&self) -> RingState {
        RingState {
            size: self.size,
            ready: true,
            descriptors: self.base + DESCRIPTORS,
            available: self.base + AVAILABLE,
            used: self.base + USED,
            ..Default::default()
        }
    }

    pub(crate) fn ring(&self) -> Ring {
        Ring::new(self.state(), self.size, false, &self.memory).unwrap()
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(crate) fn read(&self, address: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    pub(crate) fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        self.write_entry(self.base + DESCRIPTORS, index, descriptor);
    }

    /// What stands at `index` of the descriptor table.
    pub(crate) fn descriptor(&self, index: u16) -> Descriptor {
        let entry = GuestAddress(self.base + DESCRIPTORS + 16 * u64::from(index));
        let [low, high]: [u64; 2] = self.memory.read_obj(entry).unwrap();
        let field = |shift: u32| u16::try_from((high >> shift) & 0xffff).unwrap();
        (
            low,
            u32::try_from(high & 0xffff_ffff).unwrap(),
            field(32),
            field(48),
        )
    }

    pub(crate) fn write_entry(&self, table: u64, index: u16, (address, length, flags, next): Descriptor) {
        let mut entry = address.to_le_bytes().to_vec();
        entry.extend(length.to_le_bytes());
        entry.extend(flags.to_le_bytes());
        entry.extend(next.to_le_bytes());
        self.write(table + 16 * u64::from(index), &entry);
    }

    pub(crate) fn set_available_index(&self, index: u16) {
        self.memory
            .write_obj(index, GuestAddress(self.base + AVAILABLE + 2))
            .unwrap();
    }

    /// Makes the chain at `head` available.
    pub(crate) fn offer(&self, head: u16) {
        let index: u16 = self
            .memory
            .read_obj(GuestAddress(self.base + AVAILABLE + 2))
            .unwrap();
        let entry = self.base + AVAILABLE + 4 + 2 * u64::from(index % self.size);
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        self.set_available_index(index.wrapping_add(1));
    }

    /// Makes a chain available that gives the device `readable` and takes as many bytes as the sum of `writable`; returns
    /// the address of the first writable buffer.
    pub(crate) fn request(&self, readable: &[&[u8]], writable: &[u32]) -> u64 {
        let head = self.next_descriptor.get();
        let count = u16::try_from(readable.len() + writable.len()).unwrap();
        let mut first_writable = 0;
        let lengths = readable
            .iter()
            .map(|bytes| (u32::try_from(bytes.len()).unwrap(), 0));
        let lengths = lengths.chain(writable.iter().map(|length| (*length, WRITE)));
        for (position, (length, kind)) in (0..count).zip(lengths) {
            let address = self.next_buffer.get();
            self.next_buffer
                .set(address + u64::from(length).next_multiple_of(16));
            if let Some(bytes) = readable.get(usize::from(position)) {
                self.write(address, bytes);
            } else if first_writable == 0 {
                first_writable = address;
            }
            let flags = if position + 1 < count { kind | NEXT } else { kind };
            let index = (head + position) % self.size;
            self.write_descriptor(index, (address, length, flags, (index + 1) % self.size));
        }
        self.next_descriptor.set((head + count) % self.size);
        self.offer(head);
        first_writable
    }

    /// Uses the memory of earlier requests again. The device must have given all of them back.
    pub(crate) fn rewind(&self) {
        self.next_buffer.set(BUFFERS + self.base / QUEUE_BYTES * 0xc_0000);
    }

    /// Begins anew: nothing is available, nothing used.
    pub(crate) fn forget(&self) {
        self.write(self.base + AVAILABLE, &[0; 4]);
        self.write(self.base + USED, &[0; 4]);
        self.next_descriptor.set(0);
        self.rewind();
    }

    /// All that the device has given back: head and bytes written.
    pub(crate) fn used(&self) -> Vec<(u32, u32)> {
        let index: u16 = self.memory.read_obj(GuestAddress(self.base + USED + 2)).unwrap();
        let entry = |position: u16| {
            let address = self.base + USED + 4 + 8 * u64::from(position % self.size);
            let field = |offset| self.memory.read_obj(GuestAddress(address + offset)).unwrap();
            (field(0), field(4))
        };
        (0..index).map(entry).collect()
    }
}
