//! Networks that a running container joins and leaves.

use std::sync::PoisonError;

use super::Clients;
use super::workload::{Refusal, refused};
use crate::control::Event;
use crate::network::{self, Attachment, Error, Running};
use crate::record::VERSION;

impl Clients {
    /// Puts the container on a further network.
    pub(super) fn connect_network(&self, attachment: &Attachment) -> Event {
        let connected = self.change_networks(&attachment.network, |record, definition| {
            network::add(record, definition, attachment.clone())
        });
        done(connected)
    }

    /// Takes it off a network.
    pub(super) fn disconnect_network(&self, id: &str) -> Event {
        done(self.change_networks(id, network::remove))
    }

    /// Changes the record as it will be, then the networks as they are, then the record.
    fn change_networks(
        &self,
        id: &str,
        change: impl Fn(&mut crate::record::Record, &network::Definition) -> Result<(), Error>,
    ) -> Result<(), Refusal> {
        let access = self.workload()?;
        let _one_at_a_time = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let store = self.book.store();
        let definition = store.networks().definition(id).map_err(Error::from)?;
        let record = self.book.record();
        let process = access
            .process()
            .ok_or_else(|| Error::RunningVm(record.name.clone()))?;
        let mut new = record.clone();
        change(&mut new, &definition)?;
        let networks = new.settings.network.attachments();
        let running = Running {
            store,
            record: &record,
            process,
            own_files: access.own_files(),
            ports: &self.ports,
            networks,
        };
        match networks
            .iter()
            .find(|attachment| attachment.network == definition.id)
        {
            Some(attachment) => running.join(attachment)?,
            None => running.leave(&definition.id)?,
        }
        self.book.update(|record| {
            record.settings.network = new.settings.network.clone();
            // A container of an older rvm was started again by this one.
            record.version = VERSION;
        })?;
        Ok(running.tell(&self.book.spec()?)?)
    }
}

fn done(outcome: Result<(), Refusal>) -> Event {
    outcome.map_or_else(|refusal| refused(&refusal), |()| Event::Done)
}
