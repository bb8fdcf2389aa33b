//! From the kernel's hand-over to an environment in which containers can be made: root, kernel file systems,
//! parameters. What the archive that the kernel unpacked has to hold is `/init`, `/boot.json` and `/dev/null`, which
//! the Rust runtime opens when the kernel has no console to give.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount, mount_move};
use rvm_protocol::{BOOT_CONFIG_PATH, BootConfig, VERSION};

/// The root of the cgroup hierarchy, which the agent stays in.
pub(crate) const CGROUP_ROOT: &str = "/sys/fs/cgroup";

const NEW_ROOT: &str = "/root";

/// Reads what the host left for the agent, and deletes it.
pub(crate) fn read_config() -> Result<BootConfig> {
    let bytes = fs::read(BOOT_CONFIG_PATH).with_context(|| format!("read {BOOT_CONFIG_PATH}"))?;
    fs::remove_file(BOOT_CONFIG_PATH).with_context(|| format!("delete {BOOT_CONFIG_PATH}"))?;
    parse_config(&bytes).with_context(|| format!("parse {BOOT_CONFIG_PATH}"))
}

fn parse_config(bytes: &[u8]) -> Result<BootConfig> {
    let config: BootConfig = serde_json::from_slice(bytes)?;
    ensure!(
        config.version == VERSION,
        "the host speaks version {} of the protocol, this agent version {VERSION}",
        config.version
    );
    // An empty token would be matched by whoever sends none.
    ensure!(!config.token.is_empty(), "the token is empty");
    Ok(config)
}

/// Moves the agent to a root of its own. The one that the kernel unpacked its archive to has no parent mount, and
/// `pivot_root`, with which a container gets its root, refuses to start from there.
pub(crate) fn switch_root() -> Result<()> {
    make_directory(NEW_ROOT)?;
    mount(
        "root",
        NEW_ROOT,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        c"mode=755",
    )
    .context("mount the root")?;
    rustix::process::chdir(NEW_ROOT).context("enter the new root")?;
    mount_move(".", "/").context("move the new root over the old one")?;
    rustix::process::chroot(".").context("make the new root the root")?;
    for directory in ["/dev", "/proc", "/run", "/run/rvm", "/sys"] {
        make_directory(directory)?;
    }
    Ok(())
}

/// Mounts proc, sysfs, devtmpfs and the cgroup hierarchy, with its controllers handed to children.
pub(crate) fn mount_kernel_file_systems() -> Result<()> {
    let restricted = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", restricted, None).context("mount /proc")?;
    mount("sysfs", "/sys", "sysfs", restricted, None).context("mount /sys")?;
    mount("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, None).context("mount /dev")?;
    // Grace periods of RCU are hurried from here on: with a few virtual processors that costs a few interrupts, while
    // waiting for one takes milliseconds, and mounting the cgroup hierarchy, like much of making containers, waits.
    write("/sys/kernel/rcu_expedited", "1")?;
    // favordynmods: without it, each fork into a cgroup waits for a grace period too.
    let options = c"nsdelegate,memory_recursiveprot,favordynmods";
    mount("cgroup2", CGROUP_ROOT, "cgroup2", restricted, options).context("mount the cgroup hierarchy")?;
    // The root is exempt from the rule that a cgroup with controllers for its children has no process itself.
    write(
        &format!("{CGROUP_ROOT}/cgroup.subtree_control"),
        "+cpuset +cpu +io +memory +pids",
    )
}

/// Sets what an init system or a distribution sets on a container host, as far as a workload can notice.
pub(crate) fn set_kernel_parameters() -> Result<()> {
    let parameters = [
        // A workload that takes more memory than there is has to be killed, which is reported; a refused allocation
        // would depend on the size of the virtual machine.
        ("vm/overcommit_memory", "1"),
        // Freed pages wait on lists of each processor, up to an eighth of all memory, where they are not reported to the host
        // as free. This leaves enough to save most trips to the common list.
        ("vm/percpu_pagelist_high_fraction", "128"),
        ("kernel/pid_max", "4194304"),
        ("fs/protected_hardlinks", "1"),
        ("fs/protected_symlinks", "1"),
        ("fs/protected_fifos", "1"),
        ("fs/protected_regular", "2"),
    ];
    for (name, value) in parameters {
        write(&format!("/proc/sys/{name}"), value)?;
    }
    Ok(())
}

fn write(path: &str, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("write {path}"))
}

/// Makes one directory, unless it exists.
pub(crate) fn make_directory(path: &str) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("make {path}"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_refused_rather_than_guessed_at() {
        let cases = [
            (
                r#"{"version":2,"token":"t","layers":[{"offset":0,"length":4096}]}"#,
                None,
            ),
            (r#"{"version":3,"token":"t","layers":[]}"#, Some("version 3")),
            (r#"{"version":2,"token":"","layers":[]}"#, Some("token is empty")),
            (
                r#"{"version":2,"token":"t","layers":[],"x":1}"#,
                Some("unknown field"),
            ),
            ("", Some("EOF")),
        ];
        for (json, expected) in cases {
            match (parse_config(json.as_bytes()), expected) {
                (Ok(_), None) => {}
                (Err(error), Some(message)) => {
                    assert!(format!("{error:#}").contains(message), "{json}: {error:#}");
                }
                (result, _) => panic!("{json}: {result:?}"),
            }
        }
    }
}
