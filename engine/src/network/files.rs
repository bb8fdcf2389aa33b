//! What is in `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname` of a container that is on a network.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;

use oci_spec::runtime::Spec;
use rvm_isolation::PrivateFile;
use rvm_network::definition::Definition;
use rvm_network::endpoint::Endpoint;

use super::{Error, HostAddress, Networking};

/// What every machine knows.
const LOOPBACK: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// A container on networks.
pub(super) fn of_member(
    spec: &Spec,
    networking: &Networking,
    members: &[(Definition, Endpoint)],
) -> Result<Vec<PrivateFile>, Error> {
    let gateway = members
        .first()
        .map(|(definition, _)| definition.ipv4.gateway.into());
    let mut hosts = format!("{LOOPBACK}{}", further(networking, gateway));
    let names = own_names(spec);
    for (_, endpoint) in members {
        for address in std::iter::once(IpAddr::from(endpoint.ipv4)).chain(endpoint.ipv6.map(IpAddr::from)) {
            // Writing to a String cannot fail, here and below.
            let _ = writeln!(hosts, "{address}\t{names}");
        }
    }
    let host = ResolverFile::read()?;
    let mut resolver = String::new();
    for (definition, _) in members {
        let _ = writeln!(resolver, "nameserver {}", definition.ipv4.resolver);
    }
    resolver.push_str(&host.rest(networking));
    Ok(three(hosts, resolver, spec))
}

/// A container with the host's interfaces.
pub(super) fn of_host(spec: &Spec, networking: &Networking) -> Result<Vec<PrivateFile>, Error> {
    let mut hosts = fs::read_to_string("/etc/hosts").map_err(|error| Error::HostFile("/etc/hosts", error))?;
    if !hosts.is_empty() && !hosts.ends_with('\n') {
        hosts.push('\n');
    }
    let own = Some(IpAddr::from([127, 0, 0, 1]));
    hosts.push_str(&further(networking, own));
    Ok(three(hosts, ResolverFile::read()?.of_host(networking), spec))
}

/// One without a network has its image's files, unless something was asked for that stands in them.
pub(super) fn of_loner(spec: &Spec, networking: &Networking) -> Result<Vec<PrivateFile>, Error> {
    let Networking {
        dns,
        dns_search,
        dns_options,
        hosts,
        ..
    } = networking;
    if dns.is_empty() && dns_search.is_empty() && dns_options.is_empty() && hosts.is_empty() {
        return Ok(Vec::new());
    }
    let own = Some(IpAddr::from([127, 0, 0, 1]));
    let hosts = format!("{LOOPBACK}{}", further(networking, own));
    Ok(three(hosts, ResolverFile::read()?.of_host(networking), spec))
}

fn three(hosts: String, resolver: String, spec: &Spec) -> Vec<PrivateFile> {
    let hostname = spec.hostname().clone().unwrap_or_default();
    let file = |path: &str, content| PrivateFile {
        path: path.into(),
        content,
    };
    vec![
        file("/etc/hosts", hosts),
        file("/etc/resolv.conf", resolver),
        file("/etc/hostname", format!("{hostname}\n")),
    ]
}

/// The lines that were asked for. Where there is no gateway, there is no line of it.
fn further(networking: &Networking, gateway: Option<IpAddr>) -> String {
    let mut lines = String::new();
    for (name, address) in &networking.hosts {
        let address = match address {
            HostAddress::Address(address) => Some(*address),
            HostAddress::Gateway => gateway,
        };
        if let Some(address) = address {
            let _ = writeln!(lines, "{address}\t{name}");
        }
    }
    lines
}

/// As Docker has it: with its domain first, if it has one.
fn own_names(spec: &Spec) -> String {
    let hostname = spec.hostname().clone().unwrap_or_default();
    match spec.domainname() {
        Some(domain) if !domain.is_empty() => format!("{hostname}.{domain} {hostname}"),
        _ => hostname,
    }
}

/// The host's `/etc/resolv.conf`.
#[derive(Debug, Default)]
struct ResolverFile {
    servers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

impl ResolverFile {
    /// A host without one asks the server on itself, which a container does not have.
    fn read() -> Result<Self, Error> {
        const PATH: &str = "/etc/resolv.conf";
        match fs::read_to_string(PATH) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Error::HostFile(PATH, error)),
        }
    }

    /// resolv.conf(5): the last `search` counts, and `domain` is one of its kind.
    fn parse(text: &str) -> Self {
        let mut file = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => file.servers.extend(words.next()),
                Some("search" | "domain") => file.search = words.collect(),
                Some("options") => file.options.extend(words),
                _ => {}
            }
        }
        file
    }

    /// All but the servers, with what was asked for in the place of the host's.
    fn rest(&self, networking: &Networking) -> String {
        let or = |asked: &[String], own: &[String]| {
            if asked.is_empty() {
                own.to_vec()
            } else {
                asked.to_vec()
            }
        };
        let search = or(&networking.dns_search, &self.search);
        let options = or(&networking.dns_options, &self.options);
        let mut text = String::new();
        // A dot alone is Docker's word for none.
        if !search.is_empty() && search != ["."] {
            let _ = writeln!(text, "search {}", search.join(" "));
        }
        if !options.is_empty() {
            let _ = writeln!(text, "options {}", options.join(" "));
        }
        text
    }

    fn of_host(&self, networking: &Networking) -> String {
        let asked: Vec<String> = networking.dns.iter().map(IpAddr::to_string).collect();
        let servers = if asked.is_empty() { &self.servers } else { &asked };
        let lines = servers.iter().map(|server| format!("nameserver {server}\n"));
        format!("{}{}", lines.collect::<String>(), self.rest(networking))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_says_is_kept_where_nothing_else_is_said() {
        let text = "# made\nnameserver 10.0.0.53\ndomain old\nsearch a.example b.example\noptions ndots:2 trust-ad\n";
        let file = ResolverFile::parse(text);
        let nothing = Networking::default();
        let rest = "search a.example b.example\noptions ndots:2 trust-ad\n";
        assert_eq!(file.rest(&nothing), rest);
        assert_eq!(file.of_host(&nothing), format!("nameserver 10.0.0.53\n{rest}"));
        let asked = Networking {
            dns: vec!["1.1.1.1".parse().unwrap()],
            dns_search: vec![".".into()],
            dns_options: vec!["timeout:1".into()],
            ..Networking::default()
        };
        assert_eq!(file.of_host(&asked), "nameserver 1.1.1.1\noptions timeout:1\n");
    }

    #[test]
    fn lines_of_hosts_are_as_asked() {
        let networking = Networking {
            hosts: vec![
                ("db".into(), HostAddress::Address("10.1.1.1".parse().unwrap())),
                ("host".into(), HostAddress::Gateway),
            ],
            ..Networking::default()
        };
        let gateway = Some("10.0.0.1".parse().unwrap());
        assert_eq!(further(&networking, gateway), "10.1.1.1\tdb\n10.0.0.1\thost\n");
        assert_eq!(further(&networking, None), "10.1.1.1\tdb\n");
    }
}
