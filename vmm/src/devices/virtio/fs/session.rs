//! The device's side of what it shares with the worker, and the requests that the worker has not answered yet.
//!
//! A request is known by the slot in which it is, so that an answer is to a request that waits or is no answer. The guest's own
//! numbers mean nothing here.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::exchange::{Ends, SLOTS, Slots, use_pipe};
use super::message::{Answer, OUT_HEADER_BYTES, Request};
use crate::devices::virtio::chain::{Buffers, ChainError, Extents};
use crate::memory::GuestMemory;

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

impl Waiting {
    /// Writes the answer's head, with the driver's number.
    fn finish(&self, answer: Answer, writable: &Buffers<'_>) -> Answered {
        writable.copy_from(&answer.to_bytes(self.id));
        Answered {
            queue: self.queue,
            head: self.head,
            written: answer.length,
        }
    }
}

/// An answer that was written to guest memory.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) queue: usize,
    pub(super) head: u16,
    pub(super) written: u32,
}

/// What a slot is used for.
#[derive(Debug, Default)]
enum Use {
    #[default]
    Free,
    /// A request whose answer nobody waits for: it has none, or the driver that asked is gone.
    Unheard,
    Waiting(Waiting),
}

/// The connection to a worker.
#[derive(Debug)]
pub(super) struct Session {
    slots: Slots,
    /// `None` once the worker is gone, or has said what makes no sense. It is not heard again, and if it is still there, finds that
    /// there will be no more requests, and ends.
    requests: Option<OwnedFd>,
    /// Open as long as the device, so that its number does not come to mean something else to who watches it.
    answers: OwnedFd,
    hung_up: bool,
    uses: [Use; SLOTS],
    /// The one that was used last comes first: it is in the processor's cache, and others need no memory.
    free: Vec<u8>,
    /// Slots with requests of which the worker was not told yet.
    untold: Vec<u8>,
}

impl Session {
    /// Takes the machine's side over.
    ///
    /// # Errors
    /// `InvalidInput` where it is none, and those of `mmap(2)`.
    pub(super) fn new(ends: Ends) -> io::Result<Self> {
        use_pipe(&ends.requests, true)?;
        use_pipe(&ends.answers, true)?;
        let slots = Slots::map(ends.memory)?;
        let all = (0..=u8::MAX).filter(|index| slots.get(*index).is_some());
        let free = all.rev().collect();
        Ok(Self {
            slots,
            requests: Some(ends.requests),
            answers: ends.answers,
            hung_up: false,
            uses: std::array::from_fn(|_| Use::Free),
            free,
            untold: Vec::with_capacity(SLOTS),
        })
    }

    /// What is readable when there are answers.
    pub(super) fn answers(&self) -> BorrowedFd<'_> {
        self.answers.as_fd()
    }

    /// Whether there is no worker any more.
    pub(super) fn is_lost(&self) -> bool {
        self.requests.is_none()
    }

    /// Whether another request may be sent, or be refused because there is no worker.
    pub(super) fn has_room(&self) -> bool {
        self.is_lost() || !self.free.is_empty()
    }

    /// The worker has closed its side. What it said before is still to be heard, and nothing will tell of the end once more.
    pub(super) fn hung_up(&mut self) {
        self.hung_up = true;
    }

    /// Whether there is something to hear behind what was heard: at the end, that it is the end.
    pub(super) fn says_more(&self, heard: usize, most: usize) -> bool {
        heard == most || (heard > 0 && self.hung_up)
    }

    /// Whether the driver waits for answers.
    pub(super) fn is_busy(&self) -> bool {
        self.uses.iter().any(|slot| matches!(slot, Use::Waiting(_)))
    }

    /// Takes a request that `message` has, with this head. The worker hears of it with [`Session::tell`]. The answer will go to
    /// `waiting`, if there is to be one.
    ///
    /// # Errors
    /// Without a worker, the number of the error to answer with.
    pub(super) fn send(
        &mut self,
        head: &Request,
        message: &Buffers<'_>,
        waiting: Option<Waiting>,
    ) -> Result<(), i32> {
        if self.is_lost() {
            return Err(libc::EIO);
        }
        let index = self.free.pop().ok_or(libc::EIO)?;
        let slot = self.slots.get(index).ok_or(libc::EIO)?;
        message.copy_to_memory(&slot);
        // The guest may have changed what was looked at.
        slot.copy_from(&head.0);
        if let Some(place) = self.uses.get_mut(usize::from(index)) {
            *place = waiting.map_or(Use::Unheard, Use::Waiting);
        }
        self.untold.push(index);
        Ok(())
    }

    /// Tells the worker of all requests that it does not know of.
    pub(super) fn tell(&mut self) {
        if let (Some(requests), false) = (&self.requests, self.untold.is_empty()) {
            // The pipe has room for many more than there are slots.
            let told = rustix::io::retry_on_intr(|| rustix::io::write(requests, &self.untold));
            if told != Ok(self.untold.len()) {
                self.lose();
            }
        }
        self.untold.clear();
    }

    /// Hears which slots have answers, as many as fit; returns how many.
    pub(super) fn listen(&mut self, slots: &mut [u8]) -> usize {
        if self.is_lost() {
            return 0;
        }
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.answers, &mut *slots)) {
            Ok(count) if count > 0 => count,
            Err(Errno::AGAIN) => 0,
            // Its end, or an error.
            _ => {
                self.lose();
                0
            }
        }
    }

    /// Waits until there is something to hear, or the worker is gone.
    pub(super) fn wait(&self) {
        let mut answers = [PollFd::new(&self.answers, PollFlags::IN)];
        // What else than a signal could disturb it is found by who listens.
        let _ = rustix::io::retry_on_intr(|| poll(&mut answers, None));
    }

    /// Takes the answer in a slot to the driver, or an error where it makes no sense, and then the worker is lost. `None` if nobody
    /// waits for one.
    ///
    /// # Errors
    /// [`ChainError`], see [`Extents::resolve`].
    pub(super) fn deliver(
        &mut self,
        memory: &GuestMemory,
        index: u8,
    ) -> Result<Option<Answered>, ChainError> {
        let used = self.uses.get_mut(usize::from(index)).map(std::mem::take);
        let (Some(used), Some(slot)) = (used, self.slots.get(index)) else {
            self.lose();
            return Ok(None);
        };
        let waiting = match used {
            Use::Free => {
                self.lose();
                return Ok(None);
            }
            Use::Unheard => None,
            Use::Waiting(waiting) => Some(waiting),
        };
        self.free.push(index);
        let Some(waiting) = waiting else { return Ok(None) };
        let mut head = [0; OUT_HEADER_BYTES];
        slot.copy_to(&mut head);
        let writable = waiting.writable.resolve(memory)?;
        let answer = Answer::parse(&head).filter(|answer| answer.bytes() <= writable.len());
        let Some(answer) = answer else {
            self.lose();
            return Ok(Some(waiting.finish(Answer::of_error(libc::EIO), &writable)));
        };
        writable.copy_from_memory(&slot, answer.bytes());
        Ok(Some(waiting.finish(answer, &writable)))
    }

    /// Where the worker is lost, answers a request that waits with an error. Nobody else will.
    ///
    /// # Errors
    /// [`ChainError`], see [`Extents::resolve`].
    pub(super) fn fail_next(&mut self, memory: &GuestMemory) -> Result<Option<Answered>, ChainError> {
        if !self.is_lost() {
            return Ok(None);
        }
        let next = self.uses.iter_mut().find(|slot| matches!(slot, Use::Waiting(_)));
        let Some(Use::Waiting(waiting)) = next.map(std::mem::take) else {
            return Ok(None);
        };
        let writable = waiting.writable.resolve(memory)?;
        Ok(Some(waiting.finish(Answer::of_error(libc::EIO), &writable)))
    }

    /// Gives the worker up.
    fn lose(&mut self) {
        self.requests = None;
    }

    /// The driver is gone. The worker's answers to it will be thrown away.
    pub(super) fn forget_driver(&mut self) {
        for slot in &mut self.uses {
            if matches!(slot, Use::Waiting(_)) {
                *slot = Use::Unheard;
            }
        }
    }
}
