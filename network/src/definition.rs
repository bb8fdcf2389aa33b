//! What a network is: `ROOT/networks/ID.json`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Version of the file.
pub const VERSION: u32 = 1;

/// A bridge network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// [`VERSION`].
    pub version: u32,
    /// 64 hexadecimal digits.
    pub id: String,
    /// Unique among networks.
    pub name: String,
    /// When it was made, in milliseconds since the epoch.
    pub created_ms: u64,
    /// The bridge interface on the host: at most 15 bytes.
    pub bridge: String,
    /// Its IPv4 addresses.
    pub ipv4: Subnet<Ipv4Addr>,
    /// Its IPv6 addresses, where it has any.
    pub ipv6: Option<Subnet<Ipv6Addr>>,
    /// Whether it leads nowhere but to its members.
    pub internal: bool,
    /// Largest packet in bytes; the interface's own default where `None`.
    pub mtu: Option<u16>,
    /// The user's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A network's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet<A> {
    /// Its first address.
    pub address: A,
    /// Length of the prefix in bits.
    pub prefix: u8,
    /// The host's own address on the bridge.
    pub gateway: A,
    /// The resolver's address on the bridge.
    pub resolver: A,
    /// Where members that ask for no address get theirs from: first address and length of the prefix. All of it where `None`.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub range: Option<(A, u8)>,
}

/// For a field that may be left out, whatever its type.
fn none<A>() -> Option<(A, u8)> {
    None
}
