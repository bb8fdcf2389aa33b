//! Sends events to the supervisor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use rustix::net::SendFlags;
use rustix::time::{ClockId, clock_gettime};

use crate::bus::lock;
use crate::event::Event;

/// The supervisor's socket, and the clock all events are stamped by.
#[derive(Debug)]
pub struct Reporter {
    socket: OwnedFd,
    /// Lines must not mix.
    writing: Mutex<()>,
    start: Start,
    last_doorbell: AtomicU8,
}

/// When the machine's process began, by two clocks.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    instant: Instant,
    monotonic_us: u64,
}

impl Start {
    /// Now. Must come before seccomp filters: to find the clock may need a file.
    #[must_use]
    pub fn now() -> Self {
        let monotonic = clock_gettime(ClockId::Monotonic);
        Self {
            instant: Instant::now(),
            monotonic_us: monotonic.tv_sec.unsigned_abs() * 1_000_000
                + monotonic.tv_nsec.unsigned_abs() / 1000,
        }
    }
}

impl Reporter {
    /// Reports on `socket`, a Unix stream socket, with stamps that count from `start`.
    #[must_use]
    pub fn new(socket: OwnedFd, start: Start) -> Self {
        Self {
            socket,
            writing: Mutex::new(()),
            start,
            last_doorbell: AtomicU8::new(0),
        }
    }

    /// Microseconds since the start.
    #[must_use]
    pub fn elapsed_us(&self) -> u64 {
        u64::try_from(self.start.instant.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Now in microseconds of `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn monotonic_us(&self) -> u64 {
        self.start.monotonic_us.saturating_add(self.elapsed_us())
    }

    /// Reports a byte from the doorbell port. It is lost if the supervisor does not read: a guest that rings without end
    /// must not hold up its own machine, much less its last message.
    pub fn doorbell(&self, value: u8) {
        self.last_doorbell.store(value, Ordering::Relaxed);
        self.send(
            &Event::Doorbell {
                value,
                us: self.elapsed_us(),
            },
            SendFlags::DONTWAIT,
        );
    }

    /// The byte that was rung last, 0 before the first.
    #[must_use]
    pub fn last_doorbell(&self) -> u8 {
        self.last_doorbell.load(Ordering::Relaxed)
    }

    /// Reports an event that must arrive; waits for a supervisor that is slow to read.
    pub fn send_reliably(&self, event: &Event) {
        self.send(event, SendFlags::empty());
    }

    fn send(&self, event: &Event, flags: SendFlags) {
        let Ok(mut line) = serde_json::to_vec(event) else {
            return;
        };
        line.push(b'\n');
        let _writing = lock(&self.writing);
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            // The supervisor's absence is noticed by the event loop, as end of file on the same socket. A Unix stream
            // socket takes a message as short as a doorbell's whole or not at all.
            match rustix::net::send(&self.socket, rest, flags | SendFlags::NOSIGNAL) {
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}

impl AsFd for Reporter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_guest_that_rings_without_end_does_not_block() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let reporter = Reporter::new(ours.into(), Start::now());
        for _ in 0..50_000 {
            reporter.doorbell(7);
        }
        assert_eq!(reporter.last_doorbell(), 7);
        let reader = std::thread::spawn(move || {
            BufReader::new(theirs)
                .lines()
                .map(|line| serde_json::from_str::<Event>(&line.unwrap()).unwrap())
                .last()
        });
        reporter.send_reliably(&Event::Running {
            setup_us: 1,
            monotonic_us: 2,
        });
        drop(reporter);
        assert_eq!(
            reader.join().unwrap(),
            Some(Event::Running {
                setup_us: 1,
                monotonic_us: 2,
            })
        );
    }
}
