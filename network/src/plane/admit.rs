//! Which addresses a new member gets.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Error, Port, Wish};
use crate::address::mac_of;
use crate::definition::Definition;
use crate::endpoint::{Endpoint, VERSION};
use crate::random::random;
use crate::rules;

/// Gives a new member its addresses.
pub(super) fn admit(definition: &Definition, wish: &Wish, others: &[Endpoint]) -> Result<Endpoint, Error> {
    let taken = |address: Ipv4Addr| others.iter().any(|other| other.ipv4 == address);
    let subnet = definition.ipv4;
    let ipv4 = match wish.ipv4 {
        Some(address) if !subnet.contains(address) => {
            return Err(Error::NotInSubnet {
                address: address.into(),
                subnet: format!("{}/{}", subnet.address, subnet.prefix),
            });
        }
        Some(address) if !subnet.is_for_members(address) => {
            return Err(Error::NotForMembers(address.into()));
        }
        Some(address) if taken(address) => return Err(Error::AddressInUse(address.into())),
        Some(address) => address,
        None => subnet
            .first_free(taken)
            .ok_or_else(|| Error::Full(4, definition.name.clone()))?,
    };
    let mac = wish.mac.unwrap_or_else(|| mac_of(ipv4));
    if others.iter().any(|other| other.mac == mac) {
        return Err(Error::MacInUse(rules::mac(mac), definition.name.clone()));
    }
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
        ipv6: admit_ipv6(definition, wish, others)?,
        dns_servers: wish.dns_servers.clone(),
        published: wish.published.clone(),
        egress: wish.egress.clone(),
    })
}

fn admit_ipv6(definition: &Definition, wish: &Wish, others: &[Endpoint]) -> Result<Option<Ipv6Addr>, Error> {
    let Some(subnet) = definition.ipv6 else {
        return wish.ipv6.map_or(Ok(None), |address| {
            Err(Error::NoIpv6(address, definition.name.clone()))
        });
    };
    let taken = |address: Ipv6Addr| others.iter().any(|other| other.ipv6 == Some(address));
    match wish.ipv6 {
        Some(address) if !subnet.contains(address) => Err(Error::NotInSubnet {
            address: address.into(),
            subnet: format!("{}/{}", subnet.address, subnet.prefix),
        }),
        Some(address) if !subnet.is_for_members(address) => Err(Error::NotForMembers(address.into())),
        Some(address) if taken(address) => Err(Error::AddressInUse(address.into())),
        Some(address) => Ok(Some(address)),
        None => subnet
            .first_free(taken)
            .map(Some)
            .ok_or_else(|| Error::Full(6, definition.name.clone())),
    }
}
