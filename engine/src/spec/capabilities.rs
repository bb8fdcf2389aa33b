//! The capabilities that a container is given.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

use super::Error;

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

/// Every capability of linux/capability.h.
const ALL: [Capability; 41] = [
    Capability::AuditControl,
    Capability::AuditRead,
    Capability::AuditWrite,
    Capability::BlockSuspend,
    Capability::Bpf,
    Capability::CheckpointRestore,
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::Kill,
    Capability::Lease,
    Capability::LinuxImmutable,
    Capability::MacAdmin,
    Capability::MacOverride,
    Capability::Mknod,
    Capability::NetAdmin,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetRaw,
    Capability::Perfmon,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysChroot,
    Capability::SysModule,
    Capability::SysNice,
    Capability::SysPacct,
    Capability::SysPtrace,
    Capability::SysRawio,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Syslog,
    Capability::WakeAlarm,
];

/// The default set without those that are dropped and with those that are added. As with Docker, `ALL` added is
/// all but those that are dropped, and `ALL` dropped is none but those that are added.
///
/// # Errors
/// [`Error::Capability`].
pub(super) fn chosen(add: &[String], drop: &[String]) -> Result<Capabilities, Error> {
    let (all_added, added) = read("CapAdd", add)?;
    let (all_dropped, dropped) = read("CapDrop", drop)?;
    Ok(match (all_added, all_dropped) {
        (true, _) => ALL.into_iter().filter(|one| !dropped.contains(one)).collect(),
        (false, true) => added,
        (false, false) => {
            let kept = DEFAULT.into_iter().filter(|one| !dropped.contains(one));
            kept.chain(added).collect()
        }
    })
}

/// A list: whether `ALL` is in it, and the others.
fn read(list: &'static str, names: &[String]) -> Result<(bool, Capabilities), Error> {
    let (mut all, mut some) = (false, Capabilities::new());
    for name in names {
        match docker_s(name).as_str() {
            "ALL" => all = true,
            known => {
                let unknown = |_| Error::Capability {
                    list,
                    name: known.to_owned(),
                };
                some.insert(
                    known
                        .strip_prefix("CAP_")
                        .unwrap_or_default()
                        .parse()
                        .map_err(unknown)?,
                );
            }
        }
    }
    Ok((all, some))
}

/// A name as Docker shows it: in capitals, with `CAP_`, but for `ALL`.
pub(crate) fn docker_s(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    let bare = name.strip_prefix("CAP_").unwrap_or(&name);
    match bare {
        "ALL" => bare.to_owned(),
        _ => format!("CAP_{bare}"),
    }
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
    fn capabilities_are_chosen_as_in_docker() {
        let without = |dropped: &[Capability]| -> Capabilities {
            let kept = DEFAULT.into_iter().filter(|one| !dropped.contains(one));
            kept.collect()
        };
        let with = |added: Capability| -> Capabilities { DEFAULT.into_iter().chain([added]).collect() };
        for (add, drop, expected) in [
            (&[][..], &[][..], Ok(default_set())),
            (&["SYS_TIME"], &[], Ok(with(Capability::SysTime))),
            (&["cap_sys_time"], &[], Ok(with(Capability::SysTime))),
            (
                &[],
                &["CHOWN", "kill"],
                Ok(without(&[Capability::Chown, Capability::Kill])),
            ),
            (&["CHOWN"], &["CHOWN"], Ok(default_set())),
            (&["chown"], &["all"], Ok(Capabilities::from([Capability::Chown]))),
            (&[], &["CAP_ALL"], Ok(Capabilities::new())),
            (&["ALL"], &[], Ok(Capabilities::from(ALL))),
            (&["ALL"], &["ALL"], Ok(Capabilities::from(ALL))),
            (
                &["ALL", "CHOWN"],
                &["CHOWN"],
                Ok(ALL.into_iter().filter(|one| *one != Capability::Chown).collect()),
            ),
            (
                &["FLYING"],
                &[],
                Err("invalid CapAdd: unknown capability: \"CAP_FLYING\""),
            ),
            (
                &[],
                &["CAP_CAP_CHOWN"],
                Err("invalid CapDrop: unknown capability: \"CAP_CAP_CHOWN\""),
            ),
            (&[""], &[], Err("invalid CapAdd: unknown capability: \"CAP_\"")),
        ] {
            let strings =
                |names: &[&str]| -> Vec<String> { names.iter().map(|&name| name.to_owned()).collect() };
            let actual = chosen(&strings(add), &strings(drop)).map_err(|error| error.to_string());
            assert_eq!(actual, expected.map_err(str::to_owned), "{add:?} {drop:?}");
        }
        assert_eq!(Capabilities::from(ALL).len(), ALL.len());
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
