//! The transport under a driver that writes any register at any time, alone and in front of each kind of device.

use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::balloon::Balloon;
use super::interrupt::Interrupt;
use super::mmio::{MmioTransport, SharedDevice};
use super::ring::RingState;
use super::rng::{Rng, RngState};
use super::state::{DeviceState, RestoreError, VirtioState};
use super::{ActivateError, Activation, VirtioDevice, block, read_config_from, vsock};
use crate::bus::{BusDevice as _, lock};
use crate::fuzz::{END, Input, Permit, fill, memory, put, queue};
use crate::memory::{Bytes as _, GuestAddress, GuestMemory};

/// Accesses and requests before an input ends.
const MOST_STEPS: usize = 24;

/// A device that only watches that its transport keeps its promises.
struct Witness {
    notifications: [EventFd; 2],
    active: bool,
}

const OWN_FEATURES: u64 = 5;

impl VirtioDevice for Witness {
    fn number(&self) -> u32 {
        42
    }
    fn backend(&self) -> String {
        String::new()
    }
    fn features(&self) -> u64 {
        OWN_FEATURES
    }
    fn queue_sizes(&self) -> &[u16] {
        &[8, 64]
    }
    fn notifications(&self) -> &[EventFd] {
        &self.notifications
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(b"configuration", offset, data);
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        assert!(!self.active, "started twice");
        let known = OWN_FEATURES | transport_features();
        assert_eq!(activation.features & !known, 0);
        assert_ne!(activation.features & (1 << VIRTIO_F_VERSION_1), 0);
        assert_eq!(activation.rings.len(), 2);
        for (ring, maximum) in activation.rings.iter().zip(self.queue_sizes()) {
            let state = ring.state();
            assert!(state.ready && state.size <= *maximum && state.size.is_power_of_two());
        }
        self.active = true;
        Ok(())
    }
    fn reset(&mut self) {
        self.active = false;
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

fn transport_features() -> u64 {
    (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX) | (1 << VIRTIO_RING_F_INDIRECT_DESC)
}

/// The registers alone.
pub(crate) fn transport(data: &[u8]) {
    let (mut input, memory) = (Input::new(data), memory());
    thread_local! {
        static WITNESS: Arc<Mutex<Witness>> = Arc::new(Mutex::new(Witness {
            notifications: [0, 1].map(|_| EventFd::new(EFD_NONBLOCK).unwrap()),
            active: false,
        }));
    }
    let witness = WITNESS.with(Clone::clone);
    lock(&witness).reset();
    let mut driver = Registers::new(witness.clone(), &memory);
    for _ in 0..2 * MOST_STEPS {
        if input.is_empty() {
            break;
        }
        match input.below(16) {
            0 => driver.start(&mut input, 2),
            1 => driver.go_on_elsewhere(),
            _ => driver.access(&mut input),
        }
        let status = driver.read(VIRTIO_MMIO_STATUS);
        let active = lock(&witness).active;
        assert!(!active || status & DRIVER_OK != 0);
        assert!(!active || status & NEEDS_RESET == 0);
        for (later, earlier) in [
            (DRIVER_OK, FEATURES_OK),
            (FEATURES_OK, DRIVER),
            (DRIVER, ACKNOWLEDGE),
        ] {
            assert!(status & later == 0 || status & earlier != 0, "{status:#x}");
        }
    }
}

/// A transport and the driver's view of it.
struct Registers {
    transport: MmioTransport,
    memory: GuestMemory,
    line: EventFd,
}

impl Registers {
    fn new(device: SharedDevice, memory: &GuestMemory) -> Self {
        thread_local! {
            static LINE: EventFd = EventFd::new(EFD_NONBLOCK).unwrap();
        }
        let line = LINE.with(|line| line.try_clone().unwrap());
        Self {
            transport: Self::transport(device, memory, &line),
            memory: memory.clone(),
            line,
        }
    }

    fn transport(device: SharedDevice, memory: &GuestMemory, line: &EventFd) -> MmioTransport {
        let interrupt = Arc::new(Interrupt::of_test(line.try_clone().unwrap()));
        MmioTransport::new(device, memory.clone(), interrupt)
    }

    fn read(&mut self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(u64::from(register), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, register: u32, value: u32) {
        self.transport.write(u64::from(register), &value.to_le_bytes());
    }

    /// One access of any kind, mostly of a kind that means something.
    fn access(&mut self, input: &mut Input<'_>) {
        let (kind, offset) = (input.byte(), input.byte());
        // The registers are multiples of four; behind them is the configuration.
        let register = u64::from(offset & 0x3f) * 4;
        match kind % 8 {
            0 => {
                let mut data = [0; 8];
                let width = usize::from(kind >> 3) % 9;
                let far = u64::from(input.half()) << (kind >> 2);
                self.transport.read(far, &mut data[..width]);
            }
            1 => {
                let data = input.take(usize::from(kind >> 3) % 9);
                self.transport.write(register + u64::from(offset >> 6), data);
            }
            2 => {
                let mut data = [0; 4];
                self.transport.read(register, &mut data);
            }
            3 | 4 => {
                let status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
                let status = if offset < 0x10 { u32::from(offset) } else { status };
                self.write(VIRTIO_MMIO_STATUS, status);
            }
            _ => {
                let value = input.number();
                self.transport.write(register, &value.to_le_bytes());
            }
        }
    }

    /// What a driver does to start the device, with queues that are valid unless the input says otherwise.
    fn start(&mut self, input: &mut Input<'_>, queues: u64) {
        let options = input.byte();
        for status in [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
            self.write(VIRTIO_MMIO_STATUS, status);
        }
        let event_index = u64::from(options & 1) << VIRTIO_RING_F_EVENT_IDX;
        let features = (1 << VIRTIO_F_VERSION_1) | event_index;
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, u32::try_from(half).unwrap());
        }
        self.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        for index in 0..queues {
            let state = queue(index, 2 << ((options >> 1) & 3));
            // A driver begins with empty rings.
            put(&self.memory, state.available, &[0; 4]);
            put(&self.memory, state.used, &[0; 4]);
            let moved = if options & 0x80 != 0 { input.number() } else { 0 };
            self.write(VIRTIO_MMIO_QUEUE_SEL, u32::try_from(index).unwrap());
            self.write(VIRTIO_MMIO_QUEUE_NUM, u32::from(state.size));
            for (register, address) in [
                (VIRTIO_MMIO_QUEUE_DESC_LOW, state.descriptors),
                (VIRTIO_MMIO_QUEUE_AVAIL_LOW, state.available),
                (VIRTIO_MMIO_QUEUE_USED_LOW, state.used),
            ] {
                self.write(register, u32::try_from(address).unwrap() ^ moved);
            }
            self.write(VIRTIO_MMIO_QUEUE_READY, 1);
        }
        let status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        self.write(VIRTIO_MMIO_STATUS, status);
    }

    /// Saves the device between two requests and goes on from that.
    fn go_on_elsewhere(&mut self) {
        let device = self.transport.device().clone();
        lock(&device).pause();
        let saved = self.transport.save();
        lock(&device).reset();
        self.transport = Self::transport(device.clone(), &self.memory, &self.line);
        // The memory under the queues is still there, so nothing can be wrong with them.
        self.transport.restore(&saved).unwrap();
        lock(&device).pause();
        assert_eq!(self.transport.save(), saved);
        lock(&device).resume().unwrap();
    }
}

/// A device, how it is served, and what its driver may say to it.
struct Subject {
    device: SharedDevice,
    serve: Box<dyn Fn()>,
    content: fn(&mut Input<'_>) -> Vec<u8>,
    queues: u64,
    /// The device may empty any page of the guest.
    discards: bool,
}

impl Subject {
    fn new<D: VirtioDevice + 'static>(
        device: D,
        serve: fn(&mut D),
        content: fn(&mut Input<'_>) -> Vec<u8>,
    ) -> Self {
        let queues = u64::try_from(device.queue_sizes().len()).unwrap();
        let device = Arc::new(Mutex::new(device));
        let served = device.clone();
        Self {
            device,
            serve: Box::new(move || serve(&mut lock(&served))),
            content,
            queues,
            discards: false,
        }
    }
}

/// Every kind of device, the same for all inputs.
struct Subjects {
    all: [Subject; 4],
    address: SocketAddr,
}

/// Their order among [`Subjects::all`].
const VSOCK: usize = 2;

impl Subjects {
    fn new() -> Self {
        let (vsock, address) = vsock::fuzz::device();
        let all = [
            Subject::new(Rng::new().unwrap(), Rng::serve, |_| Vec::new()),
            Subject {
                discards: true,
                ..Subject::new(Balloon::new().unwrap(), Balloon::serve, page_numbers)
            },
            Subject::new(vsock, vsock::Vsock::serve, vsock::fuzz::packet),
            Subject::new(
                block::fuzz::Served::new(),
                block::fuzz::Served::serve,
                block::fuzz::request,
            ),
        ];
        Self { all, address }
    }

    fn with(run: impl FnOnce(&Self)) {
        thread_local! {
            static SUBJECTS: Subjects = Subjects::new();
        }
        SUBJECTS.with(run);
    }
}

fn page_numbers(input: &mut Input<'_>) -> Vec<u8> {
    let count = input.below(8);
    (0..count)
        .flat_map(|_| u32::from(input.below(8)).to_le_bytes())
        .collect()
}

/// A whole device behind its registers, reset, paused, saved and restored at any time.
pub(crate) fn transport_device(data: &[u8]) {
    let (mut input, memory) = (Input::new(data), memory());
    Subjects::with(|subjects| {
        let index = usize::from(input.byte()) % subjects.all.len();
        let subject = &subjects.all[index];
        lock(&subject.device).reset();
        let mut attack = Attack {
            driver: Registers::new(subject.device.clone(), &memory),
            subject,
            clients: Vec::new(),
        };
        if index == 0 {
            // Its budget outlives a reset.
            let full = DeviceState::Rng(RngState::default());
            lock(&subject.device).restore(&full).unwrap();
        }
        for _ in 0..MOST_STEPS {
            if input.is_empty() {
                break;
            }
            attack.step(&mut input, (index == VSOCK).then_some(&subjects.address));
        }
        lock(&subject.device).reset();
    });
}

struct Attack<'a> {
    driver: Registers,
    subject: &'a Subject,
    clients: Vec<UnixStream>,
}

impl Attack<'_> {
    fn step(&mut self, input: &mut Input<'_>, clients: Option<&SocketAddr>) {
        match input.below(16) {
            0..=2 => self.driver.access(input),
            3 | 4 => self.driver.start(input, self.subject.queues),
            5..=7 => self.fill(input),
            8..=10 => {
                let queue = u32::from(input.below(4));
                self.driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue);
                self.serve();
            }
            11 => self.driver.write(VIRTIO_MMIO_STATUS, 0),
            12 => self.driver.go_on_elsewhere(),
            13 => {
                let address = u64::from(input.half()) % END;
                put(&self.driver.memory, address, &input.half().to_le_bytes());
            }
            _ => match clients {
                Some(address) if self.clients.len() < 3 => {
                    self.clients.push(vsock::fuzz::client(input, address));
                }
                _ => vsock::fuzz::use_client(input, &mut self.clients),
            },
        }
        let failed = self.driver.read(VIRTIO_MMIO_STATUS) & NEEDS_RESET != 0;
        if failed {
            assert!(lock(&self.subject.device).queues().is_empty());
        }
    }

    fn fill(&self, input: &mut Input<'_>) {
        let index = u64::from(input.byte()) % self.subject.queues;
        let memory = &self.driver.memory;
        // Where the device has taken it over it goes on; elsewhere this is only a lot of bytes.
        let states = lock(&self.subject.device).queues();
        let mut state = states
            .get(usize::try_from(index).unwrap())
            .copied()
            .unwrap_or_else(|| queue(index, 8));
        let next = GuestAddress(state.available + 2);
        state.next_available = memory.read_obj(next).unwrap_or_default();
        fill(input, memory, &state, self.subject.content);
    }

    fn serve(&self) {
        let memory = &self.driver.memory;
        // One that is not active may write nothing at all.
        let states = lock(&self.subject.device).queues();
        let permit = states.iter().fold(Permit::none(memory), Permit::and);
        (self.subject.serve)();
        let permit = if self.subject.discards && !states.is_empty() {
            permit.and_empty_pages(memory)
        } else {
            permit
        };
        permit.check(memory);
    }
}

/// A state that comes from a file: what is refused does not start the device, what is accepted does no harm.
pub(crate) fn saved_state(data: &[u8]) {
    let Ok(saved) = serde_json::from_slice::<VirtioState>(data) else {
        return;
    };
    let memory = memory();
    let json = serde_json::to_vec(&saved).unwrap();
    assert_eq!(serde_json::from_slice::<VirtioState>(&json).unwrap(), saved);
    Subjects::with(|subjects| {
        for subject in &subjects.all {
            lock(&subject.device).reset();
            let mut attack = Attack {
                driver: Registers::new(subject.device.clone(), &memory),
                subject,
                clients: Vec::new(),
            };
            if attack.driver.transport.restore(&saved).is_ok() {
                attack.serve();
                attack.driver.write(VIRTIO_MMIO_STATUS, 0);
                assert_eq!(attack.driver.read(VIRTIO_MMIO_STATUS), 0);
            } else {
                assert!(lock(&subject.device).queues().is_empty());
            }
            attack.serve();
            lock(&subject.device).reset();
        }
    });
}
