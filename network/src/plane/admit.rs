//! Which addresses a new member gets.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Error, Port, Wish};
use crate::address::{Address, mac_of};
use crate::definition::{Definition, Subnet};
use crate::endpoint::{Endpoint, VERSION};
use crate::random::random;
use crate::rules;

/// A bridge has 1023 ports (`BR_MAX_PORTS` of net/bridge/br_private.h), and the resolver has one.
const MOST_MEMBERS: usize = 1022;

/// Checks whether members of a network can have these addresses, whoever has them now.
///
/// # Errors
/// [`Error::NotInSubnet`], [`Error::NotForMembers`], [`Error::NoIpv6`].
pub fn check_addresses(
    definition: &Definition,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
) -> Result<(), Error> {
    if let Some(address) = ipv4 {
        check(&definition.ipv4, address)?;
    }
    match (ipv6, &definition.ipv6) {
        (Some(address), Some(subnet)) => check(subnet, address),
        (Some(address), None) => Err(Error::NoIpv6(address, definition.name.clone())),
        (None, _) => Ok(()),
    }
}

fn check<A: Address>(subnet: &Subnet<A>, address: A) -> Result<(), Error> {
    if !subnet.contains(address) {
        return Err(Error::NotInSubnet {
            address: address.into(),
            subnet: format!("{}/{}", subnet.address.into(), subnet.prefix),
        });
    }
    if !subnet.is_for_members(address) {
        return Err(Error::NotForMembers(address.into()));
    }
    Ok(())
}

/// Gives a new member its addresses.
pub(super) fn admit(definition: &Definition, wish: &Wish, others: &[Endpoint]) -> Result<Endpoint, Error> {
    check_addresses(definition, wish.ipv4, wish.ipv6)?;
    if others.len() >= MOST_MEMBERS {
        return Err(Error::Crowded(definition.name.clone()));
    }
    let name = &definition.name;
    let subnet = definition.ipv4;
    let taken: BTreeSet<Ipv4Addr> = others.iter().map(|other| other.ipv4).collect();
    let ipv4 = choose(4, name, &subnet, wish.ipv4, &taken)?;
    let mac = wish.mac.unwrap_or_else(|| mac_of(ipv4));
    if others.iter().any(|other| other.mac == mac) {
        return Err(Error::MacInUse(rules::mac(mac), name.clone()));
    }
    let taken: BTreeSet<Ipv6Addr> = others.iter().filter_map(|other| other.ipv6).collect();
    let ipv6 = definition
        .ipv6
        .map(|subnet| choose(6, name, &subnet, wish.ipv6, &taken));
    let prefix = match wish.port {
        Port::Veth => "rvmv",
        Port::Tap => "rvmt",
    };
    Ok(Endpoint {
        version: VERSION,
        container: wish.container.clone(),
        names: wish.names.clone(),
        interface: format!("{prefix}{:08x}", u32::from_ne_bytes(random())),
        mac,
        ipv4,
        ipv6: ipv6.transpose()?,
        dns_servers: wish.dns_servers.clone(),
        published: wish.published.clone(),
        egress: wish.egress.clone(),
    })
}

/// What was asked for, or the first address that nobody has.
fn choose<A: Address>(
    version: u8,
    network: &str,
    subnet: &Subnet<A>,
    asked: Option<A>,
    taken: &BTreeSet<A>,
) -> Result<A, Error> {
    match asked {
        Some(address) if taken.contains(&address) => Err(Error::AddressInUse(address.into())),
        Some(address) => Ok(address),
        None => subnet
            .first_free(|address| taken.contains(&address))
            .ok_or_else(|| Error::Full(version, network.to_owned())),
    }
}
