//! The event loop on the main thread: the machine's end, and the devices that are served here.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use crate::event::StopReason;
use crate::reporter::Reporter;
use crate::stop::StopSignal;

/// A device that the event loop serves.
pub type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// Why the event loop failed.
#[derive(Debug, thiserror::Error)]
pub enum EventLoopError {
    /// It cannot be made, or waiting failed.
    #[error("the event loop failed: {0}")]
    Wait(event_manager::Error),
    /// The stop signal or the supervisor's socket cannot be watched.
    #[error("cannot watch the machine's descriptors")]
    Duplicate(#[source] io::Error),
}

/// The loop.
pub struct EventLoop {
    manager: EventManager<Subscriber>,
    stop: Arc<StopSignal>,
}

impl EventLoop {
    /// A loop that ends when `stop` is given, when the supervisor's end of `reporter` is closed, or when `termination`
    /// (see [`crate::sys::termination_descriptor`]) becomes readable.
    ///
    /// # Errors
    /// [`EventLoopError`].
    pub fn new(
        stop: Arc<StopSignal>,
        reporter: &Reporter,
        termination: Option<OwnedFd>,
    ) -> Result<Self, EventLoopError> {
        let supervisor = reporter
            .as_fd()
            .try_clone_to_owned()
            .map_err(EventLoopError::Duplicate)?;
        let control = Control {
            stop: stop.clone(),
            supervisor,
            termination,
        };
        let mut manager = EventManager::new().map_err(EventLoopError::Wait)?;
        let control: Subscriber = Arc::new(Mutex::new(control));
        manager.add_subscriber(control);
        Ok(Self { manager, stop })
    }

    /// Serves `device` too.
    pub fn add(&mut self, device: Subscriber) {
        self.manager.add_subscriber(device);
    }

    /// Runs until the machine ends.
    ///
    /// # Errors
    /// [`EventLoopError::Wait`].
    pub fn run(&mut self) -> Result<(), EventLoopError> {
        while !self.stop.is_set() {
            self.manager.run().map_err(EventLoopError::Wait)?;
        }
        Ok(())
    }
}

/// What ends the machine from outside.
struct Control {
    stop: Arc<StopSignal>,
    supervisor: OwnedFd,
    termination: Option<OwnedFd>,
}

impl MutEventSubscriber for Control {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let termination = self.termination.as_ref().map(|fd| Events::new(fd, EventSet::IN));
        let watched = [
            Events::new(&*self.stop, EventSet::IN),
            // The supervisor writes nothing; its end of file is a hang-up.
            Events::new(&self.supervisor, EventSet::READ_HANG_UP),
        ];
        for events in watched.into_iter().chain(termination) {
            if let Err(error) = ops.add(events) {
                self.stop.stop(
                    StopReason::DeviceFailure,
                    format!("cannot watch a descriptor: {error}"),
                );
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        if events.fd() == self.supervisor.as_raw_fd() {
            self.stop.stop(StopReason::Terminated, "the supervisor is gone");
        } else if self
            .termination
            .as_ref()
            .is_some_and(|fd| fd.as_raw_fd() == events.fd())
        {
            self.stop
                .stop(StopReason::Terminated, "the machine was told to end");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::reporter::Start;

    #[test]
    fn the_loop_ends_with_the_supervisor() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stop = Arc::new(StopSignal::new().unwrap());
        let reporter = Reporter::new(ours.into(), Start::now());
        let mut event_loop = EventLoop::new(stop.clone(), &reporter, None).unwrap();
        drop(theirs);
        event_loop.run().unwrap();
        assert_eq!(
            stop.cause().map(|cause| cause.detail),
            Some("the supervisor is gone".into())
        );
    }

    #[test]
    fn the_loop_ends_with_the_guest() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let stop = Arc::new(StopSignal::new().unwrap());
        let reporter = Reporter::new(ours.into(), Start::now());
        let mut event_loop = EventLoop::new(stop.clone(), &reporter, None).unwrap();
        let guest = std::thread::spawn(move || stop.stop(StopReason::Reset, "reset"));
        event_loop.run().unwrap();
        guest.join().unwrap();
    }
}
