//! The network device's queues under a hostile driver, between it and a wire that any frame may come from.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::time::Instant;

use super::queue::{self, HEADER_BYTES, Link, MAX_FRAME_BYTES, Receiver};
use super::tap::Port;
use super::worker::Counters;
use crate::bus::lock;
use crate::config::{LimitsConfig, RateConfig};
use crate::devices::limiter::Limiter;
use crate::fuzz::{Input, Permit, memory, scene};
use crate::memory::VolatileSlice;

/// What a port answers, one call after the other.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// A frame of this length with its header, or room for one.
    Frame(usize),
    /// Not now.
    Busy,
    /// Never again.
    Gone,
}

/// A port that takes no system call.
#[derive(Debug)]
struct Wire {
    answers: Mutex<VecDeque<Answer>>,
    /// Only something that can be watched; nobody does.
    descriptor: io::Stderr,
}

impl Wire {
    fn new(input: &mut Input<'_>) -> Self {
        let answer = |input: &mut Input<'_>| match input.byte() {
            0..0x80 => Answer::Frame(HEADER_BYTES + usize::from(input.byte())),
            0x80..0xa0 => Answer::Frame(usize::from(input.byte()) % 16),
            0xa0..0xc0 => Answer::Frame(usize::from(input.half())),
            0xc0..0xe0 => Answer::Frame(MAX_FRAME_BYTES + 8 - usize::from(input.byte()) % 16),
            0xe0..0xf0 => Answer::Busy,
            _ => Answer::Gone,
        };
        let answers = (0..input.below(12)).map(|_| answer(input)).collect();
        Self {
            answers: Mutex::new(answers),
            descriptor: io::stderr(),
        }
    }

    fn answer(&self) -> io::Result<usize> {
        match lock(&self.answers).pop_front() {
            Some(Answer::Frame(bytes)) => Ok(bytes),
            Some(Answer::Gone) => Err(io::ErrorKind::NotFound.into()),
            Some(Answer::Busy) | None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Port for Wire {
    fn receive(&self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        static FRAME: [u8; 2 * MAX_FRAME_BYTES] = [b'z'; 2 * MAX_FRAME_BYTES];
        assert!(into.len() <= 1024, "a system call takes no more");
        let mut left = self.answer()?;
        let mut received = 0;
        for slice in into {
            let here = left.min(slice.len());
            slice.copy_from(&FRAME[..here]);
            left -= here;
            received += here;
        }
        Ok(received)
    }

    fn send(&self, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let bytes = from.iter().map(VolatileSlice::len).sum();
        assert!((HEADER_BYTES..=MAX_FRAME_BYTES).contains(&bytes), "{bytes} bytes");
        self.answer().map(|_| bytes)
    }

    fn set_features(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_attached(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

/// A receive or transmit queue, for some turns.
pub(crate) fn queue(data: &[u8]) {
    let (mut input, memory) = (Input::new(data), memory());
    let options = input.byte();
    let wire = Wire::new(&mut input);
    let limits = match options & 0x30 {
        0x10 => LimitsConfig {
            bytes: Some(RateConfig {
                per_second: u64::from(input.byte()) + 1,
                burst: u64::from(input.half()) + 1,
            }),
            packets: None,
        },
        _ => LimitsConfig::default(),
    };
    let (limiter, counters) = (Limiter::new(limits, Instant::now()), Counters::default());
    let link = Link {
        port: &wire,
        limiter: &limiter,
        counters: &counters,
        clock: Instant::now,
    };
    let Some(mut scene) = scene(&mut input, &memory, 0, |_| vec![0; HEADER_BYTES]) else {
        return;
    };
    let permit = Permit::none(&memory).and(&scene.state);
    // Nonsense is an error, sense is served.
    if options & 1 != 0 {
        let mut receiver = Receiver::new(&memory, options & 2 != 0);
        let turns = 1 + options / 64;
        let broken = (0..turns).any(|_| receiver.turn(&mut scene.ring, link).is_err());
        if !broken {
            receiver.stop(&mut scene.ring);
            let unused = scene.ring.state();
            let taken = unused.next_available.wrapping_sub(scene.state.next_available);
            let given = unused.next_used.wrapping_sub(scene.state.next_used);
            assert_eq!(taken, given, "what was not used is back");
        }
    } else {
        let _ = queue::transmit(&mut scene.ring, &memory, link);
    }
    permit.check(&memory);
}

/// The control queue.
pub(crate) fn control(data: &[u8]) {
    let (mut input, memory) = (Input::new(data), memory());
    let most = u16::from(input.below(9));
    let command = |input: &mut Input<'_>| {
        let any = input.byte();
        let mut command = match any {
            0..0xc0 => vec![4, 0],
            _ => vec![input.byte(), input.byte()],
        };
        command.extend(u16::from(any % 12).to_le_bytes());
        command
    };
    let Some(mut scene) = scene(&mut input, &memory, 0, command) else {
        return;
    };
    let permit = Permit::none(&memory).and(&scene.state);
    let _ = queue::control(&mut scene.ring, &memory, |pairs| (1..=most).contains(&pairs));
    permit.check(&memory);
}
