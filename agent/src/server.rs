//! Serves the host's connections: one for control, one for each of the workload's streams, the same for each further
//! process in the container, any for its files, and one for each question about the workload as a whole.
//!
//! A connection is a connected stream socket of whatever family; the type is [`UnixStream`] because the standard
//! library's methods on it are plain system calls that know nothing of the family either.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use oci_spec::runtime::Process;
use rustix::process::Signal;
use rvm_isolation::{Exit, Stdio};
use rvm_protocol::{
    Create, Event, Exec, Extent, Failure, FailureKind, FrameError, Hello, Purpose, Request, Stream,
    TerminalSize, VERSION, Welcome, read_frame, write_frame,
};

use crate::archive;
use crate::guest::failure;
use crate::streams::{self, Pipes};
use crate::workload::{self, Workload};

/// Connections that have not yet said who they are. A supervisor opens four at most; more is someone else.
const MAX_PENDING: usize = 8;

/// Archives that are made, or taken apart, at once. Each takes two threads, some hundred kilobytes of buffers, and a place in
/// memory for each file with several names.
const MAX_ARCHIVES: usize = 4;

/// How long a connection may take to say who it is.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// A token and a purpose fit many times over.
const MAX_HELLO_BYTES: u64 = 4096;

/// What the server acts on. All methods block until done.
pub(crate) trait Machine: Workload + Send + Sync + 'static {
    /// A further process in the container.
    type Further: Further;

    /// Makes the container, up to but not including `execve`. Returns the outer side of the workload's terminal, if it has one
    /// instead of `stdio`.
    fn create(&self, create: &Create, stdio: Stdio) -> Result<Option<OwnedFd>, Failure>;
    /// Executes the workload.
    fn start(&self) -> Result<(), Failure>;
    /// Makes a further process, up to but not including `execve`.
    fn enter(&self, process: &Process, stdio: Stdio) -> Result<Self::Further, Failure>;
    /// Sends a signal to the workload's first process.
    fn signal(&self, signal: i32) -> Result<(), Failure>;
    /// Waits for the end of the workload that was started.
    fn wait(&self) -> Result<Exit>;
    /// Begins to read the container's files.
    fn archive(&self, extent: Extent) -> io::Result<Box<dyn Read>>;
    /// Serves a connection on which files are copied.
    fn copy(&self, writes: bool, connection: &UnixStream) -> Result<()>;
    /// Ends the workload and the machine. The real one does not return.
    fn power_off(&self);
}

/// A further process in the container. Dropping it kills it.
pub(crate) trait Further: Send + Sync + 'static {
    /// The outer side of its terminal, if it has one; once.
    fn take_terminal(&mut self) -> Option<OwnedFd>;
    /// Executes it.
    fn start(&mut self) -> Result<(), Failure>;
    /// Sends it a signal.
    fn signal(&self, signal: i32) -> Result<(), Failure>;
    /// Waits for its end: exit status, or 128 plus a signal.
    fn wait(&self) -> Result<u8>;
}

/// The state that connections share.
pub(crate) struct Server<M> {
    token: String,
    machine: M,
    pending: AtomicUsize,
    archives: Arc<AtomicUsize>,
    controlled: AtomicBool,
    pipes: Mutex<Option<Pipes>>,
    /// Of further processes, by number.
    exec_pipes: Mutex<BTreeMap<u64, Pipes>>,
    hello_deadline: Duration,
}

/// What an admitted connection is for, with what it needs.
enum Admitted {
    Control,
    Exec(u64),
    Stream(Stream, OwnedFd),
    Archive(Extent, Place),
    Copy(bool, Place),
    Workload,
}

/// One of the archives that may be made at once.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(taken: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Self(Arc::clone(taken));
        (place.0.fetch_add(1, Ordering::SeqCst) < MAX_ARCHIVES).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<M: Machine> Server<M> {
    /// A server for whoever knows `token`.
    pub(crate) fn new(token: String, machine: M) -> Self {
        Self {
            token,
            machine,
            pending: AtomicUsize::new(0),
            archives: Arc::default(),
            controlled: AtomicBool::new(false),
            pipes: Mutex::new(None),
            exec_pipes: Mutex::default(),
            hello_deadline: HELLO_DEADLINE,
        }
    }

    /// Serves a connection on a thread of its own. One too many is closed.
    pub(crate) fn admit(self: &Arc<Self>, connection: UnixStream) {
        if self.pending.fetch_add(1, Ordering::SeqCst) >= MAX_PENDING {
            self.pending.fetch_sub(1, Ordering::SeqCst);
            return;
        }
        let server = Arc::clone(self);
        let spawned = thread::Builder::new().spawn(move || {
            let admitted = server.shake_hands(&connection);
            server.pending.fetch_sub(1, Ordering::SeqCst);
            match admitted {
                Ok(Admitted::Control) => server.control(&connection),
                // The host learns how it went by the connection's end, if not before.
                Ok(Admitted::Exec(number)) => drop(server.exec(number, &connection)),
                // A stream that fails is one that ends; the host sees it end early.
                Ok(Admitted::Stream(stream, pipe)) => drop(streams::pump(stream, &connection, pipe)),
                // An archive that cannot be sent is one without its end; the host sees that.
                Ok(Admitted::Archive(extent, _place)) => {
                    drop(archive::send(server.machine.archive(extent), &connection));
                }
                // Likewise; what is wrong with files has been told.
                Ok(Admitted::Copy(writes, _place)) => drop(server.machine.copy(writes, &connection)),
                // A host that is gone needs no answer.
                Ok(Admitted::Workload) => drop(workload::serve(&server.machine, &connection)),
                // A stranger, or a host that went away. Either way there is nobody to tell.
                Err(_) => {}
            }
        });
        if spawned.is_err() {
            self.pending.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Reads the greeting and answers it.
    fn shake_hands(&self, connection: &UnixStream) -> Result<Admitted> {
        let reader = DeadlineReader {
            connection,
            deadline: Instant::now() + self.hello_deadline,
        };
        let admitted = match read_frame(reader.take(MAX_HELLO_BYTES)) {
            Ok(hello) => self.judge(&hello),
            Err(error) => Err(failure(FailureKind::Other, &error).message),
        };
        let welcome = match &admitted {
            Ok(_) => Welcome::Accepted { version: VERSION },
            Err(reason) => Welcome::Refused {
                reason: reason.clone(),
            },
        };
        connection.set_read_timeout(None)?;
        let answered = write_frame(connection, &welcome);
        let admitted = admitted.map_err(anyhow::Error::msg)?;
        answered.context("answer the greeting")?;
        Ok(admitted)
    }

    fn judge(&self, hello: &Hello) -> Result<Admitted, String> {
        if !equal_in_constant_time(hello.token.as_bytes(), self.token.as_bytes()) {
            return Err("wrong token".to_owned());
        }
        if hello.version != VERSION {
            let theirs = hello.version;
            return Err(format!(
                "the host speaks version {theirs} of the protocol, the agent {VERSION}"
            ));
        }
        match hello.purpose {
            Purpose::Control if self.controlled.swap(true, Ordering::SeqCst) => {
                Err("there is a control connection already".to_owned())
            }
            Purpose::Control => Ok(Admitted::Control),
            Purpose::Exec(number) => Ok(Admitted::Exec(number)),
            Purpose::Stream(stream) => {
                let pipe = self.pipes().as_mut().and_then(|pipes| pipes.claim(stream));
                admitted(stream, pipe)
            }
            Purpose::ExecStream { number, stream } => {
                let pipe = self
                    .exec_pipes()
                    .get_mut(&number)
                    .and_then(|pipes| pipes.claim(stream));
                admitted(stream, pipe)
            }
            Purpose::Archive(extent) => Ok(Admitted::Archive(extent, self.place()?)),
            Purpose::Copy { writes } => Ok(Admitted::Copy(writes, self.place()?)),
            Purpose::Workload => Ok(Admitted::Workload),
        }
    }

    fn place(&self) -> Result<Place, String> {
        let place = Place::take(&self.archives);
        place.ok_or_else(|| format!("{MAX_ARCHIVES} archives are being made already"))
    }

    /// Serves the control connection until it ends. A machine that nobody controls has no purpose.
    fn control(self: &Arc<Self>, connection: &UnixStream) {
        if let Err(error) = self.serve(connection) {
            eprintln!("rvm-agent: {error:#}");
        }
        self.machine.power_off();
    }

    fn serve(self: &Arc<Self>, connection: &UnixStream) -> Result<()> {
        let sender = connection.try_clone().context("duplicate the connection")?;
        let events = Arc::new(Events(Mutex::new(sender)));
        loop {
            let request = match read_frame(connection) {
                Err(FrameError::Closed) => return Ok(()),
                request => request.context("read a request")?,
            };
            let result = match &request {
                Request::Create(create) => self.create(create),
                Request::Start => self.start(),
                Request::Signal { signal } => self.machine.signal(*signal),
                Request::Resize(size) => {
                    resize(self.pipes().as_ref(), *size);
                    continue;
                }
                Request::Exec(_) => Err(refusal("a further process has a connection of its own")),
                Request::PowerOff => Ok(()),
            };
            let started = matches!(request, Request::Start) && result.is_ok();
            events.send(&result.map_or_else(Event::Failed, |()| Event::Done))?;
            if matches!(request, Request::PowerOff) {
                return Ok(());
            }
            if started {
                // After the answer, so that the end is not told before the start.
                let (server, events) = (Arc::clone(self), Arc::clone(&events));
                thread::Builder::new()
                    .spawn(move || server.report_exit(&events))
                    .context("wait for the workload")?;
            }
        }
    }

    /// Serves the connection of one further process until it ends, and with it the process.
    fn exec(self: &Arc<Self>, number: u64, connection: &UnixStream) -> Result<()> {
        let events = Arc::new(Events(Mutex::new(connection.try_clone()?)));
        let (mut made, mut running) = (None, None::<Arc<M::Further>>);
        let served = loop {
            let request = match read_frame(connection) {
                Err(FrameError::Closed) => break Ok(()),
                Err(error) => break Err(error.into()),
                Ok(request) => request,
            };
            let mut started = None;
            let result = match &request {
                Request::Exec(exec) if made.is_none() && running.is_none() => {
                    self.enter(number, exec).map(|further| made = Some(further))
                }
                Request::Start => self.start_further(number, &mut made).map(|further| {
                    running = Some(Arc::clone(&further));
                    started = Some(further);
                }),
                Request::Signal { signal } => running.as_ref().map_or_else(
                    || Err(refusal("the process does not run")),
                    |running| running.signal(*signal),
                ),
                Request::Resize(size) => {
                    resize(self.exec_pipes().get(&number), *size);
                    continue;
                }
                _ => Err(refusal("this is not a further process' to do")),
            };
            if let Err(error) = events.send(&result.map_or_else(Event::Failed, |()| Event::Done)) {
                break Err(error);
            }
            if let Some(further) = started {
                let events = Arc::clone(&events);
                // Ends with the process, which ends with the connection.
                thread::Builder::new().spawn(move || {
                    let out_of_memory = false;
                    if let Ok(code) = further.wait() {
                        // A host that is gone need not know.
                        let _ = events.send(&Event::Exited { code, out_of_memory });
                    }
                })?;
            }
        };
        self.exec_pipes().remove(&number);
        if let Some(running) = running {
            // It has ended where this fails.
            let _ = running.signal(Signal::KILL.as_raw());
        }
        served
    }

    fn enter(&self, number: u64, exec: &Exec) -> Result<M::Further, Failure> {
        let mut all = self.exec_pipes();
        if all.contains_key(&number) {
            return Err(refusal("there is a process of this number"));
        }
        let (pipes, stdio) = Pipes::new(exec.stdin).map_err(|error| failure(FailureKind::Other, &error))?;
        all.insert(number, pipes);
        drop(all);
        let made = self.machine.enter(&exec.process, stdio).and_then(|mut further| {
            if let Some(terminal) = further.take_terminal() {
                let pipes = of_terminal(terminal, exec.stdin)?;
                self.exec_pipes().insert(number, pipes);
            }
            Ok(further)
        });
        if made.is_err() {
            self.exec_pipes().remove(&number);
        }
        made
    }

    fn start_further(&self, number: u64, made: &mut Option<M::Further>) -> Result<Arc<M::Further>, Failure> {
        if !self.exec_pipes().get(&number).is_some_and(Pipes::all_claimed) {
            return Err(refusal("a standard stream has no connection"));
        }
        let mut further = made.take().ok_or_else(|| refusal("there is no such process"))?;
        further.start()?;
        Ok(Arc::new(further))
    }

    fn create(&self, create: &Create) -> Result<(), Failure> {
        let mut slot = self.pipes();
        if slot.is_some() {
            return Err(refusal("there is a container already"));
        }
        let (pipes, stdio) = Pipes::new(create.stdin).map_err(|error| failure(FailureKind::Other, &error))?;
        let terminal = self.machine.create(create, stdio)?;
        *slot = Some(match terminal {
            Some(terminal) => of_terminal(terminal, create.stdin)?,
            None => pipes,
        });
        Ok(())
    }

    fn start(&self) -> Result<(), Failure> {
        match &*self.pipes() {
            Some(pipes) if pipes.all_claimed() => self.machine.start(),
            Some(_) => Err(refusal("a standard stream has no connection")),
            None => Err(refusal("there is no container")),
        }
    }

    fn report_exit(&self, events: &Events) {
        let reported = self.machine.wait().and_then(|exit| {
            events.send(&Event::Exited {
                code: exit.code,
                out_of_memory: exit.out_of_memory,
            })
        });
        if let Err(error) = reported {
            eprintln!("rvm-agent: {error:#}");
            self.machine.power_off();
        }
    }

    fn exec_pipes(&self) -> MutexGuard<'_, BTreeMap<u64, Pipes>> {
        self.exec_pipes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pipes(&self) -> MutexGuard<'_, Option<Pipes>> {
        self.pipes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn admitted(stream: Stream, pipe: Option<OwnedFd>) -> Result<Admitted, String> {
    let pipe = pipe.ok_or_else(|| format!("{stream:?} is not there to be connected"))?;
    Ok(Admitted::Stream(stream, pipe))
}

fn of_terminal(terminal: OwnedFd, stdin: bool) -> Result<Pipes, Failure> {
    Pipes::of_terminal(terminal, stdin).map_err(|error| failure(FailureKind::Other, &error))
}

fn resize(pipes: Option<&Pipes>, size: TerminalSize) {
    let resized = pipes.map_or(Ok(()), |pipes| pipes.resize(size));
    if let Err(error) = resized {
        eprintln!("rvm-agent: resize a terminal: {error}");
    }
}

fn refusal(message: &str) -> Failure {
    Failure {
        kind: FailureKind::Other,
        message: message.to_owned(),
    }
}

/// The sending half of the control connection, which answers and the workload's end share.
struct Events(Mutex<UnixStream>);

impl Events {
    fn send(&self, event: &Event) -> Result<()> {
        let connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        write_frame(&*connection, event).context("send an event")
    }
}

/// Compares without telling by the time it takes how much was right. The length is no secret.
fn equal_in_constant_time(left: &[u8], right: &[u8]) -> bool {
    let difference = left
        .iter()
        .zip(right)
        .fold(0, |sum, (left, right)| sum | (left ^ right));
    left.len() == right.len() && std::hint::black_box(difference) == 0
}

/// Reads from a connection until a moment, however slowly the bytes come.
struct DeadlineReader<'a> {
    connection: &'a UnixStream,
    deadline: Instant,
}

impl Read for DeadlineReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.connection.set_read_timeout(Some(left))?;
        self.connection.read(buffer)
    }
}

#[cfg(test)]
mod tests;
