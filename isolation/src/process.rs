//! The parent's side of a container: creates it, starts it, signals it, waits for it, removes it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::Plan;

/// Why a container could not be created, signalled, waited for or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Work in progress.
    #[error("not built yet")]
    NotBuilt,
}

/// Why [`Container::start`] failed. The container is still to be destroyed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No such file, directly or along `PATH`: exit status 127 in Docker's convention.
    #[error("{command}: command not found")]
    CommandNotFound {
        /// The first argument of the process.
        command: String,
    },
    /// It is there but cannot be executed: exit status 126 in Docker's convention.
    #[error("{command}: cannot be executed: {reason}")]
    CommandNotExecutable {
        /// The first argument of the process.
        command: String,
        /// Why not.
        reason: String,
    },
    /// Any other failure on the way to `execve`.
    #[error("cannot start the workload")]
    Other(#[source] Error),
}

/// The workload's standard streams.
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
    /// Whether the kernel's out-of-memory killer ended a process of the container.
    pub out_of_memory: bool,
}

/// A created container. Dropping it without [`Container::destroy`] kills the workload and leaves the cgroup.
#[derive(Debug)]
pub struct Container {
    pid: i32,
    pidfd: OwnedFd,
}

/// Makes the container: cgroup, namespaces, root file system, everything up to (not including) `execve`.
pub fn create(plan: &Plan, stdio: Stdio) -> Result<Container, Error> {
    let _ = (plan, stdio);
    Err(Error::NotBuilt)
}

impl Container {
    /// PID of the workload in the caller's PID namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Becomes readable when the workload ends.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Executes the workload; returns after `execve` succeeded.
    pub fn start(&mut self) -> Result<(), StartError> {
        Err(StartError::Other(Error::NotBuilt))
    }

    /// Sends a signal to the workload's first process.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        let _ = signal;
        Err(Error::NotBuilt)
    }

    /// Waits for the workload's end, by its pidfd only.
    pub fn wait(&self) -> Result<Exit, Error> {
        Err(Error::NotBuilt)
    }

    /// Kills what is left, reaps the workload and removes its cgroup.
    pub fn destroy(self) -> Result<(), Error> {
        Err(Error::NotBuilt)
    }
}
