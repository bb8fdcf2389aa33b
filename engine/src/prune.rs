//! Removing containers that do not run.

use crate::images::allocated;
use crate::record::{Record, State};
use crate::{Engine, Error, LifeError};

/// Containers that were removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrunedContainers {
    /// Their IDs.
    pub ids: Vec<String>,
    /// What they took on the disk.
    pub freed_bytes: u64,
}

impl Engine {
    /// Removes containers that have ended or were never started, and that are chosen. One that somebody starts or uses
    /// meanwhile stays.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn prune_containers(&self, is_chosen: &dyn Fn(&Record) -> bool) -> Result<PrunedContainers, Error> {
        let mut pruned = PrunedContainers::default();
        for record in self.containers()? {
            let is_idle = matches!(record.state, State::Created | State::Exited(_));
            if !is_idle || !is_chosen(&record) {
                continue;
            }
            let bytes = allocated(self.layout().containers().join(&record.id));
            match self.remove(&record.id, false, false) {
                Ok(_) => {
                    pruned.freed_bytes = pruned.freed_bytes.saturating_add(bytes);
                    pruned.ids.push(record.id);
                }
                Err(Error::Running(_) | Error::Life(LifeError::Busy(_) | LifeError::RemovePaused(_))) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pruned)
    }
}
