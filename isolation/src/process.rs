//! The parent's side of a container: creates it, starts it, signals it, waits for it, removes it. And of further processes
//! in one that is there: enters it.
//!
//! The child is this very executable, started again in the new namespaces: the parent may have threads, and after a fork
//! of such a process hardly anything is allowed, while init has a whole container to build. The executable is reached
//! through a read-only mount that nothing else shares, so that a workload that is root cannot use its `/proc/PID/exe` to
//! overwrite the host's file (CVE-2019-5736).
//!
//! A parent's death must be the workload's. The kernel ties the signal for that to the thread that cloned, not to the
//! process, so each container has a small thread that clones and then waits for the child's end.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{CWD, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags};
use rustix::process::{Signal, WaitId, WaitIdOptions};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};
use serde::Serialize;

use crate::cgroup::{self, Cgroup};
use crate::files::OwnFile;
use crate::network;
use crate::plan::{EntryPlan, Plan, ProcessPlan};
use crate::sync::{self, Failure, FailureKind, Remote, Report, Start};
use crate::{fill, sys};

/// First argument of the re-executed child.
pub(crate) const INIT_NAME: &str = "rvm-init";

/// First argument of the re-executed child that joins a container.
pub(crate) const ENTER_NAME: &str = "rvm-enter";

/// Stack in bytes of the thread that waits for the child. It makes a handful of system calls.
const KEEPER_STACK: usize = 64 << 10;

/// Descriptors given to the child lie at or above this number, so that moving them to 0..=3 overwrites none of them.
const FIRST_CHILD_SOURCE: i32 = 10;

/// Why a container could not be created, signalled, waited for or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A new volume could not be given what the image has for it.
    #[error("cannot fill a new volume")]
    Fill(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The cgroup could not be made, read or removed.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// This program's own file could not be opened or copied.
    #[error("cannot open this program to run it as the container's init")]
    Executable(#[source] io::Error),
    /// A socket, descriptor or thread for the child could not be made.
    #[error("cannot prepare the container's init")]
    Prepare(#[source] io::Error),
    /// `clone3` failed: no privilege, no such namespaces, or a process limit.
    #[error("cannot start a process in new namespaces")]
    Clone(#[source] io::Error),
    /// The network namespace to be joined could not be opened.
    #[error("cannot join the network namespace {}", _0.display())]
    Join(PathBuf, #[source] io::Error),
    /// The workload's network interfaces could not be set up.
    #[error("cannot set up the container's network")]
    Network(#[from] network::Error),
    /// Init and parent lost each other.
    #[error("cannot talk to the container's init")]
    Talk(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Init ended without saying why.
    #[error("the container's init died{}", if *out_of_memory { ": the memory limit is too small for it" } else { "" })]
    Died {
        /// Whether the kernel's out-of-memory killer was at work.
        out_of_memory: bool,
    },
    /// Init reported a failure; its causes are the sources.
    #[error("cannot set up the container")]
    Setup(#[source] Remote),
    /// The same, because something that a process was to begin with is not there: its working directory.
    #[error("cannot set up the process")]
    Missing(#[source] Remote),
    /// The container's namespaces could not be joined: it may have ended.
    #[error("cannot enter the container")]
    Enter(#[source] io::Error),
    /// The out-of-memory score adjustment of a process could not be set.
    #[error("cannot set the out-of-memory score adjustment of process {pid}")]
    OomScore {
        /// The process.
        pid: i32,
        /// The cause.
        source: io::Error,
    },
    /// The container was started before.
    #[error("the container was started before")]
    AlreadyStarted,
    /// The signal could not be sent, for example because the workload has ended.
    #[error("cannot send signal {signal} to process {pid}")]
    Signal {
        /// The workload's PID.
        pid: i32,
        /// The signal's number.
        signal: i32,
        /// The cause.
        source: io::Error,
    },
    /// The end of the workload could not be waited for.
    #[error("cannot wait for process {pid}")]
    Wait {
        /// The workload's PID.
        pid: i32,
        /// The cause.
        source: io::Error,
    },
}

/// Why [`Container::start`] failed. The container is still to be destroyed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No such file, directly or along `PATH`: exit status 127 in Docker's convention.
    #[error("command not found: {reason}")]
    CommandNotFound {
        /// The command and, unless it is the whole story, the cause.
        reason: String,
    },
    /// It is there but cannot be executed: exit status 126 in Docker's convention.
    #[error("command cannot be executed: {reason}")]
    CommandNotExecutable {
        /// The command and the cause.
        reason: String,
    },
    /// Any other failure on the way to `execve`.
    #[error("cannot start the workload")]
    Other(#[source] Error),
}

/// The workload's standard streams. Pipes are given to the workload's user, so that it can open `/dev/stdout`. A process with
/// a terminal has that for all three, whatever these are.
#[derive(Debug)]
pub struct Stdio {
    /// Becomes descriptor 0.
    pub stdin: OwnedFd,
    /// Becomes descriptor 1.
    pub stdout: OwnedFd,
    /// Becomes descriptor 2.
    pub stderr: OwnedFd,
}

/// How a workload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit status, or 128 plus the number of the signal that ended it.
    pub code: u8,
    /// Whether an out-of-memory killer ended a process of the container.
    pub out_of_memory: bool,
}

/// The first process of a container, or a further one.
///
/// Its exit status is collected by pidfd: a caller that reaps children of its own must not wait for any child
/// (`waitpid(-1)`), or it takes the status away.
#[derive(Debug)]
struct Process {
    pid: i32,
    pidfd: OwnedFd,
    /// Until the workload was started.
    sync: Option<UnixStream>,
    /// The outer side of its terminal, until it is taken.
    terminal: Option<OwnedFd>,
    code: Mutex<Option<u8>>,
}

/// A created container.
///
/// What its first process' exit status needs of the caller is said at [`Entered`], too.
///
/// Dropping a container destroys it, as [`Container::destroy`] does, but cannot say whether that worked.
#[derive(Debug)]
pub struct Container {
    process: Process,
    cgroup: Cgroup,
    cgroup_path: PathBuf,
    /// Until they are taken.
    own_files: Vec<OwnFile>,
    exit: Mutex<Option<Exit>>,
    destroyed: bool,
}

/// A further process in a container.
///
/// Its exit status is collected by pidfd: a caller that reaps children of its own must not wait for any child
/// (`waitpid(-1)`), or it takes the status away. The end of the container's first process is its end, and is not complete
/// before [`Entered::wait`] or dropping it has collected the status. Dropping one kills it.
#[derive(Debug)]
pub struct Entered(Process);

/// Makes the container: cgroup, namespaces, root file system, everything up to (not including) `execve`.
///
/// Needs root, cgroup v2, a proc file system on `/proc`, and Linux 5.14 or later. May be called from any thread. The
/// workload is killed when this process ends, however it ends, with one exception: a workload that is a set-user-ID
/// program is not, and is left to [`cgroup::remove`].
pub fn create(plan: &Plan, stdio: Stdio) -> Result<Container, Error> {
    fill::fill(&plan.root.rootfs, &plan.root.mounts).map_err(|error| Error::Fill(error.into()))?;
    let parts = Parts::new(stdio)?;
    let cgroup = Cgroup::create(&plan.cgroup.path, &plan.cgroup.limits)?;
    let cloned = cgroup
        .directory()
        .try_clone_to_owned()
        .map_err(Error::Prepare)
        .and_then(|cgroup| parts.clone_into(new_place(plan)?, cgroup));
    let (process, sync) = match cloned {
        Ok(cloned) => cloned,
        Err(error) => {
            // The failure to clone is worth more than one to clean up.
            let _ = cgroup::remove(&plan.cgroup.path);
            return Err(error);
        }
    };
    // From here on dropping the container cleans up.
    let container = Container {
        process,
        cgroup,
        cgroup_path: plan.cgroup.path.clone(),
        own_files: Vec::new(),
        exit: Mutex::new(None),
        destroyed: false,
    };
    container.set_up(plan, sync)
}

/// Makes a further process in a running container, up to (not including) `execve`: in its namespaces and in the cgroup at
/// `cgroup`, under the rights that `plan` says.
///
/// `pidfd` is of the container's first process, which is a child of the caller. What [`create`] needs and says of a
/// parent's end holds here too. A container that is frozen must not be entered: the process would stand still as well.
pub fn enter(plan: &EntryPlan, pidfd: impl AsFd, cgroup: &Path, stdio: Stdio) -> Result<Entered, Error> {
    let parts = Parts::new(stdio)?;
    let cgroup = Cgroup::open(cgroup)?;
    let duplicate = |descriptor: BorrowedFd<'_>| descriptor.try_clone_to_owned().map_err(Error::Prepare);
    let place = Place::Existing(plan.namespaces.joint(), duplicate(pidfd.as_fd())?);
    let (process, sync) = parts.clone_into(place, duplicate(cgroup.directory())?)?;
    // From here on dropping it cleans up.
    let mut entered = Entered(process);
    if let Some(score) = plan.process.oom_score_adj {
        // By the caller, because the container's /proc may not be one.
        let pid = entered.0.pid;
        std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
            .map_err(|source| Error::OomScore { pid, source })?;
    }
    converse(&sync, plan, || died_in(&cgroup))?;
    entered.0.terminal = receive_terminal(&sync, &plan.process)?;
    entered.0.sync = Some(sync);
    Ok(entered)
}

/// New namespaces, and the network namespace that is another's.
fn new_place(plan: &Plan) -> Result<Place, Error> {
    let open = |path: &Path| {
        File::open(path)
            .map(OwnedFd::from)
            .map_err(|source| Error::Join(path.to_owned(), source))
    };
    Ok(Place::New {
        flags: plan.namespaces.clone_flags(),
        network: plan.namespaces.joined_network().map(open).transpose()?,
    })
}

/// What a child is made of.
struct Parts {
    executable: OwnedFd,
    descriptors: [OwnedFd; 4],
    /// The parent's end of the last descriptor.
    sync: UnixStream,
}

impl Parts {
    fn new(stdio: Stdio) -> Result<Parts, Error> {
        let (sync, far) = UnixStream::pair().map_err(Error::Prepare)?;
        let raise = |source: OwnedFd| {
            rustix::io::fcntl_dupfd_cloexec(&source, FIRST_CHILD_SOURCE)
                .map_err(|error| Error::Prepare(error.into()))
        };
        Ok(Parts {
            descriptors: [
                raise(stdio.stdin)?,
                raise(stdio.stdout)?,
                raise(stdio.stderr)?,
                raise(far.into())?,
            ],
            executable: raise(own_executable().map_err(Error::Executable)?)?,
            sync,
        })
    }

    fn clone_into(self, place: Place, cgroup: OwnedFd) -> Result<(Process, UnixStream), Error> {
        let (pid, pidfd) = keep(Seed {
            place,
            cgroup,
            executable: self.executable,
            descriptors: self.descriptors,
        })?;
        let process = Process {
            pid,
            pidfd,
            sync: None,
            terminal: None,
            code: Mutex::new(None),
        };
        Ok((process, self.sync))
    }
}

/// Where a child is born.
enum Place {
    /// In new namespaces of these kinds (`CLONE_NEW*`), and in a network namespace that is there.
    New { flags: u64, network: Option<OwnedFd> },
    /// In these namespaces of another process.
    Existing(ThreadNameSpaceType, OwnedFd),
}

/// What the keeper thread needs to clone.
struct Seed {
    place: Place,
    cgroup: OwnedFd,
    executable: OwnedFd,
    descriptors: [OwnedFd; 4],
}

/// Clones in a thread that lives as long as the child, see the head of this module.
fn keep(seed: Seed) -> Result<(i32, OwnedFd), Error> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let keeper = thread::Builder::new()
        .name("rvm-keeper".into())
        .stack_size(KEEPER_STACK);
    let spawned = keeper.spawn(move || {
        let cloned = clone(seed);
        let waiting = match &cloned {
            Ok((_, pidfd)) => pidfd.try_clone().ok(),
            Err(_) => None,
        };
        if sender.send(cloned).is_err() {
            return;
        }
        if let Some(pidfd) = waiting {
            // A failure ends the thread and with it the child, which is the safe side.
            let _ = wait_readable(&pidfd);
        }
    });
    spawned.map_err(Error::Prepare)?;
    receiver
        .recv()
        .map_err(|error| Error::Prepare(io::Error::other(error)))?
}

fn clone(seed: Seed) -> Result<(i32, OwnedFd), Error> {
    // The child must not run this program's signal handlers on its copy of the memory.
    sys::block_all_signals().map_err(Error::Clone)?;
    let Seed {
        place,
        cgroup,
        executable,
        descriptors,
    } = seed;
    let (namespaces, name) = match place {
        Place::New { flags, network } => {
            if let Some(network) = network {
                // This thread goes there, and the child with it; other threads stay.
                let kind = Some(LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(network.as_fd(), kind)
                    .map_err(|error| Error::Enter(error.into()))?;
            }
            (flags, INIT_NAME)
        }
        Place::Existing(kinds, process) => {
            // This thread goes there, and the child with it; other threads stay. A mount namespace is only joined by who
            // shares no root directory. The cgroup namespace is left to the child: from within it, this thread could not put
            // the child into a cgroup that its own is not below.
            sys::leave_directories().map_err(Error::Enter)?;
            rustix::thread::move_into_thread_name_spaces(process.as_fd(), kinds)
                .map_err(|error| Error::Enter(error.into()))?;
            (0, ENTER_NAME)
        }
    };
    let name = std::ffi::CString::new(name).map_err(|error| Error::Clone(error.into()))?;
    sys::clone_and_exec(&sys::Child {
        namespaces,
        cgroup: cgroup.as_fd(),
        executable: executable.as_fd(),
        name: &name,
        descriptors: descriptors.each_ref().map(AsFd::as_fd),
    })
    .map_err(Error::Clone)
}

/// A child has done its part within this. A further process is among those of the container, which may stop it.
const SETUP_LIMIT: Duration = Duration::from_secs(60);

/// Sends a child its plan and waits until it is carried out.
fn converse(sync: &UnixStream, plan: &impl Serialize, died: impl Fn() -> Error) -> Result<(), Error> {
    // For Process::start as well.
    sync.set_read_timeout(Some(SETUP_LIMIT)).map_err(Error::Prepare)?;
    match sync::send(sync, plan) {
        // A child that is gone has left its reason in the socket.
        Ok(()) | Err(sync::Error::Closed) => {}
        Err(error) => return Err(Error::Talk(error.into())),
    }
    match sync::receive(sync) {
        Ok(Some(Report::Created)) => Ok(()),
        Ok(Some(Report::Failed(failure))) => Err(match failure.kind {
            FailureKind::CommandNotFound => Error::Missing(failure.chain),
            FailureKind::CommandNotExecutable | FailureKind::Other => Error::Setup(failure.chain),
        }),
        Ok(None) | Err(sync::Error::Closed) => Err(died()),
        Err(error) => Err(Error::Talk(error.into())),
    }
}

/// What a child passes along once its plan is carried out.
fn receive_descriptor(sync: &UnixStream) -> Result<OwnedFd, Error> {
    sync::receive_descriptor(sync).map_err(|error| Error::Talk(error.into()))
}

/// The outer side of the terminal, if the process has one.
fn receive_terminal(sync: &UnixStream, process: &ProcessPlan) -> Result<Option<OwnedFd>, Error> {
    process.terminal.map(|_| receive_descriptor(sync)).transpose()
}

/// Opens this program's file so that it cannot be written through the descriptor or the process that runs it.
fn own_executable() -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into();
    let mounted = rustix::mount::open_tree(CWD, "/proc/self/exe", flags)
        .map_err(io::Error::from)
        .and_then(|tree| sys::mount_setattr(&tree, false, read_only, 0).map(|()| tree));
    mounted.or_else(|_| copy_executable())
}

/// A copy in memory that can never change again, for when mounts cannot be made.
fn copy_executable() -> io::Result<OwnedFd> {
    let copy = rustix::fs::memfd_create(INIT_NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut copy = File::from(copy);
    io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    Ok(copy.into())
}

/// Waits until the process behind `pidfd` has ended.
fn wait_readable(pidfd: impl AsFd) -> rustix::io::Result<()> {
    loop {
        match rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

impl Process {
    fn start(&mut self, died: impl Fn() -> Error) -> Result<(), StartError> {
        let sync = self.sync.take().ok_or(StartError::Other(Error::AlreadyStarted))?;
        match sync::send(&sync, &Start) {
            Ok(()) => {}
            Err(sync::Error::Closed) => return Err(StartError::Other(died())),
            Err(error) => return Err(StartError::Other(Error::Talk(error.into()))),
        }
        match sync::receive(&sync) {
            // execve closed init's end, or init was killed in these last instructions; then wait() tells.
            Ok(None) | Err(sync::Error::Closed) => Ok(()),
            Ok(Some(Report::Failed(Failure { kind, chain }))) => Err(match kind {
                FailureKind::CommandNotFound => StartError::CommandNotFound {
                    reason: chain.joined(),
                },
                FailureKind::CommandNotExecutable => StartError::CommandNotExecutable {
                    reason: chain.joined(),
                },
                FailureKind::Other => StartError::Other(Error::Setup(chain)),
            }),
            Ok(Some(Report::Created)) => Err(StartError::Other(Error::Talk(
                "a report that was not expected".into(),
            ))),
            Err(error) => Err(StartError::Other(Error::Talk(error.into()))),
        }
    }

    fn signal(&self, signal: i32) -> Result<(), Error> {
        sys::signal(&self.pidfd, signal).map_err(|source| Error::Signal {
            pid: self.pid,
            signal,
            source,
        })
    }

    /// Exit status, or 128 plus a signal.
    fn wait(&self) -> Result<u8, Error> {
        let failed = |source: io::Error| Error::Wait {
            pid: self.pid,
            source,
        };
        wait_readable(&self.pidfd).map_err(|error| failed(error.into()))?;
        // A poisoned lock holds an Option that is valid at any moment.
        let mut known = self.code.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(code) = *known {
            return Ok(code);
        }
        let status = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED)
            .map_err(|error| failed(error.into()))?
            .ok_or_else(|| failed(io::Error::other("it has not ended")))?;
        let code = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128 + signal,
            (None, None) => return Err(failed(io::Error::other("neither exit status nor signal"))),
        };
        let code = u8::try_from(code).map_err(|error| failed(io::Error::other(error)))?;
        Ok(*known.insert(code))
    }
}

impl Container {
    /// Sends the plan to init and waits until it is carried out.
    fn set_up(mut self, plan: &Plan, sync: UnixStream) -> Result<Container, Error> {
        // Before the plan, which init waits for: what it sets up may count on the interfaces.
        network::plug(&self.process.pidfd, &plan.interfaces)?;
        converse(&sync, plan, || self.died())?;
        for file in &plan.root.files {
            self.own_files.push(OwnFile {
                path: file.path.clone(),
                file: receive_descriptor(&sync)?.into(),
            });
        }
        self.process.terminal = receive_terminal(&sync, &plan.process)?;
        // Only now: init itself has to open loop devices and block devices.
        self.cgroup.restrict_devices(&plan.cgroup.devices)?;
        self.process.sync = Some(sync);
        Ok(self)
    }

    fn died(&self) -> Error {
        died_in(&self.cgroup)
    }

    /// PID of the workload in the caller's PID namespace.
    pub fn pid(&self) -> i32 {
        self.process.pid
    }

    /// Becomes readable when the workload ends.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.pidfd.as_fd()
    }

    /// The outer side of the workload's terminal, if it has one; once. Closing all copies of it hangs the terminal up; reading
    /// fails with `EIO` when the inner side has been closed by all who had it open.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.process.terminal.take()
    }

    /// The container's own files, for reading and writing; once. Those of [`crate::Environment::files`] that nothing is mounted
    /// in the place of.
    pub fn take_own_files(&mut self) -> Vec<OwnFile> {
        std::mem::take(&mut self.own_files)
    }

    /// The container's cgroup, for reading.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Executes the workload; returns after `execve` succeeded.
    pub fn start(&mut self) -> Result<(), StartError> {
        let cgroup = &self.cgroup;
        self.process.start(|| died_in(cgroup))
    }

    /// Sends a signal to the workload's first process. As PID 1 of its namespace it ignores signals without a handler,
    /// except `SIGKILL` and `SIGSTOP`.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        self.process.signal(signal)
    }

    /// Waits for the workload's end. Can be called again, and from several threads.
    pub fn wait(&self) -> Result<Exit, Error> {
        let code = self.process.wait()?;
        // A poisoned lock holds an Option that is valid at any moment.
        let mut exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(exit) = *exit {
            return Ok(exit);
        }
        // The cgroup may be removed already, by a command that took this process for dead.
        let out_of_memory = self.cgroup.out_of_memory_kills().is_ok_and(|kills| kills > 0);
        Ok(*exit.insert(Exit { code, out_of_memory }))
    }

    /// Kills what is left, reaps the workload and removes its cgroup. The kernel takes the mounts apart by itself,
    /// shortly after the last process is gone.
    pub fn destroy(mut self) -> Result<(), Error> {
        self.tear_down()
    }

    fn tear_down(&mut self) -> Result<(), Error> {
        self.destroyed = true;
        // Init waits for this socket's messages; without it, it would end by itself.
        self.process.sync = None;
        cgroup::remove(&self.cgroup_path)?;
        self.wait().map(drop)
    }
}

fn died_in(cgroup: &Cgroup) -> Error {
    let out_of_memory = cgroup.out_of_memory_kills().is_ok_and(|kills| kills > 0);
    Error::Died { out_of_memory }
}

impl Drop for Container {
    fn drop(&mut self) {
        if !self.destroyed {
            // There is nobody to tell. What stays is found by the next cgroup::remove of this path.
            let _ = self.tear_down();
        }
    }
}

impl Entered {
    /// PID of the process in the caller's PID namespace.
    pub fn pid(&self) -> i32 {
        self.0.pid
    }

    /// The outer side of its terminal, as [`Container::take_terminal`].
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.0.terminal.take()
    }

    /// Executes the program; returns after `execve` succeeded.
    pub fn start(&mut self) -> Result<(), StartError> {
        let died = || Error::Died { out_of_memory: false };
        self.0.start(died)
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        self.0.signal(signal)
    }

    /// Waits for its end: exit status, or 128 plus the number of the signal that ended it. Can be called again, and from
    /// several threads.
    pub fn wait(&self) -> Result<u8, Error> {
        self.0.wait()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let known = self.0.code.lock().map_or(None, |code| *code);
        if known.is_none() {
            // Both fail only where it has ended and been waited for.
            let _ = self.0.signal(Signal::KILL.as_raw());
            let _ = self.0.wait();
        }
    }
}
