//! What a caller knows about the place a workload will run in: everything that differs between a host and a guest.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The place a workload runs in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// Directory to create for the workload in the cgroup v2 hierarchy, for example `/sys/fs/cgroup/rvm/ID/payload`.
    /// Its parent exists, and has the controllers that the Spec's limits need in `cgroup.subtree_control`.
    pub cgroup: PathBuf,
    /// Where the root file system comes from.
    pub rootfs: Rootfs,
    /// Its network interfaces beside the loopback one.
    pub interfaces: Vec<Interface>,
    /// Files that are put in the place of the image's.
    pub files: Vec<PrivateFile>,
}

/// A network interface of the workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Where it comes from.
    pub device: Device,
    /// Its name inside, such as `eth0`.
    pub name: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Its addresses and the lengths of their networks' prefixes. Without one of IPv6, it does not take part in that at all.
    pub addresses: Vec<(IpAddr, u8)>,
    /// By which everything else is reached; at most one of a kind among all interfaces.
    pub gateways: Vec<IpAddr>,
    /// Largest packet in bytes; what the device has where `None`.
    pub mtu: Option<u16>,
}

/// Where an interface comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Device {
    /// It is made, as one of a pair; the other stays here.
    Veth {
        /// The other one's name.
        outer: String,
        /// The bridge that the other one becomes a port of.
        bridge: String,
    },
    /// It is here, with the hardware address that it is to have.
    Present,
}

/// A file of the container's own. It may be written to, and is no part of the container's changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrivateFile {
    /// Where it is inside.
    pub path: PathBuf,
    /// What is in it at first.
    pub content: String,
}

/// The parts an overlay root file system is put together from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rootfs {
    /// Read-only layers, lowest first.
    pub layers: Vec<Layer>,
    /// Existing directory that receives the workload's changes.
    pub upper: PathBuf,
    /// Existing empty directory on the same file system as `upper`, for overlayfs itself.
    pub work: PathBuf,
    /// Existing empty directory to mount on. The mounts exist in the workload's mount namespace only.
    pub staging: PathBuf,
}

/// One read-only EROFS layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// An EROFS image in a file: mounted directly where the kernel can, else through a loop device that frees itself.
    File(PathBuf),
    /// A block device that holds an EROFS image.
    Device(PathBuf),
}
