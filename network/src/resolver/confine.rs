//! What the resolver's processes give up before they read what others sent.
//!
//! The one that answers becomes a user of its own without capabilities, and keeps two things to read: who is on which network,
//! and where `resolv.conf` is. The one that changes sets keeps the capability for that and no file. Both keep the
//! system calls that they are made of.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, Scope,
};
use rustix::fs::{Gid, Uid};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BackendError, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// The port of DNS, the only one that is connected to.
const PORT: u16 = 53;

/// Open files of the process that answers: each question that waits has one, each connection, and a few.
const MOST_DESCRIPTORS: u64 = 2048;

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
    /// Landlock.
    #[error("cannot give up access to files")]
    Landlock(#[from] RulesetError),
    /// A filter that cannot be made.
    #[error("cannot make a seccomp filter")]
    Filter(#[from] BackendError),
    /// A filter that the kernel refused.
    #[error("cannot install a seccomp filter")]
    Install(#[from] seccompiler::Error),
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Step {
        step,
        source: source.into(),
    }
}

/// Calls that any program is made of: memory, locks, threads' ends, messages.
const COMMON: &[i64] = &[
    libc::SYS_futex,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom, // hash tables, IDs of questions
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
];

/// Calls of the process that answers. There is no `execve`, `kill` or `ptrace`, and nothing that changes a file but the log
/// that it has open.
const ANSWERING: &[i64] = &[
    libc::SYS_clone3, // threads
    libc::SYS_clone,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_prctl, // their names
    libc::SYS_sched_getaffinity,
    libc::SYS_clock_nanosleep,
    libc::SYS_openat, // endpoints, resolv.conf
    libc::SYS_read,
    libc::SYS_lseek,
    libc::SYS_statx,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_getdents64,
    libc::SYS_fcntl,
    libc::SYS_ftruncate, // the log of refused names
    libc::SYS_bind,      // sockets of questions
    libc::SYS_connect,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_poll,
    libc::SYS_accept4,
    libc::SYS_shutdown,
];

/// The process that answers becomes `user`, and reads below these directories alone. What it has open it keeps. Before
/// there is a second thread.
///
/// # Errors
/// [`Error`]. What the kernel does not know is not an error; what it refuses is.
pub fn answering(user: u32, networks: BorrowedFd<'_>, servers: &Path) -> Result<(), Error> {
    let most = Rlimit {
        current: Some(MOST_DESCRIPTORS),
        maximum: Some(MOST_DESCRIPTORS),
    };
    setrlimit(Resource::Nofile, most).map_err(failed("limit open files"))?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut rules = rules()?
        .add_rule(PathBeneath::new(networks, read))?
        .add_rule(NetPort::new(PORT, AccessNet::ConnectTcp))?;
    for directory in directories_of(servers) {
        // One that is not there holds no servers.
        if let Ok(directory) = PathFd::new(directory) {
            rules = rules.add_rule(PathBeneath::new(directory, read))?;
        }
    }
    if rustix::process::geteuid().is_root() {
        become_user(user).map_err(failed("become a user of its own"))?;
    }
    keep_capabilities(CapabilitySet::empty()).map_err(failed("drop capabilities"))?;
    renounce()?;
    rules.restrict_self()?;
    install(&[COMMON, ANSWERING], true)
}

/// The process that changes sets keeps what it needs for that.
///
/// # Errors
/// As [`answering`].
pub fn changing_sets() -> Result<(), Error> {
    keep_capabilities(CapabilitySet::NET_ADMIN).map_err(failed("drop capabilities"))?;
    renounce()?;
    rules()?.restrict_self()?;
    install(&[COMMON], false)
}

/// Nothing of files, of TCP, and of other processes.
fn rules() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V6))?
        .handle_access(AccessNet::from_all(ABI::V6))?
        .scope(Scope::from_all(ABI::V6))?
        .create()
}

/// The directory of a file, and that of what it is a link to: either may be replaced by rename.
fn directories_of(file: &Path) -> Vec<PathBuf> {
    let real = file.canonicalize().ok();
    let files = std::iter::once(file).chain(real.as_deref());
    files
        .filter_map(|file| file.parent().map(Path::to_owned))
        .collect()
}

fn become_user(id: u32) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)?;
    Ok(())
}

fn keep_capabilities(kept: CapabilitySet) -> io::Result<()> {
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

fn renounce() -> Result<(), Error> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(failed("renounce core dumps"))?;
    rustix::thread::set_no_new_privs(true).map_err(failed("renounce new privileges"))
}

/// Whatever is not allowed ends the process.
fn install(lists: &[&[i64]], sockets: bool) -> Result<(), Error> {
    let calls = lists.iter().flat_map(|list| list.iter());
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = calls.map(|call| (*call, Vec::new())).collect();
    // No memory that can be executed: PROT_EXEC is 4.
    let executable = SeccompCmpOp::MaskedEq(4);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(
            call,
            vec![SeccompRule::new(vec![argument(2, executable.clone(), 0)?])?],
        );
    }
    if sockets {
        let families = [libc::AF_INET, libc::AF_INET6].map(|family| {
            let family = u64::try_from(family).unwrap_or(u64::MAX);
            SeccompRule::new(vec![argument(0, SeccompCmpOp::Eq, family)?])
        });
        rules.insert(libc::SYS_socket, families.into_iter().collect::<Result<_, _>>()?);
        // The mode of a socket that is being connected: FIONBIO.
        let mode = argument(1, SeccompCmpOp::Eq, 0x5421)?;
        rules.insert(libc::SYS_ioctl, vec![SeccompRule::new(vec![mode])?]);
    }
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    let program = seccompiler::BpfProgram::try_from(filter)?;
    Ok(seccompiler::apply_filter(&program)?)
}

fn argument(index: u8, operation: SeccompCmpOp, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operation, value)
}
