//! The resolver's process: what it sets up, and until when it runs.
//!
//! Its sockets for members are in a network namespace of its own, which is attached to the bridge as a member is. So
//! they are in nobody's way on the host, where port 53 may be another server's, and the host's firewall has no say in them.
//! Its sockets for servers are the host's: a server on the host's loopback is reached. A socket stays in the namespace it
//! was made in, so the namespace needs no process; it and its interface end with the sockets.

use std::fs::File;
use std::io::{self, Write as _};
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::UnshareFlags;
use rvm_netlink as netlink;

use super::confine;
use super::members::Members;
use super::policy::Log;
use super::server::{Load, Server, Sockets};
use super::sets::Sets;
use super::upstream::HostServers;
use crate::definition::Definition;

/// Where the host names its servers.
const SERVERS: &str = "/etc/resolv.conf";

/// The port of DNS.
const PORT: u16 = 53;

/// The interface inside.
const INSIDE: &str = "eth0";

/// Above the users of common systems and below those of machines; the rest is of the network's ID.
const FIRST_USER: u32 = 0x6f00_0000;

/// How often it looks whether anybody is left.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a network may be empty: a container that is started again is back by then.
const EMPTY: Duration = Duration::from_secs(5);

/// The log of refused questions, beside the endpoints.
pub const LOG: &str = "egress.log";

/// The directory of endpoints, below the network's.
pub const ENDPOINTS: &str = "endpoints";

/// Why there is no resolver.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be used.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// What the network is cannot be read.
    #[error("{path} is no network")]
    Definition {
        /// Where.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A step.
    #[error("cannot {step}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The interface.
    #[error("cannot attach the resolver to the network")]
    Attach(#[from] netlink::Error),
    /// The socket for members.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: IpAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// What is given up.
    #[error("cannot confine the resolver")]
    Confine(#[from] confine::Error),
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Step {
        step,
        source: source.into(),
    }
}

fn unusable(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { path, source }
}

/// What it is to serve.
#[derive(Debug)]
pub struct Arguments {
    /// The network's definition.
    pub definition: PathBuf,
    /// The network's directory among those of what runs.
    pub directory: PathBuf,
    /// The table of the host's rules.
    pub table: String,
    /// The cgroup to be in, where there are some.
    pub cgroup: Option<PathBuf>,
}

/// Serves a network until it has no members. `ready` is told when it does.
///
/// # Errors
/// [`Error`].
pub fn run(arguments: &Arguments, ready: File) -> Result<(), Error> {
    if let Some(cgroup) = &arguments.cgroup {
        let members = cgroup.join("cgroup.procs");
        std::fs::write(&members, "0").map_err(unusable(&members))?;
    }
    // Whatever ends the session or the group of whoever started it is not meant for it.
    rustix::process::setsid().map_err(failed("leave the session"))?;
    std::env::set_current_dir("/").map_err(failed("leave the directory"))?;
    let path = &arguments.definition;
    let content = std::fs::read(path).map_err(unusable(path))?;
    let network: Definition = serde_json::from_slice(&content).map_err(|source| Error::Definition {
        path: path.clone(),
        source,
    })?;
    let path = arguments.directory.join(ENDPOINTS);
    let endpoints = File::open(&path).map_err(unusable(&path))?;
    let path = arguments.directory.join(LOG);
    let log = File::options().create(true).append(true).open(&path);
    let log = log.map_err(unusable(&path))?;
    let path = arguments.directory.parent().unwrap_or(Path::new("/"));
    let networks = File::open(path).map_err(unusable(path))?;
    let sets = start_sets(&arguments.table)?;
    let sockets = listen(&network)?;
    let user = user(&network);
    confine::answering(user, networks.as_fd(), Path::new(SERVERS))?;
    let server = Arc::new(Server {
        members: Members::new(network, endpoints.into(), Some(networks.into())),
        host_servers: HostServers::new(Path::new(SERVERS)),
        allow: Box::new(sets),
        log: Log::new(log),
        load: Load::default(),
    });
    server.start(sockets).map_err(failed("start a thread"))?;
    (&ready)
        .write_all(b"ready")
        .map_err(failed("say that it is ready"))?;
    drop(ready);
    wait_for_the_end(&server.members);
    Ok(())
}

/// Returns when there have been no members for some time, or there is no directory for them any more.
fn wait_for_the_end(members: &Members) {
    let mut last = Instant::now();
    loop {
        match members.now() {
            Ok(table) if !table.is_empty() => last = Instant::now(),
            Ok(_) if last.elapsed() < EMPTY => {}
            Ok(_) | Err(_) => return,
        }
        thread::sleep(INTERVAL);
    }
}

fn user(network: &Definition) -> u32 {
    let digits = network.id.get(..6).unwrap_or_default();
    FIRST_USER | u32::from_str_radix(digits, 16).unwrap_or(0)
}

/// Starts the process that changes sets. It ends when this one does.
fn start_sets(table: &str) -> Result<Sets, Error> {
    let (own, its) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(failed("make a pair of sockets"))?;
    Command::new("/proc/self/exe")
        .arg0("rvm-resolver")
        .args(["sets", table])
        .stdin(its)
        .stdout(Stdio::null())
        .spawn()
        .map_err(failed("start the process that changes sets"))?;
    Ok(Sets::new(own))
}

/// Listens on the network's addresses for resolvers.
fn listen(network: &Definition) -> Result<Sockets, Error> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| listen_inside(network));
        let panicked = || failed("start a thread")(io::Error::other("it panicked"));
        thread.join().unwrap_or_else(|_| Err(panicked()))
    })
}

/// In a thread of its own, which stays in the new namespace.
fn listen_inside(network: &Definition) -> Result<Sockets, Error> {
    let mut host = netlink::Socket::open()?;
    enter_new_network().map_err(failed("make a network namespace"))?;
    let own = Path::new("/proc/thread-self/ns/net");
    let namespace = File::open(own).map_err(unusable(own))?;
    let outer = interface(network);
    // That of a resolver that was killed may not have ended yet.
    host.remove(&outer)?;
    let mac = hardware_address(network);
    let veth = netlink::Veth {
        outer: &outer,
        master: Some(&network.bridge),
        inner: INSIDE,
        mac,
        mtu: network.mtu,
    };
    host.add_veth(&veth, &namespace)?;
    let mut inside = netlink::Socket::open()?;
    let up = netlink::Change {
        up: true,
        ..netlink::Change::default()
    };
    let mut addresses = vec![(IpAddr::V4(network.ipv4.resolver), network.ipv4.prefix)];
    addresses.extend(
        network
            .ipv6
            .map(|subnet| (IpAddr::V6(subnet.resolver), subnet.prefix)),
    );
    inside.change(INSIDE, &up)?;
    let mut sockets = Sockets::default();
    for (address, prefix) in addresses {
        inside.add_address(INSIDE, (address, prefix))?;
        let refused = |source| Error::Listen { address, source };
        sockets
            .udp
            .push(UdpSocket::bind((address, PORT)).map_err(refused)?);
        sockets
            .tcp
            .push(TcpListener::bind((address, PORT)).map_err(refused)?);
    }
    Ok(sockets)
}

#[expect(
    deprecated,
    reason = "what is to be kept in mind of it is about descriptor tables, and that of the namespace is another flag"
)]
fn enter_new_network() -> io::Result<()> {
    Ok(rustix::thread::unshare(UnshareFlags::NEWNET)?)
}

/// The resolver's interface on the host's side.
#[must_use]
pub fn interface(network: &Definition) -> String {
    let digits: String = network.id.chars().take(10).collect();
    format!("rvmd-{digits}")
}

/// A locally administered address that is the network's own.
fn hardware_address(network: &Definition) -> [u8; 6] {
    let octet = |at: usize| {
        let digits = network.id.get(at..at + 2).unwrap_or_default();
        u8::from_str_radix(digits, 16).unwrap_or(0)
    };
    [0x02, 0x35, octet(0), octet(2), octet(4), octet(6)]
}
