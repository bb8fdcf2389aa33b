//! What a container is connected to, under Docker's names: what was asked for, and what came of it while it runs.

use std::collections::BTreeMap;

use rvm_network::definition::Definition;
use rvm_network::endpoint::Endpoint;
use serde::Serialize;

use super::HostPort;
use super::ports;
use crate::network::{Attachment, HostAddress, MacAddress, Networking};
use crate::record::Record;

/// A container's networks. As Docker has it of `bridge`, the first one's addresses
/// are beside the list.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkSettings {
    /// Those of its first network.
    #[serde(flatten)]
    pub first: Addresses,
    /// Its exposed ports, and the host's that lead there; nothing where it does not run.
    pub ports: BTreeMap<String, Option<Vec<HostPort>>>,
    /// All of them, by name.
    pub networks: BTreeMap<String, EndpointSettings>,
}

/// A container's addresses on one network; empty while it does not run.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Addresses {
    /// The host's address there.
    pub gateway: String,
    /// Its own.
    #[serde(rename = "IPAddress")]
    pub ip_address: String,
    /// Length of the prefix in bits; 0 if there is none.
    #[serde(rename = "IPPrefixLen")]
    pub ip_prefix_len: u8,
    /// The host's IPv6 address there.
    #[serde(rename = "IPv6Gateway")]
    pub ipv6_gateway: String,
    /// Its own.
    #[serde(rename = "GlobalIPv6Address")]
    pub global_ipv6_address: String,
    /// Length of the prefix in bits; 0 if there is none.
    #[serde(rename = "GlobalIPv6PrefixLen")]
    pub global_ipv6_prefix_len: u8,
    /// Its hardware address.
    pub mac_address: String,
}

/// A container on one network. What it only has while it runs is empty when it does not.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct EndpointSettings {
    /// What was asked for; `null` where nothing was.
    #[serde(rename = "IPAMConfig")]
    pub ipam_config: Option<IpamConfig>,
    /// Further names that were asked for.
    pub aliases: Vec<String>,
    /// Its addresses.
    #[serde(flatten)]
    pub addresses: Addresses,
    /// The network's ID.
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    /// Every name that it is found by there.
    #[serde(rename = "DNSNames")]
    pub dns_names: Vec<String>,
}

/// The addresses that were asked for.
#[derive(Debug, Clone, Serialize)]
pub struct IpamConfig {
    /// Of IPv4.
    #[serde(rename = "IPv4Address", skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<String>,
    /// Of IPv6.
    #[serde(rename = "IPv6Address", skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<String>,
}

/// What is known of a container's networks at this moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    /// Every network.
    pub(crate) definitions: Vec<Definition>,
    /// Those that it is on.
    pub(crate) members: Vec<(Definition, Endpoint)>,
}

impl Known {
    /// A network's name, or its ID where it is gone.
    pub(crate) fn name_of(&self, id: &str) -> String {
        let found = self.definitions.iter().find(|definition| definition.id == id);
        found.map_or_else(|| id.to_owned(), |definition| definition.name.clone())
    }
}

/// Puts it together.
pub(super) fn settings(record: &Record, known: &Known) -> NetworkSettings {
    let attachments = record.settings.network.attachments();
    let one = |attachment: &Attachment| {
        let member = known
            .members
            .iter()
            .find(|(definition, _)| definition.id == attachment.network);
        endpoint(attachment, member)
    };
    let published = known.members.iter().flat_map(|(_, endpoint)| &endpoint.published);
    let published: Vec<_> = published.copied().collect();
    let first = attachments.first().map(one).unwrap_or_default();
    NetworkSettings {
        first: first.addresses,
        ports: match record.state.is_active() {
            true => ports::published(&record.settings.ports, &published),
            false => BTreeMap::new(),
        },
        networks: attachments
            .iter()
            .map(|attachment| (known.name_of(&attachment.network), one(attachment)))
            .collect(),
    }
}

fn endpoint(attachment: &Attachment, member: Option<&(Definition, Endpoint)>) -> EndpointSettings {
    let ipam = IpamConfig {
        ipv4: attachment.ipv4.map(|address| address.to_string()),
        ipv6: attachment.ipv6.map(|address| address.to_string()),
    };
    let asked = attachment.mac.map(|mac| mac.to_string());
    EndpointSettings {
        ipam_config: (ipam.ipv4.is_some() || ipam.ipv6.is_some()).then_some(ipam),
        aliases: attachment.aliases.clone(),
        addresses: match member {
            Some((definition, endpoint)) => Addresses::new(definition, endpoint),
            None => Addresses {
                mac_address: asked.unwrap_or_default(),
                ..Addresses::default()
            },
        },
        network_id: attachment.network.clone(),
        dns_names: member
            .map(|(_, endpoint)| endpoint.names.clone())
            .unwrap_or_default(),
    }
}

impl Addresses {
    fn new(definition: &Definition, endpoint: &Endpoint) -> Self {
        let ipv4 = Self {
            gateway: definition.ipv4.gateway.to_string(),
            ip_address: endpoint.ipv4.to_string(),
            ip_prefix_len: definition.ipv4.prefix,
            mac_address: MacAddress(endpoint.mac).to_string(),
            ..Self::default()
        };
        match (definition.ipv6, endpoint.ipv6) {
            (Some(subnet), Some(address)) => Self {
                ipv6_gateway: subnet.gateway.to_string(),
                global_ipv6_address: address.to_string(),
                global_ipv6_prefix_len: subnet.prefix,
                ..ipv4
            },
            _ => ipv4,
        }
    }
}

/// The lines of `/etc/hosts` that were asked for, as they were.
pub(super) fn extra_hosts(networking: &Networking) -> Vec<String> {
    let line = |(name, address): &(String, HostAddress)| match address {
        HostAddress::Address(address) => format!("{name}:{address}"),
        HostAddress::Gateway => format!("{name}:host-gateway"),
    };
    networking.hosts.iter().map(line).collect()
}
