//! The device between a driver and a worker that are both played here, and both mean harm.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, SubscriberOps as _};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use vmm_sys_util::eventfd::EventFd;

use super::message::{Answer, IN_HEADER_BYTES, MAX_MESSAGE_BYTES, Request};
use super::{Fs, FsError, FsSubscriber};
use crate::bus::lock;
use crate::config::FsTag;
use crate::devices::virtio::hostile::{Random, hostile_ring};
use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::test_driver::Driver;
use crate::devices::virtio::{Activation, VirtioDevice as _};
use crate::stop::StopSignal;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const WRITE: u32 = 16;
const HIGH_PRIORITY: usize = 0;
const REQUESTS: usize = 1;

/// The worker's end.
pub(crate) struct Worker(OwnedFd);

impl Worker {
    /// The next request: its number and its opcode, and what follows the head.
    pub(crate) fn next(&self) -> Option<(u64, u32, Vec<u8>)> {
        let mut bytes = vec![0; MAX_MESSAGE_BYTES + 1];
        let (length, _) = recv(&self.0, &mut bytes, RecvFlags::DONTWAIT).ok()?;
        if length == 0 {
            return None; // the end
        }
        let request = Request(bytes[..IN_HEADER_BYTES].try_into().unwrap());
        assert_eq!(request.length() as usize, length);
        Some((
            request.id(),
            request.opcode(),
            bytes[IN_HEADER_BYTES..length].to_vec(),
        ))
    }

    pub(crate) fn answer(&self, id: u64, body: &[u8]) {
        let length = u32::try_from(16 + body.len()).unwrap();
        self.say(Answer { length, error: 0, id }, body);
    }

    /// Fails if the device does not listen any more.
    fn say(&self, answer: Answer, body: &[u8]) {
        self.try_say(answer, body).unwrap();
    }

    fn try_say(&self, answer: Answer, body: &[u8]) -> rustix::io::Result<usize> {
        send(&self.0, &[&answer.to_bytes(), body].concat(), SendFlags::NOSIGNAL)
    }
}

pub(crate) fn tag(text: &str) -> FsTag {
    FsTag::try_from(text.to_owned()).unwrap()
}

/// A device and its worker.
pub(crate) fn device(name: &str) -> (Fs, Worker) {
    let pair = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    );
    let (ours, theirs) = pair.unwrap();
    (Fs::new(tag(name), ours).unwrap(), Worker(theirs))
}

/// A whole request.
pub(crate) fn request(opcode: u32, id: u64, body: &[u8]) -> Vec<u8> {
    let mut request = Request([0; IN_HEADER_BYTES]);
    let length = u32::try_from(IN_HEADER_BYTES + body.len()).unwrap();
    request.0[..4].copy_from_slice(&length.to_le_bytes());
    request.0[4..8].copy_from_slice(&opcode.to_le_bytes());
    request.set_id(id);
    [&request.0, body].concat()
}

struct Machine {
    fs: Fs,
    worker: Option<Worker>,
    drivers: Vec<Driver>,
    interrupt: Arc<Interrupt>,
}

impl Machine {
    fn new() -> Self {
        let (mut fs, worker) = device("shared");
        let memory = crate::memory::allocate(4).unwrap();
        let drivers = [0, 1].map(|index| Driver::in_memory(memory.clone(), 128, index));
        let interrupt = activate(&mut fs, &drivers);
        Self {
            fs,
            worker: Some(worker),
            drivers: drivers.into(),
            interrupt,
        }
    }

    fn worker(&self) -> &Worker {
        self.worker.as_ref().unwrap()
    }

    /// Asks for a name, with room for `room` bytes; returns where the answer will be.
    fn ask(&self, id: u64, room: u32) -> u64 {
        self.drivers[REQUESTS].request(&[&request(LOOKUP, id, b"name\0")], &[16, room])
    }

    /// The answer's head at `address`.
    fn answer(&self, address: u64) -> Answer {
        let bytes = self.drivers[REQUESTS].read(address, 16);
        let length = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        Answer::parse(&bytes.try_into().unwrap(), length as usize).unwrap()
    }
}

fn activate(fs: &mut Fs, drivers: &[Driver]) -> Arc<Interrupt> {
    let interrupt = Arc::new(Interrupt::of_test(EventFd::new(0).unwrap()));
    fs.activate(Activation {
        features: 0,
        memory: drivers[0].memory.clone(),
        rings: drivers.iter().map(Driver::ring).collect(),
        interrupt: interrupt.clone(),
    })
    .unwrap();
    interrupt
}

#[test]
fn configuration_is_the_tag_and_the_number_of_queues() {
    let (fs, _worker) = device("data");
    let mut space = [0xff; 46];
    fs.read_config(0, &mut space);
    assert_eq!(&space[..5], b"data\0");
    assert_eq!(space[36..], [1, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
    let (fs, _worker) = device(&"x".repeat(36));
    fs.read_config(0, &mut space);
    assert_eq!(space[..37], [&[b'x'; 36][..], &[1]].concat());
}

#[test]
fn another_kind_of_socket_is_refused() {
    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(matches!(
        Fs::new(tag("x"), stream.into()),
        Err(FsError::SocketType)
    ));
    let file = tempfile::tempfile().unwrap();
    assert!(matches!(
        Fs::new(tag("x"), file.into()),
        Err(FsError::Descriptor(_))
    ));
}

#[test]
fn answers_come_in_any_order_and_go_to_who_asked() {
    let mut machine = Machine::new();
    // The driver's numbers need not differ.
    let addresses = [machine.ask(9, 100), machine.ask(9, 100), machine.ask(11, 100)];
    machine.drivers[HIGH_PRIORITY].request(&[&request(FORGET, 0, &[1; 8])], &[]);
    machine.fs.serve(None);
    assert_eq!(
        machine.drivers[HIGH_PRIORITY].used(),
        [(0, 0)],
        "nobody waits for it"
    );
    let (_, opcode, body) = machine.worker().next().unwrap();
    assert_eq!((opcode, body), (FORGET, vec![1; 8]));
    let asked: Vec<_> = std::iter::from_fn(|| machine.worker().next()).collect();
    assert_eq!(asked.len(), 3);
    assert!(
        asked
            .iter()
            .all(|(_, opcode, body)| *opcode == LOOKUP && body == b"name\0")
    );
    for index in [2, 0, 1] {
        machine
            .worker()
            .answer(asked[index].0, &[b'a' + u8::try_from(index).unwrap(); 50]);
    }
    machine.fs.serve(None);
    let written: Vec<_> = machine.drivers[REQUESTS].used();
    assert_eq!(written, [(6, 66), (0, 66), (3, 66)]);
    for (index, (address, id)) in addresses.into_iter().zip([9, 9, 11]).enumerate() {
        assert_eq!(
            machine.answer(address),
            Answer {
                length: 66,
                error: 0,
                id
            }
        );
        let body = machine.drivers[REQUESTS].read(address + 16, 51);
        assert_eq!(body[..50], [b'a' + u8::try_from(index).unwrap(); 50]);
        assert_eq!(body[50], 0);
    }
    assert_eq!(machine.interrupt.status(), 1);
}

/// What a worker says to the second of two requests is no answer: both are told of an error, and so is all that follows.
/// The driver and its queues are well.
fn check_lost(say: impl FnOnce(&mut Machine, u64)) {
    let mut machine = Machine::new();
    let addresses = [machine.ask(1, 16), machine.ask(2, 16)];
    machine.fs.serve(None);
    machine.worker().next().unwrap();
    let (id, _, _) = machine.worker().next().unwrap();
    say(&mut machine, id);
    machine.fs.serve(None);
    let later = machine.ask(3, 16);
    machine.drivers[HIGH_PRIORITY].request(&[&request(FORGET, 0, &[1; 8])], &[]);
    machine.fs.serve(None);
    let used = machine.drivers[REQUESTS].used();
    assert_eq!(used, [(0, 16), (3, 16), (6, 16)]);
    for (address, id) in addresses.into_iter().chain([later]).zip([1, 2, 3]) {
        assert_eq!(machine.answer(address), Answer::of_error(libc::EIO, id));
    }
    assert_eq!(machine.drivers[HIGH_PRIORITY].used().len(), 1);
    assert!(!machine.interrupt.needs_reset());
    // A worker that is still there learns of it.
    if let Some(worker) = &machine.worker {
        assert!(matches!(
            recv(&worker.0, &mut [0; 16], RecvFlags::DONTWAIT),
            Ok((0, 0))
        ));
    }
    // Also when the driver begins anew.
    machine.fs.reset();
    machine.drivers.iter().for_each(Driver::forget);
    activate(&mut machine.fs, &machine.drivers);
    let address = machine.ask(4, 16);
    machine.fs.serve(None);
    assert_eq!(machine.answer(address), Answer::of_error(libc::EIO, 4));
}

#[test]
fn a_worker_that_is_gone_fails_requests() {
    check_lost(|machine, _| machine.worker = None);
}

#[test]
fn a_worker_that_makes_no_sense_is_not_heard_again() {
    let say = |answer: Answer, body: usize| {
        check_lost(move |machine: &mut Machine, _| machine.worker().say(answer, &vec![1; body]));
    };
    // Numbers that nobody waits for.
    for id in [0, 3, u64::MAX] {
        say(
            Answer {
                length: 16,
                error: 0,
                id,
            },
            0,
        );
    }
    let of = |change: fn(&mut Answer), body: usize| {
        check_lost(move |machine: &mut Machine, id| {
            let length = u32::try_from(16 + body).unwrap();
            let mut answer = Answer { length, error: 0, id };
            change(&mut answer);
            machine.worker().say(answer, &vec![1; body]);
        });
    };
    // Longer than the request has room for, longer and shorter than it says, longer than any message.
    of(|_| (), 17);
    of(|answer| answer.length += 1, 8);
    of(|answer| answer.length -= 1, 8);
    of(|answer| answer.length = u32::MAX, 8);
    of(|answer| answer.length = 0, 8);
    of(|_| (), MAX_MESSAGE_BYTES - 15);
    // Errors that are none.
    of(|answer| answer.error = 5, 0);
    of(|answer| answer.error = -4096, 0);
    of(|answer| answer.error = -5, 8);
    // No head, nothing at all.
    check_lost(|machine, _| {
        send(&machine.worker().0, &[1; 15], SendFlags::NOSIGNAL).unwrap();
    });
    check_lost(|machine, _| {
        send(&machine.worker().0, &[], SendFlags::NOSIGNAL).unwrap();
    });
}

#[test]
fn a_request_is_answered_once() {
    let mut machine = Machine::new();
    let (first, second) = (machine.ask(1, 16), machine.ask(2, 16));
    machine.fs.serve(None);
    let (id, _, _) = machine.worker().next().unwrap();
    machine.worker().answer(id, &[7; 16]);
    machine.worker().answer(id, &[8; 16]);
    machine.fs.serve(None);
    assert_eq!(machine.answer(first).length, 32);
    assert_eq!(machine.drivers[REQUESTS].read(first + 16, 16), [7; 16]);
    assert_eq!(machine.answer(second), Answer::of_error(libc::EIO, 2));
}

#[test]
fn requests_without_head_or_room_break_the_queue() {
    let whole = request(LOOKUP, 1, b"name\0");
    let check = |readable: &[u8], writable: &[u32]| {
        let mut machine = Machine::new();
        machine.drivers[REQUESTS].request(&[readable], writable);
        machine.fs.serve(None);
        assert!(machine.interrupt.needs_reset());
        assert!(machine.worker().next().is_none() && machine.drivers[REQUESTS].used().is_empty());
    };
    check(&whole[..39], &[100]);
    check(&whole[..44], &[100]);
    check(&[&whole[..], &[0]].concat(), &[100]);
    check(&whole, &[15]);
    check(&whole, &[]);
    check(&request(WRITE, 1, &vec![0; MAX_MESSAGE_BYTES - 39]), &[100]);
}

#[test]
fn a_worker_that_does_not_read_holds_requests_up_and_no_more() {
    let mut machine = Machine::new();
    let data = vec![5; 100_000];
    let count = 7;
    for id in 0..count {
        machine.drivers[REQUESTS].request(&[&request(WRITE, id, &data)], &[16]);
    }
    for _ in 0..10 {
        machine.fs.serve(None);
    }
    let mut served = 0;
    while served < count {
        // The socket had room for some, and has more as it is read.
        let asked: Vec<_> = std::iter::from_fn(|| machine.worker().next()).collect();
        assert!((1..7).contains(&asked.len()), "{}", asked.len());
        for (id, _, body) in asked {
            assert_eq!(body, data);
            machine.worker().answer(id, &[]);
            served += 1;
        }
        machine.fs.serve(None);
    }
    assert_eq!(machine.drivers[REQUESTS].used().len(), 7);
}

/// A device in an event loop, so that nothing happens without an event.
struct Looped {
    worker: Option<Worker>,
    drivers: Vec<Driver>,
    device: Arc<Mutex<Fs>>,
    events: EventManager<FsSubscriber>,
}

impl Looped {
    fn new() -> Self {
        let Machine {
            fs, worker, drivers, ..
        } = Machine::new();
        let device = Arc::new(Mutex::new(fs));
        let mut events = EventManager::new().unwrap();
        let stop = Arc::new(StopSignal::new().unwrap());
        events.add_subscriber(FsSubscriber::new(device.clone(), stop));
        let mut looped = Self {
            worker,
            drivers,
            device,
            events,
        };
        // It has just been activated.
        looped.turn();
        looped
    }

    fn worker(&self) -> &Worker {
        self.worker.as_ref().unwrap()
    }

    fn notify(&self, queue: usize) {
        lock(&self.device).notifications()[queue].write(1).unwrap();
    }

    /// Until there are no more events.
    fn turn(&mut self) {
        while self.events.run_with_timeout(0).unwrap() > 0 {}
    }
}

#[test]
fn one_notification_is_enough_for_all_requests_before_it() {
    let mut looped = Looped::new();
    let data = vec![5; 100_000];
    for id in 0..7 {
        looped.drivers[REQUESTS].request(&[&request(WRITE, id, &data)], &[16]);
    }
    looped.notify(REQUESTS);
    let mut served = 0;
    while served < 7 {
        looped.turn();
        // A worker that takes requests off and does not answer yet makes room.
        let (id, _, body) = looped.worker().next().expect("nobody comes back");
        assert_eq!(body, data);
        looped.turn();
        looped.worker().answer(id, &[]);
        served += 1;
    }
    looped.turn();
    assert_eq!(looped.drivers[REQUESTS].used().len(), 7);
}

#[test]
fn a_queue_without_room_is_not_forgotten_for_another_with() {
    let mut looped = Looped::new();
    // Queue 0 finds no room for its last request; the one of queue 1 is small, and may find some.
    let large = vec![7; 100_000];
    for _ in 0..4 {
        looped.drivers[HIGH_PRIORITY].request(&[&request(FORGET, 0, &large)], &[]);
    }
    looped.drivers[REQUESTS].request(&[&request(LOOKUP, 1, b"name\0")], &[16, 16]);
    looped.notify(HIGH_PRIORITY);
    looped.notify(REQUESTS);
    looped.turn();
    // No request is ever answered.
    let mut forgotten = 0;
    while let Some((_, opcode, _)) = looped.worker().next() {
        forgotten += usize::from(opcode == FORGET);
        looped.turn();
    }
    assert_eq!(forgotten, 4);
    assert_eq!(looped.drivers[HIGH_PRIORITY].used().len(), 4);
}

#[test]
fn a_worker_that_is_gone_is_known_while_nobody_asks() {
    let mut looped = Looped::new();
    looped.worker = None;
    looped.turn();
    let backend = lock(&looped.device).backend();
    assert!(backend.starts_with("a worker that is lost"), "{backend}");
}

#[test]
fn only_so_many_requests_wait() {
    let mut machine = Machine::new();
    for id in 0..100 {
        // A descriptor each: the driver has room for 128.
        let head = request(LOOKUP, id, b"");
        machine.drivers[if id < 50 { REQUESTS } else { HIGH_PRIORITY }].request(&[&head], &[16]);
    }
    for _ in 0..10 {
        machine.fs.serve(None);
    }
    let asked: Vec<_> = std::iter::from_fn(|| machine.worker().next()).collect();
    assert_eq!(asked.len(), 64);
    // A driver that goes away does not make room: its requests are still with the worker.
    machine.fs.reset();
    machine.drivers.iter().for_each(Driver::forget);
    activate(&mut machine.fs, &machine.drivers);
    let address = machine.ask(7, 16);
    machine.fs.serve(None);
    assert!(machine.worker().next().is_none());
    for (id, _, _) in asked {
        machine.worker().answer(id, &[1; 16]);
    }
    for _ in 0..4 {
        machine.fs.serve(None);
    }
    assert_eq!(
        machine.drivers[REQUESTS].used(),
        [],
        "answers to the earlier driver"
    );
    let (id, _, _) = machine.worker().next().unwrap();
    machine.worker().answer(id, &[]);
    machine.fs.serve(None);
    assert_eq!(
        machine.answer(address),
        Answer {
            length: 16,
            error: 0,
            id: 7
        }
    );
}

#[test]
fn a_pause_waits_for_answers() {
    let mut machine = Machine::new();
    machine.ask(1, 16);
    machine.ask(2, 16);
    machine.fs.serve(None);
    let worker = machine.worker.take().unwrap();
    let thread = std::thread::spawn(move || {
        for _ in 0..2 {
            let (id, _, _) = worker.next().unwrap();
            worker.answer(id, &[]);
        }
        worker
    });
    machine.fs.pause();
    assert_eq!(machine.drivers[REQUESTS].used().len(), 2);
    assert_eq!(machine.fs.queues()[REQUESTS].next_available, 2);
    // Nor does one that is gone hold it up.
    machine.fs.resume().unwrap();
    machine.ask(3, 16);
    machine.fs.serve(None);
    drop(thread.join().unwrap());
    machine.fs.pause();
    assert_eq!(machine.drivers[REQUESTS].used().len(), 3);
}

#[test]
fn hostile_rings_do_no_harm() {
    let factor = std::env::var("RVM_TEST_ROUNDS").map_or(1, |text| text.parse().unwrap());
    let mut random = Random::new(26);
    let memory = crate::memory::allocate(4).unwrap();
    let drivers = [0, 1].map(|index| Driver::in_memory(memory.clone(), 8, index));
    let (mut fs, mut worker) = device("shared");
    for round in 0..3000 * factor {
        let rings = drivers.iter().map(|driver| {
            let header = |random: &mut Random| request(random.one_of(&[LOOKUP, FORGET, WRITE]), 1, &[0; 24]);
            hostile_ring(driver, header, &mut random)
        });
        let activation = Activation {
            features: 0,
            memory: memory.clone(),
            rings: rings.collect(),
            interrupt: Arc::new(Interrupt::of_test(EventFd::new(0).unwrap())),
        };
        fs.activate(activation).unwrap();
        for _ in 0..3 {
            fs.serve(None);
            // A worker that mostly answers, with nonsense now and then.
            while let Some((id, opcode, _)) = worker.next() {
                if opcode != FORGET {
                    let body = random.one_of(&[0, 0, 8, 100, 5000]);
                    let error = random.one_of(&[0, 0, 0, -2, i32::MIN]);
                    let length = u32::try_from(16 + body).unwrap();
                    // The device may have had enough.
                    let _ = worker.try_say(Answer { length, error, id }, &vec![3; body]);
                }
            }
        }
        fs.reset();
        if round % 10 == 9 {
            (fs, worker) = device("shared");
        }
    }
}
