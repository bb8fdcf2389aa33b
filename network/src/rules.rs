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
    ("subnets4", "type ipv4_addr : verdict; flags interval;"),
    ("subnets6", "type ipv6_addr : verdict; flags interval;"),
    ("internal", "type ifname : verdict;"),
    ("outward", "type ifname : verdict;"),
    ("egress", "type ifname . ether_addr : verdict;"),
    ("hosts", "type ifname . ether_addr : verdict;"),
];

/// The chains of the table `inet`. An address of its own comes before all of a kind. What is for a loopback address is none of
/// the kernel's business: no packet with one leaves the host.
const INET: &str = "\
chain doors {
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
ip saddr vmap @subnets4
ip6 saddr vmap @subnets6
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
                    "add set inet {table} {name} {{ type {kind}; flags timeout; }}"
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
    let mut parts = vec![
        chain("inet", own.clone(), rules),
        chain(
            "inet",
            from.clone(),
            vec![format!("oifname != \"{bridge}\" masquerade")],
        ),
        element("outward", format!("\"{bridge}\""), &own),
        element(
            "subnets4",
            format!("{}/{}", definition.ipv4.address, definition.ipv4.prefix),
            &from,
        ),
    ];
    parts.extend(
        definition
            .ipv6
            .map(|ipv6| element("subnets6", format!("{}/{}", ipv6.address, ipv6.prefix), &from)),
    );
    parts
}

fn of_member(definition: &Definition, endpoint: &Endpoint) -> Vec<Part> {
    let mut parts = port(endpoint);
    if !definition.internal {
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

/// The chains of one member's policy: for what it sends to elsewhere, and for what it sends to the host itself.
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
    host_rules.push(format!("jump {away}"));
    let mut rules = vec![format!("oifname \"{}\" return", definition.bridge)];
    rules.extend(egress.networks.iter().map(|(address, prefix)| {
        let kind = if address.is_ipv6() { "ip6" } else { "ip" };
        format!("{kind} daddr {address}/{prefix} return")
    }));
    let mut parts = Vec::new();
    for (kind, of, is_ipv6) in [("ip", "ipv4_addr", false), ("ip6", "ipv6_addr", true)] {
        let name = egress_set(interface, is_ipv6);
        rules.push(format!("{kind} daddr @{name} return"));
        parts.push(Part::Set { name, kind: of });
    }
    // A member that tries again and again must not fill the host's log.
    rules.push("limit rate 5/second burst 10 packets log prefix \"rvm-egress \"".to_owned());
    rules.push("drop".to_owned());
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
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::definition::Subnet;

    fn definition(internal: bool) -> Definition {
        Definition {
            version: 1,
            id: "ab".into(),
            name: "app".into(),
            created_ms: 0,
            bridge: "rvmb1".into(),
            ipv4: Subnet {
                address: Ipv4Addr::new(10, 1, 0, 0),
                prefix: 24,
                gateway: Ipv4Addr::new(10, 1, 0, 1),
                resolver: Ipv4Addr::new(10, 1, 0, 254),
                range: None,
            },
            ipv6: None,
            internal,
            mtu: None,
            labels: std::collections::BTreeMap::new(),
        }
    }

    fn endpoint(interface: &str, egress: Option<Egress>) -> Endpoint {
        Endpoint {
            version: 1,
            container: "c".into(),
            names: vec!["web".into()],
            interface: interface.into(),
            mac: [2, 0, 0, 0, 0, 1],
            ipv4: Ipv4Addr::new(10, 1, 0, 2),
            ipv6: None,
            dns_servers: Vec::new(),
            published: vec![Published {
                protocol: Protocol::Tcp,
                host_address: Ipv4Addr::UNSPECIFIED.into(),
                host_port: 8080,
                container_port: 80,
            }],
            egress,
        }
    }

    fn live(internal: bool, endpoints: &[Endpoint]) -> Live {
        Live {
            definition: definition(internal),
            endpoints: endpoints.to_vec(),
        }
    }

    fn joined(live: &Live) -> String {
        change("t", &[(None, Some(live))])
    }

    /// The script's lines that have this in them.
    fn lines<'a>(text: &'a str, part: &str) -> Vec<&'a str> {
        text.lines().filter(|line| line.contains(part)).collect()
    }

    #[test]
    fn nobody_there_leaves_nothing() {
        let before = [live(false, &[endpoint("rvmv1", None)])];
        for trusted in [false, true] {
            assert_eq!(
                rebuild("t", &before, &[], trusted),
                "add table bridge t\ndelete table bridge t\nadd table inet t\ndelete table inet t\n"
            );
        }
    }

    #[test]
    fn a_member_is_led_to_and_from() {
        let member = live(false, &[endpoint("rvmv1", None)]);
        let one = joined(&member);
        let all = rebuild("t", &[], &[member], true);
        for line in [
            "add rule inet t door-rvmv1 iifname \"rvmb1\" return",
            "add rule inet t door-rvmv1 meta nfproto ipv4 fib daddr type local tcp dport 8080 dnat ip to 10.1.0.2:80",
            "add element inet t any4 { tcp . 8080 : jump door-rvmv1 }",
            "add rule inet t from-rvmb1 oifname != \"rvmb1\" masquerade",
            "add element inet t subnets4 { 10.1.0.0/24 : jump from-rvmb1 }",
            "add rule inet t net-rvmb1 ct status dnat accept",
            "add element inet t outward { \"rvmb1\" : jump net-rvmb1 }",
            "add element bridge t ports { \"rvmv1\" : jump port-rvmv1 }",
            "add rule bridge t port-rvmv1 ether saddr != 02:00:00:00:00:01 drop",
            "add rule bridge t port-rvmv1 ether type ip ip saddr 10.1.0.2 accept",
        ] {
            for text in [&one, &all] {
                assert!(text.lines().any(|found| found == line), "{line} in {text}");
            }
        }
        assert!(!one.contains("egress"), "{one}");
    }

    #[test]
    fn an_internal_network_leads_nowhere() {
        let text = joined(&live(true, &[endpoint("rvmv1", None)]));
        assert!(
            text.contains("net-rvmb1 iifname \"rvmb1\" oifname != \"rvmb1\" drop"),
            "{text}"
        );
        assert!(
            !text.contains("masquerade") && !text.contains("dnat ip"),
            "{text}"
        );
    }

    #[test]
    fn who_joins_and_leaves_touches_nobody_else() {
        let first = endpoint("rvmv1", None);
        let second = Endpoint {
            published: Vec::new(),
            ..endpoint("rvmv2", None)
        };
        let (one, both) = (
            live(false, std::slice::from_ref(&first)),
            live(false, &[first, second]),
        );
        let join = change("t", &[(Some(&one), Some(&both))]);
        assert!(join.lines().all(|line| line.contains("rvmv2")), "{join}");
        let leave = change("t", &[(Some(&both), Some(&one))]);
        assert_eq!(
            leave,
            "delete element bridge t ports { \"rvmv2\" }\nflush chain bridge t port-rvmv2\n\
             delete chain bridge t port-rvmv2\n"
        );
        assert_eq!(change("t", &[(Some(&both), Some(&both))]), "");
        let end = change("t", &[(Some(&one), None)]);
        for part in [
            "any4 { tcp . 8080 }",
            "subnets4 { 10.1.0.0/24 }",
            "chain inet t net-rvmb1",
        ] {
            assert!(end.contains(&format!("{part}\n")), "{part} in {end}");
        }
    }

    #[test]
    fn ports_go_over_to_another_network() {
        let carrier = live(false, &[endpoint("rvmv1", None)]);
        let bare = Endpoint {
            published: Vec::new(),
            ..endpoint("rvmv2", None)
        };
        let other = |endpoint: Endpoint| Live {
            definition: Definition {
                bridge: "rvmb2".into(),
                ..definition(false)
            },
            endpoints: vec![endpoint],
        };
        let (before, after) = (other(bare), other(endpoint("rvmv2", None)));
        let text = change("t", &[(Some(&carrier), None), (Some(&before), Some(&after))]);
        let of_port = lines(&text, "any4");
        assert_eq!(
            of_port,
            [
                "delete element inet t any4 { tcp . 8080 }",
                "add element inet t any4 { tcp . 8080 : jump door-rvmv2 }"
            ]
        );
        assert!(lines(&text, "port-rvmv2").is_empty(), "{text}");
    }

    #[test]
    fn a_chain_that_changes_keeps_what_leads_to_it() {
        let more = Endpoint {
            published: vec![
                endpoint("rvmv1", None).published[0],
                Published {
                    protocol: Protocol::Udp,
                    ..endpoint("rvmv1", None).published[0]
                },
            ],
            ..endpoint("rvmv1", None)
        };
        let (before, after) = (live(false, &[endpoint("rvmv1", None)]), live(false, &[more]));
        let text = change("t", &[(Some(&before), Some(&after))]);
        assert!(
            text.starts_with("flush chain inet t door-rvmv1\nadd chain inet t door-rvmv1\n"),
            "{text}"
        );
        assert_eq!(
            lines(&text, "element"),
            ["add element inet t any4 { udp . 8080 : jump door-rvmv1 }"]
        );
    }

    #[test]
    fn a_policy_s_set_stays_and_one_that_is_over_goes() {
        let egress = Egress {
            networks: vec![("192.0.2.0".parse().unwrap(), 24)],
            names: Vec::new(),
        };
        let known = live(
            false,
            &[
                endpoint("rvmv0", Some(egress.clone())),
                endpoint("rvmv1", Some(egress.clone())),
            ],
        );
        let wanted = live(false, &[endpoint("rvmv1", Some(egress))]);
        let text = rebuild("t", &[known], &[wanted], true);
        assert!(text.contains("delete set inet t egress4-rvmv0\n"), "{text}");
        assert!(!text.contains("delete set inet t egress4-rvmv1"), "{text}");
        assert!(text.contains("flush table inet t\n"), "{text}");
        assert!(
            text.contains("egress-rvmv1 ip daddr 192.0.2.0/24 return\n"),
            "{text}"
        );
        assert!(
            text.contains("egress-rvmv1 ip daddr @egress4-rvmv1 return\n"),
            "{text}"
        );
    }

    #[test]
    fn what_is_published_by_ipv6_needs_a_member_with_it() {
        let published = Published {
            host_address: Ipv6Addr::UNSPECIFIED.into(),
            ..endpoint("rvmv1", None).published[0]
        };
        assert_eq!(door(published, &endpoint("rvmv1", None)), None);
        let address: Ipv6Addr = "fd00::2".parse().unwrap();
        let member = Endpoint {
            ipv6: Some(address),
            ..endpoint("rvmv1", None)
        };
        let (map, key, rule) = door(published, &member).unwrap();
        assert_eq!((map, key.as_str()), ("any6", "tcp . 8080"));
        assert!(
            rule.ends_with("tcp dport 8080 dnat ip6 to [fd00::2]:80"),
            "{rule}"
        );
    }

    #[test]
    fn installations_have_tables_of_their_own() {
        assert_eq!(table(Path::new("/run/rvm")), "rvm");
        let other = table(Path::new("/scratch/run"));
        assert!(other.starts_with("rvm-") && other.len() == 12, "{other}");
        assert_ne!(other, table(Path::new("/scratch/run2")));
    }
}
