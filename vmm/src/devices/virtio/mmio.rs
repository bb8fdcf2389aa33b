//! The memory-mapped transport (section 4.2), version 2: what a driver reads and writes to find a device, agree on its
//! features, set up its queues and start it.
//!
//! A driver that does things out of order is ignored, as the specification leaves it to the device; one that hands over
//! queues that make no sense finds the device in need of a reset.

mod status;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL,
    VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW,
    VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_SHM_BASE_HIGH, VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID,
    VIRTIO_MMIO_VERSION,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::interrupt::Interrupt;
use super::registers::{self, Registers};
use super::ring::{Ring, RingError, RingState};
use super::state::{RestoreError, VirtioState};
use super::{Activation, VirtioDevice};
use crate::bus::{BusDevice, lock};
use crate::memory::GuestMemory;

/// Register that a driver writes to notify a queue, for KVM's ioeventfd.
pub const NOTIFY_REGISTER: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "RVM" and a zero; drivers do not look at it.
const VENDOR: u32 = 0x004d_5652;
/// `VIRTIO_MMIO_CONFIG`: the device's configuration space begins here.
const CONFIGURATION: usize = 0x100;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_INDEX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A device that the rest of the machine shares with its transport.
pub type SharedDevice = Arc<Mutex<dyn VirtioDevice>>;

/// What a guest can see of a transport.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransportState {
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    /// As the driver has set them up. How far they were used is the device's to know once it runs.
    queues: Vec<RingState>,
}

/// The registers of one device.
pub struct MmioTransport {
    device: SharedDevice,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    device_number: u32,
    device_features: u64,
    queue_sizes: Vec<u16>,
    state: TransportState,
}

impl MmioTransport {
    /// A transport for `device` after reset.
    #[must_use]
    pub fn new(device: SharedDevice, memory: GuestMemory, interrupt: Arc<Interrupt>) -> Self {
        let (device_number, device_features, queue_sizes) = {
            let device = lock(&device);
            let features = device.features() | VERSION_1 | EVENT_INDEX | INDIRECT;
            (device.number(), features, device.queue_sizes().to_vec())
        };
        let state = TransportState {
            queues: fresh_queues(&queue_sizes),
            ..Default::default()
        };
        let transport = Self {
            device,
            memory,
            interrupt,
            device_number,
            device_features,
            queue_sizes,
            state,
        };
        transport.publish_constants();
        transport.publish();
        transport
    }

    /// The device behind the registers.
    #[must_use]
    pub fn device(&self) -> &SharedDevice {
        &self.device
    }

    /// What the guest can see of the transport and its device, which is paused.
    #[must_use]
    pub fn save(&self) -> VirtioState {
        let device = lock(&self.device);
        let mut transport = self.state.clone();
        for (queue, used) in transport.queues.iter_mut().zip(device.queues()) {
            *queue = used;
        }
        VirtioState {
            transport,
            interrupt: self.interrupt.save(),
            device: device.save(),
        }
    }

    /// Goes on from a saved state, on a transport that no driver has touched. Memory must be restored already: a device
    /// that was active begins at once.
    ///
    /// # Errors
    /// [`RestoreError`]; the machine must not be run then.
    pub fn restore(&mut self, saved: &VirtioState) -> Result<(), RestoreError> {
        let transport = &saved.transport;
        // Before they are agreed on, features are what the driver likes to write.
        let agreed = transport.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        if agreed && transport.driver_features & !self.device_features != 0 {
            return Err(RestoreError::Differs("features"));
        }
        if transport.queues.len() != self.queue_sizes.len() {
            return Err(RestoreError::Differs("number of queues"));
        }
        lock(&self.device).restore(&saved.device)?;
        self.state = transport.clone();
        self.publish();
        self.interrupt.restore(saved.interrupt);
        // One that has failed does nothing until its driver resets it.
        if self.has(VIRTIO_CONFIG_S_DRIVER_OK) && !self.interrupt.needs_reset() {
            let activation = self.activation()?;
            lock(&self.device).activate(activation)?;
        }
        Ok(())
    }

    fn registers(&self) -> &Registers {
        self.interrupt.registers()
    }

    /// Writes down what never changes.
    fn publish_constants(&self) {
        let constants = [
            (VIRTIO_MMIO_MAGIC_VALUE, MAGIC),
            (VIRTIO_MMIO_VERSION, VERSION),
            (VIRTIO_MMIO_DEVICE_ID, self.device_number),
            (VIRTIO_MMIO_VENDOR_ID, VENDOR),
            // No device here changes its configuration while it runs.
            (VIRTIO_MMIO_CONFIG_GENERATION, 0),
        ];
        // There is no shared memory region: length and base are all ones (section 4.2.2).
        let nothing = (VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH).step_by(4);
        for (register, value) in constants
            .into_iter()
            .chain(nothing.map(|register| (register, u32::MAX)))
        {
            self.registers().store(register, value);
        }
        let mut configuration = [0xff; registers::BYTES - CONFIGURATION];
        lock(&self.device).read_config(0, &mut configuration);
        let page = self.registers().page();
        if let Ok(place) = page.offset(CONFIGURATION) {
            place.copy_from(&configuration);
        }
    }

    /// Writes down what a driver reads next, after one has written. The causes of interrupts are the device's.
    fn publish(&self) {
        let state = &self.state;
        let features = match state.device_features_select {
            0 => low(self.device_features),
            1 => high(self.device_features),
            _ => 0,
        };
        let size = self.selected_size().map_or(0, u32::from);
        let ready = self.selected_queue().map_or(0, |queue| u32::from(queue.ready));
        let registers = self.registers();
        registers.store(VIRTIO_MMIO_DEVICE_FEATURES, features);
        registers.store(VIRTIO_MMIO_QUEUE_NUM_MAX, size);
        registers.store(VIRTIO_MMIO_QUEUE_READY, ready);
        registers.set_status(state.status);
    }

    fn write_register(&mut self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.state.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.state.driver_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.set_driver_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.state.queue_select = value,
            VIRTIO_MMIO_QUEUE_READY => self.set_queue_ready(value),
            VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value),
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.set_status(value),
            _ => self.set_queue_field(register, value),
        }
        self.publish();
    }

    fn status(&self) -> u32 {
        self.registers().load(VIRTIO_MMIO_STATUS)
    }

    fn has(&self, status: u32) -> bool {
        self.state.status & status != 0
    }

    /// Section 3.1.1: features are chosen once, before `FEATURES_OK`.
    fn set_driver_features(&mut self, value: u32) {
        if !self.has(VIRTIO_CONFIG_S_DRIVER) || self.has(VIRTIO_CONFIG_S_FEATURES_OK) {
            return;
        }
        let features = &mut self.state.driver_features;
        match self.state.driver_features_select {
            0 => *features = (*features & !u64::from(u32::MAX)) | u64::from(value),
            1 => *features = (*features & u64::from(u32::MAX)) | (u64::from(value) << 32),
            _ => {}
        }
    }

    /// Section 2.1: the driver sets one bit after the other and clears them only by writing zero.
    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        if value & VIRTIO_CONFIG_S_FAILED != 0 {
            self.state.status |= VIRTIO_CONFIG_S_FAILED;
            return;
        }
        let steps = [
            (0, VIRTIO_CONFIG_S_ACKNOWLEDGE),
            (VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER),
            (VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_FEATURES_OK),
            (VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER_OK),
        ];
        for (before, step) in steps {
            let in_order = before == 0 || self.has(before);
            if value & step == 0 || self.has(step) || !in_order {
                continue;
            }
            if step == VIRTIO_CONFIG_S_FEATURES_OK && !self.features_agree() {
                return;
            }
            self.state.status |= step;
            if step == VIRTIO_CONFIG_S_DRIVER_OK {
                self.activate();
            }
        }
    }

    fn features_agree(&self) -> bool {
        let chosen = self.state.driver_features;
        chosen & !self.device_features == 0 && chosen & VERSION_1 != 0
    }

    fn activate(&mut self) {
        let started = self
            .activation()
            .is_ok_and(|activation| lock(&self.device).activate(activation).is_ok());
        if !started {
            self.interrupt.signal_needs_reset();
        }
    }

    fn activation(&self) -> Result<Activation, RingError> {
        let event_index = self.state.driver_features & EVENT_INDEX != 0;
        let in_use = lock(&self.device).queues_in_use(self.state.driver_features);
        let queues = self.state.queues.iter().zip(&self.queue_sizes).take(in_use);
        let rings = queues
            .map(|(state, maximum)| Ring::new(*state, *maximum, event_index, &self.memory))
            .collect::<Result<_, _>>()?;
        Ok(Activation {
            features: self.state.driver_features,
            memory: self.memory.clone(),
            rings,
            interrupt: self.interrupt.clone(),
        })
    }

    fn reset(&mut self) {
        lock(&self.device).reset();
        self.interrupt.clear();
        self.state = TransportState {
            queues: fresh_queues(&self.queue_sizes),
            ..Default::default()
        };
    }

    /// KVM takes the notifications of existing queues before they get here; this is for a guest under test.
    fn notify(&mut self, queue: u32) {
        let device = lock(&self.device);
        if let Some(event) = usize::try_from(queue)
            .ok()
            .and_then(|queue| device.notifications().get(queue))
        {
            // Fails only if the counter is full, and then the device is being woken.
            let _ = event.write(1);
        }
    }

    fn selected_size(&self) -> Option<u16> {
        self.queue_sizes
            .get(usize::try_from(self.state.queue_select).ok()?)
            .copied()
    }

    fn selected_queue(&self) -> Option<&RingState> {
        self.state
            .queues
            .get(usize::try_from(self.state.queue_select).ok()?)
    }

    fn set_queue_ready(&mut self, value: u32) {
        let running = self.has(VIRTIO_CONFIG_S_DRIVER_OK);
        if running && value == 0 {
            // Section 4.2.2 lets a driver stop a single queue. Stopping all of them keeps the promise that the queue is
            // not touched; a reset has to follow in any case.
            lock(&self.device).reset();
            self.interrupt.signal_needs_reset();
        }
        if let Some(queue) = self.configurable_queue(running && value == 0) {
            queue.ready = value == 1;
        }
    }

    /// Section 4.2.3.2: a queue is set up after the features and before `DRIVER_OK`.
    fn configurable_queue(&mut self, stopping: bool) -> Option<&mut RingState> {
        let may = self.has(VIRTIO_CONFIG_S_FEATURES_OK) && !self.has(VIRTIO_CONFIG_S_DRIVER_OK);
        if !may && !stopping {
            return None;
        }
        self.state
            .queues
            .get_mut(usize::try_from(self.state.queue_select).ok()?)
    }

    fn set_queue_field(&mut self, register: u32, value: u32) {
        let Some(queue) = self.configurable_queue(false).filter(|queue| !queue.ready) else {
            return;
        };
        match register {
            // A size that does not fit becomes zero, which is refused when the device starts.
            VIRTIO_MMIO_QUEUE_NUM => queue.size = u16::try_from(value).unwrap_or(0),
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.descriptors, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.descriptors, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.available, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.available, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.used, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.used, value),
            _ => {}
        }
    }
}

impl BusDevice for MmioTransport {
    /// A guest has the registers mapped; this is for a driver that has not, and for who emulates one.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let page = self.registers().page();
        if let Ok(place) = usize::try_from(offset).map_or(Err(()), |offset| page.offset(offset).map_err(drop))
        {
            place.copy_to(data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // No device here has a configuration that the driver may write.
        if let (Ok(register), Ok(value)) = (u32::try_from(offset), data.try_into())
            && register.is_multiple_of(4)
            && offset < CONFIGURATION as u64
        {
            self.write_register(register, u32::from_le_bytes(value));
        }
    }
}

fn fresh_queues(sizes: &[u16]) -> Vec<RingState> {
    sizes
        .iter()
        .map(|size| RingState {
            size: *size,
            ..Default::default()
        })
        .collect()
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default()
}

fn high(value: u64) -> u32 {
    low(value >> 32)
}

fn set_low(field: &mut u64, value: u32) {
    *field = (*field & !u64::from(u32::MAX)) | u64::from(value);
}

fn set_high(field: &mut u64, value: u32) {
    *field = (*field & u64::from(u32::MAX)) | (u64::from(value) << 32);
}
