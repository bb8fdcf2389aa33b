//! Whether this machine's KVM can run an ordinary guest, found out by running small ones.
//!
//! `/dev/kvm` may open, answer and create machines, and still not run a guest kernel: some back ends ignore the CPUID
//! they are given or interpret privileged code. The verdict holds as long as the machine is not rebooted, so it is kept
//! in the run directory.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Layout;
use crate::json;
use crate::runtime::open_kvm;

/// Why a virtual machine cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such device.
    #[error("/dev/kvm does not exist")]
    Absent,
    /// This user may not use it.
    #[error("no permission to use /dev/kvm")]
    Forbidden,
    /// It cannot be opened for another reason.
    #[error("cannot open /dev/kvm")]
    Open(#[source] io::Error),
    /// The probe itself failed.
    #[error("cannot probe /dev/kvm")]
    Probe(#[source] rvm_vmm::probe::ProbeError),
    /// It runs no ordinary guest.
    #[error("the KVM of this machine cannot run an ordinary guest: {0}")]
    NonConforming(String),
}

impl Error {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Absent => {
                "enable virtualisation in the firmware or, in a virtual machine, nested virtualisation, and load \
                 the module kvm_intel or kvm_amd; meanwhile `--isolation container` runs without KVM"
            }
            Self::Forbidden => {
                "run as root or join the group that owns /dev/kvm; `--isolation container` runs without KVM"
            }
            Self::Open(_) | Self::Probe(_) => {
                "check what the kernel says about kvm (`dmesg`); `--isolation container` runs without KVM"
            }
            Self::NonConforming(_) => {
                "run on a machine with hardware virtualisation, or in scripts/lab; `--isolation container` runs \
                 without KVM"
            }
        }
    }
}

/// What was found to conform since the machine booted.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Verdict {
    boot_id: String,
    /// Number of the device that was probed.
    device: u64,
}

/// Checks that a virtual machine can run, by the verdict on record or by a probe.
///
/// Two commands may write the record at once; both write the same.
///
/// # Errors
/// As [`Error`] says.
pub fn require(layout: &Layout) -> Result<(), Error> {
    let device = open_kvm().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::Absent,
        io::ErrorKind::PermissionDenied => Error::Forbidden,
        _ => Error::Open(error),
    })?;
    let path = layout.run().join("kvm.json");
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let number = device.metadata().map_err(Error::Open)?.rdev();
    if known_to_conform(&path, &boot_id, number) {
        return Ok(());
    }
    let reasons = rvm_vmm::probe::probe(&device).map_err(Error::Probe)?.reasons;
    if !reasons.is_empty() {
        // Not kept: it may have been a busy moment, or be mended without a restart.
        return Err(Error::NonConforming(reasons.join("; ")));
    }
    // Only saves the next command some milliseconds; where it cannot be written, that one probes again.
    let _ = json::write(
        &path,
        &Verdict {
            boot_id,
            device: number,
        },
    );
    Ok(())
}

fn known_to_conform(path: &Path, boot_id: &str, device: u64) -> bool {
    let same = |verdict: Verdict| verdict.boot_id == boot_id && verdict.device == device;
    !boot_id.is_empty() && json::read(path).is_ok_and(same)
}
