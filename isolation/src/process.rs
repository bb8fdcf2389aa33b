//! The parent's side of a container: creates it, starts it, signals it, waits for it, removes it.
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
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{CWD, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags};
use rustix::process::{WaitId, WaitIdOptions};

use crate::cgroup::{self, Cgroup};
use crate::plan::Plan;
use crate::sync::{self, Failure, FailureKind, Remote, Report, Start};
use crate::sys;

/// First argument of the re-executed child.
pub(crate) const INIT_NAME: &str = "rvm-init";

/// Stack in bytes of the thread that waits for the child. It makes a handful of system calls.
const KEEPER_STACK: usize = 64 << 10;

/// Descriptors given to the child lie at or above this number, so that moving them to 0..=3 overwrites none of them.
const FIRST_CHILD_SOURCE: i32 = 10;

/// Why a container could not be created, signalled, waited for or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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

/// The workload's standard streams. Pipes are given to the workload's user, so that it can open `/dev/stdout`.
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

/// A created container.
///
/// Its exit status is collected by pidfd: a caller that reaps children of its own must not wait for any child
/// (`waitpid(-1)`), or it takes the status away.
///
/// Dropping a container destroys it, as [`Container::destroy`] does, but cannot say whether that worked.
#[derive(Debug)]
pub struct Container {
    pid: i32,
    pidfd: OwnedFd,
    cgroup: Cgroup,
    cgroup_path: PathBuf,
    /// Until the workload was started.
    sync: Option<UnixStream>,
    exit: Mutex<Option<Exit>>,
    destroyed: bool,
}

/// Makes the container: cgroup, namespaces, root file system, everything up to (not including) `execve`.
///
/// Needs root, cgroup v2, a proc file system on `/proc`, and Linux 5.14 or later. May be called from any thread. The
/// workload is killed when this process ends, however it ends, with one exception: a workload that is a set-user-ID
/// program is not, and is left to [`cgroup::remove`].
pub fn create(plan: &Plan, stdio: Stdio) -> Result<Container, Error> {
    let (near, far) = UnixStream::pair().map_err(Error::Prepare)?;
    let descriptors = [stdio.stdin, stdio.stdout, stdio.stderr, far.into()];
    let descriptors = descriptors.map(|source| rustix::io::fcntl_dupfd_cloexec(&source, FIRST_CHILD_SOURCE));
    let [stdin, stdout, stderr, sync] = descriptors;
    let prepared = |result: rustix::io::Result<OwnedFd>| result.map_err(|error| Error::Prepare(error.into()));
    let descriptors = [
        prepared(stdin)?,
        prepared(stdout)?,
        prepared(stderr)?,
        prepared(sync)?,
    ];
    let executable = own_executable().map_err(Error::Executable)?;
    let executable = prepared(rustix::io::fcntl_dupfd_cloexec(&executable, FIRST_CHILD_SOURCE))?;
    let cgroup = Cgroup::create(&plan.cgroup.path, &plan.cgroup.limits)?;
    let cloned = cgroup
        .directory()
        .try_clone_to_owned()
        .map_err(Error::Prepare)
        .and_then(|cgroup| {
            keep(Seed {
                namespaces: plan.namespaces.clone_flags(),
                cgroup,
                executable,
                descriptors,
            })
        });
    let (pid, pidfd) = match cloned {
        Ok(cloned) => cloned,
        Err(error) => {
            // The failure to clone is worth more than one to clean up.
            let _ = cgroup::remove(&plan.cgroup.path);
            return Err(error);
        }
    };
    // From here on dropping the container cleans up.
    let container = Container {
        pid,
        pidfd,
        cgroup,
        cgroup_path: plan.cgroup.path.clone(),
        sync: None,
        exit: Mutex::new(None),
        destroyed: false,
    };
    container.set_up(plan, near)
}

/// What the keeper thread needs to clone.
struct Seed {
    namespaces: u64,
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
        .map_err(Error::Clone)
}

fn clone(seed: Seed) -> io::Result<(i32, OwnedFd)> {
    // The child must not run this program's signal handlers on its copy of the memory.
    sys::block_all_signals()?;
    let name = std::ffi::CString::new(INIT_NAME)?;
    let Seed {
        namespaces,
        cgroup,
        executable,
        descriptors,
    } = seed;
    sys::clone_and_exec(&sys::Child {
        namespaces,
        cgroup: cgroup.as_fd(),
        executable: executable.as_fd(),
        name: &name,
        descriptors: descriptors.each_ref().map(AsFd::as_fd),
    })
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

impl Container {
    /// Sends the plan to init and waits until it is carried out.
    fn set_up(mut self, plan: &Plan, sync: UnixStream) -> Result<Container, Error> {
        match sync::send(&sync, plan) {
            // An init that is gone has left its reason in the socket.
            Ok(()) | Err(sync::Error::Closed) => {}
            Err(error) => return Err(Error::Talk(error.into())),
        }
        match sync::receive(&sync) {
            Ok(Some(Report::Created)) => {}
            Ok(Some(Report::Failed(failure))) => return Err(Error::Setup(failure.chain)),
            Ok(None) | Err(sync::Error::Closed) => return Err(self.died()),
            Err(error) => return Err(Error::Talk(error.into())),
        }
        // Only now: init itself has to open loop devices and block devices.
        self.cgroup.restrict_devices(&plan.cgroup.devices)?;
        self.sync = Some(sync);
        Ok(self)
    }

    fn died(&self) -> Error {
        let out_of_memory = self.cgroup.out_of_memory_kills().is_ok_and(|kills| kills > 0);
        Error::Died { out_of_memory }
    }

    /// PID of the workload in the caller's PID namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Becomes readable when the workload ends.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The container's cgroup, for reading.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Executes the workload; returns after `execve` succeeded.
    pub fn start(&mut self) -> Result<(), StartError> {
        let sync = self.sync.take().ok_or(StartError::Other(Error::AlreadyStarted))?;
        match sync::send(&sync, &Start) {
            Ok(()) => {}
            Err(sync::Error::Closed) => return Err(StartError::Other(self.died())),
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

    /// Sends a signal to the workload's first process. As PID 1 of its namespace it ignores signals without a handler,
    /// except `SIGKILL` and `SIGSTOP`.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        sys::signal(&self.pidfd, signal).map_err(|source| Error::Signal {
            pid: self.pid,
            signal,
            source,
        })
    }

    /// Waits for the workload's end. Can be called again, and from several threads.
    pub fn wait(&self) -> Result<Exit, Error> {
        let failed = |source: io::Error| Error::Wait {
            pid: self.pid,
            source,
        };
        wait_readable(&self.pidfd).map_err(|error| failed(error.into()))?;
        // A poisoned lock holds an Option that is valid at any moment.
        let mut exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(exit) = *exit {
            return Ok(exit);
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
        self.sync = None;
        cgroup::remove(&self.cgroup_path)?;
        self.wait().map(drop)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if !self.destroyed {
            // There is nobody to tell. What stays is found by the next cgroup::remove of this path.
            let _ = self.tear_down();
        }
    }
}
