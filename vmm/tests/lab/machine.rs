//! The half of the tests that runs on the host: starts `rvm-vmm` as its supervisor does, and watches it.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use rvm_vmm::command::Command as Request;
use rvm_vmm::config::{CONFIG_VERSION, DiskConfig, DiskPart, VmConfig, VsockConfig};
use rvm_vmm::event::{Event, Stopped};
use rvm_vmm::status::Status;
use tempfile::TempDir;

use crate::guest::SUCCESS;
use crate::{archive, sys};

/// Whatever a guest does here, it has done within this, in emulation and on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// The VMM is not root.
const USER: u32 = 0x7fff_0000;

/// What a machine is made of.
pub(crate) struct Setup {
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: u32,
    /// Added to the kernel's command line.
    pub(crate) cmdline: &'static str,
    /// A script for busybox' shell, which ends at its first failure.
    pub(crate) job: String,
    /// Each one's files, and whether it is read-only.
    pub(crate) disks: Vec<(Vec<File>, bool)>,
    pub(crate) vsock: bool,
}

impl Setup {
    /// One processor, 128 MiB, and no devices but those that every machine has.
    pub(crate) fn new(job: impl Into<String>) -> Self {
        Self {
            vcpus: 1,
            memory_mib: 128,
            cmdline: "",
            job: job.into(),
            disks: Vec::new(),
            vsock: false,
        }
    }
}

/// A running VMM.
pub(crate) struct Machine {
    child: Child,
    supervisor: UnixStream,
    events: Receiver<Event>,
    directory: TempDir,
}

fn inherited<T: AsFd>(file: T) -> T {
    fcntl_setfd(&file, FdFlags::empty()).unwrap();
    file
}

fn kernel() -> File {
    let assets = std::env::var_os("RVM_TEST_ASSETS").expect("RVM_TEST_ASSETS is not set: run scripts/test");
    File::open(PathBuf::from(assets).join("vmlinux")).unwrap()
}

impl Machine {
    pub(crate) fn start(setup: &Setup) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (supervisor, theirs) = UnixStream::pair().unwrap();
        let open = |name: &str| {
            OpenOptions::new()
                .append(true)
                .create(true)
                .open(directory.path().join(name))
        };
        let theirs = inherited(theirs);
        let console = inherited(open("console").unwrap());
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        let (kvm, kernel) = (inherited(kvm.unwrap()), inherited(kernel()));
        let initrd = archive::with_job(&setup.job).map(inherited);
        let vsock = setup
            .vsock
            .then(|| inherited(UnixListener::bind(directory.path().join("vsock")).unwrap()));
        let part = |file: &File| DiskPart {
            fd: inherited(file).as_raw_fd(),
            bytes: file.metadata().unwrap().len(),
        };
        let disks = setup.disks.iter().map(|(files, read_only)| DiskConfig {
            parts: files.iter().map(part).collect(),
            read_only: *read_only,
        });
        let config = VmConfig {
            version: CONFIG_VERSION,
            vcpus: setup.vcpus,
            memory_mib: setup.memory_mib,
            kvm_fd: kvm.as_raw_fd(),
            kernel_fd: kernel.as_raw_fd(),
            initrd_fds: initrd.iter().map(|file| file.as_raw_fd()).collect(),
            cmdline: format!("quiet loglevel=1 {}", setup.cmdline),
            console_fd: Some(console.as_raw_fd()),
            disks: disks.collect(),
            networks: Vec::new(),
            vsock: vsock.as_ref().map(|listener| VsockConfig {
                guest_cid: 3,
                listener_fd: listener.as_raw_fd(),
            }),
            file_systems: Vec::new(),
            doorbell_port: Some(sys::DOORBELL_PORT),
            events_fd: theirs.as_raw_fd(),
            user: Some(USER),
            namespaces: None,
        };
        let mut file = inherited(tempfile::tempfile().unwrap());
        file.write_all(&serde_json::to_vec(&config).unwrap()).unwrap();
        file.rewind().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_rvm-vmm"))
            .args(["--config", &file.as_raw_fd().to_string()])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let (sender, events) = mpsc::channel();
        let lines = BufReader::new(supervisor.try_clone().unwrap()).lines();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap();
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            supervisor,
            events,
            directory,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next event for which `pick` returns something; those before it are passed over.
    pub(crate) fn wait_for<T>(&mut self, what: &str, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self
                .events
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(event) => {
                    let text = format!("{event:?}");
                    let is_last = matches!(event, Event::Stopped(_));
                    if let Some(picked) = pick(event) {
                        return picked;
                    }
                    assert!(!is_last, "waiting for {what}, the machine has ended: {text}");
                }
                Err(RecvTimeoutError::Timeout) => panic!("no {what} within {LIMIT:?}: {}", self.console()),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait().unwrap();
                    panic!(
                        "waiting for {what}, the machine was killed ({status}): {}",
                        self.console()
                    );
                }
            }
        }
    }

    /// Waits until the guest rings the doorbell with this value.
    pub(crate) fn wait_for_doorbell(&mut self, expected: u8) {
        self.wait_for(&format!("doorbell {expected}"), |event| {
            matches!(event, Event::Doorbell { value, .. } if value == expected).then_some(())
        });
    }

    /// Sends a line to the machine as a command, and returns the answer.
    pub(crate) fn tell(&mut self, line: &str) -> Event {
        writeln!(self.supervisor, "{line}").unwrap();
        self.wait_for("answer", |event| match event {
            Event::Running { .. } | Event::Doorbell { .. } | Event::Stopped(_) => None,
            answer => Some(answer),
        })
    }

    pub(crate) fn ask(&mut self, request: Request) -> Event {
        self.tell(&serde_json::to_string(&request).unwrap())
    }

    pub(crate) fn pause(&mut self) {
        let answer = self.ask(Request::Pause {});
        assert!(matches!(answer, Event::Paused { .. }), "{answer:?}");
    }

    pub(crate) fn resume(&mut self) {
        let answer = self.ask(Request::Resume {});
        assert!(matches!(answer, Event::Resumed { .. }), "{answer:?}");
    }

    pub(crate) fn status(&mut self) -> Status {
        match self.ask(Request::Status {}) {
            Event::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// A connection to a port of the guest.
    pub(crate) fn connect(&self, port: u32) -> UnixStream {
        let mut stream = UnixStream::connect(self.directory.path().join("vsock")).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        writeln!(stream, "CONNECT {port}").unwrap();
        let mut byte = [0];
        let mut line = String::new();
        while !line.ends_with('\n') {
            stream.read_exact(&mut byte).unwrap();
            let _ = write!(line, "{}", char::from(byte[0]));
        }
        assert!(line.starts_with("OK "), "{line}");
        stream
    }

    pub(crate) fn console(&self) -> String {
        let bytes = fs::read(self.directory.path().join("console")).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Closes the supervisor's half of the socket; what the machine still says can be read.
    pub(crate) fn hang_up(&self) {
        self.supervisor.shutdown(std::net::Shutdown::Write).unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the machine's last word and its process.
    pub(crate) fn end(mut self) -> (Stopped, ExitStatus) {
        let stopped = self.wait_for("end", |event| match event {
            Event::Stopped(stopped) => Some(stopped),
            _ => None,
        });
        (stopped, self.child.wait().unwrap())
    }

    /// Waits for the process of a machine that may have no last word.
    pub(crate) fn exit_status(mut self) -> ExitStatus {
        while self.events.recv_timeout(LIMIT).is_ok() {}
        self.child.wait().unwrap()
    }

    /// Waits until the job has succeeded and the guest has reset itself; returns what the console showed.
    pub(crate) fn success(mut self) -> String {
        let stopped = self.wait_for("end", |event| match event {
            Event::Stopped(stopped) => Some(stopped),
            _ => None,
        });
        let (status, console) = (self.child.wait().unwrap(), self.console());
        assert!(status.success(), "{status}: {stopped:?}");
        assert_eq!(
            stopped.reason,
            rvm_vmm::event::StopReason::Reset,
            "{stopped:?}\n{console}"
        );
        assert!(console.contains(SUCCESS), "{console}");
        console
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only where the process has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks every 10 ms until `condition` holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "after {LIMIT:?} still not: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Lets time pass where the passing of time is what the test is about.
pub(crate) fn let_pass(duration: Duration) {
    thread::sleep(duration);
}

/// A file of `bytes` zeros.
pub(crate) fn disk(bytes: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    file
}
