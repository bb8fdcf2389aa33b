//! The file system device between a hostile driver and a hostile worker.

use super::exchange::{self, exchange};
use super::message::{Answer, IN_HEADER_BYTES, MAX_MESSAGE_BYTES, OUT_HEADER_BYTES, Request};
use super::queue::Queues;
use super::session::Session;
use crate::fuzz::{Input, Permit, memory, scene};

/// What the worker does before an input ends.
const MOST_STEPS: usize = 12;

/// A request's head, and some of what follows it.
fn request(input: &mut Input<'_>) -> Vec<u8> {
    let mut request = Request([0; IN_HEADER_BYTES]);
    let length = match input.byte() {
        any @ 0..0xc0 => 40 + u32::from(any % 32),
        0xc0..0xf0 => 44,
        _ => input.number(),
    };
    let opcode = input.one_of(&[1_u32, 2, 3, 15, 16, 26, 36, 42, 0, u32::MAX]);
    request.0[..4].copy_from_slice(&length.to_le_bytes());
    request.0[4..8].copy_from_slice(&opcode.to_le_bytes());
    request.0[8] = input.byte();
    request.0.to_vec()
}

pub(crate) fn queue(data: &[u8]) {
    let (mut input, memory) = (Input::new(data), memory());
    let (ours, theirs) = exchange().unwrap();
    let (mut session, mut worker) = (Session::new(ours).unwrap(), Worker::new(theirs));
    let scenes = [0, 1].map(|index| scene(&mut input, &memory, index, request));
    let [Some(first), Some(second)] = scenes else {
        return;
    };
    let permit = Permit::none(&memory).and(&first.state).and(&second.state);
    let mut queues = Queues::new(vec![first.ring, second.ring]);
    for _ in 0..MOST_STEPS {
        (0..2).for_each(|index| queues.look_at(index));
        // Nonsense of the driver is an error, nonsense of the worker the end of the worker.
        let heard = queues.give_back(&memory, &mut session);
        if heard.is_err() || queues.take(&memory, &mut session).is_err() || input.is_empty() {
            break;
        }
        worker.step(&mut input);
        if input.byte() & 0x3f == 0x3f {
            session.forget_driver();
        }
    }
    permit.check(&memory);
}

/// The worker's side, and the slots of requests that it has not answered.
struct Worker {
    machine: Option<exchange::Worker>,
    asked: Vec<u8>,
}

impl Worker {
    fn new(ends: exchange::Ends) -> Self {
        Self {
            machine: Some(exchange::Worker::of_test(ends)),
            asked: Vec::new(),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let Some(machine) = &self.machine else { return };
        while let Ok(Some(slot)) = machine.next() {
            let mut head = [0; IN_HEADER_BYTES];
            slot.memory().copy_to(&mut head);
            let length = usize::try_from(Request(head).length()).unwrap();
            assert!(
                (IN_HEADER_BYTES..=MAX_MESSAGE_BYTES).contains(&length),
                "a whole request"
            );
            assert!(!self.asked.contains(&slot.index()), "a slot that is in use");
            self.asked.push(slot.index());
        }
        let any = input.byte();
        let chosen = usize::from(input.byte());
        let index = match chosen.checked_rem(self.asked.len()) {
            Some(index) if any < 0xc0 => self.asked.swap_remove(index),
            Some(index) if any < 0xd0 => self.asked[index],
            _ => input.byte(),
        };
        let body = match input.byte() {
            short @ 0..0xc0 => usize::from(short),
            0xc0..0xe0 => usize::from(input.half()) % 0x2000,
            0xe0..0xf0 => 0,
            _ => MAX_MESSAGE_BYTES - 8 - usize::from(input.byte() % 16),
        };
        let mut answer = Answer {
            length: u32::try_from(OUT_HEADER_BYTES + body).unwrap(),
            error: 0,
        };
        match any & 0x1f {
            0x1d => answer.length = input.number(),
            0x1e => answer.error = -i32::from(input.byte()),
            0x1f => answer.error = i32::from(input.half()) - 0x8000,
            _ => {}
        }
        if any >= 0xf8 {
            self.machine = None;
            return;
        }
        if let Some(slot) = machine.slot(index) {
            let message = [&answer.to_bytes(0)[..], &vec![b'w'; body]].concat();
            slot.memory().copy_from(&message);
        }
        machine.say(index).unwrap();
    }
}
