//! Connections that the kernel tracks (include/uapi/linux/netfilter/nfnetlink_conntrack.h).
//!
//! What belongs to a connection goes on as it began, without a look at the rules or at who has the address by now. So those of
//! an address are forgotten where that would be wrong: when a member goes that the world reached by a published port, and before
//! one comes that has a policy.

use std::io;
use std::net::IpAddr;

use crate::netfilter::{ACKNOWLEDGE, Attributes, DUMP, NESTED, Netfilter, REQUEST, attribute, messages};

const SUBSYSTEM: u16 = 1;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;

/// What the first packet had, and what the answer to it has.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
/// What is to be listed: known since Linux 5.8, ignored before.
const FILTER: u16 = 25;
const TUPLE_ADDRESSES: u16 = 1;
/// A flag of the filter: the address that packets come from.
const BY_SOURCE: u32 = 1;

/// A connection as it is named to the kernel.
#[derive(Debug, PartialEq, Eq)]
struct Connection(Vec<u8>);

/// Forgets the connections that an address has begun, and those that lead to it, under whatever other address.
///
/// # Errors
/// What the kernel says; [`io::ErrorKind::Unsupported`] where it does not tell of connections.
pub(crate) fn forget(address: IpAddr) -> io::Result<()> {
    let mut netfilter = Netfilter::open()?;
    for direction in [ORIGINAL, REPLY] {
        for connection in list(&mut netfilter, direction, address)? {
            match remove(&mut netfilter, address, &connection) {
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

fn list(netfilter: &mut Netfilter, direction: u16, address: IpAddr) -> io::Result<Vec<Connection>> {
    let tuple = attribute(TUPLE_ADDRESSES | NESTED, &source(address)?)?;
    let mut request = attribute(direction | NESTED, &tuple)?;
    request.extend(attribute(
        FILTER | NESTED,
        &attribute(direction, &BY_SOURCE.to_ne_bytes())?,
    )?);
    let mut batch = Vec::new();
    let sequence = netfilter.append(&mut batch, GET, REQUEST | DUMP, family(address), 0, &request)?;
    netfilter.send(&batch)?;
    let mut connections = Vec::new();
    loop {
        if let Some(outcome) = collect(
            &netfilter.receive()?,
            sequence,
            direction,
            address,
            &mut connections,
        ) {
            return match outcome {
                // There is nobody in the kernel who knows what is asked.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    Err(io::Error::new(io::ErrorKind::Unsupported, error))
                }
                other => other.map(|()| connections),
            };
        }
    }
}

/// Adds what a datagram of a list tells of connections with this address, and says how the list has ended if it has.
fn collect(
    datagram: &[u8],
    sequence: u32,
    direction: u16,
    address: IpAddr,
    connections: &mut Vec<Connection>,
) -> Option<io::Result<()>> {
    for message in messages(datagram).filter(|message| message.sequence == sequence) {
        if let Some(outcome) = message.outcome() {
            return Some(outcome);
        }
        // Another's, where the kernel knows no filter.
        if comes_from(message.attributes(), direction, address) {
            connections.extend(name(message.attributes()));
        }
    }
    None
}

fn comes_from(attributes: Attributes<'_>, direction: u16, address: IpAddr) -> bool {
    let addresses = attributes.find(direction).map(Attributes);
    let addresses = addresses.and_then(|tuple| tuple.find(TUPLE_ADDRESSES));
    addresses.and_then(|addresses| Attributes(addresses).find(source_kind(address))) == Some(&*bytes(address))
}

/// What names a connection: how it began, in which zone, and which of all that were so named it is.
fn name(attributes: Attributes<'_>) -> Option<Connection> {
    let mut name = attribute(ORIGINAL | NESTED, attributes.find(ORIGINAL)?).ok()?;
    for kind in [ID, ZONE] {
        if let Some(value) = attributes.find(kind) {
            name.extend(attribute(kind, value).ok()?);
        }
    }
    Some(Connection(name))
}

fn remove(netfilter: &mut Netfilter, address: IpAddr, connection: &Connection) -> io::Result<()> {
    let mut batch = Vec::new();
    let flags = REQUEST | ACKNOWLEDGE;
    let sequence = netfilter.append(&mut batch, DELETE, flags, family(address), 0, &connection.0)?;
    netfilter.send(&batch)?;
    loop {
        let datagram = netfilter.receive()?;
        let answer = messages(&datagram).find(|message| message.sequence == sequence);
        if let Some(outcome) = answer.and_then(|message| message.outcome()) {
            return outcome;
        }
    }
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    u8::try_from(family).unwrap_or_default()
}

/// The type of a packet's source in a tuple.
fn source_kind(address: IpAddr) -> u16 {
    if address.is_ipv4() { 1 } else { 3 }
}

fn source(address: IpAddr) -> io::Result<Vec<u8>> {
    attribute(source_kind(address), &bytes(address))
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// For the harness: reads a datagram of a list to its end.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read(datagram: &[u8]) {
    let mut connections = Vec::new();
    for address in [IpAddr::from([10, 0, 0, 2]), IpAddr::from([0xfd; 16])] {
        if let Some(Err(error)) = collect(datagram, 1, REPLY, address, &mut connections) {
            assert!(error.raw_os_error() != Some(0));
        }
    }
    assert!(
        connections
            .iter()
            .all(|Connection(name)| name.len() <= datagram.len())
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry of a list, of a connection that began as one address and is answered by another.
    fn entry(netfilter: &mut Netfilter, from: IpAddr, answers: IpAddr) -> Vec<u8> {
        let tuple = |kind, address| {
            let addresses = attribute(TUPLE_ADDRESSES | NESTED, &source(address).unwrap()).unwrap();
            attribute(kind | NESTED, &addresses).unwrap()
        };
        let id = attribute(ID, &[1, 2, 3, 4]).unwrap();
        let attributes = [tuple(ORIGINAL, from), tuple(REPLY, answers), id].concat();
        let mut message = Vec::new();
        netfilter
            .append(&mut message, GET, 0, family(from), 0, &attributes)
            .unwrap();
        message
    }

    #[test]
    fn connections_of_an_address_are_found_by_who_answers() {
        let (Ok(mut one), Ok(mut other)) = (Netfilter::open(), Netfilter::open()) else {
            panic!("no netlink here");
        };
        let (member, world): (IpAddr, IpAddr) = ([10, 0, 0, 2].into(), [192, 0, 2, 1].into());
        let list = [entry(&mut one, world, member), entry(&mut other, member, world)].concat();
        let mut found = Vec::new();
        assert!(collect(&list, 1, REPLY, member, &mut found).is_none());
        let [Connection(name)] = &found[..] else {
            panic!("{found:?}")
        };
        let name = Attributes(name);
        assert_eq!(name.find(ID), Some(&[1, 2, 3, 4][..]));
        assert!(comes_from(name, ORIGINAL, world));
        assert!(name.find(REPLY).is_none());
    }

    #[test]
    fn what_is_cut_short_says_nothing() {
        let mut netfilter = Netfilter::open().unwrap();
        let whole = entry(&mut netfilter, [192, 0, 2, 1].into(), [10, 0, 0, 2].into());
        for length in 0..whole.len() {
            read(&whole[..length]);
        }
        read(&[0xff; 64]);
    }
}
