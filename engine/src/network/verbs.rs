//! The operations behind `rvm network`.

use std::thread;
use std::time::Instant;

use rvm_network::Blueprint;
use rvm_network::definition::Definition;
use rvm_network::endpoint::Endpoint;

use super::{Attachment, DEFAULT, Error, Mode, check_addresses, find};
use crate::control::Connection;
use crate::engine::TURN;
use crate::life::CHANGE_LIMIT;
use crate::record::{Isolation, Record, State, VERSION};
use crate::{Engine, names};

/// A network and who is on it.
#[derive(Debug, Clone)]
pub struct NetworkReport {
    /// The network.
    pub definition: Definition,
    /// Who is on it.
    pub members: Vec<Member>,
}

/// A container on a network.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// How it is there.
    pub endpoint: Endpoint,
}

impl Engine {
    /// Makes a network.
    ///
    /// # Errors
    /// [`Error::Network`].
    pub fn create_network(&self, blueprint: &Blueprint) -> Result<Definition, Error> {
        let definition = self.store().networks().create(blueprint, names::new_id())?;
        self.tell_network(&definition, "create", None);
        Ok(definition)
    }

    /// Every network, by name; the default one is among them, used or not.
    ///
    /// # Errors
    /// [`Error::Network`].
    pub fn networks(&self) -> Result<Vec<Definition>, Error> {
        let plane = self.store().networks();
        plane.default_network(names::new_id)?;
        Ok(plane.networks()?)
    }

    /// A network by name, ID or unique beginning of an ID, and who is on it.
    ///
    /// # Errors
    /// [`Error::Network`], [`Error::Special`].
    pub fn network(&self, wanted: &str) -> Result<NetworkReport, Error> {
        let plane = self.store().networks();
        let definition = find(&plane, wanted)?;
        let mut members = Vec::new();
        for endpoint in plane.endpoints(&definition.id)? {
            // One that has just ended is on none.
            if let Ok(record) = self.store().find(&endpoint.container)
                && record.state.is_active()
            {
                members.push(Member {
                    name: record.name,
                    endpoint,
                });
            }
        }
        Ok(NetworkReport { definition, members })
    }

    /// How a container is on its networks at this moment.
    ///
    /// # Errors
    /// [`Error::Network`].
    pub fn memberships(&self, id: &str) -> Result<Vec<(Definition, Endpoint)>, Error> {
        Ok(self.store().networks().memberships(id)?)
    }

    /// Removes a network that nobody is on.
    ///
    /// # Errors
    /// [`Error::Network`].
    pub fn remove_network(&self, wanted: &str) -> Result<Definition, Error> {
        let special = ["host", "none"].into_iter().find(|name| *name == wanted);
        if let Some(name) = special {
            let error = rvm_network::StoreError::Predefined(name.to_owned());
            return Err(rvm_network::Error::from(error).into());
        }
        let store = self.store();
        let definition = store.networks().remove(wanted, &|id| store.is_owned(id))?;
        self.tell_network(&definition, "destroy", None);
        Ok(definition)
    }

    /// Removes the networks that no container is or will be on, if they are wanted.
    ///
    /// # Errors
    /// [`Error::Network`], [`Error::Store`].
    pub fn prune_networks(&self, is_wanted: impl Fn(&Definition) -> bool) -> Result<Vec<Definition>, Error> {
        let containers = self.store().entries()?;
        let is_used = |definition: &Definition| {
            let attachments = containers
                .iter()
                .flat_map(|record| record.settings.network.attachments());
            attachments
                .into_iter()
                .any(|attachment| attachment.network == definition.id)
        };
        let mut removed = Vec::new();
        for definition in self.store().networks().networks()? {
            if definition.name != DEFAULT && is_wanted(&definition) && !is_used(&definition) {
                removed.push(self.remove_network(&definition.id)?);
            }
        }
        Ok(removed)
    }

    /// Puts a container on a further network: at once where it runs on the host's kernel, else when it is started next.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn connect_network(&self, wanted: &str, attachment: Attachment) -> Result<(), Error> {
        let definition = find(&self.store().networks(), &attachment.network)?;
        check_addresses(&definition, &attachment)?;
        let attachment = Attachment {
            network: definition.id.clone(),
            ..attachment
        };
        let record = self.change_networks(
            wanted,
            |record| add(record, &definition, attachment.clone()),
            |connection| connection.connect_network(attachment.clone()),
        )?;
        self.tell_network(&definition, "connect", Some(&record));
        Ok(())
    }

    /// Takes a container off a network, as [`Engine::connect_network`] puts it on one. With `force` also one that is no more,
    /// or that knows nothing of it: what is left of it on the network goes.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn disconnect_network(&self, wanted: &str, network: &str, force: bool) -> Result<(), Error> {
        let definition = find(&self.store().networks(), network)?;
        let changed = self.change_networks(
            wanted,
            |record| remove(record, &definition),
            |connection| connection.disconnect_network(&definition.id),
        );
        match changed {
            Ok(record) => self.tell_network(&definition, "disconnect", Some(&record)),
            Err(error) if force && error.is_of_nobody() => {
                if !self.discard_endpoint(wanted, &definition)? {
                    return Err(error);
                }
                self.tell_network(&definition, "disconnect", None);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Removes what a container that nobody owns has left on a network; whether there was anything.
    fn discard_endpoint(&self, wanted: &str, definition: &Definition) -> Result<bool, Error> {
        let plane = self.store().networks();
        let is_it = |endpoint: &Endpoint| {
            endpoint.container == wanted
                || endpoint
                    .names
                    .iter()
                    .take(2)
                    .any(|name| *name == wanted.to_lowercase())
        };
        let is_owned = |id: &str| self.store().is_owned(id);
        let left = plane.endpoints(&definition.id)?.into_iter().find(is_it);
        let Some(left) = left.filter(|endpoint| !is_owned(&endpoint.container)) else {
            return Ok(false);
        };
        plane.leave(&left.container, Some(&definition.id), &is_owned)?;
        Ok(true)
    }

    /// Changes a container's networks: on its record, or by its supervisor where it has one.
    fn change_networks(
        &self,
        wanted: &str,
        change: impl Fn(&mut Record) -> Result<(), Error>,
        ask: impl Fn(&Connection) -> Result<(), crate::control::Error>,
    ) -> Result<Record, Error> {
        let store = self.store();
        let record = store.find(wanted)?;
        let deadline = Instant::now() + CHANGE_LIMIT;
        loop {
            if let Some(owned) = store.own(&record.id)? {
                let mut current = owned.read_record()?;
                change(&mut current)?;
                current.version = VERSION;
                owned.write_record(&current)?;
                drop(owned);
                self.forget_left(&current)?;
                return Ok(current);
            }
            // What makes no sense is found out here, where there are words for it.
            let current = store.find(&record.id)?;
            change(&mut current.clone())?;
            if current.isolation == Isolation::Vm && matches!(current.state, State::Running { .. }) {
                return Err(Error::RunningVm(current.name));
            }
            // One that has ended is let go of soon.
            if current.state.is_active()
                && let Ok(connection) = self.connect(&current)
            {
                ask(&connection)?;
                return Ok(current);
            }
            if Instant::now() > deadline {
                return Err(Error::Busy(current.name));
            }
            thread::sleep(TURN);
        }
    }

    /// Takes a container that does not run off networks that it is not to be on any more: its supervisor may have been killed.
    fn forget_left(&self, record: &Record) -> Result<(), Error> {
        let (store, plane) = (self.store(), self.store().networks());
        let wanted = record.settings.network.attachments();
        for (definition, _) in plane.memberships(&record.id)? {
            let is_wanted = wanted
                .iter()
                .any(|attachment| attachment.network == definition.id);
            if !is_wanted && !store.is_owned(&record.id) {
                plane.leave(&record.id, Some(&definition.id), &|id| store.is_owned(id))?;
            }
        }
        Ok(())
    }

    fn tell_network(&self, definition: &Definition, action: &str, container: Option<&Record>) {
        self.store().journal.network(
            &definition.id,
            &definition.name,
            action,
            container.map(|record| record.id.as_str()),
        );
    }
}

/// Puts a network on a container's record.
pub(crate) fn add(record: &mut Record, definition: &Definition, attachment: Attachment) -> Result<(), Error> {
    let container = record.name.clone();
    let networking = &mut record.settings.network;
    match &mut networking.mode {
        Mode::Networks(networks) if networks.iter().any(|other| other.network == definition.id) => {
            Err(Error::Connected {
                container,
                network: definition.name.clone(),
            })
        }
        Mode::Networks(networks) => {
            networks.push(attachment);
            Ok(())
        }
        Mode::None | Mode::Host | Mode::Container(_) => {
            let mode = networking.mode_name(str::to_owned);
            Err(Error::Mode(container, mode))
        }
    }
}

/// Takes a network off a container's record.
pub(crate) fn remove(record: &mut Record, definition: &Definition) -> Result<(), Error> {
    let is_it = |attachment: &Attachment| attachment.network == definition.id;
    match &mut record.settings.network.mode {
        Mode::Networks(networks) if networks.iter().any(is_it) => {
            networks.retain(|attachment| !is_it(attachment));
            Ok(())
        }
        _ => Err(Error::NotConnected {
            container: record.name.clone(),
            network: definition.name.clone(),
        }),
    }
}
