//! What is written for nft.

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
        "add element inet t sources4 { 10.1.0.2 : jump from-rvmb1 }",
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
        ipv4: Ipv4Addr::new(10, 1, 0, 3),
        ..endpoint("rvmv2", None)
    };
    let (one, both) = (
        live(false, std::slice::from_ref(&first)),
        live(false, &[first, second]),
    );
    let join = change("t", &[(Some(&one), Some(&both))]);
    assert!(
        join.lines()
            .all(|line| line.contains("rvmv2") || line.contains("10.1.0.3")),
        "{join}"
    );
    let leave = change("t", &[(Some(&both), Some(&one))]);
    assert_eq!(
        leave,
        "delete element inet t sources4 { 10.1.0.3 }\ndelete element bridge t ports { \"rvmv2\" }\nflush chain bridge t port-rvmv2\n\
         delete chain bridge t port-rvmv2\n"
    );
    assert_eq!(change("t", &[(Some(&both), Some(&both))]), "");
    let end = change("t", &[(Some(&one), None)]);
    for part in [
        "any4 { tcp . 8080 }",
        "sources4 { 10.1.0.2 }",
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
fn a_name_opens_nothing_of_the_host() {
    let egress = Egress {
        networks: vec![("192.0.2.0".parse().unwrap(), 24)],
        names: vec!["example.org".into()],
    };
    let text = joined(&live(false, &[endpoint("rvmv1", Some(egress))]));
    let to_host = lines(&text, "add rule inet t host-rvmv1 ");
    assert!(!to_host.iter().any(|rule| rule.contains('@')), "{text}");
    let [.., network, log, last] = &to_host[..] else {
        panic!("{text}")
    };
    assert!(
        network.ends_with("host-rvmv1 ip daddr 192.0.2.0/24 return"),
        "{text}"
    );
    assert!(log.contains("log prefix") && last.ends_with(" drop"), "{text}");
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
