//! The server with a machine that runs plain processes: everything of it but the isolation.

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::process::{Child, Command};
use std::sync::mpsc;

use oci_spec::runtime::ProcessBuilder;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::*;

/// Runs a specification's arguments as a child of the test.
struct Processes {
    waiting: Mutex<Option<Command>>,
    running: Mutex<Option<Child>>,
    powered_off: Mutex<mpsc::Sender<()>>,
}

impl Machine for Processes {
    fn create(&self, spec: &Spec, stdio: Stdio) -> Result<(), Failure> {
        let process = spec.process().clone().unwrap_or_default();
        let arguments = process.args().clone().unwrap_or_default();
        let mut command = Command::new(&arguments[0]);
        command
            .args(&arguments[1..])
            .stdin(stdio.stdin)
            .stdout(stdio.stdout)
            .stderr(stdio.stderr);
        *self.waiting.lock().unwrap() = Some(command);
        Ok(())
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

    fn power_off(&self) {
        if let Some(child) = self.running.lock().unwrap().as_ref() {
            let _ = kill_process(Pid::from_child(child), Signal::KILL);
        }
        self.powered_off.lock().unwrap().send(()).unwrap();
    }
}

/// The host's side.
struct Host {
    server: Arc<Server<Processes>>,
    powered_off: mpsc::Receiver<()>,
}

impl Host {
    fn new() -> Self {
        let (sender, powered_off) = mpsc::channel();
        let machine = Processes {
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
    Request::Create(Box::new(Create { spec, stdin }))
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
            frame(r#"{"version":1,"token":"","purpose":"control"}"#),
            "wrong token",
        ),
        (
            frame(r#"{"version":1,"token":"secreT","purpose":"control"}"#),
            "wrong token",
        ),
        (
            frame(r#"{"version":1,"token":"secret2","purpose":"control"}"#),
            "wrong token",
        ),
        (
            frame(r#"{"version":2,"token":"secret","purpose":"control"}"#),
            "version 2",
        ),
        (
            frame(r#"{"version":1,"token":"secret","purpose":"shell"}"#),
            "malformed",
        ),
        (
            frame(r#"{"version":1,"token":"secret","purpose":"control","x":1}"#),
            "malformed",
        ),
        (
            frame(r#"{"version":1,"token":"secret","purpose":{"stream":"stdout"}}"#),
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
