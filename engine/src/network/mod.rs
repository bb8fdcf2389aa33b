//! How containers are connected: what a person asks for, what of it is on record, and what it comes to when a container is
//! started.
//!
//! The crate rvm-network knows networks and their members; here is what only the engine knows: containers, who owns each, and
//! how either kind gets its interfaces.

mod files;
mod live;
mod own;
mod service;
mod verbs;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use rvm_network::{Plane, StoreError};
use serde::{Deserialize, Serialize};

use crate::inspect::Known;
use crate::record::{Isolation, Record};
use crate::store::{self, Store};
use crate::{Asset, json, names, path};

pub(crate) use live::{Connected, Running, Tap};
pub use rvm_network::definition::{Definition, Subnet};
pub use rvm_network::endpoint::Endpoint;
pub use rvm_network::{Addressing, Blueprint, DEFAULT, is_valid_name as is_valid_network_name};
pub(crate) use service::Ports;
pub use verbs::{Member, NetworkReport};
pub(crate) use verbs::{add, remove};

/// What a container is connected to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Mode {
    /// Nothing: it has a loopback interface alone.
    #[default]
    None,
    /// All that the host is connected to: it has no interfaces of its own.
    Host,
    /// What another container is: it has that one's interfaces. On record by its ID.
    Container(String),
    /// Networks, the first of which is the one that everything else is reached by.
    Networks(Vec<Attachment>),
}

/// A network that a container is on when it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Attachment {
    /// The network: as a person said it, on record by its ID.
    pub network: String,
    /// Names on it, beside the container's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The address that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Ipv4Addr>,
    /// Likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Addr>,
    /// The hardware address that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
}

/// How a container is connected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Networking {
    /// To what.
    pub mode: Mode,
    /// Servers that are asked for names of elsewhere; the host's where empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// Domains in which short names are looked up; the host's where empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_search: Vec<String>,
    /// Options of the resolver library.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_options: Vec<String>,
    /// Further lines of `/etc/hosts`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<(String, HostAddress)>,
}

/// The address of a line of `/etc/hosts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HostAddress {
    /// This one.
    Address(IpAddr),
    /// The host's on the container's first network.
    Gateway,
}

/// A hardware address of one station.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

/// Text that is no hardware address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid MAC address {0:?}: it is written 02:00:00:00:00:01, and is of one station")]
pub struct InvalidMac(String);

impl FromStr for MacAddress {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let invalid = || InvalidMac(text.to_owned());
        let part = |digits: &str| match digits.len() {
            2 => u8::from_str_radix(digits, 16)
                .ok()
                .filter(|_| !digits.starts_with('+')),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = text.split([':', '-']).map(part).collect();
        let mac: [u8; 6] = bytes
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(invalid)?;
        if mac == [0; 6] || mac.first().is_some_and(|first| first & 1 != 0) {
            return Err(invalid());
        }
        Ok(Self(mac))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = InvalidMac;

    fn try_from(text: String) -> Result<Self, InvalidMac> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits: Vec<String> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        formatter.write_str(&digits.join(":"))
    }
}

impl Networking {
    /// On the network that a container is on of which nobody says otherwise.
    #[must_use]
    pub fn on_default() -> Self {
        Self {
            mode: Mode::Networks(vec![Attachment {
                network: DEFAULT.to_owned(),
                ..Attachment::default()
            }]),
            ..Self::default()
        }
    }

    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Docker's `NetworkMode`.
    #[must_use]
    pub fn mode_name(&self, name_of: impl Fn(&str) -> String) -> String {
        match &self.mode {
            Mode::None => "none".to_owned(),
            Mode::Host => "host".to_owned(),
            Mode::Container(id) => format!("container:{id}"),
            Mode::Networks(networks) => networks
                .first()
                .map_or_else(|| "none".to_owned(), |first| name_of(&first.network)),
        }
    }

    /// The networks that it is on when it runs.
    #[must_use]
    pub fn attachments(&self) -> &[Attachment] {
        match &self.mode {
            Mode::Networks(networks) => networks,
            Mode::None | Mode::Host | Mode::Container(_) => &[],
        }
    }
}

/// Why a container cannot be connected as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The networks refused.
    #[error(transparent)]
    Network(#[from] rvm_network::Error),
    /// The containers refused.
    #[error(transparent)]
    Store(#[from] Box<store::Error>),
    /// Interfaces are made by root only.
    #[error("a container with a network needs root: interfaces and packet filter rules are made for it")]
    NotRoot,
    /// A guest has a kernel of its own, and its own interfaces.
    #[error("a virtual machine cannot use {0}: its kernel has a network of its own")]
    OfVm(&'static str),
    /// The same, the other way round.
    #[error("container {0} is a virtual machine: its network is its kernel's, and cannot be joined")]
    InVm(String),
    /// Docker's words.
    #[error("cannot join network of a non running container: {0}")]
    NotRunning(String),
    /// Docker's words.
    #[error("conflicting options: {0} and the network mode")]
    Conflict(&'static str),
    /// Docker's words.
    #[error("user specified IP address is supported on user defined networks only")]
    AddressOnDefault,
    /// The same network twice.
    #[error("network {0} is specified multiple times")]
    Twice(String),
    /// A network that is none.
    #[error("container cannot be connected to network {0}: it is no network of rvm's making")]
    Special(&'static str),
    /// Docker's words.
    #[error("endpoint with name {container} already exists in network {network}")]
    Connected {
        /// Who is to join it.
        container: String,
        /// The network.
        network: String,
    },
    /// Docker's words.
    #[error("container {container} is not connected to network {network}")]
    NotConnected {
        /// Who is to leave it.
        container: String,
        /// The network.
        network: String,
    },
    /// It has no networks to add to.
    #[error("container {0} has the network mode {1}: it cannot be connected to further networks")]
    Mode(String, String),
    /// A running machine has the devices that it was made with.
    #[error("container {0} is a running virtual machine: its network devices are made when it is started")]
    RunningVm(String),
    /// The supervisor refused, or could not be reached.
    #[error(transparent)]
    Control(#[from] crate::control::Error),
    /// Somebody else works on the container.
    #[error("container {0} is busy: another command uses it, or it is being started or ended")]
    Busy(String),
    /// The interface in the container could not be made.
    #[error(transparent)]
    Interface(#[from] rvm_isolation::NetworkError),
    /// A TAP interface could not be made.
    #[error("cannot make the interface {0} for the virtual machine")]
    Tap(String, #[source] std::io::Error),
    /// What another container has could not be found out.
    #[error("cannot use the network of container {0}")]
    Join(String, #[source] std::io::Error),
    /// A file of what another container has could not be used.
    #[error(transparent)]
    Json(#[from] json::Error),
    /// Ports of the host could not be had.
    #[error(transparent)]
    Ports(#[from] rvm_network::proxy::Error),
    /// A network has no resolver.
    #[error("nobody answers for names on the network")]
    Resolver(#[from] rvm_network::resolver::start::Error),
    /// The resolver's program is not there.
    #[error(transparent)]
    Asset(#[from] crate::LayoutError),
    /// There are no cgroups for the resolver.
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::Error),
    /// Nobody would start the resolver again.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// It has changed its networks, but knows nothing of it.
    #[error("the container is on other networks now, but its {} could not be changed", _0.display())]
    OwnFile(PathBuf, #[source] std::io::Error),
    /// The host's own files could not be read.
    #[error("cannot read {0}")]
    HostFile(&'static str, #[source] std::io::Error),
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Self::Store(Box::new(error))
    }
}

impl Error {
    /// Whether it is that there is no such network.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Network(rvm_network::Error::Store(StoreError::NotFound(_)))
        )
    }

    /// Whether it is that there is no such container, or none on that network.
    fn is_of_nobody(&self) -> bool {
        match self {
            Self::Store(error) => matches!(**error, store::Error::NotFound(_)),
            other => matches!(other, Self::NotConnected { .. }),
        }
    }

    /// What a person can do about it, where that is not obvious.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let without = "`--network none` makes a container that has a loopback interface alone";
        match self {
            Self::NotRoot => Some(format!("use sudo; {without}")),
            Self::Network(rvm_network::Error::Rules(rvm_network::NftError::Missing)) => {
                Some(format!("install the package nftables; {without}"))
            }
            error if error.is_not_found() => {
                Some("`rvm network ls` lists every network, `rvm network create NAME` makes one".to_owned())
            }
            Self::Network(rvm_network::Error::Store(StoreError::PoolExhausted(_))) => Some(
                "`rvm network prune` removes networks that no container uses; --subnet takes any other addresses"
                    .to_owned(),
            ),
            Self::Network(rvm_network::Error::Store(StoreError::OfHost { .. })) => {
                Some("without --subnet the network gets addresses that are free here".to_owned())
            }
            Self::Network(rvm_network::Error::Full(..)) => Some(
                "`rvm network inspect` lists who has them; a new network has more with a --subnet of fewer bits"
                    .to_owned(),
            ),
            Self::Asset(_) => {
                Some("scripts/build-guest builds it; RVM_ASSETS names the directory it is in".to_owned())
            }
            Self::OfVm(_) => {
                Some("a network of containers (`--network bridge`) connects both kinds".to_owned())
            }
            Self::RunningVm(name) => Some(format!(
                "`rvm stop {name}` first: what is connected then is there at its next start"
            )),
            _ => None,
        }
    }
}

impl Store {
    /// The networks of this installation.
    pub(crate) fn networks(&self) -> Plane {
        Plane::new(self.layout.root(), self.layout.run())
    }

    /// Whether somebody owns the container; where that cannot be found out, it is taken for granted.
    pub(crate) fn is_owned(&self, id: &str) -> bool {
        match self.own(id) {
            Ok(owned) => owned.is_none(),
            Err(store::Error::Path(path::Error { source, .. })) => {
                source.kind() != std::io::ErrorKind::NotFound
            }
            Err(_) => true,
        }
    }

    /// Gives a container another name on its networks.
    pub(crate) fn rename_on_networks(&self, id: &str, name: &str) -> Result<(), store::Error> {
        let renamed = self.networks().rename(id, name);
        renamed.map_err(|source| store::Error::Networks(id.to_owned(), Box::new(source)))
    }

    /// The host name that goes with a network that is another's.
    pub(crate) fn shared_hostname(&self, mode: &Mode) -> Result<Option<String>, store::Error> {
        Ok(match mode {
            Mode::Host => Some(rustix::system::uname().nodename().to_string_lossy().into_owned()),
            Mode::Container(other) => self.read_spec(other)?.hostname().clone(),
            Mode::None | Mode::Networks(_) => None,
        })
    }

    /// What is known of a container's networks.
    pub(crate) fn known_networks(&self, id: &str) -> Result<Known, Error> {
        let plane = self.networks();
        Ok(Known {
            definitions: plane.networks()?,
            members: plane.memberships(id)?,
        })
    }

    /// Takes a container off all of its networks, where it is on any.
    pub(crate) fn leave_networks(&self, id: &str) -> Result<(), store::Error> {
        let left = self.networks().leave(id, None, &|other| self.is_owned(other));
        left.map_err(|source| store::Error::Networks(id.to_owned(), Box::new(source)))
    }
}

/// Checks what a new container is to be connected to, and replaces names by IDs.
pub(crate) fn resolve(
    store: &Store,
    wanted: &Networking,
    isolation: Isolation,
    has_hostname: bool,
) -> Result<Networking, Error> {
    if !matches!(wanted.mode, Mode::None) && !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let mode = match &wanted.mode {
        Mode::None => Mode::None,
        Mode::Host if isolation == Isolation::Vm => return Err(Error::OfVm("the host's network")),
        Mode::Host => Mode::Host,
        Mode::Container(_) if isolation == Isolation::Vm => {
            return Err(Error::OfVm("another container's network"));
        }
        Mode::Container(_) if has_hostname => return Err(Error::Conflict("hostname")),
        Mode::Container(_) if !wanted.dns.is_empty() => return Err(Error::Conflict("dns")),
        Mode::Container(_) if !wanted.hosts.is_empty() => {
            return Err(Error::Conflict("custom host-to-IP mapping"));
        }
        Mode::Container(other) => {
            let other = store.find(other)?;
            if other.isolation == Isolation::Vm {
                return Err(Error::InVm(other.name));
            }
            Mode::Container(other.id)
        }
        Mode::Networks(networks) => {
            Asset::Resolver.find()?;
            Mode::Networks(resolve_all(&store.networks(), networks)?)
        }
    };
    if let Mode::Networks(_) = mode {
        rvm_network::require_nft().map_err(rvm_network::Error::from)?;
    }
    Ok(Networking {
        mode,
        ..wanted.clone()
    })
}

fn resolve_all(plane: &Plane, wanted: &[Attachment]) -> Result<Vec<Attachment>, Error> {
    let mut resolved: Vec<Attachment> = Vec::new();
    for attachment in wanted {
        let definition = find(plane, &attachment.network)?;
        check_addresses(&definition, attachment)?;
        if resolved.iter().any(|other| other.network == definition.id) {
            return Err(Error::Twice(definition.name));
        }
        resolved.push(Attachment {
            network: definition.id,
            ..attachment.clone()
        });
    }
    Ok(resolved)
}

/// Checks that a container can have the addresses that are asked for, before it is to have them.
fn check_addresses(definition: &Definition, attachment: &Attachment) -> Result<(), Error> {
    let Attachment { ipv4, ipv6, .. } = *attachment;
    if definition.name == DEFAULT && (ipv4.is_some() || ipv6.is_some()) {
        return Err(Error::AddressOnDefault);
    }
    Ok(rvm_network::check_addresses(definition, ipv4, ipv6)?)
}

/// Finds a network; the default one is made for it.
pub(crate) fn find(plane: &Plane, wanted: &str) -> Result<Definition, Error> {
    match wanted {
        "host" => Err(Error::Special("host")),
        "none" => Err(Error::Special("none")),
        DEFAULT => Ok(plane.default_network(names::new_id)?),
        other => Ok(plane.find(other)?),
    }
}

/// Every name that a container is found by on a network.
pub(crate) fn names_of(record: &Record, attachment: &Attachment) -> Vec<String> {
    let short = record.id.get(..names::SHORT_ID).unwrap_or(&record.id);
    let mut names = vec![record.name.to_lowercase(), short.to_owned()];
    for alias in &attachment.aliases {
        let alias = alias.to_lowercase();
        if !names.contains(&alias) {
            names.push(alias);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_of_one_station() {
        let mac: MacAddress = "02:00:00:aB:00:01".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:00:ab:00:01");
        assert_eq!(serde_json::to_string(&mac).unwrap(), r#""02:00:00:ab:00:01""#);
        for text in [
            "",
            "02:00:00:00:00",
            "01:00:00:00:00:01",
            "00:00:00:00:00:00",
            "2:0:0:0:0:1",
            "+2:00:00:00:00:01",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_on_record_is_frozen() {
        let check = |networking: &Networking, json: &str| {
            assert_eq!(serde_json::to_string(networking).unwrap(), json);
            assert_eq!(&serde_json::from_str::<Networking>(json).unwrap(), networking);
        };
        check(&Networking::default(), r#"{"mode":"none"}"#);
        let attachment = Attachment {
            network: "ab".into(),
            aliases: vec!["db".into()],
            ipv4: Some(Ipv4Addr::new(10, 0, 0, 9)),
            ..Attachment::default()
        };
        let networking = Networking {
            mode: Mode::Networks(vec![attachment]),
            hosts: vec![("h".into(), HostAddress::Gateway)],
            ..Networking::default()
        };
        check(
            &networking,
            r#"{"mode":{"networks":[{"network":"ab","aliases":["db"],"ipv4":"10.0.0.9"}]},"hosts":[["h","gateway"]]}"#,
        );
        assert_eq!(networking.mode_name(|id| format!("name-of-{id}")), "name-of-ab");
    }
}
