//! The guest as the server sees it: one container, made by the isolation crate, and the machine around it.

use std::error::Error;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use oci_spec::runtime::Spec;
use rustix::process::Pid;
use rvm_isolation::{Container, Environment, Exit, Plan, Rootfs, StartError, Stdio};
use rvm_protocol::{Failure, FailureKind};

use crate::server::Machine;
use crate::sys::Children;
use crate::{boot, power, reaper};

/// The real machine.
pub(crate) struct Guest {
    environment: Environment,
    /// Held while the container's processes are made or destroyed.
    container: Mutex<Option<Container>>,
}

impl Guest {
    /// A guest without a container as yet.
    pub(crate) fn new(rootfs: Rootfs) -> Self {
        let cgroup = PathBuf::from(boot::CGROUP_ROOT).join("workload");
        Self {
            environment: Environment { cgroup, rootfs },
            container: Mutex::new(None),
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

impl Machine for Guest {
    fn create(&self, spec: &Spec, stdio: Stdio) -> Result<(), Failure> {
        let plan = Plan::new(spec, &self.environment).map_err(|error| failure(FailureKind::Other, &error))?;
        let container =
            rvm_isolation::create(&plan, stdio).map_err(|error| failure(FailureKind::Other, &error))?;
        *self.container() = Some(container);
        Ok(())
    }

    fn start(&self) -> Result<(), Failure> {
        self.with_container(|container| {
            container.start().map_err(|error| {
                let kind = match &error {
                    StartError::CommandNotFound { .. } => FailureKind::CommandNotFound,
                    StartError::CommandNotExecutable { .. } => FailureKind::CommandNotExecutable,
                    StartError::Other(_) => FailureKind::Other,
                };
                failure(kind, &error)
            })
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
        reaper::reap_until(pid, Children::All).context("wait for the workload")?;
        // It has ended, so that this does not block while the lock is held.
        let guard = self.container();
        let container = guard.as_ref().context("the container was destroyed")?;
        container.wait().context("read how the workload ended")
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
