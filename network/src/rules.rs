//! The packet filter's rules: a function of who is on which network, changed in one transaction, so that there is no moment
//! with some of them.
//!
//! They stand in two tables of rvm's own and change nothing in others'. `inet`: where members can connect to and be reached
//! from, and which addresses are put in the place of others. `bridge`: what a port may claim to be. For both, what a
//! member sends is known by its port and its hardware address, of which the second table makes sure.
//!
//! The chains that the kernel calls have a few rules that never change, and look up in maps where it goes on: what is of one
//! network or of one member are [`Part`]s, chains of its own and elements of those maps. So who joins or leaves changes its own
//! parts alone, and a packet is looked up once, however many members there are.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::address::link_local;
use crate::definition::Definition;
use crate::endpoint::{Egress, Endpoint, Protocol, Published, egress_set};

/// The run directory whose networks have the plain names.
const USUAL_RUN: &str = "/run/rvm";

/// Addresses of each kind that a policy's names may have opened at once. Whoever answers for a name can tell as many as he likes,
/// and they are the kernel's memory.
const MOST_OPENED: u32 = 4096;

/// What is the same whoever is on which network, of the table `bridge`.
const BRIDGE: &str = "\
map ports { type ifname : verdict; }
chain prerouting { type filter hook prerouting priority -300; policy accept;
iifname vmap @ports
}
";

/// The maps of the table `inet`, and what they are of. Doors are published ports, of one address of the host or of any.
const MAPS: [(&str, &str); 10] = [
    ("doors4", "type ipv4_addr . inet_proto . inet_service : verdict;"),
    ("doors6", "type ipv6_addr . inet_proto . inet_service : verdict;"),
    ("any4", "type inet_proto . inet_service : verdict;"),
    ("any6", "type inet_proto . inet_service : verdict;"),
    ("sources4", "type ipv4_addr : verdict;"),
    ("sources6", "type ipv6_addr : verdict;"),
    ("internal", "type ifname : verdict;"),
    ("outward", "type ifname : verdict;"),
    ("egress", "type ifname . ether_addr : verdict;"),
    ("hosts", "type ifname . ether_addr : verdict;"),
];

/// The chains of the table `inet`. An address of its own comes before all of a kind. What is for a loopback address is none of
/// the kernel's business: no packet with one leaves the host. Nor is what comes from an address of the link, which is not forwarded
/// (RFC 4291, section 2.5.6): both are for the supervisor's sockets.
const INET: &str = "\
chain doors {
ip6 saddr fe80::/10 return
ip daddr . meta l4proto . th dport vmap @doors4
ip6 daddr . meta l4proto . th dport vmap @doors6
meta nfproto ipv4 fib daddr type local meta l4proto . th dport vmap @any4
meta nfproto ipv6 fib daddr type local meta l4proto . th dport vmap @any6
}
chain prerouting { type nat hook prerouting priority dstnat; policy accept;
jump doors
}
chain output { type nat hook output priority -100; policy accept;
ip daddr 127.0.0.0/8 return
ip6 daddr ::1 return
jump doors
}
chain postrouting { type nat hook postrouting priority srcnat; policy accept;
ip saddr vmap @sources4
ip6 saddr vmap @sources6
}
chain forward { type filter hook forward priority filter; policy accept;
iifname vmap @internal
oifname vmap @internal
ct state established,related accept
iifname . ether saddr vmap @egress
oifname vmap @outward
}
chain input { type filter hook input priority filter; policy accept;
iifname . ether saddr vmap @hosts
}
";

/// A network that somebody is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Live {
    pub(crate) definition: Definition,
    /// Not empty.
    pub(crate) endpoints: Vec<Endpoint>,
}

/// A change of one network's rules: what is there, and what is to be. `None` where nobody is on it.
pub(crate) type Change<'a> = (Option<&'a Live>, Option<&'a Live>);

/// What tells installations on one machine apart; `None` for the usual one.
pub(crate) fn installation(run: &Path) -> Option<String> {
    if run == Path::new(USUAL_RUN) {
        return None;
    }
    // FNV-1a: any function will do that is the same in every version of rvm.
    let hash = run.as_os_str().as_encoded_bytes().iter();
    let hash = hash.fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    Some(format!("{hash:08x}"))
}

/// The name of the tables of an installation with this run directory.
#[must_use]
pub fn table(run: &Path) -> String {
    installation(run).map_or_else(|| "rvm".to_owned(), |other| format!("rvm-{other}"))
}

/// A thing in a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// Addresses of a policy, which the resolver adds.
    Set { name: String, kind: &'static str },
    /// Rules.
    Chain {
        family: &'static str,
        name: String,
        rules: Vec<String>,
    },
    /// What leads to them.
    Element {
        family: &'static str,
        map: &'static str,
        key: String,
        chain: String,
    },
}

/// The script that makes changes of some networks' rules, and of nothing else; empty where there is nothing to be done. The
/// kernel refuses it if what it changes is not as it is thought to be.
pub(crate) fn change(table: &str, changes: &[Change<'_>]) -> String {
    let (mut old, mut new) = (Vec::new(), Vec::new());
    for (before, after) in changes {
        old.extend(parts(*before, *after));
        new.extend(parts(*after, *before));
    }
    let (there, wanted) = (BTreeSet::from_iter(&old), BTreeSet::from_iter(&new));
    let names: BTreeSet<_> = old.iter().filter_map(chain_of).collect();
    let new_names: BTreeSet<_> = new.iter().filter_map(chain_of).collect();
    let mut text = String::new();
    // Elements before the chains that they lead to, and a chain before one that it leads to itself.
    for part in old.iter().rev().filter(|part| !wanted.contains(part)) {
        if chain_of(part).is_none_or(|name| !new_names.contains(&name)) {
            part.remove(&mut text, table);
        }
    }
    for part in new.iter().filter(|part| !there.contains(part)) {
        if let Some((family, name)) = chain_of(part).filter(|name| names.contains(name)) {
            let _ = writeln!(text, "flush chain {family} {table} {name}");
        }
        part.add(&mut text, table);
    }
    text
}

/// The script that makes all rules anew. `known` is what may be in the tables as yet: it is put in order whatever of it is
/// there. The sets of policies are kept with what is in them, unless nothing that is there is `trusted`.
pub(crate) fn rebuild(table: &str, known: &[Live], wanted: &[Live], trusted: bool) -> String {
    let mut text = String::new();
    let _ = write!(
        text,
        "add table bridge {table}\ndelete table bridge {table}\nadd table inet {table}\n"
    );
    if !trusted || wanted.is_empty() {
        let _ = writeln!(text, "delete table inet {table}");
    }
    if wanted.is_empty() {
        return text;
    }
    let _ = writeln!(text, "table bridge {table} {{\n{BRIDGE}}}\ntable inet {table} {{");
    for (name, of) in MAPS {
        let _ = writeln!(text, "map {name} {{ {of} }}");
    }
    text.push_str("}\n");
    let new: Vec<Part> = wanted.iter().flat_map(|live| parts(Some(live), None)).collect();
    if trusted {
        let _ = writeln!(text, "flush table inet {table}");
        for (name, _) in MAPS {
            let _ = writeln!(text, "flush map inet {table} {name}");
        }
        let kept: BTreeSet<_> = new.iter().collect();
        let old: Vec<Part> = known.iter().flat_map(|live| parts(Some(live), None)).collect();
        let is_gone = |part: &&Part| !matches!(part, Part::Set { .. }) || !kept.contains(part);
        for part in old.iter().rev().filter(is_gone) {
            part.forget(&mut text, table);
        }
    }
    let _ = writeln!(text, "table inet {table} {{\n{INET}}}");
    for part in &new {
        part.add(&mut text, table);
    }
    text
}

fn chain_of(part: &Part) -> Option<(&'static str, &str)> {
    match part {
        Part::Chain { family, name, .. } => Some((family, name)),
        _ => None,
    }
}

impl Part {
    // Writing to a String cannot fail, here and above.
    fn add(&self, text: &mut String, table: &str) {
        let _ = match self {
            Self::Set { name, kind } => {
                writeln!(
                    text,
                    "add set inet {table} {name} {{ type {kind}; size {MOST_OPENED}; flags timeout; }}"
                )
            }
            Self::Chain { family, name, rules } => {
                let _ = writeln!(text, "add chain {family} {table} {name}");
                for rule in rules {
                    let _ = writeln!(text, "add rule {family} {table} {name} {rule}");
                }
                Ok(())
            }
            Self::Element {
                family,
                map,
                key,
                chain,
            } => {
                writeln!(
                    text,
                    "add element {family} {table} {map} {{ {key} : jump {chain} }}"
                )
            }
        };
    }

    /// Removes what is there.
    fn remove(&self, text: &mut String, table: &str) {
        let _ = match self {
            Self::Set { name, .. } => writeln!(text, "delete set inet {table} {name}"),
            Self::Chain { family, name, .. } => {
                writeln!(
                    text,
                    "flush chain {family} {table} {name}\ndelete chain {family} {table} {name}"
                )
            }
            Self::Element { family, map, key, .. } => {
                writeln!(text, "delete element {family} {table} {map} {{ {key} }}")
            }
        };
    }

    /// Removes it from the table `inet`, whose maps are empty, whether or not it is there.
    fn forget(&self, text: &mut String, table: &str) {
        match self {
            Self::Set { .. } => self.add(text, table),
            Self::Chain {
                family: "inet", name, ..
            } => {
                let _ = writeln!(text, "add chain inet {table} {name}");
            }
            _ => return,
        }
        self.remove(text, table);
    }
}

/// What is of a network and of its members, but for what `other` has just the same.
fn parts(live: Option<&Live>, other: Option<&Live>) -> Vec<Part> {
    let Some(live) = live else {
        return Vec::new();
    };
    let definition = &live.definition;
    let mut parts = match other {
        Some(other) if other.definition == *definition => Vec::new(),
        _ => of_network(definition),
    };
    let theirs = other.filter(|other| other.definition == *definition);
    let others = theirs.map_or(&[][..], |other| &other.endpoints);
    let others: HashMap<&str, &Endpoint> = others
        .iter()
        .map(|endpoint| (endpoint.interface.as_str(), endpoint))
        .collect();
    for endpoint in &live.endpoints {
        if others.get(endpoint.interface.as_str()) != Some(&endpoint) {
            parts.extend(of_member(definition, endpoint));
        }
    }
    parts
}

fn chain(family: &'static str, name: String, rules: Vec<String>) -> Part {
    Part::Chain { family, name, rules }
}

fn element(map: &'static str, key: String, chain: &str) -> Part {
    let family = if map == "ports" { "bridge" } else { "inet" };
    Part::Element {
        family,
        map,
        key,
        chain: chain.to_owned(),
    }
}

fn of_network(definition: &Definition) -> Vec<Part> {
    let bridge = &definition.bridge;
    let own = format!("net-{bridge}");
    if definition.internal {
        let rules = vec![
            format!("iifname \"{bridge}\" oifname != \"{bridge}\" drop"),
            format!("oifname \"{bridge}\" iifname != \"{bridge}\" drop"),
        ];
        let led = element("internal", format!("\"{bridge}\""), &own);
        return vec![chain("inet", own, rules), led];
    }
    let from = format!("from-{bridge}");
    // By what the host publishes only: neither from other networks nor from who sends his packets here unasked.
    let rules = vec![
        format!("iifname \"{bridge}\" return"),
        "ct status dnat accept".to_owned(),
        "drop".to_owned(),
    ];
    vec![
        chain("inet", own.clone(), rules),
        chain("inet", from, vec![format!("oifname != \"{bridge}\" masquerade")]),
        element("outward", format!("\"{bridge}\""), &own),
    ]
}

fn of_member(definition: &Definition, endpoint: &Endpoint) -> Vec<Part> {
    let mut parts = port(endpoint);
    if !definition.internal {
        // Its port lets no other addresses pass. An element for all of a subnet would be an interval, which nft does not add to
        // a map in the transaction that makes the chain and the map.
        let from = format!("from-{}", definition.bridge);
        parts.push(element("sources4", endpoint.ipv4.to_string(), &from));
        parts.extend(
            endpoint
                .ipv6
                .map(|ipv6| element("sources6", ipv6.to_string(), &from)),
        );
        parts.extend(doors(definition, endpoint));
    }
    if let Some(egress) = &endpoint.egress {
        parts.extend(policy(definition, endpoint, egress));
    }
    parts
}

/// What leads to a member's published ports.
fn doors(definition: &Definition, endpoint: &Endpoint) -> Vec<Part> {
    let own = format!("door-{}", endpoint.interface);
    // What a member of the same network sends, the supervisor copies. Where rules see bridged frames, as after
    // `modprobe br_netfilter`, a frame that is to go back to the port it came from would be dropped.
    let mut rules = vec![format!("iifname \"{}\" return", definition.bridge)];
    let mut elements = Vec::new();
    for published in &endpoint.published {
        if let Some((map, key, rule)) = door(*published, endpoint) {
            rules.push(rule);
            elements.push(element(map, key, &own));
        }
    }
    if elements.is_empty() {
        return Vec::new();
    }
    let mut parts = vec![chain("inet", own, rules)];
    parts.extend(elements);
    parts
}

/// One published port: the map and the key that lead to the member's chain, and the rule in it.
fn door(published: Published, endpoint: &Endpoint) -> Option<(&'static str, String, String)> {
    let protocol = match published.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let (host_port, port) = (published.host_port, published.container_port);
    let (family, kind, target) = match (published.host_address, endpoint.ipv6) {
        (IpAddr::V4(_), _) => ("ipv4", "ip", format!("{}:{port}", endpoint.ipv4)),
        (IpAddr::V6(_), Some(address)) => ("ipv6", "ip6", format!("[{address}]:{port}")),
        (IpAddr::V6(_), None) => return None,
    };
    let is_ipv6 = published.host_address.is_ipv6();
    let (map, key, host) = match published.host_address {
        address if address.is_loopback() => return None,
        address if address.is_unspecified() => {
            let map = if is_ipv6 { "any6" } else { "any4" };
            (
                map,
                format!("{protocol} . {host_port}"),
                "fib daddr type local".to_owned(),
            )
        }
        address => {
            let map = if is_ipv6 { "doors6" } else { "doors4" };
            (
                map,
                format!("{address} . {protocol} . {host_port}"),
                format!("{kind} daddr {address}"),
            )
        }
    };
    let rule = format!("meta nfproto {family} {host} {protocol} dport {host_port} dnat {kind} to {target}");
    Some((map, key, rule))
}

/// The chains of one member's policy: for what it sends to elsewhere, and for what it sends to the host itself. The host is opened
/// by its address alone: whoever answers for a name must not open it.
fn policy(definition: &Definition, endpoint: &Endpoint, egress: &Egress) -> Vec<Part> {
    let interface = &endpoint.interface;
    let (away, to_host) = (format!("egress-{interface}"), format!("host-{interface}"));
    let resolvers = std::iter::once(("ip", IpAddr::from(definition.ipv4.resolver)))
        .chain(definition.ipv6.map(|subnet| ("ip6", subnet.resolver.into())));
    let mut host_rules = vec![
        "ct state established,related accept".to_owned(),
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept".to_owned(),
    ];
    host_rules.extend(resolvers.map(|(kind, resolver)| {
        format!("{kind} daddr {resolver} meta l4proto {{ tcp, udp }} th dport 53 accept")
    }));
    let networks = egress.networks.iter().map(|(address, prefix)| {
        let kind = if address.is_ipv6() { "ip6" } else { "ip" };
        format!("{kind} daddr {address}/{prefix} return")
    });
    let mut rules = vec![format!("oifname \"{}\" return", definition.bridge)];
    rules.extend(networks.clone());
    host_rules.extend(networks);
    let mut parts = Vec::new();
    for (kind, of, is_ipv6) in [("ip", "ipv4_addr", false), ("ip6", "ipv6_addr", true)] {
        let name = egress_set(interface, is_ipv6);
        rules.push(format!("{kind} daddr @{name} return"));
        parts.push(Part::Set { name, kind: of });
    }
    for rules in [&mut rules, &mut host_rules] {
        // A member that tries again and again must not fill the host's log.
        rules.push("limit rate 5/second burst 10 packets log prefix \"rvm-egress \"".to_owned());
        rules.push("drop".to_owned());
    }
    let key = format!("\"{}\" . {}", definition.bridge, mac(endpoint.mac));
    parts.extend([
        chain("inet", away.clone(), rules),
        chain("inet", to_host.clone(), host_rules),
        element("egress", key.clone(), &away),
        element("hosts", key, &to_host),
    ]);
    parts
}

/// The chain that keeps a port from claiming to be somebody else.
fn port(endpoint: &Endpoint) -> Vec<Part> {
    let (mac, ipv4) = (mac(endpoint.mac), endpoint.ipv4);
    let mut rules = vec![
        format!("ether saddr != {mac} drop"),
        format!("ether type ip ip saddr {ipv4} accept"),
        format!("ether type arp arp saddr ether {mac} arp saddr ip {{ 0.0.0.0, {ipv4} }} accept"),
    ];
    if let Some(ipv6) = endpoint.ipv6 {
        let own = link_local(endpoint.mac);
        // The target of an advertisement is 8 bytes into it (RFC 4861, 4.4).
        let (one, other) = (u128::from(ipv6), u128::from(own));
        rules.extend([
            "ether type ip6 icmpv6 type { nd-router-advert, nd-redirect } drop".to_owned(),
            format!(
                "ether type ip6 icmpv6 type nd-neighbor-advert @th,64,128 != {{ {one:#034x}, {other:#034x} }} drop"
            ),
            format!("ether type ip6 ip6 saddr {{ ::, {own}, {ipv6} }} accept"),
        ]);
    }
    rules.push("drop".to_owned());
    let own = format!("port-{}", endpoint.interface);
    let led = element("ports", format!("\"{}\"", endpoint.interface), &own);
    vec![chain("bridge", own, rules), led]
}

/// A hardware address as people write it.
pub(crate) fn mac(mac: [u8; 6]) -> String {
    let digits: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.join(":")
}

#[cfg(test)]
mod tests;
