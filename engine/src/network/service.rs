//! What serves a container's networks beside its interfaces: the resolver of each, and its published ports.

use rvm_network::Plane;
use rvm_network::definition::Definition;
use rvm_network::endpoint::{Endpoint, Published};
use rvm_network::proxy::{Proxy, Reservation, Target};
use rvm_network::resolver::start::Resolver;

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
        for attachment in attachments {
            let definition = plane.find(&attachment.network)?;
            if !definition.internal {
                return Ok(Self {
                    reservation: Reservation::bind(&wishes)?,
                    network: Some(definition.id),
                });
            }
        }
        Ok(Self::default())
    }

    /// Those that lead by a network.
    pub(super) fn of(&self, network: &str) -> Vec<Published> {
        match &self.network {
            Some(leading) if leading == network => self.reservation.published(),
            _ => Vec::new(),
        }
    }

    /// Serves them for a container that is on its networks now.
    pub(super) fn open(self, members: &[(Definition, Endpoint)]) -> Result<Option<Proxy>, Error> {
        let Some(network) = self.network else {
            return Ok(None);
        };
        let proxy = self.reservation.serve()?;
        let member = members.iter().find(|(definition, _)| definition.id == network);
        proxy.send_to(member.map(|(_, endpoint)| Target {
            ipv4: endpoint.ipv4,
            ipv6: endpoint.ipv6,
        }));
        Ok(Some(proxy))
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
