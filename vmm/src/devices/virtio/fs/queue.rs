//! Requests of the driver (section 5.11.6): a descriptor chain each, given back when the worker has answered.

use super::message::{Answer, IN_HEADER_BYTES, MAX_MESSAGE_BYTES, OUT_HEADER_BYTES, Request, has_answer};
use super::session::{Sent, Session, Waiting};
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
}

impl Queues {
    /// Queues that may have requests already.
    pub(super) fn new(rings: Vec<Ring>) -> Self {
        let queue = |ring| Queue { ring, unseen: true };
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

    /// Moves answers to the driver, and requests that nobody has seen to the worker, up to a bound.
    ///
    /// # Errors
    /// [`RingError`] if the driver broke a queue.
    pub(super) fn serve(
        &mut self,
        memory: &GuestMemory,
        session: &mut Session,
    ) -> Result<Outcome, RingError> {
        let mut outcome = self.give_back(memory, session, MAX_MESSAGES, false)?;
        session.forget_full();
        for index in 0..self.0.len() {
            if !self.0.get(index).is_some_and(|queue| queue.unseen) {
                continue;
            }
            let taken = self.take(memory, session, index)?;
            outcome.signal |= taken.signal;
            outcome.more |= taken.more;
        }
        // What a worker has that was just found to be lost has no answer but this.
        if session.is_lost() {
            let failed = self.give_back(memory, session, MAX_MESSAGES, false)?;
            outcome.signal |= failed.signal;
            outcome.more |= failed.more;
        }
        Ok(outcome)
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
            signal |= self.give_back(memory, session, 1, true)?.signal;
        }
        Ok(Outcome { signal, more: false })
    }

    fn give_back(
        &mut self,
        memory: &GuestMemory,
        session: &mut Session,
        limit: usize,
        wait: bool,
    ) -> Result<Outcome, RingError> {
        let (mut signal, mut count) = (false, 0);
        while count < limit {
            let Some(answered) = session.receive(memory, wait)? else {
                return Ok(Outcome { signal, more: false });
            };
            let queue = self.0.get_mut(answered.queue).ok_or(RingError::Invalid)?;
            let ring = &mut queue.ring;
            ring.complete(answered.head, answered.written)?;
            signal |= ring.needs_interrupt()?;
            count += 1;
        }
        Ok(Outcome { signal, more: true })
    }

    /// Moves requests of one queue to the worker, up to a bound.
    fn take(
        &mut self,
        memory: &GuestMemory,
        session: &mut Session,
        index: usize,
    ) -> Result<Outcome, RingError> {
        let Some(Queue { ring, unseen }) = self.0.get_mut(index) else {
            return Ok(Outcome::default());
        };
        *unseen = true;
        let (mut taken, mut more, mut used) = (0, false, false);
        ring.disable_notifications(memory)?;
        // Where there is no room, the driver is not asked to notify: an answer, or room on the socket, brings the event
        // loop back.
        while session.has_room() {
            if taken == MAX_MESSAGES {
                more = true;
                break;
            }
            let Some(chain) = ring.pop(memory)? else {
                if ring.enable_notifications(memory)? {
                    continue;
                }
                *unseen = false;
                break;
            };
            taken += 1;
            let head = chain.head;
            match submit(session, index, chain)? {
                Submitted::Waits => {}
                Submitted::Done(written) => {
                    ring.complete(head, written)?;
                    used = true;
                }
                Submitted::NoRoom => {
                    ring.undo_pop();
                    break;
                }
            }
        }
        let signal = used && ring.needs_interrupt()?;
        Ok(Outcome { signal, more })
    }
}

enum Submitted {
    /// For an answer.
    Waits,
    /// With so many bytes written.
    Done(u32),
    NoRoom,
}

/// Sends the request in `chain`, if it is whole.
fn submit(session: &mut Session, queue: usize, chain: Chain<'_>) -> Result<Submitted, RingError> {
    let (head, body) = chain
        .readable
        .split_at(IN_HEADER_BYTES)
        .ok_or(RingError::Malformed)?;
    let request = Request(head.read().ok_or(RingError::Malformed)?);
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
    Ok(match session.send(request, &body, waiting) {
        Sent::Yes if answered => Submitted::Waits,
        Sent::NoRoom => Submitted::NoRoom,
        Sent::Failed(error) if answered => {
            let answer = Answer::of_error(error, id);
            chain.writable.copy_from(&answer.to_bytes());
            Submitted::Done(answer.length)
        }
        Sent::Yes | Sent::Failed(_) => Submitted::Done(0),
    })
}
