//! Networks that are in use: joining and leaving them, and making the host what it has to be for who is on them.

mod admit;
mod upkeep;

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rvm_netlink::{Change, Mac, Socket};

use crate::definition::Definition;
use crate::endpoint::{Egress, Endpoint, Published, VERSION};
use crate::nft::NftError;
use crate::store::{self, Blueprint, DEFAULT, Store, StoreError};
use crate::{files, resolver, rules};
use admit::admit;
pub use admit::check_addresses;

/// Whether a container has an owner, by its ID.
pub type Owners<'a> = &'a dyn Fn(&str) -> bool;

/// Why networks could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] files::Error),
    /// The definitions refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An interface could not be made.
    #[error(transparent)]
    Link(rvm_netlink::Error),
    /// The same, for want of a right.
    #[error("networks need CAP_NET_ADMIN on this machine, `--network none` does not")]
    NotPermitted(#[source] rvm_netlink::Error),
    /// Connections of an address could not be forgotten.
    #[error(
        "cannot forget the connections that {0} had before; policies need a kernel with CONFIG_NF_CT_NETLINK"
    )]
    Connections(IpAddr, #[source] std::io::Error),
    /// The rules could not be made.
    #[error(transparent)]
    Rules(#[from] NftError),
    /// Docker's words.
    #[error("Address already in use: {0}")]
    AddressInUse(IpAddr),
    /// Docker's words.
    #[error("invalid address {address}: It does not belong to any of this network's subnets ({subnet})")]
    NotInSubnet {
        /// What was asked for.
        address: IpAddr,
        /// What there is.
        subnet: String,
    },
    /// It is the network's own, or the host's on it.
    #[error("invalid address {0}: it belongs to the network itself")]
    NotForMembers(IpAddr),
    /// An IPv6 address on a network that has none.
    #[error("invalid address {0}: network {1} has no IPv6; --ipv6 makes one that does")]
    NoIpv6(Ipv6Addr, String),
    /// Docker's words.
    #[error("no available IPv{0} addresses on this network's address pools: {1}")]
    Full(u8, String),
    /// The bridge has no more ports.
    #[error(
        "network {0} has as many members as a bridge has ports: 1022; further containers need another network"
    )]
    Crowded(String),
    /// Somebody on the network has it.
    #[error("MAC address {0} is already in use on network {1}")]
    MacInUse(String, String),
    /// Docker's words, and who is on it.
    #[error("error while removing network: network {network} has active endpoints ({members})")]
    InUse {
        /// The network.
        network: String,
        /// Its members.
        members: String,
    },
}

impl From<rvm_netlink::Error> for Error {
    fn from(error: rvm_netlink::Error) -> Self {
        if error.is_permission() {
            Self::NotPermitted(error)
        } else {
            Self::Link(error)
        }
    }
}

/// What a member's interface is on the host's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// One of a pair.
    Veth,
    /// A TAP interface.
    Tap,
}

/// A membership that is asked for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The network's ID.
    pub network: String,
    /// The container.
    pub container: String,
    /// As in [`Endpoint::names`].
    pub names: Vec<String>,
    /// What kind of interface it is to have.
    pub port: Port,
    /// Its address; any where `None`.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address; any where `None` and the network has IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// Its hardware address; one that goes with its address where `None`.
    pub mac: Option<Mac>,
    /// As in [`Endpoint::dns_servers`].
    pub dns_servers: Vec<IpAddr>,
    /// As in [`Endpoint::published`].
    pub published: Vec<Published>,
    /// As in [`Endpoint::egress`].
    pub egress: Option<Egress>,
}

/// The networks of one installation.
#[derive(Debug, Clone)]
pub struct Plane {
    store: Store,
    /// The run directory itself.
    run: PathBuf,
    /// What is in it of networks.
    live: PathBuf,
}

/// The lock of the networks, held.
struct Guard(File);

impl Plane {
    /// The networks below these directories of an installation.
    #[must_use]
    pub fn new(root: &std::path::Path, run: &std::path::Path) -> Self {
        Self {
            store: Store::new(root.join("networks")),
            run: run.to_owned(),
            live: run.join("networks"),
        }
    }

    /// The table of the rules, in which the sets of policies are.
    #[must_use]
    pub fn table(&self) -> String {
        rules::table(&self.run)
    }

    /// The file of a network's definition.
    #[must_use]
    pub fn definition_path(&self, id: &str) -> PathBuf {
        self.store.path(id)
    }

    /// The directory of a network that somebody is on.
    #[must_use]
    pub fn network_directory(&self, id: &str) -> PathBuf {
        self.live.join(id)
    }

    /// Every network that was made, by name.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn networks(&self) -> Result<Vec<Definition>, Error> {
        Ok(self.store.all()?)
    }

    /// Finds a network by name, ID or unique beginning of an ID.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn find(&self, wanted: &str) -> Result<Definition, Error> {
        Ok(self.store.find(wanted)?)
    }

    /// The network with this whole ID.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn definition(&self, id: &str) -> Result<Definition, Error> {
        let definition = self.store.read(id)?;
        Ok(definition.ok_or_else(|| StoreError::NotFound(id.to_owned()))?)
    }

    /// The default network; it is made where it is not there yet, with the ID that `new_id` gives.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::File`].
    pub fn default_network(&self, new_id: impl FnOnce() -> String) -> Result<Definition, Error> {
        match self.store.find(DEFAULT) {
            Err(StoreError::NotFound(_)) => {}
            other => return Ok(other?),
        }
        let _guard = self.lock()?;
        match self.store.find(DEFAULT) {
            Err(StoreError::NotFound(_)) => {}
            other => return Ok(other?),
        }
        let blueprint = Blueprint {
            name: DEFAULT.to_owned(),
            ..Blueprint::default()
        };
        let bridge = store::bridge_name(&self.run, None);
        Ok(self.store.create(&blueprint, new_id(), bridge)?)
    }

    /// Makes a network.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::File`].
    pub fn create(&self, blueprint: &Blueprint, id: String) -> Result<Definition, Error> {
        store::check_new(&blueprint.name)?;
        let _guard = self.lock()?;
        store::check_host(blueprint, &self.store.all()?)?;
        let bridge = store::bridge_name(&self.run, Some(&id));
        Ok(self.store.create(blueprint, id, bridge)?)
    }

    /// Removes a network that nobody is on.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::Store`], [`Error::File`], and those of putting right what a crash has left.
    pub fn remove(&self, wanted: &str, is_owned: Owners<'_>) -> Result<Definition, Error> {
        let definition = self.store.find(wanted)?;
        if definition.name == DEFAULT {
            return Err(StoreError::Predefined(definition.name).into());
        }
        let guard = self.lock()?;
        let mut endpoints = self.endpoints(&definition.id)?;
        let is_left = endpoints.is_empty() && self.has_record(&definition.id);
        if is_left || endpoints.iter().any(|endpoint| !is_owned(&endpoint.container)) {
            self.make_true(&guard, is_owned)?;
            endpoints = self.endpoints(&definition.id)?;
        }
        if !endpoints.is_empty() {
            let members: Vec<&str> = endpoints
                .iter()
                .map(|endpoint| {
                    endpoint
                        .names
                        .first()
                        .map_or(endpoint.container.as_str(), String::as_str)
                })
                .collect();
            return Err(Error::InUse {
                network: definition.name,
                members: members.join(", "),
            });
        }
        self.store.remove(&definition.id)?;
        // What it has refused its members, which were there until now.
        let directory = self.live.join(&definition.id);
        files::remove(&directory.join(resolver::process::LOG))?;
        let _ = std::fs::remove_dir(directory);
        Ok(definition)
    }

    /// Who is on a network.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn endpoints(&self, network: &str) -> Result<Vec<Endpoint>, Error> {
        let directory = self.directory(network);
        let mut endpoints = Vec::new();
        for container in files::names(&directory, ".json")? {
            match files::read::<Endpoint>(&directory.join(format!("{container}.json"))) {
                Ok(endpoint) => endpoints.extend(endpoint.filter(|endpoint| endpoint.version <= VERSION)),
                // Whatever it is, it is no member's.
                Err(files::Error::Malformed(..)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(endpoints)
    }

    /// The networks that a container is on, and how.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Store`].
    pub fn memberships(&self, container: &str) -> Result<Vec<(Definition, Endpoint)>, Error> {
        let mut memberships = Vec::new();
        for network in files::names(&self.live, "")? {
            let path = self.endpoint_path(&network, container);
            if let (Some(endpoint), Some(definition)) =
                (files::read::<Endpoint>(&path)?, self.store.read(&network)?)
            {
                memberships.push((definition, endpoint));
            }
        }
        Ok(memberships)
    }

    /// Puts a container on networks: gives it addresses, and makes the host ready. Its interfaces are the caller's to make, under
    /// the names in the answer. Either all of it is done or nothing.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn join(&self, wishes: &[Wish], is_owned: Owners<'_>) -> Result<Vec<(Definition, Endpoint)>, Error> {
        let guard = self.lock()?;
        let joined = self.admit_all(wishes);
        let outcome = joined.and_then(|joined| {
            let networks = joined.iter().map(|(definition, _)| definition.id.as_str());
            self.settle(&guard, networks, is_owned).map(|()| joined)
        });
        if outcome.is_err() {
            // What went wrong is worth more than what goes wrong with putting it right, which the next one tries again.
            let _ = self.withdraw(
                wishes
                    .iter()
                    .map(|wish| (wish.network.as_str(), wish.container.as_str())),
            );
            let _ = self.make_true(&guard, is_owned);
        }
        outcome
    }

    /// Takes a container off a network, or off all where `network` is `None`, and removes its interfaces there. One that is
    /// on none is fine.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn leave(&self, container: &str, network: Option<&str>, is_owned: Owners<'_>) -> Result<(), Error> {
        let of = match network {
            Some(network) => vec![network.to_owned()],
            None => files::names(&self.live, "")?,
        };
        let on: Vec<&String> = of
            .iter()
            .filter(|network| self.endpoint_path(network, container).exists())
            .collect();
        if on.is_empty() {
            return self.clear(&of, is_owned);
        }
        let guard = self.lock()?;
        self.withdraw(on.iter().map(|network| (network.as_str(), container)))?;
        self.settle(&guard, on.iter().map(|network| network.as_str()), is_owned)
    }

    /// Puts right what one has left that was killed on its way to networks or off them, if any.
    fn clear(&self, networks: &[String], is_owned: Owners<'_>) -> Result<(), Error> {
        for network in networks {
            if self.is_left(network)? {
                let guard = self.lock()?;
                // Whoever had the lock may just have done it.
                return if self.is_left(network)? {
                    self.make_true(&guard, is_owned)
                } else {
                    Ok(())
                };
            }
        }
        Ok(())
    }

    /// Whether there is something of a network that nobody is on, or rules of others than its members.
    fn is_left(&self, network: &str) -> Result<bool, Error> {
        let (whole, members) = (self.live.join(network), self.directory(network));
        let names = files::names(&members, ".json")?;
        if !names.is_empty() {
            return Ok(!self.are_on_record(network, &names)?);
        }
        let is_new = whole.is_dir() && files::names(&whole, "")?.is_empty();
        Ok(is_new || members.exists() || self.has_record(network))
    }

    /// Takes a container off a network that its published ports lead by, and lets them lead by another that it is on, in one
    /// step; gives how it is on that.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn hand_over(
        &self,
        container: &str,
        from: &str,
        to: &str,
        is_owned: Owners<'_>,
    ) -> Result<Option<Endpoint>, Error> {
        let guard = self.lock()?;
        let published: Option<Endpoint> = files::read(&self.endpoint_path(from, container))?;
        let heir: Option<Endpoint> = files::read(&self.endpoint_path(to, container))?;
        let heir = heir.map(|heir| Endpoint {
            published: published.map_or_else(Vec::new, |endpoint| endpoint.published),
            ..heir
        });
        if let Some(heir) = &heir {
            files::write(&self.endpoint_path(to, container), heir)?;
        }
        self.withdraw(std::iter::once((from, container)))?;
        self.settle(&guard, [from, to].into_iter(), is_owned)?;
        Ok(heir)
    }

    /// Gives a container another name of its own on the networks that it is on.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Store`].
    pub fn rename(&self, container: &str, name: &str) -> Result<(), Error> {
        if self.memberships(container)?.is_empty() {
            return Ok(());
        }
        let _guard = self.lock()?;
        for (definition, mut endpoint) in self.memberships(container)? {
            if let Some(own) = endpoint.names.first_mut() {
                *own = name.to_lowercase();
            }
            files::write(&self.endpoint_path(&definition.id, container), &endpoint)?;
        }
        Ok(())
    }

    /// Makes an interface a port of its network's bridge, and sets it up.
    ///
    /// # Errors
    /// [`Error::Link`].
    pub fn plug(&self, definition: &Definition, endpoint: &Endpoint) -> Result<(), Error> {
        let change = Change {
            master: Some(&definition.bridge),
            mtu: definition.mtu,
            up: true,
            ..Change::default()
        };
        Ok(Socket::open()?.change(&endpoint.interface, &change)?)
    }

    fn directory(&self, network: &str) -> PathBuf {
        self.network_directory(network).join(resolver::process::ENDPOINTS)
    }

    fn endpoint_path(&self, network: &str, container: &str) -> PathBuf {
        self.directory(network).join(format!("{container}.json"))
    }

    fn lock(&self) -> Result<Guard, Error> {
        files::make_directory(&self.live)?;
        let path = self.live.join("lock");
        let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC;
        let open = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map(File::from);
        let file = open.map_err(|error| files::error("open", &path)(error.into()))?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|error| files::error("lock", &path)(error.into()))?;
        Ok(Guard(file))
    }

    fn admit_all(&self, wishes: &[Wish]) -> Result<Vec<(Definition, Endpoint)>, Error> {
        let mut admitted = Vec::new();
        for wish in wishes {
            let definition = self.definition(&wish.network)?;
            let mut others = self.endpoints(&definition.id)?;
            others.retain(|endpoint| endpoint.container != wish.container);
            let endpoint = admit(&definition, wish, &others)?;
            files::make_directory(&self.directory(&definition.id))?;
            files::write(&self.endpoint_path(&definition.id, &wish.container), &endpoint)?;
            admitted.push((definition, endpoint));
        }
        Ok(admitted)
    }

    /// Removes members' files and interfaces.
    fn withdraw<'a>(&self, members: impl Iterator<Item = (&'a str, &'a str)>) -> Result<(), Error> {
        for (network, container) in members {
            let path = self.endpoint_path(network, container);
            let endpoint: Option<Endpoint> = match files::read(&path) {
                Err(files::Error::Malformed(..)) => None,
                other => other?,
            };
            if let Some(endpoint) = endpoint {
                // It goes with the namespace or process that has it, but that takes its time.
                Socket::open()?.remove(&endpoint.interface)?;
            }
            files::remove(&path)?;
            self.tidy(network)?;
        }
        Ok(())
    }

    /// Removes what is there of a network because of members, if it has none.
    fn tidy(&self, network: &str) -> Result<(), Error> {
        let directory = self.live.join(network);
        if files::remove_empty_directory(&directory.join(resolver::process::ENDPOINTS))? {
            for name in resolver::start::FILES {
                files::remove(&directory.join(name))?;
            }
            // What was refused is kept as long as the network is.
            let log = directory.join(resolver::process::LOG);
            if std::fs::metadata(&log).is_ok_and(|metadata| metadata.len() == 0) {
                files::remove(&log)?;
            }
            files::remove_empty_directory(&directory)?;
        }
        Ok(())
    }
}
