//! What is said about ports, as people write it: those of a container that are to be reached, and by which of the host's.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::endpoint::{Protocol, Published};
use crate::proxy::Wish;

/// Why something names no ports. The words are Docker's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Nothing where the container's port is to be.
    #[error("no port specified: {0}<empty>")]
    NoPort(String),
    /// The container's port is none.
    #[error("invalid containerPort: {0}")]
    ContainerPort(String),
    /// The host's port is none.
    #[error("invalid hostPort: {0}")]
    HostPort(String),
    /// Something else than TCP and UDP.
    #[error("invalid proto: {0} (there are tcp and udp)")]
    Protocol(String),
    /// The host's address is none.
    #[error("invalid IP address: {0}")]
    Address(String),
    /// There is not one port of the host for each of the container's.
    #[error("invalid ranges specified for container and host Ports: {container} and {host}")]
    Ranges {
        /// The container's.
        container: String,
        /// The host's.
        host: String,
    },
    /// Not a port, or range of ports, with its protocol.
    #[error("invalid range format for --expose: {0}, error: it is written PORT[-PORT][/PROTOCOL]")]
    Expose(String),
}

/// A container's port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Port {
    /// The number.
    pub number: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Protocol {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(ParseError::Protocol(text.to_owned())),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.number, self.protocol)
    }
}

impl From<Port> for String {
    fn from(port: Port) -> Self {
        port.to_string()
    }
}

impl TryFrom<String> for Port {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

/// `PORT[/PROTOCOL]`.
impl FromStr for Port {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (number, protocol) = with_protocol(text)?;
        match range(number) {
            Some((number, last)) if number == last => Ok(Self { number, protocol }),
            _ => Err(ParseError::ContainerPort(number.to_owned())),
        }
    }
}

/// Ports that are exposed: `PORT[-PORT][/PROTOCOL]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposed(pub Vec<Port>);

impl FromStr for Exposed {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (numbers, protocol) = with_protocol(text)?;
        let (first, last) = range(numbers).ok_or_else(|| ParseError::Expose(text.to_owned()))?;
        Ok(Self(
            (first..=last).map(|number| Port { number, protocol }).collect(),
        ))
    }
}

/// One port that is to be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// The container's.
    pub port: Port,
    /// The host's address; all of both kinds where `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The host's port, or the first and the last of those of which one is taken; whichever is free where `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<(u16, u16)>,
}

impl From<&Binding> for Wish {
    fn from(binding: &Binding) -> Self {
        Self {
            protocol: binding.port.protocol,
            host_address: binding.address,
            host_ports: binding.host.map(|(first, last)| first..=last),
            container_port: binding.port.number,
        }
    }
}

/// Ports that are to be published: `[[ADDRESS:][PORT[-PORT]]:]PORT[-PORT][/PROTOCOL]`, an IPv6 address in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bindings(pub Vec<Binding>);

impl FromStr for Bindings {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (rest, container) = text
            .rsplit_once(':')
            .map_or((None, text), |(rest, port)| (Some(rest), port));
        let (container, protocol) = with_protocol(container)?;
        if container.is_empty() {
            return Err(ParseError::NoPort(text.to_owned()));
        }
        let (first, last) =
            range(container).ok_or_else(|| ParseError::ContainerPort(container.to_owned()))?;
        let (address, host) = match rest.map(|rest| rest.rsplit_once(':').ok_or(rest)) {
            None => (None, ""),
            // An address alone is not possible: that is the host's port.
            Some(Err(host)) => (None, host),
            Some(Ok((address, host))) => (Some(parse_address(address)?), host),
        };
        let ports = match host {
            "" | "0" => None,
            host => Some(range(host).ok_or_else(|| ParseError::HostPort(host.to_owned()))?),
        };
        let binding = |number, host| Binding {
            port: Port { number, protocol },
            address: address.flatten(),
            host,
        };
        let bindings = match ports {
            None => (first..=last).map(|number| binding(number, None)).collect(),
            // Whichever is free is the one port's.
            Some(ports) if first == last => vec![binding(first, Some(ports))],
            Some((host_first, host_last)) if host_last - host_first == last - first => (first..=last)
                .zip(host_first..=host_last)
                .map(|(number, host)| binding(number, Some((host, host))))
                .collect(),
            Some(_) => {
                return Err(ParseError::Ranges {
                    container: container.to_owned(),
                    host: host.to_owned(),
                });
            }
        };
        Ok(Self(bindings))
    }
}

/// `None` is no address, which is all of them.
fn parse_address(text: &str) -> Result<Option<IpAddr>, ParseError> {
    let wrong = || ParseError::Address(text.to_owned());
    match text.strip_prefix('[').map(|text| text.strip_suffix(']')) {
        Some(None) => Err(wrong()),
        Some(Some(inside)) => match inside.parse() {
            Ok(address @ IpAddr::V6(_)) => Ok(Some(address)),
            _ => Err(wrong()),
        },
        None if text.is_empty() => Ok(None),
        None => match text.parse() {
            Ok(address @ IpAddr::V4(_)) => Ok(Some(address)),
            _ => Err(wrong()),
        },
    }
}

fn with_protocol(text: &str) -> Result<(&str, Protocol), ParseError> {
    match text.split_once('/') {
        Some((ports, protocol)) => Ok((ports, protocol.parse()?)),
        None => Ok((text, Protocol::Tcp)),
    }
}

/// The first and the last of `PORT[-PORT]`. There is no port 0, and no sign before a number.
fn range(text: &str) -> Option<(u16, u16)> {
    let port = |text: &str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|port: &u16| digits && *port > 0)
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    (first <= last).then_some((first, last))
}

/// What was said about a container's ports. The default is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ports {
    /// Those that are to be published.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bindings: Vec<Binding>,
    /// Those that the image and the user say are there to be reached.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub exposed: BTreeSet<Port>,
    /// Whether all of those are to be published.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

impl Ports {
    /// Whether nothing was said.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What is to be bound: what was asked for by name, and with `all` each other port that is exposed.
    #[must_use]
    pub fn wishes(&self) -> Vec<Wish> {
        let others = self
            .exposed
            .iter()
            .filter(|port| self.all && !self.bindings.iter().any(|binding| binding.port == **port));
        let others: Vec<_> = others
            .map(|port| Binding {
                port: *port,
                address: None,
                host: None,
            })
            .collect();
        self.bindings.iter().chain(&others).map(Wish::from).collect()
    }

    /// Every port that is exposed: what is published is, too.
    #[must_use]
    pub fn exposed(&self) -> BTreeSet<Port> {
        let published = self.bindings.iter().map(|binding| binding.port);
        self.exposed.iter().copied().chain(published).collect()
    }
}

impl Published {
    /// The container's port.
    #[must_use]
    pub fn port(&self) -> Port {
        Port {
            number: self.container_port,
            protocol: self.protocol,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<String>, String> {
        let bindings = text.parse::<Bindings>().map_err(|error| error.to_string())?;
        let show = |binding: &Binding| {
            let address = binding
                .address
                .map_or_else(|| "*".to_owned(), |address| address.to_string());
            let host = binding
                .host
                .map_or_else(|| "?".to_owned(), |(first, last)| format!("{first}-{last}"));
            format!("{address} {host} {}", binding.port)
        };
        Ok(bindings.0.iter().map(show).collect())
    }

    #[test]
    fn ports_are_published_as_docker_has_it() {
        for (text, expected) in [
            ("80", &["* ? 80/tcp"][..]),
            ("8080:80", &["* 8080-8080 80/tcp"]),
            ("8080:80/UDP", &["* 8080-8080 80/udp"]),
            ("127.0.0.1:8080:80", &["127.0.0.1 8080-8080 80/tcp"]),
            ("127.0.0.1::80", &["127.0.0.1 ? 80/tcp"]),
            ("0:80", &["* ? 80/tcp"]),
            (":80", &["* ? 80/tcp"]),
            ("[::1]:8080:80", &["::1 8080-8080 80/tcp"]),
            ("8000-8009:80", &["* 8000-8009 80/tcp"]),
            ("80-81", &["* ? 80/tcp", "* ? 81/tcp"]),
            (
                "8000-8001:80-81/udp",
                &["* 8000-8000 80/udp", "* 8001-8001 81/udp"],
            ),
        ] {
            assert_eq!(parsed(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_names_no_port_is_refused_in_docker_s_words() {
        for (text, error) in [
            ("", "no port specified: <empty>"),
            ("8080:", "no port specified: 8080:<empty>"),
            ("x", "invalid containerPort: x"),
            ("8080:0", "invalid containerPort: 0"),
            ("8080:65536", "invalid containerPort: 65536"),
            ("8080:81-80", "invalid containerPort: 81-80"),
            ("8080:+80", "invalid containerPort: +80"),
            ("x:80", "invalid hostPort: x"),
            ("127.0.0.1:x:80", "invalid hostPort: x"),
            ("host:8080:80", "invalid IP address: host"),
            ("[127.0.0.1]:8080:80", "invalid IP address: [127.0.0.1]"),
            ("::1:8080:80", "invalid IP address: ::1"),
            ("80/sctp", "invalid proto: sctp (there are tcp and udp)"),
            (
                "8000-8002:80-81",
                "invalid ranges specified for container and host Ports: 80-81 and 8000-8002",
            ),
        ] {
            assert_eq!(parsed(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn ports_are_exposed_singly_and_in_ranges() {
        let numbers = |text: &str| {
            let exposed = text.parse::<Exposed>();
            exposed.map(|exposed| exposed.0.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(numbers("80").unwrap(), ["80/tcp"]);
        assert_eq!(numbers("80-82/udp").unwrap(), ["80/udp", "81/udp", "82/udp"]);
        for text in ["", "a", "82-80", "80/", "80:81"] {
            assert!(numbers(text).is_err(), "{text}");
        }
    }

    #[test]
    fn all_that_is_exposed_may_be_published() {
        let mut ports = Ports {
            bindings: "8080:80".parse::<Bindings>().unwrap().0,
            exposed: "80-81".parse::<Exposed>().unwrap().0.into_iter().collect(),
            all: false,
        };
        let numbers = |ports: &Ports| {
            ports
                .wishes()
                .iter()
                .map(|wish| wish.container_port)
                .collect::<Vec<_>>()
        };
        assert_eq!(numbers(&ports), [80]);
        ports.all = true;
        assert_eq!(numbers(&ports), [80, 81]);
        ports.exposed.clear();
        assert_eq!(ports.exposed().len(), 1);
    }

    #[test]
    fn what_is_on_record_is_frozen() {
        let ports = Ports {
            bindings: "127.0.0.1:8080:80/udp".parse::<Bindings>().unwrap().0,
            exposed: "81".parse::<Exposed>().unwrap().0.into_iter().collect(),
            all: true,
        };
        let json = concat!(
            r#"{"bindings":[{"port":"80/udp","address":"127.0.0.1","host":[8080,8080]}],"#,
            r#""exposed":["81/tcp"],"all":true}"#
        );
        assert_eq!(serde_json::to_string(&ports).unwrap(), json);
        assert_eq!(serde_json::from_str::<Ports>(json).unwrap(), ports);
    }
}
