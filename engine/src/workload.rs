//! A running container's workload as a whole: paused and let go on, its processes, what it uses. Its supervisor does it.

use std::time::Duration;

use rvm_isolation::cgroup::{Processes, Usage};

use crate::cgroup;
use crate::control::{self, Connection, Hold};
use crate::engine::{Engine, Error};
use crate::files::FilesError;
use crate::life::LifeError;
use crate::record::{Record, State};

/// A supervisor has asked its guest within this: a guest has 20 seconds to take the connection, and 10 to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(40);

/// What a running container uses.
#[derive(Debug, Clone, Copy)]
pub struct Statistics {
    /// The workload, where it runs: in a virtual machine, as its guest's kernel counts.
    pub workload: Usage,
    /// All of it on the host, with its supervisor, and in VM mode with the machine that it runs in, as the host's kernel counts;
    /// `None` where there is no cgroup for it.
    pub host: Option<Usage>,
}

impl Engine {
    /// Lets all processes of a container stand still.
    ///
    /// # Errors
    /// [`Error::Store`], [`LifeError::NotRunning`], [`LifeError::Restarting`]; [`Error::Control`] also where it is paused already.
    pub fn pause(&self, wanted: &str) -> Result<(), Error> {
        Ok(self.supervisor(wanted)?.pause()?)
    }

    /// Lets a paused container go on.
    ///
    /// # Errors
    /// [`Error::Store`], [`LifeError::NotRunning`], [`LifeError::Restarting`]; [`Error::Control`] also where it is not paused.
    pub fn unpause(&self, wanted: &str) -> Result<(), Error> {
        Ok(self.supervisor(wanted)?.unpause()?)
    }

    /// Lets a container stand still as long as the result is there; `None` where it does not run.
    pub(crate) fn hold(&self, record: &Record) -> Result<Option<Hold>, Error> {
        if !has_workload(record) {
            return Ok(None);
        }
        let error = match self.ask(record).and_then(Connection::hold) {
            Ok(hold) => return Ok(Some(hold)),
            Err(error) => error,
        };
        if !has_workload(&self.store.find(&record.id)?) {
            return Ok(None);
        }
        let name = record.name.clone();
        Err(FilesError::Pause { name, error }.into())
    }

    /// What runs in a container.
    ///
    /// # Errors
    /// [`Error::Store`], [`LifeError::NotRunning`], [`LifeError::Restarting`], [`Error::Control`].
    pub fn processes(&self, wanted: &str) -> Result<Processes, Error> {
        Ok(self.supervisor(wanted)?.processes()?)
    }

    /// What a running container uses.
    ///
    /// # Errors
    /// [`Error::Control`], also where it has ended.
    pub fn usage(&self, record: &Record) -> Result<Statistics, Error> {
        Ok(Statistics {
            workload: self.ask(record)?.usage()?,
            host: cgroup::usage(&record.id),
        })
    }

    /// A connection to the supervisor of a container that has to run.
    fn supervisor(&self, wanted: &str) -> Result<Connection, Error> {
        let record = self.store.find(wanted)?;
        match record.state {
            State::Running { .. } => Ok(self.ask(&record)?),
            State::Restarting { .. } => Err(LifeError::Restarting(record.name).into()),
            State::Created | State::Exited(_) => Err(LifeError::NotRunning(record.name).into()),
        }
    }

    /// A connection to a supervisor that may have to ask its guest.
    pub(crate) fn ask(&self, record: &Record) -> Result<Connection, control::Error> {
        Connection::open(&self.store.run_directory(&record.id), ANSWER_LIMIT)
    }
}

/// Whether there is something that can stand still: one that waits to be started again has nothing.
pub(crate) fn has_workload(record: &Record) -> bool {
    matches!(record.state, State::Running { .. })
}
