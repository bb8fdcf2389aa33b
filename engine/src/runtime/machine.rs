//! One running VMM: its process, what it reports, and what it can be asked.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Seek as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Signal;
use rvm_protocol::Doorbell;
use rvm_vmm::command::Command as Request;
use rvm_vmm::config::VmConfig;
use rvm_vmm::event::{Event, StopReason, Stopped};
use rvm_vmm::status::Status;

use crate::layout::{self, Asset};
use crate::timeline::{Phase, Stamp, Timeline};

/// A guest is up within this or not at all. A cold boot takes well under a second on hardware and a few seconds on
/// an emulated CPU.
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// Time for a machine to end after its guest was told to power off.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(10);

/// Time for the VMM to report after it was told to end.
const REPORT_LIMIT: Duration = Duration::from_secs(5);

/// A VMM answers a command within this: pausing a machine has 5 seconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Answers that wait for being fetched. Commands are given one at a time, so more are not of a VMM's free will.
const MOST_ANSWERS: usize = 4;

/// Longest line of the events socket that is read: a status has about 2 KiB for each of up to 254 virtual CPUs.
const MAX_EVENT_BYTES: u64 = 1 << 20;

/// Why a machine could not be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The VMM's program is not there.
    #[error(transparent)]
    Asset(#[from] layout::Error),
    /// The VMM could not be given its configuration or started.
    #[error("cannot start the virtual machine monitor")]
    Spawn(#[source] io::Error),
    /// The VMM's process could not be waited for.
    #[error("cannot wait for the virtual machine monitor")]
    Wait(#[source] io::Error),
    /// The events are not what this version sends.
    #[error("the virtual machine monitor sent a malformed event")]
    Malformed(#[source] serde_json::Error),
    /// The machine ended by itself.
    #[error("{}", describe(.0))]
    Stopped(Box<Stopped>),
    /// The VMM's process ended and did not say why.
    #[error("{}", describe_status(*.0))]
    Killed(ExitStatus),
    /// The machine did not end.
    #[error("the virtual machine did not end within {} seconds", POWER_OFF_LIMIT.as_secs())]
    Hung,
    /// The VMM was not there to be asked any more.
    #[error("cannot ask the virtual machine monitor")]
    Ask(#[source] io::Error),
    /// The VMM did not answer.
    #[error("the virtual machine monitor does not answer")]
    Silent,
    /// The VMM would not do what it was asked.
    #[error("the virtual machine monitor refused: {0}")]
    Refused(String),
    /// The guest did not come up. What its console ends with, where the VMM could still tell.
    #[error("the guest did not report to be ready within {} seconds{}", BOOT_LIMIT.as_secs(), console_end(.0))]
    NotReady(String),
}

/// A VMM and its guest.
pub(crate) struct Machine {
    child: Child,
    events: UnixStream,
    state: Watched,
    commands: Arc<Commands>,
}

/// Asks a VMM for things, from any thread and one at a time. It answers each line in turn.
pub(crate) struct Commands(Mutex<Channel>);

struct Channel {
    writer: UnixStream,
    answers: Receiver<Event>,
    /// Answers for which nobody waited long enough, and which come first if they still come.
    overdue: usize,
}

impl Commands {
    /// Asks the machine what it is and does.
    pub(crate) fn status(&self) -> Result<Status, Error> {
        match self.ask(Request::Status {})? {
            Event::Status(status) => Ok(*status),
            Event::CommandFailed { detail } => Err(Error::Refused(detail)),
            _ => Err(Error::Silent),
        }
    }

    fn ask(&self, request: Request) -> Result<Event, Error> {
        let mut line = serde_json::to_vec(&request).map_err(|error| Error::Ask(error.into()))?;
        line.push(b'\n');
        // A lock is only poisoned by a panic, which aborts the process.
        let mut channel = self.0.lock().map_err(|_| Error::Silent)?;
        channel.writer.write_all(&line).map_err(Error::Ask)?;
        channel.overdue += 1;
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = channel.answers.recv_timeout(left).map_err(|_| Error::Silent)?;
            channel.overdue -= 1;
            if channel.overdue == 0 {
                return Ok(answer);
            }
        }
    }
}

enum Watched {
    /// Events are read by whoever waits for the guest to be ready.
    Booting(BufReader<UnixStream>, SyncSender<Event>),
    /// Events are read by a thread, which passes on answers and the last one.
    Running(Receiver<Stopped>),
    /// The last event has been taken.
    Ended,
}

impl Machine {
    /// Starts a VMM on `config`. `events` is the far end of the socket that `config` names for events;
    /// `descriptors` are all that `config` names.
    pub(crate) fn spawn(
        config: &VmConfig,
        events: UnixStream,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Self, Error> {
        let program = Asset::Vmm.find()?;
        let json = config_file(config).map_err(Error::Spawn)?;
        for descriptor in descriptors {
            inherit(*descriptor).map_err(Error::Spawn)?;
        }
        inherit(json.as_fd()).map_err(Error::Spawn)?;
        let child = Command::new(program)
            .args(["--config", &json.as_raw_fd().to_string()])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(Error::Spawn)?;
        let reader = BufReader::new(events.try_clone().map_err(Error::Spawn)?);
        let writer = events.try_clone().map_err(Error::Spawn)?;
        writer
            .set_write_timeout(Some(ANSWER_LIMIT))
            .map_err(Error::Spawn)?;
        let (sender, answers) = mpsc::sync_channel(MOST_ANSWERS);
        let channel = Channel {
            writer,
            answers,
            overdue: 0,
        };
        Ok(Self {
            child,
            events,
            state: Watched::Booting(reader, sender),
            commands: Arc::new(Commands(Mutex::new(channel))),
        })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// A handle for asking the VMM for things, once the guest is ready.
    pub(crate) fn commands(&self) -> Arc<Commands> {
        Arc::clone(&self.commands)
    }

    /// A handle whose shutdown ends the machine at once, whatever its guest is doing.
    pub(crate) fn leash(&self) -> Result<UnixStream, Error> {
        self.events.try_clone().map_err(Error::Spawn)
    }

    /// Waits until the agent accepts connections, and goes on listening to the VMM in the background.
    pub(crate) fn wait_until_ready(&mut self, timeline: &Timeline) -> Result<(), Error> {
        // What the VMM's stamps count from, once it has said.
        let mut origin_us = 0;
        let Watched::Booting(mut reader, answers) = std::mem::replace(&mut self.state, Watched::Ended) else {
            return Ok(());
        };
        let deadline = Instant::now() + BOOT_LIMIT;
        loop {
            let left = deadline
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1));
            self.events.set_read_timeout(Some(left)).map_err(Error::Wait)?;
            let event = match next_event(&mut reader) {
                Err(Error::NotReady(_)) => return Err(Error::NotReady(self.last_words(reader))),
                event => event?,
            };
            match event {
                Some(Event::Running {
                    setup_us,
                    monotonic_us,
                }) => {
                    origin_us = monotonic_us.saturating_sub(setup_us);
                    timeline.mark_at(Stamp {
                        phase: Phase::FirstEntry,
                        us: monotonic_us,
                    });
                }
                Some(Event::Stopped(stopped)) => return Err(Error::Stopped(Box::new(stopped))),
                Some(Event::Doorbell { value, us }) => {
                    let phase = match Doorbell::from_byte(value) {
                        Some(Doorbell::Started) => Phase::AgentStarted,
                        Some(Doorbell::Ready) => Phase::AgentReady,
                        Some(Doorbell::PowerOff) | None => continue,
                    };
                    let us = origin_us.saturating_add(us);
                    timeline.mark_at(Stamp { phase, us });
                    if phase == Phase::AgentReady {
                        break;
                    }
                }
                // Nobody has asked for anything yet.
                Some(_) => {}
                None => return Err(self.killed()),
            }
        }
        self.events.set_read_timeout(None).map_err(Error::Wait)?;
        let (sender, receiver) = mpsc::channel();
        self.state = Watched::Running(receiver);
        std::thread::spawn(move || {
            // An answer beyond those that there is room for was not asked for.
            if let Some(stopped) = last_event(reader, |answer| drop(answers.try_send(answer))) {
                // Nobody listens any more where the machine has been given up.
                let _ = sender.send(stopped);
            }
        });
        Ok(())
    }

    /// Ends a machine that does not come up; returns what its console shows.
    fn last_words(&self, reader: BufReader<UnixStream>) -> String {
        // The VMM takes a closed socket for the order to end, and reports as it does.
        let ended = self
            .events
            .shutdown(Shutdown::Write)
            .and_then(|()| self.events.set_read_timeout(Some(REPORT_LIMIT)));
        let stopped = ended.ok().and_then(|()| last_event(reader, drop));
        stopped.map(|stopped| stopped.console_tail).unwrap_or_default()
    }

    /// Waits for the VMM's report of the machine's end, for as long as a guest takes to power off.
    ///
    /// # Errors
    /// [`Error::Hung`] and [`Error::Killed`]; the VMM has been ended then.
    pub(crate) fn report(&mut self) -> Result<Stopped, Error> {
        self.report_within(POWER_OFF_LIMIT)
    }

    fn report_within(&mut self, limit: Duration) -> Result<Stopped, Error> {
        match std::mem::replace(&mut self.state, Watched::Ended) {
            Watched::Running(report) => match report.recv_timeout(limit) {
                Ok(stopped) => Ok(stopped),
                Err(RecvTimeoutError::Disconnected) => Err(self.killed()),
                Err(RecvTimeoutError::Timeout) => {
                    self.killed();
                    Err(Error::Hung)
                }
            },
            Watched::Booting(..) | Watched::Ended => Err(self.killed()),
        }
    }

    /// Ends the VMM if it is alive, and says how it ended.
    fn killed(&mut self) -> Error {
        // Fails only where the process was waited for; one that is ending already does so as it began to.
        let _ = self.child.kill();
        self.child.wait().map_or_else(Error::Wait, Error::Killed)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only where the process has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a VMM ended that did not say so itself.
fn describe_status(status: ExitStatus) -> String {
    let how = match status.signal() {
        Some(signal) if signal == Signal::SYS.as_raw() => {
            "was killed by its seccomp filter: it made a system call that it has no right to".to_owned()
        }
        Some(signal) if signal == Signal::KILL.as_raw() => "was killed".to_owned(),
        Some(signal) => format!("was killed by signal {signal}"),
        None => format!("ended without a report ({status})"),
    };
    format!("the virtual machine monitor {how}")
}

/// One sentence, and the console where it says more.
fn describe(stopped: &Stopped) -> String {
    let what = match stopped.reason {
        StopReason::Reset => "the guest reset itself",
        StopReason::Panic => "the guest's kernel ended in a panic",
        StopReason::TripleFault => "the guest's CPU shut down after a triple fault",
        StopReason::InternalError => "KVM could not go on with the guest",
        StopReason::KvmFailure => "a KVM system call failed",
        StopReason::DeviceFailure => "a device of the virtual machine failed",
        StopReason::Setup => "the virtual machine could not be built",
        StopReason::Terminated => "the virtual machine was ended",
    };
    format!("{what}: {}{}", stopped.detail, console_end(&stopped.console_tail))
}

/// The end of the console as an appendix to a message; empty where it shows nothing.
fn console_end(console: &str) -> String {
    let console = console.trim_end();
    if console.is_empty() {
        return String::new();
    }
    let printable = console
        .chars()
        .filter(|character| !character.is_control() || *character == '\n');
    format!(
        "\nthe guest's console ends with:\n{}",
        printable.collect::<String>()
    )
}

fn config_file(config: &VmConfig) -> io::Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::memfd_create("rvm-machine", flags)?);
    serde_json::to_writer(&mut file, config)?;
    file.rewind()?;
    Ok(file)
}

/// Lets the next program inherit a descriptor.
pub(super) fn inherit(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    Ok(fcntl_setfd(descriptor, FdFlags::empty())?)
}

/// The next event; `None` where the VMM has closed the socket.
fn next_event(reader: &mut BufReader<UnixStream>) -> Result<Option<Event>, Error> {
    let mut line = Vec::new();
    let mut limited = io::Read::take(reader, MAX_EVENT_BYTES);
    match limited.read_until(b'\n', &mut line) {
        Ok(0) => Ok(None),
        Ok(_) => serde_json::from_slice(&line).map(Some).map_err(Error::Malformed),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            Err(Error::NotReady(String::new()))
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        Err(error) => Err(Error::Wait(error)),
    }
}

/// Reads events to the end, passes on answers, and returns the report of the machine's end, if one came.
fn last_event(mut reader: BufReader<UnixStream>, answer: impl Fn(Event)) -> Option<Stopped> {
    loop {
        match next_event(&mut reader) {
            Ok(Some(Event::Stopped(stopped))) => return Some(stopped),
            Ok(Some(Event::Running { .. } | Event::Doorbell { .. })) => {}
            Ok(Some(event)) => answer(event),
            Ok(None) | Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_s_signal_is_told_as_such() {
        // As wait(2) has it: the signal in the lower seven bits, or the exit code in the next eight.
        let check = |status, expected: &str| {
            let text = Error::Killed(ExitStatus::from_raw(status)).to_string();
            assert!(text.contains(expected), "{text}");
        };
        check(Signal::SYS.as_raw(), "seccomp filter");
        check(Signal::SYS.as_raw() | 0x80, "seccomp filter");
        check(Signal::KILL.as_raw(), "monitor was killed");
        check(Signal::SEGV.as_raw(), "signal 11");
        check(3 << 8, "exit status: 3");
    }

    /// A process that goes on for ever, in the place of a VMM.
    fn stubborn(report: Receiver<Stopped>) -> Machine {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        Machine {
            child,
            events: UnixStream::pair().unwrap().0,
            state: Watched::Running(report),
            commands: Arc::new(channel().0),
        }
    }

    #[test]
    fn a_machine_that_does_not_end_is_ended() {
        let (_sender, report) = mpsc::channel();
        let mut machine = stubborn(report);
        let ended = machine.report_within(Duration::from_millis(50));
        assert!(matches!(ended, Err(Error::Hung)), "{ended:?}");
        let status = machine.child.try_wait().unwrap().unwrap();
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()));
    }

    #[test]
    fn a_machine_that_says_nothing_any_more_is_ended() {
        let (sender, report) = mpsc::channel();
        drop(sender);
        let mut machine = stubborn(report);
        assert!(matches!(machine.report(), Err(Error::Killed(_))));
        assert!(machine.child.try_wait().unwrap().is_some());
    }

    /// A channel, and the ends that a VMM has.
    fn channel() -> (Commands, BufReader<UnixStream>, SyncSender<Event>) {
        let (writer, reader) = UnixStream::pair().unwrap();
        let (sender, answers) = mpsc::sync_channel(MOST_ANSWERS);
        let channel = Channel {
            writer,
            answers,
            overdue: 0,
        };
        (Commands(Mutex::new(channel)), BufReader::new(reader), sender)
    }

    #[test]
    fn a_late_answer_is_not_taken_for_the_next_one() {
        let (commands, mut reader, sender) = channel();
        // One that was asked for before, by somebody who has given up.
        commands.0.lock().unwrap().overdue = 1;
        sender.send(Event::Paused { us: 1 }).unwrap();
        sender.send(Event::Resumed { us: 2 }).unwrap();
        let answer = commands.ask(Request::Resume {}).unwrap();
        assert_eq!(answer, Event::Resumed { us: 2 });
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, "{\"command\":\"resume\"}\n");
    }

    #[test]
    fn a_vmm_that_is_gone_is_an_error() {
        let (commands, reader, sender) = channel();
        drop(sender);
        assert!(matches!(commands.status(), Err(Error::Silent)));
        drop(reader);
        assert!(matches!(commands.status(), Err(Error::Ask(_))));
    }

    #[test]
    fn a_refusal_is_told() {
        let (commands, _reader, sender) = channel();
        let detail = "not now".to_owned();
        sender.send(Event::CommandFailed { detail }).unwrap();
        let error = commands.status().unwrap_err();
        assert!(error.to_string().contains("not now"), "{error}");
    }
}
