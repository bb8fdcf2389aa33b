//! A machine with a container's disks, from its parts to an agent that takes requests. What it is then asked for, to run
//! the workload or to read its files, is not decided here.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use oci_spec::runtime::Mount;
use rvm_protocol::{BootConfig, DOORBELL_PORT, LayerExtent, Request};
use rvm_vmm::config::{
    CONFIG_VERSION, DiskConfig, DiskPart, LimitsConfig, NamespacesConfig, NetworkConfig, VmConfig,
    VsockConfig,
};

use super::guest::{self, Address, Control};
use super::machine::{self, Machine};
use super::microvm::Error;
use super::namespaces::Namespaces;
use super::shares::{Seals, Shares, Workers};
use super::{Context, initramfs};
use crate::layout::Asset;
use crate::network::Tap;
use crate::record::Layer;
use crate::timeline::Phase;
use crate::{disk, log, names, socket};

/// Every machine has its own vsock device and its own host end, so all guests have the same address.
const GUEST_CID: u32 = 3;

/// Keeps the console silent but for a panic, and so free of exits.
const COMMAND_LINE: &str = "quiet loglevel=1";

/// First of the 2^27 users that machines run as.
const FIRST_MACHINE_USER: u32 = 0x7000_0000;

/// A machine whose agent takes requests.
pub(super) struct Guest {
    pub(super) machine: Machine,
    pub(super) control: Control,
    pub(super) address: Address,
    /// Where it has what is mounted.
    pub(super) mounts: Vec<Mount>,
    /// Until its volumes have been filled.
    pub(super) seals: Seals,
    /// Last, so that the machine goes first.
    _workers: Workers,
}

impl Guest {
    /// Starts a machine on the container's layers and its writable disk, and waits for its agent.
    pub(super) fn boot(context: &Context<'_>) -> Result<Self, Error> {
        let address = Address {
            socket: context.run_directory.join("vsock.sock"),
            token: names::hexadecimal(&names::random::<32>()),
        };
        let shares = Shares::start(context.record, context.spec)?;
        let mut machine = Parts::open(context, &address, &shares)?.spawn(context, &shares)?;
        let mounts = shares.mounts();
        let (workers, seals) = shares.into_workers();
        if !context.alarm.arm(machine.leash()?) {
            return Err(Error::Interrupted);
        }
        context.timeline.mark(Phase::VmmStarted);
        machine.wait_until_ready(context.timeline)?;
        match address.control() {
            Ok(control) => Ok(Self {
                machine,
                control,
                address,
                mounts,
                seals,
                _workers: workers,
            }),
            Err(error) => Err(explain(&mut machine, error)),
        }
    }

    /// What is behind an error: see [`explain`].
    pub(super) fn explain(&mut self, error: guest::Error) -> Error {
        explain(&mut self.machine, error)
    }

    /// Powers the guest off, so that its writable layer is whole, and removes the machine.
    pub(super) fn power_off(mut self) {
        // The guest may be gone already; a report follows either way, and dropping the machine ends it for certain.
        let _ = guest::send(&self.control.writer(), &Request::PowerOff);
        drop(self.machine.report());
    }
}

/// A lost connection is the symptom; how the machine ended is the cause.
fn explain(machine: &mut Machine, error: guest::Error) -> Error {
    if let guest::Error::Failed(_) = error {
        return Error::Guest(error);
    }
    match machine.report() {
        Ok(stopped) => machine::Error::Stopped(Box::new(stopped)).into(),
        Err(machine::Error::Hung) => Error::Guest(error),
        Err(cause) => cause.into(),
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
    fn open(context: &Context<'_>, address: &Address, shares: &Shares) -> Result<Self, Error> {
        let layers = &context.record.layers;
        let boot = BootConfig {
            version: rvm_protocol::VERSION,
            token: address.token.clone(),
            layers: extents(layers),
            shares: shares.places(),
            mounts: shares.mounts(),
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

    fn spawn(&self, context: &Context<'_>, shares: &Shares) -> Result<Machine, Error> {
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
            networks: context.network.taps.iter().map(network).collect(),
            vsock: Some(VsockConfig {
                guest_cid: GUEST_CID,
                listener_fd: self.vsock.as_raw_fd(),
            }),
            file_systems: shares.devices(),
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
        descriptors.extend(context.network.taps.iter().map(|tap| tap.file.as_fd()));
        descriptors.extend(shares.descriptors());
        Ok(Machine::spawn(&config, events, &descriptors)?)
    }
}

/// One queue: what a container's network carries is the business of one thread of the machine.
fn network(tap: &Tap) -> NetworkConfig {
    NetworkConfig {
        tap_fds: vec![tap.file.as_raw_fd()],
        mac: tap.mac,
        mtu: tap.mtu,
        receive: LimitsConfig::default(),
        transmit: LimitsConfig::default(),
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
