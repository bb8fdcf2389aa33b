//! Serves the host's connections: one for control, one for each of the workload's streams.
//!
//! A connection is a connected stream socket of whatever family; the type is [`UnixStream`] because the standard
//! library's methods on it are plain system calls that know nothing of the family either.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use oci_spec::runtime::Spec;
use rvm_isolation::{Exit, Stdio};
use rvm_protocol::{
    Create, Event, Failure, FailureKind, FrameError, Hello, Purpose, Request, Stream, VERSION, Welcome,
    read_frame, write_frame,
};

use crate::guest::failure;
use crate::streams::{self, Pipes};

/// Connections that have not yet said who they are. A supervisor opens four at most; more is someone else.
const MAX_PENDING: usize = 8;

/// How long a connection may take to say who it is.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// A token and a purpose fit many times over.
const MAX_HELLO_BYTES: u64 = 4096;

/// What the server acts on. All methods block until done.
pub(crate) trait Machine: Send + Sync + 'static {
    /// Makes the container, up to but not including `execve`.
    fn create(&self, spec: &Spec, stdio: Stdio) -> Result<(), Failure>;
    /// Executes the workload.
    fn start(&self) -> Result<(), Failure>;
    /// Sends a signal to the workload's first process.
    fn signal(&self, signal: i32) -> Result<(), Failure>;
    /// Waits for the end of the workload that was started.
    fn wait(&self) -> Result<Exit>;
    /// Ends the workload and the machine. The real one does not return.
    fn power_off(&self);
}

/// The state that connections share.
pub(crate) struct Server<M> {
    token: String,
    machine: M,
    pending: AtomicUsize,
    controlled: AtomicBool,
    pipes: Mutex<Option<Pipes>>,
    hello_deadline: Duration,
}

/// What an admitted connection is for, with what it needs.
enum Admitted {
    Control,
    Stream(Stream, OwnedFd),
}

impl<M: Machine> Server<M> {
    /// A server for whoever knows `token`.
    pub(crate) fn new(token: String, machine: M) -> Self {
        Self {
            token,
            machine,
            pending: AtomicUsize::new(0),
            controlled: AtomicBool::new(false),
            pipes: Mutex::new(None),
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
                // A stream that fails is one that ends; the host sees it end early.
                Ok(Admitted::Stream(stream, pipe)) => drop(streams::pump(stream, &connection, pipe)),
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
            Purpose::Stream(stream) => {
                let pipe = self.pipes().as_mut().and_then(|pipes| pipes.claim(stream));
                let pipe = pipe.ok_or_else(|| format!("{stream:?} is not there to be connected"))?;
                Ok(Admitted::Stream(stream, pipe))
            }
        }
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

    fn create(&self, create: &Create) -> Result<(), Failure> {
        let mut slot = self.pipes();
        if slot.is_some() {
            return Err(refusal("there is a container already"));
        }
        let (pipes, stdio) = Pipes::new(create.stdin).map_err(|error| failure(FailureKind::Other, &error))?;
        self.machine.create(&create.spec, stdio)?;
        *slot = Some(pipes);
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

    fn pipes(&self) -> MutexGuard<'_, Option<Pipes>> {
        self.pipes.lock().unwrap_or_else(PoisonError::into_inner)
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
