//! `rvm network`, and what `--network` and its kin come to.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, bail};
use rvm_engine::Engine;
use rvm_engine::names::SHORT_ID;
use rvm_engine::network::{
    Addressing, Attachment, Blueprint, DEFAULT, Definition, Mode, NetworkReport, Networking,
};
use serde::Serialize;

use super::variables;
use crate::args::{
    self, Connect, CreateNetwork, Disconnect, InspectNetwork, LsNetworks, Network, NetworkChoice,
    NetworkFilter, Prefix, PruneFilter, PruneNetworks, RemoveNetwork,
};
use crate::output::{self, Table};

pub(super) fn run(engine: &Engine, command: Network) -> Result<u8> {
    match command {
        Network::Create(arguments) => create(engine, arguments),
        Network::Ls(arguments) => list(engine, &arguments),
        Network::Inspect(arguments) => inspect(engine, &arguments),
        Network::Connect(arguments) => connect(engine, arguments),
        Network::Disconnect(arguments) => disconnect(engine, &arguments),
        Network::Rm(arguments) => remove(engine, &arguments),
        Network::Prune(arguments) => prune(engine, &arguments),
    }
}

/// What a new container is to be connected to.
pub(super) fn networking(given: args::Networking) -> Result<Networking> {
    let mut attachments = Vec::new();
    let mut other = None;
    let several = given.networks.len() > 1;
    for choice in given.networks {
        match choice {
            NetworkChoice::On(attachment) => attachments.push(attachment),
            _ if several => bail!(
                "conflicting options: cannot attach both user-defined and non-user-defined network-modes"
            ),
            NetworkChoice::None => other = Some(Mode::None),
            NetworkChoice::Host => other = Some(Mode::Host),
            NetworkChoice::Container(name) => other = Some(Mode::Container(name)),
        }
    }
    let asks = given.ip.is_some()
        || given.ip6.is_some()
        || given.mac_address.is_some()
        || !given.network_alias.is_empty();
    let mode = match other {
        Some(_) if asks => bail!(
            "conflicting options: --ip, --ip6, --mac-address and --network-alias need a network to be on"
        ),
        Some(mode) => mode,
        None => {
            let default = Attachment {
                network: DEFAULT.to_owned(),
                ..Attachment::default()
            };
            let mut attachments = if attachments.is_empty() {
                vec![default]
            } else {
                attachments
            };
            // They are about the first of several.
            if let Some(first) = attachments.first_mut() {
                first.ipv4 = given.ip.or(first.ipv4);
                first.ipv6 = given.ip6.or(first.ipv6);
                first.mac = given.mac_address.or(first.mac);
                first
                    .aliases
                    .extend(given.network_alias.into_iter().map(|alias| alias.0));
            }
            Mode::Networks(attachments)
        }
    };
    Ok(Networking {
        mode,
        dns: given.dns,
        dns_search: given.dns_search,
        dns_options: given.dns_option,
        hosts: given.add_host,
    })
}

fn create(engine: &Engine, arguments: CreateNetwork) -> Result<u8> {
    let (ipv4, ipv6) = addressing(&arguments)?;
    let definition = engine
        .create_network(&Blueprint {
            name: arguments.name,
            ipv4,
            ipv6,
            has_ipv6: arguments.ipv6,
            internal: arguments.internal,
            mtu: arguments.opt.last().copied(),
            labels: variables::labels(&[], arguments.label)?,
        })
        .map_err(rvm_engine::Error::from)?;
    output::lines([definition.id])?;
    Ok(0)
}

/// Sorts what was given by kinds of addresses; there may be one of each.
fn addressing(arguments: &CreateNetwork) -> Result<(Addressing<Ipv4Addr>, Addressing<Ipv6Addr>)> {
    let (mut ipv4, mut ipv6) = (Addressing::default(), Addressing::default());
    let mut once = true;
    for Prefix(address, bits) in &arguments.subnet {
        once &= match address {
            IpAddr::V4(address) => ipv4.subnet.replace((*address, *bits)).is_none(),
            IpAddr::V6(address) => ipv6.subnet.replace((*address, *bits)).is_none(),
        };
    }
    for address in &arguments.gateway {
        once &= match address {
            IpAddr::V4(address) => ipv4.gateway.replace(*address).is_none(),
            IpAddr::V6(address) => ipv6.gateway.replace(*address).is_none(),
        };
    }
    for Prefix(address, bits) in &arguments.ip_range {
        once &= match address {
            IpAddr::V4(address) => ipv4.range.replace((*address, *bits)).is_none(),
            IpAddr::V6(address) => ipv6.range.replace((*address, *bits)).is_none(),
        };
    }
    if !once {
        bail!(
            "bridge driver doesn't support multiple subnets of one kind: a network has one of IPv4 and one of IPv6"
        );
    }
    Ok((ipv4, ipv6))
}

/// A line of `rvm network ls`, under Docker's field names.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    driver: &'static str,
    scope: &'static str,
    #[serde(rename = "IPv6")]
    ipv6: String,
    internal: String,
    labels: String,
    created_at: String,
}

fn list(engine: &Engine, arguments: &LsNetworks) -> Result<u8> {
    let networks = engine.networks().map_err(rvm_engine::Error::from)?;
    let used = used(engine, &arguments.filter)?;
    let mut rows: Vec<(Row, BTreeMap<String, String>)> = networks
        .iter()
        .map(|definition| (row(definition), definition.labels.clone()))
        .collect();
    rows.extend(
        [("host", "host"), ("none", "null")].map(|(name, driver)| (special(name, driver), BTreeMap::new())),
    );
    rows.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
    let rows: Vec<Row> = rows
        .into_iter()
        .filter(|(row, labels)| fit(&arguments.filter, row, labels, &used))
        .map(|(row, _)| shortened(row, arguments.no_trunc))
        .collect();
    if arguments.quiet {
        output::lines(rows.iter().map(|row| &row.id))?;
    } else {
        output::listing(&arguments.format, &rows, || {
            let mut table = Table::new(&["NETWORK ID", "NAME", "DRIVER", "SCOPE"]);
            for row in &rows {
                table.row([row.id.as_str(), &row.name, row.driver, row.scope]);
            }
            table
        })?;
    }
    Ok(0)
}

/// The networks that containers are or will be on, where it matters.
fn used(engine: &Engine, filters: &[NetworkFilter]) -> Result<Vec<String>> {
    if !filters
        .iter()
        .any(|filter| matches!(filter, NetworkFilter::Dangling(_)))
    {
        return Ok(Vec::new());
    }
    let containers = engine.containers()?;
    let attachments = containers
        .iter()
        .flat_map(|record| record.settings.network.attachments());
    Ok(attachments.map(|attachment| attachment.network.clone()).collect())
}

/// Of several conditions of one kind any has to hold, and one of each kind.
fn fit(filters: &[NetworkFilter], row: &Row, labels: &BTreeMap<String, String>, used: &[String]) -> bool {
    let builtin = [DEFAULT, "host", "none"].contains(&row.name.as_str());
    let holds = |filter: &NetworkFilter| match filter {
        NetworkFilter::Name(part) => row.name.contains(part.as_str()),
        NetworkFilter::Id(part) => row.id.contains(part.as_str()),
        NetworkFilter::Driver(driver) => row.driver == driver,
        NetworkFilter::Scope(scope) => row.scope == scope,
        NetworkFilter::Custom(custom) => *custom != builtin,
        NetworkFilter::Label(label) => label.fits(labels),
        NetworkFilter::Dangling(dangling) => *dangling == (!builtin && !used.contains(&row.id)),
    };
    filters.iter().all(|filter| {
        let kind = std::mem::discriminant(filter);
        // Of labels all have to be there, as Docker has it.
        if matches!(filter, NetworkFilter::Label(_)) {
            return holds(filter);
        }
        filters
            .iter()
            .any(|other| std::mem::discriminant(other) == kind && holds(other))
    })
}

fn row(definition: &Definition) -> Row {
    let labels = definition
        .labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    Row {
        id: definition.id.clone(),
        name: definition.name.clone(),
        driver: "bridge",
        scope: "local",
        ipv6: definition.ipv6.is_some().to_string(),
        internal: definition.internal.to_string(),
        labels: labels.collect::<Vec<_>>().join(","),
        created_at: created(definition.created_ms),
    }
}

/// One that is no network of the store. It has no ID, so its name stands for that.
fn special(name: &str, driver: &'static str) -> Row {
    Row {
        id: name.to_owned(),
        name: name.to_owned(),
        driver,
        scope: "local",
        ipv6: "false".to_owned(),
        internal: "false".to_owned(),
        labels: String::new(),
        created_at: String::new(),
    }
}

fn shortened(mut row: Row, whole: bool) -> Row {
    if !whole {
        row.id.truncate(SHORT_ID);
    }
    row
}

fn created(milliseconds: u64) -> String {
    let nanoseconds = i64::try_from(milliseconds)
        .unwrap_or(i64::MAX)
        .saturating_mul(1_000_000);
    output::moment_of_nanoseconds(nanoseconds)
}

/// A network in full, under Docker's field names.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    name: String,
    id: String,
    created: String,
    scope: &'static str,
    driver: &'static str,
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: bool,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    ipam: Ipam,
    internal: bool,
    attachable: bool,
    ingress: bool,
    containers: BTreeMap<String, Container>,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Ipam {
    driver: &'static str,
    options: BTreeMap<String, String>,
    config: Vec<Pool>,
}

#[derive(Serialize)]
struct Pool {
    #[serde(rename = "Subnet")]
    subnet: String,
    #[serde(rename = "IPRange", skip_serializing_if = "Option::is_none")]
    range: Option<String>,
    #[serde(rename = "Gateway")]
    gateway: String,
}

#[derive(Serialize)]
struct Container {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "MacAddress")]
    mac_address: String,
    #[serde(rename = "IPv4Address")]
    ipv4_address: String,
    #[serde(rename = "IPv6Address")]
    ipv6_address: String,
}

fn inspect(engine: &Engine, arguments: &InspectNetwork) -> Result<u8> {
    let mut documents = Vec::new();
    let code = super::each(&arguments.networks, |wanted| {
        let report = engine.network(wanted).map_err(rvm_engine::Error::from)?;
        documents.push(document(report));
        Ok(())
    })?;
    output::documents(arguments.format.as_ref(), &documents)?;
    Ok(code)
}

fn document(report: NetworkReport) -> Document {
    let NetworkReport { definition, members } = report;
    let prefix = |(address, bits): (IpAddr, u8)| format!("{address}/{bits}");
    let ipv4 = definition.ipv4;
    let mut config = vec![Pool {
        subnet: prefix((ipv4.address.into(), ipv4.prefix)),
        range: ipv4.range.map(|(address, bits)| prefix((address.into(), bits))),
        gateway: ipv4.gateway.to_string(),
    }];
    config.extend(definition.ipv6.map(|ipv6| Pool {
        subnet: prefix((ipv6.address.into(), ipv6.prefix)),
        range: ipv6.range.map(|(address, bits)| prefix((address.into(), bits))),
        gateway: ipv6.gateway.to_string(),
    }));
    let containers = members.into_iter().map(|member| {
        let endpoint = member.endpoint;
        let ipv6 = endpoint.ipv6.zip(definition.ipv6);
        let container = Container {
            name: member.name,
            mac_address: rvm_engine::network::MacAddress(endpoint.mac).to_string(),
            ipv4_address: prefix((endpoint.ipv4.into(), ipv4.prefix)),
            ipv6_address: ipv6.map_or_else(String::new, |(address, subnet)| {
                prefix((address.into(), subnet.prefix))
            }),
        };
        (endpoint.container, container)
    });
    let mut options = BTreeMap::from([(
        "com.docker.network.bridge.name".to_owned(),
        definition.bridge.clone(),
    )]);
    options.extend(
        definition
            .mtu
            .map(|mtu| ("com.docker.network.driver.mtu".to_owned(), mtu.to_string())),
    );
    Document {
        containers: containers.collect(),
        created: created(definition.created_ms),
        scope: "local",
        driver: "bridge",
        enable_ipv4: true,
        enable_ipv6: definition.ipv6.is_some(),
        ipam: Ipam {
            driver: "default",
            options: BTreeMap::new(),
            config,
        },
        internal: definition.internal,
        attachable: false,
        ingress: false,
        options,
        labels: definition.labels,
        name: definition.name,
        id: definition.id,
    }
}

fn connect(engine: &Engine, arguments: Connect) -> Result<u8> {
    let attachment = Attachment {
        network: arguments.network,
        aliases: arguments.alias.into_iter().map(|alias| alias.0).collect(),
        ipv4: arguments.ip,
        ipv6: arguments.ip6,
        mac: arguments.mac_address,
    };
    engine
        .connect_network(&arguments.container, attachment)
        .map_err(rvm_engine::Error::from)?;
    Ok(0)
}

fn disconnect(engine: &Engine, arguments: &Disconnect) -> Result<u8> {
    engine
        .disconnect_network(&arguments.container, &arguments.network, arguments.force)
        .map_err(rvm_engine::Error::from)?;
    Ok(0)
}

fn remove(engine: &Engine, arguments: &RemoveNetwork) -> Result<u8> {
    super::each(&arguments.networks, |wanted| {
        match engine.remove_network(wanted) {
            Ok(_) => output::lines([wanted]),
            Err(error) if arguments.force && error.is_not_found() => Ok(()),
            Err(error) => Err(rvm_engine::Error::from(error).into()),
        }
    })
}

fn prune(engine: &Engine, arguments: &PruneNetworks) -> Result<u8> {
    if !arguments.force && !super::is_confirmed("all custom networks not used by at least one container")? {
        return Ok(0);
    }
    let is_wanted = |definition: &Definition| {
        PruneFilter::all_fit(&arguments.filter, &definition.labels, Some(definition.created_ms))
    };
    let removed = engine
        .prune_networks(is_wanted)
        .map_err(rvm_engine::Error::from)?;
    let names = removed.into_iter().map(|definition| definition.name);
    output::lines(super::prune::section("Networks", names))?;
    Ok(0)
}
