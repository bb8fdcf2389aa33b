//! The two ways to run a container. Nothing outside this module knows more than that there are two.

mod boot;
mod container;
mod files;
mod guest;
mod initramfs;
mod machine;
mod microvm;
mod namespaces;
mod shares;
mod workload;

use std::fs::File;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

use oci_spec::runtime::{Process, Spec};
use rvm_isolation::OwnFile;
use rvm_protocol::{Purpose, Request, TerminalSize};
use rvm_vmm::status::Status;

use crate::cgroup::ContainerCgroup;
use crate::control::Exec;
use crate::layout::Layout;
use crate::network::Connected;
use crate::record::{Isolation, Record};
use crate::spec;
use crate::timeline::Timeline;

pub(crate) use boot::open_kvm;
pub(crate) use container::ContainerRuntime;
pub(crate) use files::FilesMachine;
pub(crate) use microvm::{Alarm, MicroVm};

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
    /// What it is connected to.
    pub(crate) network: &'a Connected,
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
    /// Likewise; `None` where the workload has a terminal, whose output is all in the other.
    pub(crate) stderr: Option<File>,
    /// The workload's terminal, if it has one.
    pub(crate) terminal: Option<Terminal>,
}

/// Changes the size of a terminal, from any thread.
pub(crate) enum Terminal {
    /// Its outer side.
    Host(OwnedFd),
    /// The connection on which the guest's agent is told.
    Guest(Arc<Mutex<UnixStream>>),
}

impl Terminal {
    /// Changes the size. A process that has ended is not told, which is no error.
    pub(crate) fn resize(&self, size: TerminalSize) {
        match self {
            Self::Host(terminal) => drop(rvm_isolation::resize(terminal, size.rows, size.columns)),
            Self::Guest(writer) => drop(guest::send(writer, &Request::Resize(size))),
        }
    }
}

/// Where the workload's standard input is written to.
pub(crate) enum Input {
    /// A pipe, or the outer side of a terminal.
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
    Container(Arc<container::Remote>),
}

/// A further process in a running container.
pub(crate) enum Further {
    /// In the guest. It ends with this.
    MicroVm(Box<guest::Control>),
    /// On the host. It ends with this.
    Container(Box<rvm_isolation::Entered>),
}

impl Further {
    /// Executes it; returns once `execve` has succeeded.
    pub(crate) fn start(&mut self) -> Result<(), Error> {
        match self {
            Self::MicroVm(control) => Ok(control.start().map_err(microvm::Error::Guest)?),
            Self::Container(entered) => Ok(entered.start().map_err(container::Error::from)?),
        }
    }

    /// Kills it. One that has ended already is not an error.
    pub(crate) fn kill(&self) {
        match self {
            Self::MicroVm(control) => control.kill(),
            Self::Container(entered) => {
                let _ = entered.signal(crate::signals::KILL);
            }
        }
    }

    /// Waits for its end: exit status, or 128 plus a signal.
    pub(crate) fn wait(&self) -> Result<u8, Error> {
        match self {
            Self::MicroVm(control) => Ok(control.wait().map_err(microvm::Error::Guest)?.code),
            Self::Container(entered) => Ok(entered.wait().map_err(container::Error::End)?),
        }
    }
}

/// The process that is to run in the container with this specification.
fn further(spec: &Spec, exec: &Exec) -> Result<Process, spec::Error> {
    let own = spec.process().clone().unwrap_or_default();
    spec::further(&own, exec)
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
    /// There is no guest to ask.
    #[error("the container's files are on the host")]
    OnHost,
}

impl Error {
    /// Docker's exit code: 127 for a command that does not exist, 126 for one that cannot be executed, else 125.
    pub(crate) fn exit_code(&self) -> u8 {
        use rvm_protocol::FailureKind;
        let kind = match self {
            Self::Container(error) => error.kind(),
            Self::MicroVm(error) => error.kind(),
            Self::OnHost => FailureKind::Other,
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
            Self::Container(runtime) => Ok(Access::Container(Arc::new(runtime.remote()?))),
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
            Self::Container(remote) => {
                // ESRCH: it has ended already.
                let _ = rvm_isolation::signal(remote.pidfd(), signal);
            }
        }
    }

    /// Makes a further process, up to but not including its `execve`.
    pub(crate) fn enter(&self, exec: &Exec, open_stdin: bool) -> Result<(Further, Streams), Error> {
        match self {
            Self::MicroVm(remote) => {
                let (control, streams) = remote.enter(exec, open_stdin)?;
                Ok((Further::MicroVm(Box::new(control)), streams))
            }
            Self::Container(remote) => {
                let (entered, streams) = remote.enter(exec, open_stdin)?;
                Ok((Further::Container(Box::new(entered)), streams))
            }
        }
    }

    /// A descriptor of the workload's first process, where that is one of this machine's.
    pub(crate) fn process(&self) -> Option<&OwnedFd> {
        match self {
            Self::MicroVm(_) => None,
            Self::Container(remote) => Some(remote.pidfd()),
        }
    }

    /// Files that belong to where a container is, where it is on this machine: `/etc/hosts` and the like.
    pub(crate) fn own_files(&self) -> &[OwnFile] {
        match self {
            Self::MicroVm(_) => &[],
            Self::Container(remote) => remote.own_files(),
        }
    }

    /// What the virtual machine says of itself; `None` in container mode.
    pub(crate) fn status(&self) -> Result<Option<Status>, Error> {
        match self {
            Self::MicroVm(remote) => Ok(Some(remote.status().map_err(microvm::Error::from)?)),
            Self::Container(_) => Ok(None),
        }
    }

    /// Opens a connection for the container's files, which the guest has.
    pub(crate) fn files(&self, purpose: Purpose) -> Result<UnixStream, Error> {
        match self {
            Self::MicroVm(remote) => Ok(remote.files(purpose)?),
            Self::Container(_) => Err(Error::OnHost),
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
