//! The few requests of rtnetlink that rvm makes, one after the other: interfaces, addresses and routes of the network
//! namespace in which the [`Socket`] was opened.
//!
//! Every request waits for the kernel's answer, so there is neither a reactor nor a thread. An interface is named in requests
//! and errors by its name, and by its number only where the caller has it from [`Socket::links`].
#![forbid(unsafe_code)]

#[cfg(feature = "fuzzing")]
pub mod fuzz;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd as _};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket as Channel, SocketAddr};

/// Longest name of an interface in bytes (`IFNAMSIZ` less the NUL).
pub const LONGEST_NAME: usize = 15;

/// Bytes of one answer: the kernel makes none of a dump larger than 32 KiB (`NLMSG_GOODSIZE`, `netlink_dump`).
const ANSWER_BYTES: usize = 64 << 10;

/// An interface's hardware address.
pub type Mac = [u8; 6];

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no socket.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// The request did not reach the kernel, or its answer did not come back.
    #[error("cannot talk to the kernel over netlink")]
    Talk(#[source] io::Error),
    /// The answer is not of the protocol.
    #[error("the kernel's answer over netlink cannot be read: {0}")]
    Answer(String),
    /// The kernel refused.
    #[error("cannot {action} {name}")]
    Refused {
        /// What was to be done.
        action: &'static str,
        /// The interface.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// There is no such interface.
    #[error("there is no interface {0}")]
    Missing(String),
    /// A name that no interface can have.
    #[error("\"{0}\" cannot be an interface's name: it has 1 to 15 bytes without blanks, slashes and colons")]
    Name(String),
}

impl Error {
    /// Whether the kernel refused because this process lacks `CAP_NET_ADMIN`.
    #[must_use]
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Whether what was to be made is there already.
    #[must_use]
    pub fn exists(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
    }
}

/// An interface of the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address, where it is one of six bytes.
    pub mac: Option<Mac>,
    /// The number of the bridge that it is a port of.
    pub master: Option<u32>,
    /// Whether it is set up.
    pub up: bool,
}

/// An address and the length of its network's prefix in bits.
pub type Prefix = (IpAddr, u8);

/// What is to be changed of an interface; what is `None` or `false` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Change<'a> {
    /// Another name. The interface must be down.
    pub name: Option<&'a str>,
    /// Another hardware address.
    pub mac: Option<Mac>,
    /// The bridge that it becomes a port of.
    pub master: Option<&'a str>,
    /// Largest packet in bytes.
    pub mtu: Option<u16>,
    /// Whether it is set up.
    pub up: bool,
}

/// A pair of interfaces to be made, of which one gets what is sent to the other.
#[derive(Clone, Debug)]
pub struct Veth<'a> {
    /// Its name here.
    pub outer: &'a str,
    /// The bridge that the outer one is made a port of; it is set up, too.
    pub master: Option<&'a str>,
    /// The inner one's name.
    pub inner: &'a str,
    /// The inner one's hardware address.
    pub mac: Mac,
    /// Largest packet in bytes, of both.
    pub mtu: Option<u16>,
}

/// A socket of the network namespace that the thread was in that opened it.
#[derive(Debug)]
pub struct Socket {
    channel: Channel,
    sequence: u32,
}

impl Socket {
    /// Opens a socket of the calling thread's namespace.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open() -> Result<Self, Error> {
        let mut channel = Channel::new(NETLINK_ROUTE).map_err(Error::Open)?;
        channel.bind_auto().map_err(Error::Open)?;
        channel.connect(&SocketAddr::new(0, 0)).map_err(Error::Open)?;
        Ok(Self { channel, sequence: 0 })
    }

    /// Every interface of the namespace.
    ///
    /// # Errors
    /// [`Error::Talk`], [`Error::Answer`].
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let answers = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => link(message),
                _ => None,
            })
            .collect())
    }

    /// The addresses of all interfaces, by number of the interface.
    ///
    /// # Errors
    /// [`Error::Talk`], [`Error::Answer`].
    pub fn addresses(&mut self) -> Result<Vec<(u32, Prefix)>, Error> {
        let answers = self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(message) => own_address(&message),
                _ => None,
            })
            .collect())
    }

    /// The networks that routes of the namespace lead to, but for the default ones.
    ///
    /// # Errors
    /// [`Error::Talk`], [`Error::Answer`].
    pub fn routes(&mut self) -> Result<Vec<Prefix>, Error> {
        let answers = self.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => destination(&message),
                _ => None,
            })
            .collect())
    }

    /// The interface of this name.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Name`], [`Error::Talk`], [`Error::Answer`].
    pub fn find(&mut self, name: &str) -> Result<Link, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(checked(name)?));
        let answer = self.request(
            "find the interface",
            name,
            RouteNetlinkMessage::GetLink(message),
            0,
        );
        match answer {
            Ok(Some(RouteNetlinkMessage::NewLink(message))) => {
                link(message).ok_or_else(|| Error::Answer(format!("of the interface {name}")))
            }
            Ok(_) => Err(Error::Answer(format!("of the interface {name}"))),
            Err(Error::Refused { source, .. }) if is_missing(&source) => Err(Error::Missing(name.to_owned())),
            Err(error) => Err(error),
        }
    }

    /// Makes a bridge, and sets it up.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Name`], [`Error::Talk`], [`Error::Answer`].
    pub fn add_bridge(&mut self, name: &str, mac: Mac, mtu: Option<u16>) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(checked(name)?),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        message
            .attributes
            .extend(mtu.map(|mtu| LinkAttribute::Mtu(mtu.into())));
        self.make("make the bridge", name, RouteNetlinkMessage::NewLink(message))
    }

    /// Makes a pair of interfaces: one here and one straight in the namespace whose open file `inside` is.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Missing`], [`Error::Name`], [`Error::Talk`], [`Error::Answer`].
    pub fn add_veth(&mut self, veth: &Veth<'_>, inside: impl AsFd) -> Result<(), Error> {
        let mtu = veth.mtu.map(|mtu| LinkAttribute::Mtu(mtu.into()));
        let mut inner = LinkMessage::default();
        inner.attributes = vec![
            LinkAttribute::IfName(checked(veth.inner)?),
            LinkAttribute::Address(veth.mac.to_vec()),
            LinkAttribute::NetNsFd(inside.as_fd().as_raw_fd()),
        ];
        inner.attributes.extend(mtu.clone());
        let mut outer = LinkMessage::default();
        outer.attributes = vec![
            LinkAttribute::IfName(checked(veth.outer)?),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(inner))),
            ]),
        ];
        outer.attributes.extend(mtu);
        if let Some(master) = veth.master {
            let index = self.find(master)?.index;
            outer.attributes.push(LinkAttribute::Controller(index));
            set_up(&mut outer);
        }
        self.make(
            "make the interface",
            veth.outer,
            RouteNetlinkMessage::NewLink(outer),
        )
    }

    /// Changes an interface.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Missing`], [`Error::Name`], [`Error::Talk`], [`Error::Answer`].
    pub fn change(&mut self, name: &str, change: &Change<'_>) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = self.find(name)?.index;
        let attributes = &mut message.attributes;
        if let Some(name) = change.name {
            attributes.push(LinkAttribute::IfName(checked(name)?));
        }
        attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        attributes.extend(change.mtu.map(|mtu| LinkAttribute::Mtu(mtu.into())));
        if let Some(master) = change.master {
            attributes.push(LinkAttribute::Controller(self.find(master)?.index));
        }
        if change.up {
            set_up(&mut message);
        }
        self.set(
            "change the interface",
            name,
            RouteNetlinkMessage::SetLink(message),
        )
    }

    /// Moves an interface to the namespace whose open file `inside` is, under another name.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Missing`], [`Error::Name`], [`Error::Talk`], [`Error::Answer`].
    pub fn move_to(&mut self, name: &str, inside: impl AsFd, new_name: &str) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = self.find(name)?.index;
        message.attributes = vec![
            LinkAttribute::NetNsFd(inside.as_fd().as_raw_fd()),
            LinkAttribute::IfName(checked(new_name)?),
        ];
        self.set("move the interface", name, RouteNetlinkMessage::SetLink(message))
    }

    /// Removes an interface; whether it was there.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Name`], [`Error::Talk`], [`Error::Answer`].
    pub fn remove(&mut self, name: &str) -> Result<bool, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(checked(name)?));
        let removed = self.set(
            "remove the interface",
            name,
            RouteNetlinkMessage::DelLink(message),
        );
        match removed {
            Err(Error::Refused { source, .. }) if is_missing(&source) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Gives an interface an address. One of IPv6 is usable at once: nobody is asked whether it has it.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Missing`], [`Error::Name`], [`Error::Talk`], [`Error::Answer`].
    pub fn add_address(&mut self, name: &str, (address, length): Prefix) -> Result<(), Error> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = length;
        message.header.index = self.find(name)?.index;
        message.attributes = vec![
            AddressAttribute::Local(address),
            AddressAttribute::Address(address),
        ];
        match address {
            IpAddr::V6(_) => message.header.flags = AddressHeaderFlags::Nodad,
            IpAddr::V4(address) if length < 31 => {
                let host_bits = u32::MAX.checked_shr(length.into()).unwrap_or(0);
                let broadcast = (u32::from(address) | host_bits).into();
                message.attributes.push(AddressAttribute::Broadcast(broadcast));
            }
            IpAddr::V4(_) => {}
        }
        self.make(
            "give an address to the interface",
            name,
            RouteNetlinkMessage::NewAddress(message),
        )
    }

    /// Adds the default route by a gateway that is reached by the interface.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Missing`], [`Error::Name`], [`Error::Talk`], [`Error::Answer`].
    pub fn add_default_route(&mut self, name: &str, gateway: IpAddr, metric: u32) -> Result<(), Error> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(gateway),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Boot,
            scope: RouteScope::Universe,
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        let gateway = match gateway {
            IpAddr::V4(address) => RouteAddress::Inet(address),
            IpAddr::V6(address) => RouteAddress::Inet6(address),
        };
        message.attributes = vec![
            RouteAttribute::Gateway(gateway),
            RouteAttribute::Oif(self.find(name)?.index),
        ];
        if metric > 0 {
            message.attributes.push(RouteAttribute::Priority(metric));
        }
        self.make(
            "make the default route by",
            name,
            RouteNetlinkMessage::NewRoute(message),
        )
    }

    /// A request that makes something new.
    fn make(&mut self, action: &'static str, name: &str, message: RouteNetlinkMessage) -> Result<(), Error> {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.request(action, name, message, flags).map(drop)
    }

    fn set(&mut self, action: &'static str, name: &str, message: RouteNetlinkMessage) -> Result<(), Error> {
        self.request(action, name, message, NLM_F_ACK).map(drop)
    }

    /// Sends one request, and waits for its answer: `None` where that is only that it is done.
    fn request(
        &mut self,
        action: &'static str,
        name: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Option<RouteNetlinkMessage>, Error> {
        self.send(message, NLM_F_REQUEST | flags)?;
        for answer in self.receive()? {
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => return Ok(Some(message)),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(None),
                NetlinkPayload::Error(error) => {
                    return Err(Error::Refused {
                        action,
                        name: name.to_owned(),
                        source: error.to_io(),
                    });
                }
                _ => {}
            }
        }
        Err(Error::Answer("it is empty".to_owned()))
    }

    /// Sends a request for everything of a kind, and collects the answers.
    fn dump(&mut self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.send(message, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut collected = Vec::new();
        loop {
            for answer in self.receive()? {
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => collected.push(message),
                    NetlinkPayload::Done(_) => return Ok(collected),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(Error::Talk(error.to_io()));
                    }
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        let sent = self.channel.send(&bytes, 0).map_err(Error::Talk)?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(Error::Talk(io::ErrorKind::WriteZero.into()))
        }
    }

    /// The messages of the next datagram.
    fn receive(&mut self) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, Error> {
        let mut buffer: Vec<u8> = Vec::with_capacity(ANSWER_BYTES);
        loop {
            match self.channel.recv(&mut buffer, 0) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Talk(error)),
            }
        }
        messages(&buffer, self.sequence)
    }
}

/// The messages of a datagram that answer the request with this number.
fn messages(datagram: &[u8], sequence: u32) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, Error> {
    let mut messages = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
            .map_err(|error| Error::Answer(error.to_string()))?;
        // Each begins at a multiple of four bytes; one of no length would never end.
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
        let next = length.checked_next_multiple_of(4).filter(|next| *next > 0);
        let next = next.ok_or_else(|| Error::Answer("a message of no length".to_owned()))?;
        rest = rest.get(next..).unwrap_or_default();
        if message.header.sequence_number == sequence {
            messages.push(message);
        }
    }
    Ok(messages)
}

fn set_up(message: &mut LinkMessage) {
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
}

fn is_missing(error: &io::Error) -> bool {
    // ENODEV
    error.raw_os_error() == Some(19)
}

fn link(message: LinkMessage) -> Option<Link> {
    let mut found = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        master: None,
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name = name,
            LinkAttribute::Address(bytes) => found.mac = bytes.try_into().ok(),
            LinkAttribute::Controller(index) => found.master = Some(index),
            _ => {}
        }
    }
    (!found.name.is_empty()).then_some(found)
}

/// An address of an interface; where it has a peer, its own one.
fn own_address(message: &AddressMessage) -> Option<(u32, Prefix)> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let other = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    Some((
        message.header.index,
        (local.or(other)?, message.header.prefix_len),
    ))
}

fn destination(message: &RouteMessage) -> Option<Prefix> {
    let length = message.header.destination_prefix_length;
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(((*address).into(), length)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(((*address).into(), length)),
        _ => None,
    })
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// The name, if an interface can have it (`dev_valid_name` of the kernel).
fn checked(name: &str) -> Result<String, Error> {
    let is_fine = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
    let fits = (1..=LONGEST_NAME).contains(&name.len()) && name != "." && name != "..";
    if fits && name.bytes().all(is_fine) {
        Ok(name.to_owned())
    } else {
        Err(Error::Name(name.to_owned()))
    }
}

#[cfg(test)]
mod tests;
