//! One running VMM: its process and what it reports.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Seek as _};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use rvm_protocol::Doorbell;
use rvm_vmm::config::VmConfig;
use rvm_vmm::event::{Event, StopReason, Stopped};

use crate::layout::{self, Asset};
use crate::timeline::{Phase, Stamp, Timeline};

/// A guest is up within this or not at all. A cold boot takes well under a second on hardware and a few seconds on
/// an emulated CPU.
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// Time for a machine to end after its guest was told to power off.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(10);

/// Time for the VMM to report after it was told to end.
const REPORT_LIMIT: Duration = Duration::from_secs(5);

/// Longest line of the events socket that is read: a stopped machine reports its console's last 8 KiB.
const MAX_EVENT_BYTES: u64 = 256 << 10;

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
    #[error("the virtual machine monitor was killed")]
    Killed,
    /// The guest did not come up. What its console ends with, where the VMM could still tell.
    #[error("the guest did not report to be ready within {} seconds{}", BOOT_LIMIT.as_secs(), console_end(.0))]
    NotReady(String),
}

/// A VMM and its guest.
pub(crate) struct Machine {
    child: Child,
    events: UnixStream,
    state: Watched,
}

enum Watched {
    /// Events are read by whoever waits for the guest to be ready.
    Booting(BufReader<UnixStream>),
    /// Events are read by a thread, which passes on the last one.
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
        Ok(Self {
            child,
            events,
            state: Watched::Booting(reader),
        })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// A handle whose shutdown ends the machine at once, whatever its guest is doing.
    pub(crate) fn leash(&self) -> Result<UnixStream, Error> {
        self.events.try_clone().map_err(Error::Spawn)
    }

    /// Waits until the agent accepts connections, and goes on listening to the VMM in the background.
    pub(crate) fn wait_until_ready(&mut self, timeline: &Timeline) -> Result<(), Error> {
        // What the VMM's stamps count from, once it has said.
        let mut origin_us = 0;
        let Watched::Booting(mut reader) = std::mem::replace(&mut self.state, Watched::Ended) else {
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
                None => return Err(Error::Killed),
            }
        }
        self.events.set_read_timeout(None).map_err(Error::Wait)?;
        let (sender, receiver) = mpsc::channel();
        self.state = Watched::Running(receiver);
        std::thread::spawn(move || {
            if let Some(stopped) = last_event(reader) {
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
        let stopped = ended.ok().and_then(|()| last_event(reader));
        stopped.map(|stopped| stopped.console_tail).unwrap_or_default()
    }

    /// Waits for the VMM's report of the machine's end, for as long as a guest takes to power off. `None` where the
    /// VMM was killed or the guest does not end.
    pub(crate) fn report(&mut self) -> Option<Stopped> {
        match std::mem::replace(&mut self.state, Watched::Ended) {
            Watched::Running(report) => report.recv_timeout(POWER_OFF_LIMIT).ok(),
            Watched::Booting(_) | Watched::Ended => None,
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only where the process has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
fn inherit(descriptor: BorrowedFd<'_>) -> io::Result<()> {
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

/// Reads events to the end and returns the report of the machine's end, if one came.
fn last_event(mut reader: BufReader<UnixStream>) -> Option<Stopped> {
    loop {
        match next_event(&mut reader) {
            Ok(Some(Event::Stopped(stopped))) => return Some(stopped),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}
