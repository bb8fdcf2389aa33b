//! The host's side of cgroups: `PARENT/ID/{supervisor,payload}` below one directory of rvm's own.
//!
//! `payload` holds the workload in container mode; what happens inside it is the isolation crate's. The supervisor has a
//! cgroup of its own so that the payload's limits never reach it. A virtual machine's VMM runs beside the supervisor. The
//! workload's limits are enforced inside the machine; the machine as a whole is held to its share of the processors here,
//! whatever its guest does, and that can be changed while it runs.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use oci_spec::runtime::{LinuxCpu, LinuxResources, Spec};
use rvm_isolation::cgroup::Usage;

use crate::path;

/// Below the cgroup2 mount.
const PARENT: &str = "rvm";

/// Below that one, for the last moments of supervisors. No container has such an ID.
const ENDED: &str = "ended";

/// Below that one, for the processes that serve networks, which are no container's.
const NETWORKS: &str = "networks";

/// What container mode needs to honour its flags.
pub const NEEDED_CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Enabled where the kernel has them.
const WANTED_CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// One part in this many of a processor is for the devices of a machine and for copying its output, so that the limit
/// inside the machine, which counts the workload as in container mode, is the one that is felt.
const MACHINE_SHARE: u64 = 5;

/// Why cgroups cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cgroup2 file system is mounted.
    #[error("no cgroup2 file system is mounted")]
    NotMounted,
    /// The unified hierarchy lacks controllers, as on a machine that gives them to cgroup v1.
    #[error("the cgroup2 hierarchy lacks the controllers {0}")]
    ControllersMissing(String),
    /// A file or directory of the hierarchy could not be used.
    #[error(transparent)]
    Path(#[from] path::Error),
    /// A limit could not be set.
    #[error("cannot limit the container on this machine")]
    Limit(#[source] rvm_isolation::cgroup::Error),
    /// The payload did not die.
    #[error("cannot remove the workload's cgroup")]
    Remove(#[source] rvm_isolation::cgroup::Error),
}

/// The cgroups of one container.
#[derive(Debug, Clone)]
pub struct ContainerCgroup {
    directory: PathBuf,
    /// Where the supervisor came from.
    origin: PathBuf,
}

/// Where cgroup2 is mounted: the mount table is read once.
///
/// # Errors
/// [`Error::NotMounted`].
pub fn mount_point() -> Result<&'static Path, Error> {
    static MOUNT: OnceLock<Option<PathBuf>> = OnceLock::new();
    MOUNT
        .get_or_init(|| {
            let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
            table.lines().find_map(cgroup2_mount).map(PathBuf::from)
        })
        .as_deref()
        .ok_or(Error::NotMounted)
}

/// The mount point of a line of `/proc/self/mountinfo` (proc(5)) that shows a cgroup2 file system.
fn cgroup2_mount(line: &str) -> Option<&str> {
    let (before, after) = line.split_once(" - ")?;
    (after.split(' ').next()? == "cgroup2").then(|| before.split(' ').nth(4))?
}

/// The controllers that the root of the hierarchy offers and [`NEEDED_CONTROLLERS`] that it does not.
///
/// # Errors
/// [`Error::NotMounted`], [`Error::Path`].
pub fn missing_controllers() -> Result<Vec<&'static str>, Error> {
    let path = mount_point()?.join("cgroup.controllers");
    let offered = fs::read_to_string(&path).map_err(path::failed("read", &path))?;
    let has = |name: &&str| offered.split_whitespace().any(|offer| offer == *name);
    Ok(NEEDED_CONTROLLERS.into_iter().filter(|name| !has(name)).collect())
}

/// The cgroup of what serves networks; `None` on a machine without cgroup2.
///
/// # Errors
/// [`Error::Path`].
pub(crate) fn of_networks() -> Result<Option<PathBuf>, Error> {
    let Ok(mount) = mount_point() else {
        return Ok(None);
    };
    let directory = mount.join(PARENT).join(NETWORKS);
    fs::create_dir_all(&directory).map_err(path::failed("create", &directory))?;
    Ok(Some(directory))
}

/// Whether a process is of a container's workload.
pub(crate) fn is_payload(pid: i32, id: &str) -> bool {
    let payload = format!("/{PARENT}/{id}/payload");
    // `0::PATH` (cgroups(7)), where the workload may have made cgroups below its own.
    fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroups| {
        cgroups
            .lines()
            .any(|line| line.starts_with("0::") && line.contains(&payload))
    })
}

impl ContainerCgroup {
    /// Makes `PARENT/ID` and the supervisor's cgroup in it, moves the calling process there, and enables every
    /// controller there is for the payload. With `controllers_needed` it is an error where [`NEEDED_CONTROLLERS`]
    /// are not all there; a virtual machine enforces its limits inside and needs none.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn create(id: &str, controllers_needed: bool) -> Result<Self, Error> {
        let missing = missing_controllers()?;
        if controllers_needed && !missing.is_empty() {
            return Err(Error::ControllersMissing(missing.join(", ")));
        }
        let mount = mount_point()?;
        let parent = mount.join(PARENT);
        let cgroup = Self {
            directory: parent.join(id),
            origin: current()?,
        };
        match cgroup.fill(&[mount, &parent, &cgroup.directory]) {
            Ok(()) => Ok(cgroup),
            Err(error) => {
                // The supervisor must be out of it before the next clean-up kills what is in it. What went wrong first is
                // what the person needs to know.
                let _ = cgroup.end();
                Err(error)
            }
        }
    }

    fn fill(&self, levels: &[&Path]) -> Result<(), Error> {
        let supervisor = self.directory.join("supervisor");
        fs::create_dir_all(&supervisor).map_err(path::failed("create", &supervisor))?;
        join(&supervisor)?;
        levels.iter().try_for_each(|level| enable_controllers(level))
    }

    /// The payload's cgroup, which the isolation crate makes and removes.
    #[must_use]
    pub fn payload(&self) -> PathBuf {
        self.directory.join("payload")
    }

    /// Moves the supervisor back to where it came from, or to [`ENDED`] where that is gone, kills what is left of the
    /// payload and removes the container's cgroups.
    ///
    /// # Errors
    /// [`Error::Path`], [`Error::Remove`].
    pub fn end(self) -> Result<(), Error> {
        if join(&self.origin).is_err() {
            // The service or session that started it is over. The root would do on a host, not in a cgroup namespace.
            let ended = mount_point()?.join(PARENT).join(ENDED);
            fs::create_dir_all(&ended).map_err(path::failed("create", &ended))?;
            join(&ended)?;
        }
        rvm_isolation::cgroup::remove(&self.directory).map_err(Error::Remove)
    }
}

/// Moves the calling process.
fn join(cgroup: &Path) -> Result<(), Error> {
    let members = cgroup.join("cgroup.procs");
    Ok(fs::write(&members, "0").map_err(path::failed("write", &members))?)
}

/// The calling process' cgroup: the line `0::/PATH` of `/proc/self/cgroup` (cgroups(7)).
fn current() -> Result<PathBuf, Error> {
    let path = Path::new("/proc/self/cgroup");
    let table = fs::read_to_string(path).map_err(path::failed("read", path))?;
    let own = table
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or_default();
    Ok(mount_point()?.join(own))
}

/// Enables what the level offers and has not enabled. Reading first saves the write, which takes a global lock.
fn enable_controllers(directory: &Path) -> Result<(), Error> {
    let read = |name: &str| {
        let path = directory.join(name);
        fs::read_to_string(&path).map_err(path::failed("read", &path))
    };
    let (offered, enabled) = (read("cgroup.controllers")?, read("cgroup.subtree_control")?);
    let has = |list: &str, name: &str| list.split_whitespace().any(|entry| entry == name);
    let missing: Vec<_> = WANTED_CONTROLLERS
        .into_iter()
        .filter(|name| has(&offered, name) && !has(&enabled, name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let path = directory.join("cgroup.subtree_control");
    Ok(fs::write(&path, missing.join(" ")).map_err(path::failed("write", &path))?)
}

/// Holds the machine of a container, with its supervisor, to the processor time that its workload may have, and what rvm
/// itself needs for it. Takes effect at once, on a running machine too. Does nothing where the cpu controller is not there:
/// the limit inside the machine is then the only one.
///
/// # Errors
/// [`Error::NotMounted`], [`Error::Path`].
pub fn limit_machine(id: &str, spec: &Spec) -> Result<(), Error> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let cpu = resources.and_then(|resources| resources.cpu().as_ref());
    let quota = cpu
        .and_then(LinuxCpu::quota)
        .and_then(|quota| u64::try_from(quota).ok());
    let limit = match (quota, cpu.and_then(LinuxCpu::period)) {
        (Some(quota), Some(period)) => {
            format!("{} {period}", quota.saturating_add(period / MACHINE_SHARE))
        }
        _ => "max".to_owned(),
    };
    let path = directory(id)?.join("supervisor").join("cpu.max");
    match fs::OpenOptions::new().write(true).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        opened => opened
            .and_then(|mut file| file.write_all(limit.as_bytes()))
            .map_err(|error| path::failed("write", &path)(error).into()),
    }
}

/// Sets limits of everything that belongs to a container, its supervisor and its machine included.
///
/// # Errors
/// [`Error::NotMounted`], [`Error::Limit`].
pub fn limit(id: &str, resources: &LinuxResources) -> Result<(), Error> {
    rvm_isolation::cgroup::limit(&directory(id)?, resources).map_err(Error::Limit)
}

/// The directory of a container's cgroups, whether or not it is there.
pub(crate) fn directory(id: &str) -> Result<PathBuf, Error> {
    Ok(mount_point()?.join(PARENT).join(id))
}

/// What everything that belongs to a container uses on the host; `None` where it has no cgroups.
#[must_use]
pub fn usage(id: &str) -> Option<Usage> {
    rvm_isolation::cgroup::usage(&directory(id).ok()?).ok()
}

/// Whether a container has cgroups.
#[must_use]
pub fn exists(id: &str) -> bool {
    directory(id).is_ok_and(|directory| directory.exists())
}

/// Kills everything in a container's cgroups and removes them. Succeeds where there are none.
///
/// # Errors
/// [`Error::Remove`] where processes survive.
pub fn remove(id: &str) -> Result<(), Error> {
    let Ok(directory) = directory(id) else {
        return Ok(());
    };
    if !directory.exists() {
        return Ok(());
    }
    rvm_isolation::cgroup::remove(&directory).map_err(Error::Remove)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_understood() {
        let unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let legacy = "31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu";
        assert_eq!(cgroup2_mount(unified), Some("/sys/fs/cgroup"));
        assert_eq!(cgroup2_mount(legacy), None);
        assert_eq!(cgroup2_mount("cgroup2"), None);
    }
}
