//! The namespaces of every VMM: a network without interfaces and an empty file system, which all machines of an
//! installation share.
//!
//! A VMM that was taken over must reach neither the host's network nor its files. To make namespaces for each costs as much
//! as the kernel's whole part in making a machine, and the removal of a network holds up everybody's. So the first machine
//! makes them and pins each by a mount, as `ip netns` does; they end with the host, or with `umount`, and are then made
//! anew.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::thread;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstatfs};
use rustix::mount::mount_bind;
use rvm_vmm::confine;

/// The type of a namespace's file (`NSFS_MAGIC`, include/uapi/linux/magic.h).
const NSFS: u64 = 0x6e73_6673;

/// Makes a namespace and moves the calling thread into it.
type Maker = fn() -> io::Result<File>;

/// The namespaces, opened.
pub(super) struct Namespaces {
    pub(super) network: File,
    pub(super) mounts: File,
}

impl Namespaces {
    /// Opens them; makes those that are not there. `run` is the directory of what ends with the host. The caller is root.
    ///
    /// # Errors
    /// If one cannot be made, mounted or opened.
    pub(super) fn open(run: &Path) -> io::Result<Self> {
        Ok(Self {
            network: pinned(&run.join("empty-network"), confine::make_empty_network)?,
            mounts: pinned(&run.join("empty-mounts"), confine::make_empty_mounts)?,
        })
    }
}

fn pinned(path: &Path, make: Maker) -> io::Result<File> {
    let open = || rustix::fs::open(path, OFlags::CREATE | OFlags::CLOEXEC, Mode::RUSR).map(File::from);
    let file = open()?;
    if is_namespace(&file)? {
        return Ok(file);
    }
    // What the mount will cover is also the lock: of several commands one makes the namespace.
    flock(&file, FlockOperation::LockExclusive)?;
    let now = open()?;
    if is_namespace(&now)? {
        return Ok(now);
    }
    let namespace = in_thread(make)?;
    mount_bind(format!("/proc/self/fd/{}", namespace.as_raw_fd()), path)?;
    Ok(namespace)
}

fn is_namespace(file: &File) -> io::Result<bool> {
    Ok(u64::try_from(fstatfs(file)?.f_type) == Ok(NSFS))
}

/// The maker's thread goes where the namespace is; the caller stays.
fn in_thread(make: Maker) -> io::Result<File> {
    thread::spawn(make)
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that makes a namespace panicked")))
}
