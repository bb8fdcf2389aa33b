//! Requests of the driver (section 5.11.6): a descriptor chain each, given back when the worker has answered.

use super::message::{Answer, IN_HEADER_BYTES, MAX_MESSAGE_BYTES, OUT_HEADER_BYTES, Request, has_answer};
use super::session::{Answered, Session, Waiting};
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::ring::{Outcome, Ring, RingError, RingState};
use crate::memory::GuestMemory;

/// Descriptors of a queue. The driver makes no request of more segments: 32 pages and the heads.
pub(super) const QUEUE_SIZE: u16 = 128;

/// Requests and answers of one queue before the event loop looks at other things: 4 MiB at most.
const MAX_MESSAGES: usize = 32;

/// The queues of an active device.
#[derive(Debug)]
pub(super) struct Queues(Vec<Queue>);

#[derive(Debug)]
struct Queue {
    ring: Ring,
    /// It may have requests of which the driver does not notify.
    unseen: bool,
    /// Something was given back since the driver was asked whether it wants to know.
    used: bool,
}

impl Queues {
    /// Queues that may have requests already.
    pub(super) fn new(rings: Vec<Ring>) -> Self {
        let queue = |ring| Queue {
            ring,
            unseen: true,
            used: false,
        };
        Self(rings.into_iter().map(queue).collect())
    }

    /// Where the queues are, in the order of their numbers.
    pub(super) fn state(&self) -> Vec<RingState> {
        self.0.iter().map(|queue| queue.ring.state()).collect()
    }

    /// The driver has notified a queue, or may have: whoever serves next looks at it.
    pub(super) fn look_at(&mut self, index: usize) {
        if let Some(queue) = self.0.get_mut(index) {
            queue.unseen = true;
        }
    }

    /// Moves answers to the driver, up to a bound.
    ///
    /// # Errors
    /// [`RingError`] if the driver broke a queue.
    pub(super) fn give_back(
        &mut self,
        memory: &GuestMemory,
        session: &mut Session,
    ) -> Result<Outcome, RingError> {
        let mut slots = [0; MAX_MESSAGES];
        let count = session.listen(&mut slots);
        // All of them are free now, also where the driver broke a queue.
        let deliver = |slot: &u8| match session.deliver(memory, *slot)? {
            Some(answered) => self.complete(&answered),
            None => Ok(()),
        };
        let delivered = slots.iter().take(count).map(deliver);
        delivered.fold(Ok(()), Result::and)?;
        self.fail_lost(memory, session)?;
        Ok(Outcome {
            signal: self.wants_interrupt()?,
            more: session.says_more(count, MAX_MESSAGES),
        })
    }

    /// Moves requests that nobody has seen to the worker, up to a bound.
    ///
    /// # Errors
    /// [`RingError`] if the driver broke a queue.
    pub(super) fn take(&mut self, memory: &GuestMemory, session: &mut Session) -> Result<Outcome, RingError> {
        let queues = self.0.iter_mut().enumerate();
        let taken = queues
            .filter(|(_, queue)| queue.unseen)
            .try_fold(false, |more, (index, queue)| {
                Ok::<_, RingError>(more | queue.take(memory, session, index)?)
            });
        // Also of requests before one that broke a queue: they are not to be the next driver's.
        session.tell();
        let more = taken?;
        self.fail_lost(memory, session)?;
        Ok(Outcome {
            signal: self.wants_interrupt()?,
            more,
        })
    }

    /// Waits until the worker has answered everything that the driver waits for.
    ///
    /// # Errors
    /// [`RingError`] if the driver broke a queue.
    pub(super) fn finish(
        &mut self,
        memory: &GuestMemory,
        session: &mut Session,
    ) -> Result<Outcome, RingError> {
        let mut signal = false;
        while session.is_busy() {
            session.wait();
            signal |= self.give_back(memory, session)?.signal;
        }
        Ok(Outcome { signal, more: false })
    }

    /// What a worker has that is lost has no answer but an error.
    fn fail_lost(&mut self, memory: &GuestMemory, session: &mut Session) -> Result<(), RingError> {
        while let Some(answered) = session.fail_next(memory)? {
            self.complete(&answered)?;
        }
        Ok(())
    }

    fn complete(&mut self, answered: &Answered) -> Result<(), RingError> {
        let queue = self.0.get_mut(answered.queue).ok_or(RingError::Invalid)?;
        queue.used = true;
        queue.ring.complete(answered.head, answered.written)
    }

    fn wants_interrupt(&mut self) -> Result<bool, RingError> {
        let mut wants = false;
        for queue in self.0.iter_mut().filter(|queue| queue.used) {
            queue.used = false;
            wants |= queue.ring.needs_interrupt()?;
        }
        Ok(wants)
    }
}

impl Queue {
    /// Moves requests to the worker, up to a bound; whether there are more.
    fn take(&mut self, memory: &GuestMemory, session: &mut Session, index: usize) -> Result<bool, RingError> {
        self.unseen = true;
        self.ring.disable_notifications(memory)?;
        let mut taken = 0;
        // Where there is no room, the driver is not asked to notify: an answer brings the event loop back.
        while session.has_room() {
            if taken == MAX_MESSAGES {
                return Ok(true);
            }
            let Some(chain) = self.ring.pop(memory)? else {
                if self.ring.enable_notifications(memory)? {
                    continue;
                }
                self.unseen = false;
                break;
            };
            taken += 1;
            let head = chain.head;
            if let Some(written) = submit(session, index, chain)? {
                self.ring.complete(head, written)?;
                self.used = true;
            }
        }
        Ok(false)
    }
}

/// Sends the request in `chain`, if it is whole. `None` if it waits for an answer, else how many bytes were written.
fn submit(session: &mut Session, queue: usize, chain: Chain<'_>) -> Result<Option<u32>, RingError> {
    let request = Request(
        chain
            .readable
            .read::<IN_HEADER_BYTES>()
            .ok_or(RingError::Malformed)?,
    );
    let length = usize::try_from(request.length()).unwrap_or(usize::MAX);
    let answered = has_answer(request.opcode());
    if length != chain.readable.len()
        || length > MAX_MESSAGE_BYTES
        || (answered && chain.writable.len() < OUT_HEADER_BYTES)
    {
        return Err(RingError::Malformed);
    }
    let id = request.id();
    let waiting = answered.then_some(Waiting {
        queue,
        head: chain.head,
        id,
        writable: chain.writable_at,
    });
    Ok(match session.send(&request, &chain.readable, waiting) {
        Ok(()) if answered => None,
        Err(error) if answered => {
            let answer = Answer::of_error(error);
            chain.writable.copy_from(&answer.to_bytes(id));
            Some(answer.length)
        }
        _ => Some(0),
    })
}
