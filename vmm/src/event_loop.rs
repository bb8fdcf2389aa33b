//! The event loop on the main thread: the machine's end, the supervisor's commands, and the devices that are served here.
//!
//! A paused machine waits in the same loop, for the outside alone: so its devices are not served, and it still ends with
//! its supervisor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::bus::lock;
use crate::command::{Command, CommandError, CommandReader, MAX_COMMAND_BYTES};
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

/// Who carries out what the supervisor asks for.
pub trait Operator {
    /// Carries out a command, or tells that it is none, and answers.
    fn handle(&mut self, command: Result<Command, CommandError>);

    /// Whether the devices are not to be served.
    fn is_paused(&self) -> bool;
}

/// The loop.
pub struct EventLoop {
    /// The outside and all devices.
    everything: EventManager<Subscriber>,
    /// The outside alone, for a paused machine.
    outside: EventManager<Subscriber>,
    control: Arc<Mutex<Control>>,
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
        let control = Arc::new(Mutex::new(Control {
            stop: stop.clone(),
            supervisor,
            termination,
            reader: CommandReader::default(),
            commands: Vec::new(),
        }));
        let mut event_loop = Self {
            everything: EventManager::new().map_err(EventLoopError::Wait)?,
            outside: EventManager::new().map_err(EventLoopError::Wait)?,
            control: control.clone(),
            stop,
        };
        event_loop.outside.add_subscriber(control.clone());
        event_loop.everything.add_subscriber(control);
        Ok(event_loop)
    }

    /// Serves `device` too, unless the machine is paused.
    pub fn add(&mut self, device: Subscriber) {
        self.everything.add_subscriber(device);
    }

    /// Runs until the machine ends, and has `operator` carry out commands.
    ///
    /// # Errors
    /// [`EventLoopError::Wait`].
    pub fn run(&mut self, operator: &mut dyn Operator) -> Result<(), EventLoopError> {
        while !self.stop.is_set() {
            let waiting_for = if operator.is_paused() {
                &mut self.outside
            } else {
                &mut self.everything
            };
            waiting_for.run().map_err(EventLoopError::Wait)?;
            for command in lock(&self.control).commands.drain(..) {
                operator.handle(command);
            }
        }
        Ok(())
    }
}

/// What ends the machine from outside, and what asks for something.
struct Control {
    stop: Arc<StopSignal>,
    supervisor: OwnedFd,
    termination: Option<OwnedFd>,
    reader: CommandReader,
    /// To be carried out; no more than one read brings.
    commands: Vec<Result<Command, CommandError>>,
}

impl Control {
    fn receive(&mut self) {
        let mut buffer = [0; MAX_COMMAND_BYTES];
        // More is announced again.
        match rustix::net::recv(&self.supervisor, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((_, count)) => {
                let bytes = buffer.get(..count).unwrap_or_default();
                self.commands.extend(self.reader.push(bytes));
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The connection is broken.
            Err(_) => self.end(),
        }
    }

    fn end(&self) {
        self.stop.stop(StopReason::Terminated, "the supervisor is gone");
    }
}

impl MutEventSubscriber for Control {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let termination = self.termination.as_ref().map(|fd| Events::new(fd, EventSet::IN));
        let watched = [
            Events::new(&*self.stop, EventSet::IN),
            Events::new(&self.supervisor, EventSet::IN | EventSet::READ_HANG_UP),
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
            // What was asked for before the end makes no difference any more.
            if events.event_set().contains(EventSet::READ_HANG_UP) {
                self.end();
            } else {
                self.receive();
            }
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
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::reporter::Start;

    /// Pauses and resumes nothing, and ends the machine at a status.
    struct Recorder {
        commands: Vec<String>,
        paused: bool,
        stop: Arc<StopSignal>,
    }

    impl Operator for Recorder {
        fn handle(&mut self, command: Result<Command, CommandError>) {
            match command {
                Ok(Command::Pause {}) => self.paused = true,
                Ok(Command::Resume {}) => self.paused = false,
                Ok(Command::Status {}) => self.stop.stop(StopReason::Reset, "enough"),
                Err(_) => {}
            }
            self.commands.push(format!("{command:?}"));
        }

        fn is_paused(&self) -> bool {
            self.paused
        }
    }

    struct Fixture {
        event_loop: EventLoop,
        operator: Recorder,
        supervisor: UnixStream,
    }

    fn fixture() -> Fixture {
        let (ours, supervisor) = UnixStream::pair().unwrap();
        let stop = Arc::new(StopSignal::new().unwrap());
        let reporter = Reporter::new(ours.into(), Start::now());
        Fixture {
            event_loop: EventLoop::new(stop.clone(), &reporter, None).unwrap(),
            operator: Recorder {
                commands: Vec::new(),
                paused: false,
                stop,
            },
            supervisor,
        }
    }

    #[test]
    fn the_loop_ends_with_the_supervisor() {
        for paused in [false, true] {
            let mut fixture = fixture();
            fixture.operator.paused = paused;
            // Not even what is still to be read keeps it.
            fixture
                .supervisor
                .write_all(b"{\"command\":\"pause\"}\n")
                .unwrap();
            drop(fixture.supervisor);
            fixture.event_loop.run(&mut fixture.operator).unwrap();
            let cause = fixture.operator.stop.cause();
            assert_eq!(
                cause.map(|cause| cause.detail),
                Some("the supervisor is gone".into())
            );
            assert_eq!(fixture.operator.commands.len(), 0);
        }
    }

    #[test]
    fn the_loop_ends_with_the_guest() {
        for paused in [false, true] {
            let mut fixture = fixture();
            fixture.operator.paused = paused;
            let stop = fixture.operator.stop.clone();
            let guest = std::thread::spawn(move || stop.stop(StopReason::Reset, "reset"));
            fixture.event_loop.run(&mut fixture.operator).unwrap();
            guest.join().unwrap();
        }
    }

    /// Counts how often it is served.
    struct Device(EventFd, u32);

    impl MutEventSubscriber for Device {
        fn init(&mut self, ops: &mut EventOps<'_>) {
            ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
        }

        fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
            self.0.read().unwrap();
            self.1 += 1;
        }
    }

    #[test]
    fn commands_are_carried_out_in_order_and_a_paused_machine_serves_no_device() {
        let mut fixture = fixture();
        let event = EventFd::new(0).unwrap();
        let device = Arc::new(Mutex::new(Device(event.try_clone().unwrap(), 0)));
        fixture.event_loop.add(device.clone());
        fixture.operator.paused = true;
        event.write(1).unwrap();
        let text = b"{\"command\":\"pause\"}\nnonsense\n{\"command\":\"status\"}\n";
        fixture.supervisor.write_all(text).unwrap();
        fixture.event_loop.run(&mut fixture.operator).unwrap();
        assert_eq!(lock(&device).1, 0);
        let [pause, nonsense, status] = fixture.operator.commands.as_slice() else {
            panic!("{:?}", fixture.operator.commands);
        };
        assert!(pause.contains("Pause") && nonsense.contains("Malformed") && status.contains("Status"));
    }

    #[test]
    fn a_machine_that_goes_on_serves_its_devices() {
        let mut fixture = fixture();
        let event = EventFd::new(0).unwrap();
        let device = Arc::new(Mutex::new(Device(event.try_clone().unwrap(), 0)));
        fixture.event_loop.add(device.clone());
        fixture.operator.paused = true;
        event.write(1).unwrap();
        fixture
            .supervisor
            .write_all(b"{\"command\":\"resume\"}\n")
            .unwrap();
        let stop = fixture.operator.stop.clone();
        let watcher = std::thread::spawn(move || {
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
            while lock(&device).1 == 0 && std::time::Instant::now() < deadline {
                std::thread::yield_now();
            }
            stop.stop(StopReason::Reset, "served");
            lock(&device).1
        });
        fixture.event_loop.run(&mut fixture.operator).unwrap();
        assert_eq!(watcher.join().unwrap(), 1);
    }
}
