//! Container mode: the isolation crate on the host's kernel.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rvm_isolation::{Environment, Layer, Plan, Rootfs, StartError, Stdio};
use rvm_protocol::FailureKind;

use super::{Context, Exit, Input, Streams};

/// A container on the host.
pub(crate) struct ContainerRuntime {
    container: rvm_isolation::Container,
}

/// Why a container could not be made, started or ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no cgroup for it.
    #[error("the container has no cgroup")]
    NoCgroup,
    /// A directory of the bundle could not be made.
    #[error("cannot create {0}")]
    Directory(PathBuf, #[source] io::Error),
    /// Pipes or `/dev/null` could not be opened.
    #[error("cannot open the workload's streams")]
    Streams(#[source] io::Error),
    /// The specification asks for what cannot be done.
    #[error("the container cannot be isolated as asked")]
    Plan(#[from] rvm_isolation::plan::Error),
    /// The isolation could not be set up.
    #[error("cannot set up the container")]
    Create(#[source] rvm_isolation::Error),
    /// The workload could not be executed.
    #[error(transparent)]
    Start(#[from] StartError),
    /// It could not be waited for or removed.
    #[error("cannot follow the container to its end")]
    End(#[source] rvm_isolation::Error),
}

impl Error {
    pub(crate) fn kind(&self) -> FailureKind {
        match self {
            Self::Start(StartError::CommandNotFound { .. }) => FailureKind::CommandNotFound,
            Self::Start(StartError::CommandNotExecutable { .. }) => FailureKind::CommandNotExecutable,
            _ => FailureKind::Other,
        }
    }
}

impl ContainerRuntime {
    pub(crate) fn create(context: &Context<'_>) -> Result<(Self, Streams), Error> {
        let plan = Plan::new(context.spec, &environment(context)?)?;
        let (stdio, streams) = pipes(context.record.open_stdin).map_err(Error::Streams)?;
        let container = rvm_isolation::create(&plan, stdio).map_err(Error::Create)?;
        Ok((Self { container }, streams))
    }

    pub(crate) fn start(&mut self) -> Result<(), Error> {
        Ok(self.container.start()?)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.container.pid()
    }

    pub(crate) fn pidfd(&self) -> Result<OwnedFd, Error> {
        self.container
            .pidfd()
            .try_clone_to_owned()
            .map_err(Error::Streams)
    }

    pub(crate) fn wait(&mut self) -> Result<Exit, Error> {
        let exit = self.container.wait().map_err(Error::End)?;
        Ok(Exit {
            code: exit.code,
            out_of_memory: exit.out_of_memory,
        })
    }

    pub(crate) fn end(self) -> Result<(), Error> {
        self.container.destroy().map_err(Error::End)
    }
}

/// The host as the isolation crate sees it. The guest agent has the counterpart.
fn environment(context: &Context<'_>) -> Result<Environment, Error> {
    let directory = |name: &str| {
        let path = context.directory.join(name);
        match fs::create_dir(&path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::Directory(path, source))
            }
            _ => Ok(path),
        }
    };
    Ok(Environment {
        cgroup: context.cgroup.ok_or(Error::NoCgroup)?.payload(),
        rootfs: Rootfs {
            layers: context
                .record
                .layers
                .iter()
                .map(|layer| Layer::File(layer.path.clone()))
                .collect(),
            upper: directory("upper")?,
            work: directory("work")?,
            staging: directory("rootfs")?,
        },
    })
}

/// The workload's ends and the supervisor's ends of its streams.
fn pipes(open_stdin: bool) -> io::Result<(Stdio, Streams)> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let (stdin, input) = if open_stdin {
        let (read, write) = pipe()?;
        (read, Some(Input::Pipe(File::from(write))))
    } else {
        (File::open("/dev/null")?.into(), None)
    };
    let (stdout, workload_stdout) = pipe()?;
    let (stderr, workload_stderr) = pipe()?;
    let stdio = Stdio {
        stdin,
        stdout: workload_stdout,
        stderr: workload_stderr,
    };
    Ok((
        stdio,
        Streams {
            stdin: input,
            stdout: stdout.into(),
            stderr: stderr.into(),
        },
    ))
}
