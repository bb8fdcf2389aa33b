//! Interfaces between network namespaces of the test's own. Needs root and `ip`.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rvm_netlink::{Change, Error, Socket, Veth};

/// A network namespace, while it lives.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        let name = format!("rvm-{name}-{}", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &name]).status().unwrap();
        assert!(made.success());
        Self(name)
    }

    fn open(&self) -> File {
        File::open(format!("/run/netns/{}", self.0)).unwrap()
    }

    fn socket(&self) -> Socket {
        let file = self.open();
        let enter = move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            Socket::open().unwrap()
        };
        std::thread::spawn(enter).join().unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

#[test]
fn a_pair_joins_a_bridge_and_a_namespace() {
    let (outside, inside) = (Namespace::new("out"), Namespace::new("in"));
    let (mut outer, mut inner) = (outside.socket(), inside.socket());
    let (mac, other) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    outer.add_bridge("br0", mac, Some(1400)).unwrap();
    let again = outer.add_bridge("br0", mac, None).unwrap_err();
    assert!(again.exists(), "{again}");
    assert_eq!(again.to_string(), "cannot make the bridge br0");
    let gateway = "10.9.0.1".parse().unwrap();
    outer.add_address("br0", (gateway, 24)).unwrap();
    outer
        .change(
            "br0",
            &Change {
                up: true,
                ..Change::default()
            },
        )
        .unwrap();
    let veth = Veth {
        outer: "port0",
        master: Some("br0"),
        inner: "eth0",
        mac: other,
        mtu: Some(1400),
    };
    outer.add_veth(&veth, inside.open()).unwrap();
    let bridge = outer.find("br0").unwrap();
    assert_eq!(outer.find("port0").unwrap().master, Some(bridge.index));
    assert_eq!(inner.find("eth0").unwrap().mac, Some(other));
    assert!(
        outer
            .addresses()
            .unwrap()
            .contains(&(bridge.index, (gateway, 24)))
    );
    assert!(
        outer
            .routes()
            .unwrap()
            .contains(&("10.9.0.0".parse().unwrap(), 24))
    );

    inner
        .add_address("eth0", ("10.9.0.2".parse().unwrap(), 24))
        .unwrap();
    inner
        .add_address("eth0", ("fd00::2".parse().unwrap(), 64))
        .unwrap();
    inner
        .change(
            "eth0",
            &Change {
                up: true,
                ..Change::default()
            },
        )
        .unwrap();
    inner.add_default_route("eth0", gateway, 0).unwrap();
    inner
        .add_default_route("eth0", "fd00::1".parse().unwrap(), 7)
        .unwrap();
    let renamed = Change {
        name: Some("eth1"),
        ..Change::default()
    };
    assert!(outer.change("port1", &renamed).is_err());
    assert!(outer.remove("port0").unwrap());
    assert!(!outer.remove("port0").unwrap());
    assert!(matches!(inner.find("eth0"), Err(Error::Missing(_))));
}

#[test]
fn an_interface_moves_under_another_name() {
    let (outside, inside) = (Namespace::new("from"), Namespace::new("to"));
    let mut outer = outside.socket();
    outer.add_bridge("a", [2, 0, 0, 0, 0, 3], None).unwrap();
    let veth = Veth {
        outer: "b",
        master: None,
        inner: "c",
        mac: [2, 0, 0, 0, 0, 4],
        mtu: None,
    };
    outer.add_veth(&veth, outside.open()).unwrap();
    outer.move_to("c", inside.open(), "eth0").unwrap();
    assert!(matches!(outer.find("c"), Err(Error::Missing(_))));
    assert_eq!(
        inside.socket().find("eth0").unwrap().mac,
        Some([2, 0, 0, 0, 0, 4])
    );
}
