//! What the process gives up before it looks at anything that others made: a compromised machine is left with the
//! descriptors it was given, and with the system calls of [`crate::seccomp`].

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetError, Scope,
};
use rustix::fs::{Gid, Uid};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, LinkNameSpaceType};

use crate::sys;

/// Any directory that every system has; in the process's own view, an empty one is put over it and becomes the root.
const EMPTY_ROOT: &str = "/proc";

/// What could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step that needs privilege, which the process had.
    #[error("cannot {step}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Landlock.
    #[error("cannot give up access to files")]
    Landlock(#[from] RulesetError),
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Step {
        step,
        source: source.into(),
    }
}

/// Gives up the file system, the network, other processes and every privilege, for good. Must run before there is a second
/// thread. `user` is the user and group to become; without one the process stays who it is, without its privileges.
/// Root enters `namespaces`, or makes such for itself: that is a quarter of all that a machine without devices takes to
/// start, so machines share them.
///
/// Root loses its view of files and networks by namespaces, anybody by Landlock as far as the kernel has it. Host name and
/// System V IPC stay where they are: the calls that reach them are on no list of [`crate::seccomp`], and a namespace for them
/// is a tenth of a millisecond of each start.
///
/// # Errors
/// [`Error`]. What the kernel does not know is not an error; what it refuses is.
pub fn confine(user: Option<u32>, namespaces: Option<Namespaces>) -> Result<(), Error> {
    if rustix::process::geteuid().is_root() {
        leave_namespaces(namespaces)?;
    }
    if let Some(user) = user {
        become_user(user).map_err(failed("become an unprivileged user"))?;
    }
    keep_capabilities(CapabilitySet::empty()).map_err(failed("drop capabilities"))?;
    renounce_dumps_and_privileges()?;
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V6))?
        .handle_access(AccessNet::from_all(ABI::V6))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .restrict_self()?;
    Ok(())
}

/// Namespaces in which there is nothing, as [`make_empty_network`] and [`make_empty_mounts`] make them.
#[derive(Debug)]
pub struct Namespaces {
    /// A network without interfaces that are up.
    pub network: OwnedFd,
    /// A view of files with an empty root that cannot be written to.
    pub mounts: OwnedFd,
}

fn leave_namespaces(ready: Option<Namespaces>) -> Result<(), Error> {
    let Some(Namespaces { network, mounts }) = ready else {
        sys::unshare_network().map_err(failed("leave the host's network"))?;
        sys::unshare_mounts().map_err(failed("leave the host's mounts"))?;
        return enter_root(None).map_err(failed("leave the host's file system"));
    };
    let enter =
        |namespace: &OwnedFd, kind| rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind));
    enter(&network, LinkNameSpaceType::Network).map_err(failed("leave the host's network"))?;
    // Root and current directory become those of the namespace.
    enter(&mounts, LinkNameSpaceType::Mount).map_err(failed("leave the host's file system"))
}

/// Moves the calling thread into a network namespace without interfaces that are up, and opens the namespace.
///
/// # Errors
/// Those of `unshare(2)`, which root alone may call.
pub fn make_empty_network() -> io::Result<File> {
    sys::unshare_network()?;
    File::open("/proc/thread-self/ns/net")
}

/// Moves the calling thread into a mount namespace with an empty root that cannot be written to, and opens the namespace.
///
/// # Errors
/// As [`make_empty_network`], and those of [`enter_root`].
pub fn make_empty_mounts() -> io::Result<File> {
    sys::unshare_mounts()?;
    let namespace = File::open("/proc/thread-self/ns/mnt")?;
    enter_root(None)?;
    Ok(namespace)
}

/// Renounces core dumps, which would hold a guest's memory or files, and programs that give privileges.
///
/// # Errors
/// [`Error::Step`].
pub fn renounce_dumps_and_privileges() -> Result<(), Error> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(failed("renounce core dumps"))?;
    rustix::thread::set_no_new_privs(true).map_err(failed("renounce new privileges"))
}

/// Puts into a new root what it is to have.
pub type Furnish<'a> = &'a dyn Fn(&Path) -> io::Result<()>;

/// Makes a new file system the root, which is read-only, and empty without `furnish`; drops all others. The process is in
/// a mount namespace of its own.
///
/// # Errors
/// Those of mount(2) and `pivot_root(2)`, and those of `furnish`.
pub fn enter_root(furnish: Option<Furnish<'_>>) -> io::Result<()> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    let flags = MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOSUID;
    let read_only = flags | MountFlags::RDONLY;
    match furnish {
        None => rustix::mount::mount("rvm-vmm", EMPTY_ROOT, "tmpfs", read_only, None)?,
        Some(furnish) => {
            rustix::mount::mount("rvm-vmm", EMPTY_ROOT, "tmpfs", flags, None)?;
            furnish(Path::new(EMPTY_ROOT))?;
            rustix::mount::mount_remount(EMPTY_ROOT, read_only, "")?;
        }
    }
    std::env::set_current_dir(EMPTY_ROOT)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")
}

fn become_user(id: u32) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)?;
    Ok(())
}

/// Gives up all capabilities but these. A change of user has cleared them for root; who is not root may have had some,
/// too.
///
/// # Errors
/// Those of capset(2).
pub fn keep_capabilities(kept: CapabilitySet) -> io::Result<()> {
    let sets = rustix::thread::CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}
