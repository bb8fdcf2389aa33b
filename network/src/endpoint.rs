//! Who is on a network: `RUN/networks/NETWORK-ID/endpoints/CONTAINER-ID.json`, written by rename when the member gets its
//! interface, removed when it loses it. One whose container has no owner is left over from a crash; whoever holds the
//! lock `RUN/networks/lock` next removes it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Version of the file.
pub const VERSION: u32 = 1;

/// One container on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// [`VERSION`].
    pub version: u32,
    /// The container.
    pub container: String,
    /// Every name that it is found by on this network, lower case: its own, the first digits of its ID, aliases.
    pub names: Vec<String>,
    /// The interface on the host's side, a port of the bridge.
    pub interface: String,
    /// The workload's hardware address.
    pub mac: [u8; 6],
    /// Its address.
    pub ipv4: Ipv4Addr,
    /// Its address, where the network has IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// Servers that it is answered from for names that are not a member's; the host's where empty.
    pub dns_servers: Vec<IpAddr>,
    /// Ports of the host that lead to it by this network.
    pub published: Vec<Published>,
    /// Where it may connect to outside of its network; everywhere where `None`.
    pub egress: Option<Egress>,
}

/// A port of the host that leads to one of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The host's address; an unspecified one stands for all of its kind.
    pub host_address: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The container's port.
    pub container_port: u16,
}

/// What a port is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// The places outside of its network that a container may connect to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// Address and length of the prefix in bits.
    pub networks: Vec<(IpAddr, u8)>,
    /// Names whose addresses are allowed once the resolver has told them, lower case; `*.example.org` stands for all below.
    pub names: Vec<String>,
}

/// The set of nftables that holds the addresses of one kind which the resolver has told a member with a policy: elements
/// of type `ipv4_addr` or `ipv6_addr`, each with a timeout. It is in the table of rvm's rules, which allow what is in it.
/// It is made with the member's rules and kept when those are made anew, for its elements are known to the resolver alone.
#[must_use]
pub fn egress_set(interface: &str, is_ipv6: bool) -> String {
    let kind = if is_ipv6 { '6' } else { '4' };
    format!("egress{kind}-{interface}")
}
