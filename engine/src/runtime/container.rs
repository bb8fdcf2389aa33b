//! Container mode: the isolation crate on the host's kernel.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::Spec;
use rvm_isolation::{Entered, EntryPlan, Environment, Layer, OwnFile, Plan, Rootfs, StartError, Stdio};
use rvm_protocol::FailureKind;

use super::{Context, Exit, Input, Streams, Terminal, further};
use crate::control::Exec;
use crate::{mounts, spec};

/// A container on the host.
pub(crate) struct ContainerRuntime {
    container: rvm_isolation::Container,
    spec: Spec,
    cgroup: PathBuf,
    own_files: Arc<[OwnFile]>,
}

/// Reaches a running container from any thread.
pub(crate) struct Remote {
    pidfd: OwnedFd,
    spec: Spec,
    cgroup: PathBuf,
    own_files: Arc<[OwnFile]>,
}

impl Remote {
    pub(super) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// The container's own files.
    pub(super) fn own_files(&self) -> &[OwnFile] {
        &self.own_files
    }

    /// The workload's cgroup.
    pub(super) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Makes a further process.
    pub(super) fn enter(&self, exec: &Exec, open_stdin: bool) -> Result<(Entered, Streams), Error> {
        let process = further(&self.spec, exec)?;
        let plan = EntryPlan::new(&self.spec, &process)?;
        let (stdio, streams) = pipes(open_stdin).map_err(Error::Streams)?;
        let mut entered =
            rvm_isolation::enter(&plan, &self.pidfd, &self.cgroup, stdio).map_err(Error::Enter)?;
        let streams = or_terminal(streams, entered.take_terminal(), open_stdin).map_err(Error::Streams)?;
        Ok((entered, streams))
    }
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
    /// A directory to be mounted could not be made.
    #[error(transparent)]
    Mount(#[from] mounts::MountError),
    /// The isolation could not be set up.
    #[error("cannot set up the container")]
    Create(#[source] rvm_isolation::Error),
    /// No process can be made of what was asked for.
    #[error(transparent)]
    Further(#[from] spec::Error),
    /// A further process could not be set up.
    #[error("cannot run a process in the container")]
    Enter(#[source] rvm_isolation::Error),
    /// The workload's cgroup refused.
    #[error(transparent)]
    Cgroup(#[from] rvm_isolation::cgroup::Error),
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
            Self::Start(StartError::CommandNotFound { .. })
            | Self::Enter(rvm_isolation::Error::Missing(_)) => FailureKind::CommandNotFound,
            Self::Start(StartError::CommandNotExecutable { .. }) => FailureKind::CommandNotExecutable,
            _ => FailureKind::Other,
        }
    }
}

impl ContainerRuntime {
    pub(crate) fn create(context: &Context<'_>) -> Result<(Self, Streams), Error> {
        for point in context.record.mounts.shared() {
            mounts::make_source(point)?;
        }
        let plan = Plan::new(context.spec, &environment(context)?)?;
        let open_stdin = context.record.open_stdin;
        let (stdio, streams) = pipes(open_stdin).map_err(Error::Streams)?;
        let mut container = rvm_isolation::create(&plan, stdio).map_err(Error::Create)?;
        let streams = or_terminal(streams, container.take_terminal(), open_stdin).map_err(Error::Streams)?;
        let runtime = Self {
            own_files: container.take_own_files().into(),
            container,
            spec: context.spec.clone(),
            cgroup: context.cgroup.ok_or(Error::NoCgroup)?.payload(),
        };
        Ok((runtime, streams))
    }

    pub(crate) fn start(&mut self) -> Result<(), Error> {
        Ok(self.container.start()?)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.container.pid()
    }

    pub(crate) fn remote(&self) -> Result<Remote, Error> {
        let pidfd = self.container.pidfd().try_clone_to_owned();
        Ok(Remote {
            pidfd: pidfd.map_err(Error::Streams)?,
            spec: self.spec.clone(),
            cgroup: self.cgroup.clone(),
            own_files: Arc::clone(&self.own_files),
        })
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
        interfaces: context.network.interfaces.clone(),
        files: context.network.files.clone(),
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
            stderr: Some(stderr.into()),
            terminal: None,
        },
    ))
}

/// What the supervisor has instead of pipes where the process has a terminal, of which `terminal` is the outer side.
fn or_terminal(pipes: Streams, terminal: Option<OwnedFd>, open_stdin: bool) -> io::Result<Streams> {
    let Some(terminal) = terminal else {
        return Ok(pipes);
    };
    let file = || terminal.try_clone().map(File::from);
    Ok(Streams {
        stdin: open_stdin.then(file).transpose()?.map(Input::Pipe),
        stdout: file()?,
        stderr: None,
        terminal: Some(Terminal::Host(terminal)),
    })
}
