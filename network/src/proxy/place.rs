//! Datagrams with the address of this machine that they are sent to. Who asks one address takes an answer from no other, and a
//! socket that is bound to all of them answers from the one that the kernel would take.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _};

use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, cmsg_space, recvmsg, sendmsg, setsockopt,
    sockopt,
};

/// What is said along with a datagram: one of the two.
const SAID: usize = cmsg_space::<in_pktinfo>() + cmsg_space::<in6_pktinfo>();

/// Where on this machine somebody sends to. Where that is nobody's own address, it is none, and the kernel chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    address: IpAddr,
    /// Whose link it is on, of an address that is one on each; else 0.
    interface: u32,
}

/// A datagram that has come.
pub(super) struct Arrival {
    pub(super) length: usize,
    pub(super) client: SocketAddr,
    pub(super) place: Place,
}

/// Has the kernel say where datagrams were sent to: from the first one on, if the socket is not bound yet.
pub(super) fn ask(socket: impl AsFd, kind: IpAddr) -> io::Result<()> {
    Ok(match kind {
        IpAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true),
        IpAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true),
    }?)
}

/// The next datagram.
pub(super) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Arrival> {
    let mut said = [0; SAID];
    let mut parts = [IoSliceMut::new(buffer)];
    let received =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut said), MsgFlags::empty())?;
    let client = received.address.as_ref().and_then(address);
    let client = client.ok_or(io::ErrorKind::InvalidData)?;
    let place = received.cmsgs()?.find_map(|message| Place::of(&message));
    Ok(Arrival {
        length: received.bytes,
        client,
        place: place.unwrap_or(Place::unknown(client.ip())),
    })
}

/// Answers from where somebody sent to.
pub(super) fn send(socket: &UdpSocket, datagram: &[u8], client: SocketAddr, place: Place) -> io::Result<()> {
    let parts = [IoSlice::new(datagram)];
    let client = SockaddrStorage::from(client);
    let say = |message| {
        sendmsg(
            socket.as_raw_fd(),
            &parts,
            &[message],
            MsgFlags::empty(),
            Some(&client),
        )
    };
    match place.address {
        IpAddr::V4(address) => say(ControlMessage::Ipv4PacketInfo(&in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: in_addr {
                s_addr: u32::from_ne_bytes(address.octets()),
            },
            ipi_addr: in_addr { s_addr: 0 },
        })),
        IpAddr::V6(address) => say(ControlMessage::Ipv6PacketInfo(&in6_pktinfo {
            ipi6_addr: in6_addr {
                s6_addr: address.octets(),
            },
            ipi6_ifindex: place.interface,
        })),
    }?;
    Ok(())
}

impl Place {
    fn of(message: &ControlMessageOwned) -> Option<Self> {
        match message {
            // Also of what was sent to all of a link: one of this machine's addresses there.
            ControlMessageOwned::Ipv4PacketInfo(said) => Some(Self {
                address: Ipv4Addr::from(said.ipi_spec_dst.s_addr.to_ne_bytes()).into(),
                interface: 0,
            }),
            ControlMessageOwned::Ipv6PacketInfo(said) => {
                let address = Ipv6Addr::from(said.ipi6_addr.s6_addr);
                let interface = if address.is_unicast_link_local() {
                    said.ipi6_ifindex
                } else {
                    0
                };
                (!address.is_multicast()).then_some(Self {
                    address: address.into(),
                    interface,
                })
            }
            _ => None,
        }
    }

    fn unknown(kind: IpAddr) -> Self {
        let address = match kind {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self {
            address,
            interface: 0,
        }
    }
}

fn address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let ipv4 = address
        .as_sockaddr_in()
        .map(|address| SocketAddrV4::from(*address).into());
    ipv4.or_else(|| {
        address
            .as_sockaddr_in6()
            .map(|address| SocketAddrV6::from(*address).into())
    })
}
