//! Capability sets, as capabilities(7) describes them, and the order in which a process can give them up.

use std::io;

use oci_spec::runtime::{Capabilities, LinuxCapabilities};
use rustix::io::Errno;
use rustix::thread::{self, CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use crate::plan;

/// The five sets of a process, as bit masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sets {
    bounding: u64,
    permitted: u64,
    effective: u64,
    inheritable: u64,
    ambient: u64,
}

/// Why the sets could not be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot reduce the bounding set")]
    Bounding(#[source] io::Error),
    #[error("cannot set the permitted, effective and inheritable capabilities")]
    Set(#[source] io::Error),
    #[error("cannot set the ambient capabilities")]
    Ambient(#[source] io::Error),
}

impl Sets {
    /// Reads `process.capabilities`. A Spec without it asks for none at all.
    pub(crate) fn new(capabilities: Option<&LinuxCapabilities>) -> Result<Sets, plan::Error> {
        let Some(capabilities) = capabilities else {
            return Ok(Sets::default());
        };
        let sets = Sets {
            bounding: mask("bounding", capabilities.bounding().as_ref())?,
            permitted: mask("permitted", capabilities.permitted().as_ref())?,
            effective: mask("effective", capabilities.effective().as_ref())?,
            inheritable: mask("inheritable", capabilities.inheritable().as_ref())?,
            ambient: mask("ambient", capabilities.ambient().as_ref())?,
        };
        let contradiction = [
            ("effective", sets.effective & !sets.permitted, "permitted"),
            ("ambient", sets.ambient & !sets.permitted, "permitted"),
            ("ambient", sets.ambient & !sets.inheritable, "inheritable"),
        ];
        for (field, outside, of) in contradiction {
            if outside != 0 {
                let reason = format!("has capabilities that {of} lacks");
                return Err(plan::Error::Invalid {
                    field: format!("process.capabilities.{field}"),
                    reason,
                });
            }
        }
        Ok(sets)
    }

    /// The sets for a user. Of another than root, `execve` leaves permitted and effective only what is ambient; without
    /// the rest already before it, that user cannot find or execute what only root may.
    pub(crate) fn of_user(self, uid: u32) -> Sets {
        match uid {
            0 => self,
            _ => Sets {
                permitted: self.ambient,
                effective: self.ambient,
                ..self
            },
        }
    }

    /// Reduces the bounding set. To be done while the process still has `CAP_SETPCAP`.
    pub(crate) fn apply_bounding(self) -> Result<(), Error> {
        let dropped = known_to_the_kernel().map_err(Error::Bounding)? & !self.bounding;
        for capability in bits(dropped) {
            thread::remove_capability_from_bounding_set(capability)
                .map_err(|error| Error::Bounding(error.into()))?;
        }
        Ok(())
    }

    /// Sets the other four, after the change of user, which would clear the ambient set. With `keep_admin` the process
    /// keeps `CAP_SYS_ADMIN` until [`Sets::apply_final`].
    pub(crate) fn apply(self, keep_admin: bool) -> Result<(), Error> {
        let extra = if keep_admin {
            CapabilitySet::SYS_ADMIN.bits()
        } else {
            0
        };
        self.set(extra)?;
        thread::clear_ambient_capability_set().map_err(|error| Error::Ambient(error.into()))?;
        let known = known_to_the_kernel().map_err(Error::Ambient)?;
        for capability in bits(self.ambient & known) {
            thread::configure_capability_in_ambient_set(capability, true)
                .map_err(|error| Error::Ambient(error.into()))?;
        }
        Ok(())
    }

    /// Gives up what [`Sets::apply`] kept, in a single system call, because a seccomp filter already watches.
    pub(crate) fn apply_final(self) -> Result<(), Error> {
        self.set(0)
    }

    fn set(self, extra: u64) -> Result<(), Error> {
        // capset ignores the bits of capabilities that the running kernel does not know.
        let sets = CapabilitySets {
            effective: CapabilitySet::from_bits_retain(self.effective | extra),
            permitted: CapabilitySet::from_bits_retain(self.permitted | extra),
            inheritable: CapabilitySet::from_bits_retain(self.inheritable),
        };
        thread::set_capabilities(None, sets).map_err(|error| Error::Set(error.into()))
    }
}

fn known_to_the_kernel() -> io::Result<u64> {
    let mut known = 0;
    for capability in bits(u64::MAX) {
        match thread::capability_is_in_bounding_set(capability) {
            Ok(_) => known |= capability.bits(),
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(known)
}

/// The single capabilities of a mask, lowest first.
fn bits(mask: u64) -> impl Iterator<Item = CapabilitySet> {
    let single = (0..u64::BITS)
        .map(|bit| 1u64 << bit)
        .filter(move |bit| mask & bit != 0);
    single.map(CapabilitySet::from_bits_retain)
}

fn mask(field: &str, capabilities: Option<&Capabilities>) -> Result<u64, plan::Error> {
    capabilities
        .into_iter()
        .flatten()
        .try_fold(0, |mask, capability| {
            let known = CapabilitySet::from_name(&capability.to_string());
            let bit = known.ok_or_else(|| plan::Error::Unsupported {
                field: format!("process.capabilities.{field}"),
                what: format!("CAP_{capability}"),
            })?;
            Ok(mask | bit.bits())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: serde_json::Value) -> Result<Sets, plan::Error> {
        Sets::new(Some(&serde_json::from_value(json).unwrap()))
    }

    #[test]
    fn names_become_the_kernels_bits() {
        let cases = [
            ("CAP_CHOWN", 0),
            ("CAP_NET_BIND_SERVICE", 10),
            ("CAP_SYS_ADMIN", 21),
            ("CAP_AUDIT_CONTROL", 30),
            ("CAP_SETFCAP", 31),
            ("CAP_MAC_OVERRIDE", 32),
            ("CAP_BLOCK_SUSPEND", 36),
            ("CAP_PERFMON", 38),
            ("CAP_BPF", 39),
            ("CAP_CHECKPOINT_RESTORE", 40),
        ];
        for (name, bit) in cases {
            assert_eq!(
                read(serde_json::json!({"bounding": [name]})).unwrap().bounding,
                1 << bit,
                "{name}"
            );
        }
    }

    #[test]
    fn sets_contain_one_another() {
        let chown = serde_json::json!(["CAP_CHOWN"]);
        let cases = [
            (
                serde_json::json!({"effective": chown}),
                "process.capabilities.effective: has capabilities that permitted lacks",
            ),
            (
                serde_json::json!({"permitted": chown, "ambient": chown}),
                "process.capabilities.ambient: has capabilities that inheritable lacks",
            ),
        ];
        for (json, expected) in cases {
            assert_eq!(read(json).unwrap_err().to_string(), expected);
        }
        assert_eq!(Sets::new(None).unwrap(), Sets::default());
    }

    #[test]
    fn users_other_than_root_have_what_is_ambient() {
        let both = serde_json::json!(["CAP_CHOWN", "CAP_KILL"]);
        let sets = read(serde_json::json!({
            "bounding": both, "permitted": both, "effective": both, "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"],
        }));
        let sets = sets.unwrap();
        assert_eq!(sets.of_user(0), sets);
        let kill = 1 << 5;
        let expected = Sets {
            bounding: kill | 1,
            permitted: kill,
            effective: kill,
            inheritable: kill,
            ambient: kill,
        };
        assert_eq!(sets.of_user(1000), expected);
    }
}
