//! The process that owns one running container, from the moment it is made until its end is on record.
//!
//! There is no daemon. The command that runs a container starts this process in a session of its own and hands it the
//! container's lock; whatever happens to the command, the container goes on, and whatever happens to this process, the
//! workload ends with it (parent-death signals, and the VMM's events socket) and the lock is free.

mod clients;
mod handoff;
mod pump;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rvm_protocol::Stream;

use crate::cgroup::{self, ContainerCgroup};
use crate::control::Event;
use crate::record::{Exited, Isolation, Record, State, now_ms};
use crate::runtime::{self, Context, Runtime, Streams};
use crate::store::{self, Owned, Store};
use crate::timeline::{Phase, Timeline};
use crate::{Layout, layout, log};
use clients::Clients;
pub(crate) use handoff::{ClientStreams, Handoff};

/// Why a supervisor could not do its work. What goes wrong with the container itself is on the container's record and
/// not here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The starting command did not hand over what is needed.
    #[error("the supervisor was not given its descriptors")]
    Handoff(#[source] io::Error),
    /// The container's files could not be used.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Why a container ended other than by its workload's own end.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("cannot use {0}")]
    File(PathBuf, #[source] io::Error),
    #[error("cannot use cgroups")]
    Cgroup(#[from] cgroup::Error),
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Runs the container `id` to its end. `channel` is the socket over which the starting command hands over the lock and
/// its streams, and then sends requests as any other command does; it is told what `timeline` has collected.
///
/// # Errors
/// As [`Error`] says; the container is then cleaned up by the next command.
pub fn run(layout: &Layout, id: &str, channel: UnixStream, timeline: Timeline) -> Result<(), Error> {
    timeline.mark(Phase::Supervised);
    let handoff = Handoff::receive(&channel).map_err(Error::Handoff)?;
    let store = Store::new(layout.clone());
    let owned = Owned::inherited(store.directory(id), handoff.lock);
    let record = owned.read_record()?;
    let clients = Clients::new(channel, &handoff.streams).map_err(Error::Handoff)?;
    let supervisor = Supervisor {
        store,
        owned,
        record,
        layout: layout.clone(),
        clients,
        timeline,
    };
    supervisor.run(handoff.streams)
}

struct Supervisor {
    store: Store,
    owned: Owned,
    record: Record,
    layout: Layout,
    clients: Arc<Clients>,
    timeline: Timeline,
}

impl Supervisor {
    fn run(mut self, streams: ClientStreams) -> Result<(), Error> {
        let outcome = self.supervise(streams);
        let exited = match outcome {
            Ok(exited) => exited,
            Err((code, error)) => {
                let ended_by = self.clients.ended_by();
                Exited {
                    code: ended_by.map_or(code, |signal| 128 + signal),
                    out_of_memory: false,
                    error: ended_by.is_none().then(|| chain(&error)),
                    finished_ms: now_ms(),
                    started_ms: self.record.state.started_ms(),
                }
            }
        };
        let recorded = self.record_end(&exited);
        self.timeline.mark(Phase::TornDown);
        let mut error = exited.error;
        if let Err(cause) = &recorded {
            error.get_or_insert_with(|| chain(cause));
        }
        self.clients.broadcast(&Event::Ended {
            code: exited.code,
            out_of_memory: exited.out_of_memory,
            error,
            timeline: self.timeline.stamps(),
        });
        Ok(recorded?)
    }

    fn record_end(&mut self, exited: &Exited) -> Result<(), store::Error> {
        self.record.state = State::Exited(exited.clone());
        if self.record.auto_remove {
            return self.store.remove(&self.owned, &self.record);
        }
        self.owned.write_record(&self.record)?;
        self.store.clean_up(&self.record.id)
    }

    /// Runs the workload and cleans up after it. The exit code beside an error is Docker's for a container that could
    /// not be run.
    fn supervise(&mut self, streams: ClientStreams) -> Result<Exited, (u8, RunError)> {
        let failed = |error| (125, error);
        let spec = self.owned.read_spec().map_err(|error| failed(error.into()))?;
        let run_directory = self.store.run_directory(&self.record.id);
        layout::create_private(&run_directory)
            .map_err(|source| failed(RunError::File(run_directory.clone(), source)))?;
        self.clients
            .listen(&run_directory)
            .map_err(|source| failed(RunError::File(run_directory.clone(), source)))?;
        let cgroup = self.cgroup().map_err(|error| failed(error.into()))?;
        let context = Context {
            record: &self.record,
            spec: &spec,
            directory: self.owned.directory(),
            run_directory: &run_directory,
            layout: &self.layout,
            cgroup: cgroup.as_ref(),
            alarm: self.clients.alarm(),
            timeline: &self.timeline,
        };
        let created = Runtime::create(&context);
        let outcome = match created {
            Ok((runtime, workload)) => self.follow(runtime, workload, streams),
            Err(error) => Err((error.exit_code(), error.into())),
        };
        let ended = cgroup.map_or(Ok(()), ContainerCgroup::end);
        let exited = outcome?;
        ended.map_err(|error| failed(error.into()))?;
        Ok(exited)
    }

    /// The container's cgroups. Container mode cannot do without; a virtual machine goes without where there are none,
    /// because its limits are enforced inside and it ends with its supervisor anyway.
    fn cgroup(&self) -> Result<Option<ContainerCgroup>, cgroup::Error> {
        let needed = self.record.isolation == Isolation::Container;
        match ContainerCgroup::create(&self.record.id, needed) {
            Ok(cgroup) => Ok(Some(cgroup)),
            // A machine without cgroup2, or a user who may not use it.
            Err(_) if !needed => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn follow(
        &mut self,
        mut runtime: Runtime,
        workload: Streams,
        streams: ClientStreams,
    ) -> Result<Exited, (u8, RunError)> {
        let mut pumps = None;
        let outcome = self.start_and_wait(&mut runtime, workload, streams, &mut pumps);
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
        runtime.end().map_err(|error| (125, error.into()))?;
        if let Err(error) = drained {
            exited.error = Some(format!("the log is incomplete: {error}"));
        }
        Ok(exited)
    }

    fn start_and_wait(
        &mut self,
        runtime: &mut Runtime,
        workload: Streams,
        streams: ClientStreams,
        pumps: &mut Option<Pumps>,
    ) -> Result<Exited, (u8, RunError)> {
        let failed = |error: runtime::Error| (error.exit_code(), error.into());
        let log = log::Writer::open(self.owned.directory())
            .map_err(|source| (125, RunError::File(self.owned.directory().join("log"), source)))?;
        *pumps = Some(Pumps::start(
            workload,
            streams,
            log,
            &self.clients,
            &self.timeline,
        ));
        self.timeline.mark(Phase::Isolated);
        runtime.start().map_err(failed)?;
        self.timeline.mark(Phase::Executed);
        self.record.state = State::Running {
            supervisor_pid: rustix::process::getpid().as_raw_nonzero().get(),
            pid: runtime.pid(),
            started_ms: now_ms(),
        };
        self.owned
            .write_record(&self.record)
            .map_err(|error| (125, error.into()))?;
        self.clients.started(runtime.access().map_err(failed)?);
        let exit = runtime.wait().map_err(failed)?;
        self.timeline.mark(Phase::Exited);
        let exited = Exited {
            code: exit.code,
            out_of_memory: exit.out_of_memory,
            error: exit
                .out_of_memory
                .then(|| "out of memory: the workload reached its memory limit".to_owned()),
            finished_ms: now_ms(),
            started_ms: self.record.state.started_ms(),
        };
        // Now, because output that an attached command does not read can hold up the rest for as long as it likes.
        self.record.state = State::Exited(exited.clone());
        self.owned
            .write_record(&self.record)
            .map_err(|error| (125, error.into()))?;
        Ok(exited)
    }
}

/// The threads that copy the workload's output.
struct Pumps {
    outputs: [JoinHandle<io::Result<()>>; 2],
}

impl Pumps {
    fn start(
        workload: Streams,
        client: ClientStreams,
        log: log::Writer,
        clients: &Arc<Clients>,
        timeline: &Timeline,
    ) -> Self {
        let log = Arc::new(Mutex::new(log));
        let output = |stream, source, client| {
            let (log, clients, timeline) = (Arc::clone(&log), Arc::clone(clients), timeline.clone());
            thread::spawn(move || {
                let source = pump::Marked::new(source, timeline);
                pump::output(stream, source, client, &log, || clients.wants_closed(stream))
            })
        };
        if let Some(sink) = workload.stdin {
            // Not waited for: it may sit in a read from a command that never sends, and ends with the process.
            thread::spawn(move || pump::input(client.stdin, sink));
        }
        Self {
            outputs: [
                output(Stream::Stdout, workload.stdout, client.stdout),
                output(Stream::Stderr, workload.stderr, client.stderr),
            ],
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
