//! The description of one machine, as the supervisor writes it for `rvm-vmm`.
//!
//! It is JSON on an inherited descriptor. Every file and socket is named by the number of an inherited descriptor: the
//! machine opens nothing by path, so it needs no view of any file system. Unknown fields are refused, because both
//! sides are built from one tree.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

/// The value of [`VmConfig::version`] that this build understands.
pub const CONFIG_VERSION: u32 = 1;

/// Sector size of virtio-blk in bytes; every disk is a whole number of them.
pub const SECTOR_BYTES: u64 = 512;

/// Most virtual CPUs of one machine: APIC ids are 8 bits wide and 255 means "all".
pub const MAX_VCPUS: u8 = 254;

/// Most file system devices: each takes an interrupt line, of which there are few.
pub const MAX_FILE_SYSTEMS: usize = 16;

/// Longest tag of a file system device in bytes (virtio 1.2, section 5.11.4).
pub const MAX_TAG_BYTES: usize = 36;

/// Most parts of one disk.
pub const MAX_DISK_PARTS: usize = 1024;

/// Most queue pairs of one network device. Each has a thread and 64 KiB of its own; all interrupts of a device share one
/// line, so that more of them gain nothing.
pub const MAX_QUEUE_PAIRS: usize = 16;

/// Smallest MTU of a network device: IPv4 needs 68 bytes (RFC 791).
pub const MIN_MTU: u16 = 68;

/// Largest MTU of a network device: a TAP carries 65535 bytes, the Ethernet header's 14 included.
pub const MAX_MTU: u16 = 65521;

/// Everything a machine is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Version of this structure, [`CONFIG_VERSION`].
    pub version: u32,
    /// Number of virtual CPUs.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// `/dev/kvm`, opened for reading and writing.
    pub kvm_fd: RawFd,
    /// The guest kernel: an ELF `vmlinux` for x86-64.
    pub kernel_fd: RawFd,
    /// Files that are concatenated into the initial ramdisk, each padded to 4 bytes.
    pub initrd_fds: Vec<RawFd>,
    /// Kernel command line. What the machine's own devices need is added by the machine.
    pub cmdline: String,
    /// Where the guest's console output is appended, up to a limit.
    pub console_fd: Option<RawFd>,
    /// Disks in the guest's order (`vda`, `vdb`, ...).
    pub disks: Vec<DiskConfig>,
    /// Network devices in the guest's order (`eth0`, `eth1`, ...).
    pub networks: Vec<NetworkConfig>,
    /// The vsock device, if the guest has one.
    pub vsock: Option<VsockConfig>,
    /// File system devices.
    pub file_systems: Vec<FsConfig>,
    /// I/O port whose written bytes are reported as [`crate::event::Event::Doorbell`].
    pub doorbell_port: Option<u16>,
    /// Unix stream socket that receives [`crate::event::Event`]s, one JSON object per line. End of file on it (the
    /// supervisor is gone) ends the machine at once.
    pub events_fd: RawFd,
    /// User and group that the process becomes if it is started by root.
    pub user: Option<u32>,
    /// Namespaces for the process to enter if it is started by root, instead of making its own.
    pub namespaces: Option<NamespacesConfig>,
}

/// Namespaces in which there is nothing. Machines may share them: none can make a socket or a file in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespacesConfig {
    /// A network namespace, as [`crate::confine::make_empty_network`] makes it.
    pub network_fd: RawFd,
    /// A mount namespace, as [`crate::confine::make_empty_mounts`] makes it.
    pub mounts_fd: RawFd,
}

/// One disk: the concatenation of its parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Parts in the order of their sectors.
    pub parts: Vec<DiskPart>,
    /// Writes are refused. A disk of more than one part must be read-only.
    pub read_only: bool,
}

/// A stretch of a disk that is backed by one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskPart {
    /// The file; read from its offset 0.
    pub fd: RawFd,
    /// Length of the stretch, a multiple of 512. A read-only file may end up to 4095 bytes before it; the rest reads as
    /// zeros.
    pub bytes: u64,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// The queues of a TAP interface, one for each pair of the device's: `/dev/net/tun` after `TUNSETIFF` with `IFF_TAP`,
    /// `IFF_NO_PI`, `IFF_VNET_HDR` and, if there are several, `IFF_MULTI_QUEUE`.
    pub tap_fds: Vec<RawFd>,
    /// The guest's address: unicast.
    pub mac: [u8; 6],
    /// Largest packet in bytes, told to the guest; [`MIN_MTU`] to [`MAX_MTU`]. It must be the TAP's own.
    pub mtu: Option<u16>,
    /// Limits of what the guest receives, over all queues.
    pub receive: LimitsConfig,
    /// Limits of what the guest transmits, over all queues.
    pub transmit: LimitsConfig,
}

/// Limits of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsConfig {
    /// Of bytes.
    pub bytes: Option<RateConfig>,
    /// Of packets. What guest and host hand over as one packet, to be cut into segments elsewhere, counts once.
    pub packets: Option<RateConfig>,
}

/// A rate, and how much of it may be saved up while it is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateConfig {
    /// Positive.
    pub per_second: u64,
    /// Positive. What there is at first, and at most.
    pub burst: u64,
}

/// The vsock device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context identifier, 3 or more.
    pub guest_cid: u32,
    /// A listening Unix stream socket. A client sends `CONNECT <port>\n`, reads `OK <host port>\n` once the guest has
    /// accepted, and then has the raw stream; a refused connection is closed.
    pub listener_fd: RawFd,
}

/// A file system device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FsConfig {
    /// What the guest mounts it by.
    pub tag: FsTag,
    /// A memfd of slots for messages, which can get neither shorter nor longer.
    pub memory_fd: RawFd,
    /// A pipe to the worker that serves the files, to write numbers of slots.
    pub requests_fd: RawFd,
    /// A pipe from the worker, to read numbers of slots.
    pub answers_fd: RawFd,
}

/// A tag: 1 to [`MAX_TAG_BYTES`] bytes of UTF-8 without a NUL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FsTag(String);

/// A tag that a guest could not use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the file system tag {0:?} does not have 1 to {MAX_TAG_BYTES} bytes other than NUL")]
pub struct InvalidTag(String);

impl FsTag {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for FsTag {
    type Error = InvalidTag;

    fn try_from(text: String) -> Result<Self, InvalidTag> {
        if (1..=MAX_TAG_BYTES).contains(&text.len()) && !text.contains('\0') {
            Ok(Self(text))
        } else {
            Err(InvalidTag(text))
        }
    }
}

impl From<FsTag> for String {
    fn from(tag: FsTag) -> Self {
        tag.0
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The JSON does not describe a machine.
    #[error("the machine configuration is not valid JSON for this version")]
    Parse(#[from] serde_json::Error),
    /// The configuration is of another version.
    #[error("machine configuration version {0} is not the supported version {CONFIG_VERSION}")]
    Version(u32),
    /// Zero or too many virtual CPUs.
    #[error("{0} virtual CPUs: the machine has 1 to {MAX_VCPUS}")]
    Vcpus(u8),
    /// A disk of zero bytes, of no parts, of too many, or with a length that is not a whole number of sectors.
    #[error("disk {disk}: {problem}")]
    Disk {
        /// Index of the disk.
        disk: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A network device without queues or with too many, with an address or MTU that makes no sense, or with a rate of
    /// zero.
    #[error("network device {network}: {problem}")]
    Network {
        /// Index of the device.
        network: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A reserved context identifier.
    #[error("vsock context identifier {0} is reserved, the lowest for a guest is 3")]
    GuestCid(u32),
    /// More file system devices than a machine has room for.
    #[error("{0} file systems: the machine has at most {MAX_FILE_SYSTEMS}")]
    FileSystems(usize),
    /// The guest could not tell two file systems apart.
    #[error("two file systems have the tag {0:?}")]
    TagUsedTwice(String),
    /// One descriptor has two roles.
    #[error("descriptor {0} is named twice")]
    DescriptorNamedTwice(RawFd),
}

impl VmConfig {
    /// Parses and checks a configuration.
    ///
    /// # Errors
    /// [`ConfigError`] if it is not one that can describe a machine. Descriptors are only checked to be distinct here;
    /// whether they are what they should be is found out when the machine takes them over.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_slice(json)?;
        config.check()?;
        Ok(config)
    }

    /// Checks everything that [`VmConfig::parse`] promises, for a configuration made in the same process.
    ///
    /// # Errors
    /// As [`VmConfig::parse`].
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.version != CONFIG_VERSION {
            return Err(ConfigError::Version(self.version));
        }
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            return Err(ConfigError::Vcpus(self.vcpus));
        }
        for (disk, config) in self.disks.iter().enumerate() {
            config
                .check()
                .map_err(|problem| ConfigError::Disk { disk, problem })?;
        }
        for (network, config) in self.networks.iter().enumerate() {
            config
                .check()
                .map_err(|problem| ConfigError::Network { network, problem })?;
        }
        if let Some(vsock) = self.vsock
            && (vsock.guest_cid < 3 || vsock.guest_cid == u32::MAX)
        {
            return Err(ConfigError::GuestCid(vsock.guest_cid));
        }
        check_file_systems(&self.file_systems)?;
        let mut descriptors = self.descriptors();
        descriptors.sort_unstable();
        match descriptors.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(ConfigError::DescriptorNamedTwice(pair[0])),
            None => Ok(()),
        }
    }

    /// Every descriptor the configuration names.
    #[must_use]
    pub fn descriptors(&self) -> Vec<RawFd> {
        let mut descriptors = vec![self.kvm_fd, self.kernel_fd, self.events_fd];
        descriptors.extend(&self.initrd_fds);
        descriptors.extend(self.console_fd);
        descriptors.extend(
            self.disks
                .iter()
                .flat_map(|disk| disk.parts.iter().map(|part| part.fd)),
        );
        descriptors.extend(self.networks.iter().flat_map(|network| &network.tap_fds));
        descriptors.extend(self.vsock.map(|vsock| vsock.listener_fd));
        for fs in &self.file_systems {
            descriptors.extend([fs.memory_fd, fs.requests_fd, fs.answers_fd]);
        }
        descriptors.extend(
            self.namespaces
                .iter()
                .flat_map(|given| [given.network_fd, given.mounts_fd]),
        );
        descriptors
    }
}

fn check_file_systems(file_systems: &[FsConfig]) -> Result<(), ConfigError> {
    if file_systems.len() > MAX_FILE_SYSTEMS {
        return Err(ConfigError::FileSystems(file_systems.len()));
    }
    let mut tags: Vec<&str> = file_systems.iter().map(|fs| fs.tag.as_str()).collect();
    tags.sort_unstable();
    match tags.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(ConfigError::TagUsedTwice(pair[0].to_owned())),
        None => Ok(()),
    }
}

impl DiskConfig {
    fn check(&self) -> Result<(), &'static str> {
        if self.parts.is_empty() {
            return Err("it has no parts");
        }
        if self.parts.len() > MAX_DISK_PARTS {
            return Err("it has too many parts");
        }
        if self.parts.len() > 1 && !self.read_only {
            return Err("a writable disk has exactly one part");
        }
        let mut total: u64 = 0;
        for part in &self.parts {
            if part.bytes == 0 || part.bytes % SECTOR_BYTES != 0 {
                return Err("a part's length is not a positive multiple of 512 bytes");
            }
            total = total.checked_add(part.bytes).ok_or("it is too large")?;
        }
        if i64::try_from(total).is_err() {
            return Err("it is too large");
        }
        Ok(())
    }
}

impl NetworkConfig {
    fn check(&self) -> Result<(), &'static str> {
        if self.tap_fds.is_empty() {
            return Err("it has no queues");
        }
        if self.tap_fds.len() > MAX_QUEUE_PAIRS {
            return Err("it has too many queues");
        }
        if self.mac[0] & 1 != 0 || self.mac == [0; 6] {
            return Err("its address is not one of a single station");
        }
        if self.mtu.is_some_and(|mtu| !(MIN_MTU..=MAX_MTU).contains(&mtu)) {
            return Err("its MTU is not possible");
        }
        let limits = [self.receive, self.transmit];
        let mut rates = limits.iter().flat_map(|limits| [limits.bytes, limits.packets]);
        if rates.any(|rate| rate.is_some_and(|rate| rate.per_second == 0 || rate.burst == 0)) {
            return Err("a rate limit is zero");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> VmConfig {
        VmConfig {
            version: CONFIG_VERSION,
            vcpus: 2,
            memory_mib: 256,
            kvm_fd: 3,
            kernel_fd: 4,
            initrd_fds: vec![5, 6],
            cmdline: "quiet".into(),
            console_fd: Some(7),
            disks: vec![DiskConfig {
                parts: vec![DiskPart { fd: 8, bytes: 4096 }],
                read_only: false,
            }],
            networks: vec![NetworkConfig {
                tap_fds: vec![11, 12],
                mac: [2, 0, 0, 0, 0, 1],
                mtu: Some(1500),
                receive: LimitsConfig::default(),
                transmit: LimitsConfig {
                    bytes: Some(RateConfig {
                        per_second: 1 << 20,
                        burst: 1 << 16,
                    }),
                    packets: None,
                },
            }],
            vsock: Some(VsockConfig {
                guest_cid: 3,
                listener_fd: 9,
            }),
            file_systems: vec![file_system("shared", 16)],
            doorbell_port: Some(0x600),
            events_fd: 10,
            user: None,
            namespaces: Some(NamespacesConfig {
                network_fd: 14,
                mounts_fd: 15,
            }),
        }
    }

    fn file_system(tag: &str, first_fd: RawFd) -> FsConfig {
        FsConfig {
            tag: FsTag::try_from(tag.to_owned()).unwrap(),
            memory_fd: first_fd,
            requests_fd: first_fd + 1,
            answers_fd: first_fd + 2,
        }
    }

    fn check(change: impl FnOnce(&mut VmConfig), expected: &str) {
        let mut config = config();
        change(&mut config);
        let json = serde_json::to_vec(&config).unwrap();
        let message = match VmConfig::parse(&json) {
            Ok(parsed) => {
                assert_eq!(parsed, config);
                String::from("ok")
            }
            Err(error) => error.to_string(),
        };
        assert!(message.contains(expected), "{message}");
    }

    #[test]
    fn configurations_are_accepted_or_refused() {
        check(|_| (), "ok");
        check(|config| config.version = 2, "version 2");
        check(|config| config.vcpus = 0, "0 virtual CPUs");
        check(|config| config.vcpus = 255, "255 virtual CPUs");
        check(|config| config.disks[0].parts[0].bytes = 513, "multiple of 512");
        check(|config| config.disks[0].parts[0].bytes = 0, "multiple of 512");
        check(|config| config.disks[0].parts.clear(), "no parts");
        check(
            |config| config.disks[0].parts.push(DiskPart { fd: 20, bytes: 512 }),
            "exactly one part",
        );
        check(
            |config| {
                config.disks[0].read_only = true;
                config.disks[0].parts = vec![
                    DiskPart {
                        fd: 20,
                        bytes: u64::MAX - 511,
                    },
                    DiskPart { fd: 21, bytes: 1024 },
                ];
            },
            "too large",
        );
        check(
            |config| {
                config.vsock = Some(VsockConfig {
                    guest_cid: 2,
                    listener_fd: 9,
                })
            },
            "reserved",
        );
        check(|config| config.initrd_fds.push(10), "named twice");
        check(|config| config.initrd_fds.push(11), "named twice");
        check(|config| config.initrd_fds.push(14), "named twice");
        check(|config| config.file_systems[0].answers_fd = 17, "named twice");
        check(
            |config| config.file_systems.push(file_system("shared", 20)),
            "two file systems have the tag \"shared\"",
        );
        check(
            |config| {
                let many = (0..17).map(|index| file_system(&index.to_string(), 20 + 3 * index));
                config.file_systems = many.collect();
            },
            "17 file systems",
        );
    }

    #[test]
    fn network_devices_are_accepted_or_refused() {
        let check = |change: fn(&mut NetworkConfig), expected: &str| {
            check(|config| change(&mut config.networks[0]), expected);
        };
        check(|network| network.tap_fds.clear(), "no queues");
        check(|network| network.tap_fds = (100..116).collect(), "ok");
        check(
            |network| network.tap_fds = (100..117).collect(),
            "too many queues",
        );
        check(
            |network| network.tap_fds = vec![11, 11],
            "descriptor 11 is named twice",
        );
        check(|network| network.tap_fds = vec![3], "descriptor 3 is named twice");
        check(|network| network.mac[0] = 3, "single station");
        check(|network| network.mac = [0; 6], "single station");
        check(|network| network.mtu = None, "ok");
        check(|network| network.mtu = Some(67), "MTU");
        check(|network| network.mtu = Some(65522), "MTU");
        check(
            |network| {
                network.receive.packets = Some(RateConfig {
                    per_second: 0,
                    burst: 1,
                });
            },
            "limit is zero",
        );
        check(
            |network| {
                network.transmit.bytes = Some(RateConfig {
                    per_second: 1,
                    burst: 0,
                });
            },
            "limit is zero",
        );
    }

    #[test]
    fn unknown_fields_are_refused() {
        let mut json = serde_json::to_value(config()).unwrap();
        json["sound_card"] = true.into();
        assert!(matches!(
            VmConfig::parse(&serde_json::to_vec(&json).unwrap()),
            Err(ConfigError::Parse(_))
        ));
    }

    #[test]
    fn tags_are_accepted_or_refused() {
        let check = |tag: &str, valid: bool| {
            assert_eq!(FsTag::try_from(tag.to_owned()).is_ok(), valid, "{tag:?}");
            let json = serde_json::to_string(tag).unwrap();
            assert_eq!(serde_json::from_str::<FsTag>(&json).is_ok(), valid, "{tag:?}");
        };
        check("a", true);
        check("näme with spaces/and more", true);
        check(&"x".repeat(36), true);
        check("", false);
        check(&"x".repeat(37), false);
        check(&"ä".repeat(19), false);
        check("a\0b", false);
    }
}
