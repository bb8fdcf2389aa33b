//! The transport as a driver finds it: steps in order and out of order.

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INTERRUPT_STATUS;
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::devices::virtio::state::DeviceState;
use crate::devices::virtio::test_driver::Driver;
use crate::devices::virtio::{ActivateError, read_config_from};

const FEATURE: u64 = 1 << 5;

struct Device {
    notifications: Vec<EventFd>,
    active: Option<(u64, usize)>,
    resets: u32,
}

impl VirtioDevice for Device {
    fn number(&self) -> u32 {
        42
    }
    fn backend(&self) -> String {
        "a test".into()
    }
    fn features(&self) -> u64 {
        FEATURE
    }
    fn queue_sizes(&self) -> &[u16] {
        &[8, 8]
    }
    fn notifications(&self) -> &[EventFd] {
        &self.notifications
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(b"configuration", offset, data);
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.active = Some((activation.features, activation.rings.len()));
        Ok(())
    }
    fn reset(&mut self) {
        self.active = None;
        self.resets += 1;
    }
    fn queues(&self) -> Vec<RingState> {
        Vec::new()
    }
    fn save(&self) -> DeviceState {
        DeviceState::Balloon
    }
    fn restore(&mut self, _: &DeviceState) -> Result<(), RestoreError> {
        Ok(())
    }
}

struct Machine {
    device: Arc<Mutex<Device>>,
    transport: MmioTransport,
    drivers: [Driver; 2],
}

impl Machine {
    fn new() -> Self {
        let notifications = (0..2)
            .map(|_| EventFd::new(libc::EFD_NONBLOCK).unwrap())
            .collect();
        let device = Arc::new(Mutex::new(Device {
            notifications,
            active: None,
            resets: 0,
        }));
        let memory = crate::memory::allocate(4).unwrap();
        let interrupt = Arc::new(Interrupt::of_test(EventFd::new(0).unwrap()));
        let transport = MmioTransport::new(device.clone(), memory.clone(), interrupt);
        let drivers = [0, 1].map(|index| Driver::in_memory(memory.clone(), 8, index));
        Self {
            device,
            transport,
            drivers,
        }
    }

    fn read(&mut self, register: u32) -> u32 {
        let mut data = [0xff; 4];
        self.transport.read(u64::from(register), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, register: u32, value: u32) {
        self.transport.write(u64::from(register), &value.to_le_bytes());
    }

    fn write_features(&mut self, features: u64) {
        for (select, value) in [(0, low(features)), (1, high(features))] {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, value);
        }
    }

    fn write_queue(&mut self, index: u32, state: RingState) {
        self.write(VIRTIO_MMIO_QUEUE_SEL, index);
        self.write(VIRTIO_MMIO_QUEUE_NUM, u32::from(state.size));
        for (register, value) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, state.descriptors),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, state.available),
            (VIRTIO_MMIO_QUEUE_USED_LOW, state.used),
        ] {
            self.write(register, low(value));
            self.write(register + 4, high(value));
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    fn negotiate(&mut self, features: u64) {
        for status in [0, 1, 3] {
            self.write(VIRTIO_MMIO_STATUS, status);
        }
        self.write_features(features);
        self.write(VIRTIO_MMIO_STATUS, 11);
    }

    fn start(&mut self) {
        self.negotiate(FEATURE | VERSION_1);
        for (index, state) in (0..).zip([self.drivers[0].state(), self.drivers[1].state()]) {
            self.write_queue(index, state);
        }
        self.write(VIRTIO_MMIO_STATUS, 15);
    }

    fn active(&self) -> Option<(u64, usize)> {
        lock(&self.device).active
    }
}

#[test]
fn a_driver_finds_and_starts_the_device() {
    let mut machine = Machine::new();
    assert_eq!(machine.read(VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(
        (
            machine.read(VIRTIO_MMIO_VERSION),
            machine.read(VIRTIO_MMIO_DEVICE_ID)
        ),
        (2, 42)
    );
    machine.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    assert_eq!(machine.read(VIRTIO_MMIO_DEVICE_FEATURES), 1);
    machine.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(machine.read(VIRTIO_MMIO_DEVICE_FEATURES), 0);
    machine.start();
    assert_eq!(machine.read(VIRTIO_MMIO_STATUS), 15);
    assert_eq!(machine.active(), Some((FEATURE | VERSION_1, 2)));
    assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_READY), 1);
    assert_eq!(machine.read(VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    machine.write(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    machine.write(VIRTIO_MMIO_QUEUE_NOTIFY, 7);
    assert_eq!(lock(&machine.device).notifications[1].read().unwrap(), 1);
}

#[test]
fn features_must_be_offered_and_modern() {
    for features in [FEATURE, VERSION_1 | (1 << 6), 0] {
        let mut machine = Machine::new();
        machine.negotiate(features);
        assert_eq!(machine.read(VIRTIO_MMIO_STATUS), 3, "{features:#x}");
        machine.write(VIRTIO_MMIO_STATUS, 15);
        assert_eq!(machine.active(), None);
    }
    let mut machine = Machine::new();
    machine.negotiate(VERSION_1);
    machine.write_features(VERSION_1 | FEATURE);
    assert_eq!(machine.transport.state.driver_features, VERSION_1, "too late");
}

#[test]
fn steps_out_of_order_are_ignored() {
    let mut machine = Machine::new();
    machine.write(VIRTIO_MMIO_STATUS, 4);
    machine.write(VIRTIO_MMIO_STATUS, 2);
    assert_eq!(machine.read(VIRTIO_MMIO_STATUS), 0);
    machine.write_queue(0, machine.drivers[0].state());
    assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_READY), 0);
    machine.write(VIRTIO_MMIO_STATUS, 1);
    machine.write(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_FAILED);
    assert_eq!(machine.read(VIRTIO_MMIO_STATUS), 1 | VIRTIO_CONFIG_S_FAILED);
    // A running device's queues cannot be moved.
    machine.start();
    let before = machine.transport.state.clone();
    machine.write(VIRTIO_MMIO_QUEUE_DESC_LOW, 0x9000);
    machine.write(VIRTIO_MMIO_QUEUE_NUM, 4);
    assert_eq!(machine.transport.state, before);
}

#[test]
fn invalid_queues_leave_the_device_in_need_of_a_reset() {
    let mut machine = Machine::new();
    machine.negotiate(VERSION_1);
    machine.write_queue(0, machine.drivers[0].state());
    machine.write(VIRTIO_MMIO_STATUS, 15);
    assert_eq!(machine.active(), None, "the second queue was never set up");
    assert_eq!(machine.read(VIRTIO_MMIO_STATUS), 15 | VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    machine.start();
    assert_eq!(machine.read(VIRTIO_MMIO_STATUS), 15);
    assert!(machine.active().is_some());
}

#[test]
fn reset_stops_the_device_and_forgets_the_driver() {
    let mut machine = Machine::new();
    machine.start();
    machine.transport.interrupt.signal_used();
    assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    machine.write(VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    machine.write(VIRTIO_MMIO_STATUS, 0);
    assert_eq!((machine.active(), machine.read(VIRTIO_MMIO_STATUS)), (None, 0));
    let expected = TransportState {
        queues: fresh_queues(&[8, 8]),
        ..Default::default()
    };
    assert_eq!(machine.transport.state, expected);
    machine.start();
    machine.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(
        (machine.active(), machine.read(VIRTIO_MMIO_QUEUE_READY)),
        (None, 0)
    );
    assert_ne!(machine.read(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
}

#[test]
fn odd_accesses_do_nothing() {
    let mut machine = Machine::new();
    let mut data = [0xff; 8];
    machine.transport.write(0x70, &[1]);
    machine.transport.write(0x70, &[]);
    machine.transport.write(0x100, &[1, 0, 0, 0]);
    machine.transport.write(u64::MAX, &[1, 0, 0, 0]);
    assert_eq!(machine.read(VIRTIO_MMIO_STATUS), 0);
    machine.transport.read(0x109, &mut data);
    assert_eq!(&data, b"tion\xff\xff\xff\xff");
    // Beyond the page.
    machine.transport.read(0xffe, &mut data);
    machine.transport.read(u64::MAX, &mut data[..1]);
    assert_eq!(data[2..], *b"on\xff\xff\xff\xff");
}

#[test]
fn a_transport_goes_on_from_its_state() {
    let mut machine = Machine::new();
    machine.start();
    machine.transport.interrupt.signal_used();
    let json = serde_json::to_string(&machine.transport.save()).unwrap();
    let saved: VirtioState = serde_json::from_str(&json).unwrap();
    let mut other = Machine::new();
    other.transport.restore(&saved).unwrap();
    assert_eq!(other.active(), machine.active());
    assert_eq!(other.read(VIRTIO_MMIO_STATUS), 15);
    assert_eq!(other.transport.save(), saved);
    assert_eq!([0; 2].map(|_| other.read(VIRTIO_MMIO_INTERRUPT_STATUS)), [1, 1]);
}

#[test]
fn a_device_that_was_not_started_or_has_failed_is_not_started() {
    let mut machine = Machine::new();
    machine.negotiate(VERSION_1);
    let idle = machine.transport.save();
    machine.start();
    machine.transport.interrupt.signal_needs_reset();
    for saved in [idle, machine.transport.save()] {
        let mut other = Machine::new();
        other.transport.restore(&saved).unwrap();
        assert_eq!(other.active(), None);
        assert_eq!(other.transport.save(), saved);
    }
}

#[test]
fn features_that_were_not_agreed_on_are_not_looked_at() {
    let mut machine = Machine::new();
    machine.negotiate(1 << 6);
    let saved = machine.transport.save();
    let mut other = Machine::new();
    other.transport.restore(&saved).unwrap();
    assert_eq!(other.transport.save(), saved);
}

#[test]
fn states_that_do_not_fit_are_refused() {
    let mut machine = Machine::new();
    machine.start();
    let saved = machine.transport.save();
    let check = |change: fn(&mut TransportState), expected: &str| {
        let mut saved = saved.clone();
        change(&mut saved.transport);
        let error = Machine::new().transport.restore(&saved).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    };
    check(|state| state.driver_features |= 1 << 6, "features");
    check(|state| state.queues.truncate(1), "number of queues");
    check(|state| state.queues[0].size = 3, "queue cannot be used");
    check(|state| state.queues[1].used = u64::MAX, "queue cannot be used");
}
