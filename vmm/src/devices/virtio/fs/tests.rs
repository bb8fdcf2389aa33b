//! The device between a driver and a worker that are both played here, and both mean harm.

use std::io;
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, SubscriberOps as _};
use rustix::fs::MemfdFlags;
use vmm_sys_util::eventfd::EventFd;

use super::exchange::{self, SLOTS, exchange};
use super::message::{Answer, IN_HEADER_BYTES, MAX_MESSAGE_BYTES, Request};
use super::{Fs, FsSubscriber};
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

/// The worker's side.
pub(crate) struct Worker(exchange::Worker);

impl Worker {
    /// The next request: its slot and its opcode, and what follows the head.
    pub(crate) fn next(&self) -> Option<(u8, u32, Vec<u8>)> {
        let slot = match self.0.next() {
            Ok(slot) => slot?, // or the end
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => panic!("{error}"),
        };
        let mut bytes = vec![0; MAX_MESSAGE_BYTES];
        slot.memory().copy_to(&mut bytes);
        let request = Request(bytes[..IN_HEADER_BYTES].try_into().unwrap());
        let body = bytes[IN_HEADER_BYTES..request.length() as usize].to_vec();
        Some((slot.index(), request.opcode(), body))
    }

    fn is_told_to_end(&self) -> bool {
        self.0.next().is_ok_and(|slot| slot.is_none())
    }

    pub(crate) fn answer(&self, slot: u8, body: &[u8]) {
        let length = u32::try_from(16 + body.len()).unwrap();
        self.say(slot, Answer { length, error: 0 }, body);
    }

    /// Answers in any slot; fails if the device does not listen any more.
    fn say(&self, slot: u8, answer: Answer, body: &[u8]) {
        if let Some(slot) = self.0.slot(slot) {
            slot.memory().offset(16).unwrap().copy_from(body);
            // The number is the driver's, whatever the worker says.
            slot.memory().copy_from(&answer.to_bytes(u64::MAX));
        }
        self.0.say(slot).unwrap();
    }
}

pub(crate) fn tag(text: &str) -> FsTag {
    FsTag::try_from(text.to_owned()).unwrap()
}

/// A device and its worker.
pub(crate) fn device(name: &str) -> (Fs, Worker) {
    let (ours, theirs) = exchange().unwrap();
    let worker = Worker(exchange::Worker::of_test(theirs));
    (Fs::new(tag(name), ours).unwrap(), worker)
}

/// A whole request.
pub(crate) fn request(opcode: u32, id: u64, body: &[u8]) -> Vec<u8> {
    let mut request = Request([0; IN_HEADER_BYTES]);
    let length = u32::try_from(IN_HEADER_BYTES + body.len()).unwrap();
    request.0[..4].copy_from_slice(&length.to_le_bytes());
    request.0[4..8].copy_from_slice(&opcode.to_le_bytes());
    request.0[8..16].copy_from_slice(&id.to_le_bytes());
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

    /// The answer's head at `address`, and the number of the request.
    fn answer(&self, address: u64) -> (Answer, u64) {
        let bytes = self.drivers[REQUESTS].read(address, 16);
        let id = u64::from_le_bytes(bytes[8..].try_into().unwrap());
        (Answer::parse(&bytes.try_into().unwrap()).unwrap(), id)
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
fn other_descriptors_are_refused() {
    let refused = |change: fn(&mut exchange::Ends)| {
        let (mut ours, _theirs) = exchange().unwrap();
        change(&mut ours);
        Fs::new(tag("x"), ours).unwrap_err();
    };
    refused(|ends| ends.memory = tempfile::tempfile().unwrap().into());
    refused(|ends| ends.memory = rustix::fs::memfd_create("x", MemfdFlags::empty()).unwrap());
    refused(|ends| ends.requests = tempfile::tempfile().unwrap().into());
    refused(|ends| ends.answers = std::os::unix::net::UnixStream::pair().unwrap().0.into());
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
        assert_eq!(machine.answer(address), (Answer { length: 66, error: 0 }, id));
        let body = machine.drivers[REQUESTS].read(address + 16, 51);
        assert_eq!(body[..50], [b'a' + u8::try_from(index).unwrap(); 50]);
        assert_eq!(body[50], 0);
    }
    assert_eq!(machine.interrupt.status(), 1);
}

/// What a worker says to the second of two requests is no answer: both are told of an error, and so is all that follows.
/// The driver and its queues are well.
fn check_lost(say: impl FnOnce(&mut Machine, u8)) {
    let mut machine = Machine::new();
    let addresses = [machine.ask(1, 16), machine.ask(2, 16)];
    machine.fs.serve(None);
    machine.worker().next().unwrap();
    let (slot, _, _) = machine.worker().next().unwrap();
    say(&mut machine, slot);
    machine.fs.serve(None);
    let later = machine.ask(3, 16);
    machine.drivers[HIGH_PRIORITY].request(&[&request(FORGET, 0, &[1; 8])], &[]);
    machine.fs.serve(None);
    let mut used = machine.drivers[REQUESTS].used();
    used.sort_unstable();
    assert_eq!(used, [(0, 16), (3, 16), (6, 16)]);
    let failed = Answer::of_error(libc::EIO);
    for (address, id) in addresses.into_iter().chain([later]).zip([1, 2, 3]) {
        assert_eq!(machine.answer(address), (failed, id));
    }
    assert_eq!(machine.drivers[HIGH_PRIORITY].used().len(), 1);
    assert!(!machine.interrupt.needs_reset());
    // A worker that is still there learns of it.
    if let Some(worker) = &machine.worker {
        assert!(worker.is_told_to_end());
    }
    // Also when the driver begins anew.
    machine.fs.reset();
    machine.drivers.iter().for_each(Driver::forget);
    activate(&mut machine.fs, &machine.drivers);
    let address = machine.ask(4, 16);
    machine.fs.serve(None);
    assert_eq!(machine.answer(address), (failed, 4));
}

#[test]
fn a_worker_that_is_gone_fails_requests() {
    check_lost(|machine, _| machine.worker = None);
}

#[test]
fn a_worker_that_makes_no_sense_is_not_heard_again() {
    // Slots without a request, and those that there are not.
    let slots = u8::try_from(SLOTS).unwrap();
    for other in [slots - 1, slots, u8::MAX] {
        check_lost(|machine, _| machine.worker().answer(other, &[]));
    }
    let of = |length: u32, error: i32| {
        check_lost(move |machine, slot| machine.worker().say(slot, Answer { length, error }, &[1; 40]));
    };
    // Longer than the request has room for, than any message, shorter than a head.
    of(33, 0);
    of(u32::try_from(MAX_MESSAGE_BYTES).unwrap() + 1, 0);
    of(u32::MAX, 0);
    of(15, 0);
    of(0, 0);
    // Errors that are none.
    of(16, 5);
    of(16, -4096);
    of(24, -5);
}

#[test]
fn a_request_is_answered_once() {
    let mut machine = Machine::new();
    let (first, second) = (machine.ask(1, 16), machine.ask(2, 16));
    machine.fs.serve(None);
    let (slot, _, _) = machine.worker().next().unwrap();
    machine.worker().answer(slot, &[7; 16]);
    machine.worker().answer(slot, &[8; 16]);
    machine.fs.serve(None);
    assert_eq!(machine.answer(first).0.length, 32);
    assert_eq!(machine.answer(second), (Answer::of_error(libc::EIO), 2));
}

#[test]
fn a_worker_that_changes_its_answer_afterwards_changes_nothing() {
    let mut machine = Machine::new();
    let address = machine.ask(1, 16);
    machine.fs.serve(None);
    let (slot, _, _) = machine.worker().next().unwrap();
    machine.worker().answer(slot, &[7; 16]);
    machine.fs.serve(None);
    machine
        .worker()
        .0
        .slot(slot)
        .unwrap()
        .memory()
        .copy_from(&[9_u8; 64]);
    assert_eq!(machine.answer(address), (Answer { length: 32, error: 0 }, 1));
    assert_eq!(machine.drivers[REQUESTS].read(address + 16, 16), [7; 16]);
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
    // More than there are slots.
    let count = 100;
    for id in 0..count {
        let queue = if id % 2 == 0 { REQUESTS } else { HIGH_PRIORITY };
        looped.drivers[queue].request(&[&request(LOOKUP, id, b"")], &[16]);
    }
    looped.notify(REQUESTS);
    looped.notify(HIGH_PRIORITY);
    for _ in 0..count {
        looped.turn();
        let (slot, _, _) = looped.worker().next().expect("nobody comes back");
        looped.worker().answer(slot, &[]);
    }
    looped.turn();
    let used = [REQUESTS, HIGH_PRIORITY].map(|queue| looped.drivers[queue].used().len());
    assert_eq!(used, [50, 50]);
}

#[test]
fn requests_that_nobody_waits_for_make_room_as_they_are_done() {
    let mut looped = Looped::new();
    for _ in 0..100 {
        looped.drivers[HIGH_PRIORITY].request(&[&request(FORGET, 0, &[1; 8])], &[]);
    }
    looped.notify(HIGH_PRIORITY);
    looped.turn();
    let mut asked: Vec<_> = std::iter::from_fn(|| looped.worker().next()).collect();
    assert_eq!(asked.len(), SLOTS);
    let mut done = 0;
    while let Some((slot, _, _)) = asked.pop() {
        done += 1;
        looped.worker().0.say(slot).unwrap();
        looped.turn();
        asked.extend(looped.worker().next());
    }
    assert_eq!((done, looped.drivers[HIGH_PRIORITY].used().len()), (100, 100));
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
fn a_worker_that_ends_behind_an_answer_is_known_to_have_ended() {
    let mut looped = Looped::new();
    for id in 0..2 {
        looped.drivers[REQUESTS].request(&[&request(LOOKUP, id, b"")], &[16]);
    }
    looped.notify(REQUESTS);
    looped.turn();
    let (slot, _, _) = looped.worker().next().unwrap();
    looped.worker().answer(slot, &[]);
    // Both before anybody looks.
    looped.worker = None;
    looped.turn();
    assert_eq!(looped.drivers[REQUESTS].used().len(), 2);
    assert!(
        lock(&looped.device)
            .backend()
            .starts_with("a worker that is lost")
    );
}

#[test]
fn a_worker_that_is_lost_with_all_slots_fails_what_comes_then() {
    let mut looped = Looped::new();
    for id in 0..100 {
        looped.drivers[REQUESTS].request(&[&request(LOOKUP, id, b"")], &[16]);
    }
    looped.notify(REQUESTS);
    looped.turn();
    looped.worker = None;
    looped.turn();
    assert_eq!(looped.drivers[REQUESTS].used().len(), 100);
}

#[test]
fn requests_before_nonsense_are_not_the_next_driver_s() {
    let mut machine = Machine::new();
    machine.ask(1, 16);
    machine.drivers[REQUESTS].request(&[&[0; 8]], &[16]);
    machine.fs.serve(None);
    assert!(machine.interrupt.needs_reset());
    assert!(machine.worker().next().is_some(), "it was told at once");
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
    assert_eq!(machine.answer(address), (Answer { length: 16, error: 0 }, 7));
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
            while let Some((slot, opcode, _)) = worker.next() {
                let body = random.one_of(&[0, 0, 8, 100, 5000]);
                let error = random.one_of(&[0, 0, 0, -2, i32::MIN]);
                let length = u32::try_from(16 + body).unwrap();
                assert!(opcode == FORGET || opcode == LOOKUP || opcode == WRITE);
                worker.say(slot, Answer { length, error }, &vec![3; body]);
            }
        }
        fs.reset();
        if round % 10 == 9 {
            (fs, worker) = device("shared");
        }
    }
}
