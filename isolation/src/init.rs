//! The child's side of a container: the ordered steps from fresh namespaces up to `execve`.
//!
//! This process is single-threaded, has no environment and no descriptors but the workload's streams and the socket to its
//! parent, and is PID 1 of the new PID namespace. What it sets up, the workload inherits; what it has open closes at
//! `execve`.

use std::ffi::{CString, NulError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;

use rustix::fs::Mode;
use rustix::process::{Rlimit, Signal};
use rustix::thread::{Gid, Uid};

use crate::plan::{Plan, ProcessPlan, RootPlan, resource};
use crate::process::INIT_NAME;
use crate::reopen::Reopener;
use crate::root::{self, Root, Target};
use crate::sync::{self, Failure, FailureKind, Remote, Report, Start};
use crate::user::Identity;
use crate::{capabilities, command, mounts, namespaces, nodes, rootfs, streams, sys, user};

/// Why the container could not be set up.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot talk to the parent")]
    Talk(#[from] sync::Error),
    #[error("the parent is gone")]
    NoParent,
    #[error("cannot start a session")]
    Session(#[source] io::Error),
    #[error("cannot join a new keyring")]
    Keyring(#[source] io::Error),
    #[error(transparent)]
    Namespaces(#[from] namespaces::Error),
    #[error("cannot set the out-of-memory score adjustment to {0}")]
    OomScore(i32, #[source] io::Error),
    #[error("cannot open /proc/self/fd")]
    Descriptors(#[source] io::Error),
    #[error(transparent)]
    Rootfs(#[from] rootfs::Error),
    #[error("cannot open the new root directory")]
    Root(#[source] io::Error),
    #[error(transparent)]
    Mount(#[from] mounts::Error),
    #[error(transparent)]
    Node(#[from] nodes::Error),
    #[error("cannot set {name} to {value:?}")]
    Sysctl {
        name: String,
        value: String,
        source: io::Error,
    },
    #[error("cannot use the working directory")]
    WorkingDirectory(#[source] root::Error),
    #[error("cannot find out who to run as")]
    User(#[from] user::Error),
    #[error(transparent)]
    Stream(#[from] streams::Error),
    #[error("cannot set the limit {0}")]
    Limit(String, #[source] io::Error),
    #[error("cannot become user {uid} and group {gid}")]
    Identity { uid: u32, gid: u32, source: io::Error },
    #[error(transparent)]
    Capabilities(#[from] capabilities::Error),
    #[error("cannot tie this process to its parent's life")]
    DeathSignal(#[source] io::Error),
    #[error("cannot reset signals")]
    Signals(#[source] io::Error),
    #[error("cannot give up gaining privileges")]
    NoNewPrivileges(#[source] io::Error),
    #[error("cannot install the seccomp filter")]
    Seccomp(#[source] io::Error),
    #[error(transparent)]
    Command(#[from] command::Error),
    #[error("contains a NUL byte")]
    Nul(#[from] NulError),
}

impl Error {
    fn kind(&self) -> FailureKind {
        match self {
            Error::Command(command::Error::NotInPath(_) | command::Error::NotFound(..)) => {
                FailureKind::CommandNotFound
            }
            Error::Command(command::Error::NotExecutable(..)) => FailureKind::CommandNotExecutable,
            _ => FailureKind::Other,
        }
    }
}

/// Becomes a container's init if this process was started as one (its `argv[0]` says so), and then never returns.
/// To be called first in `main`, before any thread or descriptor exists.
pub fn init_if_requested() {
    if std::env::args_os().next().is_some_and(|name| name == INIT_NAME) {
        // Without the parent's socket there is nobody to tell: somebody has started this by hand.
        if let Ok(socket) = sys::take_sync_descriptor() {
            run(&UnixStream::from(socket));
        }
        std::process::exit(1);
    }
}

/// Carries out the plan; returns only if that failed.
fn run(parent: &UnixStream) {
    let Err(error) = carry_out(parent);
    let failure = Failure {
        kind: error.kind(),
        chain: Remote::new(&error),
    };
    // A parent that is gone need not know.
    let _ = sync::send(parent, &Report::Failed(failure));
}

fn carry_out(parent: &UnixStream) -> Result<std::convert::Infallible, Error> {
    let plan: Plan = sync::receive(parent)?.ok_or(Error::NoParent)?;
    rustix::process::setsid().map_err(|error| Error::Session(error.into()))?;
    join_keyring()?;
    plan.namespaces.furnish()?;
    // Both before the host's /proc is out of reach.
    set_oom_score(plan.process.oom_score_adj)?;
    let reopener = Reopener::new().map_err(Error::Descriptors)?;
    // Modes of files made here are exact.
    rustix::process::umask(Mode::empty());
    let root = build_root(&plan)?;
    let identity = plan.process.user.resolve(&root, &reopener)?;
    root::change_directory(&root, &plan.process.working_directory).map_err(Error::WorkingDirectory)?;
    streams::replace_null(&root, &reopener)?;
    drop((root, reopener));
    rustix::process::umask(Mode::from_raw_mode(plan.process.umask));
    streams::give_to(identity.uid)?;
    set_limits(&plan.process)?;
    become_user(&plan.process, &identity)?;
    sync::send(parent, &Report::Created)?;
    let Start = sync::receive(parent)?.ok_or(Error::NoParent)?;
    execute(plan.process, &identity)
}

fn join_keyring() -> Result<(), Error> {
    match sys::join_new_session_keyring() {
        // A kernel without keys has none to keep apart.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        other => other.map_err(Error::Keyring),
    }
}

fn set_oom_score(score: Option<i32>) -> Result<(), Error> {
    let Some(score) = score else { return Ok(()) };
    std::fs::write("/proc/self/oom_score_adj", score.to_string())
        .map_err(|error| Error::OomScore(score, error))
}

/// Makes the new root directory, with everything in it, this process's own.
fn build_root(plan: &Plan) -> Result<Root, Error> {
    let RootPlan { rootfs, mounts, .. } = &plan.root;
    rootfs::mount(rootfs)?;
    // Bind mounts are opened while their sources can be reached, and attached once nothing but the new root can be, so
    // that no link of the image is ever followed on the host.
    let sources = mounts
        .iter()
        .map(mounts::Mount::open_source)
        .collect::<Result<Vec<_>, _>>()?;
    rootfs::pivot(rootfs)?;
    let root = Root::current().map_err(Error::Root)?;
    for (mount, source) in mounts.iter().zip(sources) {
        mount.attach(&root, source)?;
    }
    nodes::furnish(&root, &plan.root.nodes)?;
    // Before /proc/sys becomes read-only.
    set_sysctls(&plan.root, &root)?;
    // Before the root becomes read-only.
    let directory = root.open_or_create(&plan.process.working_directory, Target::Directory);
    drop(directory.map_err(Error::WorkingDirectory)?);
    mounts::mask(&root, &plan.root.masked)?;
    mounts::make_read_only(&root, &plan.root.read_only_paths)?;
    if plan.root.read_only {
        mounts::make_root_read_only(&root)?;
    }
    Ok(root)
}

fn set_sysctls(plan: &RootPlan, root: &Root) -> Result<(), Error> {
    use rustix::fs::{OFlags, ResolveFlags};
    for (name, value) in &plan.sysctls {
        let failed = |source| Error::Sysctl {
            name: name.clone(),
            value: value.clone(),
            source,
        };
        // The plan has made sure that /proc is a proc file system; no link may lead elsewhere.
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let path = format!("/proc/sys/{name}");
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat2(root.directory(), path, flags, Mode::empty(), resolve);
        let file = file.map_err(|error| failed(error.into()))?;
        // The kernel takes a setting in one piece.
        rustix::io::write(&file, value.as_bytes()).map_err(|error| failed(error.into()))?;
    }
    Ok(())
}

fn set_limits(process: &ProcessPlan) -> Result<(), Error> {
    for limit in &process.limits {
        // The specification writes RLIM_INFINITY as its number.
        let bound = |value: u64| (value != u64::MAX).then_some(value);
        let rlimit = Rlimit {
            current: bound(limit.soft()),
            maximum: bound(limit.hard()),
        };
        rustix::process::setrlimit(resource(limit.typ()), rlimit)
            .map_err(|error| Error::Limit(limit.typ().to_string(), error.into()))?;
    }
    Ok(())
}

/// Gives up being root, as far as the plan says. The order is the kernel's: capabilities are needed to change groups, users
/// and the bounding set, and a change of user takes them away.
fn become_user(process: &ProcessPlan, identity: &Identity) -> Result<(), Error> {
    let Identity { uid, gid, .. } = *identity;
    let failed = |error: rustix::io::Errno| Error::Identity {
        uid,
        gid,
        source: error.into(),
    };
    process.capabilities.apply_bounding()?;
    rustix::thread::set_keep_capabilities(true).map_err(failed)?;
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    rustix::thread::set_thread_groups(&groups).map_err(failed)?;
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_res_gid(group, group, group).map_err(failed)?;
    rustix::thread::set_thread_res_uid(user, user, user).map_err(failed)?;
    rustix::thread::set_keep_capabilities(false).map_err(failed)?;
    let admin = needs_admin_for_seccomp(process);
    process.capabilities.of_user(uid).apply(admin)?;
    // The kernel forgets it when credentials change.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| Error::DeathSignal(error.into()))
}

/// A filter can be installed with no-new-privileges, or else with `CAP_SYS_ADMIN`, which is then given up afterwards.
fn needs_admin_for_seccomp(process: &ProcessPlan) -> bool {
    process.seccomp.is_some() && !process.no_new_privileges
}

fn execute(process: ProcessPlan, identity: &Identity) -> Result<std::convert::Infallible, Error> {
    let needs_admin = needs_admin_for_seccomp(&process);
    let ProcessPlan {
        arguments,
        mut environment,
        ..
    } = process;
    if !environment
        .iter()
        .any(|entry| entry.starts_with("HOME=") && entry != "HOME=")
    {
        environment.retain(|entry| entry != "HOME=");
        environment.push(format!("HOME={}", identity.home));
    }
    // The plan has made sure that there is one.
    let name = arguments.first().cloned().unwrap_or_default();
    let path = command::find(&name, &environment)?;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let strings = |list: Vec<String>| list.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
    let (arguments, environment) = (strings(arguments)?, strings(environment)?);
    sys::reset_signals().map_err(Error::Signals)?;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(|error| Error::NoNewPrivileges(error.into()))?;
    }
    // As late as can be: from here on the profile has to allow what this function does.
    if let Some(filter) = &process.seccomp {
        filter.install().map_err(Error::Seccomp)?;
    }
    if needs_admin {
        process.capabilities.of_user(identity.uid).apply_final()?;
    }
    Err(command::Error::new(&name, sys::execute(&path, &arguments, &environment)).into())
}
