//! What a container finds mounted over its image: kernel file systems, what of them is hidden, and which devices work.

use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, Mount, MountBuilder};

use super::{Error, Given, tmpfs};

/// Destination, type, source and options, in the order of mounting: `/dev` before what lies in it.
const MOUNTS: [(&str, &str, &str, &str); 7] = [
    ("/proc", "proc", "proc", "nosuid,noexec,nodev"),
    (
        "/dev",
        "tmpfs",
        "tmpfs",
        "nosuid,strictatime,mode=755,size=65536k",
    ),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
    ),
    ("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
    ("/sys/fs/cgroup", "cgroup", "cgroup", "ro,nosuid,noexec,nodev"),
    ("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
    ("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777"),
];

/// Paths that tell about the machine or let its hardware be measured or driven. Missing ones are no error.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths through which a container could change the kernel it shares.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Character devices that may be opened, as major and minor number of `Documentation/admin-guide/devices.txt`.
const DEVICES: [(i64, Option<i64>); 9] = [
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(1)), // console
    (5, Some(2)), // ptmx
    (136, None),  // pts/*
];

/// The standard mounts, and after them what was asked for.
///
/// # Errors
/// Those of a tmpfs.
pub(super) fn mounts(given: &Given, beside: &[Mount]) -> Result<Vec<Mount>, Error> {
    let mut asked = tmpfs::mounts(&given.tmpfs)?;
    asked.extend_from_slice(beside);
    // Each before those below it.
    asked.sort_by_key(|mount| mount.destination().components().count());
    let has = |path: &str| asked.iter().any(|mount| mount.destination() == Path::new(path));
    let mut mounts = Vec::new();
    for (destination, kind, source, options) in MOUNTS {
        if has(destination) {
            continue;
        }
        let mut options: Vec<_> = options.split(',').map(str::to_owned).collect();
        if destination == tmpfs::SHM {
            options.push(format!("size={}", given.shm_bytes()));
        }
        let mount = MountBuilder::default()
            .destination(destination)
            .typ(kind)
            .source(source)
            .options(options);
        mounts.push(mount.build()?);
    }
    mounts.extend(asked);
    Ok(mounts)
}

/// Paths to hide. `processors` is the directory `/sys/devices/system/cpu` of the host: its thermal counters are
/// hidden one directory per processor, because they tell what the neighbours are doing.
pub(super) fn masked_paths(processors: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(processors).into_iter().flatten().flatten();
    let mut thermal: Vec<String> = entries
        .map(|entry| entry.path().join("thermal_throttle"))
        .filter(|path: &PathBuf| path.is_dir())
        .filter_map(|path| path.into_os_string().into_string().ok())
        .collect();
    thermal.sort_unstable();
    MASKED.into_iter().map(str::to_owned).chain(thermal).collect()
}

/// Paths to make read-only.
pub(super) fn read_only_paths() -> Vec<String> {
    READ_ONLY.into_iter().map(str::to_owned).collect()
}

/// Rules for the device cgroup: nothing but the standard devices can be opened, though any node can be made, as a
/// package manager may have to. Later rules win.
pub(super) fn device_rules() -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let rule = |kind, access: &str| {
        LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(kind)
            .access(access)
    };
    let mut rules = vec![
        rule(LinuxDeviceType::A, "rwm").allow(false).build()?,
        rule(LinuxDeviceType::C, "m").build()?,
        rule(LinuxDeviceType::B, "m").build()?,
    ];
    for (major, minor) in DEVICES {
        let opened = rule(LinuxDeviceType::C, "rwm").major(major);
        rules.push(match minor {
            Some(minor) => opened.minor(minor).build()?,
            None => opened.build()?,
        });
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(given: &Given) -> Vec<Mount> {
        super::mounts(given, &[]).unwrap()
    }

    #[test]
    fn shared_memory_is_as_large_as_asked_for() {
        let shm = |given: &Given| -> Vec<_> {
            let mounts = mounts(given);
            let shm = mounts
                .iter()
                .filter(|mount| mount.destination() == Path::new("/dev/shm"));
            shm.map(|mount| mount.options().clone().unwrap().join(","))
                .collect()
        };
        let mut given = Given::default();
        assert_eq!(shm(&given), ["nosuid,noexec,nodev,mode=1777,size=67108864"]);
        given.shm_bytes = Some(4096);
        assert_eq!(shm(&given), ["nosuid,noexec,nodev,mode=1777,size=4096"]);
        given.tmpfs.insert("/dev/shm/".into(), "size=1m".into());
        assert_eq!(shm(&given), ["noexec,nosuid,nodev,size=1m"]);
    }

    #[test]
    fn dev_is_mounted_before_what_lies_in_it() {
        let mounts = mounts(&Given::default());
        let place = |path: &str| {
            mounts
                .iter()
                .position(|mount| mount.destination() == Path::new(path))
        };
        assert!(place("/dev") < place("/dev/pts"));
        assert!(place("/dev") < place("/dev/shm"));
        assert!(place("/sys") < place("/sys/fs/cgroup"));
    }

    #[test]
    fn thermal_counters_are_masked_where_they_exist() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("cpu0/thermal_throttle")).unwrap();
        std::fs::create_dir_all(directory.path().join("cpu1")).unwrap();
        let masked = masked_paths(directory.path());
        assert_eq!(masked.len(), MASKED.len() + 1);
        assert!(masked.iter().any(|path| path.ends_with("cpu0/thermal_throttle")));
        assert_eq!(masked_paths(Path::new("/nonexistent")).len(), MASKED.len());
    }

    #[test]
    fn devices_are_denied_first() {
        let rules = device_rules().unwrap();
        assert!(!rules[0].allow());
        assert_eq!(rules[0].typ(), Some(LinuxDeviceType::A));
        assert_eq!(rules.iter().filter(|rule| !rule.allow()).count(), 1);
        let terminals = rules.last().unwrap();
        assert_eq!((terminals.major(), terminals.minor()), (Some(136), None));
    }
}
