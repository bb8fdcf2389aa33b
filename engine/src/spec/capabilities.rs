//! The capabilities that a container is given.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

/// Docker's default set: enough for package managers, servers on low ports and dropping privileges, nothing that
/// reaches beyond the container's namespaces. As a mask, `0xa80425fb`.
const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// The default set.
#[must_use]
pub fn default_set() -> Capabilities {
    Capabilities::from(DEFAULT)
}

/// The process's sets. Inheritable and ambient stay empty: with them, a file with inheritable capabilities would
/// gain them for a user other than root (CVE-2022-24769).
#[must_use]
pub fn process_sets(capabilities: &Capabilities) -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(capabilities.clone()))
        .set_effective(Some(capabilities.clone()))
        .set_permitted(Some(capabilities.clone()))
        .set_inheritable(Some(Capabilities::new()))
        .set_ambient(Some(Capabilities::new()));
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_mask_is_dockers() {
        // Bit numbers from linux/capability.h.
        let number = |capability| match capability {
            Capability::Chown => 0,
            Capability::DacOverride => 1,
            Capability::Fowner => 3,
            Capability::Fsetid => 4,
            Capability::Kill => 5,
            Capability::Setgid => 6,
            Capability::Setuid => 7,
            Capability::Setpcap => 8,
            Capability::NetBindService => 10,
            Capability::NetRaw => 13,
            Capability::SysChroot => 18,
            Capability::Mknod => 27,
            Capability::AuditWrite => 29,
            Capability::Setfcap => 31,
            other => panic!("{other} is not a default"),
        };
        let mask: u64 = default_set()
            .into_iter()
            .map(|capability| 1 << number(capability))
            .sum();
        assert_eq!(mask, 0xa804_25fb);
    }

    #[test]
    fn nothing_is_inherited() {
        let sets = process_sets(&default_set());
        assert_eq!(sets.bounding(), sets.effective());
        assert_eq!(sets.bounding(), sets.permitted());
        assert_eq!(sets.inheritable(), &Some(Capabilities::new()));
        assert_eq!(sets.ambient(), &Some(Capabilities::new()));
    }
}
