//! What the worker gives up before it looks at a request: everything but the directory, and the rights over the files in
//! it that a guest's root has over its own.
//!
//! Root gives up more than others: it moves into mount, PID, network, IPC and UTS namespaces of its own. There the root
//! is an empty file system with two mount points: the directory, and a `/proc` of this one process, by which an open file
//! is opened anew. Anybody has no privileges to give up, no rights over files but their own, and Landlock.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, PathBeneath, PathFd, PathFdError,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, Scope,
};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions, getrlimit, setrlimit};
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, set_capabilities_secure_bits};
use rvm_vmm::confine as common;
use rvm_vmm::devices::virtio::fs::exchange::Ends;
use rvm_vmm::seccomp::{self, COMMON, Call, Filter, any};

use crate::share::{Access, Creator};
use crate::sys::{self, Forked};

/// The most open files and files that a guest knows of: each takes a descriptor. A guest that caches more of them is told
/// that there are too many. The kernel's memory for one is about 1.5 KiB, 400 MiB for all.
const MAX_DESCRIPTORS: u64 = 1 << 18;

/// Where the directory is, in the root of namespaces of its own.
const SHARE: &str = "share";

/// What a file is called in the directory that is made for it.
const FILE: &str = "file";

/// What root keeps, all of it for files: to own and to change what its guest's root may, and to link to an open file. Not
/// `CAP_MKNOD`: a device node is a way into the host's kernel for whoever can open it there. Not `CAP_SYS_ADMIN`, so that
/// there are no `trusted` attributes.
fn kept_capabilities() -> CapabilitySet {
    CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::DAC_READ_SEARCH
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::SETGID
        | CapabilitySet::SETUID
        | CapabilitySet::SETFCAP
}

/// Calls of the threads that serve requests. There is no `open_by_handle_at`, which would reach files beside the
/// directory, and no `socket`, `execve`, `clone`, `kill` or `ptrace`.
const REQUESTS: &[Call] = &[
    any(libc::SYS_read),     // requests
    any(libc::SYS_recvfrom), // the seal
    any(libc::SYS_openat),   // LOOKUP, OPEN, CREATE
    any(libc::SYS_statx),    // attributes
    any(libc::SYS_newfstatat),
    any(libc::SYS_fstat),
    any(libc::SYS_fstatfs),    // STATFS
    any(libc::SYS_readlinkat), // READLINK
    any(libc::SYS_getdents64), // READDIR
    any(libc::SYS_lseek),      // the same, and LSEEK
    any(libc::SYS_pread64),    // READ
    any(libc::SYS_preadv),
    any(libc::SYS_pwrite64), // WRITE
    any(libc::SYS_pwritev),
    any(libc::SYS_fcntl),     // the flags of an open file; locks
    any(libc::SYS_flock),     // locks
    any(libc::SYS_ftruncate), // SETATTR
    any(libc::SYS_fchmod),
    any(libc::SYS_fchmodat),
    any(libc::SYS_fchownat),
    any(libc::SYS_utimensat),
    any(libc::SYS_mkdirat), // what their names say
    any(libc::SYS_mknodat),
    any(libc::SYS_symlinkat),
    any(libc::SYS_linkat),
    any(libc::SYS_unlinkat),
    any(libc::SYS_renameat2),
    any(libc::SYS_fallocate),
    any(libc::SYS_fsync),
    any(libc::SYS_fdatasync),
    any(libc::SYS_syncfs),
    any(libc::SYS_dup), // FLUSH: a copy is closed
    any(libc::SYS_setxattr),
    any(libc::SYS_getxattr),
    any(libc::SYS_listxattr),
    any(libc::SYS_removexattr),
    any(libc::SYS_setresuid), // files are created as the guest's user
    any(libc::SYS_setresgid),
    any(libc::SYS_capget), // without CAP_FSETID where a write is to clear set-user-ID
    any(libc::SYS_capset),
    any(libc::SYS_umask), // INIT, DESTROY
];

/// Calls of a thread that only waits: the one outside for the process inside, the first one inside for the others.
const WAITING: &[Call] = &[any(libc::SYS_wait4)];

/// What could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step of this module.
    #[error("cannot {step}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A step that a machine does as well.
    #[error(transparent)]
    Common(#[from] common::Error),
    /// Landlock.
    #[error("cannot give up access to other files")]
    Landlock(#[from] RulesetError),
    /// Landlock and the directory.
    #[error("cannot keep access to the directory")]
    Keep(#[from] PathFdError),
    /// Seccomp.
    #[error(transparent)]
    Filter(#[from] seccomp::Error),
    /// A file has no room but in a mount namespace.
    #[error("only root can serve a single file")]
    FileNeedsRoot,
    /// The process that served was killed.
    #[error("killed by signal {0}")]
    Killed(i32),
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Step {
        step,
        source: source.into(),
    }
}

/// What is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file, in a directory that is made for it: what lies beside it on the host is not there.
    File,
}

/// Where a process goes on.
pub enum Side {
    /// Beside the one that serves, to wait for it.
    Outside(Child),
    /// With the directory and what is shared with the machine.
    Inside(Room, Ends),
}

/// The process that serves.
pub struct Child(Pid);

/// Where the directory is, and nothing else.
pub struct Room {
    directory: String,
    creator: Creator,
    access: Access,
    /// Keeps the path above meaning what it does.
    _held: OwnedFd,
}

/// Filters for the threads of the process that serves.
#[derive(Clone)]
pub struct Filters(Arc<[Filter; 2]>);

/// Goes to where there is nothing but the directory or file; root by way of a process of its own. Must run before there is a
/// second thread.
///
/// # Errors
/// [`Error`].
pub fn separate(shared: OwnedFd, kind: Kind, access: Access, ends: Ends) -> Result<Side, Error> {
    if !rustix::process::geteuid().is_root() {
        if kind == Kind::File {
            return Err(Error::FileNeedsRoot);
        }
        let room = Room {
            directory: format!("/proc/self/fd/{}/.", shared.as_raw_fd()),
            creator: Creator::Worker,
            access,
            _held: shared,
        };
        return Ok(Side::Inside(room, ends));
    }
    // Before the change of namespaces, because a mount can be copied in its own only. What is mounted within the directory
    // is not part of it.
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(&shared, "", flags).map_err(failed("copy the directory's mount"))?;
    match sys::fork_into_own_namespaces().map_err(failed("make a process of its own"))? {
        // The pipes and the directory are closed here: their end is that of the process that serves.
        Forked::Parent(child) => Ok(Side::Outside(Child(child))),
        Forked::Child => {
            let step = "bind to the waiting process's life";
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed(step))?;
            rvm_vmm::sys::unshare_network().map_err(failed("leave the host's network"))?;
            rvm_vmm::sys::unshare_mounts().map_err(failed("leave the host's mounts"))?;
            common::enter_root(Some(&|root| furnish(root, &tree, kind, access)))
                .map_err(failed("leave the host's file system"))?;
            rustix::thread::set_thread_groups(&[]).map_err(failed("drop groups"))?;
            let room = Room {
                directory: format!("/{SHARE}"),
                creator: Creator::GuestUser,
                access,
                _held: tree,
            };
            Ok(Side::Inside(room, ends))
        }
    }
}

/// Mounts the directory or file, and a `/proc` in which there is nothing but processes, read-only.
fn furnish(root: &Path, tree: &OwnedFd, kind: Kind, access: Access) -> io::Result<()> {
    let flags = MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOSUID;
    let (proc, mut share) = (root.join("proc"), root.join(SHARE));
    for path in [&proc, &share] {
        rustix::fs::mkdirat(CWD, path, Mode::RWXU)?;
    }
    if kind == Kind::File {
        share.push(FILE);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        drop(rustix::fs::open(&share, flags, Mode::empty())?);
    }
    rustix::mount::mount("rvm-fs", &proc, "proc", flags | MountFlags::RDONLY, c"subset=pid")?;
    rustix::mount::move_mount(tree, "", CWD, &share, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    let flags = match access {
        Access::ReadWrite => flags,
        Access::ReadOnly => flags | MountFlags::RDONLY,
    };
    Ok(rustix::mount::mount_remount(
        &share,
        flags | MountFlags::BIND,
        "",
    )?)
}

impl Child {
    /// Waits for its end, without any right but that; returns what it returned.
    ///
    /// # Errors
    /// [`Error`], also where it was killed.
    pub fn wait(self) -> Result<ExitCode, Error> {
        common::keep_capabilities(CapabilitySet::empty()).map_err(failed("drop capabilities"))?;
        common::renounce_dumps_and_privileges()?;
        Filter::new(&[COMMON, WAITING])?.install()?;
        loop {
            match rustix::process::waitpid(Some(self.0), WaitOptions::empty()) {
                Ok(Some((_, status))) => {
                    return match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)),
                        (None, signal) => Err(Error::Killed(signal.unwrap_or_default())),
                    };
                }
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed("wait for the process")(error)),
            }
        }
    }
}

impl Room {
    /// A path of the directory.
    pub(crate) fn directory(&self) -> &str {
        &self.directory
    }

    pub(crate) fn creator(&self) -> Creator {
        self.creator
    }

    /// A directory in a process that gives nothing up.
    #[cfg(test)]
    pub(crate) fn of_test(directory: &Path) -> Self {
        Self {
            directory: directory.to_str().unwrap().to_owned(),
            creator: Creator::Worker,
            access: Access::ReadWrite,
            _held: std::fs::File::open(directory).unwrap().into(),
        }
    }

    /// Gives up the rights that were needed to get here, for good. Before there is a second thread, which would keep them.
    ///
    /// # Errors
    /// [`Error`]. What the kernel does not know is not an error; what it refuses is.
    pub fn seal(self) -> Result<Filters, Error> {
        limit_descriptors().map_err(failed("limit open files"))?;
        let kept = match self.creator {
            Creator::GuestUser => {
                keep_rights_of_users().map_err(failed("keep rights as another user"))?;
                kept_capabilities()
            }
            Creator::Worker => CapabilitySet::empty(),
        };
        common::keep_capabilities(kept).map_err(failed("drop capabilities"))?;
        common::renounce_dumps_and_privileges()?;
        let access = match self.access {
            Access::ReadWrite => AccessFs::from_all(ABI::V6),
            Access::ReadOnly => AccessFs::from_read(ABI::V6),
        };
        Ruleset::default()
            // A kernel that knows Landlock and not this right refuses all renames between directories.
            .set_compatibility(CompatLevel::SoftRequirement)
            .handle_access(AccessFs::Refer)?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V6))?
            .handle_access(AccessNet::from_all(ABI::V6))?
            .scope(Scope::from_all(ABI::V6))?
            .create()?
            .add_rule(PathBeneath::new(PathFd::new(&self.directory)?, access))?
            .restrict_self()?;
        let filters = [
            Filter::new(&[COMMON, REQUESTS])?,
            Filter::new(&[COMMON, WAITING])?,
        ];
        Ok(Filters(Arc::new(filters)))
    }
}

/// Has a thread keep its rights when it becomes another user to create a file. That user's groups are the guest's to know: it
/// has checked by all of them, and here there would be the first one alone. Takes `CAP_SETPCAP`.
fn keep_rights_of_users() -> rustix::io::Result<()> {
    let bits = CapabilitiesSecureBits::NO_SETUID_FIXUP | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED;
    set_capabilities_secure_bits(bits)
}

/// Sets the limit of open files, which is that of files that the guest knows of.
fn limit_descriptors() -> io::Result<()> {
    let limit = |most| Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    if setrlimit(Resource::Nofile, limit(MAX_DESCRIPTORS)).is_ok() {
        return Ok(());
    }
    // It is higher than this process may go.
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(MAX_DESCRIPTORS);
    Ok(setrlimit(Resource::Nofile, limit(most.min(MAX_DESCRIPTORS)))?)
}

impl Filters {
    /// For a thread that serves requests.
    ///
    /// # Errors
    /// [`seccomp::Error::Install`].
    pub fn install_for_requests(&self) -> Result<(), seccomp::Error> {
        self.0[0].install()
    }

    /// For a thread that waits for others.
    ///
    /// # Errors
    /// As above.
    pub fn install_for_waiting(&self) -> Result<(), seccomp::Error> {
        self.0[1].install()
    }
}
