//! The networks of an installation: `ROOT/networks/ID.json`, and the rules by which one is made.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use rvm_netlink::Socket;

use crate::address::{Address, bounds, overlap};
use crate::definition::{Definition, Subnet, VERSION};
use crate::random::random;
use crate::{files, rules};

/// The network that containers are on where nobody said otherwise. It is made when it is first needed.
pub const DEFAULT: &str = "bridge";

/// Names that stand for something else than a network of the store.
const RESERVED: [&str; 3] = ["host", "none", "default"];

/// Networks that are given out where none is asked for: /24s of 10.87.0.0 to 10.94.255.255.
const POOL: std::ops::RangeInclusive<u8> = 87..=94;

/// What the default network gets, if it can: a /20 of 10.80.0.0 to 10.86.255.255. A bridge has 1023 ports at most.
const DEFAULT_POOL: std::ops::RangeInclusive<u8> = 80..=86;

/// The longest prefix of a network: six addresses, of which four are left to members.
const LONGEST_PREFIX: u8 = 29;

/// The longest prefix of a network of IPv6.
const LONGEST_PREFIX_V6: u8 = 125;

/// Why a network could not be made, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] files::Error),
    /// The host's interfaces could not be looked at.
    #[error("cannot find out which addresses this machine uses")]
    Host(#[from] rvm_netlink::Error),
    /// The definition was written by a newer rvm.
    #[error("network {0} was made by a newer rvm")]
    Newer(String),
    /// Docker's words.
    #[error("network {0} not found")]
    NotFound(String),
    /// Several IDs begin with this.
    #[error("several networks have an ID that begins with {0}")]
    Ambiguous(String),
    /// Docker's words.
    #[error("network with name {0} already exists")]
    NameTaken(String),
    /// Docker's rule.
    #[error(
        "\"{0}\" cannot name a network: use letters, digits, '_', '.' and '-', the first a letter or a digit"
    )]
    NameInvalid(String),
    /// Docker's words.
    #[error("operation is not permitted on predefined {0} network")]
    Reserved(String),
    /// Docker's words.
    #[error("{0} is a pre-defined network and cannot be removed")]
    Predefined(String),
    /// Docker's words.
    #[error(
        "could not find an available, non-overlapping {0} address pool among the defaults to assign to the network"
    )]
    PoolExhausted(&'static str),
    /// Docker's words, and with whom.
    #[error("Pool overlaps with other one on this address space: {subnet} with that of network {other}")]
    Overlap {
        /// What was asked for.
        subnet: String,
        /// Whose it is.
        other: String,
    },
    /// This machine is on it, and would not reach it any more.
    #[error("invalid subnet {subnet}: this machine's interface {interface} has {address}")]
    OfHost {
        /// What was asked for.
        subnet: String,
        /// The interface.
        interface: String,
        /// Its address, and the length of the prefix.
        address: String,
    },
    /// The subnet or what is in it makes no sense.
    #[error("invalid subnet {subnet}: {reason}")]
    Subnet {
        /// What was asked for.
        subnet: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Gateway or range without a subnet.
    #[error("{0} needs a --subnet that it is in")]
    NoSubnet(&'static str),
    /// An MTU that no interface can have.
    #[error("invalid MTU {mtu}: an interface here has 68 to 65521{}", if *ipv6 { ", with IPv6 at least 1280" } else { "" })]
    Mtu {
        /// What was asked for.
        mtu: u16,
        /// Whether the network has IPv6.
        ipv6: bool,
    },
}

/// The addresses that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addressing<A> {
    /// The network and the length of its prefix.
    pub subnet: Option<(A, u8)>,
    /// The host's address in it; its first where `None`.
    pub gateway: Option<A>,
    /// Where members' addresses are taken from.
    pub range: Option<(A, u8)>,
}

impl<A> Default for Addressing<A> {
    fn default() -> Self {
        Self {
            subnet: None,
            gateway: None,
            range: None,
        }
    }
}

/// A network to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blueprint {
    /// Its name.
    pub name: String,
    /// Its IPv4 addresses.
    pub ipv4: Addressing<Ipv4Addr>,
    /// Its IPv6 addresses.
    pub ipv6: Addressing<Ipv6Addr>,
    /// Whether it has IPv6 although no subnet of it was named.
    pub has_ipv6: bool,
    /// Whether it leads nowhere but to its members.
    pub internal: bool,
    /// Largest packet in bytes.
    pub mtu: Option<u16>,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
}

/// Whether a network can have this name.
#[must_use]
pub fn is_valid_name(name: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let first = name.bytes().next();
    name.len() <= 255 && first.is_some_and(|byte| byte.is_ascii_alphanumeric()) && name.bytes().all(is_fine)
}

/// The definitions. The caller holds the lock of the networks where it changes something.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    directory: PathBuf,
}

impl Store {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The file of a network.
    pub(crate) fn path(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }

    /// Every network, by name.
    pub(crate) fn all(&self) -> Result<Vec<Definition>, StoreError> {
        let mut all = Vec::new();
        for id in files::names(&self.directory, ".json")? {
            all.extend(self.read(&id)?);
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    /// The network with this whole ID.
    pub(crate) fn read(&self, id: &str) -> Result<Option<Definition>, StoreError> {
        #[derive(serde::Deserialize)]
        struct Versioned {
            version: u32,
        }
        let path = self.path(id);
        match files::read::<Versioned>(&path)? {
            Some(Versioned { version }) if version > VERSION => Err(StoreError::Newer(id.to_owned())),
            Some(_) => Ok(files::read(&path)?),
            None => Ok(None),
        }
    }

    /// Finds a network by name, ID or unique beginning of an ID.
    pub(crate) fn find(&self, wanted: &str) -> Result<Definition, StoreError> {
        // Not all of them are read where it is clear which one is meant.
        let is_id = wanted.len() == 64 && wanted.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_id && let Some(found) = self.read(wanted)? {
            return Ok(found);
        }
        let mut all = self.all()?;
        let exact = all
            .iter()
            .position(|network| network.name == wanted || network.id == wanted);
        if let Some(index) = exact {
            return Ok(all.swap_remove(index));
        }
        all.retain(|network| !wanted.is_empty() && network.id.starts_with(wanted));
        match (all.pop(), all.is_empty()) {
            (Some(network), true) => Ok(network),
            (Some(_), false) => Err(StoreError::Ambiguous(wanted.to_owned())),
            (None, _) => Err(StoreError::NotFound(wanted.to_owned())),
        }
    }

    /// Makes a network.
    pub(crate) fn create(
        &self,
        blueprint: &Blueprint,
        id: String,
        bridge: String,
    ) -> Result<Definition, StoreError> {
        let name = &blueprint.name;
        if !is_valid_name(name) {
            return Err(StoreError::NameInvalid(name.clone()));
        }
        let others = self.all()?;
        if others.iter().any(|other| other.name == *name) {
            return Err(StoreError::NameTaken(name.clone()));
        }
        let wants_v6 = blueprint.has_ipv6 || blueprint.ipv6.subnet.is_some();
        if let Some(mtu) = blueprint.mtu {
            let least = if wants_v6 { 1280 } else { 68 };
            if !(least..=65521).contains(&mtu) {
                return Err(StoreError::Mtu { mtu, ipv6: wants_v6 });
            }
        }
        let definition = Definition {
            version: VERSION,
            id,
            name: name.clone(),
            created_ms: now_ms(),
            bridge,
            ipv4: ipv4(name, blueprint.ipv4, &others)?,
            ipv6: if wants_v6 {
                Some(ipv6(blueprint.ipv6, &others)?)
            } else {
                unused(&blueprint.ipv6)?;
                None
            },
            internal: blueprint.internal,
            mtu: blueprint.mtu,
            labels: blueprint.labels.clone(),
        };
        files::make_directory(&self.directory)?;
        files::write(&self.path(&definition.id), &definition)?;
        Ok(definition)
    }

    /// Removes a network.
    pub(crate) fn remove(&self, id: &str) -> Result<(), StoreError> {
        files::remove(&self.path(id))?;
        Ok(())
    }
}

/// Checks that no interface of this machine is on a subnet that is asked for, but for bridges of networks: those have a message
/// of their own. Routes may lead there: what is nearer comes first.
pub(crate) fn check_host(blueprint: &Blueprint, networks: &[Definition]) -> Result<(), StoreError> {
    if blueprint.ipv4.subnet.is_none() && blueprint.ipv6.subnet.is_none() {
        return Ok(());
    }
    let mut host = Socket::open()?;
    let links = host.links()?;
    for (index, (address, prefix)) in host.addresses()? {
        let subnet = match (address, blueprint.ipv4.subnet, blueprint.ipv6.subnet) {
            (IpAddr::V4(address), Some(asked), _) if overlap(asked, (address, prefix)) => {
                format!("{}/{}", asked.0, asked.1)
            }
            (IpAddr::V6(address), _, Some(asked)) if overlap(asked, (address, prefix)) => {
                format!("{}/{}", asked.0, asked.1)
            }
            _ => continue,
        };
        let name = links
            .iter()
            .find(|link| link.index == index)
            .map(|link| link.name.clone());
        let interface = name.unwrap_or_else(|| index.to_string());
        if !networks.iter().any(|network| network.bridge == interface) {
            return Err(StoreError::OfHost {
                subnet,
                interface,
                address: format!("{address}/{prefix}"),
            });
        }
    }
    Ok(())
}

/// Whether a user may make a network of this name.
pub(crate) fn check_new(name: &str) -> Result<(), StoreError> {
    if name == DEFAULT || RESERVED.contains(&name) {
        Err(StoreError::Reserved(name.to_owned()))
    } else {
        Ok(())
    }
}

/// The bridge of the default network, and of one with this ID.
pub(crate) fn bridge_name(run: &std::path::Path, id: Option<&str>) -> String {
    match id {
        // Random, so that it is another one's as good as never, in whichever installation.
        Some(id) => format!("rvmb{}", id.get(..8).unwrap_or(id)),
        None => rules::installation(run).map_or_else(|| "rvm0".to_owned(), |other| format!("rvm0-{other}")),
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn unused(asked: &Addressing<Ipv6Addr>) -> Result<(), StoreError> {
    match (asked.gateway, asked.range) {
        (Some(_), _) => Err(StoreError::NoSubnet("--gateway")),
        (_, Some(_)) => Err(StoreError::NoSubnet("--ip-range")),
        (None, None) => Ok(()),
    }
}

fn ipv4(
    name: &str,
    asked: Addressing<Ipv4Addr>,
    others: &[Definition],
) -> Result<Subnet<Ipv4Addr>, StoreError> {
    let theirs: Vec<(&str, (Ipv4Addr, u8))> = others
        .iter()
        .map(|other| (other.name.as_str(), (other.ipv4.address, other.ipv4.prefix)))
        .collect();
    if asked.subnet.is_some() {
        return lay_out(asked, LONGEST_PREFIX, &theirs);
    }
    let mut used: Vec<(Ipv4Addr, u8)> = theirs.iter().map(|(_, subnet)| *subnet).collect();
    let mut host = Socket::open()?;
    let mut note = |address, prefix| {
        if let IpAddr::V4(address) = address {
            used.push((address, prefix));
        }
    };
    for (_, (address, prefix)) in host.addresses()? {
        note(address, prefix);
    }
    for (address, prefix) in host.routes()? {
        note(address, prefix);
    }
    let candidates = |seconds: std::ops::RangeInclusive<u8>, step: usize, prefix: u8| {
        seconds.flat_map(move |second| {
            let thirds = (0..=u8::MAX).step_by(step);
            thirds.map(move |third| (Ipv4Addr::new(10, second, third, 0), prefix))
        })
    };
    let large = candidates(DEFAULT_POOL, 16, 20).filter(|_| name == DEFAULT);
    let free = large
        .chain(candidates(POOL, 1, 24))
        .find(|candidate| !used.iter().any(|subnet| overlap(*candidate, *subnet)));
    let asked = Addressing {
        subnet: Some(free.ok_or(StoreError::PoolExhausted("IPv4"))?),
        ..asked
    };
    if asked.gateway.is_some() {
        return Err(StoreError::NoSubnet("--gateway"));
    }
    if asked.range.is_some() {
        return Err(StoreError::NoSubnet("--ip-range"));
    }
    lay_out(asked, LONGEST_PREFIX, &theirs)
}

fn ipv6(asked: Addressing<Ipv6Addr>, others: &[Definition]) -> Result<Subnet<Ipv6Addr>, StoreError> {
    let theirs: Vec<(&str, (Ipv6Addr, u8))> = others
        .iter()
        .filter_map(|other| Some((other.name.as_str(), other.ipv6.as_ref()?)))
        .map(|(name, subnet)| (name, (subnet.address, subnet.prefix)))
        .collect();
    if asked.subnet.is_none() {
        unused(&asked)?;
    }
    // RFC 4193: 40 random bits make it unlikely that anybody else has it; 16 more are the subnet's.
    let [a, b, c, d, e, f, g] = random::<7>();
    let drawn = Ipv6Addr::from([0xfd, a, b, c, d, e, f, g, 0, 0, 0, 0, 0, 0, 0, 0]);
    let asked = Addressing {
        subnet: Some(asked.subnet.unwrap_or((drawn, 64))),
        ..asked
    };
    lay_out(asked, LONGEST_PREFIX_V6, &theirs)
}

/// Decides who has which address of a subnet that was named.
fn lay_out<A: Address>(
    asked: Addressing<A>,
    longest: u8,
    theirs: &[(&str, (A, u8))],
) -> Result<Subnet<A>, StoreError> {
    let (address, prefix) = asked.subnet.ok_or(StoreError::NoSubnet("a network"))?;
    let text = format!("{}/{prefix}", address.into());
    let wrong = |reason: String| StoreError::Subnet {
        subnet: text.clone(),
        reason,
    };
    let (first, last) = bounds(address, prefix);
    let shortest = if A::BITS == 32 { 8 } else { 16 };
    if !(shortest..=longest).contains(&prefix) {
        return Err(wrong(format!("its prefix has {shortest} to {longest} bits")));
    }
    if first != address {
        return Err(wrong(format!("the network is {}/{prefix}", first.into())));
    }
    let plain = address.into();
    let is_of_link = matches!(plain, IpAddr::V6(address) if address.is_unicast_link_local());
    if plain.is_loopback() || plain.is_multicast() || plain.is_unspecified() || is_of_link {
        return Err(wrong("no network can have these addresses".to_owned()));
    }
    if let Some((other, _)) = theirs
        .iter()
        .find(|(_, theirs)| overlap((address, prefix), *theirs))
    {
        return Err(StoreError::Overlap {
            subnet: text,
            other: (*other).to_owned(),
        });
    }
    let step = |address: A, by: i8| A::of(address.number().wrapping_add_signed(by.into()));
    let gateway = asked.gateway.unwrap_or_else(|| step(first, 1));
    if gateway <= first || gateway >= last {
        return Err(wrong(format!(
            "the gateway {} is no host's address in it",
            gateway.into()
        )));
    }
    if let Some((start, length)) = asked.range {
        let (start, end) = bounds(start, length);
        if length > A::BITS || start < first || end > last {
            return Err(wrong(format!("the range {}/{length} is not in it", start.into())));
        }
    }
    let resolver = [step(last, -1), step(last, -2)]
        .into_iter()
        .find(|candidate| *candidate != gateway);
    Ok(Subnet {
        address,
        prefix,
        gateway,
        resolver: resolver.unwrap_or(gateway),
        range: asked.range,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("networks"));
        (directory, store)
    }

    fn blueprint(name: &str) -> Blueprint {
        Blueprint {
            name: name.into(),
            ..Blueprint::default()
        }
    }

    fn make(store: &Store, blueprint: &Blueprint) -> Result<Definition, String> {
        let id = random::<32>()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>();
        let bridge = format!("rvmb{}", &id[..8]);
        store
            .create(blueprint, id, bridge)
            .map_err(|error| error.to_string())
    }

    fn with(name: &str, subnet: &str, gateway: Option<&str>, range: Option<&str>) -> Blueprint {
        let network = |text: &str| {
            let (address, prefix) = text.split_once('/').unwrap();
            (address.parse().unwrap(), prefix.parse().unwrap())
        };
        let ipv4 = Addressing {
            subnet: Some(network(subnet)),
            gateway: gateway.map(|text| text.parse().unwrap()),
            range: range.map(network),
        };
        Blueprint {
            ipv4,
            ..blueprint(name)
        }
    }

    #[test]
    fn networks_of_the_pool_do_not_overlap() {
        let (_directory, store) = store();
        let one = make(&store, &blueprint("one")).unwrap();
        let two = make(&store, &blueprint("two")).unwrap();
        assert_ne!(one.ipv4.address, two.ipv4.address);
        assert_eq!(one.ipv4.prefix, 24);
        assert_eq!(one.ipv4.gateway.octets()[3], 1);
        assert_eq!(one.ipv4.resolver.octets()[3], 254);
        assert_eq!(one.ipv6, None);
        let default = make(&store, &blueprint(DEFAULT)).unwrap();
        assert_eq!(default.ipv4.prefix, 20);
        assert_eq!(default.ipv4.gateway.octets()[3], 1);
        store.remove(&default.id).unwrap();
        assert_eq!(store.find("one").unwrap(), one);
        assert_eq!(store.find(&two.id[..12]).unwrap(), two);
        assert_eq!(store.all().unwrap().len(), 2);
        assert_eq!(
            make(&store, &blueprint("one")).unwrap_err(),
            "network with name one already exists"
        );
        store.remove(&one.id).unwrap();
        assert_eq!(
            store.find("one").unwrap_err().to_string(),
            "network one not found"
        );
    }

    #[test]
    fn a_subnet_is_laid_out_as_asked() {
        let (_directory, store) = store();
        let made = make(
            &store,
            &with("a", "192.168.7.0/24", None, Some("192.168.7.64/26")),
        )
        .unwrap();
        assert_eq!(made.ipv4.gateway, Ipv4Addr::new(192, 168, 7, 1));
        assert_eq!(made.ipv4.range, Some((Ipv4Addr::new(192, 168, 7, 64), 26)));
        let made = make(&store, &with("b", "192.168.8.0/29", Some("192.168.8.6"), None)).unwrap();
        assert_eq!(made.ipv4.resolver, Ipv4Addr::new(192, 168, 8, 5));
        let random = make(
            &store,
            &Blueprint {
                has_ipv6: true,
                ..blueprint("c")
            },
        )
        .unwrap();
        let subnet = random.ipv6.unwrap();
        assert_eq!((subnet.address.octets()[0], subnet.prefix), (0xfd, 64));
        assert!(subnet.contains(subnet.gateway) && subnet.contains(subnet.resolver));
    }

    #[test]
    fn what_makes_no_network_is_refused() {
        let (_directory, store) = store();
        make(&store, &with("taken", "192.168.7.0/24", None, None)).unwrap();
        let check = |blueprint: &Blueprint, expected: &str| {
            let error = make(&store, blueprint).unwrap_err();
            assert_eq!(error, expected);
        };
        check(
            &with("x", "192.168.0.0/16", None, None),
            "Pool overlaps with other one on this address space: 192.168.0.0/16 with that of network taken",
        );
        check(
            &with("x", "10.0.0.1/24", None, None),
            "invalid subnet 10.0.0.1/24: the network is 10.0.0.0/24",
        );
        check(
            &with("x", "10.0.0.0/30", None, None),
            "invalid subnet 10.0.0.0/30: its prefix has 8 to 29 bits",
        );
        check(
            &with("x", "10.0.0.0/24", Some("10.0.1.1"), None),
            "invalid subnet 10.0.0.0/24: the gateway 10.0.1.1 is no host's address in it",
        );
        check(
            &with("x", "10.0.0.0/24", None, Some("10.0.1.0/25")),
            "invalid subnet 10.0.0.0/24: the range 10.0.1.0/25 is not in it",
        );
        check(
            &with("x", "127.1.0.0/24", None, None),
            "invalid subnet 127.1.0.0/24: no network can have these addresses",
        );
        let gateway = Some(Ipv4Addr::new(10, 0, 0, 1));
        let ipv4 = Addressing {
            gateway,
            ..Addressing::default()
        };
        check(
            &Blueprint {
                ipv4,
                ..blueprint("x")
            },
            "--gateway needs a --subnet that it is in",
        );
        check(
            &Blueprint {
                mtu: Some(60),
                ..blueprint("x")
            },
            "invalid MTU 60: an interface here has 68 to 65521",
        );
        for name in ["", "-a", "a/b", "a b", "..", "\u{e4}"] {
            assert!(
                make(&store, &blueprint(name))
                    .unwrap_err()
                    .contains("cannot name a network"),
                "{name}"
            );
        }
    }

    #[test]
    fn some_names_are_taken_for_ever() {
        for name in ["bridge", "host", "none", "default"] {
            let error = check_new(name).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("operation is not permitted on predefined {name} network")
            );
        }
    }

    #[test]
    fn a_newer_definition_is_refused() {
        let (_directory, store) = store();
        let made = make(&store, &blueprint("new")).unwrap();
        let path = store.directory.join(format!("{}.json", made.id));
        let newer = std::fs::read_to_string(&path)
            .unwrap()
            .replace("\"version\":1", "\"version\":2,\"more\":1");
        std::fs::write(&path, newer).unwrap();
        assert!(matches!(store.all(), Err(StoreError::Newer(_))));
    }
}
