//! Where a registry is reached: its authority, a path before the repositories for mirrors, and its scheme.

use std::sync::OnceLock;

use ureq::http::Uri;
use ureq::http::uri::Scheme;

use super::config::Registries;
use super::error::Error;
use crate::reference::{DEFAULT_DOMAIN, Reference};

/// Docker Hub's registry is not where its references say.
pub(super) const DOCKER_HUB: &str = "registry-1.docker.io";

/// The key under which Docker keeps the credentials of its Hub.
const DOCKER_HUB_CREDENTIALS: &str = "https://index.docker.io/v1/";

/// One registry or mirror.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// `HOST[:PORT]`.
    authority: String,
    /// Before the repository's path, with a slash at its end, or nothing.
    prefix: String,
    /// The key of its credentials in Docker's configuration.
    credentials: String,
    /// Known from the beginning where there is no choice, else found out by the client.
    pub(super) scheme: OnceLock<Scheme>,
}

impl Endpoint {
    /// The registry that a domain means.
    pub(crate) fn of(domain: &str, registries: &Registries) -> Self {
        let hub = domain == DEFAULT_DOMAIN;
        let authority = if hub { DOCKER_HUB } else { domain };
        let endpoint = Self {
            authority: authority.to_owned(),
            prefix: String::new(),
            credentials: if hub { DOCKER_HUB_CREDENTIALS } else { domain }.to_owned(),
            scheme: OnceLock::new(),
        };
        if !registries.allows_plain_http(domain) {
            let _ = endpoint.scheme.set(Scheme::HTTPS);
        }
        endpoint
    }

    /// Who is asked for a reference before its registry, in this order.
    pub(crate) fn mirrors(reference: &Reference, registries: &Registries) -> Vec<Self> {
        let mirrors = registries.mirrors(reference.domain()).iter();
        mirrors.map(|mirror| Self::mirror(mirror, registries)).collect()
    }

    fn mirror(text: &str, registries: &Registries) -> Self {
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Some(Scheme::HTTP), rest),
            Some((_, rest)) => (Some(Scheme::HTTPS), rest),
            None => (None, text),
        };
        let (authority, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        let scheme = scheme.or_else(|| (!registries.allows_plain_http(authority)).then_some(Scheme::HTTPS));
        Self {
            authority: authority.to_owned(),
            prefix: if prefix.is_empty() {
                String::new()
            } else {
                format!("{prefix}/")
            },
            credentials: authority.to_owned(),
            scheme: scheme.map_or_else(OnceLock::new, OnceLock::from),
        }
    }

    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// Whether another one is the same registry.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (&self.authority, &self.prefix) == (&other.authority, &other.prefix)
    }

    pub(super) fn credentials_key(&self) -> &str {
        &self.credentials
    }

    /// A repository's name here.
    pub(crate) fn repository(&self, reference: &Reference) -> String {
        format!("{}{}", self.prefix, reference.path())
    }

    /// An address below `/v2/`.
    pub(super) fn url(&self, scheme: &Scheme, path: &str) -> Result<Uri, Error> {
        let text = format!("{scheme}://{}/v2/{path}", self.authority);
        text.parse().map_err(|_| Error::Address(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let check = |reference: &str, expected: &str| {
            let reference: Reference = reference.parse().unwrap();
            let endpoint = Endpoint::of(reference.domain(), &Registries::default());
            let path = format!("{}/tags/list", endpoint.repository(&reference));
            assert_eq!(endpoint.url(&Scheme::HTTPS, &path).unwrap().to_string(), expected);
        };
        check(
            "alpine",
            "https://registry-1.docker.io/v2/library/alpine/tags/list",
        );
        check("[::1]:5000/a/b", "https://[::1]:5000/v2/a/b/tags/list");
        let registries = Registries::default();
        let mirror = Endpoint::mirror("http://m.example:1/cache/", &registries);
        assert_eq!(mirror.scheme.get(), Some(&Scheme::HTTP));
        assert_eq!(
            mirror.repository(&"alpine".parse().unwrap()),
            "cache/library/alpine"
        );
        let local = Endpoint::of("localhost:5000", &registries);
        assert_eq!(local.scheme.get(), None, "it may be either");
        assert_eq!(
            Endpoint::of("quay.io", &registries).scheme.get(),
            Some(&Scheme::HTTPS)
        );
    }
}
