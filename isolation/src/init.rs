//! The child's side of a container: the ordered steps from fresh namespaces up to `execve`; and those of a further process
//! in it, which are some of the same.
//!
//! This process is single-threaded, has no environment and no descriptors but the workload's streams and the socket to its
//! parent, and is PID 1 of the new PID namespace. What it sets up, the workload inherits; what it has open closes at
//! `execve`.

use std::ffi::{CString, NulError, OsStr};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Rlimit, Signal};
use rustix::thread::{Gid, Uid};

use crate::plan::{EntryPlan, Plan, ProcessPlan, RootPlan, resource};
use crate::process::{ENTER_NAME, INIT_NAME};
use crate::reopen::Reopener;
use crate::root::{self, Root, Target};
use crate::sync::{self, Failure, FailureKind, Remote, Report, Start};
use crate::terminal::{self, Terminal};
use crate::user::Identity;
use crate::{capabilities, command, files, mounts, namespaces, nodes, pid1, rootfs, streams, sys, user};

/// Why the container could not be set up.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot keep the container's processes from tracing this one")]
    Hide(#[source] io::Error),
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
    #[error("cannot open /proc/self/exe")]
    Executable(#[source] io::Error),
    #[error("cannot open /proc/self/fd")]
    Descriptors(#[source] io::Error),
    #[error(transparent)]
    Rootfs(#[from] rootfs::Error),
    #[error("cannot open the new root directory")]
    Root(#[source] io::Error),
    #[error(transparent)]
    Mount(#[from] mounts::Error),
    #[error(transparent)]
    Files(#[from] files::Error),
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
    #[error(transparent)]
    Terminal(#[from] terminal::Error),
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
            // Docker's exit code for it is that of a program that is not there.
            Error::WorkingDirectory(error) if error.is_missing() => FailureKind::CommandNotFound,
            Error::Command(command::Error::NotExecutable(..)) => FailureKind::CommandNotExecutable,
            _ => FailureKind::Other,
        }
    }
}

/// Becomes a container's init if this process was started as one (its `argv[0]` says so), and then never returns.
/// To be called first in `main`, before any thread or descriptor exists.
pub fn init_if_requested() {
    let mut arguments = std::env::args_os();
    let name = arguments.next();
    let steps = match name.as_deref().and_then(OsStr::to_str) {
        Some(INIT_NAME) => carry_out,
        Some(ENTER_NAME) => enter,
        Some(pid1::NAME) => std::process::exit(pid1::run(arguments)),
        _ => return,
    };
    // Without the parent's socket there is nobody to tell: somebody has started this by hand.
    if let Ok(socket) = sys::take_sync_descriptor() {
        run(&UnixStream::from(socket), steps);
    }
    std::process::exit(1);
}

/// What the parent gets of a process.
struct Kept {
    /// Of the container's own files.
    files: Vec<OwnedFd>,
    terminal: Option<Terminal>,
}

/// The steps of one kind of child; they only come to an end by failing.
type Steps = fn(&UnixStream) -> Result<std::convert::Infallible, Error>;

/// Carries out the plan; returns only if that failed.
fn run(parent: &UnixStream, steps: Steps) {
    let Err(error) = steps(parent);
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
    let init = plan.init.then(open_own_executable);
    // Modes of files made here are exact.
    rustix::process::umask(Mode::empty());
    let (root, kept) = build_root(&plan, &reopener)?;
    let init = init.transpose()?;
    become_workload(parent, plan.process, (root, reopener), kept, init.as_ref())
}

/// A further process: born in the container's namespaces and cgroup, it has the container's root directory already.
fn enter(parent: &UnixStream) -> Result<std::convert::Infallible, Error> {
    // The container's processes see this one. They have no right to trace it, because it has capabilities that they lack; this
    // holds also where they are given those (CVE-2016-9962). Executing the program ends it.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| Error::Hide(error.into()))?;
    let plan: EntryPlan = sync::receive(parent)?.ok_or(Error::NoParent)?;
    rustix::process::setsid().map_err(|error| Error::Session(error.into()))?;
    join_keyring()?;
    plan.namespaces.join_cgroup()?;
    let reopener = Reopener::detached().map_err(Error::Descriptors)?;
    let root = Root::current().map_err(Error::Root)?;
    let size = plan.process.terminal;
    let terminal = size
        .map(|size| Terminal::make(&root, &reopener, size))
        .transpose()?;
    let kept = Kept {
        files: Vec::new(),
        terminal,
    };
    become_workload(parent, plan.process, (root, reopener), kept, None)
}

/// The steps that all processes of a container have in common: from its root directory to its user and program.
fn become_workload(
    parent: &UnixStream,
    process: ProcessPlan,
    (root, reopener): (Root, Reopener),
    Kept { files, terminal }: Kept,
    init: Option<&OwnedFd>,
) -> Result<std::convert::Infallible, Error> {
    let identity = process.user.resolve(&root, &reopener)?;
    root::change_directory(&root, &process.working_directory).map_err(Error::WorkingDirectory)?;
    let terminal = terminal.map(|terminal| terminal.take(identity.uid)).transpose()?;
    streams::replace_null(&root, &reopener)?;
    drop((root, reopener));
    rustix::process::umask(Mode::from_raw_mode(process.umask));
    streams::give_to(identity.uid)?;
    set_limits(&process)?;
    become_user(&process, &identity)?;
    sync::send(parent, &Report::Created)?;
    for file in files {
        sync::send_descriptor(parent, file)?;
    }
    if let Some(terminal) = terminal {
        sync::send_descriptor(parent, terminal)?;
    }
    let Start = sync::receive(parent)?.ok_or(Error::NoParent)?;
    execute(process, &identity, init)
}

/// This program's file, by the read-only mount that it was started from: a process of the container can find it as
/// `/proc/1/exe`, and not write to it.
fn open_own_executable() -> Result<OwnedFd, Error> {
    use rustix::fs::OFlags;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::open("/proc/self/exe", flags, Mode::empty()).map_err(|error| Error::Executable(error.into()))
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
fn build_root(plan: &Plan, reopener: &Reopener) -> Result<(Root, Kept), Error> {
    let RootPlan {
        rootfs,
        mounts,
        files,
        ..
    } = &plan.root;
    // Bind mounts are opened while their sources can be reached, and attached once nothing but the new root can be, so
    // that no link of the image is ever followed on the host. They come first, for the root file system makes all mounts of
    // the host private.
    let sources = mounts
        .iter()
        .map(mounts::Mount::open_source)
        .collect::<Result<Vec<_>, _>>()?;
    rootfs::mount(rootfs)?;
    let own_files = files::prepare(rootfs, files)?;
    rootfs::pivot(rootfs)?;
    let root = Root::current().map_err(Error::Root)?;
    for (mount, source) in mounts.iter().zip(sources) {
        mount.attach(&root, source)?;
    }
    let files = files::attach(&root, files, own_files)?;
    nodes::furnish(&root, &plan.root.nodes)?;
    let size = plan.process.terminal;
    let terminal = size
        .map(|size| Terminal::make(&root, reopener, size))
        .transpose()?;
    if let Some(terminal) = &terminal {
        terminal.bind_console(&root)?;
    }
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
    Ok((root, Kept { files, terminal }))
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

fn execute(
    process: ProcessPlan,
    identity: &Identity,
    init: Option<&OwnedFd>,
) -> Result<std::convert::Infallible, Error> {
    let needs_admin = needs_admin_for_seccomp(&process);
    let ProcessPlan {
        mut arguments,
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
    if init.is_some() {
        arguments.insert(0, pid1::NAME.to_owned());
    }
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
    let error = match init {
        Some(program) => sys::execute_descriptor(program.as_fd(), &arguments, &environment),
        None => sys::execute(&path, &arguments, &environment),
    };
    Err(command::Error::new(&name, error).into())
}
