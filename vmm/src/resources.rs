//! What a machine is made of, with every descriptor owned: a [`VmConfig`] whose numbers have become files.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use crate::config::{ConfigError, DiskConfig, FsTag, LimitsConfig, NetworkConfig, VmConfig};
use crate::devices::virtio::fs::exchange::Ends;
use crate::sys::Inherited;

/// Everything that goes into a machine.
#[derive(Debug)]
pub struct Resources {
    /// Number of virtual CPUs.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// The guest's kernel.
    pub kernel: File,
    /// Parts of the initial ramdisk.
    pub initrd: Vec<File>,
    /// Kernel command line, without what the machine adds.
    pub cmdline: String,
    /// Log of the console's output.
    pub console: Option<File>,
    /// Disks in the guest's order.
    pub disks: Vec<Disk>,
    /// Network devices in the guest's order.
    pub networks: Vec<Network>,
    /// The vsock device.
    pub vsock: Option<Vsock>,
    /// File system devices.
    pub file_systems: Vec<FileSystem>,
    /// I/O port of the doorbell.
    pub doorbell_port: Option<u16>,
}

/// One disk.
#[derive(Debug)]
pub struct Disk {
    /// Files whose contents follow each other.
    pub parts: Vec<Part>,
    /// Writes are refused.
    pub read_only: bool,
}

/// A file and the bytes of the disk that it backs.
#[derive(Debug)]
pub struct Part {
    /// The file, from its offset 0.
    pub file: File,
    /// Bytes, a multiple of 512.
    pub bytes: u64,
}

/// One network device.
#[derive(Debug)]
pub struct Network {
    /// Queues of a TAP interface, one for each pair of the device's.
    pub taps: Vec<OwnedFd>,
    /// The guest's address.
    pub mac: [u8; 6],
    /// Largest packet in bytes, if the guest is told.
    pub mtu: Option<u16>,
    /// Limits of what the guest receives.
    pub receive: LimitsConfig,
    /// Limits of what the guest transmits.
    pub transmit: LimitsConfig,
}

/// The host's side of the vsock device.
#[derive(Debug)]
pub struct Vsock {
    /// Context identifier of the guest.
    pub guest_cid: u32,
    /// Where clients of the host connect.
    pub listener: UnixListener,
}

/// The host's side of a file system device.
#[derive(Debug)]
pub struct FileSystem {
    /// What the guest mounts it by.
    pub tag: FsTag,
    /// What is shared with the worker that serves the files.
    pub ends: Ends,
}

/// Why the descriptors of a configuration were refused.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    /// The configuration itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A descriptor is not open.
    #[error("the descriptor for the {role} cannot be used")]
    Descriptor {
        /// What it was meant for.
        role: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

impl Resources {
    /// Takes over the descriptors that `config` names, but for the events socket: whoever reports takes that.
    ///
    /// # Errors
    /// [`ResourceError`].
    pub fn claim(config: VmConfig, inherited: &mut Inherited) -> Result<Self, ResourceError> {
        config.check()?;
        let mut take = |fd, role| {
            inherited
                .take(fd)
                .map_err(|source| ResourceError::Descriptor { role, source })
        };
        let mut initrd = Vec::new();
        for fd in &config.initrd_fds {
            initrd.push(File::from(take(*fd, "initial ramdisk")?));
        }
        let mut disks = Vec::new();
        for disk in &config.disks {
            disks.push(claim_disk(disk, &mut take)?);
        }
        let mut networks = Vec::new();
        for network in &config.networks {
            networks.push(claim_network(network, &mut take)?);
        }
        let vsock = match config.vsock {
            Some(vsock) => {
                let listener = UnixListener::from(take(vsock.listener_fd, "vsock listener")?);
                Some(Vsock {
                    guest_cid: vsock.guest_cid,
                    listener,
                })
            }
            None => None,
        };
        let mut file_systems = Vec::new();
        for fs in config.file_systems {
            let ends = Ends {
                memory: take(fs.memory_fd, "memory of a file system worker")?,
                requests: take(fs.requests_fd, "requests to a file system worker")?,
                answers: take(fs.answers_fd, "answers of a file system worker")?,
            };
            file_systems.push(FileSystem { tag: fs.tag, ends });
        }
        Ok(Self {
            vcpus: config.vcpus,
            memory_mib: config.memory_mib,
            kvm: take(config.kvm_fd, "KVM")?,
            kernel: take(config.kernel_fd, "kernel")?.into(),
            initrd,
            cmdline: config.cmdline,
            console: config
                .console_fd
                .map(|fd| take(fd, "console log"))
                .transpose()?
                .map(File::from),
            disks,
            networks,
            vsock,
            file_systems,
            doorbell_port: config.doorbell_port,
        })
    }
}

fn claim_disk(
    config: &DiskConfig,
    take: &mut impl FnMut(i32, &'static str) -> Result<OwnedFd, ResourceError>,
) -> Result<Disk, ResourceError> {
    let mut parts = Vec::new();
    for part in &config.parts {
        parts.push(Part {
            file: take(part.fd, "disk")?.into(),
            bytes: part.bytes,
        });
    }
    Ok(Disk {
        parts,
        read_only: config.read_only,
    })
}

fn claim_network(
    config: &NetworkConfig,
    take: &mut impl FnMut(i32, &'static str) -> Result<OwnedFd, ResourceError>,
) -> Result<Network, ResourceError> {
    let taps = config.tap_fds.iter().map(|fd| take(*fd, "network device"));
    Ok(Network {
        taps: taps.collect::<Result<_, _>>()?,
        mac: config.mac,
        mtu: config.mtu,
        receive: config.receive,
        transmit: config.transmit,
    })
}
