//! A container's ports under Docker's names.

use std::collections::BTreeMap;

use rvm_network::endpoint::Published;
use rvm_network::publish::{Binding, Ports};
use serde::Serialize;

/// A port of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HostPort {
    /// The address; empty for all of them.
    pub host_ip: String,
    /// The port, or a range of which one is taken; empty for any.
    pub host_port: String,
}

/// What is to be published, by the container's port.
pub(super) fn bindings(ports: &Ports) -> BTreeMap<String, Vec<HostPort>> {
    let mut bindings: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for Binding { port, address, host } in &ports.bindings {
        bindings.entry(port.to_string()).or_default().push(HostPort {
            host_ip: address.map_or_else(String::new, |address| address.to_string()),
            host_port: match host {
                None => String::new(),
                Some((first, last)) if first == last => first.to_string(),
                Some((first, last)) => format!("{first}-{last}"),
            },
        });
    }
    bindings
}

/// What is exposed; the values are empty.
pub(super) fn exposed(ports: &Ports) -> BTreeMap<String, BTreeMap<(), ()>> {
    let exposed = ports.exposed().into_iter();
    exposed.map(|port| (port.to_string(), BTreeMap::new())).collect()
}

/// What is exposed, and which ports of the host lead there.
pub(super) fn published(ports: &Ports, published: &[Published]) -> BTreeMap<String, Option<Vec<HostPort>>> {
    let exposed = ports.exposed().into_iter();
    let mut list: BTreeMap<_, Option<Vec<_>>> = exposed.map(|port| (port.to_string(), None)).collect();
    for published in published {
        let host = list.entry(published.port().to_string()).or_default();
        host.get_or_insert_default().push(HostPort {
            host_ip: published.host_address.to_string(),
            host_port: published.host_port.to_string(),
        });
    }
    list
}
