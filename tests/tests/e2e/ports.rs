//! Published ports: by which addresses they are reached, whose they are, and how they are listed.

use std::io::Read as _;
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, tool};
use rvm_tests::images::{BUSYBOX, DEBIAN};
use rvm_tests::processes;
use rvm_tests::rvm::{Isolation, Rvm};
use rvm_tests::wait::wait_until;

/// Says its container's host name to everybody who connects.
const SERVER: [&str; 7] = [BUSYBOX, "nc", "-ll", "-p", "80", "-e", "hostname"];

/// Starts a server, and waits until it listens.
fn serve(rvm: &Rvm, name: &str, arguments: &[&str]) -> Result<()> {
    rvm.detach(name, &[arguments, &["-h", name], &SERVER].concat())?;
    listens(rvm, name)
}

fn listens(rvm: &Rvm, name: &str) -> Result<()> {
    wait_until("it listens", LIMIT, || {
        Ok(rvm
            .call(["exec", name, "netstat", "-lnt"])?
            .text()
            .contains(":80 "))
    })
}

/// What a server says to this machine.
fn ask(address: &str, port: u16) -> Result<String> {
    let mut stream = TcpStream::connect((address, port)).with_context(|| format!("{address}:{port}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

/// This machine's address on the default network.
fn gateway(rvm: &Rvm, name: &str) -> Result<String> {
    let format = "{{.NetworkSettings.Gateway}}";
    Ok(rvm.call(["inspect", "--format", format, name])?.ok().text())
}

/// A further address of this machine.
struct OfThisMachine(&'static str);

impl OfThisMachine {
    fn new(address: &'static str) -> Result<Self> {
        tool("ip", &["addr", "add", address, "dev", "lo"])?;
        Ok(Self(address))
    }
}

impl Drop for OfThisMachine {
    fn drop(&mut self) {
        let _ = tool("ip", &["addr", "del", self.0, "dev", "lo"]);
    }
}

both_modes! {
    fn a_published_port_is_reached_by_every_address_of_this_machine(rvm) {
        let rvm = &rvm.connected();
        let other = rvm.in_the_other_mode();
        serve(rvm, "web", &["-p", "8080:80"])?;
        serve(&other, "peer", &[])?;
        let gateway = gateway(rvm, "web")?;
        for address in ["127.0.0.1", "::1", &gateway] {
            assert_eq!(ask(address, 8080)?, "web", "{address}");
        }
        // From another container, and from the container itself.
        for from in ["peer", "web"] {
            let output = rvm.call(["exec", from, "nc", "-w", "10", &gateway, "8080"])?.ok();
            assert_eq!(output.text(), "web", "{from}");
        }
        rvm.remove_containers()?;
        ensure!(ask("127.0.0.1", 8080).is_err());
    }

    fn ports_lead_by_another_network_when_theirs_is_left(rvm) {
        let rvm = &rvm.connected();
        rvm.call(["network", "create", "more"])?.ok();
        rvm.call(["network", "create", "--internal", "inner"])?.ok();
        serve(rvm, "web", &["-p", "8080:80"])?;
        let is_vm = rvm.isolation() == Isolation::Vm;
        // A machine has the devices that it was started with.
        let change = |verb: &str, network: &str| -> Result<()> {
            let call = ["network", verb, network, "web"];
            if is_vm {
                rvm.call(call)?.failed(1, &["web is a running virtual machine", "rvm stop web"]);
                rvm.call(["stop", "-t", "0", "web"])?.ok();
                rvm.call(call)?.ok();
                rvm.call(["start", "web"])?.ok();
                return listens(rvm, "web");
            }
            rvm.call(call)?.ok();
            Ok(())
        };
        let is_served = || Ok(ask("127.0.0.1", 8080).is_ok_and(|name| name == "web"));
        change("connect", "inner")?;
        change("connect", "more")?;
        change("disconnect", "bridge")?;
        wait_until("it is served by the other network", LIMIT, is_served)?;
        let gateway = rvm.call(["inspect", "--format", "{{.NetworkSettings.Networks.more.Gateway}}", "web"])?.ok().text();
        assert_eq!(ask(&gateway, 8080)?, "web");
        assert_eq!(rvm.call(["port", "web"])?.ok().text(), "80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080");
        // Where no network leads anywhere the port is anybody's, and it is the container's again with the next that does.
        change("disconnect", "more")?;
        assert_eq!(rvm.call(["port", "web"])?.ok().text(), "");
        if !is_vm {
            rvm.in_the_other_mode().run(["-p", "8080:80", BUSYBOX, "true"])?.ok();
            let holder = std::net::TcpListener::bind("0.0.0.0:8080")?;
            rvm.call(["network", "connect", "more", "web"])?.failed(1, &["port is already allocated"]);
            drop(holder);
        }
        change("connect", "more")?;
        wait_until("it is served again", LIMIT, is_served)?;
        rvm.remove_containers()?;
        ensure!(ask("127.0.0.1", 8080).is_err());
        rvm.call(["network", "rm", "more", "inner"])?.ok();
    }

    fn ports_that_went_over_end_with_their_supervisor(rvm) {
        let rvm = &rvm.connected();
        rvm.call(["network", "create", "more"])?.ok();
        serve(rvm, "web", &["-p", "8080:80", "--network", "bridge", "--network", "more"])?;
        if rvm.isolation() == Isolation::Container {
            rvm.call(["network", "disconnect", "bridge", "web"])?.ok();
            assert_eq!(ask("127.0.0.1", 8080)?, "web");
        }
        let is_supervisor = |pid: &i32| processes::arguments(*pid).iter().any(|word| word == "supervise");
        for pid in processes::all()?.into_keys().filter(is_supervisor) {
            processes::kill(pid)?;
        }
        wait_until("the end is seen", LIMIT, || Ok(rvm.call(["ps", "-q"])?.ok().text().is_empty()))?;
        ensure!(ask("127.0.0.1", 8080).is_err());
        ensure!(!tool("nft", &["list", "ruleset"])?.contains("8080"), "a rule of a port is left");
        rvm.remove_containers()?;
        rvm.call(["network", "rm", "more"])?.ok();
    }

    fn a_port_is_one_containers_and_free_when_it_ends(rvm) {
        let rvm = &rvm.connected();
        serve(rvm, "web", &["-p", "8080:80"])?;
        let other = rvm.in_the_other_mode();
        let said = "Bind for 0.0.0.0:8080 failed: port is already allocated";
        for rvm in [rvm, &other] {
            rvm.run(["-p", "8080:80", BUSYBOX, "true"])?.failed(125, &[said]);
        }
        // Another address would be another port, were it not among all of them.
        rvm.run(["-p", "127.0.0.1:8080:80", BUSYBOX, "true"])?.failed(125, &["127.0.0.1:8080"]);
        rvm.call(["restart", "-t", "0", "web"])?.ok();
        wait_until("it is served again", LIMIT, || Ok(ask("127.0.0.1", 8080).is_ok_and(|name| name == "web")))?;
        rvm.call(["stop", "-t", "0", "web"])?.ok();
        other.run(["-p", "8080:80", BUSYBOX, "true"])?.ok();
        rvm.remove_containers()?;
    }

    fn ports_are_listed_as_docker_lists_them(rvm) {
        let rvm = &rvm.connected();
        serve(rvm, "web", &["-p", "8080:80", "-p", "127.0.0.1:5353:53/udp", "--expose", "7000-7001"])?;
        let port = |arguments: &[&str]| rvm.call([&["port", "web"], arguments].concat());
        let list = "53/udp -> 127.0.0.1:5353\n80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080";
        assert_eq!(port(&[])?.ok().text(), list);
        assert_eq!(port(&["80"])?.ok().text(), "0.0.0.0:8080\n[::]:8080");
        assert_eq!(port(&["53/udp"])?.ok().text(), "127.0.0.1:5353");
        port(&["53"])?.failed(1, &["no public port '53/tcp' published for web"]);
        let ports = |arguments: &[&str]| -> Result<String> {
            let all = [&["ps", "-a", "--format", "{{.Ports}}"], arguments].concat();
            Ok(rvm.call(all)?.ok().text())
        };
        let shown = "7000-7001/tcp, 127.0.0.1:5353->53/udp, 0.0.0.0:8080->80/tcp, [::]:8080->80/tcp";
        assert_eq!(ports(&[])?, shown);
        for (filter, is_shown) in [
            ("publish=80", true),
            ("publish=8080", true),
            ("publish=53", false),
            ("publish=50-60/udp", true),
            ("publish=7000", false),
            ("expose=7000", true),
            ("expose=80", true),
            ("expose=81", false),
        ] {
            assert_eq!(!ports(&["--filter", filter])?.is_empty(), is_shown, "{filter}");
        }
        let list: serde_json::Value = serde_json::from_str(&rvm.call(["inspect", "web"])?.ok().text())?;
        let at = |pointer: &str| list.pointer(pointer).cloned().unwrap_or_default();
        assert_eq!(at("/0/NetworkSettings/Ports/53~1udp/0/HostPort"), "5353");
        assert_eq!(at("/0/NetworkSettings/Ports/7000~1tcp"), serde_json::Value::Null);
        assert_eq!(at("/0/HostConfig/PortBindings/80~1tcp/0/HostPort"), "8080");
        rvm.call(["stop", "-t", "0", "web"])?.ok();
        assert_eq!((ports(&[])?, port(&[])?.ok().text()), (String::new(), String::new()));
        rvm.remove_containers()?;
    }

    fn all_that_is_exposed_gets_some_port(rvm) {
        let rvm = &rvm.connected();
        serve(rvm, "web", &["-P", "--expose", "80"])?;
        let shown = rvm.call(["port", "web", "80"])?.ok().text();
        let port = shown.lines().next().and_then(|line| line.rsplit(':').next()).context("no port")?;
        assert_eq!(ask("127.0.0.1", port.parse()?)?, "web");
        rvm.remove_containers()?;
    }

    fn datagrams_are_answered(rvm) {
        let rvm = &rvm.connected();
        rvm.detach("echo", &["-p", "5300:53/udp", BUSYBOX, "/probe", "echo-datagrams", "53"])?;
        wait_until("it listens", LIMIT, || Ok(rvm.call(["logs", "echo"])?.text().contains("ready")))?;
        let gateway = gateway(rvm, "echo")?;
        for (own, address) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("127.0.0.1:0", "127.0.0.2"),
            ("[::1]:0", "::1"),
            ("0.0.0.0:0", &gateway),
        ] {
            let socket = UdpSocket::bind(own)?;
            socket.connect((address, 5300))?;
            socket.set_read_timeout(Some(Duration::from_secs(10)))?;
            for text in ["one", "two"] {
                socket.send(text.as_bytes())?;
                let mut buffer = [0; 16];
                let length = socket.recv(&mut buffer).with_context(|| address.to_owned())?;
                assert_eq!(&buffer[..length], text.as_bytes());
            }
        }
        rvm.remove_containers()?;
    }

    fn who_has_the_address_next_is_not_reached_by_the_port(rvm) {
        let rvm = &rvm.connected();
        rvm.detach("stay", &[BUSYBOX, "sleep", "1h"])?;
        let echo = |name: &str, ports: &[&str]| {
            rvm.detach(name, &[ports, &[BUSYBOX, "/probe", "echo-datagrams", "53"]].concat())?;
            wait_until("it listens", LIMIT, || Ok(rvm.call(["logs", name])?.text().contains("ready")))?;
            let address = "{{.NetworkSettings.IPAddress}}";
            Ok::<_, anyhow::Error>(rvm.call(["inspect", "--format", address, name])?.ok().text())
        };
        let first = echo("first", &["-p", "5301:53/udp"])?;
        // What it sends is of one connection all the time.
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((gateway(rvm, "first")?, 5301))?;
        let answered = || -> Result<bool> {
            socket.set_read_timeout(Some(Duration::from_secs(3)))?;
            Ok(socket.send(b"x").is_ok() && socket.recv(&mut [0; 8]).is_ok())
        };
        wait_until("it is reached", LIMIT, &answered)?;
        rvm.call(["rm", "-f", "first"])?.ok();
        assert_eq!(echo("second", &[])?, first);
        ensure!(!answered()? && !answered()?, "a port that nobody has published leads somewhere");
        rvm.remove_containers()?;
    }

    fn a_neighbour_hears_datagrams_from_the_address_that_it_asked(rvm) {
        let rvm = &rvm.connected();
        rvm.detach("echo", &["-p", "5300:53/udp", BUSYBOX, "/probe", "echo-datagrams", "53"])?;
        wait_until("it listens", LIMIT, || Ok(rvm.call(["logs", "echo"])?.text().contains("ready")))?;
        rvm.in_the_other_mode().detach("peer", &[DEBIAN, "sleep", "1000"])?;
        let _address = OfThisMachine::new("192.0.2.9/32")?;
        for address in [&gateway(rvm, "echo")?, "192.0.2.9"] {
            // A socket that is connected.
            let ask = format!("exec 3<>/dev/udp/{address}/5300; echo hello >&3; timeout 10 head -c 5 <&3");
            let output = rvm.call(["exec", "peer", "bash", "-c", &ask])?;
            assert_eq!(output.text(), "hello", "{address}: {}", output.describe());
        }
        rvm.remove_containers()?;
    }

    fn ports_that_cannot_be_are_refused(rvm) {
        let rvm = &rvm.connected();
        for (arguments, said) in [
            (&["-p", "x:80"][..], "invalid hostPort: x"),
            (&["-p", "80:x"], "invalid containerPort: x"),
            (&["-p", "80/sctp"], "invalid proto: sctp"),
            (&["-p", "1-2:1-3"], "invalid ranges specified"),
            (&["--expose", "x"], "--expose: x"),
            (&["--egress", "all"], "is no policy"),
            (&["-p", "192.0.2.200:80:80"], "cannot assign requested address"),
        ] {
            rvm.run([arguments, &[BUSYBOX, "true"]].concat())?.failed(125, &[said]);
        }
        // Without a network there is nothing to publish, and nobody minds.
        rvm.run(["--network", "none", "-p", "8080:80", BUSYBOX, "true"])?.ok();
    }
}

#[test]
fn on_the_hosts_network_ports_are_the_hosts() -> Result<()> {
    rvm_tests::rvm::in_mode(rvm_tests::rvm::Isolation::Container, |rvm| {
        let rvm = &rvm.connected();
        let output = rvm
            .run(["--network", "host", "-p", "8080:80", BUSYBOX, "true"])?
            .ok();
        let said = "WARNING: Published ports are discarded when using host network mode";
        ensure!(output.errors().contains(said), "{}", output.describe());
        rvm.run(["--network", "host", "--egress", "none", BUSYBOX, "true"])?
            .failed(125, &["conflicting options: egress policy and the network mode"]);
        Ok(())
    })
}
