//! What the host tells the agent before any connection exists, and what the agent tells the host without one.

use std::path::PathBuf;

use oci_spec::runtime::Mount;
use serde::{Deserialize, Serialize};

/// Where the agent finds its [`BootConfig`] in the initial root file system. The host appends a small archive with
/// this one file to the agent's; the file never becomes visible to the workload, unlike the kernel command line.
pub const BOOT_CONFIG_PATH: &str = "/boot.json";

/// I/O port to which the agent writes single bytes, each a [`Doorbell`].
pub const DOORBELL_PORT: u16 = 0x0600;

/// Handed to the agent in the initial root file system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootConfig {
    /// [`crate::VERSION`] of the host.
    pub version: u32,
    /// Expected in every [`crate::Hello`].
    pub token: String,
    /// Where each image layer lies on the read-only disk, lowest layer first. Each is an EROFS file system.
    pub layers: Vec<LayerExtent>,
    /// Directories of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<Share>,
    /// What of them is mounted where, for who copies files of a container that is not made here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
}

/// A directory of the host. The host decides where in the guest it is, because mounts of the specification name that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Its file system device.
    pub tag: String,
    /// Where the agent mounts it: a directory that it makes.
    pub directory: PathBuf,
}

/// A layer's place on the composite read-only disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerExtent {
    /// First byte, a multiple of 4096.
    pub offset: u64,
    /// Length in bytes, a multiple of 4096.
    pub length: u64,
}

/// One byte written to [`DOORBELL_PORT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Doorbell {
    /// The agent's first instruction after the kernel handed over.
    Started = 1,
    /// The agent accepts connections.
    Ready = 2,
    /// The agent is about to reset the machine on purpose; a reset without it is a crash.
    PowerOff = 3,
}

impl Doorbell {
    /// The doorbell with this value, if there is one.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Started, Self::Ready, Self::PowerOff]
            .into_iter()
            .find(|doorbell| *doorbell as u8 == byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doorbells_are_recognised() {
        assert_eq!(Doorbell::from_byte(2), Some(Doorbell::Ready));
        assert_eq!(Doorbell::from_byte(0), None);
        assert_eq!(Doorbell::from_byte(255), None);
    }
}
