//! Commands that are connected to a supervisor, and what they may ask for at each point of the container's life.

mod network;
mod workload;

use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, RwLock};
use std::thread;
use std::time::Duration;

use rvm_protocol::{Purpose, Stream, TerminalSize, read_frame, write_frame};

use super::ClientStreams;
use super::book::Book;
use super::exec::{self, Outputs};
use super::pump::{Audience, Inlet};
use super::screen::Screen;
use crate::control::{Event, Exec, Hello, Request, SOCKET, VERSION};
use crate::life::DEATH_LIMIT;
use crate::network::Ports;
use crate::record::State;
use crate::runtime::{Access, Alarm, Terminal};
use crate::{signals, socket};
use workload::Standstill;

/// A command greets within this; a stuck one must not hold a thread for ever.
const GREETING_LIMIT: Duration = Duration::from_secs(5);

/// Connections that are served at once. Each takes a thread.
const MOST: usize = 64;

/// Before another connection is accepted where that has failed.
const PAUSE: Duration = Duration::from_millis(100);

/// The command that started the supervisor.
const STARTER: u64 = 0;

/// Every connected command.
pub(super) struct Clients {
    shared: Mutex<Shared>,
    exec_ended: Condvar,
    standstill: RwLock<Standstill>,
    /// Held by who changes the workload's limits.
    limits: Mutex<()>,
    alarm: Alarm,
    book: Arc<Book>,
    ports: Ports,
    /// What commands are connected to.
    streams: Workload,
}

/// The workload's streams, as commands see them.
#[derive(Default)]
pub(super) struct Workload {
    /// `None` until the workload is there.
    inlet: OnceLock<Inlet>,
    stdout: Output,
    stderr: Output,
    screen: Screen,
}

#[derive(Default)]
struct Output {
    audience: Audience,
    /// The command that started the container has nobody any more who reads it.
    wants_closed: AtomicBool,
}

/// A connected command.
struct Client {
    control: UnixStream,
    /// Its output streams, to be cut when it is gone or the container is to end, and by name when nobody reads one.
    outputs: Vec<(Stream, UnixStream)>,
    /// It wants to know the workload's exit code.
    waits: bool,
    /// Of the process that it has asked for.
    exec: Option<Arc<Outputs>>,
}

impl Client {
    fn cut(&self) {
        for (_, output) in &self.outputs {
            // It fails where the command has closed its end already.
            let _ = output.shutdown(Shutdown::Both);
        }
    }
}

struct Shared {
    phase: Phase,
    /// Somebody has stopped the container: it is not started again by itself.
    settled: bool,
    /// The signal by which a command ended the container before, or instead of, its workload's own end.
    ended_by: Option<u8>,
    /// The workload's exit code, once that is on record.
    exit: Option<u8>,
    connections: BTreeMap<u64, Client>,
    /// Further processes that run.
    execs: usize,
    /// Number of the next connection.
    next: u64,
}

/// What a signal means.
enum Phase {
    /// It ends the wait before the container is started again.
    Resting,
    /// It waits for the workload, unless it would end it: then it ends the start.
    Starting(Vec<i32>),
    /// It goes to the workload.
    Running(Access),
}

impl Clients {
    /// Serves the command that started this supervisor.
    pub(super) fn new(channel: UnixStream, streams: ClientStreams, book: Arc<Book>) -> io::Result<Arc<Self>> {
        let record = book.record();
        let rests = matches!(record.state, State::Restarting { .. });
        let shared = Shared {
            phase: if rests {
                Phase::Resting
            } else {
                Phase::Starting(Vec::new())
            },
            // That may have been said to what this process was before.
            settled: rests && record.stopped,
            ended_by: None,
            exit: None,
            connections: BTreeMap::new(),
            execs: 0,
            next: STARTER,
        };
        let clients = Arc::new(Self {
            shared: Mutex::new(shared),
            exec_ended: Condvar::new(),
            standstill: RwLock::default(),
            limits: Mutex::default(),
            alarm: Alarm::default(),
            book,
            ports: Ports::default(),
            streams: Workload::default(),
        });
        clients.serve(channel, Some(streams))?;
        Ok(clients)
    }

    /// Lets a start be given up.
    pub(super) fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    /// The container's published ports.
    pub(super) fn ports(&self) -> &Ports {
        &self.ports
    }

    /// The signal by which a command ended the container before, or instead of, its workload's own end.
    pub(super) fn ended_by(&self) -> Option<u8> {
        self.lock()?.ended_by
    }

    /// Waits until the container is to be started again; `false` where it is not any more.
    pub(super) fn rest(&self, time: Duration) -> bool {
        let rested = !self.is_settled() && self.alarm.wait(time);
        let Some(mut shared) = self.lock() else {
            return false;
        };
        shared.phase = Phase::Starting(Vec::new());
        rested && !shared.settled
    }

    /// Whether the container is not to be started again: somebody has stopped it, or has been told of its end.
    pub(super) fn is_settled(&self) -> bool {
        self.lock()
            .is_none_or(|shared| shared.settled || shared.exit.is_some())
    }

    /// Whether the command that started the container has said that nobody reads this stream any more.
    pub(super) fn wants_closed(&self, stream: Stream) -> bool {
        self.output(stream).wants_closed.load(Ordering::SeqCst)
    }

    /// Those who listen to one of the workload's output streams.
    pub(super) fn audience(&self, stream: Stream) -> &Audience {
        &self.output(stream).audience
    }

    fn output(&self, stream: Stream) -> &Output {
        match stream {
            Stream::Stderr => &self.streams.stderr,
            Stream::Stdout | Stream::Stdin => &self.streams.stdout,
        }
    }

    /// The workload's standard input is there: what commands have sent so far goes to it.
    pub(super) fn open_inlet(&self, inlet: Inlet) {
        // It happens once.
        let _ = self.streams.inlet.set(inlet);
    }

    /// The workload's terminal is there, if it has one.
    pub(super) fn open_terminal(&self, terminal: Option<Terminal>) {
        self.streams.screen.open(terminal);
    }

    /// Accepts further commands at the container's socket.
    pub(super) fn listen(self: &Arc<Self>, run_directory: &Path) -> io::Result<()> {
        let listener = socket::bind(&run_directory.join(SOCKET))?;
        let clients = Arc::clone(self);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else {
                    // There are no more descriptors, and will be.
                    thread::sleep(PAUSE);
                    continue;
                };
                let clients = Arc::clone(&clients);
                if clients
                    .lock()
                    .is_some_and(|shared| shared.connections.len() < MOST)
                {
                    thread::spawn(move || {
                        if greet(&stream).is_some() {
                            // A command that cannot be served sees its connection close.
                            let _ = clients.serve(stream, None);
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
            for client in shared.connections.values() {
                let _ = write_frame(&client.control, event);
            }
        }
    }

    /// Whether the workload has run.
    pub(super) fn has_run(&self) -> bool {
        self.access().is_some()
    }

    /// The workload's end is on record: those who wait for it are told.
    pub(super) fn exited(&self, code: u8) {
        if let Some(mut shared) = self.lock() {
            shared.exit = Some(code);
            for client in shared.connections.values().filter(|client| client.waits) {
                let _ = write_frame(&client.control, &Event::Exited { code });
            }
        }
    }

    /// Serves one connection from now on. `streams` are the starting command's.
    fn serve(self: &Arc<Self>, stream: UnixStream, streams: Option<ClientStreams>) -> io::Result<()> {
        stream.set_write_timeout(Some(GREETING_LIMIT))?;
        let Some(mut shared) = self.lock() else {
            return Ok(());
        };
        let number = shared.next;
        shared.next += 1;
        let client = Client {
            control: stream.try_clone()?,
            outputs: Vec::new(),
            waits: false,
            exec: None,
        };
        shared.connections.insert(number, client);
        drop(shared);
        if let Some(streams) = streams {
            self.attach(number, streams)?;
        }
        let clients = Arc::clone(self);
        thread::spawn(move || {
            while let Ok(request) = read_frame(&stream) {
                if clients.handle(number, request, &stream).is_err() {
                    // It did not send what it announced, or this process has no more descriptors.
                    break;
                }
            }
            if let Some(mut shared) = clients.lock()
                && let Some(client) = shared.connections.remove(&number)
            {
                client.cut();
            }
            clients.release(number);
        });
        Ok(())
    }

    fn handle(self: &Arc<Self>, number: u64, request: Request, connection: &UnixStream) -> io::Result<()> {
        match request {
            Request::Signal { signal } => self.signal(signal),
            Request::Resize(size) => self.resize(number, size),
            Request::CloseOutput { stream } => self.close_output(number, stream),
            Request::Settle => self.settle(),
            Request::ShutDown => {
                let clients = Arc::clone(self);
                thread::spawn(move || clients.stop());
            }
            Request::Kill => self.kill(),
            Request::Inspect => self.inspect(connection),
            Request::Wait => self.watch(number),
            Request::Attach => {
                self.attach(number, ClientStreams::receive(connection)?)?;
                self.answer(connection, &Event::Done);
            }
            Request::Exec(exec) => {
                let streams = ClientStreams::receive(connection)?;
                self.exec(number, *exec, streams, connection.try_clone()?)?;
            }
            Request::Rename { name } => {
                let answer = match self.book.rename(&name) {
                    Ok(()) => Event::Done,
                    Err(error) => Event::Refused {
                        reason: super::chain(&error),
                    },
                };
                self.answer(connection, &answer);
            }
            Request::Archive { extent } => self.files(Purpose::Archive(extent), connection)?,
            // The container runs: there is nothing to be mounted.
            Request::Copy => self.files(Purpose::Copy { writes: false }, connection)?,
            Request::Workload(act) => self.answer(connection, &self.act(number, act)),
            Request::ConnectNetwork(attachment) => {
                self.answer(connection, &self.connect_network(&attachment));
            }
            Request::DisconnectNetwork { network } => {
                self.answer(connection, &self.disconnect_network(&network));
            }
        }
        Ok(())
    }

    /// Sends an answer. A command that is gone needs none.
    fn answer(&self, connection: &UnixStream, event: &Event) {
        // With the lock, for others write to the same connection.
        if let Some(_shared) = self.lock() {
            let _ = write_frame(connection, event);
        }
    }

    fn close_output(&self, number: u64, stream: Stream) {
        if number == STARTER {
            self.output(stream).wants_closed.store(true, Ordering::SeqCst);
        }
        if let Some(shared) = self.lock()
            && let Some(client) = shared.connections.get(&number)
        {
            if let Some(exec) = &client.exec {
                exec.of(stream).wants_closed.store(true, Ordering::SeqCst);
            }
            for (_, output) in client.outputs.iter().filter(|(kind, _)| *kind == stream) {
                // It fails where the command has closed its end already.
                let _ = output.shutdown(Shutdown::Both);
            }
        }
    }

    /// Without the lock: a guest that does not read must not hold up other commands.
    fn resize(&self, number: u64, size: TerminalSize) {
        let exec = self
            .lock()
            .and_then(|shared| shared.connections.get(&number)?.exec.clone());
        let screen = exec
            .as_ref()
            .map_or(&self.streams.screen, |outputs| outputs.screen());
        screen.resize(size);
        if exec.is_none() && self.has_run() {
            let (height, width) = (size.rows.to_string(), size.columns.to_string());
            self.book
                .tell("resize", &[("height", &height), ("width", &width)]);
        }
    }

    fn watch(&self, number: u64) {
        let Some(mut shared) = self.lock() else { return };
        let exit = shared.exit;
        if let Some(client) = shared.connections.get_mut(&number) {
            client.waits = true;
            if let Some(code) = exit {
                let _ = write_frame(&client.control, &Event::Exited { code });
            }
        }
    }

    /// Connects a command's streams to the workload's.
    fn attach(self: &Arc<Self>, number: u64, streams: ClientStreams) -> io::Result<()> {
        let outputs = [(Stream::Stdout, streams.stdout), (Stream::Stderr, streams.stderr)];
        for (stream, output) in outputs {
            let Some(output) = output else { continue };
            if let Some(mut shared) = self.lock()
                && let Some(client) = shared.connections.get_mut(&number)
            {
                client.outputs.push((stream, output.try_clone()?));
            }
            self.audience(stream).join(output);
        }
        if let Some(stdin) = streams.stdin {
            let clients = Arc::clone(self);
            // Not waited for: it may sit in a read from a command that never sends, and ends with the process.
            thread::spawn(move || clients.streams.inlet.wait().input(stdin));
        }
        Ok(())
    }

    /// Runs a further process for a command, on a thread of its own: the command may go before it ends.
    fn exec(
        self: &Arc<Self>,
        number: u64,
        exec: Exec,
        streams: ClientStreams,
        connection: UnixStream,
    ) -> io::Result<()> {
        let outputs = Arc::new(Outputs::default());
        let Some(mut shared) = self.lock() else {
            return Ok(());
        };
        let access = match &shared.phase {
            Phase::Running(access) if shared.exit.is_none() => access.clone(),
            _ => {
                let reason = "the container is not running".to_owned();
                let _ = write_frame(&connection, &Event::Refused { reason });
                return Ok(());
            }
        };
        if let Some(client) = shared.connections.get_mut(&number) {
            client.exec = Some(Arc::clone(&outputs));
            for (stream, output) in [
                (Stream::Stdout, &streams.stdout),
                (Stream::Stderr, &streams.stderr),
            ] {
                if let Some(output) = output {
                    client.outputs.push((stream, output.try_clone()?));
                }
            }
        }
        shared.execs += 1;
        drop(shared);
        let clients = Arc::clone(self);
        thread::spawn(move || {
            let told = exec::Told::new(&clients.book, &exec.arguments);
            let answer = |event: &Event| {
                told.tell(event);
                clients.answer(&connection, event);
            };
            let start = || exec::start(&access, &exec, streams.stdin.is_some());
            match clients
                .while_it_moves(start)
                .unwrap_or_else(|| Err(clients.refuse_exec()))
            {
                Ok(started) => started.serve(streams, &outputs, answer),
                Err(event) => answer(&event),
            }
            if let Some(mut shared) = clients.lock() {
                shared.execs -= 1;
            }
            clients.exec_ended.notify_all();
            // It rests again. Where this fails, it does with more memory.
            let _ = rvm_isolation::release_program_pages();
        });
        Ok(())
    }

    /// Waits until the ends of further processes are told; the container's end is theirs.
    pub(super) fn wait_for_execs(&self, limit: Duration) {
        if let Some(shared) = self.lock() {
            // Where it takes longer, the commands learn it from the container's end.
            let _ = self
                .exec_ended
                .wait_timeout_while(shared, limit, |shared| shared.execs > 0);
        }
    }

    /// A handle on the workload, once it runs.
    fn access(&self) -> Option<Access> {
        self.lock().and_then(|shared| match &shared.phase {
            Phase::Running(access) => Some(access.clone()),
            Phase::Starting(_) | Phase::Resting => None,
        })
    }

    /// The command gets a connection of its own, so that how fast it reads is between it and the guest.
    fn files(&self, purpose: Purpose, connection: &UnixStream) -> io::Result<()> {
        let refused = |reason| self.answer(connection, &Event::Refused { reason });
        match self.access().map(|access| access.files(purpose)) {
            Some(Ok(guest)) => {
                let streams = ClientStreams {
                    stdout: Some(guest),
                    ..ClientStreams::default()
                };
                // With the lock, for nothing may come between the two.
                if let Some(_shared) = self.lock()
                    && write_frame(connection, &Event::Done).is_ok()
                {
                    streams.send(connection)?;
                }
            }
            Some(Err(error)) => refused(super::chain(&error)),
            None => refused("the container is being started".to_owned()),
        }
        Ok(())
    }

    fn inspect(&self, connection: &UnixStream) {
        // Without the lock: a machine that does not answer must not hold up other commands.
        let (machine, error) = match self.access().map(|access| access.status()) {
            Some(Ok(machine)) => (machine.map(Box::new), None),
            Some(Err(error)) => (None, Some(super::chain(&error))),
            None => (None, Some("the container is being started".to_owned())),
        };
        self.answer(connection, &Event::Inspected { machine, error });
    }

    fn tell_signal(&self, signal: i32) {
        if self.lock().is_some_and(|shared| shared.exit.is_none()) {
            self.book.tell("kill", &[("signal", &signal.to_string())]);
        }
    }

    fn signal(&self, signal: i32) {
        self.tell_signal(signal);
        let Some(mut shared) = self.lock() else { return };
        match (&mut shared.phase, fatal(signal)) {
            (Phase::Running(access), _) => {
                let access = access.clone();
                // A guest that does not read must not hold up other commands.
                drop(shared);
                access.signal(signal);
            }
            // It has no process to go to.
            (Phase::Resting, _) => {}
            (Phase::Starting(_), Some(fatal)) => {
                shared.ended_by = Some(fatal);
                self.alarm.raise();
            }
            (Phase::Starting(waiting), None) => waiting.push(signal),
        }
    }

    fn settle(&self) {
        let Some(mut shared) = self.lock() else { return };
        shared.settled = true;
        if let Phase::Resting = shared.phase {
            self.alarm.raise();
        }
        drop(shared);
        // For whoever comes after a crash of the machine. A full disk does not keep a container from being stopped.
        let _ = self.book.update(|record| record.stopped = true);
    }

    /// Asks the workload to end, in the end with force, and does not start it again. It is not stopped for good by that.
    pub(super) fn stop(&self) {
        if let Some(mut shared) = self.lock() {
            shared.settled = true;
            if let Phase::Resting = shared.phase {
                self.alarm.raise();
            }
        }
        // Only then, for it waits for processes that are being made, and a workload can keep those from coming to an end.
        if let State::Running { paused: true, .. } = self.book.record().state {
            // Where this is not possible, the signal is not heard and the next one kills.
            let _ = self.unpause();
        }
        let settings = self.book.record().settings;
        self.signal(settings.stop_signal());
        if let Some(patience) = settings.stop_patience() {
            thread::sleep(patience);
            self.signal(signals::KILL);
            thread::sleep(DEATH_LIMIT);
            self.kill();
        }
    }

    fn kill(&self) {
        self.tell_signal(signals::KILL);
        let Some(mut shared) = self.lock() else { return };
        shared.ended_by = fatal(rustix::process::Signal::KILL.as_raw());
        shared.settled = true;
        match &shared.phase {
            Phase::Running(access) => access.kill(),
            Phase::Starting(_) | Phase::Resting => self.alarm.raise(),
        }
        // Whoever is attached and does not read must not keep the container from ending.
        shared.connections.values().for_each(Client::cut);
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
