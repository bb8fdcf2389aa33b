//! Serves the queues of a disk: takes requests as long as there is room for them, and gives each back when it has ended,
//! whichever was first. The driver is interrupted once for all that have ended by then.
//!
//! A write for which the host has no room waits until it has. A file system that is told of an error instead goes on without
//! what it could not write, and is damaged when there is room again.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::backend::{Backend, OperationKind};
use super::disk::Disk;
use super::request::Request;
use crate::devices::virtio::ring::{Ring, RingError};
use crate::memory::GuestMemory;
use crate::sys::uring::Completion;

/// Descriptors of a queue.
pub(super) const QUEUE_SIZE: u16 = 128;

/// From one try to find room to the next.
const ROOM_INTERVAL: Duration = Duration::from_millis(100);

/// Why queues are not served any more. The device needs a reset.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServeError {
    /// The driver broke a queue.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The host did not go on with the back end.
    #[error("the back end of a disk failed")]
    Backend(#[source] io::Error),
}

/// What the queues belong to.
#[derive(Clone, Copy)]
pub(super) struct Context<'m> {
    pub(super) memory: &'m GuestMemory,
    pub(super) disk: &'m Disk,
    /// Set when no more requests are to be taken.
    pub(super) stop: &'m AtomicBool,
    /// Interrupts the driver.
    pub(super) signal: &'m dyn Fn(),
}

/// The requests under way, and the queues that they came from.
pub(super) struct Server<'m> {
    context: Context<'m>,
    rings: &'m mut [Ring],
    /// Whether something was given back on a queue since the driver was last interrupted.
    used: Vec<bool>,
    backend: &'m mut Backend,
    /// By token.
    requests: Vec<Option<Request<'m>>>,
    free: Vec<u16>,
    /// Those that wait for room on the host.
    held: Vec<u16>,
    /// Whether there is time for that.
    patient: bool,
    completions: Vec<Completion>,
    /// The queue that is looked at first, a different one each time, so that no queue takes all the room for ever.
    first: usize,
}

impl<'m> Server<'m> {
    pub(super) fn new(context: Context<'m>, rings: &'m mut [Ring], backend: &'m mut Backend) -> Self {
        let depth = backend.depth();
        Self {
            context,
            used: vec![false; rings.len()],
            rings,
            backend,
            requests: (0..depth).map(|_| None).collect(),
            free: (0..depth).collect(),
            held: Vec::new(),
            patient: true,
            completions: Vec::new(),
            first: 0,
        }
    }

    /// Serves the queues until `stop` is set. Nothing is under way when it returns, whatever the reason.
    ///
    /// # Errors
    /// [`ServeError`].
    pub(super) fn run(mut self) -> Result<(), ServeError> {
        while !self.stopped() {
            self.turn()?;
            if !self.stopped() {
                self.wait()?;
            }
        }
        self.drain()
    }

    fn stopped(&self) -> bool {
        self.context.stop.load(Ordering::SeqCst)
    }

    /// Takes what is available and begins with it.
    ///
    /// # Errors
    /// [`ServeError::Ring`], after all that was under way has ended.
    pub(super) fn turn(&mut self) -> Result<(), ServeError> {
        let result = self.take().and_then(|()| self.tell());
        self.or_broken(result)
    }

    /// Waits until a request ends or the driver notifies, and gives back what has ended.
    ///
    /// # Errors
    /// [`ServeError`], after all that was under way has ended if possible.
    pub(super) fn wait(&mut self) -> Result<(), ServeError> {
        self.complete(true)
    }

    /// Waits until nothing is under way. What has no room on the host fails.
    ///
    /// # Errors
    /// As [`Server::wait`].
    pub(super) fn drain(&mut self) -> Result<(), ServeError> {
        self.patient = false;
        let result = self.try_held();
        self.or_broken(result)?;
        while self.under_way() > 0 {
            self.complete(true)?;
        }
        Ok(())
    }

    pub(super) fn under_way(&self) -> usize {
        self.requests.len() - self.free.len()
    }

    fn take(&mut self) -> Result<(), RingError> {
        let count = self.rings.len();
        self.first = (self.first + 1) % count.max(1);
        for index in 0..count {
            self.take_from((self.first + index) % count)?;
        }
        Ok(())
    }

    fn take_from(&mut self, queue: usize) -> Result<(), RingError> {
        let Context { memory, disk, .. } = self.context;
        loop {
            let Some(ring) = self.rings.get_mut(queue) else {
                return Ok(());
            };
            ring.disable_notifications(memory)?;
            while !self.context.stop.load(Ordering::Relaxed)
                && let Some(ring) = self.rings.get_mut(queue)
                && let Some(token) = self.free.last().copied()
                && let Some(chain) = ring.pop(memory)?
            {
                let request = Request::parse(&chain, queue, disk)?;
                self.begin(token, request)?;
            }
            if self.stopped() || self.free.is_empty() {
                // It is looked at again when there is room.
                return Ok(());
            }
            let Some(ring) = self.rings.get_mut(queue) else {
                return Ok(());
            };
            if !ring.enable_notifications(memory)? {
                return Ok(());
            }
        }
    }

    /// Begins a request under a token that is the last of the free ones.
    fn begin(&mut self, token: u16, request: Request<'m>) -> Result<(), RingError> {
        if let Some(place) = self.requests.get_mut(usize::from(token)) {
            self.free.pop();
            *place = Some(request);
        }
        self.go_on(token)?;
        if self.requests.len() == 1 {
            // One at a time: the next may take long, and this one's driver is waiting.
            self.tell()?;
        }
        Ok(())
    }

    /// Goes on with the request of `token` until it waits for an operation, or has ended and is given back.
    fn go_on(&mut self, token: u16) -> Result<(), RingError> {
        let Some(place) = self.requests.get_mut(usize::from(token)) else {
            return Ok(());
        };
        while let Some(request) = place {
            if let Some(operation) = request.next() {
                let is_write = matches!(operation.kind, OperationKind::Write { .. });
                let Some(result) = self.backend.begin(token, operation) else {
                    return Ok(());
                };
                if is_write && self.patient && result.as_ref().is_err_and(is_no_room) {
                    self.held.push(token);
                    self.context.disk.set_waits_for_room(true);
                    return Ok(());
                }
                request.advance(self.context.disk, result);
                continue;
            }
            let (queue, head, written) = (request.queue, request.head, request.finish());
            *place = None;
            self.free.push(token);
            if let (Some(ring), Some(used)) = (self.rings.get_mut(queue), self.used.get_mut(queue)) {
                ring.complete(head, written)?;
                *used = true;
            }
            return Ok(());
        }
        Ok(())
    }

    /// Tries again what has had no room on the host.
    fn try_held(&mut self) -> Result<(), RingError> {
        let held = std::mem::take(&mut self.held);
        let result = held.iter().try_for_each(|token| self.go_on(*token));
        self.context.disk.set_waits_for_room(!self.held.is_empty());
        result
    }

    /// Waits for something to happen, and sees to all that has.
    fn complete(&mut self, intact: bool) -> Result<(), ServeError> {
        let mut completions = std::mem::take(&mut self.completions);
        let limit = (!self.held.is_empty()).then_some(ROOM_INTERVAL);
        self.backend
            .wait(&mut completions, limit)
            .map_err(ServeError::Backend)?;
        let mut result = self.try_held();
        for completion in completions.drain(..) {
            let Completion::Ended { token, result: ended } = completion else {
                continue;
            };
            if let Some(Some(request)) = self.requests.get_mut(usize::from(token)) {
                request.advance(self.context.disk, ended);
            }
            result = result.and(self.go_on(token));
        }
        self.completions = completions;
        let result = result.and_then(|()| self.tell());
        if intact { self.or_broken(result) } else { Ok(()) }
    }

    /// Interrupts the driver if it wants to know of what was given back.
    fn tell(&mut self) -> Result<(), RingError> {
        let mut wanted = false;
        for (ring, used) in self.rings.iter_mut().zip(&mut self.used) {
            if std::mem::take(used) {
                wanted |= ring.needs_interrupt()?;
            }
        }
        if wanted {
            (self.context.signal)();
        }
        Ok(())
    }

    /// When a queue is broken, nothing more is given back on any; what is under way has to end all the same, because its
    /// buffers are the driver's.
    fn or_broken(&mut self, result: Result<(), RingError>) -> Result<(), ServeError> {
        if result.is_err() {
            self.rings = &mut [];
            self.used.clear();
            self.patient = false;
            // Without rings nothing fails.
            let _ = self.try_held();
            while self.under_way() > 0 {
                self.complete(false)?;
            }
        }
        Ok(result?)
    }
}

/// Whether a file system or a quota is full, which may pass.
fn is_no_room(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}
