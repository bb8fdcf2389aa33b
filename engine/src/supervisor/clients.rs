//! Commands that are connected to a supervisor, and what they may ask for at each point of the container's life.

use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use rvm_protocol::{Stream, read_frame, write_frame};

use super::ClientStreams;
use crate::control::{Event, Hello, Request, SOCKET, VERSION};
use crate::runtime::{Access, Alarm};
use crate::socket;

/// A command greets within this; a stuck one must not hold a thread for ever.
const GREETING_LIMIT: Duration = Duration::from_secs(5);

/// Connections that are served at once. Each takes a thread.
const MOST: usize = 64;

/// Every connected command.
pub(super) struct Clients {
    shared: Mutex<Shared>,
    alarm: Alarm,
    /// The starting command's output streams, to be cut when nobody reads them or the container is to end.
    outputs: [Output; 2],
}

struct Output {
    stream: Stream,
    connection: UnixStream,
    wants_closed: AtomicBool,
}

impl Output {
    fn new(stream: Stream, connection: &UnixStream) -> io::Result<Self> {
        Ok(Self {
            stream,
            connection: connection.try_clone()?,
            wants_closed: AtomicBool::new(false),
        })
    }

    fn cut(&self) {
        // It fails where the command has closed its end already.
        let _ = self.connection.shutdown(Shutdown::Both);
    }
}

struct Shared {
    phase: Phase,
    /// The signal by which a command ended the container before, or instead of, its workload's own end.
    ended_by: Option<u8>,
    connections: BTreeMap<u64, UnixStream>,
    /// Number of the next connection.
    next: u64,
}

/// What a signal means.
enum Phase {
    /// It waits for the workload, unless it would end it: then it ends the start.
    Starting(Vec<i32>),
    /// It goes to the workload.
    Running(Access),
}

impl Clients {
    /// Serves the command that started this supervisor.
    pub(super) fn new(channel: UnixStream, streams: &ClientStreams) -> io::Result<Arc<Self>> {
        let shared = Shared {
            phase: Phase::Starting(Vec::new()),
            ended_by: None,
            connections: BTreeMap::new(),
            next: 0,
        };
        let clients = Arc::new(Self {
            shared: Mutex::new(shared),
            alarm: Alarm::default(),
            outputs: [
                Output::new(Stream::Stdout, &streams.stdout)?,
                Output::new(Stream::Stderr, &streams.stderr)?,
            ],
        });
        clients.serve(channel)?;
        Ok(clients)
    }

    /// Lets a start be given up.
    pub(super) fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    /// The signal by which a command ended the container before, or instead of, its workload's own end.
    pub(super) fn ended_by(&self) -> Option<u8> {
        self.lock()?.ended_by
    }

    /// Whether the attached command has said that nobody reads this stream any more.
    pub(super) fn wants_closed(&self, stream: Stream) -> bool {
        self.outputs
            .iter()
            .any(|output| output.stream == stream && output.wants_closed.load(Ordering::SeqCst))
    }

    /// Accepts further commands at the container's socket.
    pub(super) fn listen(self: &Arc<Self>, run_directory: &Path) -> io::Result<()> {
        let listener = socket::bind(&run_directory.join(SOCKET))?;
        let clients = Arc::clone(self);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let clients = Arc::clone(&clients);
                if clients
                    .lock()
                    .is_some_and(|shared| shared.connections.len() < MOST)
                {
                    thread::spawn(move || {
                        if greet(&stream).is_some() {
                            // A command that cannot be served sees its connection close.
                            let _ = clients.serve(stream);
                        }
                    });
                }
            }
        });
        Ok(())
    }

    /// The workload runs: signals that waited are sent, and everybody is told.
    pub(super) fn started(&self, access: Access) {
        let Some(mut shared) = self.lock() else { return };
        if shared.ended_by.is_some() {
            // It came too late for the start to be given up.
            access.kill();
        } else if let Phase::Starting(waiting) = &shared.phase {
            waiting.iter().for_each(|signal| access.signal(*signal));
        }
        shared.phase = Phase::Running(access);
        drop(shared);
        self.broadcast(&Event::Started);
    }

    /// Tells every connected command. One that is gone or does not read is passed over: an event is far smaller than
    /// a socket's buffer.
    pub(super) fn broadcast(&self, event: &Event) {
        if let Some(shared) = self.lock() {
            for connection in shared.connections.values() {
                let _ = write_frame(connection, event);
            }
        }
    }

    fn serve(self: &Arc<Self>, stream: UnixStream) -> io::Result<()> {
        stream.set_write_timeout(Some(GREETING_LIMIT))?;
        let Some(mut shared) = self.lock() else {
            return Ok(());
        };
        let number = shared.next;
        shared.next += 1;
        shared.connections.insert(number, stream.try_clone()?);
        drop(shared);
        let clients = Arc::clone(self);
        thread::spawn(move || {
            while let Ok(request) = read_frame(&stream) {
                clients.handle(&request, &stream);
            }
            if let Some(mut shared) = clients.lock() {
                shared.connections.remove(&number);
            }
        });
        Ok(())
    }

    fn handle(&self, request: &Request, connection: &UnixStream) {
        match request {
            Request::Signal { signal } => self.signal(*signal),
            Request::CloseOutput { stream } => {
                for output in self.outputs.iter().filter(|output| output.stream == *stream) {
                    output.wants_closed.store(true, Ordering::SeqCst);
                    output.cut();
                }
            }
            Request::Kill => self.kill(),
            Request::Inspect => self.inspect(connection),
        }
    }

    fn inspect(&self, connection: &UnixStream) {
        let access = self.lock().and_then(|shared| match &shared.phase {
            Phase::Running(access) => Some(access.clone()),
            Phase::Starting(_) => None,
        });
        // Without the lock: a machine that does not answer must not hold up other commands.
        let (machine, error) = match access.map(|access| access.status()) {
            Some(Ok(machine)) => (machine.map(Box::new), None),
            Some(Err(error)) => (None, Some(super::chain(&error))),
            None => (None, Some("the container is being started".to_owned())),
        };
        // With it, for others write to the same connection. A command that is gone needs no answer.
        if let Some(_shared) = self.lock() {
            let _ = write_frame(connection, &Event::Inspected { machine, error });
        }
    }

    fn signal(&self, signal: i32) {
        let Some(mut shared) = self.lock() else { return };
        match (&mut shared.phase, fatal(signal)) {
            (Phase::Running(access), _) => {
                let access = access.clone();
                // A guest that does not read must not hold up other commands.
                drop(shared);
                access.signal(signal);
            }
            (Phase::Starting(_), Some(fatal)) => {
                shared.ended_by = Some(fatal);
                self.alarm.raise();
            }
            (Phase::Starting(waiting), None) => waiting.push(signal),
        }
    }

    fn kill(&self) {
        let Some(mut shared) = self.lock() else { return };
        shared.ended_by = fatal(rustix::process::Signal::KILL.as_raw());
        match &shared.phase {
            Phase::Running(access) => access.kill(),
            Phase::Starting(_) => self.alarm.raise(),
        }
        drop(shared);
        // Whoever is attached and does not read must not keep the container from ending.
        self.outputs.iter().for_each(Output::cut);
    }

    /// `None` only where a thread panicked, which aborts the process.
    fn lock(&self) -> Option<MutexGuard<'_, Shared>> {
        self.shared.lock().ok()
    }
}

/// The signals that a person or a service manager ends a command with.
fn fatal(signal: i32) -> Option<u8> {
    use rustix::process::Signal;
    [Signal::HUP, Signal::INT, Signal::QUIT, Signal::KILL, Signal::TERM]
        .into_iter()
        .find(|fatal| fatal.as_raw() == signal)
        .and_then(|fatal| u8::try_from(fatal.as_raw()).ok())
}

fn greet(stream: &UnixStream) -> Option<()> {
    stream.set_read_timeout(Some(GREETING_LIMIT)).ok()?;
    let hello: Hello = read_frame(stream).ok()?;
    if hello.version > VERSION {
        return None;
    }
    write_frame(stream, &Event::Welcome { version: VERSION }).ok()?;
    stream.set_read_timeout(None).ok()
}
