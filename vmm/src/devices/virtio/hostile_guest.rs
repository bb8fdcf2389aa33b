//! A hostile guest in front of whole devices: everything goes through the transport, and devices are served as in a machine,
//! by their own thread or the event loop.
//!
//! Whatever is in the rings, the device says that it needs a reset or serves the request; after a reset it works as if
//! nothing had happened, and its process has not grown.

use std::io::Write as _;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use rustix::net::{RecvFlags, SendFlags};
use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_STATUS,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::VirtioDevice;
use super::balloon::{Balloon, BalloonSubscriber};
use super::block::{Block, Disk};
use super::fs::{self, FsSubscriber};
use super::hostile::{Random, hostile_ring};
use super::interrupt::Interrupt;
use super::mmio::{MmioTransport, SharedDevice};
use super::net::tests::one_pair;
use super::rng::{Rng, RngSubscriber};
use super::test_driver::{Descriptor, Driver, INDIRECT, NEXT, WRITE, start};
use super::vsock::{Vsock, VsockSubscriber};
use crate::bus::{BusDevice as _, lock};
use crate::event_loop::Subscriber;
use crate::memory::GuestMemory;
use crate::resources;
use crate::seccomp::Filters;
use crate::stop::StopSignal;

const QUEUE_SIZE: u16 = 8;
/// Guest memory ends here.
const END: u64 = 4 << 20;
/// Where a buffer is that is in order, and where an indirect table.
const BUFFER: u64 = 0x20_0000;
const TABLE: u64 = 0x38_0000;
/// Random rings for each queue of a device.
const RINGS: usize = 400;
/// What a process may grow by after it has seen the first of them. The heap of the test itself is in it, and the heaps of
/// threads, which depend on how they take turns. 64 KiB for each ring would be more.
const MOST_GROWTH_KIB: u64 = 16 << 10;

/// A machine with one device.
struct Machine {
    device: SharedDevice,
    transport: MmioTransport,
    drivers: Vec<Driver>,
    event_loop: EventManager<Subscriber>,
    /// Queues that the device looks at, and a request for each that it serves, in its own terms.
    attacked: Vec<(usize, Correct)>,
    /// Makes the device look at a queue, besides a notification.
    poke: Box<dyn Fn() -> Option<UnixStream>>,
    /// Looks at the device until it is said to have nothing more to do.
    looks: usize,
}

/// A request that is in order: what the device reads, and how much it may write.
type Correct = (Vec<u8>, &'static [u32]);

impl Machine {
    fn new<D: VirtioDevice + 'static>(device: D, attacked: Vec<(usize, Correct)>) -> Self {
        Self::with(Arc::new(Mutex::new(device)), None, attacked)
    }

    /// One that the event loop serves.
    fn with<D: VirtioDevice + 'static>(
        device: Arc<Mutex<D>>,
        subscriber: Option<Arc<Mutex<dyn MutEventSubscriber + Send>>>,
        attacked: Vec<(usize, Correct)>,
    ) -> Self {
        let memory = crate::memory::allocate(4).unwrap();
        let interrupt = Arc::new(Interrupt::of_test(EventFd::new(EFD_NONBLOCK).unwrap()));
        let transport = MmioTransport::new(device.clone(), memory.clone(), interrupt);
        let queues = lock(&device).queue_sizes().len() as u64;
        let drivers = (0..queues).map(|index| Driver::in_memory(memory.clone(), QUEUE_SIZE, index));
        let mut event_loop = EventManager::new().unwrap();
        if let Some(subscriber) = subscriber {
            event_loop.add_subscriber(subscriber);
        }
        Self {
            device,
            transport,
            drivers: drivers.collect(),
            event_loop,
            attacked,
            poke: Box::new(|| None),
            looks: 50,
        }
    }

    fn read(&mut self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(u64::from(register), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, register: u32, value: u32) {
        self.transport.write(u64::from(register), &value.to_le_bytes());
    }

    fn memory(&self) -> &GuestMemory {
        &self.drivers[0].memory
    }

    fn needs_reset(&mut self) -> bool {
        self.read(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }

    /// Lets the event loop and threads work until something holds.
    fn wait_until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            assert!(Instant::now() < end, "waited for {what}");
            self.event_loop.run_with_timeout(1).unwrap();
        }
    }

    fn notify(&mut self, queue: usize) {
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, u32::try_from(queue).unwrap());
    }

    /// As a driver that takes the device over from whoever had it.
    fn restart(&mut self) {
        self.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(self.read(VIRTIO_MMIO_STATUS), 0);
        for driver in &self.drivers {
            driver.forget();
        }
        start(&mut self.transport, &self.drivers);
        assert_ne!(self.read(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_DRIVER_OK, 0);
    }

    /// Every queue serves a request.
    fn assert_works(&mut self) {
        for (queue, (readable, writable)) in self.attacked.clone() {
            let client = (self.poke)();
            let before = self.drivers[queue].used().len();
            let readable: &[&[u8]] = if readable.is_empty() { &[] } else { &[&readable] };
            self.drivers[queue].request(readable, writable);
            self.notify(queue);
            self.wait_until("a request", |machine| {
                machine.drivers[queue].used().len() > before
            });
            assert!(!self.needs_reset());
            drop(client);
        }
    }

    /// The device is broken by what is in `queue`, says so, and leaves the rings alone until it is reset.
    fn assert_breaks(&mut self, name: &str, queue: usize) {
        let client = (self.poke)();
        self.notify(queue);
        self.wait_until(name, Self::needs_reset);
        assert_eq!(
            self.read(VIRTIO_MMIO_INTERRUPT_STATUS) & 2,
            2,
            "{name}: a change of status"
        );
        let used = self.drivers[queue].used();
        let (readable, writable) = self
            .attacked
            .iter()
            .find(|(index, _)| *index == queue)
            .unwrap()
            .1
            .clone();
        self.drivers[queue].forget();
        self.drivers[queue].request(&[&readable], writable);
        self.notify(queue);
        self.event_loop.run_with_timeout(0).unwrap();
        lock(&self.device).pause();
        assert!(lock(&self.device).queues().is_empty(), "{name}");
        assert!(self.drivers[queue].used().is_empty(), "{name}: after {used:?}");
        lock(&self.device).resume().unwrap();
        drop(client);
    }
}

fn block() -> Machine {
    let file = tempfile::tempfile().unwrap();
    file.set_len(32 << 10).unwrap();
    let parts = vec![resources::Part {
        file,
        bytes: 32 << 10,
    }];
    let read_only = false;
    let disk = Disk::new(resources::Disk { parts, read_only }).unwrap();
    let device = Block::new(disk, 1, &Filters::none()).unwrap();
    Machine::new(device, vec![(0, (vec![0; 16], &[512, 1]))])
}

fn rng() -> Machine {
    let device = Arc::new(Mutex::new(Rng::new().unwrap()));
    let subscriber = RngSubscriber::new(device.clone(), stop());
    let attacked = vec![(0, (Vec::new(), [64].as_slice()))];
    Machine::with(device, Some(Arc::new(Mutex::new(subscriber))), attacked)
}

fn balloon() -> Machine {
    let device = Arc::new(Mutex::new(Balloon::new().unwrap()));
    let subscriber = BalloonSubscriber::new(device.clone(), stop());
    let page = 0x200_u32.to_le_bytes().to_vec();
    let attacked = vec![
        (0, (page.clone(), [].as_slice())),
        (1, (page, &[])),
        (2, (Vec::new(), &[4096])),
    ];
    Machine::with(device, Some(Arc::new(Mutex::new(subscriber))), attacked)
}

fn vsock() -> Machine {
    // A name that is free again when the listener has gone.
    static NUMBER: Mutex<u32> = Mutex::new(0);
    *lock(&NUMBER) += 1;
    let name = format!("rvm-hostile-{}-{}", std::process::id(), lock(&NUMBER));
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let device = Arc::new(Mutex::new(Vsock::new(3, listener).unwrap()));
    let subscriber = VsockSubscriber::new(device.clone(), stop());
    // The queue of events is looked at after a restore only.
    let attacked = vec![(0, (Vec::new(), [44, 4096].as_slice())), (1, (vec![0; 44], &[]))];
    let mut machine = Machine::with(device, Some(Arc::new(Mutex::new(subscriber))), attacked);
    // Something for the guest, so that the queue towards it is looked at.
    machine.poke = Box::new(move || {
        let mut client = UnixStream::connect_addr(&address).unwrap();
        client.write_all(b"CONNECT 1024\n").unwrap();
        Some(client)
    });
    machine
}

fn net() -> Machine {
    let (device, wire) = one_pair(7);
    let attacked = vec![(0, (Vec::new(), [2048].as_slice())), (1, (vec![0; 72], &[]))];
    let mut machine = Machine::new(device, attacked);
    machine.poke = Box::new(move || {
        // What the guest has sent is taken, so that there is room for more.
        while rustix::net::recv(&wire, &mut [0; 8], RecvFlags::DONTWAIT).is_ok() {}
        // A frame for the guest, unless it has left many of them.
        let _ = rustix::net::send(&wire, &[0; 72], SendFlags::DONTWAIT);
        None
    });
    // What is ready to receive is not used up.
    machine.looks = 4;
    machine
}

fn fs() -> Machine {
    let (device, worker) = fs::tests::device("shared");
    let device = Arc::new(Mutex::new(device));
    let subscriber = FsSubscriber::new(device.clone(), stop());
    // One that has no answer.
    let forget = fs::tests::request(2, 1, &[0; 8]);
    let attacked = vec![(0, (forget.clone(), [].as_slice())), (1, (forget, &[]))];
    let mut machine = Machine::with(device, Some(Arc::new(Mutex::new(subscriber))), attacked);
    machine.poke = Box::new(move || {
        while let Some((slot, _, _)) = worker.next() {
            worker.answer(slot, &[]);
        }
        None
    });
    machine
}

fn stop() -> Arc<StopSignal> {
    Arc::new(StopSignal::new().unwrap())
}

type Maker = fn() -> Machine;

const MACHINES: [(&str, Maker); 6] = [
    ("block", block),
    ("rng", rng),
    ("balloon", balloon),
    ("vsock", vsock),
    ("net", net),
    ("fs", fs),
];

/// Nonsense that no device can take for a request.
struct Nonsense {
    name: &'static str,
    descriptors: &'static [Descriptor],
    /// Entries at [`TABLE`].
    indirect: &'static [Descriptor],
    head: u16,
    /// Where the available ring says that it ends.
    index: Option<u16>,
}

const fn chain(name: &'static str, descriptors: &'static [Descriptor]) -> Nonsense {
    Nonsense {
        name,
        descriptors,
        indirect: &[],
        head: 0,
        index: None,
    }
}

const fn table(name: &'static str, bytes: u32, indirect: &'static [Descriptor]) -> Nonsense {
    // One for each length, because what is constant cannot be put together.
    const TABLES: [Descriptor; 3] = [
        (TABLE, 32, INDIRECT, 0),
        (TABLE, 33, INDIRECT, 0),
        (TABLE, 0, INDIRECT, 0),
    ];
    let descriptors: &'static [Descriptor] = match bytes {
        32 => TABLES.split_at(1).0,
        33 => TABLES.split_at(1).1,
        _ => TABLES.split_at(2).1,
    };
    Nonsense {
        indirect,
        ..chain(name, descriptors)
    }
}

const NONSENSE: [Nonsense; 18] = [
    chain("an address behind memory", &[(END, 64, WRITE, 0)]),
    chain("an address far away", &[(1 << 62, 64, 0, 0)]),
    chain("a buffer across the end of memory", &[(END - 16, 64, WRITE, 0)]),
    chain(
        "a buffer around the end of addresses",
        &[(u64::MAX - 15, 64, 0, 0)],
    ),
    chain("a huge length", &[(BUFFER, u32::MAX, WRITE, 0)]),
    chain(
        "lengths whose sum is huge",
        &[(BUFFER, 4096, NEXT, 1), (BUFFER, u32::MAX - 16, 0, 0)],
    ),
    chain("a loop of one", &[(BUFFER, 16, NEXT, 0)]),
    chain("a loop of two", &[(BUFFER, 16, NEXT, 1), (BUFFER, 16, NEXT, 0)]),
    chain("a next behind the table", &[(BUFFER, 16, NEXT, QUEUE_SIZE)]),
    chain(
        "a next far behind the table",
        &[(BUFFER, 16, WRITE | NEXT, u16::MAX)],
    ),
    chain(
        "a readable buffer behind a writable one",
        &[(BUFFER, 64, WRITE | NEXT, 1), (BUFFER, 64, 0, 0)],
    ),
    Nonsense {
        head: QUEUE_SIZE,
        ..chain("a head behind the table", &[])
    },
    Nonsense {
        head: u16::MAX,
        ..chain("a head far behind the table", &[])
    },
    Nonsense {
        index: Some(QUEUE_SIZE + 1),
        ..chain("an index that jumps", &[(BUFFER, 64, 0, 0)])
    },
    Nonsense {
        index: Some(u16::MAX),
        ..chain("an index that goes back", &[(BUFFER, 64, 0, 0)])
    },
    table("a table in a table", 32, &[(TABLE, 32, INDIRECT, 0)]),
    table("a table of no whole entries", 33, &[(BUFFER, 64, 0, 0)]),
    table("a table of nothing", 0, &[]),
];

#[test]
fn nonsense_stops_the_device_until_it_is_reset() {
    for (device, machine) in MACHINES {
        let mut machine = machine();
        machine.restart();
        machine.assert_works();
        for (queue, _) in machine.attacked.clone() {
            for nonsense in &NONSENSE {
                machine.restart();
                let driver = &machine.drivers[queue];
                for (index, descriptor) in (0..).zip(nonsense.descriptors) {
                    driver.write_descriptor(index, *descriptor);
                }
                for (index, descriptor) in (0..).zip(nonsense.indirect) {
                    driver.write_entry(TABLE, index, *descriptor);
                }
                driver.offer(nonsense.head);
                if let Some(index) = nonsense.index {
                    driver.set_available_index(index);
                }
                machine.assert_breaks(&format!("{device}, queue {queue}: {}", nonsense.name), queue);
                machine.restart();
                machine.assert_works();
            }
        }
    }
}

/// A queue whose rings are not memory is refused when the device is to start.
#[test]
fn rings_outside_of_memory_stop_the_device_at_its_start() {
    for (device, machine) in MACHINES {
        let mut machine = machine();
        let drivers = std::mem::take(&mut machine.drivers);
        let far = GuestMemory::from_ranges(&[(crate::memory::GuestAddress(0), 0x1000)]).unwrap();
        let interrupt = Arc::new(Interrupt::of_test(EventFd::new(EFD_NONBLOCK).unwrap()));
        let mut transport = MmioTransport::new(machine.device.clone(), far, interrupt);
        start(&mut transport, &drivers);
        let mut status = [0; 4];
        transport.read(u64::from(VIRTIO_MMIO_STATUS), &mut status);
        let failed = u32::from_le_bytes(status) & VIRTIO_CONFIG_S_NEEDS_RESET != 0;
        assert!(failed, "{device}");
        assert!(lock(&machine.device).queues().is_empty());
        machine.drivers = drivers;
        machine.restart();
        machine.assert_works();
    }
}

/// Resident memory of this process in KiB, without the file pages that any test may bring in.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// In a process of its own, whose memory no other test changes.
#[test]
fn random_nonsense_does_not_take_memory() {
    const ALONE: &str = "RVM_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = std::thread::current().name().unwrap().to_owned();
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--nocapture"])
            .env(ALONE, "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    for (device, machine) in MACHINES {
        let mut machine = machine();
        let mut random = Random::new(7);
        let mut before = None;
        let mut broken = 0;
        for round in 0..RINGS {
            for (queue, (readable, _)) in machine.attacked.clone() {
                machine.restart();
                // It looks at the queue as soon as it runs, or when it is notified: both is legal for a guest.
                let content = |random: &mut Random| {
                    let mut bytes = readable.clone();
                    if let Some(byte) = bytes.first_mut() {
                        *byte = u8::try_from(random.below(5)).unwrap();
                    }
                    bytes
                };
                let _ = hostile_ring(&machine.drivers[queue], content, &mut random);
                let client = (machine.poke)();
                machine.notify(queue);
                broken += usize::from(machine.settle(queue));
                drop(client);
            }
            // The pages of the guest, the heap and the threads' stacks are all there after some rounds.
            if round == RINGS / 4 {
                before = Some(resident_kib());
            }
        }
        let growth = resident_kib().saturating_sub(before.unwrap());
        assert!(growth < MOST_GROWTH_KIB, "{device} took {growth} KiB");
        // How many depends on how soon a device's thread looks.
        assert!(broken > 0, "{device} was not broken by any ring");
        machine.restart();
        machine.assert_works();
    }
}

impl Machine {
    /// Lets the device work on `queue` until it has failed or taken all that there is, and says whether it has failed.
    fn settle(&mut self, queue: usize) -> bool {
        // What waits for buffers, or for more than its budget, is left alone after this many looks.
        for _ in 0..self.looks {
            self.event_loop.run_with_timeout(0).unwrap();
            lock(&self.device).pause();
            let states = lock(&self.device).queues();
            lock(&self.device).resume().unwrap();
            let Some(state) = states.get(queue) else {
                assert!(self.needs_reset());
                return true;
            };
            let available: u16 = {
                use crate::memory::{Bytes as _, GuestAddress};
                self.memory().read_obj(GuestAddress(state.available + 2)).unwrap()
            };
            if state.next_available == available {
                return false;
            }
        }
        false
    }
}
