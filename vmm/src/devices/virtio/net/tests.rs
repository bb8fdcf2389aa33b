//! The device against sockets in place of an interface, from single turns up to its threads.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::{read, write};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};
use vmm_sys_util::eventfd::EventFd;

use super::device::{Net, Settings};
use super::queue::{self, HEADER_BYTES, Link, MAX_FRAME_BYTES, Next, Receiver, Turn};
use super::tap::Port;
use super::tap::tests::{Request, SocketPort};
use super::worker::Counters;
use crate::bus::lock;
use crate::config::{LimitsConfig, RateConfig};
use crate::devices::limiter::Limiter;
use crate::devices::virtio::hostile::attack_with_rings;
use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::ring::{Ring, RingError};
use crate::devices::virtio::state::DeviceState;
use crate::devices::virtio::test_driver::Driver;
use crate::devices::virtio::{Activation, VirtioDevice};
use crate::memory::GuestMemory;
use crate::seccomp::Filters;

thread_local! {
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A clock that a test moves.
fn clock() -> Instant {
    let now = NOW.get().unwrap_or_else(Instant::now);
    NOW.set(Some(now));
    now
}

fn advance(time: Duration) {
    NOW.set(Some(clock() + time));
}

/// One end of a wire, and what a direction works with.
struct Fixture {
    port: SocketPort,
    /// The other end.
    wire: OwnedFd,
    limiter: Limiter,
    counters: Counters,
}

impl Fixture {
    fn new(limits: LimitsConfig) -> Self {
        let (port, wire) = SocketPort::pair();
        Self {
            port,
            wire,
            limiter: Limiter::new(limits, clock()),
            counters: Counters::default(),
        }
    }

    fn unlimited() -> Self {
        Self::new(LimitsConfig::default())
    }

    fn link(&self) -> Link<'_> {
        Link {
            port: &self.port,
            limiter: &self.limiter,
            counters: &self.counters,
            clock,
        }
    }

    fn transmit(&self, ring: &mut Ring, driver: &Driver) -> Turn {
        queue::transmit(ring, &driver.memory, self.link()).unwrap()
    }

    /// What has arrived, each frame with its header.
    fn arrived(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| receive(&self.wire)).collect()
    }

    fn dropped(&self) -> (u64, u64) {
        let load =
            |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        (
            load(&self.counters.receive_dropped),
            load(&self.counters.transmit_dropped),
        )
    }
}

fn receive(wire: impl AsFd) -> Option<Vec<u8>> {
    let mut frame = vec![0; 2 * MAX_FRAME_BYTES];
    let bytes = read(wire, &mut frame[..]).ok()?;
    frame.truncate(bytes);
    Some(frame)
}

/// A header that asks for nothing, and a frame.
fn frame(contents: u8, bytes: usize) -> Vec<u8> {
    [vec![0; HEADER_BYTES], vec![contents; bytes]].concat()
}

/// A frame each of whose bytes depends on its place.
fn pattern(bytes: usize) -> Vec<u8> {
    let bytes = (0..bytes).map(|place| u8::try_from(place % 251).unwrap());
    [vec![0; HEADER_BYTES], bytes.collect()].concat()
}

fn rate(per_second: u64, burst: u64) -> Option<RateConfig> {
    Some(RateConfig { per_second, burst })
}

#[test]
fn frames_of_the_guest_are_sent() {
    let (driver, fixture) = (Driver::new(16), Fixture::unlimited());
    let mut ring = driver.ring();
    let first = frame(1, 60);
    let (header, rest) = first.split_at(7);
    driver.request(&[header, rest], &[]);
    driver.request(&[&frame(2, 1514)], &[]);
    let turn = fixture.transmit(&mut ring, &driver);
    assert_eq!((turn.signal, turn.next), (true, Next::Driver));
    assert_eq!(fixture.arrived(), [first, frame(2, 1514)]);
    assert_eq!(driver.used(), [(0, 0), (2, 0)]);
    assert!(
        !fixture.transmit(&mut ring, &driver).signal,
        "nothing was given back"
    );
}

#[test]
fn what_cannot_be_a_frame_is_not_sent() {
    let (driver, fixture) = (Driver::new(8), Fixture::unlimited());
    let mut ring = driver.ring();
    driver.request(&[&frame(1, MAX_FRAME_BYTES - HEADER_BYTES)], &[]);
    driver.request(&[&frame(2, MAX_FRAME_BYTES - HEADER_BYTES + 1)], &[]);
    fixture.transmit(&mut ring, &driver);
    assert_eq!(fixture.arrived(), [frame(1, MAX_FRAME_BYTES - HEADER_BYTES)]);
    assert_eq!((driver.used().len(), fixture.dropped()), (2, (0, 1)));
    driver.request(&[&[0; HEADER_BYTES - 1]], &[]);
    let broken = queue::transmit(&mut ring, &driver.memory, fixture.link());
    assert!(matches!(broken, Err(RingError::Malformed)));
}

#[test]
fn a_frame_waits_for_room_and_is_lost_on_errors() {
    let (driver, fixture) = (Driver::new(8), Fixture::unlimited());
    let mut ring = driver.ring();
    // The other end takes a few frames of this size at most.
    let mut sent = 0;
    loop {
        driver.rewind();
        driver.request(&[&frame(1, 60_000)], &[]);
        if fixture.transmit(&mut ring, &driver).next == Next::Port {
            break;
        }
        sent += 1;
    }
    assert_eq!(driver.used().len(), sent);
    assert_eq!(fixture.arrived().len(), sent);
    assert_eq!(fixture.transmit(&mut ring, &driver).next, Next::Driver);
    assert_eq!(fixture.arrived(), [frame(1, 60_000)]);

    let (port, _) = SocketPort::pair();
    let gone = Fixture { port, ..fixture };
    driver.request(&[&frame(1, 60)], &[]);
    assert_eq!(gone.transmit(&mut ring, &driver).next, Next::Driver);
    assert_eq!((driver.used().len(), gone.dropped()), (sent + 2, (0, 1)));
}

#[test]
fn a_turn_is_bounded() {
    let (driver, fixture) = (Driver::new(128), Fixture::unlimited());
    let mut ring = driver.ring();
    for _ in 0..70 {
        driver.request(&[&frame(1, 60)], &[]);
    }
    assert_eq!(fixture.transmit(&mut ring, &driver).next, Next::Turn);
    assert_eq!(fixture.arrived().len(), 64);
    assert_eq!(fixture.transmit(&mut ring, &driver).next, Next::Driver);
    assert_eq!(fixture.arrived().len(), 6);
}

#[test]
fn transmission_is_limited_in_tokens() {
    let limits = LimitsConfig {
        bytes: rate(1000, 3000),
        packets: None,
    };
    let (driver, fixture) = (Driver::new(16), Fixture::new(limits));
    let mut ring = driver.ring();
    for _ in 0..10 {
        driver.request(&[&frame(1, 1000)], &[]);
    }
    let turn = fixture.transmit(&mut ring, &driver);
    assert_eq!(turn.next, Next::Time(Duration::from_nanos(1)));
    assert_eq!(fixture.arrived().len(), 3);
    assert_eq!(fixture.transmit(&mut ring, &driver).next, turn.next);
    advance(Duration::from_millis(1500));
    assert_eq!(
        fixture.transmit(&mut ring, &driver).next,
        Next::Time(Duration::from_millis(500) + Duration::from_nanos(1))
    );
    assert_eq!(fixture.arrived().len(), 2);
    advance(Duration::from_secs(100));
    fixture.transmit(&mut ring, &driver);
    assert_eq!((fixture.arrived().len(), driver.used().len()), (3, 8));
}

#[test]
fn frames_go_into_buffers_that_take_them_whole() {
    let (driver, fixture) = (Driver::new(8), Fixture::unlimited());
    let (mut ring, mut receiver) = (driver.ring(), Receiver::new(&driver.memory, false));
    let first = driver.request(&[], &[12, 1500]);
    write(&fixture.wire, &pattern(1500)).unwrap();
    write(&fixture.wire, &frame(2, 60)).unwrap();
    let turn = receiver.turn(&mut ring, fixture.link()).unwrap();
    assert_eq!((turn.signal, turn.next), (true, Next::Driver));
    assert_eq!(driver.used(), [(0, 1512)]);
    assert_eq!(driver.read(first, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(driver.read(first + 16, 1500), pattern(1500)[12..]);

    // One that is too long is lost, and the buffer takes the next.
    let second = driver.request(&[], &[100]);
    write(&fixture.wire, &frame(3, 89)).unwrap();
    write(&fixture.wire, &frame(4, 88)).unwrap();
    write(&fixture.wire, &frame(5, 1)).unwrap();
    assert_eq!(
        receiver.turn(&mut ring, fixture.link()).unwrap().next,
        Next::Driver
    );
    assert_eq!(driver.used()[1..], [(2, 72)]);
    assert_eq!(driver.read(second + 12, 60), [2; 60]);
    driver.request(&[], &[100]);
    driver.request(&[], &[100]);
    let turn = receiver.turn(&mut ring, fixture.link()).unwrap();
    assert_eq!(
        (driver.used()[2..].to_vec(), turn.next),
        (vec![(3, 100), (4, 13)], Next::Driver)
    );
    assert_eq!(fixture.dropped(), (1, 0));
    driver.request(&[], &[11]);
    let broken = receiver.turn(&mut ring, fixture.link());
    assert!(matches!(broken, Err(RingError::Malformed)));
}

#[test]
fn a_frame_is_spread_over_buffers() {
    let (driver, fixture) = (Driver::new(128), Fixture::unlimited());
    let (mut ring, mut receiver) = (driver.ring(), Receiver::new(&driver.memory, true));
    let buffers: Vec<u64> = (0..50).map(|_| driver.request(&[], &[1000, 536])).collect();
    write(&fixture.wire, &pattern(4000)).unwrap();
    write(&fixture.wire, &frame(7, 60)).unwrap();
    let turn = receiver.turn(&mut ring, fixture.link()).unwrap();
    assert_eq!((turn.signal, turn.next), (true, Next::Port));
    assert_eq!(driver.used(), [(0, 1536), (2, 1536), (4, 940), (6, 72)]);
    let stored = [
        driver.read(buffers[0], 1000),
        driver.read(buffers[0] + 1008, 536),
        driver.read(buffers[1], 1000),
        driver.read(buffers[1] + 1008, 536),
        driver.read(buffers[2], 940),
    ]
    .concat();
    assert_eq!(stored[10..12], [3, 0]);
    assert_eq!(stored[12..], pattern(4000)[12..]);
    assert_eq!(driver.read(buffers[3] + 10, 3), [1, 0, 7]);
    // What was taken in advance goes back.
    receiver.stop(&mut ring);
    assert_eq!(ring.state().next_available, 4);
}

#[test]
fn a_frame_that_is_too_long_for_now_waits_for_buffers() {
    let (driver, fixture) = (Driver::new(16), Fixture::unlimited());
    let (mut ring, mut receiver) = (driver.ring(), Receiver::new(&driver.memory, true));
    let mut buffers = vec![driver.request(&[], &[1500]), driver.request(&[], &[1500])];
    let long = pattern(7000);
    write(&fixture.wire, &long).unwrap();
    write(&fixture.wire, &frame(9, 60)).unwrap();
    let turn = receiver.turn(&mut ring, fixture.link()).unwrap();
    assert_eq!((turn.signal, turn.next), (false, Next::Driver));
    buffers.push(driver.request(&[], &[1500]));
    assert_eq!(
        receiver.turn(&mut ring, fixture.link()).unwrap().next,
        Next::Driver
    );
    assert!(driver.used().is_empty());
    buffers.extend([driver.request(&[], &[2000]), driver.request(&[], &[1500])]);
    let turn = receiver.turn(&mut ring, fixture.link()).unwrap();
    assert_eq!((turn.signal, turn.next), (true, Next::Driver));
    assert_eq!(
        driver.used(),
        [(0, 1500), (1, 1500), (2, 1500), (3, 2000), (4, 512)]
    );
    let stored = [
        driver.read(buffers[0], 1500),
        driver.read(buffers[1], 1500),
        driver.read(buffers[2], 1500),
        driver.read(buffers[3], 2000),
        driver.read(buffers[4], 512),
    ]
    .concat();
    assert_eq!((&stored[10..12], &stored[12..]), (&[5, 0][..], &long[12..]));
    // The next one was not lost.
    driver.request(&[], &[1500]);
    receiver.turn(&mut ring, fixture.link()).unwrap();
    assert_eq!(driver.used()[5..], [(5, 72)]);
    assert_eq!(fixture.dropped(), (0, 0));
}

#[test]
fn a_frame_that_no_buffers_will_take_is_lost() {
    let (driver, fixture) = (Driver::new(4), Fixture::unlimited());
    let (mut ring, mut receiver) = (driver.ring(), Receiver::new(&driver.memory, true));
    for _ in 0..4 {
        driver.request(&[], &[1000]);
    }
    write(&fixture.wire, &pattern(7000)).unwrap();
    write(&fixture.wire, &frame(9, 60)).unwrap();
    let turn = receiver.turn(&mut ring, fixture.link()).unwrap();
    assert_eq!((turn.next, driver.used()), (Next::Port, vec![(0, 72)]));
    assert_eq!(fixture.dropped(), (1, 0));
    // The longest frame of all, and one beyond it.
    let driver = Driver::new(4);
    let (mut ring, mut receiver) = (driver.ring(), Receiver::new(&driver.memory, true));
    driver.request(&[], &[40_000]);
    driver.request(&[], &[40_000]);
    write(&fixture.wire, &pattern(MAX_FRAME_BYTES - HEADER_BYTES)).unwrap();
    write(&fixture.wire, &pattern(MAX_FRAME_BYTES)).unwrap();
    receiver.turn(&mut ring, fixture.link()).unwrap();
    let second = u32::try_from(MAX_FRAME_BYTES - 40_000).unwrap();
    assert_eq!(driver.used(), [(0, 40_000), (1, second)]);
}

#[test]
fn reception_is_limited_in_tokens() {
    let limits = LimitsConfig {
        bytes: None,
        packets: rate(10, 2),
    };
    let (driver, fixture) = (Driver::new(16), Fixture::new(limits));
    let (mut ring, mut receiver) = (driver.ring(), Receiver::new(&driver.memory, true));
    for _ in 0..16 {
        driver.request(&[], &[1500]);
        write(&fixture.wire, &frame(1, 60)).unwrap();
    }
    let turn = receiver.turn(&mut ring, fixture.link()).unwrap();
    assert_eq!(
        (turn.next, driver.used().len()),
        (Next::Time(Duration::from_nanos(1)), 2)
    );
    assert_eq!(receiver.turn(&mut ring, fixture.link()).unwrap().next, turn.next);
    advance(Duration::from_millis(100));
    receiver.turn(&mut ring, fixture.link()).unwrap();
    assert_eq!(driver.used().len(), 3);
    advance(Duration::from_secs(60));
    receiver.turn(&mut ring, fixture.link()).unwrap();
    assert_eq!(driver.used().len(), 5);
}

#[test]
fn commands_set_the_number_of_pairs_and_nothing_else() {
    let check = |command: &[u8], expected: Option<u16>, answer: u8| {
        let driver = Driver::new(8);
        let data = driver.request(&[command], &[1]);
        let mut asked = None;
        let set = |pairs| {
            asked = Some(pairs);
            pairs <= 2
        };
        let outcome = queue::control(&mut driver.ring(), &driver.memory, set).unwrap();
        assert!(outcome.signal && !outcome.more);
        assert_eq!(
            (asked, driver.read(data, 1)[0]),
            (expected, answer),
            "{command:?}"
        );
        assert_eq!(driver.used(), [(0, 1)]);
    };
    check(&[4, 0, 2, 0], Some(2), 0);
    check(&[4, 0, 3, 1], Some(259), 1);
    check(&[4, 0, 2], None, 1);
    check(&[4, 0, 2, 0, 0], None, 1);
    check(&[4, 1, 2, 0], None, 1);
    check(&[0, 0, 1], None, 1);
    check(&[], None, 1);
    let driver = Driver::new(8);
    driver.request(&[&[4, 0, 1, 0]], &[]);
    let broken = queue::control(&mut driver.ring(), &driver.memory, |_| true);
    assert!(matches!(broken, Err(RingError::Malformed)));
}

#[test]
fn hostile_rings_do_no_harm() {
    let driver = Driver::new(8);
    let fixture = Fixture::unlimited();
    let header = |random: &mut crate::devices::virtio::hostile::Random| {
        let bytes = random.one_of(&[0, 3, 11, 12, 13, 60, 1514]);
        random
            .one_of(
                &[frame(4, bytes), vec![4, 0, 1, 0], vec![0xff; 64]][..]
                    .iter()
                    .collect::<Vec<_>>(),
            )
            .clone()
    };
    attack_with_rings(&driver, header, |mut ring, random| {
        // Nonsense is an error, sense is served; each time as another queue.
        match random.below(3) {
            0 => {
                for bytes in [20, 1514, 60_000] {
                    write(&fixture.wire, &frame(3, bytes)).unwrap();
                }
                let mut receiver = Receiver::new(&driver.memory, random.below(2) == 0);
                for _ in 0..3 {
                    if receiver.turn(&mut ring, fixture.link()).is_err() {
                        break;
                    }
                }
                receiver.stop(&mut ring);
                while receive(&fixture.port).is_some() {}
            }
            1 => {
                let _ = queue::transmit(&mut ring, &driver.memory, fixture.link());
                for sent in fixture.arrived() {
                    assert!((HEADER_BYTES..=MAX_FRAME_BYTES).contains(&sent.len()));
                }
            }
            _ => {
                let _ = queue::control(&mut ring, &driver.memory, |pairs| pairs == 1);
            }
        }
    });
}

/// A device of some pairs with its driver's queues.
struct Machine {
    device: Net,
    ports: Vec<Arc<SocketPort>>,
    wires: Vec<OwnedFd>,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    line: EventFd,
}

impl Machine {
    fn new(pairs: usize, settings: Settings, refuses: bool) -> Self {
        let (mut ports, mut wires) = (Vec::new(), Vec::new());
        for _ in 0..pairs {
            let (mut port, wire) = SocketPort::pair();
            port.refuses = refuses;
            ports.push(Arc::new(port));
            wires.push(wire);
        }
        let shared = ports.iter().map(|port| port.clone() as Arc<dyn Port>).collect();
        let line = EventFd::new(0).unwrap();
        Self {
            device: Net::new(settings, shared, &Filters::none()).unwrap(),
            ports,
            wires,
            memory: crate::memory::allocate(5).unwrap(),
            interrupt: Arc::new(Interrupt::of_test(line.try_clone().unwrap())),
            line,
        }
    }

    /// The driver's queues.
    fn queues<const N: usize>(&self) -> [Driver; N] {
        std::array::from_fn(|index| Driver::in_memory(self.memory.clone(), 8, index as u64))
    }

    /// Starts the device on these of the driver's queues.
    fn activate(&mut self, features: &[u32], queues: &[&Driver]) {
        let activation = Activation {
            features: features.iter().fold(0, |all, feature| all | (1 << feature)),
            memory: self.memory.clone(),
            rings: queues.iter().map(|driver| driver.ring()).collect(),
            interrupt: self.interrupt.clone(),
        };
        self.device.activate(activation).unwrap();
    }

    fn notify(&self, queue: usize) {
        self.device.notifications()[queue].write(1).unwrap();
    }

    fn requests(&self, port: usize) -> Vec<Request> {
        std::mem::take(&mut lock(&self.ports[port].requests))
    }
}

fn settings() -> Settings {
    Settings {
        mac: [2, 0, 0, 0, 0, 9],
        mtu: Some(9000),
        receive: LimitsConfig::default(),
        transmit: LimitsConfig::default(),
    }
}

/// A device of one pair, and the other end of its wire.
pub(in super::super) fn one_pair(last: u8) -> (Net, OwnedFd) {
    let (port, wire) = SocketPort::pair();
    let settings = Settings {
        mac: [2, 0, 0, 0, 0, last],
        ..settings()
    };
    let device = Net::new(settings, vec![Arc::new(port)], &Filters::none()).unwrap();
    (device, wire)
}

#[test]
fn configuration_and_features_say_what_the_device_is() {
    let one = Machine::new(
        1,
        Settings {
            mtu: None,
            ..settings()
        },
        false,
    )
    .device;
    let several = Machine::new(3, settings(), false).device;
    let has = |device: &Net, feature: u32| device.features() & (1 << feature) != 0;
    for feature in [VIRTIO_NET_F_MQ, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MTU] {
        assert!(!has(&one, feature) && has(&several, feature), "{feature}");
    }
    assert!(has(&one, VIRTIO_NET_F_MRG_RXBUF) && has(&one, VIRTIO_NET_F_GUEST_CSUM));
    assert_eq!((one.queue_sizes().len(), several.queue_sizes().len()), (2, 7));
    for (features, expected) in [
        (&[][..], 2),
        (&[VIRTIO_NET_F_CTRL_VQ], 3),
        (&[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ], 7),
    ] {
        let features = features.iter().fold(0, |all, feature| all | (1 << feature));
        assert_eq!(several.queues_in_use(features), expected);
    }
    let mut space = [0xff; 13];
    several.read_config(0, &mut space);
    assert_eq!(space, [2, 0, 0, 0, 0, 9, 1, 0, 3, 0, 0x28, 0x23, 0xff]);
}

#[test]
fn an_active_device_moves_frames_until_reset() {
    let mut machine = Machine::new(1, settings(), false);
    // Not meant for the driver, which was not there.
    write(&machine.wires[0], &frame(1, 60)).unwrap();
    let [receive_queue, transmit_queue] = machine.queues();
    let data = receive_queue.request(&[], &[1514]);
    machine.activate(&[VIRTIO_NET_F_GUEST_CSUM], &[&receive_queue, &transmit_queue]);
    assert_eq!(machine.requests(0), [Request::Features(2)]);
    write(&machine.wires[0], &frame(2, 60)).unwrap();
    machine.line.read().unwrap();
    assert_eq!(receive_queue.used(), [(0, 72)]);
    assert_eq!(receive_queue.read(data + 12, 60), [2; 60]);
    // A frame waits for a buffer without anybody turning.
    write(&machine.wires[0], &frame(3, 60)).unwrap();
    transmit_queue.request(&[&frame(4, 60)], &[]);
    machine.notify(1);
    machine.line.read().unwrap();
    assert_eq!(receive(&machine.wires[0]), Some(frame(4, 60)));
    receive_queue.request(&[], &[1514]);
    machine.notify(0);
    machine.line.read().unwrap();
    assert_eq!(receive_queue.used().len(), 2);
    machine.device.reset();
    transmit_queue.request(&[&frame(5, 60)], &[]);
    machine.notify(1);
    assert_eq!(
        (transmit_queue.used().len(), receive(&machine.wires[0])),
        (1, None)
    );
    assert!(!machine.interrupt.needs_reset());
}

#[test]
fn a_driver_uses_as_many_pairs_as_it_wants() {
    let mut machine = Machine::new(2, settings(), false);
    assert_eq!(machine.requests(1), [Request::Attached(false)]);
    let features = [VIRTIO_NET_F_MQ, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MRG_RXBUF];
    let [unused, first, second, third, control] = machine.queues();
    machine.activate(&features, &[&unused, &first, &second, &third, &control]);
    assert_eq!(machine.requests(1), [Request::Attached(false)]);
    let set = |machine: &Machine, pairs: u8| {
        let answer = control.request(&[&[4, 0, pairs, 0]], &[1]);
        machine.notify(4);
        machine.line.read().unwrap();
        control.read(answer, 1)[0]
    };
    assert_eq!(set(&machine, 2), 0);
    assert_eq!(machine.requests(1), [Request::Attached(true)]);
    assert_eq!((set(&machine, 3), set(&machine, 0)), (1, 1));
    assert!(machine.requests(1).is_empty());
    for (queue, driver, wire) in [(1, &first, 0), (3, &third, 1)] {
        driver.request(&[&frame(6, 60)], &[]);
        machine.notify(queue);
        machine.line.read().unwrap();
        assert_eq!(receive(&machine.wires[wire]), Some(frame(6, 60)));
    }
    second.request(&[], &[1514]);
    write(&machine.wires[1], &frame(7, 60)).unwrap();
    machine.line.read().unwrap();
    assert_eq!(second.used(), [(0, 72)]);

    // Paused, it knows its queues and the number of pairs; after a reset there is one again.
    machine.device.pause();
    let used: Vec<u16> = machine
        .device
        .queues()
        .iter()
        .map(|queue| queue.next_used)
        .collect();
    assert_eq!(used, [0, 1, 1, 1, 3]);
    let DeviceState::Net(saved) = machine.device.save() else {
        panic!()
    };
    let mut other = Machine::new(2, settings(), false);
    other.device.restore(&DeviceState::Net(saved)).unwrap();
    assert_eq!(other.device.save(), DeviceState::Net(saved));
    assert!(
        Machine::new(1, settings(), false)
            .device
            .restore(&DeviceState::Net(saved))
            .is_err()
    );
    machine.device.resume().unwrap();
    assert_eq!(set(&machine, 1), 0);
    assert_eq!(machine.requests(1), [Request::Attached(false)]);
    machine.device.reset();
    assert!(machine.device.queues().is_empty());
}

#[test]
fn an_interface_that_refuses_a_queue_is_told_to_the_driver() {
    let mut machine = Machine::new(2, settings(), true);
    let queues: [Driver; 5] = machine.queues();
    machine.activate(&[VIRTIO_NET_F_MQ, VIRTIO_NET_F_CTRL_VQ], &queues.each_ref());
    let [.., control] = queues;
    machine.requests(1);
    let answer = control.request(&[&[4, 0, 2, 0]], &[1]);
    machine.notify(4);
    machine.line.read().unwrap();
    assert_eq!(control.read(answer, 1), [1]);
    assert_eq!(
        machine.requests(1),
        [Request::Attached(true), Request::Attached(false)]
    );
}

#[test]
fn a_limit_is_waited_for() {
    let limited = Settings {
        transmit: LimitsConfig {
            bytes: None,
            packets: rate(1000, 1),
        },
        ..settings()
    };
    let mut machine = Machine::new(1, limited, false);
    let [receive_queue, transmit_queue] = machine.queues();
    for _ in 0..8 {
        transmit_queue.request(&[&frame(4, 60)], &[]);
    }
    machine.activate(&[], &[&receive_queue, &transmit_queue]);
    let mut arrived = 0;
    while arrived < 8 {
        machine.line.read().unwrap();
        while receive(&machine.wires[0]).is_some() {
            arrived += 1;
        }
    }
    assert_eq!(machine.device.counters().count(), 1);
}

#[test]
fn a_broken_queue_needs_a_reset() {
    let mut machine = Machine::new(1, settings(), false);
    let [receive_queue, transmit_queue] = machine.queues();
    transmit_queue.set_available_index(100);
    machine.activate(&[], &[&receive_queue, &transmit_queue]);
    machine.line.read().unwrap();
    assert!(machine.interrupt.needs_reset());
    machine.device.pause();
    assert!(machine.device.queues().is_empty());
    machine.device.reset();
    transmit_queue.forget();
    transmit_queue.request(&[&frame(4, 60)], &[]);
    machine.activate(&[], &[&receive_queue, &transmit_queue]);
    machine.line.read().unwrap();
    assert_eq!(receive(&machine.wires[0]), Some(frame(4, 60)));
}
