//! What a caller knows about the place a workload will run in: everything that differs between a host and a guest.

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
