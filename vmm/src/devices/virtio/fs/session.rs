//! The device's end of the worker's socket, and the requests that the worker has not answered yet.
//!
//! A message is one packet of a `SOCK_SEQPACKET` socket, so that several threads of a worker can read from one socket and
//! nobody has to find the beginning of a message. It goes between guest memory and the socket without a buffer in
//! between. Requests are numbered here, not by the guest, so that an answer names a request that waits or is no answer.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};

use super::message::{Answer, OUT_HEADER_BYTES, Request};
use crate::devices::virtio::chain::{Buffers, ChainError, Extents};
use crate::memory::{GuestMemory, VolatileSlice};
use crate::sys;

/// Most requests that wait for answers, of earlier drivers too. Linux has rarely more than 12 (`max_background`) and one
/// for each thread that waits for a file.
const MAX_WAITING: usize = 64;

/// Where an answer goes.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Number of the queue.
    pub(super) queue: usize,
    /// Index of the chain.
    pub(super) head: u16,
    /// The driver's number of the request.
    pub(super) id: u64,
    /// What the answer is written to.
    pub(super) writable: Extents,
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// The worker has it.
    Yes,
    /// There is no room on the socket now.
    NoRoom,
    /// It cannot be served: this error number.
    Failed(i32),
}

/// An answer that was written to guest memory.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) queue: usize,
    pub(super) head: u16,
    pub(super) written: u32,
}

/// The connection to a worker.
#[derive(Debug)]
pub(super) struct Session {
    /// Open as long as the device, so that its number does not come to mean something else to who watches it.
    socket: OwnedFd,
    /// The worker is gone, or has sent what is no answer. It is not heard again.
    lost: bool,
    /// By the device's number; `None` if the driver that asked is gone.
    waiting: BTreeMap<u64, Option<Waiting>>,
    /// A request has found no room on the socket since that was forgotten.
    full: bool,
    next_id: u64,
}

impl Session {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            lost: false,
            waiting: BTreeMap::new(),
            full: false,
            next_id: 1,
        }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether there is no worker any more.
    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether another request may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < MAX_WAITING
    }

    /// Whether a request has found no room on the socket since [`Session::forget_full`].
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// Each queue is about to be tried again that has a request which found no room.
    pub(super) fn forget_full(&mut self) {
        self.full = false;
    }

    /// The other end of the socket is closed. What it said before can still be heard where somebody waits for it.
    pub(super) fn hung_up(&mut self) {
        // Giving it up is an event of the socket's as well.
        if !self.lost && self.waiting.is_empty() {
            self.lose();
        }
    }

    /// Whether the driver waits for answers.
    pub(super) fn is_busy(&self) -> bool {
        self.waiting.values().any(Option::is_some)
    }

    /// Sends a request whose head was taken off `body`. The answer will go to `waiting`, if there is to be one.
    pub(super) fn send(
        &mut self,
        mut request: Request,
        body: &Buffers<'_>,
        waiting: Option<Waiting>,
    ) -> Sent {
        if self.lost {
            return Sent::Failed(libc::EIO);
        }
        let id = self.next_id;
        request.set_id(id);
        let mut slices = vec![VolatileSlice::from(request.0.as_mut_slice())];
        slices.extend(body.slices());
        let bytes: usize = slices.iter().map(VolatileSlice::len).sum();
        match sys::send(self.socket(), &slices) {
            Ok(sent) if sent == bytes => {
                self.next_id += 1;
                if waiting.is_some() {
                    self.waiting.insert(id, waiting);
                }
                Sent::Yes
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.full = true;
                Sent::NoRoom
            }
            // The host has no memory for it now.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM)) => {
                Sent::Failed(libc::ENOMEM)
            }
            _ => {
                self.lose();
                Sent::Failed(libc::EIO)
            }
        }
    }

    /// Takes the next answer to the driver, if there is one; where the worker is lost, each request that waits is
    /// answered with an error. With `wait`, waits for an answer as long as there is a worker. What a worker says or does
    /// while no request waits is found with the next request.
    ///
    /// # Errors
    /// [`ChainError`], see [`Extents::resolve`].
    pub(super) fn receive(
        &mut self,
        memory: &GuestMemory,
        wait: bool,
    ) -> Result<Option<Answered>, ChainError> {
        loop {
            if self.lost {
                return self.fail_next(memory);
            }
            let id = match (self.waiting.first_key_value(), self.waiting.len()) {
                (None, _) => return Ok(None),
                // Mostly so, and a system call less.
                (Some((id, _)), 1) if !wait => *id,
                _ => match peek(self.socket(), wait) {
                    Ok(None) => return Ok(None),
                    Ok(Some(id)) => id,
                    Err(NoAnswer) => {
                        self.lose();
                        continue;
                    }
                },
            };
            match self.deliver(memory, id)? {
                Delivered::ToDriver(answered) => return Ok(Some(answered)),
                Delivered::Nothing => return Ok(None),
                Delivered::Nobody => {}
                Delivered::Refused => self.lose(),
            }
        }
    }

    /// Receives the answer to request `id`, which has to be the next one.
    fn deliver(&mut self, memory: &GuestMemory, id: u64) -> Result<Delivered, ChainError> {
        let Some(waiting) = self.waiting.get(&id) else {
            return Ok(Delivered::Refused);
        };
        let writable = waiting.as_ref().map(|waiting| waiting.writable.resolve(memory));
        let writable = writable.transpose()?.unwrap_or_default();
        let parts = writable.split_at(OUT_HEADER_BYTES);
        let mut head = [0; OUT_HEADER_BYTES];
        let mut slices = vec![VolatileSlice::from(head.as_mut_slice())];
        slices.extend(parts.iter().flat_map(|(_, body)| body.slices()));
        // What does not fit is thrown away with the packet, but counted.
        let received = match sys::receive(self.socket(), &slices, RecvFlags::TRUNC) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Delivered::Nothing),
            Err(_) => return Ok(Delivered::Refused),
        };
        let Some(answer) = Answer::parse(&head, received).filter(|answer| answer.id == id) else {
            return Ok(Delivered::Refused);
        };
        let Some(waiting) = waiting else {
            self.waiting.remove(&id);
            return Ok(Delivered::Nobody);
        };
        let (Some((space, _)), true) = (parts, received <= writable.len()) else {
            return Ok(Delivered::Refused);
        };
        let answered = Answered {
            queue: waiting.queue,
            head: waiting.head,
            written: answer.length,
        };
        space.copy_from(
            &Answer {
                id: waiting.id,
                ..answer
            }
            .to_bytes(),
        );
        self.waiting.remove(&id);
        Ok(Delivered::ToDriver(answered))
    }

    /// Gives the worker up. If it is still there, it sees the end of its socket, and ends.
    fn lose(&mut self) {
        self.lost = true;
        // Fails only where the other end is closed already.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    /// Answers a request that waits with an error. Nobody else will.
    fn fail_next(&mut self, memory: &GuestMemory) -> Result<Option<Answered>, ChainError> {
        while let Some((_, waiting)) = self.waiting.pop_first() {
            if let Some(waiting) = waiting {
                let answer = Answer::of_error(libc::EIO, waiting.id);
                waiting.writable.resolve(memory)?.copy_from(&answer.to_bytes());
                return Ok(Some(Answered {
                    queue: waiting.queue,
                    head: waiting.head,
                    written: answer.length,
                }));
            }
        }
        Ok(None)
    }

    /// The driver is gone. The worker's answers to it will be thrown away.
    pub(super) fn forget_driver(&mut self) {
        for waiting in self.waiting.values_mut() {
            *waiting = None;
        }
        self.full = false;
    }
}

enum Delivered {
    ToDriver(Answered),
    /// There is no answer yet.
    Nothing,
    /// To a driver that is gone.
    Nobody,
    /// It answers no request, or is longer than the request allows. It may have been written to the request's buffers in
    /// part.
    Refused,
}

/// The worker is gone, or has sent something else than an answer.
struct NoAnswer;

/// Which request the next answer is to; it stays on the socket.
fn peek(socket: BorrowedFd<'_>, wait: bool) -> Result<Option<u64>, NoAnswer> {
    let flags = RecvFlags::PEEK | RecvFlags::TRUNC;
    let flags = if wait { flags } else { flags | RecvFlags::DONTWAIT };
    let mut head = [0; OUT_HEADER_BYTES];
    loop {
        match recv(socket, &mut head, flags) {
            // Of a shorter one, what is missing stays zero.
            Ok((_, length)) => {
                let answer = Answer::parse(&head, length).ok_or(NoAnswer)?;
                return Ok(Some(answer.id));
            }
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(_) => return Err(NoAnswer),
        }
    }
}
