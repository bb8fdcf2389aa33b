//! The packet filter's rules: all of them are made from who is on which network and replaced in one transaction, so that
//! there is no moment with some of them.
//!
//! They stand in two tables of rvm's own and change nothing in others'. `inet`: where members can connect to and be reached
//! from, and which addresses are put in the place of others. `bridge`: what a port may claim to be. For both, what a
//! member sends is known by its port and its hardware address, of which the second table makes sure.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::address::link_local;
use crate::definition::Definition;
use crate::endpoint::{Egress, Endpoint, Protocol, Published, egress_set};

/// Where the program is looked for: first along `PATH`, which a user's does not always include the others in.
const PROGRAMS: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];

/// The run directory whose networks have the plain names.
const USUAL_RUN: &str = "/run/rvm";

/// Why the rules could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// There is no such program.
    #[error("the program nft is not installed")]
    Missing,
    /// It could not be run.
    #[error("cannot run nft")]
    Run(#[source] io::Error),
    /// It refused.
    #[error("nft could not set the rules of the networks: {0}")]
    Refused(String),
}

/// A network that somebody is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) definition: Definition,
    /// Not empty.
    pub(crate) endpoints: Vec<Endpoint>,
}

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

/// Checks that there is the program that sets rules.
///
/// # Errors
/// [`NftError::Missing`].
pub fn require_nft() -> Result<(), NftError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let along = std::env::split_paths(&path).map(|place| place.join("nft"));
    let others = PROGRAMS
        .iter()
        .map(std::path::PathBuf::from)
        .filter(|path| path.is_absolute());
    let found = along.chain(others).any(|path| path.is_file());
    found.then_some(()).ok_or(NftError::Missing)
}

/// Gives nft a script; what it did not do as a whole it did not do at all.
///
/// # Errors
/// As [`NftError`] says.
pub fn nft(script: &str) -> Result<(), NftError> {
    let start = |program: &str| {
        Command::new(program)
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
    };
    let mut found = Err(NftError::Missing);
    for program in PROGRAMS {
        match start(program) {
            Ok(child) => {
                found = Ok(child);
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(NftError::Run(error)),
        }
    }
    let mut child = found?;
    let written = child
        .stdin
        .take()
        .map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes()));
    let output = child.wait_with_output().map_err(NftError::Run)?;
    if output.status.success() {
        // A script that was not read to its end was refused.
        return written.map_err(NftError::Run);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .take(2)
        .collect();
    Err(NftError::Refused(first.join(" ")))
}

/// The script that makes the rules what they have to be. `policies` are the interfaces whose members' policies have sets and
/// chains as yet; those of who is still there are kept with what is in the sets.
pub(crate) fn script(table: &str, networks: &[Live], policies: &BTreeSet<String>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail, here and below.
    let _ = write!(
        text,
        "add table bridge {table}\ndelete table bridge {table}\nadd table inet {table}\n"
    );
    if networks.is_empty() {
        let _ = writeln!(text, "delete table inet {table}");
        return text;
    }
    let _ = writeln!(text, "flush table inet {table}");
    let kept = with_policy(networks);
    for interface in policies.difference(&kept) {
        forget(&mut text, table, interface);
    }
    let _ = writeln!(text, "table inet {table} {{");
    for interface in &kept {
        for (is_ipv6, kind) in [(false, "ipv4_addr"), (true, "ipv6_addr")] {
            let set = egress_set(interface, is_ipv6);
            let _ = writeln!(text, "set {set} {{ type {kind}; flags timeout; }}");
        }
    }
    translate(&mut text, networks);
    filter(&mut text, networks);
    let _ = writeln!(text, "}}\ntable bridge {table} {{");
    ports(&mut text, networks);
    text.push_str("}\n");
    text
}

/// The interfaces of members with a policy.
pub(crate) fn with_policy(networks: &[Live]) -> BTreeSet<String> {
    members(networks)
        .filter(|(_, endpoint)| endpoint.egress.is_some())
        .map(|(_, endpoint)| endpoint.interface.clone())
        .collect()
}

fn members(networks: &[Live]) -> impl Iterator<Item = (&Definition, &Endpoint)> {
    networks
        .iter()
        .flat_map(|live| live.endpoints.iter().map(|endpoint| (&live.definition, endpoint)))
}

/// Removes the chains and sets of a member that is gone, whether or not they are there.
fn forget(text: &mut String, table: &str, interface: &str) {
    for chain in [format!("egress-{interface}"), format!("host-{interface}")] {
        let _ = writeln!(
            text,
            "add chain inet {table} {chain}\ndelete chain inet {table} {chain}"
        );
    }
    for (is_ipv6, kind) in [(false, "ipv4_addr"), (true, "ipv6_addr")] {
        let set = egress_set(interface, is_ipv6);
        let _ = writeln!(
            text,
            "add set inet {table} {set} {{ type {kind}; flags timeout; }}"
        );
        let _ = writeln!(text, "delete set inet {table} {set}");
    }
}

/// The chains that put addresses in the place of others.
fn translate(text: &mut String, networks: &[Live]) {
    let mut doors: Vec<(Published, &Definition, &Endpoint)> = members(networks)
        .filter(|(definition, _)| !definition.internal)
        .flat_map(|(definition, endpoint)| {
            let published = endpoint.published.iter();
            published.map(move |published| (*published, definition, endpoint))
        })
        .collect();
    // An address of its own comes before all of a kind.
    doors.sort_by_key(|(published, ..)| published.host_address.is_unspecified());
    text.push_str("chain prerouting { type nat hook prerouting priority dstnat; policy accept;\n");
    for (published, definition, endpoint) in &doors {
        // What a member of the same network sends, the supervisor copies. Where rules see bridged frames, as after
        // `modprobe br_netfilter`, a frame that is to go back to the port it came from would be dropped.
        let condition = format!("iifname != \"{}\" ", definition.bridge);
        door(text, &condition, *published, endpoint);
    }
    text.push_str("}\nchain output { type nat hook output priority -100; policy accept;\n");
    for (published, _, endpoint) in &doors {
        let not_loopback = match published.host_address {
            IpAddr::V4(_) => "ip daddr != 127.0.0.0/8 ",
            IpAddr::V6(_) => "ip6 daddr != ::1 ",
        };
        door(text, not_loopback, *published, endpoint);
    }
    text.push_str("}\nchain postrouting { type nat hook postrouting priority srcnat; policy accept;\n");
    for Live { definition, .. } in networks.iter().filter(|live| !live.definition.internal) {
        let bridge = &definition.bridge;
        for (kind, subnet) in subnets(definition) {
            let _ = writeln!(text, "{kind} saddr {subnet} oifname != \"{bridge}\" masquerade");
        }
    }
    text.push_str("}\n");
}

/// One published port. What is for a loopback address is none of the kernel's business: no packet with one leaves the host.
fn door(text: &mut String, condition: &str, published: Published, endpoint: &Endpoint) {
    let protocol = match published.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let (host_port, port) = (published.host_port, published.container_port);
    let (family, kind, target) = match (published.host_address, endpoint.ipv6) {
        (IpAddr::V4(_), _) => ("ipv4", "ip", format!("{}:{port}", endpoint.ipv4)),
        (IpAddr::V6(_), Some(address)) => ("ipv6", "ip6", format!("[{address}]:{port}")),
        (IpAddr::V6(_), None) => return,
    };
    let host = match published.host_address {
        address if address.is_loopback() => return,
        address if address.is_unspecified() => "fib daddr type local".to_owned(),
        address => format!("{kind} daddr {address}"),
    };
    let _ = writeln!(
        text,
        "{condition}meta nfproto {family} {host} {protocol} dport {host_port} dnat {kind} to {target}"
    );
}

/// The chains that say what goes where.
fn filter(text: &mut String, networks: &[Live]) {
    text.push_str("chain forward { type filter hook forward priority filter; policy accept;\n");
    for Live { definition, .. } in networks.iter().filter(|live| live.definition.internal) {
        let bridge = &definition.bridge;
        let _ = writeln!(text, "iifname \"{bridge}\" oifname != \"{bridge}\" drop");
        let _ = writeln!(text, "oifname \"{bridge}\" iifname != \"{bridge}\" drop");
    }
    text.push_str("ct state established,related accept\n");
    for (definition, endpoint) in with_egress(networks) {
        let (bridge, mac, interface) = (&definition.bridge, mac(endpoint.mac), &endpoint.interface);
        let _ = writeln!(
            text,
            "iifname \"{bridge}\" ether saddr {mac} oifname != \"{bridge}\" jump egress-{interface}"
        );
    }
    for Live { definition, .. } in networks.iter().filter(|live| !live.definition.internal) {
        let bridge = &definition.bridge;
        // By what the host publishes only: neither from other networks nor from who sends his packets here unasked.
        let _ = writeln!(
            text,
            "oifname \"{bridge}\" iifname != \"{bridge}\" ct status dnat accept"
        );
        let _ = writeln!(text, "oifname \"{bridge}\" iifname != \"{bridge}\" drop");
    }
    text.push_str("}\nchain input { type filter hook input priority filter; policy accept;\n");
    for (definition, endpoint) in with_egress(networks) {
        let (bridge, mac, interface) = (&definition.bridge, mac(endpoint.mac), &endpoint.interface);
        let _ = writeln!(
            text,
            "iifname \"{bridge}\" ether saddr {mac} jump host-{interface}"
        );
    }
    text.push_str("}\n");
    for (definition, endpoint) in with_egress(networks) {
        policy(text, definition, endpoint);
    }
}

fn with_egress(networks: &[Live]) -> impl Iterator<Item = (&Definition, &Endpoint)> {
    members(networks).filter(|(_, endpoint)| endpoint.egress.is_some())
}

/// The chains of one member's policy: for what it sends to elsewhere, and for what it sends to the host itself.
fn policy(text: &mut String, definition: &Definition, endpoint: &Endpoint) {
    let interface = &endpoint.interface;
    let _ = writeln!(
        text,
        "chain host-{interface} {{\nct state established,related accept"
    );
    text.push_str("icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n");
    let resolvers = std::iter::once(("ip", IpAddr::from(definition.ipv4.resolver)))
        .chain(definition.ipv6.map(|subnet| ("ip6", subnet.resolver.into())));
    for (kind, resolver) in resolvers {
        let _ = writeln!(
            text,
            "{kind} daddr {resolver} meta l4proto {{ tcp, udp }} th dport 53 accept"
        );
    }
    let _ = writeln!(text, "jump egress-{interface}\n}}\nchain egress-{interface} {{");
    let Egress { networks, .. } = endpoint.egress.clone().unwrap_or_default();
    for (address, prefix) in networks {
        let kind = kind_of(address);
        let _ = writeln!(text, "{kind} daddr {address}/{prefix} return");
    }
    for (kind, is_ipv6) in [("ip", false), ("ip6", true)] {
        let _ = writeln!(text, "{kind} daddr @{} return", egress_set(interface, is_ipv6));
    }
    // A member that tries again and again must not fill the host's log.
    text.push_str("limit rate 5/second burst 10 packets log prefix \"rvm-egress \"\ndrop\n}\n");
}

/// The chains that keep ports from claiming to be somebody else.
fn ports(text: &mut String, networks: &[Live]) {
    text.push_str("chain prerouting { type filter hook prerouting priority -300; policy accept;\n");
    for (_, endpoint) in members(networks) {
        let interface = &endpoint.interface;
        let _ = writeln!(text, "iifname \"{interface}\" jump port-{interface}");
    }
    text.push_str("}\n");
    for (_, endpoint) in members(networks) {
        let (mac, ipv4) = (mac(endpoint.mac), endpoint.ipv4);
        let _ = write!(
            text,
            "chain port-{} {{\nether saddr != {mac} drop\nether type ip ip saddr {ipv4} accept\n\
             ether type arp arp saddr ether {mac} arp saddr ip {{ 0.0.0.0, {ipv4} }} accept\n",
            endpoint.interface
        );
        if let Some(ipv6) = endpoint.ipv6 {
            let own = link_local(endpoint.mac);
            // The target of an advertisement is 8 bytes into it (RFC 4861, 4.4).
            let (one, other) = (u128::from(ipv6), u128::from(own));
            let _ = write!(
                text,
                "ether type ip6 icmpv6 type {{ nd-router-advert, nd-redirect }} drop\n\
                 ether type ip6 icmpv6 type nd-neighbor-advert @th,64,128 != {{ {one:#034x}, {other:#034x} }} drop\n\
                 ether type ip6 ip6 saddr {{ ::, {own}, {ipv6} }} accept\n"
            );
        }
        text.push_str("drop\n}\n");
    }
}

/// A network's subnets as nft writes them.
fn subnets(definition: &Definition) -> Vec<(&'static str, String)> {
    let ipv4 = definition.ipv4;
    let mut subnets = vec![("ip", format!("{}/{}", ipv4.address, ipv4.prefix))];
    subnets.extend(
        definition
            .ipv6
            .map(|ipv6| ("ip6", format!("{}/{}", ipv6.address, ipv6.prefix))),
    );
    subnets
}

fn kind_of(address: IpAddr) -> &'static str {
    if address.is_ipv6() { "ip6" } else { "ip" }
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

    fn written(internal: bool, endpoint: Endpoint, policies: &[&str]) -> String {
        let live = Live {
            definition: definition(internal),
            endpoints: vec![endpoint],
        };
        let policies = policies.iter().map(|name| (*name).to_owned()).collect();
        script("t", &[live], &policies)
    }

    #[test]
    fn nobody_there_leaves_nothing() {
        let text = script("t", &[], &BTreeSet::new());
        assert_eq!(
            text,
            "add table bridge t\ndelete table bridge t\nadd table inet t\ndelete table inet t\n"
        );
    }

    #[test]
    fn a_member_is_led_to_and_from() {
        let text = written(false, endpoint("rvmv1", None), &[]);
        for line in [
            "iifname != \"rvmb1\" meta nfproto ipv4 fib daddr type local tcp dport 8080 dnat ip to 10.1.0.2:80",
            "ip saddr 10.1.0.0/24 oifname != \"rvmb1\" masquerade",
            "oifname \"rvmb1\" iifname != \"rvmb1\" ct status dnat accept",
            "oifname \"rvmb1\" iifname != \"rvmb1\" drop",
            "iifname \"rvmv1\" jump port-rvmv1",
            "ether saddr != 02:00:00:00:00:01 drop",
            "ether type ip ip saddr 10.1.0.2 accept",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(!text.contains("egress"), "{text}");
    }

    #[test]
    fn an_internal_network_leads_nowhere() {
        let text = written(true, endpoint("rvmv1", None), &[]);
        assert!(
            text.contains("iifname \"rvmb1\" oifname != \"rvmb1\" drop"),
            "{text}"
        );
        assert!(
            !text.contains("oifname != \"rvmb1\" masquerade") && !text.contains("dnat ip"),
            "{text}"
        );
    }

    #[test]
    fn a_policy_s_set_stays_and_one_that_is_over_goes() {
        let egress = Egress {
            networks: vec![("192.0.2.0".parse().unwrap(), 24)],
            names: Vec::new(),
        };
        let text = written(false, endpoint("rvmv1", Some(egress)), &["rvmv0", "rvmv1"]);
        assert!(text.contains("delete set inet t egress4-rvmv0\n"), "{text}");
        assert!(!text.contains("delete set inet t egress4-rvmv1"), "{text}");
        assert!(text.contains("flush table inet t\n"), "{text}");
        assert!(text.contains("ip daddr 192.0.2.0/24 return\n"), "{text}");
        assert!(text.contains("ip daddr @egress4-rvmv1 return\n"), "{text}");
    }

    #[test]
    fn what_is_published_by_ipv6_needs_a_member_with_it() {
        let mut text = String::new();
        let published = Published {
            host_address: Ipv6Addr::UNSPECIFIED.into(),
            ..endpoint("rvmv1", None).published[0]
        };
        door(&mut text, "", published, &endpoint("rvmv1", None));
        assert_eq!(text, "");
        let address: Ipv6Addr = "fd00::2".parse().unwrap();
        let member = Endpoint {
            ipv6: Some(address),
            ..endpoint("rvmv1", None)
        };
        door(&mut text, "", published, &member);
        assert!(
            text.ends_with("tcp dport 8080 dnat ip6 to [fd00::2]:80\n"),
            "{text}"
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
