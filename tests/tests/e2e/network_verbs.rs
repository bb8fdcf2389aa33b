//! `rvm network`: its verbs and their messages, other ways to be connected than a network, and what changes while a container
//! runs.

use anyhow::{Context as _, Result};
use rvm_tests::both_modes;
use rvm_tests::images::BUSYBOX;
use rvm_tests::rvm::{Isolation, Rvm};

use super::names::{address, look_up};

/// The names of a container's interfaces.
fn interfaces(rvm: &Rvm, name: &str) -> Result<Vec<String>> {
    let output = rvm.call(["exec", name, "ls", "/sys/class/net"])?.ok();
    Ok(output.text().split_whitespace().map(str::to_owned).collect())
}

/// Changes the networks of a container that runs: a virtual machine is stopped meanwhile.
fn change(rvm: &Rvm, verb: &str, network: &str, name: &str) -> Result<()> {
    let is_vm = rvm.isolation() == Isolation::Vm;
    if is_vm {
        rvm.call(["stop", "-t", "0", name])?.ok();
    }
    rvm.call(["network", verb, network, name])?.ok();
    if is_vm {
        rvm.call(["start", name])?.ok();
    }
    Ok(())
}

/// The addresses that a container's hosts file has for the container itself.
fn own_addresses(rvm: &Rvm, name: &str) -> Result<Vec<String>> {
    let hostname = rvm.call(["exec", name, "hostname"])?.ok().text();
    let hosts = rvm.call(["exec", name, "cat", "/etc/hosts"])?.ok().text();
    let own = hosts
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .filter(|(_, names)| *names == hostname);
    Ok(own.map(|(address, _)| address.to_owned()).collect())
}

#[test]
fn networks_are_made_listed_and_removed() -> Result<()> {
    rvm_tests::rvm::in_mode(Isolation::Container, |rvm| {
        let rvm = &rvm.connected();
        let id = rvm
            .call(["network", "create", "--label", "tier=test", "app"])?
            .ok()
            .text();
        assert_eq!(id.len(), 64);
        let list = rvm.call(["network", "ls"])?.ok().text();
        let words: Vec<Vec<&str>> = list
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(words[0], ["NETWORK", "ID", "NAME", "DRIVER", "SCOPE"]);
        let rows: Vec<&[&str]> = words[1..].iter().map(|row| &row[1..]).collect();
        assert_eq!(
            rows,
            [
                ["app", "bridge", "local"],
                ["bridge", "bridge", "local"],
                ["host", "host", "local"],
                ["none", "null", "local"]
            ]
        );
        assert_eq!(
            rvm.call(["network", "ls", "-q", "--filter", "label=tier=test"])?
                .ok()
                .text(),
            id[..12]
        );
        assert_eq!(
            rvm.call([
                "network",
                "ls",
                "--filter",
                "type=custom",
                "--format",
                "{{.Name}}"
            ])?
            .ok()
            .text(),
            "app"
        );
        let subnet = rvm
            .call(["network", "inspect", "--format", "{{json .IPAM.Config}}", "app"])?
            .ok()
            .text();
        assert!(subnet.contains("\"Subnet\":\"10."), "{subnet}");

        let refused = |arguments: &[&str], expected: &[&str]| -> Result<()> {
            rvm.call([&["network"], arguments].concat())?.failed(1, expected);
            Ok(())
        };
        refused(&["create", "app"], &["network with name app already exists"])?;
        refused(
            &["create", "host"],
            &["operation is not permitted on predefined host network"],
        )?;
        refused(&["create", "a/b"], &["cannot name a network"])?;
        refused(&["create", "--subnet", "10.99.0.1/24", "x"], &["10.99.0.0/24"])?;
        refused(
            &["rm", "bridge"],
            &["bridge is a pre-defined network and cannot be removed"],
        )?;
        refused(
            &["rm", "nothing"],
            &["network nothing not found", "rvm network ls"],
        )?;
        rvm.call(["network", "rm", "-f", "nothing"])?.ok();
        rvm.call([
            "network",
            "create",
            "--subnet",
            "10.99.0.0/24",
            "--gateway",
            "10.99.0.9",
            "fixed",
        ])?
        .ok();
        refused(
            &["create", "--subnet", "10.99.0.0/16", "x"],
            &["Pool overlaps with other one on this address space"],
        )?;

        rvm.detach(
            "user",
            &[
                "--network",
                "fixed",
                "--ip",
                "10.99.0.50",
                BUSYBOX,
                "sleep",
                "1000",
            ],
        )?;
        refused(&["rm", "fixed"], &["network fixed has active endpoints (user)"])?;
        let shown = rvm
            .call(["network", "inspect", "--format", "{{json .Containers}}", "fixed"])?
            .ok()
            .text();
        assert!(
            shown.contains("\"IPv4Address\":\"10.99.0.50/24\"") && shown.contains("\"Name\":\"user\""),
            "{shown}"
        );
        for (address, expected) in [
            ("10.99.0.50", "Address already in use"),
            ("10.98.0.1", "It does not belong to any of this network's subnets"),
            ("10.99.0.9", "it belongs to the network itself"),
        ] {
            rvm.run(["--network", "fixed", "--ip", address, BUSYBOX, "true"])?
                .failed(125, &[expected]);
        }
        rvm.run(["--ip", "10.99.0.60", BUSYBOX, "true"])?.failed(
            125,
            &["user specified IP address is supported on user defined networks only"],
        );
        rvm.run(["--network", "nothing", BUSYBOX, "true"])?
            .failed(125, &["network nothing not found"]);
        rvm.call(["kill", "user"])?.ok();
        rvm.call(["wait", "user"])?.ok();
        assert_eq!(
            rvm.call(["network", "prune", "-f"])?.ok().text(),
            "Deleted Networks:\napp"
        );
        rvm.call(["rm", "-f", "user"])?.ok();
        assert_eq!(
            rvm.call(["network", "prune", "-f"])?.ok().text(),
            "Deleted Networks:\nfixed"
        );
        let actions = rvm.call([
            "events",
            "--since",
            "1h",
            "--until",
            "0s",
            "-f",
            "type=network",
            "--format",
            "{{.Action}} {{.Actor.Attributes.name}}",
        ])?;
        assert!(actions.ok().text().contains("destroy fixed"));
        Ok(())
    })
}

both_modes! {
    fn a_container_is_connected_otherwise_or_not_at_all(rvm) {
        let rvm = &rvm.connected();
        rvm.detach("lone", &["--network", "none", BUSYBOX, "sleep", "1000"])?;
        assert_eq!(interfaces(rvm, "lone")?, ["lo"]);
        assert_ne!(rvm.call(["exec", "lone", "cat", "/etc/hosts"])?.code, 0, "its image has none");
        assert_eq!(rvm.call(["inspect", "--format", "{{.HostConfig.NetworkMode}}", "lone"])?.ok().text(), "none");
        rvm.call(["network", "connect", "bridge", "lone"])?.failed(1, &["network mode none"]);
        if rvm.isolation() == Isolation::Vm {
            rvm.run(["--network", "host", BUSYBOX, "true"])?.failed(125, &["a virtual machine cannot use the host's network", "hint"]);
            rvm.run(["--network", "container:lone", BUSYBOX, "true"])?.failed(125, &["a virtual machine cannot use another container's network"]);
            rvm.in_the_other_mode().run(["--network", "container:lone", BUSYBOX, "true"])?.failed(125, &["lone is a virtual machine"]);
        } else {
            let own: Vec<String> = std::fs::read_dir("/sys/class/net")?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<Result<_>>()?;
            let shown = rvm.run(["--network", "host", BUSYBOX, "ls", "/sys/class/net"])?.ok().text();
            assert_eq!(shown.split_whitespace().count(), own.len(), "{shown}");
            rvm.detach("served", &["-h", "served", BUSYBOX, "nc", "-ll", "-p", "80", "-e", "hostname"])?;
            let shared = ["--network", "container:served", BUSYBOX, "nc", "-w", "5", "127.0.0.1", "80"];
            assert_eq!(rvm.run(shared)?.ok().text(), "served");
            let hosts = rvm.run(["--network", "container:served", BUSYBOX, "cat", "/etc/hosts"])?.ok().text();
            assert!(hosts.ends_with("\tserved"), "{hosts}");
            rvm.call(["rm", "-f", "served"])?.ok();
            rvm.run(["--network", "container:nobody", BUSYBOX, "true"])?.failed(125, &["nobody"]);
        }
        rvm.run(["--network", "none", "--ip", "10.0.0.1", BUSYBOX, "true"])?.failed(125, &["conflicting options"]);
        rvm.run(["--network", "none", "--network", "bridge", BUSYBOX, "true"])?.failed(125, &["conflicting options"]);
        rvm.call(["rm", "-f", "lone"])?.ok();
        let hosts = rvm.run(["--add-host", "db:10.1.2.3", "--add-host", "here:host-gateway", "--dns-search", "x.example", BUSYBOX, "cat", "/etc/hosts", "/etc/resolv.conf"])?;
        let text = hosts.ok().text();
        assert!(text.contains("10.1.2.3\tdb\n") && text.contains(".1\there\n") && text.contains("search x.example"), "{text}");
    }

    fn a_further_network_is_joined_as_asked(rvm) {
        let rvm = &rvm.connected();
        rvm.call(["network", "create", "--subnet", "10.97.0.0/24", "--subnet", "fd97::/64", "more"])?.ok();
        rvm.call(["create", "--name", "late", BUSYBOX, "sleep", "1000"])?.ok();
        let connect = |arguments: &[&str]| rvm.call([&["network", "connect"], arguments, &["more", "late"]].concat());
        // What cannot be is said at once, not at the next start.
        for (arguments, said) in [
            (["--ip", "10.98.0.9"], "It does not belong to any of this network's subnets (10.97.0.0/24)"),
            (["--ip", "10.97.0.1"], "it belongs to the network itself"),
            (["--ip6", "fd98::9"], "It does not belong to any of this network's subnets (fd97::/64)"),
        ] {
            connect(&arguments)?.failed(1, &[said]);
        }
        for (arguments, said) in [
            (["--mac-address", "01:00:00:00:00:09"], "invalid MAC address"),
            (["--alias", "a b"], "is no name that can be looked up"),
        ] {
            connect(&arguments)?.failed(125, &[said]);
        }
        rvm.call(["network", "connect", "--ip6", "fd97::9", "bridge", "late"])?
            .failed(1, &["user specified IP address is supported on user defined networks only"]);
        connect(&["--ip", "10.97.0.9", "--ip6", "fd97::9", "--mac-address", "02:00:00:00:00:09", "--alias", "other", "--alias", "third"])?.ok();
        rvm.call(["start", "late"])?.ok();
        let shown = |field: &str| -> Result<String> {
            let format = format!("{{{{.NetworkSettings.Networks.more.{field}}}}}");
            Ok(rvm.call(["inspect", "--format", &format, "late"])?.ok().text())
        };
        assert_eq!(shown("IPAddress")?, "10.97.0.9");
        assert_eq!(shown("GlobalIPv6Address")?, "fd97::9");
        assert_eq!(shown("MacAddress")?, "02:00:00:00:00:09");
        let mac = rvm.call(["exec", "late", "cat", "/sys/class/net/eth1/address"])?.ok().text();
        assert_eq!(mac, "02:00:00:00:00:09");
        let found = rvm.run(["--network", "more", BUSYBOX, "ping", "-4", "-c", "1", "third"])?.ok();
        assert!(found.text().contains("10.97.0.9"), "{}", found.describe());
        rvm.remove_containers()?;
        rvm.call(["network", "rm", "more"])?.ok();
    }

    fn what_a_vanished_container_has_left_is_disconnected_by_force(rvm) {
        let rvm = &rvm.connected();
        rvm.call(["network", "create", "app"])?.ok();
        let id = rvm.detach("gone", &["--network", "app", BUSYBOX, "sleep", "1000"])?;
        let endpoint = std::fs::read_dir(rvm.run_directory().join("networks"))?
            .filter_map(|entry| Some(entry.ok()?.path().join("endpoints").join(format!("{}.json", id.trim()))))
            .find(|path| path.exists())
            .context("it is on no network")?;
        let kept = std::fs::read(&endpoint)?;
        let forced = ["network", "disconnect", "-f", "app", "gone"];
        if rvm.isolation() == Isolation::Vm {
            rvm.call(forced)?.failed(1, &["gone is a running virtual machine"]);
        }
        rvm.call(["rm", "-f", "gone"])?.ok();
        rvm.call(forced)?.failed(1, &["gone"]);
        // As if its supervisor had been killed and its directory removed by hand.
        std::fs::create_dir_all(endpoint.parent().context("no directory")?)?;
        std::fs::write(&endpoint, kept)?;
        rvm.call(["network", "disconnect", "app", "gone"])?.failed(1, &["gone"]);
        assert!(endpoint.exists());
        rvm.call(forced)?.ok();
        assert!(!endpoint.exists());
        rvm.call(forced)?.failed(1, &["gone"]);
        rvm.call(["network", "rm", "app"])?.ok();
    }

    fn rules_that_somebody_has_flushed_are_made_again_by_the_next_who_joins(rvm) {
        let rvm = &rvm.connected();
        rvm.call(["network", "create", "app"])?.ok();
        rvm.detach("first", &["-p", "8080:80", BUSYBOX, "sleep", "1000"])?;
        let doors = || -> Result<usize> {
            let rules = rvm_tests::command::tool("nft", &["list", "ruleset"])?;
            Ok(rules.lines().filter(|line| line.contains("dnat ip to")).count())
        };
        assert_eq!(doors()?, 1);
        rvm_tests::command::tool("nft", &["flush", "ruleset"])?;
        rvm.detach("second", &["--network", "app", "-p", "8081:80", BUSYBOX, "sleep", "1000"])?;
        assert_eq!(doors()?, 2);
        rvm_tests::command::tool("nft", &["flush", "ruleset"])?;
        rvm.call(["rm", "-f", "second"])?.ok();
        assert_eq!(doors()?, 1);
        rvm.remove_containers()?;
        rvm.call(["network", "rm", "app"])?.ok();
    }

    fn networks_are_joined_and_left_later(rvm) {
        let rvm = &rvm.connected();
        rvm.call(["network", "create", "more"])?.ok();
        rvm.detach("moving", &[BUSYBOX, "sleep", "1000"])?;
        let connect = ["network", "connect", "--alias", "later", "more", "moving"];
        if rvm.isolation() == Isolation::Vm {
            rvm.call(connect)?.failed(1, &["moving is a running virtual machine", "rvm stop moving"]);
            rvm.call(["stop", "-t", "0", "moving"])?.ok();
            rvm.call(connect)?.ok();
            rvm.call(["start", "moving"])?.ok();
        } else {
            rvm.call(connect)?.ok();
        }
        assert_eq!(interfaces(rvm, "moving")?, ["eth0", "eth1", "lo"]);
        rvm.call(connect)?.failed(1, &["endpoint with name moving already exists in network more"]);
        let aliases = rvm.call(["inspect", "--format", "{{json .NetworkSettings.Networks.more.Aliases}}", "moving"])?;
        assert_eq!(aliases.ok().text(), r#"["later"]"#);
        rvm.call(["network", "disconnect", "nothing", "moving"])?.failed(1, &["network nothing not found"]);
        if rvm.isolation() == Isolation::Vm {
            rvm.call(["network", "disconnect", "bridge", "moving"])?.failed(1, &["running virtual machine"]);
            rvm.call(["stop", "-t", "0", "moving"])?.ok();
            rvm.call(["network", "disconnect", "bridge", "moving"])?.ok();
            rvm.call(["start", "moving"])?.ok();
            assert_eq!(interfaces(rvm, "moving")?, ["eth0", "lo"]);
        } else {
            rvm.call(["network", "disconnect", "bridge", "moving"])?.ok();
            assert_eq!(interfaces(rvm, "moving")?, ["eth1", "lo"]);
        }
        assert_eq!(look_up(rvm, "moving", "later")?, [address(rvm, "moving", "more")?]);
        // What is left leads elsewhere now.
        let routes = rvm.call(["exec", "moving", "ip", "route"])?.ok().text();
        assert!(routes.contains("default via 10."), "{routes}");
        rvm.call(["network", "disconnect", "bridge", "moving"])?.failed(1, &["moving is not connected to network bridge"]);
        rvm.call(["rm", "-f", "moving"])?.ok();
        rvm.call(["network", "rm", "more"])?.ok();
    }

    fn names_are_found_on_the_networks_that_are_joined_and_left_later(rvm) {
        let rvm = &rvm.connected();
        rvm.call(["network", "create", "more"])?.ok();
        let other = rvm.in_the_other_mode();
        rvm.detach("moving", &["--dns-option", "timeout:7", BUSYBOX, "sleep", "1000"])?;
        other.detach("here", &[BUSYBOX, "sleep", "1000"])?;
        other.detach("there", &["--network", "more", BUSYBOX, "sleep", "1000"])?;
        let (here, there) = (address(rvm, "here", "bridge")?, address(rvm, "there", "more")?);
        let resolv = || Ok::<_, anyhow::Error>(rvm.call(["exec", "moving", "cat", "/etc/resolv.conf"])?.ok().text());
        let write = |text: &str| rvm.call(["exec", "moving", "sh", "-c", text]);
        let rest = "\noptions timeout:7";

        write("echo 192.0.2.7 mine >>/etc/hosts")?.ok();
        change(rvm, "connect", "more", "moving")?;
        assert_eq!(look_up(rvm, "moving", "here")?, std::slice::from_ref(&here));
        assert_eq!(own_addresses(rvm, "moving")?, [address(rvm, "moving", "bridge")?, address(rvm, "moving", "more")?]);
        assert_eq!(resolv()?.matches("nameserver").count(), 2);

        change(rvm, "disconnect", "bridge", "moving")?;
        let own = address(rvm, "moving", "more")?;
        assert_eq!(look_up(rvm, "moving", "there")?, std::slice::from_ref(&there));
        assert_eq!(look_up(rvm, "moving", "moving")?, std::slice::from_ref(&own));
        assert_eq!(look_up(rvm, "moving", "here")?, [""; 0]);
        assert_eq!(own_addresses(rvm, "moving")?, [own]);
        let text = resolv()?;
        assert!(text.matches("nameserver").count() == 1 && text.ends_with(rest), "{text}");

        // What it has written itself stays, as long as it runs.
        if rvm.isolation() == Isolation::Container {
            let hosts = write("cat /etc/hosts")?.ok().text();
            assert!(hosts.contains("192.0.2.7 mine\n"), "{hosts}");
            write("echo nameserver 192.0.2.53 >/etc/resolv.conf")?.ok();
        }
        change(rvm, "connect", "bridge", "moving")?;
        if rvm.isolation() == Isolation::Container {
            assert_eq!(resolv()?, "nameserver 192.0.2.53");
            rvm.call(["restart", "-t", "0", "moving"])?.ok();
        }
        for (name, address) in [("here", here), ("there", there)] {
            assert_eq!(look_up(rvm, "moving", name)?, [address], "{name}");
        }
        rvm.remove_containers()?;
        rvm.call(["network", "rm", "more"])?.ok();
    }
}
