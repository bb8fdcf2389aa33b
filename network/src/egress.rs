//! The policy of where a container may connect to, as people write it: `none`, or `allow=ITEM[,ITEM...]` with networks,
//! addresses and names.

use std::net::IpAddr;
use std::str::FromStr;

use crate::endpoint::Egress;

/// Why something is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Neither of the two forms.
    #[error("{0:?} is no policy: it is written none, or allow=ITEM[,ITEM...]")]
    Form(String),
    /// A network that is none.
    #[error("{0:?} is no network: it is written as 192.0.2.0/24 or 2001:db8::/32")]
    Network(String),
    /// A name that is none.
    #[error("{0:?} is neither an address nor a network nor a name such as example.org or *.example.org")]
    Name(String),
    /// All names.
    #[error("* would be every name: allow the networks 0.0.0.0/0 and ::/0, or leave --egress out")]
    Everything,
}

impl FromStr for Egress {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut egress = Self::default();
        if text == "none" {
            return Ok(egress);
        }
        let items = text.strip_prefix("allow=").filter(|items| !items.is_empty());
        for item in items.ok_or_else(|| ParseError::Form(text.to_owned()))?.split(',') {
            match (item.split_once('/'), item.parse::<IpAddr>()) {
                (Some((address, prefix)), _) => egress.networks.push(network(item, address, prefix)?),
                (None, Ok(address)) => egress.networks.push((address, length(address))),
                (None, Err(_)) => egress.names.push(name(item)?),
            }
        }
        Ok(egress)
    }
}

impl std::fmt::Display for Egress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.networks.is_empty() && self.names.is_empty() {
            return formatter.write_str("none");
        }
        let networks = self.networks.iter().map(|(address, prefix)| match *prefix {
            prefix if prefix == length(*address) => address.to_string(),
            prefix => format!("{address}/{prefix}"),
        });
        let items: Vec<_> = networks.chain(self.names.iter().cloned()).collect();
        formatter.write_str("allow=")?;
        formatter.write_str(&items.join(","))
    }
}

impl Egress {
    /// Adds what another one allows.
    pub fn extend(&mut self, other: Self) {
        self.networks.extend(other.networks);
        self.names.extend(other.names);
    }
}

/// Bits of an address.
fn length(address: IpAddr) -> u8 {
    if address.is_ipv6() { 128 } else { 32 }
}

/// With no bit set after the prefix, so that a policy reads as what it does.
fn network(item: &str, address: &str, prefix: &str) -> Result<(IpAddr, u8), ParseError> {
    let wrong = || ParseError::Network(item.to_owned());
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
    let rest = length(address).checked_sub(prefix).ok_or_else(wrong)?;
    let first = match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(rest.into()).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(rest.into()).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    };
    Ok((first, prefix))
}

/// As the resolver compares it: in lower case, without a dot at the end.
fn name(item: &str) -> Result<String, ParseError> {
    let wrong = || ParseError::Name(item.to_owned());
    let text = item.strip_suffix('.').unwrap_or(item).to_ascii_lowercase();
    if text == "*" {
        return Err(ParseError::Everything);
    }
    let labels = text.strip_prefix("*.").unwrap_or(&text);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    // A number alone, or one at the end, is a mistyped address.
    let last = labels.rsplit('.').next().unwrap_or_default();
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit());
    if labels.len() > 253 || !labels.split('.').all(is_label) || is_number {
        return Err(wrong());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_as_they_are_shown() {
        for (text, shown) in [
            ("none", "none"),
            ("allow=10.0.0.0/8", "allow=10.0.0.0/8"),
            ("allow=10.1.2.3/8,192.0.2.1", "allow=10.0.0.0/8,192.0.2.1"),
            ("allow=192.0.2.1/32", "allow=192.0.2.1"),
            ("allow=2001:DB8::1/32,::1", "allow=2001:db8::/32,::1"),
            ("allow=0.0.0.0/0,::/0", "allow=0.0.0.0/0,::/0"),
            (
                "allow=Example.ORG.,*.example.net,a_b",
                "allow=example.org,*.example.net,a_b",
            ),
        ] {
            assert_eq!(text.parse::<Egress>().unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        for text in [
            "",
            "all",
            "allow=",
            "allow=,",
            "allow=a,,b",
            "allow=10.0.0.0/33",
            "allow=10.0.0/8",
            "allow=::/129",
            "allow=*",
            "allow=a.*.b",
            "allow=*a.b",
            "allow=10.0.0",
            "allow=256.1.1.1",
            "allow=exa mple.org",
            "allow=10.0.0.1:80",
            "allow=ä.org",
            "none,10.0.0.1",
            "deny=10.0.0.1",
            "allow=*.",
        ] {
            assert!(text.parse::<Egress>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_below_are_not_the_name_itself() {
        let egress: Egress = "allow=*.example.org,exact.test".parse().unwrap();
        for (name, expected) in [
            ("a.example.org", true),
            ("b.a.example.org", true),
            ("example.org", false),
            ("aexample.org", false),
            (".example.org", false),
            ("exact.test", true),
            ("a.exact.test", false),
        ] {
            assert_eq!(egress.allows_name(name), expected, "{name}");
        }
    }
}
