//! The process that owns one running container, from the moment it is made until its end is on record.
//!
//! There is no daemon. The command that runs a container starts this process in a session of its own and hands it the
//! container's lock; whatever happens to the command, the container goes on, and whatever happens to this process, the
//! workload ends with it (parent-death signals, and the VMM's events socket) and the lock is free.

mod book;
mod clients;
mod exec;
mod handoff;
mod health;
mod invocation;
mod pump;
mod screen;

use std::cell::Cell;
use std::env;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use oci_spec::runtime::{LinuxResources, Spec};
use rvm_protocol::Stream;
use signal_hook::iterator::Signals;

use crate::cgroup::{self, ContainerCgroup};
use crate::control::Event;
use crate::health::Check;
use crate::network::{self, Connected};
use crate::record::{Exited, Isolation, Record, State, now_ms};
use crate::restart::Restarts;
use crate::runtime::{self, Access, Context, Runtime, Streams};
use crate::spec::{self, Changes};
use crate::store::{self, Owned, Store};
use crate::timeline::{Phase, Timeline};
use crate::volumes::{self, Filling, Volumes};
use crate::{Layout, layout, log, signals};
use book::Book;
use clients::Clients;
pub(crate) use handoff::Handoff;
pub use handoff::{ClientStreams, Wanted};
pub(crate) use invocation::ENVIRONMENT;
pub use invocation::Invocation;
use pump::Inlet;

/// Why a supervisor could not do its work. What goes wrong with the container itself is on the container's record and
/// not here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The starting command did not hand over what is needed.
    #[error("the supervisor was not given its descriptors")]
    Handoff(#[source] io::Error),
    /// The directories cannot be used.
    #[error(transparent)]
    Layout(#[from] layout::Error),
    /// Signals cannot be caught.
    #[error("cannot catch signals")]
    Signals(#[source] io::Error),
    /// The container's files could not be used.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Why a container ended other than by its workload's own end.
#[derive(Debug, thiserror::Error)]
enum RunError {
    /// It has been stopped while it waited to be started again.
    #[error("stopped")]
    NotAgain(Box<Exited>),
    #[error("cannot use {0}")]
    File(PathBuf, #[source] io::Error),
    #[error("cannot connect the container to its networks")]
    Network(#[from] network::Error),
    #[error("cannot connect the container to its networks")]
    Namespace(#[from] oci_spec::OciSpecError),
    #[error("cannot use cgroups")]
    Cgroup(#[from] cgroup::Error),
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("cannot use the container's volumes")]
    Volume(#[from] volumes::Error),
}

/// Runs the container `id` to its end. `channel` is the socket over which the starting command hands over the lock and
/// its streams, and then sends requests as any other command does; it is told what `timeline` has collected.
fn run(layout: &Layout, id: &str, channel: UnixStream, timeline: Timeline) -> Result<(), Error> {
    timeline.mark(Phase::Supervised);
    let handoff = Handoff::receive(&channel).map_err(Error::Handoff)?;
    let store = Store::new(layout.clone());
    let owned = Owned::inherited(store.directory(id), handoff.lock);
    let book = Arc::new(Book::open(store, owned)?);
    let clients = Clients::new(channel, handoff.streams, Arc::clone(&book)).map_err(Error::Handoff)?;
    stop_at_term(&clients).map_err(Error::Signals)?;
    let supervisor = Supervisor {
        book,
        layout: layout.clone(),
        clients,
        timeline,
        end_is_told: Cell::new(false),
    };
    supervisor.run()
}

/// Stops the container when this process is told to end: the machine goes down.
fn stop_at_term(clients: &Arc<Clients>) -> io::Result<()> {
    let mut signals = Signals::new([signals::TERM])?;
    let clients = Arc::clone(clients);
    thread::spawn(move || {
        for _ in signals.forever() {
            clients.stop();
        }
    });
    Ok(())
}

/// Further processes end with the workload, and their commands are told within this.
const EXEC_LIMIT: Duration = Duration::from_secs(2);

struct Supervisor {
    book: Arc<Book>,
    layout: Layout,
    clients: Arc<Clients>,
    timeline: Timeline,
    /// Whether the container's end has been told.
    end_is_told: Cell<bool>,
}

impl Supervisor {
    fn run(self) -> Result<(), Error> {
        let outcome = self.supervise();
        let exited = match outcome {
            Ok(exited) => exited,
            Err((_, RunError::NotAgain(last))) => *last,
            Err((code, error)) => {
                let ended_by = self.clients.ended_by();
                let exited = Exited {
                    code: ended_by.map_or(code, |signal| 128 + signal),
                    out_of_memory: false,
                    error: ended_by.is_none().then(|| chain(&error)),
                    finished_ms: now_ms(),
                    started_ms: self.started_ms(),
                };
                self.tell_end(&exited);
                exited
            }
        };
        let (restarts, recorded) = match self.restarts_after(&exited) {
            Some(restarts) => (true, self.record_restart(&exited, restarts)),
            None => (false, self.record_end(&exited)),
        };
        self.timeline.mark(Phase::TornDown);
        let mut error = exited.error.clone();
        if let Err(cause) = &recorded {
            error.get_or_insert_with(|| chain(cause));
        }
        let restarts = restarts && recorded.is_ok();
        self.clients.broadcast(&Event::Ended {
            code: exited.code,
            out_of_memory: exited.out_of_memory,
            error,
            timeline: self.timeline.stamps(),
            restarts,
        });
        recorded?;
        match restarts {
            // It may have been stopped meanwhile.
            true if self.clients.is_settled() => Ok(self.record_end(&exited)?),
            true => {
                let error = start_over(self.book.another_lock()?);
                Ok(self.record_end(&Exited {
                    error: Some(format!("cannot be started again: {error}")),
                    ..exited
                })?)
            }
            false => Ok(()),
        }
    }

    /// Whether and when the container is started again; `None` where it stays as it is.
    fn restarts_after(&self, exited: &Exited) -> Option<Restarts> {
        let record = self.book.record();
        let has_run = self.clients.has_run();
        // What never ran would not the next time either, unless it has before.
        if self.clients.is_settled() || (!has_run && record.restarts.count == 0) {
            return None;
        }
        let ran_ms = exited
            .started_ms
            .filter(|_| has_run)
            .map_or(0, |started_ms| exited.finished_ms.saturating_sub(started_ms));
        record.restarts.next(record.settings.restart, exited.code, ran_ms)
    }

    fn record_restart(&self, exited: &Exited, restarts: Restarts) -> Result<(), store::Error> {
        self.book.update(|record| {
            record.state = restarting(exited);
            record.restarts = restarts;
        })?;
        self.book.rest()
    }

    fn record_end(&self, exited: &Exited) -> Result<(), store::Error> {
        self.book
            .update(|record| record.state = State::Exited(exited.clone()))?;
        self.book.close()
    }

    /// When the workload started, if it has: a container that has ended before has an older moment on record.
    fn started_ms(&self) -> Option<u64> {
        match self.book.record().state {
            State::Running { started_ms, .. } => Some(started_ms),
            State::Exited(exited) | State::Restarting { last: exited, .. } if self.clients.has_run() => {
                exited.started_ms
            }
            State::Exited(_) | State::Restarting { .. } | State::Created => None,
        }
    }

    /// Runs the workload and cleans up after it. The exit code beside an error is Docker's for a container that could
    /// not be run.
    fn supervise(&self) -> Result<Exited, (u8, RunError)> {
        let failed = |error| (125, error);
        let spec = self.book.spec().map_err(|error| failed(error.into()))?;
        let run_directory = self.book.run_directory();
        layout::create_private(&run_directory)
            .map_err(|source| failed(RunError::File(run_directory.clone(), source)))?;
        self.clients
            .listen(&run_directory)
            .map_err(|source| failed(RunError::File(run_directory.clone(), source)))?;
        self.rest()?;
        let record = self.book.record();
        let cgroup = cgroup(&record).map_err(|error| failed(error.into()))?;
        let outcome = self.run_connected(&record, spec, cgroup.as_ref());
        let ended = cgroup.map_or(Ok(()), ContainerCgroup::end);
        let exited = outcome?;
        ended.map_err(|error| failed(error.into()))?;
        Ok(exited)
    }

    /// Waits as long as is to be waited before the container is started again.
    fn rest(&self) -> Result<(), (u8, RunError)> {
        let record = self.book.record();
        match record.state {
            State::Restarting { last, .. } if !self.clients.rest(record.restarts.wait()) => {
                Err((last.code, RunError::NotAgain(Box::new(last))))
            }
            State::Restarting { .. } => Ok(()),
            // Somebody starts it.
            _ => self
                .book
                .update(|record| (record.restarts, record.stopped) = (Restarts::default(), false))
                .map_err(|error| (125, error.into())),
        }
    }

    /// Runs the workload connected to its networks, which it leaves in the end.
    fn run_connected(
        &self,
        record: &Record,
        spec: Spec,
        cgroup: Option<&ContainerCgroup>,
    ) -> Result<Exited, (u8, RunError)> {
        let failed = |error: RunError| (125, error);
        let store = self.book.store();
        let network = Connected::new(store, record, &spec, self.clients.ports())
            .map_err(|error| failed(error.into()))?;
        let spec = network.in_namespace(spec).map_err(|error| failed(error.into()));
        let outcome = spec.and_then(|spec| self.run_in(record, &spec, cgroup, &network));
        drop(network);
        // Whatever it is on by now: it may have been connected to others, or disconnected, meanwhile.
        let left = store.leave_networks(&record.id);
        let exited = outcome?;
        left.map_err(|error| failed(error.into()))?;
        Ok(exited)
    }

    /// Runs the workload in cgroups that the caller removes.
    fn run_in(
        &self,
        record: &Record,
        spec: &Spec,
        cgroup: Option<&ContainerCgroup>,
        network: &Connected,
    ) -> Result<Exited, (u8, RunError)> {
        let around = spec::around(spec, &Changes::of_the_host(spec));
        if around != LinuxResources::default() {
            cgroup::limit(&record.id, &around).map_err(|error| (125, error.into()))?;
        }
        let mut spec = spec::inside(spec);
        let filling = self
            .begin_filling(record, &mut spec)
            .map_err(|error| (125, error.into()))?;
        let context = Context {
            record,
            spec: &spec,
            directory: self.book.directory(),
            run_directory: &self.book.run_directory(),
            layout: &self.layout,
            cgroup,
            network,
            alarm: self.clients.alarm(),
            timeline: &self.timeline,
        };
        let (runtime, workload) =
            Runtime::create(&context).map_err(|error| (error.exit_code(), error.into()))?;
        if let Err(error) = filling.done() {
            // What went wrong is what the person needs to know.
            let _ = runtime.end();
            return Err((125, error.into()));
        }
        let journal = &self.book.store().journal;
        journal.mounted(record);
        let outcome = self.follow(runtime, workload);
        journal.unmounted(record);
        outcome
    }

    fn begin_filling(&self, record: &Record, spec: &mut Spec) -> Result<Filling, volumes::Error> {
        let mounts = spec.mounts_mut().as_deref_mut().unwrap_or_default();
        Filling::begin(&Volumes::open(&self.layout)?, record, mounts)
    }

    fn follow(&self, mut runtime: Runtime, workload: Streams) -> Result<Exited, (u8, RunError)> {
        let mut pumps = None;
        let outcome = self.start_and_wait(&mut runtime, workload, &mut pumps);
        let drain = || pumps.map_or(Ok(()), Pumps::join);
        let mut exited = match outcome {
            Ok(exited) => exited,
            Err(error) => {
                // What went wrong is what the person needs to know; ending the rest can only fail for the same reason.
                let _ = runtime.end();
                let _ = drain();
                return Err(error);
            }
        };
        // Before the machine is powered off: bytes may still be on their way.
        let drained = drain();
        self.clients.wait_for_execs(EXEC_LIMIT);
        runtime.end().map_err(|error| (125, error.into()))?;
        if let Err(error) = drained {
            exited.error = Some(format!("the log is incomplete: {error}"));
        }
        Ok(exited)
    }

    fn start_and_wait(
        &self,
        runtime: &mut Runtime,
        workload: Streams,
        pumps: &mut Option<Pumps>,
    ) -> Result<Exited, (u8, RunError)> {
        let failed = |error: runtime::Error| (error.exit_code(), error.into());
        let settings = self.book.record().settings;
        let log = log::Writer::open(self.book.directory(), settings.log)
            .map_err(|source| (125, RunError::File(self.book.directory().join("log"), source)))?;
        // What one command sends to a terminal has no end that the workload sees.
        let once = settings.stdin_once && !settings.tty;
        self.clients.open_inlet(Inlet::new(workload.stdin, once));
        self.clients.open_terminal(workload.terminal);
        *pumps = Some(Pumps::start(
            workload.stdout,
            workload.stderr,
            log,
            &self.clients,
            &self.timeline,
        ));
        self.timeline.mark(Phase::Isolated);
        runtime.start().map_err(failed)?;
        self.timeline.mark(Phase::Executed);
        let started_ms = now_ms();
        let running = State::Running {
            supervisor_pid: own_pid(),
            pid: runtime.pid(),
            started_ms,
            paused: false,
        };
        self.put(running)?;
        self.book.tell("start", &[]);
        let access = runtime.access().map_err(failed)?;
        let health = settings
            .health
            .map(|check| self.watch_health(check, access.clone()));
        self.clients.started(access);
        // From here on it rests. Where this fails, it rests with more memory.
        let _ = rvm_isolation::release_program_pages();
        let exit = runtime.wait();
        if let Some((runs, watcher)) = health {
            drop(runs);
            // A panic aborts the process, so joining cannot fail.
            let _ = watcher.join();
        }
        let exit = exit.map_err(failed)?;
        self.timeline.mark(Phase::Exited);
        let exited = Exited {
            code: exit.code,
            out_of_memory: exit.out_of_memory,
            error: exit
                .out_of_memory
                .then(|| "out of memory: the workload reached its memory limit".to_owned()),
            finished_ms: now_ms(),
            started_ms: Some(started_ms),
        };
        // Now, because output that an attached command does not read can hold up the rest for as long as it likes.
        if self.restarts_after(&exited).is_some() {
            self.put(restarting(&exited))?;
            self.tell_end(&exited);
        } else {
            self.put(State::Exited(exited.clone()))?;
            self.tell_end(&exited);
            self.clients.exited(exited.code);
        }
        Ok(exited)
    }

    /// Looks at the container's health until the sender is dropped.
    fn watch_health(&self, check: Check, access: Access) -> (Sender<()>, JoinHandle<()>) {
        let (runs, ended) = mpsc::channel();
        let (book, clients) = (Arc::clone(&self.book), Arc::clone(&self.clients));
        let watcher = thread::spawn(move || health::watch(&check, &access, &clients, &book, &ended));
        (runs, watcher)
    }

    /// Once, although it may turn out later that something else went wrong.
    fn tell_end(&self, exited: &Exited) {
        if !self.end_is_told.replace(true) {
            self.book.tell_end(exited);
        }
    }

    fn put(&self, state: State) -> Result<(), (u8, RunError)> {
        self.book
            .update(|record| record.state = state)
            .map_err(|error| (125, error.into()))
    }
}

/// A container that this process starts again.
fn restarting(last: &Exited) -> State {
    State::Restarting {
        supervisor_pid: own_pid(),
        last: last.clone(),
    }
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Begins again with the container whose lock this is, in the same process but with nothing of what it was: commands'
/// connections, threads and descriptors. Returns only where that fails.
fn start_over(lock: File) -> io::Error {
    let exec = || {
        let (near, far) = UnixStream::pair()?;
        let streams = ClientStreams::default();
        Handoff { lock, streams }.send(&near)?;
        Ok(Command::new("/proc/self/exe")
            .args(env::args_os().skip(1))
            .stdin(OwnedFd::from(far))
            .exec())
    };
    exec().unwrap_or_else(|error| error)
}

/// The container's cgroups. Container mode cannot do without; a virtual machine goes without where there are none,
/// because its limits are enforced inside and it ends with its supervisor anyway.
fn cgroup(record: &Record) -> Result<Option<ContainerCgroup>, cgroup::Error> {
    let needed = record.isolation == Isolation::Container;
    match ContainerCgroup::create(&record.id, needed) {
        Ok(cgroup) => Ok(Some(cgroup)),
        // A machine without cgroup2, or a user who may not use it.
        Err(_) if !needed => Ok(None),
        Err(error) => Err(error),
    }
}

/// The threads that copy the workload's output.
struct Pumps {
    outputs: Vec<JoinHandle<io::Result<()>>>,
}

impl Pumps {
    fn start(
        stdout: File,
        stderr: Option<File>,
        log: log::Writer,
        clients: &Arc<Clients>,
        timeline: &Timeline,
    ) -> Self {
        let log = Arc::new(Mutex::new(log));
        let output = |stream, source| {
            let (log, clients, timeline) = (Arc::clone(&log), Arc::clone(clients), timeline.clone());
            thread::spawn(move || {
                let source = pump::Marked::new(source, timeline);
                let (audience, keep) = (clients.audience(stream), pump::logged(stream, &log));
                pump::output(source, audience, keep, || clients.wants_closed(stream))
            })
        };
        if stderr.is_none() {
            clients.audience(Stream::Stderr).close();
        }
        let both = [(Stream::Stdout, Some(stdout)), (Stream::Stderr, stderr)];
        Self {
            outputs: both
                .into_iter()
                .filter_map(|(stream, source)| Some(output(stream, source?)))
                .collect(),
        }
    }

    /// Waits until everything the workload wrote has been copied.
    fn join(self) -> io::Result<()> {
        // A thread that panics aborts the process, so joining cannot fail.
        self.outputs
            .into_iter()
            .map(|output| output.join().unwrap_or(Ok(())))
            .fold(Ok(()), Result::and)
    }
}

/// Longest text about one failure that is passed on, in bytes: a guest's console has 8 KiB in it.
const MOST_TEXT: usize = 16 << 10;

/// Text that may quote an image or a guest, without control characters and of bounded length.
#[must_use]
pub fn printable(text: &str) -> String {
    let end = text.floor_char_boundary(MOST_TEXT);
    let is_fine = |character: char| character == '\n' || !character.is_control();
    text[..end]
        .chars()
        .map(|character| {
            if is_fine(character) {
                character
            } else {
                char::REPLACEMENT_CHARACTER
            }
        })
        .collect()
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // `transparent` errors show their cause's text already.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    printable(&text)
}
