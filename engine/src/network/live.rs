//! A container's connections while it runs: made before there is a workload, and undone after its end.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespaceBuilder, LinuxNamespaceType, Spec};
use rvm_isolation::{Device, Interface, OwnFile, PrivateFile};
use rvm_network::definition::Definition;
use rvm_network::endpoint::Endpoint;
use rvm_network::{Port, Wish};

use super::service::{self, Doors, Held, Ports};
use super::{Attachment, Error, Mode, files, names_of, own};
use crate::json;
use crate::record::{Isolation, Record, State};
use crate::store::Store;

/// What a container's files are, for one that joins its network later.
const FILES: &str = "files.json";

/// What a workload gets of its connections.
#[derive(Debug, Default)]
pub(crate) struct Connected {
    /// Its interfaces.
    pub(crate) interfaces: Vec<Interface>,
    /// Its files.
    pub(crate) files: Vec<PrivateFile>,
    /// The other side of a virtual machine's interfaces, in the same order.
    pub(crate) taps: Vec<Tap>,
    /// The network namespace of another container.
    namespace: Option<File>,
    #[expect(dead_code, reason = "its published ports are served as long as this is there")]
    ports: Option<Held>,
}

/// A TAP interface; it is there as long as this or a copy of its descriptor is.
#[derive(Debug)]
pub(crate) struct Tap {
    pub(crate) file: OwnedFd,
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: Option<u16>,
}

impl Connected {
    /// Connects a container that this process owns and that is about to run. Its published ports are `ports` as long as this is
    /// there.
    pub(crate) fn new(store: &Store, record: &Record, spec: &Spec, ports: &Ports) -> Result<Self, Error> {
        let networking = &record.settings.network;
        let connected = match &networking.mode {
            Mode::Networks(attachments) if !attachments.is_empty() => {
                Self::join(store, record, spec, attachments, ports)?
            }
            Mode::None | Mode::Networks(_) => Self {
                files: files::of_loner(spec, networking)?,
                ..Self::default()
            },
            Mode::Host => Self {
                files: files::of_host(spec, networking)?,
                ..Self::default()
            },
            Mode::Container(id) => return Self::of_another(store, id),
        };
        if !connected.files.is_empty() {
            json::write(&store.run_directory(&record.id).join(FILES), &connected.files)?;
        }
        Ok(connected)
    }

    fn join(
        store: &Store,
        record: &Record,
        spec: &Spec,
        attachments: &[Attachment],
        ports: &Ports,
    ) -> Result<Self, Error> {
        let plane = store.networks();
        let doors = Doors::reserve(record, &plane, attachments)?;
        let wishes: Vec<Wish> = attachments
            .iter()
            .map(|attachment| Wish {
                published: doors.of(&attachment.network),
                ..wish(record, attachment)
            })
            .collect();
        let members = plane.join(&wishes, &|other| store.is_owned(other))?;
        let taps = match record.isolation {
            Isolation::Container => Ok(Vec::new()),
            Isolation::Vm => members
                .iter()
                .map(|(definition, endpoint)| tap(&plane, definition, endpoint))
                .collect(),
        };
        let made = taps.and_then(|taps| {
            service::resolve_names(store, &record.id, &members)?;
            ports.serve(doors.open(&members)?);
            Ok(Self {
                interfaces: interfaces(&members, record.isolation),
                files: files::of_member(spec, &record.settings.network, &members)?,
                taps,
                namespace: None,
                ports: Some(Held(ports.clone())),
            })
        });
        if made.is_err() {
            ports.serve(None);
            // What went wrong first is what the person needs to know; what stays is put right by whoever joins next.
            let _ = store.leave_networks(&record.id);
        }
        made
    }

    /// What another container has, which must not end meanwhile.
    fn of_another(store: &Store, id: &str) -> Result<Self, Error> {
        let running = |record: &Record| match record.state {
            State::Running { pid, .. } => Some(pid),
            _ => None,
        };
        let other = store.find(id)?;
        let pid = running(&other).ok_or_else(|| Error::NotRunning(other.name.clone()))?;
        let failed = |source| Error::Join(other.name.clone(), source);
        let namespace = File::open(format!("/proc/{pid}/ns/net")).map_err(failed)?;
        let path = store.run_directory(id).join(FILES);
        let files = match json::read(&path) {
            Err(error) if error.is_not_found() => Vec::new(),
            other => other?,
        };
        // Still the same one: so the number was no other process' either.
        if running(&store.find(id)?) != Some(pid) {
            return Err(Error::NotRunning(other.name));
        }
        Ok(Self {
            files,
            namespace: Some(namespace),
            ..Self::default()
        })
    }

    /// The specification, with the namespace of another container where that is to be joined.
    pub(crate) fn in_namespace(&self, spec: Spec) -> Result<Spec, oci_spec::OciSpecError> {
        let Some(namespace) = &self.namespace else {
            return Ok(spec);
        };
        let joined = LinuxNamespaceBuilder::default()
            .typ(LinuxNamespaceType::Network)
            .path(PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd())))
            .build()?;
        let mut spec = spec;
        if let Some(linux) = spec.linux_mut() {
            let mut namespaces = linux.namespaces().clone().unwrap_or_default();
            namespaces.push(joined);
            linux.set_namespaces(Some(namespaces));
        }
        Ok(spec)
    }
}

/// A container that runs on the host's kernel, whose networks change.
#[derive(Clone, Copy)]
pub(crate) struct Running<'a> {
    pub(crate) store: &'a Store,
    pub(crate) record: &'a Record,
    /// A descriptor of its first process.
    pub(crate) process: &'a OwnedFd,
    /// Files that say where it is.
    pub(crate) own_files: &'a [OwnFile],
    /// Its published ports.
    pub(crate) ports: &'a Ports,
    /// The networks that it is to be on afterwards.
    pub(crate) networks: &'a [Attachment],
}

impl Running<'_> {
    /// Puts it on a further network. Published ports that led nowhere so far lead by this one, if it leads anywhere.
    pub(crate) fn join(self, attachment: &Attachment) -> Result<(), Error> {
        let Self { store, record, .. } = self;
        let plane = store.networks();
        let doors = if self.ports.are_open() {
            Doors::default()
        } else {
            Doors::reserve(record, &plane, std::slice::from_ref(attachment))?
        };
        let wish = Wish {
            published: doors.of(&attachment.network),
            ..wish(record, attachment)
        };
        let joined = plane.join(&[wish], &|other| store.is_owned(other))?;
        let plugged = joined.iter().try_for_each(|(definition, endpoint)| {
            let interface = interface(definition, endpoint, record.isolation, "eth0".to_owned());
            rvm_isolation::plug_further(self.process, &interface)
        });
        let served = plugged
            .map_err(Error::from)
            .and_then(|()| self.reroute(&plane))
            .and_then(|()| service::resolve_names(store, &record.id, &joined))
            .and_then(|()| doors.open(&joined));
        match served {
            Ok(None) => Ok(()),
            Ok(served) => {
                self.ports.serve(served);
                Ok(())
            }
            Err(error) => {
                // What went wrong first is what the person needs to know.
                let _ = plane.leave(&record.id, Some(&attachment.network), &|other| {
                    store.is_owned(other)
                });
                Err(error)
            }
        }
    }

    /// Takes it off a network. Published ports that led by it lead by another.
    pub(crate) fn leave(self, network: &str) -> Result<(), Error> {
        let plane = self.store.networks();
        let is_owned = |other: &str| self.store.is_owned(other);
        self.ports
            .leave(&plane, &self.record.id, network, self.networks, &is_owned)?;
        self.reroute(&plane)
    }

    /// Says in its files where it is now, as they do from the start. What it has written there itself stays.
    pub(crate) fn tell(self, spec: &Spec) -> Result<(), Error> {
        // Not where it was on no network at its start: the image's files are its own then.
        if self.own_files.is_empty() {
            return Ok(());
        }
        let path = self.store.run_directory(&self.record.id).join(FILES);
        let old: Vec<PrivateFile> = json::read(&path)?;
        let members = self.members(&self.store.networks())?;
        let new = files::of_member(spec, &self.record.settings.network, &members)?;
        own::rewrite(self.own_files, &old, &new)?;
        // For the next change, and for those who join this container's networks.
        Ok(json::write(&path, &new)?)
    }

    /// How it is on its networks, in their order.
    fn members(self, plane: &rvm_network::Plane) -> Result<Vec<(Definition, Endpoint)>, Error> {
        let place = |definition: &Definition| {
            self.networks
                .iter()
                .position(|attachment| attachment.network == definition.id)
        };
        let mut members = plane.memberships(&self.record.id)?;
        members.sort_by_key(|(definition, _)| place(definition));
        Ok(members)
    }

    /// Everything else is reached by the first of its networks that leads anywhere, if there is one.
    fn reroute(self, plane: &rvm_network::Plane) -> Result<(), Error> {
        let members = self.members(plane)?;
        let leading = || members.iter().filter(|(definition, _)| !definition.internal);
        if let Some((definition, endpoint)) = leading().next() {
            rvm_isolation::route(self.process, endpoint.mac, &[definition.ipv4.gateway.into()])?;
        }
        let ipv6 = leading().find_map(|(definition, endpoint)| Some((definition.ipv6?, endpoint)));
        if let Some((subnet, endpoint)) = ipv6 {
            rvm_isolation::route(self.process, endpoint.mac, &[subnet.gateway.into()])?;
        }
        Ok(())
    }
}

/// What is asked of a network.
pub(super) fn wish(record: &Record, attachment: &Attachment) -> Wish {
    Wish {
        network: attachment.network.clone(),
        container: record.id.clone(),
        names: names_of(record, attachment),
        port: match record.isolation {
            Isolation::Vm => Port::Tap,
            Isolation::Container => Port::Veth,
        },
        ipv4: attachment.ipv4,
        ipv6: attachment.ipv6,
        mac: attachment.mac.map(|mac| mac.0),
        dns_servers: record.settings.network.dns.clone(),
        published: Vec::new(),
        egress: record.settings.egress.clone(),
    }
}

fn tap(plane: &rvm_network::Plane, definition: &Definition, endpoint: &Endpoint) -> Result<Tap, Error> {
    let file = rvm_vmm::sys::open_tap(&endpoint.interface, false)
        .map_err(|source| Error::Tap(endpoint.interface.clone(), source))?;
    plane.plug(definition, endpoint)?;
    Ok(Tap {
        file,
        mac: endpoint.mac,
        mtu: definition.mtu,
    })
}

/// The interfaces of a container on these networks. Everything else is reached by the first that leads anywhere.
fn interfaces(members: &[(Definition, Endpoint)], isolation: Isolation) -> Vec<Interface> {
    let leads = |definition: &Definition| !definition.internal;
    let first = members.iter().position(|(definition, _)| leads(definition));
    let first_v6 = members
        .iter()
        .position(|(definition, _)| leads(definition) && definition.ipv6.is_some());
    let interface = |(index, (definition, endpoint)): (usize, &(Definition, Endpoint))| {
        let mut interface = interface(definition, endpoint, isolation, format!("eth{index}"));
        if first == Some(index) {
            interface.gateways.push(definition.ipv4.gateway.into());
        }
        if let Some(subnet) = definition.ipv6.filter(|_| first_v6 == Some(index)) {
            interface.gateways.push(subnet.gateway.into());
        }
        interface
    };
    members.iter().enumerate().map(interface).collect()
}

/// One interface that leads nowhere else.
pub(super) fn interface(
    definition: &Definition,
    endpoint: &Endpoint,
    isolation: Isolation,
    name: String,
) -> Interface {
    let mut addresses: Vec<(IpAddr, u8)> = vec![(endpoint.ipv4.into(), definition.ipv4.prefix)];
    if let (Some(address), Some(subnet)) = (endpoint.ipv6, definition.ipv6) {
        addresses.push((address.into(), subnet.prefix));
    }
    Interface {
        device: match isolation {
            Isolation::Vm => Device::Present,
            Isolation::Container => Device::Veth {
                outer: endpoint.interface.clone(),
                bridge: definition.bridge.clone(),
            },
        },
        name,
        mac: endpoint.mac,
        addresses,
        gateways: Vec::new(),
        mtu: definition.mtu,
    }
}
