//! Networks: who reaches whom, in either mode and across both, and what is left of it.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::process::{Child, Command};
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, tool};
use rvm_tests::images::BUSYBOX;
use rvm_tests::rvm::Rvm;
use rvm_tests::wait::wait_until;

/// Says its container's host name to everybody who connects.
const SERVER: [&str; 7] = ["nc", "-ll", "-p", "80", "-e", "hostname", "-s"];

/// A machine beyond this one, which knows no way back to any network of containers.
struct Outside {
    /// Its network namespace lives as long as this process of it.
    process: Child,
}

/// Where it is, and where this machine is to it.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const HERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PORT: u16 = 7000;

impl Outside {
    /// Makes it; it says to everybody who connects where he comes from.
    fn new() -> Result<Self> {
        let process = Command::new("unshare").args(["-n", "sleep", "1000"]).spawn()?;
        let outside = Self { process };
        let id = outside.process.id().to_string();
        let path = format!("/proc/{id}/ns/net");
        let own = fs::read_link("/proc/self/ns/net")?;
        wait_until("it is elsewhere", LIMIT, || Ok(fs::read_link(&path)? != own))?;
        tool(
            "ip",
            &[
                "link", "add", "outer0", "type", "veth", "peer", "name", "inner0", "netns", &id,
            ],
        )?;
        tool("ip", &["addr", "add", "192.0.2.1/24", "dev", "outer0"])?;
        tool("ip", &["link", "set", "outer0", "up"])?;
        outside.run(&["ip", "addr", "add", "192.0.2.2/24", "dev", "inner0"])?;
        outside.run(&["ip", "link", "set", "inner0", "up"])?;
        let namespace = File::open(path)?;
        let listener = thread::spawn(move || -> Result<TcpListener> {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?)
        });
        let listener = listener.join().map_err(|_| anyhow!("the server panicked"))??;
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                if let Ok(peer) = stream.peer_addr() {
                    let _ = writeln!(stream, "{}", peer.ip());
                }
            }
        });
        Ok(outside)
    }

    /// Runs a command there.
    fn run(&self, command: &[&str]) -> Result<String> {
        let id = self.process.id().to_string();
        tool("nsenter", &[&["-t", &id, "-n"], command].concat())
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // The namespace goes with it and with the listener, and the interfaces now.
        let _ = tool("ip", &["link", "del", "outer0"]);
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A container's address on its first network.
fn address(rvm: &Rvm, name: &str) -> Result<String> {
    let output = rvm
        .call(["inspect", "--format", "{{.NetworkSettings.IPAddress}}", name])?
        .ok();
    Ok(output.text())
}

/// Starts a server, and waits until it listens.
fn serve(rvm: &Rvm, name: &str, arguments: &[&str]) -> Result<String> {
    let server = &SERVER[..6];
    rvm.detach(name, &[arguments, &["-h", name, BUSYBOX], server].concat())?;
    wait_until("it listens", LIMIT, || {
        let output = rvm.call(["exec", name, "netstat", "-lnt"])?;
        Ok(output.text().contains(":80 "))
    })?;
    address(rvm, name)
}

/// What a server at an address says to a container.
fn ask(rvm: &Rvm, name: &str, address: &str, port: &str) -> Result<String> {
    let output = rvm.call(["exec", name, "nc", "-w", "5", address, port])?;
    ensure!(output.code == 0, "{}", output.describe());
    Ok(output.text())
}

fn cannot_ask(rvm: &Rvm, name: &str, address: &str, port: &str) -> Result<()> {
    let output = rvm.call(["exec", name, "nc", "-w", "2", address, port])?;
    ensure!(
        output.code != 0,
        "{name} reaches {address}: {}",
        output.describe()
    );
    Ok(())
}

/// Connects from this machine.
fn from_here(address: &str) -> Result<String> {
    let mut text = String::new();
    TcpStream::connect((address, 80))?.read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

/// Everything about networks on this machine but what counts or changes by itself.
fn state() -> Result<String> {
    let rules = tool("nft", &["list", "ruleset"])?;
    Ok(format!("{}\n{rules}", tool("ip", &["-br", "link"])?))
}

/// Fails, with the lines that only one of them has, where two texts differ.
fn require_same(before: &str, after: &str) -> Result<()> {
    let without = |text: &str, other: &str| -> Vec<String> {
        let other: Vec<_> = other.lines().collect();
        text.lines()
            .filter(|line| !other.contains(line))
            .map(str::to_owned)
            .collect()
    };
    let (gone, new) = (without(before, after), without(after, before));
    ensure!(before == after, "gone: {gone:#?}, new: {new:#?}");
    Ok(())
}

both_modes! {
    fn containers_of_either_kind_reach_each_other_and_beyond(rvm) {
        let rvm = &rvm.connected();
        let outside = Outside::new()?;
        let other = rvm.in_the_other_mode();
        let first = serve(rvm, "first", &[])?;
        let second = serve(rvm, "second", &[])?;
        let third = serve(&other, "third", &[])?;
        for (name, from) in [("first", rvm), ("second", rvm), ("third", &other)] {
            for (address, host) in [(&first, "first"), (&second, "second"), (&third, "third")] {
                assert_eq!(ask(from, name, address, "80")?, host, "{name} to {address}");
                // By name as well.
                assert_eq!(ask(from, name, host, "80")?, host, "{name} to {host}");
            }
            // Beyond this machine, they are this machine.
            assert_eq!(ask(from, name, &OUTSIDE.to_string(), &PORT.to_string())?, HERE.to_string());
            rvm.call(["exec", name, "ping", "-c", "1", "-W", "5", &first])?.ok();
        }
        assert_eq!(from_here(&first)?, "first");
        // What is not published cannot be reached from beyond, whoever knows the way.
        let network = format!("{}0/24", &first[..first.rfind('.').context("no address")? + 1]);
        outside.run(&["ip", "route", "add", &network, "via", &HERE.to_string()])?;
        assert!(outside.run(&["busybox", "nc", "-w", "2", &first, "80"]).is_err());

        // What each sees of it.
        let shown = rvm.call(["exec", "first", "ip", "-o", "-4", "addr", "show", "eth0"])?.ok().text();
        assert!(shown.contains(&format!("inet {first}/20")), "{shown}");
        let hosts = rvm.call(["exec", "first", "cat", "/etc/hosts"])?.ok().text();
        assert!(hosts.contains(&format!("{first}\tfirst")), "{hosts}");
        assert_eq!(rvm.call(["exec", "first", "cat", "/etc/hostname"])?.ok().text(), "first");
        rvm.call(["exec", "first", "sh", "-c", "echo '192.0.2.9 more' >> /etc/hosts"])?.ok();
        let diff = rvm.call(["diff", "first"])?.ok().text();
        assert!(!diff.contains("host") && !diff.contains("resolv.conf"), "{diff}");
        rvm.call(["rm", "-f", "first", "second", "third"])?.ok();
    }

    fn networks_are_kept_apart(rvm) {
        let rvm = &rvm.connected();
        let _outside = Outside::new()?;
        rvm.call(["network", "create", "--label", "tier=test", "app"])?.ok();
        rvm.call(["network", "create", "--internal", "--ipv6", "back"])?.ok();
        let app = serve(rvm, "app1", &["--network", "app"])?;
        serve(rvm, "both", &["--network", "app", "--network", "name=back,alias=bridge-head"])?;
        serve(rvm, "back1", &["--network", "back", "--ip6", &ipv6_of(rvm, "back")?])?;
        let back = address(rvm, "back1")?;
        // Across networks, by address, nobody is reached; a member of both is by both.
        cannot_ask(rvm, "app1", &back, "80")?;
        cannot_ask(rvm, "back1", &app, "80")?;
        assert_eq!(ask(rvm, "app1", "both", "80")?, "both");
        assert_eq!(ask(rvm, "back1", "bridge-head", "80")?, "both");
        assert_eq!(ask(rvm, "both", &back, "80")?, "back1");
        assert_eq!(ask(rvm, "both", &app, "80")?, "app1");
        // One that leads nowhere leads nowhere, and what is on both leads on by the other.
        let (beyond, port) = (OUTSIDE.to_string(), PORT.to_string());
        cannot_ask(rvm, "back1", &beyond, &port)?;
        assert_eq!(ask(rvm, "both", &beyond, &port)?, HERE.to_string());
        let routes = rvm.call(["exec", "back1", "ip", "route"])?.ok().text();
        assert!(!routes.contains("default"), "{routes}");
        // IPv6 at once: nobody is asked whether somebody has the address.
        let wanted = ipv6_of(rvm, "back")?;
        let shown = rvm.call(["inspect", "--format", "{{.NetworkSettings.Networks.back.GlobalIPv6Address}}", "back1"])?;
        assert_eq!(shown.ok().text(), wanted);
        assert_eq!(ask(rvm, "both", &wanted, "80")?, "back1");
        rvm.call(["rm", "-f", "app1", "both", "back1"])?.ok();
        rvm.call(["network", "rm", "app", "back"])?.ok();
    }

    fn nobody_claims_to_be_another(rvm) {
        let rvm = &rvm.connected();
        let victim = serve(rvm, "victim", &[])?;
        let liar = serve(rvm, "liar", &["--cap-add", "NET_ADMIN"])?;
        assert_eq!(ask(rvm, "liar", &victim, "80")?, "victim");
        let gateway = rvm.call(["inspect", "--format", "{{.NetworkSettings.Gateway}}", "liar"])?.ok().text();
        let reach = |name: &str, address: &str| -> Result<bool> {
            Ok(rvm.call(["exec", name, "ping", "-c", "1", "-W", "2", address])?.code == 0)
        };
        assert!(reach("liar", &gateway)?);
        // With another's address nothing of what it sends arrives, nor with another hardware address.
        let stolen = format!("{}77", &liar[..liar.rfind('.').context("no address")? + 1]);
        let to = |script: &str| -> Result<()> { rvm.call(["exec", "liar", "sh", "-c", script])?.ok(); Ok(()) };
        to(&format!("ip addr add {stolen}/20 dev eth0"))?;
        let lie = rvm.call(["exec", "liar", "ping", "-c", "1", "-W", "2", "-I", &stolen, &victim])?;
        assert_ne!(lie.code, 0, "{}", lie.describe());
        assert!(reach("liar", &victim)?, "with its own address it is heard");
        to("ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:77; ip link set eth0 up")?;
        assert!(!reach("liar", &gateway)?);
        rvm.call(["rm", "-f", "victim", "liar"])?.ok();
    }

    fn a_killed_supervisor_s_network_is_taken_down_by_the_next_command(rvm) {
        let rvm = &rvm.connected();
        let before = state()?;
        rvm.call(["network", "create", "gone"])?.ok();
        rvm.detach("gone1", &["--network", "gone", BUSYBOX, "sleep", "1000"])?;
        let supervisor = rvm.call(["inspect", "--format", "{{.State.SupervisorPid}}", "gone1"])?.ok().text();
        assert_ne!(state()?, before);
        tool("kill", &["-9", &supervisor])?;
        wait_until("it is seen to have ended", LIMIT, || {
            Ok(rvm.call(["inspect", "--format", "{{.State.Status}}", "gone1"])?.text() == "exited")
        })?;
        wait_until("nothing is left", LIMIT, || Ok(state()? == before))?;
        // And it can be started again, on the same network.
        rvm.call(["start", "gone1"])?.ok();
        assert!(!address(rvm, "gone1")?.is_empty());
        rvm.call(["rm", "-f", "gone1"])?.ok();
        rvm.call(["network", "rm", "gone"])?.ok();
        wait_until("nothing is left", LIMIT, || Ok(state()? == before))?;
    }

    fn rules_of_one_who_was_killed_on_its_way_off_a_network_go(rvm) {
        let rvm = &rvm.connected();
        let before = state()?;
        rvm.detach("stays", &[BUSYBOX, "sleep", "1000"])?;
        let id = rvm.detach("goes", &["-p", "8080:80", BUSYBOX, "sleep", "1000"])?;
        let supervisor = rvm.call(["inspect", "--format", "{{.State.SupervisorPid}}", "goes"])?.ok().text();
        let network = rvm.call(["network", "inspect", "--format", "{{.Id}}", "bridge"])?.ok().text();
        tool("kill", &["-9", &supervisor])?;
        // As if that had come when its file was gone and its rules were not.
        fs::remove_file(rvm.run_directory().join(format!("networks/{network}/endpoints/{id}.json")))?;
        let has_door = || Ok::<_, anyhow::Error>(tool("nft", &["list", "ruleset"])?.contains("8080"));
        ensure!(has_door()?);
        wait_until("its rules are gone", LIMIT, || {
            rvm.call(["ps", "-a"])?.ok();
            Ok(!has_door()?)
        })?;
        rvm.call(["rm", "-f", "stays", "goes"])?.ok();
        wait_until("nothing is left", LIMIT, || Ok(state()? == before))?;
    }

    fn making_and_removing_changes_nothing_in_the_end(rvm) {
        let rvm = &rvm.connected();
        let rounds: u32 = std::env::var("RVM_TEST_ROUNDS").map_or(Ok(20), |rounds| rounds.parse())?;
        let mounts = || fs::read_to_string("/proc/self/mountinfo");
        let (before, mounted, all) = (state()?, mounts()?, rvm.snapshot()?);
        for _ in 0..rounds {
            for kind in ["network", "volume"] {
                rvm.call([kind, "create", "cycle"])?.ok();
            }
            let flags = ["--network", "cycle", "-p", "8080:80", "-v", "cycle:/kept", "-v", "/anonymous"];
            rvm.run([&flags[..], &[BUSYBOX, "ip", "-o", "addr", "show", "eth0"]].concat())?.ok();
            for kind in ["network", "volume"] {
                rvm.call([kind, "rm", "cycle"])?.ok();
            }
        }
        let waited = wait_until("interfaces, rules and mounts are as they were", LIMIT, || {
            Ok(state()? == before && mounts()? == mounted)
        });
        if waited.is_err() {
            require_same(&before, &state()?)?;
            require_same(&mounted, &mounts()?)?;
        }
        waited?;
        all.nothing_new()?;
    }
}

/// A member's address on a network with IPv6.
fn ipv6_of(rvm: &Rvm, network: &str) -> Result<String> {
    let document = rvm
        .call(["network", "inspect", "--format", "{{json .IPAM.Config}}", network])?
        .ok();
    let config: serde_json::Value = serde_json::from_str(&document.text())?;
    let subnet = config[1]["Subnet"].as_str().context("no IPv6")?.to_owned();
    Ok(subnet.replace("::/64", "::99"))
}
