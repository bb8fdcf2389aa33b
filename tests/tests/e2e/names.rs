//! Names of networks' members: who finds whom, by which name, and who answers.

use std::fs;
use std::net::UdpSocket;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use rvm_tests::both_modes;
use rvm_tests::command::LIMIT;
use rvm_tests::images::{BUSYBOX, DEBIAN};
use rvm_tests::processes;
use rvm_tests::rvm::Rvm;
use rvm_tests::wait::wait_until;

/// The addresses that a container finds by a name, in no order; none where it finds nothing.
pub(super) fn look_up(rvm: &Rvm, container: &str, name: &str) -> Result<Vec<String>> {
    let output = rvm.call(["exec", container, "nslookup", "-type=a", name])?;
    let text = output.text();
    // What precedes the first empty line is about the server.
    let (_, answers) = text.split_once("\n\n").unwrap_or_default();
    let mut addresses: Vec<_> = answers
        .lines()
        .filter_map(|line| line.strip_prefix("Address: "))
        .map(|address| address.trim().to_owned())
        .collect();
    addresses.sort();
    Ok(addresses)
}

/// A container's address on a network.
pub(super) fn address(rvm: &Rvm, name: &str, network: &str) -> Result<String> {
    let output = rvm.call(["inspect", name])?.ok();
    let list: serde_json::Value = serde_json::from_str(&output.text())?;
    let found = list.pointer(&format!("/0/NetworkSettings/Networks/{network}/IPAddress"));
    let address = found.and_then(serde_json::Value::as_str);
    Ok(address
        .with_context(|| format!("{name} is not on {network}"))?
        .to_owned())
}

/// The processes of resolvers.
fn resolvers() -> Result<Vec<i32>> {
    let all = processes::all()?;
    let ours = all
        .values()
        .filter(|process| process.name == "rvm-resolver" && process.state != 'Z');
    // The one that changes sets is the other's child.
    let pids: Vec<_> = ours.clone().map(|process| process.pid).collect();
    Ok(ours
        .filter(|process| !pids.contains(&process.parent))
        .map(|process| process.pid)
        .collect())
}

both_modes! {
    fn members_find_each_other_by_name_and_alias_on_their_network_alone(rvm) {
        let rvm = &rvm.connected();
        let other = rvm.in_the_other_mode();
        for network in ["names-a", "names-b"] {
            rvm.call(["network", "create", network])?.ok();
        }
        let idle = [BUSYBOX, "sleep", "1h"];
        let on = |rvm: &Rvm, name: &str, arguments: &[&str]| rvm.detach(name, &[arguments, &idle].concat());
        on(rvm, "one", &["--network", "names-a", "--network-alias", "Both"])?;
        let id = on(&other, "two", &["--network", "names-a", "--network-alias", "both"])?;
        on(rvm, "far", &["--network", "names-b"])?;
        on(rvm, "three", &["--network", "names-a", "--network", "names-b"])?;
        let (one, two) = (address(rvm, "one", "names-a")?, address(rvm, "two", "names-a")?);
        for from in ["one", "two", "three"] {
            for name in ["one", "ONE", "one.names-a"] {
                assert_eq!(look_up(rvm, from, name)?, std::slice::from_ref(&one), "{from} {name}");
            }
            assert_eq!(look_up(rvm, from, &id[..12])?, std::slice::from_ref(&two), "{from}");
            let mut both = vec![one.clone(), two.clone()];
            both.sort();
            assert_eq!(look_up(rvm, from, "both")?, both, "{from}");
        }
        let far = address(rvm, "far", "names-b")?;
        assert_eq!(look_up(rvm, "three", "far")?, [far]);
        assert!(look_up(rvm, "one", "far")?.is_empty());
        assert!(look_up(rvm, "far", "one")?.is_empty());
        // What is gone is not found, and what has come is.
        rvm.call(["rm", "-f", "two"])?.ok();
        assert!(look_up(rvm, "one", "two")?.is_empty());
        on(&other, "two", &["--network", "names-a"])?;
        assert_eq!(look_up(rvm, "one", "two")?, [address(rvm, "two", "names-a")?]);
        rvm.remove_containers()?;
        for network in ["names-a", "names-b"] {
            rvm.call(["network", "rm", network])?.ok();
        }
    }

    fn c_libraries_find_names_and_addresses(rvm) {
        let rvm = &rvm.connected();
        rvm.call(["network", "create", "--ipv6", "names-c"])?.ok();
        rvm.detach("web", &["--network", "names-c", BUSYBOX, "sleep", "1h"])?;
        let address = address(rvm, "web", "names-c")?;
        let getent = |arguments: &[&str]| -> Result<String> {
            let all = [&["--network", "names-c", DEBIAN, "getent"][..], arguments].concat();
            Ok(rvm.run(all)?.ok().text())
        };
        assert!(getent(&["ahostsv4", "web"])?.starts_with(&address));
        assert!(getent(&["ahostsv6", "web"])?.starts_with("fd"));
        assert!(getent(&["hosts", &address])?.contains("web.names-c"));
        rvm.remove_containers()?;
        rvm.call(["network", "rm", "names-c"])?.ok();
    }

    fn a_resolver_that_was_killed_is_started_again(rvm) {
        let rvm = &rvm.connected();
        rvm.call(["network", "create", "names-d"])?.ok();
        rvm.detach("web", &["--network", "names-d", BUSYBOX, "sleep", "1h"])?;
        let address = address(rvm, "web", "names-d")?;
        for _ in 0..3 {
            let running = resolvers()?;
            ensure!(running.len() == 1, "{running:?}");
            for pid in &running {
                kill_process(Pid::from_raw(*pid).context("no process")?, Signal::KILL)?;
            }
            wait_until("another one runs", LIMIT, || {
                Ok(resolvers()?.iter().any(|pid| !running.contains(pid)))
            })?;
            wait_until("it answers", LIMIT, || {
                Ok(look_up(rvm, "web", "web")? == [address.clone()])
            })?;
        }
        rvm.remove_containers()?;
        rvm.call(["network", "rm", "names-d"])?.ok();
        wait_until("it ends with its members", LIMIT, || Ok(resolvers()?.is_empty()))?;
    }

    fn other_names_are_asked_of_the_servers_that_were_given(rvm) {
        let rvm = &rvm.connected();
        let server = FakeServer::start()?;
        let dns = ["--dns", FakeServer::ADDRESS];
        rvm.call(["network", "create", "names-e"])?.ok();
        rvm.call(["network", "create", "--internal", "names-f"])?.ok();
        rvm.detach("out", &[&dns[..], &["--network", "names-e", BUSYBOX, "sleep", "1h"]].concat())?;
        rvm.detach("in", &[&dns[..], &["--network", "names-f", BUSYBOX, "sleep", "1h"]].concat())?;
        assert_eq!(look_up(rvm, "out", "example.test")?, [FakeServer::TOLD]);
        let asked = server.asked();
        assert!(asked > 0);
        // Nobody asks for a member of an internal network.
        assert!(look_up(rvm, "in", "example.test")?.is_empty());
        assert_eq!(server.asked(), asked);
        assert_eq!(look_up(rvm, "in", "in")?, [address(rvm, "in", "names-f")?]);
        rvm.remove_containers()?;
        for network in ["names-e", "names-f"] {
            rvm.call(["network", "rm", network])?.ok();
        }
    }
}

/// A server on this machine that knows one address for every name. It ends with the test's program.
pub(super) struct FakeServer {
    asked: std::sync::Arc<std::sync::atomic::AtomicUsize>,
    /// Holds the port as long as it is wanted.
    _socket: UdpSocket,
}

impl FakeServer {
    /// Where it is, on the loopback: asked from the host's namespace it is reached.
    pub(super) const ADDRESS: &str = "127.0.0.77";
    /// What it tells.
    pub(super) const TOLD: &str = "192.0.2.77";

    pub(super) fn start() -> Result<Self> {
        let socket = UdpSocket::bind((Self::ADDRESS, 53))?;
        socket.set_read_timeout(Some(std::time::Duration::from_millis(100)))?;
        let asked = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (own, counter) = (socket.try_clone()?, std::sync::Arc::downgrade(&asked));
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Some(counter) = counter.upgrade() {
                let Ok((length, from)) = own.recv_from(&mut buffer) else {
                    continue;
                };
                counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if let Some(answer) = answer(&buffer[..length]) {
                    let _ = own.send_to(&answer, from);
                }
            }
        });
        Ok(Self {
            asked,
            _socket: socket,
        })
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// The question, and for an IPv4 address the one that is told.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    let name = question.get(12..)?.iter().position(|byte| *byte == 0)?;
    let end = 12 + name + 5;
    let is_a = question.get(end - 4..end - 2)? == [0, 1];
    let mut answer = question.get(..2)?.to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    answer.extend(question.get(12..end)?);
    if is_a {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4]);
        let told: std::net::Ipv4Addr = FakeServer::TOLD.parse().ok()?;
        answer.extend(told.octets());
    }
    Some(answer)
}

#[test]
fn the_resolver_has_no_rights() -> Result<()> {
    rvm_tests::rvm::in_mode(rvm_tests::rvm::Isolation::Container, |rvm| {
        let rvm = &rvm.connected();
        rvm.detach("web", &[BUSYBOX, "sleep", "1h"])?;
        for pid in resolvers()? {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            for line in [
                "CapEff:\t0000000000000000",
                "CapPrm:\t0000000000000000",
                "NoNewPrivs:\t1",
                "Seccomp:\t2",
            ] {
                ensure!(status.contains(line), "{line}: {status}");
            }
            ensure!(!status.contains("Uid:\t0\t"), "{status}");
        }
        rvm.remove_containers()
    })
}
