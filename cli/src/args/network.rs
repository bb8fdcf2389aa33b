//! What can be typed about networks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use clap::{ArgAction, Args as ClapArgs, Subcommand};
use rvm_engine::condition;
use rvm_engine::network::{Attachment, HostAddress, MacAddress, is_valid_network_name};

use super::prune::PruneFilter;
use super::{InspectFormat, ListFormat};

pub(super) const NETWORK_EXAMPLES: &str = "\
Examples:
  rvm network create app
  rvm run -d --network app --name db IMAGE
  rvm run --rm --network app IMAGE ping -c 1 db     in whichever mode either of them runs
  rvm network ls";

const CREATE_EXAMPLES: &str = "\
Examples:
  rvm network create app
  rvm network create --subnet 192.168.7.0/24 --ip-range 192.168.7.128/25 app
  rvm network create --ipv6 --internal back         nothing but its members can be reached from it
  rvm network create -o mtu=1400 app";

const CONNECT_EXAMPLES: &str = "\
Examples:
  rvm network connect --alias db app postgres
  rvm network connect --ip 192.168.7.9 app web
  rvm network connect --mac-address 02:00:00:00:00:09 app web

A container on this machine's kernel is connected at once, one in a virtual machine when it is started next.";

const DISCONNECT_EXAMPLES: &str = "\
Examples:
  rvm network disconnect app web
  rvm network disconnect -f app 3fa2b1c9d0e4

Published ports that led by the network lead by another one of the container's from then on, if one leads anywhere.";

const PRUNE_EXAMPLES: &str = "\
Examples:
  rvm network prune -f
  rvm network prune -f --filter label=tier=test";

/// How a container is connected.
#[derive(Debug, ClapArgs)]
pub(crate) struct Networking {
    /// Network to be on, none, host, or container:NAME; also as name=NAME,alias=ALIAS,ip=ADDRESS [default: bridge]
    #[arg(long = "network", visible_alias = "net", value_name = "NETWORK", action = ArgAction::Append)]
    pub(crate) networks: Vec<NetworkChoice>,
    /// IPv4 address on the network
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ip: Option<Ipv4Addr>,
    /// IPv6 address on the network
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ip6: Option<Ipv6Addr>,
    /// Hardware address on the network
    #[arg(long, value_name = "MAC")]
    pub(crate) mac_address: Option<MacAddress>,
    /// Further name on the network
    #[arg(long, visible_alias = "net-alias", value_name = "NAME", action = ArgAction::Append)]
    pub(crate) network_alias: Vec<Alias>,
    /// Server to ask for names of elsewhere [default: those of this machine]
    #[arg(long, value_name = "ADDRESS", action = ArgAction::Append)]
    pub(crate) dns: Vec<IpAddr>,
    /// Domain in which short names are looked up; . for none [default: those of this machine]
    #[arg(long, value_name = "DOMAIN", action = ArgAction::Append, value_parser = parse_word)]
    pub(crate) dns_search: Vec<String>,
    /// Option of the resolver library, as in resolv.conf(5)
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION", action = ArgAction::Append, value_parser = parse_word)]
    pub(crate) dns_option: Vec<String>,
    /// Add a line to /etc/hosts; the address host-gateway is this machine's on the network
    #[arg(long, value_name = "NAME:ADDRESS", action = ArgAction::Append, value_parser = parse_host)]
    pub(crate) add_host: Vec<(String, HostAddress)>,
}

/// What `--network` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NetworkChoice {
    None,
    Host,
    Container(String),
    On(Attachment),
}

impl FromStr for NetworkChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => return Ok(Self::None),
            "host" => return Ok(Self::Host),
            _ => {}
        }
        if let Some(other) = text.strip_prefix("container:") {
            return match other {
                "" => Err("invalid container format container:<name|id>".to_owned()),
                other => Ok(Self::Container(other.to_owned())),
            };
        }
        let attachment = if text.contains('=') {
            long_form(text)?
        } else {
            Attachment {
                network: text.to_owned(),
                ..Attachment::default()
            }
        };
        let network = match attachment.network.as_str() {
            "default" => rvm_engine::network::DEFAULT.to_owned(),
            name if is_valid_network_name(name) => name.to_owned(),
            name => return Err(format!("{name:?} cannot name a network")),
        };
        Ok(Self::On(Attachment {
            network,
            ..attachment
        }))
    }
}

/// Docker's `name=NETWORK,alias=NAME,...`.
fn long_form(text: &str) -> Result<Attachment, String> {
    let mut attachment = Attachment::default();
    let fault = |name: &str, error: &dyn std::fmt::Display| format!("{name} of a network: {error}");
    for part in text.split(',') {
        let (name, value) = part
            .split_once('=')
            .ok_or_else(|| format!("invalid field {part:?}: it is written NAME=VALUE"))?;
        match name {
            "name" => attachment.network = value.to_owned(),
            "alias" => attachment.aliases.push(value.parse::<Alias>()?.0),
            "ip" => attachment.ipv4 = Some(value.parse().map_err(|error| fault(name, &error))?),
            "ip6" => attachment.ipv6 = Some(value.parse().map_err(|error| fault(name, &error))?),
            "mac-address" => attachment.mac = Some(value.parse().map_err(|error| fault(name, &error))?),
            _ => {
                return Err(format!(
                    "invalid field key {name}: a network has name, alias, ip, ip6 and mac-address"
                ));
            }
        }
    }
    if attachment.network.is_empty() {
        return Err("the field name=NETWORK is missing".to_owned());
    }
    Ok(attachment)
}

/// A name that a container can be found by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Alias(pub(crate) String);

impl FromStr for Alias {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let labels_fit = text.split('.').all(|label| (1..=63).contains(&label.len()));
        if text.len() <= 253 && labels_fit && text.bytes().all(is_fine) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("{text:?} is no name that can be looked up"))
        }
    }
}

/// A word of resolv.conf.
fn parse_word(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("it is one word".to_owned())
    }
}

/// `NAME:ADDRESS`, or with an equals sign, and IPv6 also in brackets.
fn parse_host(text: &str) -> Result<(String, HostAddress), String> {
    let (name, address) = text
        .split_once('=')
        .or_else(|| text.split_once(':'))
        .ok_or_else(|| format!("bad format for add-host: {text:?}"))?;
    let Alias(name) = name.parse()?;
    if address == "host-gateway" {
        return Ok((name, HostAddress::Gateway));
    }
    let bare = address
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(address);
    let address = bare
        .parse()
        .map_err(|_| format!("invalid IP address in add-host: {address:?}"))?;
    Ok((name, HostAddress::Address(address)))
}

#[derive(Debug, Subcommand)]
pub(crate) enum Network {
    /// Make a network
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Create),
    /// List networks
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  rvm network ls\n  rvm network ls -q --filter label=tier=test"
    )]
    Ls(Ls),
    /// Show everything about networks
    #[command(
        after_help = "Examples:\n  rvm network inspect app\n  rvm network inspect --format '{{json .Containers}}' app"
    )]
    Inspect(InspectNetwork),
    /// Put a container on a further network
    #[command(after_help = CONNECT_EXAMPLES)]
    Connect(Connect),
    /// Take a container off a network
    #[command(after_help = DISCONNECT_EXAMPLES)]
    Disconnect(Disconnect),
    /// Remove networks
    #[command(visible_alias = "remove", after_help = "Examples:\n  rvm network rm app")]
    Rm(RemoveNetwork),
    /// Remove the networks that no container uses
    #[command(after_help = PRUNE_EXAMPLES)]
    Prune(PruneNetworks),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Create {
    /// Addresses of the network, one of IPv4 and one of IPv6 at most [default: a free /24 of 10.87.0.0 to 10.94.255.255]
    #[arg(long, value_name = "ADDRESS/BITS", action = ArgAction::Append)]
    pub(crate) subnet: Vec<Prefix>,
    /// This machine's address on it [default: the first]
    #[arg(long, value_name = "ADDRESS", action = ArgAction::Append)]
    pub(crate) gateway: Vec<IpAddr>,
    /// Where containers' addresses are taken from
    #[arg(long, value_name = "ADDRESS/BITS", action = ArgAction::Append)]
    pub(crate) ip_range: Vec<Prefix>,
    /// Give it IPv6 addresses, too [default: random ones of fd00::/8]
    #[arg(long)]
    pub(crate) ipv6: bool,
    /// Let it lead nowhere but to its members
    #[arg(long)]
    pub(crate) internal: bool,
    /// What the network is made of
    #[arg(short, long, value_name = "DRIVER", default_value = "bridge", value_parser = ["bridge"])]
    pub(crate) driver: String,
    /// mtu=BYTES, the largest packet
    #[arg(short, long, value_name = "NAME=VALUE", action = ArgAction::Append, value_parser = parse_option)]
    pub(crate) opt: Vec<u16>,
    /// Add a label
    #[arg(long, value_name = "NAME[=VALUE]", action = ArgAction::Append)]
    pub(crate) label: Vec<String>,
    /// Name of the network
    pub(crate) name: String,
}

/// Addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefix(pub(crate) IpAddr, pub(crate) u8);

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("invalid CIDR address: {text}");
        let (address, bits) = text.split_once('/').ok_or_else(invalid)?;
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits: u8 = bits.parse().map_err(|_| invalid())?;
        (bits <= most).then_some(Self(address, bits)).ok_or_else(invalid)
    }
}

fn parse_option(text: &str) -> Result<u16, String> {
    match text.split_once('=') {
        Some(("mtu" | "com.docker.network.driver.mtu", bytes)) => {
            bytes.parse().map_err(|_| format!("invalid MTU {bytes:?}"))
        }
        _ => Err(format!("unknown option {text:?}: there is mtu=BYTES")),
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Ls {
    /// Show only those that fit: name=PART, id=PART, driver=DRIVER, scope=local, type=custom|builtin, label=NAME[=VALUE],
    /// dangling=BOOL
    #[arg(short, long, value_name = "NAME=VALUE", action = ArgAction::Append)]
    pub(crate) filter: Vec<NetworkFilter>,
    /// Show IDs only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Show whole IDs
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// `table [COLUMN...]`, `json`, or text with the fields ID, Name, Driver, Scope, IPv6, Internal, Labels and CreatedAt
    #[arg(long, default_value = "table")]
    pub(crate) format: ListFormat,
}

/// A condition of a listing of networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NetworkFilter {
    Name(String),
    Id(String),
    Driver(String),
    Scope(String),
    Custom(bool),
    Label(condition::Label),
    Dangling(bool),
}

impl FromStr for NetworkFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = condition::split(text)?;
        match (name, value) {
            ("name", value) => Ok(Self::Name(value.to_owned())),
            ("id", value) => Ok(Self::Id(value.to_owned())),
            ("driver", value) => Ok(Self::Driver(value.to_owned())),
            ("scope", value) => Ok(Self::Scope(value.to_owned())),
            ("type", "custom") => Ok(Self::Custom(true)),
            ("type", "builtin") => Ok(Self::Custom(false)),
            ("label", value) => Ok(Self::Label(value.into())),
            ("dangling", "true" | "1") => Ok(Self::Dangling(true)),
            ("dangling", "false" | "0") => Ok(Self::Dangling(false)),
            _ => Err(format!("invalid filter '{text}'")),
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct InspectNetwork {
    /// `json` for one object per line, or text with fields such as {{.Id}} and {{json .IPAM}} in it [default: one list]
    #[arg(short, long)]
    pub(crate) format: Option<InspectFormat>,
    /// Names or IDs
    #[arg(required = true, value_name = "NETWORK")]
    pub(crate) networks: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Connect {
    /// Further name on the network
    #[arg(long, value_name = "NAME", action = ArgAction::Append)]
    pub(crate) alias: Vec<Alias>,
    /// IPv4 address on the network
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ip: Option<Ipv4Addr>,
    /// IPv6 address on the network
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ip6: Option<Ipv6Addr>,
    /// Hardware address on the network [default: one that goes with the IPv4 address]
    #[arg(long, value_name = "MAC")]
    pub(crate) mac_address: Option<MacAddress>,
    /// Name or ID of the network
    pub(crate) network: String,
    /// Name or ID of the container
    pub(crate) container: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Disconnect {
    /// Remove what is left on the network of a container that was killed or is no more, too
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Name or ID of the network
    pub(crate) network: String,
    /// Name or ID of the container
    pub(crate) container: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RemoveNetwork {
    /// Do not complain of networks that are not there
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Names or IDs
    #[arg(required = true, value_name = "NETWORK")]
    pub(crate) networks: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PruneNetworks {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Remove only those that fit: label=NAME[=VALUE], label!=NAME[=VALUE], until=TIME
    #[arg(long, value_name = "NAME=VALUE", action = ArgAction::Append)]
    pub(crate) filter: Vec<PruneFilter>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_said_as_docker_has_it() {
        let parse = |text: &str| text.parse::<NetworkChoice>();
        assert_eq!(parse("none"), Ok(NetworkChoice::None));
        assert_eq!(parse("host"), Ok(NetworkChoice::Host));
        assert_eq!(parse("container:web"), Ok(NetworkChoice::Container("web".into())));
        let on = |network: &str| Attachment {
            network: network.into(),
            ..Attachment::default()
        };
        assert_eq!(parse("app"), Ok(NetworkChoice::On(on("app"))));
        assert_eq!(parse("default"), Ok(NetworkChoice::On(on("bridge"))));
        let long = Attachment {
            aliases: vec!["db".into(), "sql".into()],
            ipv4: Some(Ipv4Addr::new(10, 0, 0, 9)),
            mac: Some(MacAddress([2, 0, 0, 0, 0, 1])),
            ..on("app")
        };
        let text = "name=app,alias=db,alias=sql,ip=10.0.0.9,mac-address=02:00:00:00:00:01";
        assert_eq!(parse(text), Ok(NetworkChoice::On(long)));
        for text in [
            "",
            "container:",
            "a/b",
            "alias=db",
            "name=app,x=1",
            "name=app,ip=x",
            "name=app,alias=a b",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn lines_of_hosts_have_a_name_and_an_address() {
        let address = |text: &str| HostAddress::Address(text.parse().unwrap());
        assert_eq!(parse_host("db:10.0.0.1"), Ok(("db".into(), address("10.0.0.1"))));
        assert_eq!(parse_host("db:[::1]"), Ok(("db".into(), address("::1"))));
        assert_eq!(parse_host("db=::1"), Ok(("db".into(), address("::1"))));
        assert_eq!(
            parse_host("h:host-gateway"),
            Ok(("h".into(), HostAddress::Gateway))
        );
        for text in ["db", "db:", "db:x", ":1.1.1.1", "a b:1.1.1.1", "a\nb:1.1.1.1"] {
            assert!(parse_host(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn prefixes_are_written_with_their_bits() {
        assert_eq!("10.0.0.0/8".parse(), Ok(Prefix("10.0.0.0".parse().unwrap(), 8)));
        for text in ["10.0.0.0", "10.0.0.0/33", "x/8", "::/129", "10.0.0.0/"] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
        assert_eq!(parse_option("mtu=1400"), Ok(1400));
        assert!(parse_option("mtu=70000").is_err() && parse_option("x=1").is_err());
    }
}
