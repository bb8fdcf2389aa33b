//! Making the host's bridges and rules what they have to be for who is on which network.
//!
//! Who joins or leaves changes what is of its own networks ([`Plane::settle`]). For that, each network has on record what of it
//! is in the tables: `RUN/networks/ID/rules.json`. It says so before the kernel is told, too, so that whoever comes after one
//! that was killed in between knows that the record may not be true. Then, where a member has no owner any more, and where
//! the kernel refuses a change because somebody else has removed what it is of, everything is made anew ([`Plane::make_true`]).

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use rvm_netlink::{Change, Socket};
use serde::{Deserialize, Serialize};

use super::{Error, Guard, Owners, Plane};
use crate::address::mac_of;
use crate::definition::Definition;
use crate::endpoint::Endpoint;
use crate::nft::{NftError, nft};
use crate::rules::{self, Live};
use crate::{conntrack, files, host};

/// Version of the record.
const VERSION: u32 = 1;

/// The record's name.
pub(super) const RECORD: &str = "rules.json";

/// What of a network is in the tables.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// [`VERSION`].
    version: u32,
    /// Whether all of it is there, and nothing else. Otherwise somebody has begun to change it.
    settled: bool,
    live: Live,
}

/// What is known of a network's rules.
enum Known {
    Settled(Option<Live>),
    /// At most this is there.
    Unsettled(Live),
    /// The record cannot be read.
    Unknown,
}

impl Plane {
    /// Makes the host what it has to be after members of these networks have changed.
    pub(super) fn settle<'a>(
        &self,
        guard: &Guard,
        networks: impl Iterator<Item = &'a str>,
        is_owned: Owners<'_>,
    ) -> Result<(), Error> {
        let networks: BTreeSet<&str> = networks.collect();
        if self.is_anyone_abandoned(is_owned)? {
            return self.make_true(guard, is_owned);
        }
        let mut changes = Vec::new();
        for network in networks {
            let Known::Settled(before) = self.known(network)? else {
                return self.make_true(guard, is_owned);
            };
            changes.push((network, before, self.living_of(network)?));
        }
        match self.change(guard, &changes) {
            Err(Error::Rules(NftError::Refused(_))) => self.make_true(guard, is_owned),
            other => other,
        }
    }

    /// Makes the host what it has to be for all networks, whatever it is now, after members without an owner were removed.
    pub(super) fn make_true(&self, guard: &Guard, is_owned: Owners<'_>) -> Result<(), Error> {
        let living = self.living(is_owned)?;
        let (mut known, mut settled, mut trusted) = (Vec::new(), Vec::new(), true);
        for network in files::names(&self.live, "")? {
            match self.known(&network)? {
                Known::Settled(live) => settled.extend(live),
                Known::Unsettled(live) => known.push(live),
                Known::Unknown => trusted = false,
            }
        }
        known.extend(settled.iter().cloned());
        for live in &living {
            let before = known
                .iter()
                .find(|known| known.definition.id == live.definition.id);
            self.write_record(false, &union(before, live))?;
        }
        self.bridges(&living)?;
        let table = self.table();
        match nft(&rules::rebuild(&table, &known, &living, trusted), &guard.0) {
            // It is not what any rvm has made.
            Err(NftError::Refused(_)) if trusted => {
                nft(&rules::rebuild(&table, &known, &living, false), &guard.0)?
            }
            other => other?,
        }
        // Of a network whose record is not settled, nobody knows for whom it has been done.
        forget_gone(&known, &living)?;
        forget_before(&settled, &living)?;
        for live in &living {
            self.write_record(true, live)?;
        }
        let ids: BTreeSet<&str> = living.iter().map(|live| live.definition.id.as_str()).collect();
        for network in files::names(&self.live, "")? {
            if !ids.contains(network.as_str()) {
                self.remove_record(&network)?;
            }
        }
        Ok(())
    }

    /// Changes rules and bridges of networks from what is on record to what is to be.
    fn change(&self, guard: &Guard, changes: &[(&str, Option<Live>, Option<Live>)]) -> Result<(), Error> {
        for (_, before, after) in changes {
            if let Some(live) = after {
                // Before there is a bridge, so that it goes if this is killed.
                self.write_record(false, &union(before.as_ref(), live))?;
                ensure_bridge(&mut Socket::open()?, &live.definition)?;
            } else if let Some(live) = before {
                self.write_record(false, live)?;
            }
        }
        let is_last = changes.iter().all(|(_, _, after)| after.is_none())
            && files::names(&self.live, "")?.iter().all(|network| {
                changes.iter().any(|(changed, ..)| changed == network) || !self.record_path(network).exists()
            });
        let table = self.table();
        let script = if is_last {
            rules::rebuild(&table, &[], &[], true)
        } else {
            let changes: Vec<rules::Change<'_>> = changes
                .iter()
                .map(|(_, before, after)| (before.as_ref(), after.as_ref()))
                .collect();
            rules::change(&table, &changes)
        };
        if !script.is_empty() {
            nft(&script, &guard.0)?;
        }
        for (_, before, after) in changes {
            forget_gone(before.as_slice(), after.as_slice())?;
            forget_before(before.as_slice(), after.as_slice())?;
        }
        for (network, before, after) in changes {
            match after {
                Some(live) => self.write_record(true, live)?,
                None => {
                    // The record last, so that what this leaves if it is killed is known.
                    if let Some(live) = before {
                        Socket::open()?.remove(&live.definition.bridge)?;
                    }
                    self.remove_record(network)?;
                }
            }
        }
        Ok(())
    }

    /// Whether a network's rules are on record.
    pub(super) fn has_record(&self, network: &str) -> bool {
        self.record_path(network).exists()
    }

    /// Whether the rules of a network are on record as done, and are those of these containers.
    pub(super) fn are_on_record(&self, network: &str, containers: &[String]) -> Result<bool, Error> {
        let Known::Settled(Some(live)) = self.known(network)? else {
            return Ok(false);
        };
        let of_rules: BTreeSet<&str> = live
            .endpoints
            .iter()
            .map(|endpoint| endpoint.container.as_str())
            .collect();
        let there: BTreeSet<&str> = containers.iter().map(String::as_str).collect();
        Ok(of_rules == there)
    }

    fn record_path(&self, network: &str) -> std::path::PathBuf {
        self.live.join(network).join(RECORD)
    }

    fn known(&self, network: &str) -> Result<Known, Error> {
        match files::read::<Record>(&self.record_path(network)) {
            Ok(None) => Ok(Known::Settled(None)),
            Ok(Some(Record {
                version: VERSION,
                settled: true,
                live,
            })) => Ok(Known::Settled(Some(live))),
            Ok(Some(Record {
                version: VERSION,
                live,
                ..
            })) => Ok(Known::Unsettled(live)),
            Ok(Some(_)) | Err(files::Error::Malformed(..)) => Ok(Known::Unknown),
            Err(error) => Err(error.into()),
        }
    }

    fn write_record(&self, settled: bool, live: &Live) -> Result<(), Error> {
        let record = Record {
            version: VERSION,
            settled,
            live: live.clone(),
        };
        Ok(files::write(&self.record_path(&live.definition.id), &record)?)
    }

    fn remove_record(&self, network: &str) -> Result<(), Error> {
        files::remove(&self.record_path(network))?;
        self.tidy(network)
    }

    /// Whether a supervisor was killed and has left its memberships.
    fn is_anyone_abandoned(&self, is_owned: Owners<'_>) -> Result<bool, Error> {
        // One that is on several networks is asked about once.
        let mut asked = BTreeSet::new();
        for network in files::names(&self.live, "")? {
            for container in files::names(&self.directory(&network), ".json")? {
                if !asked.contains(&container) {
                    if !is_owned(&container) {
                        return Ok(true);
                    }
                    asked.insert(container);
                }
            }
        }
        Ok(false)
    }

    /// A network with its members, if it has any.
    fn living_of(&self, network: &str) -> Result<Option<Live>, Error> {
        let endpoints: Vec<Endpoint> = self.endpoints(network)?.into_iter().map(of_rules).collect();
        if endpoints.is_empty() {
            return Ok(None);
        }
        let definition = self.store.read(network)?;
        Ok(definition.map(|definition| Live {
            definition,
            endpoints,
        }))
    }

    /// Networks with members that have an owner.
    fn living(&self, is_owned: Owners<'_>) -> Result<Vec<Live>, Error> {
        let mut living = Vec::new();
        for network in files::names(&self.live, "")? {
            let directory = self.directory(&network);
            let definition = self.store.read(&network)?;
            let mut endpoints = Vec::new();
            for container in files::names(&directory, ".json")? {
                let endpoint = match files::read::<Endpoint>(&directory.join(format!("{container}.json"))) {
                    Err(files::Error::Malformed(..)) => None,
                    other => other?,
                };
                match endpoint {
                    Some(endpoint) if definition.is_some() && is_owned(&container) => {
                        endpoints.push(of_rules(endpoint));
                    }
                    _ => self.withdraw(std::iter::once((network.as_str(), container.as_str())))?,
                }
            }
            if let Some(definition) = definition.filter(|_| !endpoints.is_empty()) {
                living.push(Live {
                    definition,
                    endpoints,
                });
            }
        }
        Ok(living)
    }

    /// Makes the bridges of networks with members and removes those of others.
    fn bridges(&self, networks: &[Live]) -> Result<(), Error> {
        let mut socket = Socket::open()?;
        let needed: BTreeSet<&str> = networks
            .iter()
            .map(|live| live.definition.bridge.as_str())
            .collect();
        let present: BTreeSet<String> = socket.links()?.into_iter().map(|link| link.name).collect();
        for definition in self.store.all()? {
            let bridge = definition.bridge.as_str();
            if present.contains(bridge) && !needed.contains(bridge) {
                socket.remove(bridge)?;
            }
        }
        networks
            .iter()
            .try_for_each(|live| ensure_bridge(&mut socket, &live.definition))
    }
}

/// What rules are made of: they do not change with a member's names.
fn of_rules(endpoint: Endpoint) -> Endpoint {
    Endpoint {
        names: Vec::new(),
        dns_servers: Vec::new(),
        ..endpoint
    }
}

/// All that may be there while one becomes the other.
fn union(before: Option<&Live>, after: &Live) -> Live {
    let mut union = after.clone();
    let theirs = before.into_iter().flat_map(|before| &before.endpoints);
    union.endpoints.extend(
        theirs
            .filter(|endpoint| !after.endpoints.contains(endpoint))
            .cloned(),
    );
    union
}

/// Forgets the connections of those with published ports who have gone: by them the world would reach who has the address next.
/// The record says last that all is done, so whoever comes after one that was killed meanwhile does it.
fn forget_gone(before: &[Live], after: &[Live]) -> Result<(), Error> {
    let gone = only_in(before, after).filter(|endpoint| !endpoint.published.is_empty());
    for address in gone.flat_map(addresses) {
        match conntrack::forget(address) {
            // They end where nothing is sent for a while, as all of them do there.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            other => other.map_err(|error| Error::Connections(address, error))?,
        }
    }
    Ok(())
}

/// Forgets the connections that the addresses of those who have come with a policy had before: it would not be asked about them.
fn forget_before(before: &[Live], after: &[Live]) -> Result<(), Error> {
    let come = only_in(after, before).filter(|endpoint| endpoint.egress.is_some());
    let mut addresses = come.flat_map(addresses);
    addresses.try_for_each(|address| {
        conntrack::forget(address).map_err(|error| Error::Connections(address, error))
    })
}

/// The members of `these` whose interfaces none of `others` has. A member gets another one each time that it joins.
fn only_in<'a>(these: &'a [Live], others: &[Live]) -> impl Iterator<Item = &'a Endpoint> + use<'a> {
    let others = others.iter().flat_map(|live| &live.endpoints);
    let others: BTreeSet<String> = others.map(|endpoint| endpoint.interface.clone()).collect();
    let these = these.iter().flat_map(|live| &live.endpoints);
    these.filter(move |endpoint| !others.contains(&endpoint.interface))
}

fn addresses(endpoint: &Endpoint) -> impl Iterator<Item = IpAddr> + use<> {
    std::iter::once(endpoint.ipv4.into()).chain(endpoint.ipv6.map(IpAddr::from))
}

/// Makes a network's bridge, unless it is there, and lets the host forward what it leads to.
fn ensure_bridge(socket: &mut Socket, definition: &Definition) -> Result<(), Error> {
    let bridge = &definition.bridge;
    match socket.find(bridge) {
        Ok(link) if link.up => {}
        // It is half made.
        Ok(_) => {
            socket.remove(bridge)?;
            make_bridge(socket, definition)?;
        }
        Err(rvm_netlink::Error::Missing(_)) => make_bridge(socket, definition)?,
        Err(error) => return Err(error.into()),
    }
    if !definition.internal {
        host::forward_ipv4()?;
        if definition.ipv6.is_some() {
            host::forward_ipv6()?;
        }
    }
    Ok(())
}

/// Makes a network's bridge; it is set up last.
fn make_bridge(socket: &mut Socket, definition: &Definition) -> Result<(), Error> {
    let bridge = &definition.bridge;
    let Definition { ipv4, ipv6, mtu, .. } = definition;
    // One of its own: else it would be that of whichever port came first.
    socket.add_bridge(bridge, mac_of(ipv4.gateway), *mtu)?;
    host::prepare_bridge(bridge, ipv6.is_some())?;
    socket.add_address(bridge, (ipv4.gateway.into(), ipv4.prefix))?;
    if let Some(ipv6) = ipv6 {
        socket.add_address(bridge, (ipv6.gateway.into(), ipv6.prefix))?;
    }
    let up = Change {
        up: true,
        ..Change::default()
    };
    Ok(socket.change(bridge, &up)?)
}
