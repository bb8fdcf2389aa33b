//! The host's half: a TAP interface, a machine on it, and its control connection.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Seek as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use rvm_vmm::config::{CONFIG_VERSION, LimitsConfig, NetworkConfig, VmConfig};
use rvm_vmm::event::Event;
use rvm_vmm::sys::open_tap;

use crate::guest::{CONTROL, HOST};

/// Long for anything here, also where everything is emulated on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
const TAP: &str = "tap0";
const MEMORY_MIB: u32 = 128;

pub(crate) fn run(command: &str) -> bool {
    let mut words = command.split(' ');
    Command::new(words.next().unwrap())
        .args(words)
        .status()
        .unwrap()
        .success()
}

/// Where what `scripts/build-guest` makes is.
fn asset(name: &str) -> PathBuf {
    let assets = std::env::var_os("RVM_TEST_ASSETS");
    let assets = assets.map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/assets"),
        PathBuf::from,
    );
    assets.join(name)
}

/// This executable as /init, and busybox.
fn initramfs() -> File {
    let mut file = tempfile::tempfile().unwrap();
    let executable = std::env::current_exe().unwrap();
    for (name, path) in [
        ("bin", None),
        ("bin/busybox", Some(PathBuf::from("/bin/busybox"))),
        ("init", Some(executable)),
    ] {
        let contents = path.map(|path| fs::read(path).unwrap());
        let mode = if contents.is_some() { 0o100_755 } else { 0o040_755 };
        let contents = contents.unwrap_or_default();
        let entry = cpio::newc::Builder::new(name).mode(mode).ino(1).nlink(1);
        let mut writer = entry.write(&mut file, u32::try_from(contents.len()).unwrap());
        writer.write_all(&contents).unwrap();
        writer.finish().unwrap();
    }
    cpio::newc::trailer(&mut file).unwrap();
    file.rewind().unwrap();
    file
}

/// A running guest.
pub(crate) struct Guest {
    vmm: Child,
    control: BufReader<TcpStream>,
    events: BufReader<UnixStream>,
}

/// What differs between machines.
#[derive(Default)]
pub(crate) struct Shape {
    pub(crate) queues: usize,
    pub(crate) vcpus: u8,
    pub(crate) mtu: Option<u16>,
    pub(crate) receive: LimitsConfig,
    pub(crate) transmit: LimitsConfig,
}

impl Guest {
    /// Boots a guest and waits for its connection.
    pub(crate) fn boot(shape: &Shape) -> Self {
        let taps: Vec<OwnedFd> = (0..shape.queues)
            .map(|_| open_tap(TAP, shape.queues > 1).unwrap())
            .collect();
        assert!(run(&format!("busybox ip addr add {HOST}/24 dev {TAP}")));
        if let Some(mtu) = shape.mtu {
            assert!(run(&format!("busybox ip link set {TAP} mtu {mtu}")));
        }
        assert!(run(&format!("busybox ip link set {TAP} up")));
        let listener = TcpListener::bind((HOST, CONTROL)).unwrap();

        let (ours, theirs) = UnixStream::pair().unwrap();
        let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
        let kernel = File::open(asset("vmlinux")).unwrap();
        let files = [kvm, kernel, initramfs(), File::from(OwnedFd::from(theirs))];
        let [kvm_fd, kernel_fd, initrd_fd, events_fd] = files.each_ref().map(|file| file.as_raw_fd());
        let config = VmConfig {
            version: CONFIG_VERSION,
            vcpus: shape.vcpus,
            memory_mib: MEMORY_MIB,
            kvm_fd,
            kernel_fd,
            initrd_fds: vec![initrd_fd],
            cmdline: String::new(),
            console_fd: None,
            disks: Vec::new(),
            networks: vec![NetworkConfig {
                tap_fds: taps.iter().map(|tap| tap.as_raw_fd()).collect(),
                mac: [2, 0, 0, 0, 0, 7],
                mtu: shape.mtu,
                receive: shape.receive,
                transmit: shape.transmit,
            }],
            file_systems: Vec::new(),
            vsock: None,
            doorbell_port: None,
            events_fd,
            user: Some(1_879_048_192),
            namespaces: None,
        };
        let mut written = tempfile::tempfile().unwrap();
        written.write_all(&serde_json::to_vec(&config).unwrap()).unwrap();
        written.rewind().unwrap();
        let taps: Vec<File> = taps.into_iter().map(File::from).collect();
        for file in taps.iter().chain(&files).chain([&written]) {
            fcntl_setfd(file, FdFlags::empty()).unwrap();
        }
        let vmm = Command::new(env!("CARGO_BIN_EXE_rvm-vmm"))
            .args(["--config", &written.as_raw_fd().to_string()])
            .spawn()
            .unwrap();
        drop((taps, files, written));

        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut guest = Self {
            vmm,
            control: BufReader::new(accept(&listener)),
            events: BufReader::new(ours),
        };
        let event = guest.event();
        assert!(matches!(event, Event::Running { .. }), "{event:?}");
        guest
    }

    fn event(&mut self) -> Event {
        let mut line = String::new();
        self.events.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Asks the guest for something; [`Guest::answer`] waits until it is done.
    pub(crate) fn ask(&mut self, request: &str) {
        writeln!(self.control.get_mut(), "{request}").unwrap();
    }

    pub(crate) fn answer(&mut self) -> String {
        let mut line = String::new();
        self.control.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The processor time of each of the device's threads, in nanoseconds.
    pub(crate) fn thread_times(&self) -> Vec<u64> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.vmm.id())).unwrap();
        let paths = tasks.map(|task| task.unwrap().path());
        let threads = paths.filter(|path| fs::read_to_string(path.join("comm")).unwrap() == "net\n");
        let statistics = threads.map(|path| fs::read_to_string(path.join("schedstat")).unwrap());
        statistics
            .map(|text| text.split(' ').next().unwrap().parse().unwrap())
            .collect()
    }

    /// Ends the guest by itself: its machine found nothing wrong to the end.
    pub(crate) fn finish(mut self) {
        self.control
            .get_mut()
            .shutdown(std::net::Shutdown::Write)
            .unwrap();
        self.ended();
    }

    /// Ends the machine from outside.
    pub(crate) fn terminate(mut self) {
        let pid = Pid::from_child(&self.vmm);
        kill_process(pid, Signal::TERM).unwrap();
        self.ended();
    }

    fn ended(&mut self) {
        let event = self.event();
        assert!(matches!(event, Event::Stopped(_)), "{event:?}");
        let status = self.vmm.wait().unwrap();
        assert!(status.success(), "{status} {event:?}");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It has ended, unless the test has failed.
        let _ = self.vmm.kill();
        let _ = self.vmm.wait();
    }
}

/// The next connection, which does not wait for ever.
pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    rustix::net::sockopt::set_socket_timeout(listener, rustix::net::sockopt::Timeout::Recv, Some(PATIENCE))
        .unwrap();
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A counter of the host's interface.
pub(crate) fn statistic(name: &str) -> u64 {
    // /sys shows the interfaces of the namespace that it was mounted in.
    let text = fs::read_to_string("/proc/net/dev").unwrap();
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("tap0:"))
        .unwrap();
    let column = [
        "rx_bytes",
        "rx_packets",
        "",
        "",
        "",
        "",
        "",
        "",
        "tx_bytes",
        "tx_packets",
    ]
    .iter()
    .position(|column| *column == name)
    .unwrap();
    line.split_whitespace().nth(column).unwrap().parse().unwrap()
}
