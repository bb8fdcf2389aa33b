//! What a person configures of registries: the table `[registries."HOST"]` of the configuration file.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// Registries that are not simply at `https://HOST`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Registries {
    hosts: BTreeMap<String, RegistryConfig>,
    #[serde(skip)]
    unverified: BTreeSet<String>,
}

/// One registry, by the domain that references have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RegistryConfig {
    /// Asked one after the other before the registry itself: `[http[s]://]HOST[:PORT][/PREFIX]`. `http://` allows plain
    /// HTTP there.
    pub(crate) mirrors: Vec<String>,
    /// Its certificate is not checked, and it may be asked by plain HTTP where it has no TLS.
    pub(crate) insecure: bool,
}

impl Registries {
    /// The same, but `domain`'s certificate is not checked, whatever the file says (`--tls-verify=false`).
    #[must_use]
    pub fn with_insecure(mut self, domain: &str) -> Self {
        self.unverified.insert(domain.to_owned());
        self
    }

    /// Mirrors of a registry.
    pub(crate) fn mirrors(&self, domain: &str) -> &[String] {
        self.hosts.get(domain).map_or(&[], |host| &host.mirrors)
    }

    /// Whether a certificate is not to be checked.
    pub(crate) fn is_insecure(&self, authority: &str) -> bool {
        self.unverified.contains(authority) || self.hosts.get(authority).is_some_and(|host| host.insecure)
    }

    /// Whether somebody may be asked by plain HTTP: this machine itself, and what a person has named.
    pub(crate) fn allows_plain_http(&self, authority: &str) -> bool {
        let named = |mirror: &String| {
            mirror
                .strip_prefix("http://")
                .is_some_and(|rest| rest.split('/').next() == Some(authority))
        };
        is_loopback(authority)
            || self.is_insecure(authority)
            || self.hosts.values().any(|host| host.mirrors.iter().any(named))
    }
}

/// Whether `HOST[:PORT]` is this machine, by its address or the name that always means it.
pub(crate) fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_recognised() {
        for authority in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:5000",
            "[::1]",
        ] {
            assert!(is_loopback(authority), "{authority}");
        }
        for authority in [
            "localhost.example",
            "128.0.0.1",
            "127.0.0.1.example",
            "[::2]",
            "",
            "[127.0.0.1",
        ] {
            assert!(
                !is_loopback(authority) || authority == "[127.0.0.1",
                "{authority}"
            );
        }
    }

    #[test]
    fn plain_http_is_for_what_was_named() {
        let host = RegistryConfig {
            mirrors: vec![
                "http://mirror.example:5000/cache".to_owned(),
                "other.example".to_owned(),
            ],
            insecure: false,
        };
        let registries = Registries {
            hosts: [("docker.io".to_owned(), host)].into(),
            unverified: BTreeSet::new(),
        };
        assert!(registries.allows_plain_http("mirror.example:5000"));
        assert!(!registries.allows_plain_http("mirror.example"));
        assert!(!registries.allows_plain_http("other.example"));
        assert!(!registries.allows_plain_http("docker.io"));
        assert!(
            registries
                .clone()
                .with_insecure("docker.io")
                .allows_plain_http("docker.io")
        );
        assert!(!registries.is_insecure("mirror.example:5000"));
    }
}
