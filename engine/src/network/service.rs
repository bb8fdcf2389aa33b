//! What serves a container's networks beside its interfaces: the resolver of each, and its published ports.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rvm_network::definition::Definition;
use rvm_network::endpoint::{Endpoint, Published};
use rvm_network::proxy::{Proxy, Reservation, Target};
use rvm_network::resolver::start::Resolver;
use rvm_network::{Owners, Plane};

use super::{Attachment, Error};
use crate::record::Record;
use crate::store::Store;
use crate::{Asset, cgroup};

/// Ports of the host that are this container's, before it is on a network.
#[derive(Debug, Default)]
pub(super) struct Doors {
    reservation: Reservation,
    /// The network that they lead by.
    network: Option<String>,
}

impl Doors {
    /// Takes them, if a network leads anywhere.
    pub(super) fn reserve(record: &Record, plane: &Plane, attachments: &[Attachment]) -> Result<Self, Error> {
        let wishes = record.settings.ports.wishes();
        if wishes.is_empty() {
            return Ok(Self::default());
        }
        Ok(match first_leading(plane, attachments)? {
            Some(definition) => Self {
                reservation: Reservation::bind(&wishes)?,
                network: Some(definition.id),
            },
            None => Self::default(),
        })
    }

    /// Those that lead by a network.
    pub(super) fn of(&self, network: &str) -> Vec<Published> {
        match &self.network {
            Some(leading) if leading == network => self.reservation.published(),
            _ => Vec::new(),
        }
    }

    /// Serves them for a container that is on its networks now.
    pub(super) fn open(self, members: &[(Definition, Endpoint)]) -> Result<Option<Served>, Error> {
        let Some(network) = self.network else {
            return Ok(None);
        };
        let proxy = self.reservation.serve()?;
        let member = members.iter().find(|(definition, _)| definition.id == network);
        proxy.send_to(member.map(|(_, endpoint)| target(endpoint)));
        Ok(Some(Served { proxy, network }))
    }
}

/// The first network that leads anywhere.
pub(super) fn first_leading(plane: &Plane, attachments: &[Attachment]) -> Result<Option<Definition>, Error> {
    for attachment in attachments {
        let definition = plane.definition(&attachment.network)?;
        if !definition.internal {
            return Ok(Some(definition));
        }
    }
    Ok(None)
}

fn target(endpoint: &Endpoint) -> Target {
    Target {
        ipv4: endpoint.ipv4,
        ipv6: endpoint.ipv6,
    }
}

/// Published ports that are served.
#[derive(Debug)]
pub(super) struct Served {
    proxy: Proxy,
    /// The network that they lead by.
    network: String,
}

/// The published ports of a container that runs. The network that they lead by may be another one later, and there may be none
/// for a while.
#[derive(Debug, Default, Clone)]
pub(crate) struct Ports(Arc<Mutex<Option<Served>>>);

impl Ports {
    pub(super) fn serve(&self, served: Option<Served>) {
        *self.lock() = served;
    }

    /// Whether they are served.
    pub(super) fn are_open(&self) -> bool {
        self.lock().is_some()
    }

    /// Takes a container off a network. What leads by it leads by the first of the others from then on that leads anywhere, by
    /// the same ports of the host; where there is none, the ports are the host's again.
    pub(super) fn leave(
        &self,
        plane: &Plane,
        container: &str,
        network: &str,
        others: &[Attachment],
        is_owned: Owners<'_>,
    ) -> Result<(), Error> {
        let mut ports = self.lock();
        let Some(served) = ports.as_mut().filter(|served| served.network == network) else {
            return Ok(plane.leave(container, Some(network), is_owned)?);
        };
        if let Some(heir) = first_leading(plane, others)? {
            let endpoint = plane.hand_over(container, network, &heir.id, is_owned)?;
            served.proxy.send_to(endpoint.as_ref().map(target));
            served.network = heir.id;
            return Ok(());
        }
        plane.leave(container, Some(network), is_owned)?;
        *ports = None;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Served>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ports of a container that is on its networks: they are closed when this is gone.
#[derive(Debug)]
pub(super) struct Held(pub(super) Ports);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.serve(None);
    }
}

/// Sees to it that the resolvers of a container's networks run as long as it is on them.
pub(super) fn resolve_names(
    store: &Store,
    container: &str,
    members: &[(Definition, Endpoint)],
) -> Result<(), Error> {
    let plane = store.networks();
    for (definition, _) in members {
        let resolver = Resolver {
            program: Asset::Resolver.find()?,
            definition: plane.definition_path(&definition.id),
            directory: plane.network_directory(&definition.id),
            table: plane.table(),
            cgroup: cgroup::of_networks()?,
        };
        resolver.ensure()?;
        resolver.keep(container).map_err(Error::Thread)?;
    }
    Ok(())
}
