//! The server with a machine that runs plain processes: everything of it but the isolation.

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::process::{Child, Command};
use std::sync::mpsc;

use oci_spec::runtime::{LinuxResources, ProcessBuilder, Spec};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rvm_isolation::cgroup::{Processes, Usage};
use rvm_protocol::{Answer, ArchiveReader, Ask};

use super::*;

/// Runs a specification's arguments as a child of the test.
struct Children {
    waiting: Mutex<Option<Command>>,
    running: Mutex<Option<Child>>,
    powered_off: Mutex<mpsc::Sender<()>>,
}

/// A child of the test as a further process.
struct Additional {
    terminal: Option<OwnedFd>,
    command: Mutex<Option<Command>>,
    child: Mutex<Option<Child>>,
}

impl Further for Additional {
    fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    fn start(&mut self) -> Result<(), Failure> {
        let mut command = self.command.lock().unwrap().take().unwrap();
        let child = command
            .spawn()
            .map_err(|error| failure(FailureKind::CommandNotFound, &error))?;
        *self.child.lock().unwrap() = Some(child);
        Ok(())
    }

    fn signal(&self, signal: i32) -> Result<(), Failure> {
        let pid = Pid::from_child(self.child.lock().unwrap().as_ref().unwrap());
        kill_process(pid, Signal::from_named_raw(signal).unwrap())
            .map_err(|error| failure(FailureKind::Other, &error))
    }

    fn wait(&self) -> Result<u8> {
        let pid = Pid::from_child(self.child.lock().unwrap().as_ref().unwrap());
        let status = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED)?.unwrap();
        let signal = || status.terminating_signal().map(|signal| 128 + signal);
        Ok(u8::try_from(status.exit_status().or_else(signal).unwrap())?)
    }
}

impl Workload for Children {
    fn freeze(&self) -> Result<(), Failure> {
        match &*self.running.lock().unwrap() {
            Some(child) => kill_process(Pid::from_child(child), Signal::STOP)
                .map_err(|error| failure(FailureKind::Other, &error)),
            None => Err(refusal("nothing runs")),
        }
    }

    fn thaw(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn processes(&self) -> Result<Processes, Failure> {
        Ok(Processes::default())
    }

    fn usage(&self) -> Result<Usage, Failure> {
        Ok(Usage::default())
    }

    fn limit(&self, _: &LinuxResources) -> Result<(), Failure> {
        Ok(())
    }
}

impl Machine for Children {
    type Further = Additional;

    fn enter(&self, process: &Process, stdio: Stdio) -> Result<Additional, Failure> {
        let (command, terminal) = command(process, stdio);
        Ok(Additional {
            terminal,
            command: Mutex::new(Some(command)),
            child: Mutex::new(None),
        })
    }

    fn create(&self, create: &Create, stdio: Stdio) -> Result<Option<OwnedFd>, Failure> {
        let spec = &create.spec;
        let process = spec.process().clone().unwrap_or_default();
        let (command, terminal) = command(&process, stdio);
        *self.waiting.lock().unwrap() = Some(command);
        Ok(terminal)
    }

    fn start(&self) -> Result<(), Failure> {
        // Dropping the command closes its copies of the pipes.
        let mut command = self.waiting.lock().unwrap().take().unwrap();
        let child = command
            .spawn()
            .map_err(|error| failure(FailureKind::CommandNotFound, &error))?;
        *self.running.lock().unwrap() = Some(child);
        Ok(())
    }

    fn signal(&self, signal: i32) -> Result<(), Failure> {
        let running = self.running.lock().unwrap();
        let pid = Pid::from_child(running.as_ref().unwrap());
        kill_process(pid, Signal::from_named_raw(signal).unwrap())
            .map_err(|error| failure(FailureKind::Other, &error))
    }

    fn wait(&self) -> Result<Exit> {
        let pid = Pid::from_child(self.running.lock().unwrap().as_ref().unwrap());
        let status = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED)?.unwrap();
        let code = status
            .exit_status()
            .or(status.terminating_signal().map(|signal| 128 + signal));
        Ok(Exit {
            code: u8::try_from(code.unwrap())?,
            out_of_memory: false,
        })
    }

    fn archive(&self, extent: Extent) -> io::Result<Box<dyn Read>> {
        match extent {
            Extent::All | Extent::Diff => Ok(Box::new(io::repeat(7))),
            Extent::Changes => Ok(Box::new(io::repeat(7).take(1000).chain(Broken))),
        }
    }

    fn copy(&self, _: bool, connection: &UnixStream) -> Result<()> {
        let nothing = io::Error::other("no files here");
        Ok(archive::serve(Err(&nothing), connection)?)
    }

    fn power_off(&self) {
        if let Some(child) = self.running.lock().unwrap().as_ref() {
            let _ = kill_process(Pid::from_child(child), Signal::KILL);
        }
        self.powered_off.lock().unwrap().send(()).unwrap();
    }
}

/// A command, and the outer side of its terminal if it is to have one.
fn command(process: &Process, stdio: Stdio) -> (Command, Option<OwnedFd>) {
    let arguments = process.args().clone().unwrap_or_default();
    let mut command = Command::new(&arguments[0]);
    command.args(&arguments[1..]);
    if process.terminal() != Some(true) {
        command
            .stdin(stdio.stdin)
            .stdout(stdio.stdout)
            .stderr(stdio.stderr);
        return (command, None);
    }
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let outer = openpt(flags).unwrap();
    unlockpt(&outer).unwrap();
    let inner = || ioctl_tiocgptpeer(&outer, flags).unwrap();
    command.stdin(inner()).stdout(inner()).stderr(inner());
    (command, Some(outer))
}

/// Files that cannot be read.
struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("disk on fire"))
    }
}

/// The host's side.
struct Host {
    server: Arc<Server<Children>>,
    powered_off: mpsc::Receiver<()>,
}

impl Host {
    fn new() -> Self {
        let (sender, powered_off) = mpsc::channel();
        let machine = Children {
            waiting: Mutex::new(None),
            running: Mutex::new(None),
            powered_off: Mutex::new(sender),
        };
        let server = Arc::new(Server::new("secret".to_owned(), machine));
        Self { server, powered_off }
    }

    fn dial(&self) -> UnixStream {
        let (host, guest) = UnixStream::pair().unwrap();
        self.server.admit(guest);
        host
    }

    fn greet(&self, purpose: Purpose) -> (UnixStream, Welcome) {
        let connection = self.dial();
        let hello = Hello {
            version: VERSION,
            token: "secret".to_owned(),
            purpose,
        };
        write_frame(&connection, &hello).unwrap();
        let welcome = read_frame(&connection).unwrap();
        (connection, welcome)
    }

    fn connect(&self, purpose: Purpose) -> UnixStream {
        let (connection, welcome) = self.greet(purpose);
        assert_eq!(welcome, Welcome::Accepted { version: VERSION });
        connection
    }

    fn stream(&self, stream: Stream) -> UnixStream {
        self.connect(Purpose::Stream(stream))
    }
}

fn ask(control: &UnixStream, request: &Request) -> Event {
    write_frame(control, request).unwrap();
    read_frame(control).unwrap()
}

fn create(script: &str, stdin: bool) -> Request {
    let process = ProcessBuilder::default()
        .args(["sh", "-c", script].map(str::to_owned))
        .build()
        .unwrap();
    let mut spec = Spec::default();
    spec.set_process(Some(process));
    Request::Create(Box::new(Create {
        spec,
        stdin,
        interfaces: Vec::new(),
        files: Vec::new(),
    }))
}

fn read_all(mut stream: UnixStream) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

fn exited(code: u8) -> Event {
    Event::Exited {
        code,
        out_of_memory: false,
    }
}

#[test]
fn greetings_that_are_refused() {
    let host = Host::new();
    let frame = |json: &str| {
        let length = u32::try_from(json.len()).unwrap();
        [&length.to_le_bytes(), json.as_bytes()].concat()
    };
    let cases = [
        (
            frame(r#"{"version":2,"token":"","purpose":"control"}"#),
            "wrong token",
        ),
        (
            frame(r#"{"version":2,"token":"secreT","purpose":"control"}"#),
            "wrong token",
        ),
        (
            frame(r#"{"version":2,"token":"secret2","purpose":"control"}"#),
            "wrong token",
        ),
        (
            frame(r#"{"version":3,"token":"secret","purpose":"control"}"#),
            "version 3",
        ),
        (
            frame(r#"{"version":2,"token":"secret","purpose":"shell"}"#),
            "malformed",
        ),
        (
            frame(r#"{"version":2,"token":"secret","purpose":"control","x":1}"#),
            "malformed",
        ),
        (
            frame(r#"{"version":2,"token":"secret","purpose":{"stream":"stdout"}}"#),
            "not there",
        ),
        (frame("GET / HTTP/1.1"), "malformed"),
        (vec![0xff; 4], "longer than"),
        (4096_u32.to_le_bytes().repeat(2000), "connection failed"),
    ];
    for (bytes, expected) in cases {
        let mut connection = host.dial();
        // The agent may have refused and closed before it has read everything.
        drop(connection.write_all(&bytes));
        drop(connection.shutdown(Shutdown::Write));
        let Welcome::Refused { reason } = read_frame(&connection).unwrap() else {
            panic!("accepted {bytes:?}");
        };
        assert!(reason.contains(expected), "{reason}");
        let mut rest = [0];
        assert!(
            matches!(connection.read(&mut rest), Ok(0) | Err(_)),
            "{expected}: still open"
        );
    }
    assert!(
        host.powered_off.try_recv().is_err(),
        "a stranger must not power off"
    );
}

#[test]
fn silence_is_limited_in_time_and_number() {
    let mut host = Host::new();
    Arc::get_mut(&mut host.server).unwrap().hello_deadline = Duration::from_millis(100);
    let silent: Vec<_> = (0..MAX_PENDING).map(|_| host.dial()).collect();
    let mut surplus = host.dial();
    assert_eq!(
        surplus.read(&mut [0]).unwrap(),
        0,
        "one too many is closed at once"
    );
    for connection in silent {
        let Welcome::Refused { reason } = read_frame(&connection).unwrap() else {
            panic!("accepted silence");
        };
        assert!(reason.contains("connection failed"), "{reason}");
        // The place is free again once the connection is closed.
        assert!(matches!((&connection).read(&mut [0]), Ok(0)));
    }
    host.connect(Purpose::Control);
}

#[test]
fn one_control_connection_and_one_of_each_stream() {
    let host = Host::new();
    let control = host.connect(Purpose::Control);
    assert!(matches!(host.greet(Purpose::Control).1, Welcome::Refused { .. }));
    assert_eq!(ask(&control, &create("exit 0", false)), Event::Done);
    assert!(matches!(
        ask(&control, &create("exit 0", false)),
        Event::Failed(_)
    ));
    let stdin = Purpose::Stream(Stream::Stdin);
    assert!(
        matches!(host.greet(stdin).1, Welcome::Refused { .. }),
        "was not asked for"
    );
    let _stdout = host.stream(Stream::Stdout);
    let again = Purpose::Stream(Stream::Stdout);
    assert!(matches!(host.greet(again).1, Welcome::Refused { .. }));
    let Event::Failed(early) = ask(&control, &Request::Start) else {
        panic!("started without standard error");
    };
    assert!(early.message.contains("no connection"), "{}", early.message);
}

#[test]
fn requests_out_of_order_fail_and_the_connection_lives_on() {
    let host = Host::new();
    let control = host.connect(Purpose::Control);
    assert!(matches!(ask(&control, &Request::Start), Event::Failed(_)));
    assert_eq!(ask(&control, &create("exit 0", false)), Event::Done);
}

#[test]
fn a_workload_is_run_and_its_streams_come_apart() {
    let host = Host::new();
    let control = host.connect(Purpose::Control);
    let script = "cat; echo problem >&2; exit 7";
    assert_eq!(ask(&control, &create(script, true)), Event::Done);
    let mut stdin = host.stream(Stream::Stdin);
    let stdout = read_all(host.stream(Stream::Stdout));
    let stderr = read_all(host.stream(Stream::Stderr));
    assert_eq!(ask(&control, &Request::Start), Event::Done);

    let bytes: Vec<u8> = (0_u32..8 << 20).map(|number| number.to_le_bytes()[1]).collect();
    stdin.write_all(&bytes).unwrap();
    stdin.shutdown(Shutdown::Write).unwrap();
    assert!(stdout.join().unwrap() == bytes, "standard output differs");
    assert_eq!(stderr.join().unwrap(), b"problem\n");
    assert_eq!(read_frame::<Event>(&control).unwrap(), exited(7));

    assert_eq!(ask(&control, &Request::PowerOff), Event::Done);
    host.powered_off.recv().unwrap();
}

#[test]
fn a_command_that_is_not_there_is_told_apart() {
    let host = Host::new();
    let control = host.connect(Purpose::Control);
    let Request::Create(mut create) = create("", false) else {
        unreachable!();
    };
    let process = create.spec.process_mut().as_mut().unwrap();
    process.set_args(Some(vec!["/nonexistent".to_owned()]));
    assert_eq!(ask(&control, &Request::Create(create)), Event::Done);
    let stdout = read_all(host.stream(Stream::Stdout));
    let _stderr = host.stream(Stream::Stderr);
    let Event::Failed(reason) = ask(&control, &Request::Start) else {
        panic!("started");
    };
    assert_eq!(reason.kind, FailureKind::CommandNotFound);
    assert!(
        stdout.join().unwrap().is_empty(),
        "the stream ends though nothing ran"
    );
}

#[test]
fn a_flood_that_nobody_reads_does_not_delay_a_signal() {
    let host = Host::new();
    let control = host.connect(Purpose::Control);
    assert_eq!(ask(&control, &create("exec yes", false)), Event::Done);
    let mut stdout = host.stream(Stream::Stdout);
    let _stderr = host.stream(Stream::Stderr);
    assert_eq!(ask(&control, &Request::Start), Event::Done);
    // The first bytes prove that it runs; after them, nobody reads.
    stdout.read_exact(&mut [0; 2]).unwrap();
    // The end may be told before the signal that caused it is answered.
    let mut events = [
        ask(&control, &Request::Signal { signal: 15 }),
        read_frame(&control).unwrap(),
    ];
    events.sort_by_key(|event| *event != Event::Done);
    assert_eq!(events, [Event::Done, exited(143)]);
    // What was under way when it died still arrives, then the end.
    let rest = read_all(stdout).join().unwrap();
    assert!(rest.iter().all(|byte| matches!(byte, b'y' | b'\n')));
}

#[test]
fn a_workload_that_closes_its_input_ends_the_hosts_writing() {
    let host = Host::new();
    let control = host.connect(Purpose::Control);
    let script = "exec 0<&-; echo closed; exec sleep 1000";
    assert_eq!(ask(&control, &create(script, true)), Event::Done);
    let mut stdin = host.stream(Stream::Stdin);
    let mut stdout = host.stream(Stream::Stdout);
    let _stderr = host.stream(Stream::Stderr);
    assert_eq!(ask(&control, &Request::Start), Event::Done);
    stdout.read_exact(&mut [0; 7]).unwrap();
    // No byte of it was read, so that the end is seen without any being written.
    assert_eq!(stdin.read(&mut [0]).unwrap(), 0);
    assert_eq!(stdin.write_all(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    drop(control);
    host.powered_off.recv().unwrap();
}

#[test]
fn a_host_that_stops_reading_ends_the_workloads_writing() {
    let host = Host::new();
    let control = host.connect(Purpose::Control);
    assert_eq!(ask(&control, &create("exec yes", false)), Event::Done);
    let stdout = host.stream(Stream::Stdout);
    let _stderr = host.stream(Stream::Stderr);
    assert_eq!(ask(&control, &Request::Start), Event::Done);
    drop(stdout);
    // SIGPIPE.
    assert_eq!(read_frame::<Event>(&control).unwrap(), exited(141));
}

#[test]
fn files_that_cannot_be_read_are_told() {
    let host = Host::new();
    let connection = host.connect(Purpose::Archive(Extent::Changes));
    let mut archive = ArchiveReader::new(&connection, u64::MAX);
    let mut bytes = Vec::new();
    let error = archive.read_to_end(&mut bytes).unwrap_err();
    assert_eq!(bytes, [7; 1000]);
    assert_eq!(error.to_string(), "disk on fire");
}

#[test]
fn archives_that_nobody_reads_are_limited_in_number_and_hold_up_nobody() {
    let host = Host::new();
    let endless = || host.connect(Purpose::Archive(Extent::All));
    let mut archives: Vec<_> = (0..MAX_ARCHIVES).map(|_| endless()).collect();
    let (_, welcome) = host.greet(Purpose::Archive(Extent::All));
    let Welcome::Refused { reason } = welcome else {
        panic!("one too many");
    };
    assert!(reason.contains("already"), "{reason}");
    // Meanwhile a workload runs.
    let control = host.connect(Purpose::Control);
    assert_eq!(ask(&control, &create("exit 3", false)), Event::Done);
    let _streams = [host.stream(Stream::Stdout), host.stream(Stream::Stderr)];
    assert_eq!(ask(&control, &Request::Start), Event::Done);
    assert_eq!(read_frame::<Event>(&control).unwrap(), exited(3));
    // A reader that goes away makes room, and is no reason for the others to end.
    drop(archives.pop());
    let deadline = Instant::now() + Duration::from_secs(20);
    while matches!(
        host.greet(Purpose::Archive(Extent::Changes)).1,
        Welcome::Refused { .. }
    ) {
        assert!(Instant::now() < deadline, "no room");
        thread::sleep(Duration::from_millis(5));
    }
    let mut bytes = vec![0; 1 << 20];
    let mut archive = ArchiveReader::new(&archives[0], u64::MAX);
    archive.read_exact(&mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 7));
}

#[test]
fn the_machine_ends_with_its_control_connection() {
    let cases: [&[u8]; 4] = [b"", b"\x03", b"\x03\0\0\0nul", b"\xff\xff\xff\xff"];
    for bytes in cases {
        let host = Host::new();
        let mut control = host.connect(Purpose::Control);
        control.write_all(bytes).unwrap();
        drop(control);
        host.powered_off.recv().unwrap();
    }
}

#[test]
fn tokens_are_compared_whole() {
    let cases: [(&[u8], &[u8], bool); 5] = [
        (b"abc", b"abc", true),
        (b"abc", b"abd", false),
        (b"ab", b"abc", false),
        (b"abc", b"ab", false),
        (b"", b"", true),
    ];
    for (left, right, expected) in cases {
        assert_eq!(
            equal_in_constant_time(left, right),
            expected,
            "{left:?} {right:?}"
        );
    }
}

#[test]
fn a_further_process_has_connections_of_its_own() {
    let host = Host::new();
    let exec = |script: &str| {
        let process = ProcessBuilder::default()
            .args(["sh", "-c", script].map(str::to_owned))
            .cwd("/")
            .build()
            .unwrap();
        Request::Exec(Box::new(Exec { process, stdin: true }))
    };
    let stream = |number, stream| host.connect(Purpose::ExecStream { number, stream });
    let connection = host.connect(Purpose::Exec(5));
    assert!(matches!(ask(&connection, &Request::Start), Event::Failed(_)));
    assert_eq!(ask(&connection, &exec("cat; exit 7")), Event::Done);
    assert!(
        matches!(ask(&connection, &Request::Start), Event::Failed(_)),
        "no streams"
    );
    let mut stdin = stream(5, Stream::Stdin);
    let (mut stdout, _stderr) = (stream(5, Stream::Stdout), stream(5, Stream::Stderr));
    let other = Purpose::ExecStream {
        number: 6,
        stream: Stream::Stdout,
    };
    assert!(matches!(host.greet(other).1, Welcome::Refused { .. }));
    assert_eq!(ask(&connection, &Request::Start), Event::Done);
    stdin.write_all(b"words").unwrap();
    stdin.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(text, "words");
    let exited = Event::Exited {
        code: 7,
        out_of_memory: false,
    };
    assert_eq!(read_frame::<Event>(&connection).unwrap(), exited);
    assert!(matches!(ask(&connection, &Request::PowerOff), Event::Failed(_)));
}

#[test]
fn a_terminal_is_one_stream_that_ends_with_who_has_it() {
    let host = Host::new();
    let script = "stty -echo; echo up; read word; stty size >&2; echo $word";
    let process = ProcessBuilder::default()
        .terminal(true)
        .args(["sh", "-c", script].map(str::to_owned))
        .build()
        .unwrap();
    let mut spec = Spec::default();
    spec.set_process(Some(process.clone()));
    let check = |control: &UnixStream, purpose: &dyn Fn(Stream) -> Purpose| {
        let mut stdin = host.connect(purpose(Stream::Stdin));
        let mut stdout = host.connect(purpose(Stream::Stdout));
        assert!(matches!(
            host.greet(purpose(Stream::Stderr)).1,
            Welcome::Refused { .. }
        ));
        let size = TerminalSize { rows: 7, columns: 70 };
        write_frame(control, &Request::Resize(TerminalSize::default())).unwrap();
        assert_eq!(ask(control, &Request::Start), Event::Done);
        let mut up = [0; 4];
        stdout.read_exact(&mut up).unwrap();
        assert_eq!(&up, b"up\r\n");
        write_frame(control, &Request::Resize(size)).unwrap();
        // It is carried out before what is asked next is answered.
        assert_eq!(
            ask(
                control,
                &Request::Signal {
                    signal: Signal::CONT.as_raw()
                }
            ),
            Event::Done
        );
        stdin.write_all(b"word\n").unwrap();
        let mut text = String::new();
        stdout.read_to_string(&mut text).unwrap();
        assert_eq!(text, "7 70\r\nword\r\n");
        assert_eq!(read_frame::<Event>(control).unwrap(), exited(0));
        // Nobody is there any more to be told anything.
        assert_eq!(stdin.read(&mut [0]).unwrap(), 0);
    };
    let control = host.connect(Purpose::Control);
    let create = Request::Create(Box::new(Create {
        spec,
        stdin: true,
        interfaces: Vec::new(),
        files: Vec::new(),
    }));
    assert_eq!(ask(&control, &create), Event::Done);
    check(&control, &Purpose::Stream);
    let connection = host.connect(Purpose::Exec(1));
    let exec = Request::Exec(Box::new(Exec { process, stdin: true }));
    assert_eq!(ask(&connection, &exec), Event::Done);
    check(&connection, &|stream| Purpose::ExecStream { number: 1, stream });
}

#[test]
fn a_further_process_ends_with_its_connection() {
    let host = Host::new();
    let process = ProcessBuilder::default()
        .args(["sleep", "1000"].map(str::to_owned))
        .cwd("/")
        .build()
        .unwrap();
    let connection = host.connect(Purpose::Exec(1));
    let exec = Request::Exec(Box::new(Exec {
        process,
        stdin: false,
    }));
    assert_eq!(ask(&connection, &exec), Event::Done);
    let stream = |stream| host.connect(Purpose::ExecStream { number: 1, stream });
    let (mut stdout, _stderr) = (stream(Stream::Stdout), stream(Stream::Stderr));
    assert_eq!(ask(&connection, &Request::Start), Event::Done);
    drop(connection);
    assert_eq!(stdout.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_question_about_the_workload_is_answered_once() {
    fn asked<T: serde::de::DeserializeOwned>(host: &Host, ask: &Ask) -> Answer<T> {
        let connection = host.connect(Purpose::Workload);
        write_frame(&connection, ask).unwrap();
        let answer = read_frame(&connection).unwrap();
        assert_eq!(read_all(connection).join().unwrap(), b"");
        answer
    }
    let host = Host::new();
    let refused = asked::<()>(&host, &Ask::Freeze);
    assert!(matches!(refused, Answer::Failed(_)), "there is none");
    assert_eq!(asked(&host, &Ask::Thaw), Answer::Done(()));
    assert_eq!(asked(&host, &Ask::Processes), Answer::Done(Processes::default()));
    assert_eq!(asked(&host, &Ask::Usage), Answer::Done(Usage::default()));
    assert_eq!(asked(&host, &Ask::Limit(Box::default())), Answer::Done(()));
}
