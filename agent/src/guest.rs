//! The guest as the server sees it: one container with its processes, made by the isolation crate, and the machine around
//! it.

use std::error::Error;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, Result};
use oci_spec::runtime::{LinuxResources, Mount, Process, Spec};
use rustix::process::Pid;
use rvm_isolation::{
    Container, CopyError, Device, Entered, EntryPlan, Environment, Exit, Files, Interface, Place, Plan,
    PrivateFile, Rootfs, StartError, Stdio, cgroup,
};
use rvm_protocol::{Create, Extent, Failure, FailureKind};

use crate::reaper::Spoken;
use crate::server::{self, Machine};
use crate::sys::Children;
use crate::workload::Workload;
use crate::{archive, boot, power, reaper};

/// The real machine.
pub(crate) struct Guest {
    environment: Environment,
    /// What is mounted in the files of a container that is not made here.
    mounts: Vec<Mount>,
    /// Held while the container's processes are made or destroyed.
    container: Mutex<Option<Container>>,
    /// What it was made of.
    spec: OnceLock<Spec>,
    /// Further processes in it.
    spoken: Arc<Spoken>,
}

/// A further process in the container.
pub(crate) struct Further {
    /// `None` only while it is dropped.
    entered: Option<Entered>,
    spoken: Arc<Spoken>,
}

impl server::Further for Further {
    fn start(&mut self) -> Result<(), Failure> {
        self.entered.as_mut().map_or_else(
            || Err(other("the process has ended")),
            |entered| entered.start().map_err(|error| start_failure(&error)),
        )
    }

    fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.entered.as_mut().and_then(Entered::take_terminal)
    }

    fn signal(&self, signal: i32) -> Result<(), Failure> {
        self.entered.as_ref().map_or(Ok(()), |entered| {
            entered
                .signal(signal)
                .map_err(|error| failure(FailureKind::Other, &error))
        })
    }

    fn wait(&self) -> Result<u8> {
        let entered = self.entered.as_ref().context("the process has ended")?;
        let code = entered.wait().context("wait for a process");
        self.spoken.release(entered.pid());
        code
    }
}

impl Drop for Further {
    fn drop(&mut self) {
        let pid = self.entered.as_ref().map(Entered::pid);
        // It is reaped by this, and only then left to others.
        drop(self.entered.take());
        if let Some(pid) = pid {
            self.spoken.release(pid);
        }
    }
}

fn start_failure(error: &StartError) -> Failure {
    let kind = match error {
        StartError::CommandNotFound { .. } => FailureKind::CommandNotFound,
        StartError::CommandNotExecutable { .. } => FailureKind::CommandNotExecutable,
        StartError::Other(_) => FailureKind::Other,
    };
    failure(kind, error)
}

impl Guest {
    /// A guest without a container as yet.
    pub(crate) fn new(rootfs: Rootfs, mounts: Vec<Mount>) -> Self {
        let cgroup = PathBuf::from(boot::CGROUP_ROOT).join("workload");
        Self {
            environment: Environment {
                cgroup,
                rootfs,
                interfaces: Vec::new(),
                files: Vec::new(),
            },
            mounts,
            container: Mutex::new(None),
            spec: OnceLock::new(),
            spoken: Arc::default(),
        }
    }

    fn container(&self) -> MutexGuard<'_, Option<Container>> {
        // A panic ends the whole program, so that a poisoned lock is never seen.
        self.container.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_container<T>(
        &self,
        act: impl FnOnce(&mut Container) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.container()
            .as_mut()
            .map_or_else(|| Err(other("there is no container")), act)
    }
}

impl Workload for Guest {
    fn freeze(&self) -> Result<(), Failure> {
        cgroup::freeze(&self.environment.cgroup).map_err(refused)
    }

    fn thaw(&self) -> Result<(), Failure> {
        cgroup::thaw(&self.environment.cgroup).map_err(refused)
    }

    fn processes(&self) -> Result<cgroup::Processes, Failure> {
        cgroup::processes(&self.environment.cgroup).map_err(refused)
    }

    fn usage(&self) -> Result<cgroup::Usage, Failure> {
        cgroup::workload_usage(&self.environment.cgroup).map_err(refused)
    }

    fn limit(&self, resources: &LinuxResources) -> Result<(), Failure> {
        cgroup::limit(&self.environment.cgroup, resources).map_err(refused)
    }
}

impl Machine for Guest {
    type Further = Further;

    fn create(&self, create: &Create, stdio: Stdio) -> Result<Option<OwnedFd>, Failure> {
        let environment = Environment {
            interfaces: create.interfaces.iter().map(interface).collect(),
            files: create.files.iter().map(private_file).collect(),
            ..self.environment.clone()
        };
        let plan =
            Plan::new(&create.spec, &environment).map_err(|error| failure(FailureKind::Other, &error))?;
        let mut container =
            rvm_isolation::create(&plan, stdio).map_err(|error| failure(FailureKind::Other, &error))?;
        let terminal = container.take_terminal();
        *self.container() = Some(container);
        // There is one container in a guest's life.
        let _ = self.spec.set(create.spec.clone());
        Ok(terminal)
    }

    fn start(&self) -> Result<(), Failure> {
        self.with_container(|container| container.start().map_err(|error| start_failure(&error)))
    }

    fn enter(&self, process: &Process, stdio: Stdio) -> Result<Further, Failure> {
        let failed = |error: &dyn Error| failure(FailureKind::Other, error);
        let pidfd = self.with_container(|container| {
            container
                .pidfd()
                .try_clone_to_owned()
                .map_err(|error| failed(&error))
        })?;
        let spec = self.spec.get().ok_or_else(|| other("there is no container"))?;
        let plan = EntryPlan::new(spec, process).map_err(|error| failed(&error))?;
        let enter = || rvm_isolation::enter(&plan, &pidfd, &self.environment.cgroup, stdio);
        let entered = self.spoken.make(enter, Entered::pid);
        let entered = entered.map_err(|error| {
            let kind = match &error {
                rvm_isolation::Error::Missing(_) => FailureKind::CommandNotFound,
                _ => FailureKind::Other,
            };
            failure(kind, &error)
        })?;
        Ok(Further {
            entered: Some(entered),
            spoken: Arc::clone(&self.spoken),
        })
    }

    fn signal(&self, signal: i32) -> Result<(), Failure> {
        self.with_container(|container| {
            container
                .signal(signal)
                .map_err(|error| failure(FailureKind::Other, &error))
        })
    }

    fn wait(&self) -> Result<Exit> {
        let pid = self.container().as_ref().map(Container::pid);
        let pid = pid.and_then(Pid::from_raw).context("there is no container")?;
        reaper::reap_until(pid, Children::All, &self.spoken).context("wait for the workload")?;
        // It has ended, so that this does not block while the lock is held.
        let guard = self.container();
        let container = guard.as_ref().context("the container was destroyed")?;
        container.wait().context("read how the workload ended")
    }

    fn archive(&self, extent: Extent) -> io::Result<Box<dyn Read>> {
        let extent = match extent {
            Extent::All => rvm_isolation::Extent::All,
            Extent::Changes => rvm_isolation::Extent::Changes,
            Extent::Diff => rvm_isolation::Extent::Diff,
        };
        let archive = rvm_isolation::archive(self.environment.rootfs.clone(), extent)?;
        Ok(Box::new(archive))
    }

    fn copy(&self, writes: bool, connection: &UnixStream) -> Result<()> {
        let running = self
            .container()
            .as_ref()
            .map(|container| container.pidfd().try_clone_to_owned());
        let place = match running {
            Some(process) => Place::Running(process?),
            None => Place::Ended {
                rootfs: self.environment.rootfs.clone(),
                mounts: self.mounts.clone(),
                writes,
            },
        };
        let serve = |files: Result<&Files, CopyError>| match &files {
            Ok(files) => archive::serve(Ok(files), connection),
            Err(error) => archive::serve(Err(error), connection),
        };
        Ok(rvm_isolation::inside(place, serve)??)
    }

    fn power_off(&self) {
        // The lock is never released: the machine ends with it, and only once.
        let mut container = self.container();
        if let Some(Err(error)) = container.take().map(Container::destroy) {
            eprintln!("rvm-agent: destroy the container: {error}");
        }
        power::off()
    }
}

/// The guest's network devices are there as it boots.
fn interface(asked: &rvm_protocol::Interface) -> Interface {
    Interface {
        device: Device::Present,
        name: asked.name.clone(),
        mac: asked.mac,
        addresses: asked.addresses.clone(),
        gateways: asked.gateways.clone(),
        mtu: asked.mtu,
    }
}

fn private_file(asked: &rvm_protocol::PrivateFile) -> PrivateFile {
    PrivateFile {
        path: asked.path.clone(),
        content: asked.content.clone(),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn refused(error: cgroup::Error) -> Failure {
    failure(FailureKind::Other, &error)
}

fn other(message: &str) -> Failure {
    Failure {
        kind: FailureKind::Other,
        message: message.to_owned(),
    }
}

/// An error with all its causes, on one line.
pub(crate) fn failure(kind: FailureKind, error: &dyn Error) -> Failure {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    Failure { kind, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_carry_the_chain_of_causes() {
        let cause = std::io::Error::from_raw_os_error(2);
        let error = rvm_protocol::FrameError::Io(cause);
        let failure = failure(FailureKind::Other, &error);
        assert_eq!(
            failure.message,
            "connection failed: No such file or directory (os error 2)"
        );
    }
}
