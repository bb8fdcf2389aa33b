//! The two ways to run a container. Nothing outside this module knows more than that there are two.

mod container;
mod guest;
mod initramfs;
mod machine;
mod microvm;
mod namespaces;

use std::fs::File;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use oci_spec::runtime::Spec;
use rvm_vmm::status::Status;

use crate::cgroup::ContainerCgroup;
use crate::layout::Layout;
use crate::record::{Isolation, Record};
use crate::timeline::Timeline;

pub(crate) use container::ContainerRuntime;
pub(crate) use microvm::{Alarm, MicroVm, open_kvm};

/// A container that can be started, whichever way it is isolated.
pub(crate) enum Runtime {
    /// In a virtual machine.
    MicroVm(Box<MicroVm>),
    /// On the host's kernel.
    Container(Box<ContainerRuntime>),
}

/// What a runtime works from.
pub(crate) struct Context<'a> {
    /// The container.
    pub(crate) record: &'a Record,
    /// Its OCI runtime specification.
    pub(crate) spec: &'a Spec,
    /// Its directory.
    pub(crate) directory: &'a Path,
    /// The directory of its sockets.
    pub(crate) run_directory: &'a Path,
    /// The directories of what all containers share.
    pub(crate) layout: &'a Layout,
    /// Its cgroups; a virtual machine goes without where there is no cgroup2.
    pub(crate) cgroup: Option<&'a ContainerCgroup>,
    /// Lets others end the start.
    pub(crate) alarm: &'a Alarm,
    /// Where its progress is noted.
    pub(crate) timeline: &'a Timeline,
}

/// The supervisor's ends of the workload's standard streams.
pub(crate) struct Streams {
    /// `None` where the workload's standard input is `/dev/null`.
    pub(crate) stdin: Option<Input>,
    /// Ends when the workload and all that inherited it have closed it.
    pub(crate) stdout: File,
    /// Likewise.
    pub(crate) stderr: File,
}

/// Where the workload's standard input is written to.
pub(crate) enum Input {
    /// A pipe.
    Pipe(File),
    /// A connection to the guest.
    Connection(UnixStream),
}

/// How a workload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Exit code, or 128 plus a signal.
    pub(crate) code: u8,
    /// Whether the memory limit ended it.
    pub(crate) out_of_memory: bool,
}

/// Reaches a running workload from any thread.
#[derive(Clone)]
pub(crate) enum Access {
    /// By way of the guest's agent.
    MicroVm(microvm::Remote),
    /// By descriptor.
    Container(std::sync::Arc<OwnedFd>),
}

/// Why a container could not be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The container could not be made on the host.
    #[error(transparent)]
    Container(#[from] container::Error),
    /// The virtual machine could not be made or failed.
    #[error(transparent)]
    MicroVm(#[from] microvm::Error),
}

impl Error {
    /// Docker's exit code: 127 for a command that does not exist, 126 for one that cannot be executed, else 125.
    pub(crate) fn exit_code(&self) -> u8 {
        use rvm_protocol::FailureKind;
        let kind = match self {
            Self::Container(error) => error.kind(),
            Self::MicroVm(error) => error.kind(),
        };
        match kind {
            FailureKind::CommandNotFound => 127,
            FailureKind::CommandNotExecutable => 126,
            FailureKind::Other => 125,
        }
    }
}

impl Runtime {
    /// Makes everything up to the workload's `execve`.
    pub(crate) fn create(context: &Context<'_>) -> Result<(Self, Streams), Error> {
        match context.record.isolation {
            Isolation::Vm => {
                let (runtime, streams) = MicroVm::create(context)?;
                Ok((Self::MicroVm(Box::new(runtime)), streams))
            }
            Isolation::Container => {
                let (runtime, streams) = ContainerRuntime::create(context)?;
                Ok((Self::Container(Box::new(runtime)), streams))
            }
        }
    }

    /// Executes the workload; returns once `execve` has succeeded.
    pub(crate) fn start(&mut self) -> Result<(), Error> {
        match self {
            Self::MicroVm(runtime) => Ok(runtime.start()?),
            Self::Container(runtime) => Ok(runtime.start()?),
        }
    }

    /// The process on the host that is the container: the workload's PID 1, or the VMM.
    pub(crate) fn pid(&self) -> i32 {
        match self {
            Self::MicroVm(runtime) => runtime.pid(),
            Self::Container(runtime) => runtime.pid(),
        }
    }

    /// A handle on the running workload.
    pub(crate) fn access(&self) -> Result<Access, Error> {
        match self {
            Self::MicroVm(runtime) => Ok(Access::MicroVm(runtime.remote()?)),
            Self::Container(runtime) => Ok(Access::Container(std::sync::Arc::new(runtime.pidfd()?))),
        }
    }

    /// Waits for the workload's PID 1 to end.
    pub(crate) fn wait(&mut self) -> Result<Exit, Error> {
        match self {
            Self::MicroVm(runtime) => Ok(runtime.wait()?),
            Self::Container(runtime) => Ok(runtime.wait()?),
        }
    }

    /// Ends and removes whatever is left.
    pub(crate) fn end(self) -> Result<(), Error> {
        match self {
            Self::MicroVm(runtime) => Ok(runtime.end()?),
            Self::Container(runtime) => Ok(runtime.end()?),
        }
    }
}

impl Input {
    /// Ends the workload's standard input after what was written.
    pub(crate) fn close(self) {
        if let Self::Connection(stream) = self {
            // A failure means that the guest is gone, and its input with it.
            let _ = stream.shutdown(Shutdown::Write);
        }
    }
}

impl Write for Input {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(file) => file.write(bytes),
            Self::Connection(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Access {
    /// Sends a signal to the workload's PID 1. A workload that has ended already is not an error.
    pub(crate) fn signal(&self, signal: i32) {
        match self {
            Self::MicroVm(remote) => remote.signal(signal),
            Self::Container(pidfd) => {
                if let Some(signal) = rustix::process::Signal::from_named_raw(signal) {
                    // ESRCH: it has ended already.
                    let _ = rustix::process::pidfd_send_signal(pidfd, signal);
                }
            }
        }
    }

    /// What the virtual machine says of itself; `None` in container mode.
    pub(crate) fn status(&self) -> Result<Option<Status>, Error> {
        match self {
            Self::MicroVm(remote) => Ok(Some(remote.status().map_err(microvm::Error::from)?)),
            Self::Container(_) => Ok(None),
        }
    }

    /// Ends the workload, and in VM mode the machine whatever state it is in.
    pub(crate) fn kill(&self) {
        match self {
            Self::MicroVm(remote) => remote.kill(),
            Self::Container(_) => self.signal(rustix::process::Signal::KILL.as_raw()),
        }
    }
}
