//! Starts a virtual machine monitor, stops the clock when its guest prints, and prints what that took. For measuring.
//!
//! ```text
//! stopwatch boot|rest rvm-vmm VMM MIB CMDLINE KERNEL [INITRD]
//! stopwatch boot|rest command PROGRAM [ARGUMENT]...
//! ```
//!
//! The first form starts `rvm-vmm` as a supervisor does: a configuration on an inherited descriptor, no environment, a
//! user of its own, namespaces that are there already. The second starts any program, whose standard output is the guest's serial port. Either way the
//! guest's first output has to be a line end, and its arrival on a pipe is the stamp, so that no monitor is at an
//! advantage. The clock starts before the program is started.
//!
//! `boot` prints microseconds until then, microseconds of processor time of the program's threads until then, and the VM
//! exits that KVM counted (`-` where debugfs does not say), then ends the program. `rest` lets it rest, and prints VM
//! exits, the proportional set without guest memory, the private dirty part of that, and the guest memory touched, in kB.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::MemfdFlags;
use rustix::io::{FdFlags, fcntl_setfd};
use rvm_vmm::config::{CONFIG_VERSION, NamespacesConfig, VmConfig};
use rvm_vmm::confine;

const USAGE: &str =
    "usage: stopwatch boot|rest (rvm-vmm VMM MIB CMDLINE KERNEL [INITRD] | command PROGRAM [ARGUMENT]...)";

/// The user that the machine runs as; the first one that a supervisor could choose.
const USER: u32 = 0x7000_0000;

/// Until a guest has nothing left to do after its first output. Much longer than its kernel's deferred work at start-up.
const REST: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, form, program, rest @ ..] = arguments.as_slice() else {
        bail!(USAGE);
    };
    let (output, input) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let prepared = match form.as_str() {
        "rvm-vmm" => Prepared::rvm_vmm(program, rest, input)?,
        "command" => Prepared::command(program, rest, input),
        _ => bail!(USAGE),
    };
    let mut running = Running::start(prepared)?;
    running.wait_for_line(output.into())?;
    let elapsed = running.start.elapsed();
    let processor = running.processor_time()?;
    match mode.as_str() {
        "boot" => println!(
            "{} {} {}",
            elapsed.as_micros(),
            processor.as_micros(),
            running.exits()?
        ),
        "rest" => {
            std::thread::sleep(REST);
            let (others, dirty, guest) = running.memory()?;
            println!("{} {others} {dirty} {guest}", running.exits()?);
        }
        _ => bail!(USAGE),
    }
    Ok(())
}

/// A program that is ready to be started, and what it must find open.
struct Prepared {
    command: Command,
    /// Kept open until the program has them.
    _inherited: Vec<OwnedFd>,
    /// Our end of what the program holds the other end of.
    leash: Option<UnixStream>,
}

impl Prepared {
    fn command(program: &str, arguments: &[String], output: OwnedFd) -> Self {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(output);
        Self {
            command,
            _inherited: Vec::new(),
            leash: None,
        }
    }

    fn rvm_vmm(program: &str, arguments: &[String], console: OwnedFd) -> Result<Self> {
        let [mib, cmdline, kernel, initrd @ ..] = arguments else {
            bail!(USAGE);
        };
        let open = |path: &str| File::open(path).with_context(|| format!("cannot open {path}"));
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        let kvm = kvm.context("cannot open /dev/kvm")?;
        let kernel = open(kernel)?;
        let initrd = initrd.iter().map(|path| open(path)).collect::<Result<Vec<_>>>()?;
        let (leash, events) = UnixStream::pair()?;
        let namespaces = rustix::process::geteuid()
            .is_root()
            .then(namespaces)
            .transpose()?;
        let config = VmConfig {
            version: CONFIG_VERSION,
            vcpus: 1,
            memory_mib: mib.parse().context("MIB is not a number")?,
            kvm_fd: kvm.as_raw_fd(),
            kernel_fd: kernel.as_raw_fd(),
            initrd_fds: initrd.iter().map(|file| file.as_raw_fd()).collect(),
            cmdline: cmdline.clone(),
            console_fd: Some(console.as_raw_fd()),
            disks: Vec::new(),
            networks: Vec::new(),
            vsock: None,
            file_systems: Vec::new(),
            doorbell_port: None,
            events_fd: events.as_raw_fd(),
            user: namespaces.is_some().then_some(USER),
            namespaces: namespaces.as_ref().map(|[network, mounts]| NamespacesConfig {
                network_fd: network.as_raw_fd(),
                mounts_fd: mounts.as_raw_fd(),
            }),
        };
        let mut json = File::from(rustix::fs::memfd_create("machine", MemfdFlags::CLOEXEC)?);
        serde_json::to_writer(&mut json, &config)?;
        json.rewind()?;
        let mut command = Command::new(program);
        command
            .args(["--config", &json.as_raw_fd().to_string()])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut inherited: Vec<OwnedFd> =
            vec![kvm.into(), kernel.into(), console, events.into(), json.into()];
        inherited.extend(
            initrd
                .into_iter()
                .chain(namespaces.into_iter().flatten())
                .map(OwnedFd::from),
        );
        for descriptor in &inherited {
            inherit(descriptor.as_fd())?;
        }
        Ok(Self {
            command,
            _inherited: inherited,
            leash: Some(leash),
        })
    }
}

/// Empty namespaces, network and mounts, as every machine of an installation but the first finds them ready.
fn namespaces() -> Result<[File; 2]> {
    let make = |maker: fn() -> io::Result<File>| {
        let made = std::thread::spawn(maker).join();
        let namespace = made.ok().context("a thread panicked")?;
        namespace.context("cannot make a namespace")
    };
    Ok([
        make(confine::make_empty_network)?,
        make(confine::make_empty_mounts)?,
    ])
}

/// Lets the next program inherit a descriptor.
fn inherit(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    Ok(fcntl_setfd(descriptor, FdFlags::empty())?)
}

/// A monitor and the clock that was started before it. It ends with this value.
struct Running {
    child: Child,
    start: Instant,
    _leash: Option<UnixStream>,
}

impl Running {
    fn start(mut prepared: Prepared) -> Result<Self> {
        let start = Instant::now();
        let child = prepared.command.spawn().context("cannot start the program")?;
        Ok(Self {
            child,
            start,
            _leash: prepared.leash,
        })
    }

    /// Waits for the guest's line end.
    fn wait_for_line(&mut self, mut output: File) -> Result<()> {
        let mut byte = [0];
        if output.read(&mut byte)? == 1 && byte == *b"\n" {
            return Ok(());
        }
        let mut rest = byte.to_vec();
        self.child.kill()?;
        output.take(4096).read_to_end(&mut rest)?;
        io::stderr().write_all(&rest)?;
        bail!("the guest's first output was not a line end")
    }

    fn proc_file(&self, name: &str) -> Result<String> {
        let path = format!("/proc/{}/{name}", self.child.id());
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    }

    /// Time on a processor of all threads, guest code included: the first field of each `schedstat`, in nanoseconds.
    fn processor_time(&self) -> Result<Duration> {
        let mut nanoseconds = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let fields = fs::read_to_string(task?.path().join("schedstat"))?;
            let first = fields.split(' ').next().unwrap_or_default();
            nanoseconds += first.parse::<u64>().context("malformed schedstat")?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// All VM exits so far, and some of them by kind, as KVM's debugfs counts them.
    fn exits(&self) -> Result<String> {
        let prefix = format!("{}-", self.child.id());
        let Ok(entries) = fs::read_dir("/sys/kernel/debug/kvm") else {
            return Ok("-".into());
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let count = |name: &str| fs::read_to_string(entry.path().join(name));
                let all = count("exits").context("KVM counts no exits")?;
                if std::env::var_os("STOPWATCH_DETAILS").is_some() {
                    describe(&entry.path())?;
                }
                return Ok(all.trim().to_owned());
            }
        }
        Ok("-".into())
    }

    /// Proportional set without guest memory, private dirty part of it, and guest memory touched, in kB.
    fn memory(&self) -> Result<(u64, u64, u64)> {
        let text = self.proc_file("smaps")?;
        let mappings: Vec<Mapping> = text.lines().fold(Vec::new(), Mapping::add_line);
        let largest = mappings
            .iter()
            .position(|mapping| Some(mapping.bytes()) == mappings.iter().map(Mapping::bytes).max())
            .context("no mappings")?;
        ensure!(
            mappings
                .get(largest)
                .is_some_and(|mapping| mapping.bytes() >= 64 << 20),
            "no mapping is large enough for a guest"
        );
        // Parts that are backed in another way are mappings of their own, one behind the other.
        let (mut first, mut last) = (largest, largest);
        while first > 0 && mappings[first - 1].continues_in(&mappings[first]) {
            first -= 1;
        }
        while last + 1 < mappings.len() && mappings[last].continues_in(&mappings[last + 1]) {
            last += 1;
        }
        let sum = |mappings: &[Mapping]| {
            mappings.iter().fold((0, 0), |sum, mapping| {
                (sum.0 + mapping.pss, sum.1 + mapping.dirty)
            })
        };
        let (all, guest) = (sum(&mappings), sum(&mappings[first..=last]));
        Ok((all.0 - guest.0, all.1 - guest.1, guest.0))
    }
}

/// One entry of smaps.
#[derive(Default)]
struct Mapping {
    start: u64,
    end: u64,
    writable: bool,
    /// Mapped without a reservation of memory, as guest memory is.
    unreserved: bool,
    pss: u64,
    dirty: u64,
}

impl Mapping {
    fn add_line(mut all: Vec<Self>, line: &str) -> Vec<Self> {
        let mut words = line.split_ascii_whitespace();
        let (name, value) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let address = |text: &str| u64::from_str_radix(text, 16).ok();
        let range = name.split_once('-');
        if let Some((Some(start), Some(end))) = range.map(|(start, end)| (address(start), address(end))) {
            all.push(Self {
                start,
                end,
                writable: value == "rw-p",
                ..Self::default()
            });
        } else if let Some(mapping) = all.last_mut() {
            match name {
                "Pss:" => mapping.pss = value.parse().unwrap_or_default(),
                "Private_Dirty:" => mapping.dirty = value.parse().unwrap_or_default(),
                "VmFlags:" => mapping.unreserved = line.split(' ').any(|flag| flag == "nr"),
                _ => {}
            }
        }
        all
    }

    fn bytes(&self) -> u64 {
        self.end - self.start
    }

    fn continues_in(&self, next: &Self) -> bool {
        self.end == next.start && [self, next].iter().all(|part| part.writable && part.unreserved)
    }
}

/// Every counter of a machine that is not zero, on standard error.
fn describe(directory: &std::path::Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let value = fs::read_to_string(entry.path()).unwrap_or_default();
        if value.trim() != "0" && entry.path().is_file() && value.lines().count() == 1 {
            eprint!("{}={} ", entry.file_name().to_string_lossy(), value.trim());
        }
    }
    eprintln!();
    Ok(())
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only where the program has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
