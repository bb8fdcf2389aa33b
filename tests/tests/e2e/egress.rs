//! Policies of where a container may connect to.

use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsFd as _;
use std::thread;

use anyhow::{Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rvm_tests::both_modes;
use rvm_tests::command::tool;
use rvm_tests::images::BUSYBOX;
use rvm_tests::rvm::Rvm;

use super::names::{FakeServer, look_up};

const NAMESPACE: &str = "rvm-world";

/// Addresses of the world; the first is what [`FakeServer`] tells.
const WORLD: [&str; 2] = [FakeServer::TOLD, "192.0.2.78"];

/// A machine beyond this one, with two addresses, that says `hello` to everybody who connects, and sends datagrams back.
struct World;

impl World {
    fn new() -> Result<Self> {
        let world = Self;
        for command in [
            &["netns", "add", NAMESPACE][..],
            &[
                "link", "add", "world0", "type", "veth", "peer", "name", "inner0", "netns", NAMESPACE,
            ],
            &["addr", "add", "192.0.2.65/26", "dev", "world0"],
            &["link", "set", "world0", "up"],
            &["-n", NAMESPACE, "addr", "add", "192.0.2.77/26", "dev", "inner0"],
            &["-n", NAMESPACE, "addr", "add", "192.0.2.78/26", "dev", "inner0"],
            &["-n", NAMESPACE, "link", "set", "inner0", "up"],
        ] {
            tool("ip", command)?;
        }
        let namespace = File::open(format!("/run/netns/{NAMESPACE}"))?;
        let sockets = thread::spawn(move || -> Result<(TcpListener, UdpSocket)> {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            let everywhere = |port| (Ipv4Addr::UNSPECIFIED, port);
            Ok((
                TcpListener::bind(everywhere(80))?,
                UdpSocket::bind(everywhere(7))?,
            ))
        });
        let panicked = |_| anyhow::anyhow!("the server panicked");
        let (listener, datagrams) = sockets.join().map_err(panicked)??;
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = datagrams.recv_from(&mut buffer) {
                let _ = datagrams.send_to(buffer.get(..length).unwrap_or_default(), from);
            }
        });
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let _ = writeln!(stream, "hello");
            }
        });
        Ok(world)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = tool("ip", &["netns", "del", NAMESPACE]);
        let _ = tool("ip", &["link", "del", "world0"]);
    }
}

/// Whether a container reaches a port 80.
fn reaches(rvm: &Rvm, name: &str, address: &str) -> Result<bool> {
    let output = rvm.call(["exec", name, "nc", "-w", "3", address, "80"])?;
    Ok(output.code == 0 && output.text() == "hello")
}

both_modes! {
    fn networks_that_are_allowed_are_reached_and_no_others(rvm) {
        let rvm = &rvm.connected();
        let _world = World::new()?;
        let idle = |name: &str, policy: &[&str]| rvm.detach(name, &[policy, &[BUSYBOX, "sleep", "1h"]].concat());
        idle("all", &[])?;
        idle("none", &["--egress", "none"])?;
        idle("one", &["--egress", "allow=192.0.2.77"])?;
        idle("both", &["--egress", "allow=192.0.2.64/27,10.0.0.0/8"])?;
        for (name, expected) in [
            ("all", [true, true]),
            ("none", [false, false]),
            ("one", [true, false]),
            ("both", [true, true]),
        ] {
            for (address, expected) in WORLD.into_iter().zip(expected) {
                assert_eq!(reaches(rvm, name, address)?, expected, "{name} {address}");
            }
        }
        // What is on the same network is not outside.
        let peer = rvm.call(["inspect", "--format", "{{.NetworkSettings.IPAddress}}", "all"])?.ok().text();
        rvm.call(["exec", "none", "ping", "-c", "1", "-W", "5", &peer])?.ok();
        let shown = rvm.call(["inspect", "--format", "{{.HostConfig.Egress}}", "both"])?.ok().text();
        assert_eq!(shown, "allow=192.0.2.64/27,10.0.0.0/8");
        rvm.remove_containers()?;
    }

    fn what_another_began_does_not_go_on(rvm) {
        let rvm = &rvm.connected();
        let _world = World::new()?;
        rvm.call(["network", "create", "--subnet", "10.99.7.0/24", "again"])?.ok();
        // The one has the other's address, and asks from its port.
        let ask = |policy: &[&str]| {
            let command = [BUSYBOX, "/probe", "ask-datagram", "40000", "192.0.2.77:7"];
            rvm.run([&["--network", "again", "--ip", "10.99.7.2"], policy, &command].concat())
        };
        assert_eq!(ask(&[])?.ok().text(), "hello");
        ask(&["--egress", "none"])?.failed(1, &["no answer"]);
        rvm.call(["network", "rm", "again"])?.ok();
    }

    fn names_that_are_allowed_open_what_they_stand_for(rvm) {
        let rvm = &rvm.connected();
        let _world = World::new()?;
        let server = FakeServer::start()?;
        rvm.call(["network", "create", "egress"])?.ok();
        let policy = ["--egress", "allow=good.test,*.fine.test", "--dns", FakeServer::ADDRESS];
        rvm.detach("web", &[&policy[..], &["--network", "egress", BUSYBOX, "sleep", "1h"]].concat())?;
        ensure!(!reaches(rvm, "web", FakeServer::TOLD)?, "it is not open before it was asked for");
        let asked = server.asked();
        for name in ["bad.test", "fine.test", "xgood.test"] {
            assert!(look_up(rvm, "web", name)?.is_empty(), "{name}");
        }
        assert_eq!(server.asked(), asked, "a name that is not allowed was told");
        ensure!(!reaches(rvm, "web", FakeServer::TOLD)?);
        assert_eq!(look_up(rvm, "web", "a.fine.test")?, [FakeServer::TOLD]);
        ensure!(reaches(rvm, "web", FakeServer::TOLD)?);
        ensure!(!reaches(rvm, "web", WORLD[1])?);
        // Another member's rules are made anew, and what was opened stays open.
        rvm.run(["--network", "egress", "--egress", "none", BUSYBOX, "true"])?.ok();
        ensure!(reaches(rvm, "web", FakeServer::TOLD)?);
        // Another container's answers are not this one's.
        rvm.detach("other", &[&policy[..], &["--network", "egress", BUSYBOX, "sleep", "1h"]].concat())?;
        ensure!(!reaches(rvm, "other", FakeServer::TOLD)?);
        let id = rvm.call(["network", "inspect", "--format", "{{.Id}}", "egress"])?.ok().text();
        let log = rvm.run_directory().join("networks").join(id).join("egress.log");
        let log = std::fs::read_to_string(log)?;
        ensure!(log.contains("\"bad.test\"") && !log.contains("a.fine.test"), "{log}");
        rvm.remove_containers()?;
        rvm.call(["network", "rm", "egress"])?.ok();
    }
}
