//! The host's half: workers, a machine, and what is on the disk afterwards.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test; clippy knows only libtest's by itself"
)]

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use rvm_vmm::config::FsTag;
use rvm_vmm::devices::virtio::fs::exchange::{Ends, exchange};
use rvm_vmm::event::{StopReason, Stopped};
use rvm_vmm::reporter::{Reporter, Start};
use rvm_vmm::resources::{FileSystem, Resources};
use rvm_vmm::seccomp::Filters;

use crate::inside::{DATA, FAILED, FILES, KILLED, READ_ONLY};

pub(crate) const ALL: [(&str, fn()); 4] = [
    ("a_worker_has_nothing_but_its_directory", confined),
    ("a_single_file_has_nothing_beside_it", single_file),
    ("a_guest_uses_directories", files),
    ("a_worker_that_is_killed_fails_its_files_only", killed),
];

/// `CAP_CHOWN`, `DAC_OVERRIDE`, `DAC_READ_SEARCH`, `FOWNER`, `FSETID`, `SETGID`, `SETUID`, `SETFCAP`.
const CAPABILITIES: &str = "00000000800000df";

/// The longest that a test waits for something: an emulated machine on a busy one is slow.
const LIMIT: Duration = Duration::from_secs(300);

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "waited for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A file system with extended attributes, where there is the choice.
fn temporary() -> tempfile::TempDir {
    let scratch = Path::new("/scratch");
    if scratch.is_dir() {
        tempfile::tempdir_in(scratch).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

/// A worker for a directory, and the machine's side of what it shares with that.
fn start(directory: &Path, options: &[&str]) -> (Child, Ends) {
    start_with("--directory", directory, options)
}

fn start_with(flag: &str, shared: &Path, options: &[&str]) -> (Child, Ends) {
    let (ours, theirs) = exchange().unwrap();
    let directory = File::open(shared).unwrap();
    for end in theirs.all() {
        fcntl_setfd(end, FdFlags::empty()).unwrap();
    }
    fcntl_setfd(&directory, FdFlags::empty()).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_rvm-fs"))
        .args([flag, &directory.as_raw_fd().to_string()])
        .args(theirs.arguments())
        .args(options)
        .spawn()
        .unwrap();
    (child, ours)
}

/// The process that serves, as soon as its threads are confined.
fn serving(worker: &Child) -> u32 {
    let children = format!("/proc/{0}/task/{0}/children", worker.id());
    let mut found = 0;
    wait_until("the worker's process", || {
        let text = fs::read_to_string(&children).unwrap();
        found = text.trim().parse().unwrap_or(0);
        found != 0 && {
            let threads = threads(found);
            threads.len() == 6 && threads.iter().all(|status| field(status, "Seccomp") == "2")
        }
    });
    found
}

/// The status of each thread.
fn threads(process: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status"));
    tasks.filter_map(|task| status(task.unwrap()).ok()).collect()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let lines = status.lines();
    let mut values = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    values.next().unwrap().trim()
}

fn confined() {
    let directory = temporary();
    fs::write(directory.path().join("file"), "").unwrap();
    let (mut worker, ends) = start(directory.path(), &[]);
    let process = serving(&worker);
    for status in threads(process) {
        for (name, value) in [
            ("CapEff", CAPABILITIES),
            ("CapPrm", CAPABILITIES),
            ("CapInh", "0000000000000000"),
            ("CapAmb", "0000000000000000"),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("Groups", ""),
        ] {
            assert_eq!(field(&status, name), value, "{name}");
        }
    }
    let outside = fs::read_to_string(format!("/proc/{}/status", worker.id())).unwrap();
    for (name, value) in [
        ("CapEff", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        assert_eq!(field(&outside, name), value, "{name} outside");
    }
    for namespace in ["mnt", "pid", "net", "ipc", "uts"] {
        let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{namespace}")).unwrap();
        assert_ne!(of(&process.to_string()), of("self"), "{namespace}");
    }
    let list = |path: &str| {
        let entries = fs::read_dir(format!("/proc/{process}/root{path}")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<BTreeSet<_>>()
    };
    assert_eq!(list("/"), BTreeSet::from(["proc".into(), "share".into()]));
    assert_eq!(list("/share"), BTreeSet::from(["file".into()]));
    assert!(!list("/proc").contains("sys") && !list("/proc").contains("sysrq-trigger"));
    let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap();
    let mounts: BTreeSet<(&str, bool)> = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .map(|fields| (fields[4], fields[5].starts_with("ro")))
        .collect();
    let expected = [("/", true), ("/proc", true), ("/share", false)];
    assert_eq!(mounts, BTreeSet::from(expected));
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    assert!(files.contains(" 262144 "), "{files}");
    // The machine's end is the worker's.
    drop(ends);
    assert!(worker.wait().unwrap().success());
    wait_until("the end of its process", || {
        !Path::new(&format!("/proc/{process}")).exists()
    });
}

fn single_file() {
    let directory = temporary();
    for name in ["wanted", "beside"] {
        fs::write(directory.path().join(name), name).unwrap();
    }
    for options in [&[][..], &["--read-only"]] {
        let (mut worker, ends) = start_with("--file", &directory.path().join("wanted"), options);
        let process = serving(&worker);
        let list = |path: &str| {
            let entries = fs::read_dir(format!("/proc/{process}/root{path}")).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect::<BTreeSet<_>>()
        };
        assert_eq!(list("/"), BTreeSet::from(["proc".into(), "share".into()]));
        assert_eq!(list("/share"), BTreeSet::from(["file".into()]));
        let content = fs::read_to_string(format!("/proc/{process}/root/share/file")).unwrap();
        assert_eq!(content, "wanted");
        drop(ends);
        assert!(worker.wait().unwrap().success());
    }
}

/// A machine that runs `test` of the guest's half.
struct Machine {
    thread: JoinHandle<Stopped>,
    console: PathBuf,
    /// Its end would be the machine's.
    _events: UnixStream,
    _directory: tempfile::TempDir,
}

impl Machine {
    fn boot(test: &str, file_systems: Vec<(&str, Ends)>) -> Self {
        let directory = temporary();
        let console = directory.path().join("console");
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file_systems = file_systems.into_iter().map(|(tag, ends)| FileSystem {
            tag: FsTag::try_from(tag.to_owned()).unwrap(),
            ends,
        });
        let resources = Resources {
            vcpus: 1,
            memory_mib: 256,
            kvm: OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/kvm")
                .unwrap()
                .into(),
            kernel: kernel(),
            initrd: vec![initrd(directory.path())],
            // What the kernel does not know goes to the init's environment.
            cmdline: format!("rvm_test={test}"),
            console: Some(
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(&console)
                    .unwrap(),
            ),
            disks: Vec::new(),
            networks: Vec::new(),
            vsock: None,
            file_systems: file_systems.collect(),
            doorbell_port: None,
        };
        let thread = std::thread::spawn(move || {
            let reporter = Arc::new(Reporter::new(theirs.into(), Start::now()));
            let filters = Filters::new().unwrap();
            rvm_vmm::builder::build(resources, reporter, filters)
                .unwrap()
                .run(None)
        });
        Self {
            thread,
            console,
            _events: ours,
            _directory: directory,
        }
    }

    /// Waits for its end, which is to be one by its own wish, without a step that failed. Shows what the guest says as it
    /// says it.
    fn finish(self, test: &str) {
        let mut shown = 0;
        wait_until("the machine's end", || {
            let finished = self.thread.is_finished();
            let console = fs::read(&self.console).unwrap();
            print!("{}", String::from_utf8_lossy(&console[shown..]));
            shown = console.len();
            finished
        });
        let console = fs::read_to_string(&self.console).unwrap();
        let stopped = self.thread.join().unwrap();
        assert_eq!(stopped.reason, StopReason::Reset, "{}", stopped.detail);
        assert!(!console.contains(FAILED), "a step of the guest has failed");
        assert!(
            console.contains(&format!("{test}: done")),
            "the guest has not come to its end"
        );
    }
}

fn kernel() -> File {
    let assets = std::env::var_os("RVM_TEST_ASSETS").expect("RVM_TEST_ASSETS is not set: run scripts/test");
    File::open(Path::new(&assets).join("vmlinux")).unwrap()
}

/// An archive of this program as init, and of a console that it can write to.
fn initrd(directory: &Path) -> File {
    let path = directory.join("initrd");
    let mut file = File::create(&path).unwrap();
    let program = fs::read("/proc/self/exe").unwrap();
    let mut add = |name: &str, mode: u32, device: (u32, u32), content: &[u8]| {
        let entry = cpio::newc::Builder::new(name).mode(mode).nlink(1);
        let entry = entry.rdev_major(device.0).rdev_minor(device.1);
        let mut entry = entry.write(&mut file, u32::try_from(content.len()).unwrap());
        entry.write_all(content).unwrap();
        entry.finish().unwrap();
    };
    add("dev", 0o040_755, (0, 0), b"");
    add("dev/console", 0o020_600, (5, 1), b"");
    add("dev/null", 0o020_666, (1, 3), b"");
    add("init", 0o100_755, (0, 0), &program);
    cpio::newc::trailer(&mut file).unwrap();
    File::open(path).unwrap()
}

fn files() {
    let top = temporary();
    let [data, read_only, outside] = ["data", "read-only", "outside"].map(|name| top.path().join(name));
    for directory in [&data, &read_only, &outside] {
        fs::create_dir(directory).unwrap();
    }
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink(outside.join("secret"), data.join("absolute")).unwrap();
    symlink("../outside/secret", data.join("upwards")).unwrap();
    fs::write(data.join("shared"), "old").unwrap();
    fs::write(read_only.join("file"), "content").unwrap();
    let (mut first, first_ends) = start(&data, &[]);
    let (mut second, second_ends) = start(&read_only, &["--read-only"]);
    let machine = Machine::boot(FILES, vec![(DATA, first_ends), (READ_ONLY, second_ends)]);

    // The guest has the file open, and has read it. It is changed in place.
    wait_until("the guest", || {
        data.join("has-read").exists() || machine.thread.is_finished()
    });
    fs::write(data.join("shared"), "new, and longer").unwrap();
    fs::write(data.join("changed"), "").unwrap();
    wait_until("the guest again", || {
        data.join("has-read-again").exists() || machine.thread.is_finished()
    });
    let mut shared = File::options().write(true).open(data.join("shared")).unwrap();
    let modified = shared.metadata().unwrap().modified().unwrap();
    shared.write_all(b"new, not longer").unwrap();
    shared.set_modified(modified).unwrap();
    fs::write(data.join("changed-again"), "").unwrap();
    machine.finish(FILES);
    assert!(first.wait().unwrap().success() && second.wait().unwrap().success());

    let at = |name: &str| data.join(name);
    assert_eq!(fs::read(at("contents")).unwrap(), crate::inside::pattern(5 << 20));
    assert_eq!(fs::read_to_string(at("appended")).unwrap(), "first second third ");
    assert_eq!(fs::metadata(at("linked")).unwrap().nlink(), 2);
    assert_eq!(fs::read_link(at("relative")).unwrap(), Path::new("linked"));
    let status = fs::metadata(at("attributes")).unwrap();
    assert_eq!(
        (status.uid(), status.gid(), status.mode() & 0o7777),
        (1000, 1001, 0o640)
    );
    assert_eq!((status.mtime(), status.mtime_nsec()), (1_000_000, 5));
    let mut value = [0; 16];
    let length = rustix::fs::getxattr(at("attributes"), "user.note", &mut value).unwrap();
    assert_eq!(&value[..length], b"from the guest");
    let status = fs::metadata(at("sparse")).unwrap();
    assert!(
        status.len() == 1 << 30 && status.blocks() * 512 < 1 << 20,
        "{}",
        status.blocks()
    );
    let status = fs::metadata(at("public/by-user")).unwrap();
    assert_eq!((status.uid(), status.gid()), (1000, 1000));
    assert_eq!(fs::read_dir(at("many")).unwrap().count(), 150);
    assert!(!at("device").exists());
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
    assert_eq!(fs::read_to_string(read_only.join("file")).unwrap(), "content");
    assert_eq!(fs::read_dir(&read_only).unwrap().count(), 1);
}

fn killed() {
    let top = temporary();
    let (mut worker, ends) = start(top.path(), &[]);
    let process = serving(&worker);
    let machine = Machine::boot(KILLED, vec![(DATA, ends)]);
    wait_until("writes", || {
        let written = fs::metadata(top.path().join("written")).map_or(0, |status| status.len());
        written > 1 << 20 || machine.thread.is_finished()
    });
    // In the middle of a write.
    worker.kill().unwrap();
    worker.wait().unwrap();
    wait_until("the end of its process", || {
        !Path::new(&format!("/proc/{process}")).exists()
    });
    machine.finish(KILLED);
}
