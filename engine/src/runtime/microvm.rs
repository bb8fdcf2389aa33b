//! VM mode: a machine, a guest kernel, and the agent that calls the isolation crate there.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use oci_spec::runtime::LinuxCpu;
use rvm_protocol::{BootConfig, DOORBELL_PORT, FailureKind, LayerExtent, Request, Stream};
use rvm_vmm::config::{CONFIG_VERSION, DiskConfig, DiskPart, NamespacesConfig, VmConfig, VsockConfig};
use rvm_vmm::status::Status;

use super::guest::{self, Address, Control};
use super::machine::{self, Commands, Machine};
use super::namespaces::Namespaces;
use super::{Context, Exit, Input, Streams, initramfs};
use crate::layout::{self, Asset};
use crate::record::Layer;
use crate::timeline::Phase;
use crate::{cgroup, disk, log, names, socket};

/// Every machine has its own vsock device and its own host end, so all guests have the same address.
const GUEST_CID: u32 = 3;

/// Keeps the console silent but for a panic, and so free of exits.
const COMMAND_LINE: &str = "quiet loglevel=1";

/// First of the 2^27 users that machines run as.
const FIRST_MACHINE_USER: u32 = 0x7000_0000;

/// A workload in a virtual machine.
pub(crate) struct MicroVm {
    machine: Machine,
    control: Control,
}

/// Why a virtual machine could not be made, or how it failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A part of the installation is missing.
    #[error(transparent)]
    Asset(#[from] layout::Error),
    /// The KVM device cannot be used.
    #[error("cannot open /dev/kvm")]
    Kvm(#[source] io::Error),
    /// The writable layer could not be made.
    #[error("cannot make the writable layer")]
    Disk(#[from] disk::Error),
    /// A layer of the image cannot be opened.
    #[error("cannot open the layer {0}")]
    Layer(PathBuf, #[source] io::Error),
    /// A socket or file for the machine could not be made.
    #[error("cannot make {0} for the virtual machine")]
    Resource(&'static str, #[source] io::Error),
    /// The machine could not be held to its processor time.
    #[error("cannot limit the virtual machine's processor time")]
    Limit(#[from] cgroup::Error),
    /// The record does not say how large the machine is.
    #[error("the container's record lacks the size of its virtual machine")]
    NoSize,
    /// The start was given up because a signal arrived.
    #[error("interrupted while the virtual machine started")]
    Interrupted,
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] machine::Error),
    /// The agent failed.
    #[error(transparent)]
    Guest(guest::Error),
}

impl Error {
    pub(crate) fn kind(&self) -> FailureKind {
        match self {
            Self::Guest(guest::Error::Failed(failure)) => failure.kind,
            _ => FailureKind::Other,
        }
    }
}

/// Ends a start that is under way, from another thread.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    state: Mutex<AlarmState>,
}

#[derive(Debug, Default)]
struct AlarmState {
    raised: bool,
    leash: Option<UnixStream>,
}

impl Alarm {
    /// Ends the machine that starts, or the one that will.
    pub(crate) fn raise(&self) {
        if let Ok(mut state) = self.state.lock() {
            state.raised = true;
            if let Some(leash) = state.leash.take() {
                // The machine may have ended by itself.
                let _ = leash.shutdown(Shutdown::Both);
            }
        }
    }

    fn is_raised(&self) -> bool {
        self.state.lock().is_ok_and(|state| state.raised)
    }

    /// Arms the alarm; `false` where it was raised already.
    fn arm(&self, leash: UnixStream) -> bool {
        self.state.lock().is_ok_and(|mut state| {
            state.leash = Some(leash);
            !state.raised
        })
    }
}

/// Sends requests to a guest from any thread.
#[derive(Clone)]
pub(crate) struct Remote {
    writer: Arc<Mutex<UnixStream>>,
    leash: Arc<UnixStream>,
    commands: Arc<Commands>,
}

impl Remote {
    pub(super) fn signal(&self, signal: i32) {
        // A failure means that the guest has ended, and the workload with it.
        let _ = guest::send(&self.writer, &Request::Signal { signal });
    }

    pub(super) fn status(&self) -> Result<Status, machine::Error> {
        self.commands.status()
    }

    pub(super) fn kill(&self) {
        // A failure means that the machine has ended.
        let _ = self.leash.shutdown(Shutdown::Both);
    }
}

impl MicroVm {
    pub(crate) fn create(context: &Context<'_>) -> Result<(Self, Streams), Error> {
        let mut machine = None;
        Self::boot(context, &mut machine).map_err(|error| {
            if context.alarm.is_raised() {
                return Error::Interrupted;
            }
            // A lost connection is the symptom; how the machine ended is the cause.
            match (&error, machine.as_mut().map(Machine::report)) {
                (Error::Guest(guest::Error::Failed(_)) | Error::Machine(_), _)
                | (_, None | Some(Err(machine::Error::Hung))) => error,
                (_, Some(Err(cause))) => Error::Machine(cause),
                (_, Some(Ok(stopped))) => machine::Error::Stopped(Box::new(stopped)).into(),
            }
        })
    }

    fn boot(context: &Context<'_>, slot: &mut Option<Machine>) -> Result<(Self, Streams), Error> {
        let address = Address {
            socket: context.run_directory.join("vsock.sock"),
            token: names::hexadecimal(&names::random::<32>()),
        };
        let machine = slot.insert(Parts::open(context, &address)?.spawn(context)?);
        if !context.alarm.arm(machine.leash()?) {
            return Err(Error::Interrupted);
        }
        context.timeline.mark(Phase::VmmStarted);
        machine.wait_until_ready(context.timeline)?;
        limit_processor_time(context)?;
        let control = address.control().map_err(Error::Guest)?;
        control
            .create(context.spec.clone(), context.record.open_stdin)
            .map_err(Error::Guest)?;
        let stream = |stream| address.stream(stream).map_err(Error::Guest);
        let stdin = context
            .record
            .open_stdin
            .then(|| stream(Stream::Stdin))
            .transpose()?;
        let streams = Streams {
            stdin: stdin.map(Input::Connection),
            stdout: File::from(OwnedFd::from(stream(Stream::Stdout)?)),
            stderr: File::from(OwnedFd::from(stream(Stream::Stderr)?)),
        };
        let machine = slot.take().ok_or(Error::NoSize)?;
        Ok((Self { machine, control }, streams))
    }

    pub(crate) fn start(&mut self) -> Result<(), Error> {
        let outcome = self.control.start();
        outcome.map_err(|error| self.explain(error))
    }

    pub(crate) fn pid(&self) -> i32 {
        self.machine.pid()
    }

    pub(crate) fn remote(&self) -> Result<Remote, Error> {
        Ok(Remote {
            writer: self.control.writer(),
            leash: Arc::new(self.machine.leash()?),
            commands: self.machine.commands(),
        })
    }

    pub(crate) fn wait(&mut self) -> Result<Exit, Error> {
        match self.control.wait() {
            Ok(exited) => Ok(Exit {
                code: exited.code,
                out_of_memory: exited.out_of_memory,
            }),
            Err(error) => Err(self.explain(error)),
        }
    }

    /// A lost connection is the symptom; how the machine ended is the cause.
    fn explain(&mut self, error: guest::Error) -> Error {
        if let guest::Error::Failed(_) = error {
            return Error::Guest(error);
        }
        match self.machine.report() {
            Ok(stopped) => machine::Error::Stopped(Box::new(stopped)).into(),
            Err(cause) => cause.into(),
        }
    }

    /// Powers the guest off, so that its writable layer is whole, and removes the machine.
    pub(crate) fn end(mut self) -> Result<(), Error> {
        // The guest may be gone already; a report follows either way, and dropping the machine ends it for certain.
        let _ = guest::send(&self.control.writer(), &Request::PowerOff);
        drop(self.machine.report());
        Ok(())
    }
}

/// Applies the limit that the specification has for the workload to the machine as well. Not before the guest is up: a boot
/// at a tenth of a processor would take seconds, and nothing of the image runs in it.
fn limit_processor_time(context: &Context<'_>) -> Result<(), Error> {
    let resources = context
        .spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    let cpu = resources.and_then(|resources| resources.cpu().as_ref());
    let quota = cpu
        .and_then(LinuxCpu::quota)
        .and_then(|quota| u64::try_from(quota).ok());
    let period = cpu.and_then(LinuxCpu::period);
    match (context.cgroup, quota, period) {
        (Some(cgroup), Some(quota), Some(period)) => Ok(cgroup.limit_machine(quota, period)?),
        _ => Ok(()),
    }
}

/// Everything a machine is made of, opened.
struct Parts {
    kvm: File,
    kernel: File,
    initramfs: [File; 2],
    layers: Vec<File>,
    writable: File,
    writable_bytes: u64,
    console: File,
    vsock: UnixListener,
    /// For root, who can enter them.
    namespaces: Option<Namespaces>,
}

/// The user that a machine runs as: one of its own, so that it can neither signal nor trace another one's. The range is
/// above everything that distributions and container managers give out, and below what does not fit an `int`
/// (<https://systemd.io/UIDS-GIDS>).
fn machine_user(id: &str) -> u32 {
    let digits = id
        .get(..7)
        .and_then(|digits| u32::from_str_radix(digits, 16).ok());
    FIRST_MACHINE_USER + (digits.unwrap_or_default() >> 1)
}

impl Parts {
    fn open(context: &Context<'_>, address: &Address) -> Result<Self, Error> {
        let layers = &context.record.layers;
        let boot = BootConfig {
            version: rvm_protocol::VERSION,
            token: address.token.clone(),
            layers: extents(layers),
        };
        let archive =
            initramfs::boot_archive(&boot).map_err(|source| Error::Resource("a boot archive", source))?;
        let open = |layer: &Layer| {
            File::open(&layer.path).map_err(|source| Error::Layer(layer.path.clone(), source))
        };
        let (writable, writable_bytes) = disk::writable(&context.layout.cache(), context.directory)?;
        Ok(Self {
            kvm: open_kvm().map_err(Error::Kvm)?,
            kernel: Asset::Kernel.open()?,
            initramfs: [Asset::Initramfs.open()?, archive],
            layers: layers.iter().map(open).collect::<Result<_, _>>()?,
            writable,
            writable_bytes,
            console: console(context.directory).map_err(|source| Error::Resource("a console log", source))?,
            vsock: socket::bind(&address.socket).map_err(|source| Error::Resource("a socket", source))?,
            namespaces: rustix::process::geteuid()
                .is_root()
                .then(|| Namespaces::open(context.layout.run()))
                .transpose()
                .map_err(|source| Error::Resource("empty namespaces", source))?,
        })
    }

    fn spawn(&self, context: &Context<'_>) -> Result<Machine, Error> {
        let size = context.record.machine.ok_or(Error::NoSize)?;
        let (events, vmm_events) =
            UnixStream::pair().map_err(|source| Error::Resource("a pair of sockets", source))?;
        let layer_part = |(file, layer): (&File, &Layer)| DiskPart {
            fd: file.as_raw_fd(),
            bytes: layer.bytes,
        };
        let layers = self
            .layers
            .iter()
            .zip(&context.record.layers)
            .map(layer_part)
            .collect();
        let writable = DiskPart {
            fd: self.writable.as_raw_fd(),
            bytes: self.writable_bytes,
        };
        let config = VmConfig {
            version: CONFIG_VERSION,
            vcpus: size.vcpus,
            memory_mib: size.memory_mib,
            kvm_fd: self.kvm.as_raw_fd(),
            kernel_fd: self.kernel.as_raw_fd(),
            initrd_fds: self.initramfs.iter().map(|file| file.as_raw_fd()).collect(),
            cmdline: COMMAND_LINE.to_owned(),
            console_fd: Some(self.console.as_raw_fd()),
            disks: vec![
                DiskConfig {
                    parts: layers,
                    read_only: true,
                },
                DiskConfig {
                    parts: vec![writable],
                    read_only: false,
                },
            ],
            networks: Vec::new(),
            vsock: Some(VsockConfig {
                guest_cid: GUEST_CID,
                listener_fd: self.vsock.as_raw_fd(),
            }),
            file_systems: Vec::new(),
            doorbell_port: Some(DOORBELL_PORT),
            events_fd: vmm_events.as_raw_fd(),
            user: rustix::process::geteuid()
                .is_root()
                .then(|| machine_user(&context.record.id)),
            namespaces: self.namespaces.as_ref().map(|namespaces| NamespacesConfig {
                network_fd: namespaces.network.as_raw_fd(),
                mounts_fd: namespaces.mounts.as_raw_fd(),
            }),
        };
        let files = [&self.kvm, &self.kernel, &self.writable, &self.console];
        let mut descriptors: Vec<_> = files
            .into_iter()
            .chain(&self.initramfs)
            .chain(&self.layers)
            .chain(
                self.namespaces
                    .iter()
                    .flat_map(|namespaces| [&namespaces.network, &namespaces.mounts]),
            )
            .map(|file| file.as_fd())
            .collect();
        descriptors.extend([self.vsock.as_fd(), vmm_events.as_fd()]);
        Ok(Machine::spawn(&config, events, &descriptors)?)
    }
}

/// Opens the KVM device for making virtual machines.
pub(crate) fn open_kvm() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/kvm")
}

/// Where each layer lies on the composite disk.
fn extents(layers: &[Layer]) -> Vec<LayerExtent> {
    let mut offset = 0;
    layers
        .iter()
        .map(|layer| {
            let extent = LayerExtent {
                offset,
                length: layer.bytes,
            };
            offset += layer.bytes;
            extent
        })
        .collect()
}

fn console(directory: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(directory.join(log::CONSOLE))
}
