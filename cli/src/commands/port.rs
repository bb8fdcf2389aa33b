//! `rvm port`, and ports as listings show them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};
use rvm_engine::Engine;
use rvm_engine::ports::{Port, Protocol, Published};

use crate::args::PortList;
use crate::output;

pub(super) fn run(engine: &Engine, arguments: &PortList) -> Result<u8> {
    let (record, _) = engine.directory(&arguments.container)?;
    let published = engine.published(&record)?;
    let Some(port) = arguments.port else {
        output::lines(
            published
                .iter()
                .map(|published| format!("{} -> {}", published.port(), host(published))),
        )?;
        return Ok(0);
    };
    let of_port: Vec<_> = published
        .iter()
        .filter(|published| published.port() == port)
        .collect();
    if of_port.is_empty() {
        bail!("no public port '{port}' published for {}", arguments.container);
    }
    output::lines(of_port.into_iter().map(host))?;
    Ok(0)
}

fn host(published: &Published) -> String {
    SocketAddr::new(published.host_address, published.host_port).to_string()
}

/// Ports in a row of which the same is said.
struct Group {
    address: Option<IpAddr>,
    protocol: Protocol,
    first: u16,
    last: u16,
}

impl Group {
    fn text(&self) -> String {
        let Self {
            address,
            protocol,
            first,
            last,
        } = self;
        let ports = if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        };
        match address {
            None => format!("{ports}/{protocol}"),
            Some(IpAddr::V4(address)) => format!("{address}:{ports}->{ports}/{protocol}"),
            Some(IpAddr::V6(address)) => format!("[{address}]:{ports}->{ports}/{protocol}"),
        }
    }
}

/// Ports as Docker lists them: those that are the same on both sides in ranges, first by the container's port; then those
/// that are not. What is published is not named a second time because it is exposed.
pub(super) fn summary(exposed: &BTreeSet<Port>, published: &[Published]) -> String {
    let mut ports: Vec<(Port, Option<&Published>)> = published
        .iter()
        .map(|published| (published.port(), Some(published)))
        .collect();
    let others = exposed
        .iter()
        .filter(|port| !published.iter().any(|published| published.port() == **port));
    ports.extend(others.map(|port| (*port, None)));
    ports.sort();
    let (mut groups, mut others): (Vec<Group>, Vec<String>) = (Vec::new(), Vec::new());
    for (Port { number, protocol }, published) in ports {
        if let Some(published) = published.filter(|published| published.host_port != number) {
            others.push(format!("{}->{number}/{protocol}", host(published)));
            continue;
        }
        let address = published.map(|published| published.host_address);
        let of_kind = |group: &&mut Group| (group.address, group.protocol) == (address, protocol);
        match groups.iter_mut().rev().find(of_kind) {
            Some(group) if group.last.checked_add(1) == Some(number) => group.last = number,
            _ => groups.push(Group {
                address,
                protocol,
                first: number,
                last: number,
            }),
        }
    }
    let texts: Vec<_> = groups.iter().map(Group::text).chain(others).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use rvm_engine::ports::Exposed;

    use super::*;

    fn published(list: &[(&str, u16, u16, Protocol)]) -> Vec<Published> {
        let published = list
            .iter()
            .map(|(address, host_port, container_port, protocol)| Published {
                protocol: *protocol,
                host_address: address.parse().unwrap(),
                host_port: *host_port,
                container_port: *container_port,
            });
        published.collect()
    }

    #[test]
    fn ports_are_listed_as_docker_lists_them() {
        let exposed = |texts: &[&str]| -> BTreeSet<Port> {
            texts
                .iter()
                .flat_map(|text| text.parse::<Exposed>().unwrap().0)
                .collect()
        };
        let both = |host, container| {
            [
                ("0.0.0.0", host, container, Protocol::Tcp),
                ("::", host, container, Protocol::Tcp),
            ]
        };
        let check = |exposed: &BTreeSet<Port>, list: &[_], expected: &str| {
            assert_eq!(summary(exposed, &published(list)), expected);
        };
        check(&exposed(&[]), &[], "");
        check(&exposed(&["80"]), &[], "80/tcp");
        check(
            &exposed(&["80-82", "90", "53/udp"]),
            &[],
            "53/udp, 80-82/tcp, 90/tcp",
        );
        check(
            &exposed(&["80"]),
            &both(8080, 80),
            "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp",
        );
        check(
            &exposed(&["80", "443"]),
            &[both(80, 80), both(81, 81)].concat(),
            "0.0.0.0:80-81->80-81/tcp, [::]:80-81->80-81/tcp, 443/tcp",
        );
        check(
            &exposed(&["1"]),
            &[
                ("127.0.0.1", 8053, 53, Protocol::Udp),
                ("127.0.0.1", 80, 80, Protocol::Tcp),
            ],
            "1/tcp, 127.0.0.1:80->80/tcp, 127.0.0.1:8053->53/udp",
        );
    }
}
