//! The host's sockets of published ports.
//!
//! A container's supervisor binds them before the container starts and keeps them as long as it lives, so that a port is one
//! container's and nobody else's ([`Reservation`]). What comes to such a port from elsewhere the host's rules send on by
//! themselves, and it never reaches these sockets. The rest does: what is for a loopback address, what members of the same
//! network send, and what comes by IPv6 for a container without. A thread serves that ([`Proxy`]), with [`stream`] for TCP
//! and [`datagram`] for UDP.
//!
//! It copies through one buffer. splice(2) would take two pipes for each connection, which is three times the descriptors,
//! for bytes that do not leave the machine.

mod datagram;
mod place;
mod serve;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt};

pub use serve::{Proxy, Target};

use crate::endpoint::{Protocol, Published};

/// Connections that may wait for the thread. The kernel takes its own limit where that is lower (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// How often the kernel is asked for a port that is free on all addresses: each time that the one it chose for the first is
/// taken on another.
const MOST_CHOICES: usize = 32;

/// Why ports could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody has it. Docker's words.
    #[error("Bind for {address} failed: port is already allocated")]
    Allocated {
        /// The address and the port.
        address: SocketAddr,
    },
    /// All of a range are taken. Docker's words.
    #[error("Bind for {address} failed: all ports are allocated ({}-{})", ports.start(), ports.end())]
    AllAllocated {
        /// The address.
        address: IpAddr,
        /// The range.
        ports: RangeInclusive<u16>,
    },
    /// The machine has no such address. Docker's words.
    #[error("failed to bind host port {address}: cannot assign requested address")]
    NoAddress {
        /// The address and the port.
        address: SocketAddr,
    },
    /// Another reason.
    #[error("failed to bind host port {address}")]
    Bind {
        /// The address and the port.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The thread.
    #[error("cannot serve the published ports")]
    Serve(#[source] io::Error),
}

/// A port that is to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The host's address; all of both kinds where `None`.
    pub host_address: Option<IpAddr>,
    /// Ports of the host, of which the first that is free is taken; one that the kernel chooses where `None`.
    pub host_ports: Option<RangeInclusive<u16>>,
    /// The container's port.
    pub container_port: u16,
}

/// Ports of the host that are this process's.
#[derive(Debug, Default)]
pub struct Reservation {
    doors: Vec<Door>,
}

#[derive(Debug)]
struct Door {
    published: Published,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Reservation {
    /// Binds the sockets, all of them or none. Wishes for one port are granted first, so that a range does not take what another
    /// asks for.
    ///
    /// # Errors
    /// [`Error`].
    pub fn bind(wishes: &[Wish]) -> Result<Self, Error> {
        let choices = |wish: &&Wish| {
            wish.host_ports
                .as_ref()
                .map_or(usize::MAX, ExactSizeIterator::len)
        };
        let mut wishes: Vec<_> = wishes.iter().collect();
        wishes.sort_by_key(choices);
        let mut reservation = Self::default();
        // Two wishes may say the same.
        let mut granted = BTreeSet::new();
        for wish in wishes {
            for door in grant(wish, &granted)? {
                granted.insert(door.published);
                reservation.doors.push(door);
            }
        }
        reservation
            .doors
            .sort_by_key(|door| (door.published.container_port, door.published));
        Ok(reservation)
    }

    /// What is published, in the order of the containers' ports.
    #[must_use]
    pub fn published(&self) -> Vec<Published> {
        self.doors.iter().map(|door| door.published).collect()
    }

    /// Serves what reaches the sockets, in a thread, and sends it to where the answer says.
    ///
    /// # Errors
    /// [`Error::Serve`].
    pub fn serve(self) -> Result<Proxy, Error> {
        Proxy::start(self.doors).map_err(Error::Serve)
    }
}

/// Binds one wish's sockets: one, or one for each kind of address with the same port.
fn grant(wish: &Wish, granted: &BTreeSet<Published>) -> Result<Vec<Door>, Error> {
    let addresses = match wish.host_address {
        Some(address) => vec![address],
        None if has_ipv6() => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        None => vec![Ipv4Addr::UNSPECIFIED.into()],
    };
    let first = addresses.first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let Some(ports) = &wish.host_ports else {
        // The kernel's choice for the first address has to be free on the others, too.
        let mut refused = Error::Allocated {
            address: SocketAddr::new(first, 0),
        };
        for _ in 0..MOST_CHOICES {
            match open_all(wish, &addresses, 0) {
                Err(error @ Error::Allocated { .. }) => refused = error,
                other => return other,
            }
        }
        return Err(refused);
    };
    for port in ports.clone() {
        let is_granted = addresses.iter().all(|address| {
            granted.contains(&Published {
                protocol: wish.protocol,
                host_address: *address,
                host_port: port,
                container_port: wish.container_port,
            })
        });
        if is_granted {
            return Ok(Vec::new());
        }
        match open_all(wish, &addresses, port) {
            Err(Error::Allocated { .. }) if ports.len() > 1 => {}
            other => return other,
        }
    }
    Err(Error::AllAllocated {
        address: first,
        ports: ports.clone(),
    })
}

fn open_all(wish: &Wish, addresses: &[IpAddr], mut port: u16) -> Result<Vec<Door>, Error> {
    let mut doors = Vec::new();
    for address in addresses {
        let (socket, chosen) = open(wish.protocol, SocketAddr::new(*address, port))?;
        port = chosen;
        doors.push(Door {
            published: Published {
                protocol: wish.protocol,
                host_address: *address,
                host_port: port,
                container_port: wish.container_port,
            },
            socket,
        });
    }
    Ok(doors)
}

/// A socket that does not block, and its port.
fn open(protocol: Protocol, address: SocketAddr) -> Result<(Socket, u16), Error> {
    let failed = |source| Error::Bind { address, source };
    let refused = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => Error::Allocated { address },
        io::ErrorKind::AddrNotAvailable => Error::NoAddress { address },
        _ => failed(source),
    };
    match protocol {
        Protocol::Tcp => {
            let fd = bound(SocketType::STREAM, address).map_err(refused)?;
            listen(&fd, BACKLOG).map_err(|errno| refused(errno.into()))?;
            let listener = TcpListener::from(fd);
            let port = listener.local_addr().map_err(failed)?.port();
            Ok((Socket::Tcp(listener), port))
        }
        Protocol::Udp => {
            let socket = UdpSocket::from(bound(SocketType::DGRAM, address).map_err(refused)?);
            let port = socket.local_addr().map_err(failed)?.port();
            Ok((Socket::Udp(socket), port))
        }
    }
}

fn bound(kind: SocketType, address: SocketAddr) -> io::Result<OwnedFd> {
    let fd = unbound(kind, address)?;
    if address.is_ipv6() {
        // All addresses of IPv6 are not those of IPv4 as well: these have a socket of their own.
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    if kind == SocketType::STREAM {
        // Connections of the container's last life may still be about to end.
        sockopt::set_socket_reuseaddr(&fd, true)?;
    } else {
        place::ask(&fd, address.ip())?;
    }
    bind(&fd, &address)?;
    Ok(fd)
}

fn unbound(kind: SocketType, address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let protocol = match kind {
        SocketType::STREAM => ipproto::TCP,
        _ => ipproto::UDP,
    };
    socket_with(
        family,
        kind,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(protocol),
    )
}

/// Whether this machine has IPv6 at all.
fn has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}
