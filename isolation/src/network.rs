//! The workload's network interfaces: brought into its namespace and set up there, by a thread that enters it. So the
//! workload's own process needs to know nothing of it, and one that runs already can get another interface the same way.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::thread;

use rustix::thread::ThreadNameSpaceType;
use rvm_netlink::{Change, Socket, Veth};

use crate::environment::{Device, Interface};
use crate::plan;

/// Why an interface could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace could not be entered: the workload may have ended.
    #[error("cannot enter the container's network namespace")]
    Enter(#[source] io::Error),
    /// There is no such device where it should be.
    #[error("no network device has the address {0}")]
    NoDevice(String),
    /// The kernel refused.
    #[error(transparent)]
    Link(#[from] rvm_netlink::Error),
    /// A setting of the kernel could not be made.
    #[error("cannot write {0}")]
    Setting(PathBuf, #[source] io::Error),
}

/// Checks that what is asked for can be there at all.
pub(crate) fn check(interfaces: &[Interface], own_namespace: bool) -> Result<(), plan::Error> {
    let refuse = |reason: &str| {
        Err(plan::Error::Invalid {
            field: "environment.interfaces".into(),
            reason: reason.into(),
        })
    };
    if !interfaces.is_empty() && !own_namespace {
        return refuse("need a network namespace of the container's own");
    }
    let mut names: Vec<&str> = interfaces
        .iter()
        .map(|interface| interface.name.as_str())
        .collect();
    names.sort_unstable();
    if names.windows(2).any(|pair| pair.first() == pair.last()) || names.contains(&"lo") {
        return refuse("have names that are not their own");
    }
    Ok(())
}

/// Gives a new workload its interfaces. `process` is a descriptor of its first process, here and below.
pub(crate) fn plug(process: impl AsFd, interfaces: &[Interface]) -> Result<(), Error> {
    if interfaces.is_empty() {
        return Ok(());
    }
    let mut outside = Socket::open()?;
    inside(process, |namespace, mut socket| {
        for interface in interfaces {
            bring(&mut outside, namespace, interface)?;
            set_up(&mut socket, interface)?;
        }
        Ok(())
    })
}

/// Gives a workload one more interface, with the first name of its kind that is free whatever `interface` says.
///
/// # Errors
/// As [`Error`] says.
pub fn plug_further(process: impl AsFd, interface: &Interface) -> Result<(), Error> {
    let mut outside = Socket::open()?;
    inside(process, |namespace, mut socket| {
        let links = socket.links()?;
        let is_free = |name: &String| !links.iter().any(|link| link.name == *name);
        let mut names = (0..=links.len()).map(|index| format!("eth{index}"));
        let interface = Interface {
            name: names.find(is_free).unwrap_or_else(|| interface.name.clone()),
            ..interface.clone()
        };
        bring(&mut outside, namespace, &interface)?;
        set_up(&mut socket, &interface)
    })
}

/// Makes the interface with this hardware address that which leads elsewhere, unless another does. One that a workload has
/// removed is no error: it has its own way.
///
/// # Errors
/// As [`Error`] says.
pub fn route(process: impl AsFd, mac: [u8; 6], gateways: &[IpAddr]) -> Result<(), Error> {
    inside(process, |_, mut socket| {
        let links = socket.links()?;
        let Some(link) = links.iter().find(|link| link.mac == Some(mac)) else {
            return Ok(());
        };
        for gateway in gateways {
            match socket.add_default_route(&link.name, *gateway, 0) {
                Err(error) if error.exists() => {}
                other => other?,
            }
        }
        Ok(())
    })
}

/// Does something in a thread that is in the network namespace of a process, with that namespace and a socket of it.
fn inside<T: Send>(
    process: impl AsFd,
    act: impl FnOnce(&File, Socket) -> Result<T, Error> + Send,
) -> Result<T, Error> {
    let process = process.as_fd();
    let work = move || {
        rustix::thread::move_into_thread_name_spaces(process, ThreadNameSpaceType::NETWORK)
            .map_err(|error| Error::Enter(error.into()))?;
        let namespace = File::open("/proc/thread-self/ns/net").map_err(Error::Enter)?;
        act(&namespace, Socket::open()?)
    };
    thread::scope(|scope| {
        let spawned = thread::Builder::new()
            .spawn_scoped(scope, work)
            .map_err(Error::Enter)?;
        let panicked = |_| {
            Err(Error::Enter(io::Error::other(
                "the thread that entered it panicked",
            )))
        };
        spawned.join().unwrap_or_else(panicked)
    })
}

fn bring(outside: &mut Socket, namespace: &File, interface: &Interface) -> Result<(), Error> {
    match &interface.device {
        Device::Veth { outer, bridge } => {
            let veth = Veth {
                outer,
                master: Some(bridge),
                inner: &interface.name,
                mac: interface.mac,
                mtu: interface.mtu,
            };
            Ok(outside.add_veth(&veth, namespace)?)
        }
        Device::Present => {
            let links = outside.links()?;
            let found = links.iter().find(|link| link.mac == Some(interface.mac));
            let found = found.ok_or_else(|| {
                let digits = interface.mac.map(|byte| format!("{byte:02x}"));
                Error::NoDevice(digits.join(":"))
            })?;
            Ok(outside.move_to(&found.name, namespace, &interface.name)?)
        }
    }
}

fn set_up(socket: &mut Socket, interface: &Interface) -> Result<(), Error> {
    let name = &interface.name;
    let has_ipv6 = interface.addresses.iter().any(|(address, _)| address.is_ipv6());
    // Before it is up, for then it gives itself an address. Nobody else has its addresses, and routers are the host's business.
    if has_ipv6 {
        setting(name, "accept_dad", "0")?;
        setting(name, "accept_ra", "0")?;
    } else {
        setting(name, "disable_ipv6", "1")?;
    }
    for address in &interface.addresses {
        socket.add_address(name, *address)?;
    }
    let change = Change {
        mtu: interface.mtu,
        up: true,
        ..Change::default()
    };
    socket.change(name, &change)?;
    for gateway in &interface.gateways {
        socket.add_default_route(name, *gateway, 0)?;
    }
    Ok(())
}

/// The kernel shows each thread the settings of its own network namespace. Without IPv6 there are none.
fn setting(interface: &str, name: &str, value: &str) -> Result<(), Error> {
    let path = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{interface}/{name}"));
    match fs::write(&path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| Error::Setting(path, source)),
    }
}
