//! Boots a kernel from paths and prints its console: a machine without anything of rvm around it.
//!
//! ```text
//! boot [-s] [-c VCPUS] [-m MIB] [-a CMDLINE] [-d DISK[:ro]]... [-n TAP[,queues=N]]... [-v SOCKET]
//!      [-f TAG=DIRECTORY[:ro]]... KERNEL [INITRD]...
//! ```
//! `-s` refuses io_uring to itself, as some hosts do, so that disks are served synchronously. The workers of `-f` are
//! `rvm-fs`, which is looked for above this program's directory: `cargo build -p rvm-fs`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustix::io::{FdFlags, fcntl_setfd};
use rvm_vmm::config::{FsTag, LimitsConfig};
use rvm_vmm::devices::virtio::fs::exchange::exchange;
use rvm_vmm::event::Event;
use rvm_vmm::reporter::{Reporter, Start};
use rvm_vmm::resources::{Disk, FileSystem, Network, Part, Resources, Vsock};
use rvm_vmm::seccomp::Filters;
use rvm_vmm::sys::open_tap;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

fn main() -> Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    let resources = parse()?;
    let reader = std::thread::spawn(move || print_events(theirs));
    let reporter = Arc::new(Reporter::new(ours.into(), Start::now()));
    let machine = rvm_vmm::builder::build(resources, reporter.clone(), Filters::new()?)?;
    let stopped = machine.run(None);
    reporter.send_reliably(&Event::Stopped(stopped));
    drop(reporter);
    reader.join().ok().context("the event reader panicked")
}

fn print_events(socket: UnixStream) {
    for line in BufReader::new(socket).lines().map_while(Result::ok) {
        eprintln!("{line}");
    }
}

fn parse() -> Result<Resources> {
    let open = |path: &str| File::open(path).with_context(|| format!("cannot open {path}"));
    let (mut vcpus, mut memory_mib, mut cmdline, mut disks, mut vsock) =
        (1, 128, String::new(), Vec::new(), None);
    let (mut files, mut networks, mut file_systems) = (Vec::new(), Vec::new(), Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .with_context(|| format!("{argument} needs a value"))
        };
        match argument.as_str() {
            "-c" => vcpus = value()?.parse()?,
            "-m" => memory_mib = value()?.parse()?,
            "-a" => cmdline = value()?,
            "-d" => disks.push(open_disk(&value()?)?),
            "-s" => refuse_io_uring()?,
            "-n" => networks.push(open_network(&value()?, u8::try_from(networks.len())?)?),
            "-v" => {
                vsock = Some(Vsock {
                    guest_cid: 3,
                    listener: UnixListener::bind(value()?)?,
                })
            }
            "-f" => file_systems.push(start_worker(&value()?)?),
            path => files.push(open(path)?),
        }
    }
    let mut files = files.into_iter();
    Ok(Resources {
        vcpus,
        memory_mib,
        kvm: OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .context("cannot open /dev/kvm")?
            .into(),
        kernel: files.next().context("usage: boot [OPTIONS] KERNEL [INITRD]...")?,
        initrd: files.collect(),
        cmdline,
        console: Some(OpenOptions::new().append(true).open("/dev/stdout")?),
        disks,
        networks,
        vsock,
        file_systems,
        doorbell_port: Some(0x600),
    })
}

fn refuse_io_uring() -> Result<()> {
    let filter = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_io_uring_setup, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        TargetArch::x86_64,
    )?;
    Ok(seccompiler::apply_filter(&BpfProgram::try_from(filter)?)?)
}

/// `PATH` is writable, `PATH:ro` is not; `PATH+PATH:ro` is one disk of two parts.
fn open_disk(text: &str) -> Result<Disk> {
    let (paths, read_only) = text
        .strip_suffix(":ro")
        .map_or((text, false), |paths| (paths, true));
    let mut parts = Vec::new();
    for path in paths.split('+') {
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .with_context(|| format!("cannot open {path}"))?;
        let bytes = file.metadata()?.len();
        parts.push(Part { file, bytes });
    }
    Ok(Disk { parts, read_only })
}

/// `TAP` or `TAP,queues=N`: an interface that exists, or is made and goes with the machine. The guest's address ends in the
/// device's `index`.
fn open_network(text: &str, index: u8) -> Result<Network> {
    let (name, queues) = match text.split_once(",queues=") {
        Some((name, queues)) => (name, queues.parse()?),
        None => (text, 1),
    };
    let queue = |_| open_tap(name, queues > 1).with_context(|| format!("cannot open {name}"));
    Ok(Network {
        taps: (0..queues).map(queue).collect::<Result<_>>()?,
        mac: [2, 0, 0, 0, 0, index],
        mtu: None,
        receive: LimitsConfig::default(),
        transmit: LimitsConfig::default(),
    })
}

/// Starts a worker, which ends when the machine has.
fn start_worker(text: &str) -> Result<FileSystem> {
    let (tag, directory) = text.split_once('=').context("-f needs TAG=DIRECTORY")?;
    let read_only = directory.strip_suffix(":ro");
    let path = read_only.unwrap_or(directory);
    let directory = File::open(path).with_context(|| format!("cannot open {path}"))?;
    let (ours, theirs) = exchange()?;
    fcntl_setfd(&directory, FdFlags::empty())?;
    for end in theirs.all() {
        fcntl_setfd(end, FdFlags::empty())?;
    }
    let own = std::env::current_exe()?;
    let above = own.parent().and_then(|directory| directory.parent());
    let program = above.context("this program is in no directory")?.join("rvm-fs");
    Command::new(&program)
        .args(["--directory", &directory.as_raw_fd().to_string()])
        .args(theirs.arguments())
        .args(read_only.map(|_| "--read-only"))
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    Ok(FileSystem {
        tag: FsTag::try_from(tag.to_owned())?,
        ends: ours,
    })
}
