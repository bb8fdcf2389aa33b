//! Image references as Docker reads them.
//!
//! `alpine` means `docker.io/library/alpine:latest`. The grammar is that of the distribution project
//! (`[domain/]path[:tag][@digest]`); what comes before the first slash is a domain if it has a dot or a colon, is
//! `localhost`, or has upper-case letters, which paths may not have.

use std::fmt;
use std::str::FromStr;

use crate::{Digest, DigestError};

pub(crate) const DEFAULT_DOMAIN: &str = "docker.io";
/// Docker Hub's old name.
pub(crate) const LEGACY_DOMAIN: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Longest domain and path together.
const NAME_BYTES: usize = 255;
const TAG_BYTES: usize = 128;

/// A full reference: a repository, and a tag or a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not a reference.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// The repository's name breaks the grammar.
    #[error(
        "invalid image reference {0:?}: a name has lower-case letters, digits and single separators (. _ - /)"
    )]
    Name(String),
    /// The name has more than 255 bytes.
    #[error("invalid image reference {0:?}: the name has more than {NAME_BYTES} bytes")]
    TooLong(String),
    /// A name of 64 hexadecimal digits could not be told from an ID.
    #[error("invalid image reference {0:?}: 64 hexadecimal digits are an ID, not a name")]
    LikeAnId(String),
    /// The tag breaks the grammar.
    #[error(
        "invalid image reference {0:?}: a tag has at most 128 letters, digits, _, . and -, and begins with none of . -"
    )]
    Tag(String),
    /// What follows `@` is not a digest.
    #[error("invalid image reference {0:?}")]
    Digest(String, #[source] DigestError),
}

impl Reference {
    /// The registry's domain, with a port if one was given.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository's path within the registry.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag; a reference without digest always has one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of a manifest.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The repository as people write it: `alpine`, `user/app`, `registry.example:5000/app`.
    #[must_use]
    pub fn familiar_repository(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return format!("{}/{}", self.domain, self.path);
        }
        match self.path.strip_prefix(OFFICIAL_PREFIX) {
            Some(name) if !name.contains('/') => name.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// The whole reference as people write it.
    #[must_use]
    pub fn familiar(&self) -> String {
        format!("{}{}", self.familiar_repository(), Suffix(self))
    }

    /// Repository and tag alone; none without a tag.
    #[must_use]
    pub fn without_digest(&self) -> Option<Self> {
        self.tag.is_some().then(|| Self {
            digest: None,
            ..self.clone()
        })
    }

    /// What a text names that has neither tag nor digest and so may mean a whole repository; the tag of the answer means
    /// nothing.
    pub(crate) fn repository(text: &str) -> Option<Self> {
        let last = text.rsplit('/').next().unwrap_or_default();
        text.parse().ok().filter(|_| !last.contains([':', '@']))
    }

    /// Whether both name the same repository.
    #[must_use]
    pub fn same_repository(&self, other: &Self) -> bool {
        self.domain == other.domain && self.path == other.path
    }
}

/// Tag and digest.
struct Suffix<'a>(&'a Reference);

impl fmt::Display for Suffix<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tag) = &self.0.tag {
            write!(formatter, ":{tag}")?;
        }
        match &self.0.digest {
            Some(digest) => write!(formatter, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}{}", self.domain, self.path, Suffix(self))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|source| ReferenceError::Digest(text.to_owned(), source))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        // A colon before a slash belongs to a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag(text.to_owned()));
        }
        if Digest::from_hex(name).is_some() {
            return Err(ReferenceError::LikeAnId(text.to_owned()));
        }
        let (domain, path) = split_domain(name);
        if !is_domain(domain) || !path.split('/').all(is_path_component) {
            return Err(ReferenceError::Name(text.to_owned()));
        }
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            format!("{OFFICIAL_PREFIX}{path}")
        } else {
            path.to_owned()
        };
        if domain.len() + 1 + path.len() > NAME_BYTES {
            return Err(ReferenceError::TooLong(text.to_owned()));
        }
        let default = digest.is_none().then_some(DEFAULT_TAG);
        Ok(Self {
            domain: domain.to_owned(),
            path,
            tag: tag.or(default).map(str::to_owned),
            digest,
        })
    }
}

fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.contains(|letter: char| letter.is_ascii_uppercase()) =>
        {
            (
                if first == LEGACY_DOMAIN {
                    DEFAULT_DOMAIN
                } else {
                    first
                },
                rest,
            )
        }
        _ => (DEFAULT_DOMAIN, name),
    }
}

fn is_domain(domain: &str) -> bool {
    // An IPv6 address is written in brackets.
    let (host, port) = match domain.rsplit_once(']') {
        Some((address, rest)) => {
            let address = address.strip_prefix('[').unwrap_or_default();
            if address.is_empty()
                || !address
                    .chars()
                    .all(|digit| digit.is_ascii_hexdigit() || digit == ':')
            {
                return false;
            }
            (None, rest.strip_prefix(':').or((!rest.is_empty()).then_some("")))
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        },
    };
    let good_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .chars()
                .all(|letter| letter.is_ascii_alphanumeric() || letter == '-')
    };
    host.is_none_or(|host| host.split('.').all(good_label))
        && port.is_none_or(|port| !port.is_empty() && port.chars().all(|digit| digit.is_ascii_digit()))
}

/// Words of lower-case letters and digits, with one of `.`, `_`, `__` or any number of `-` between two.
fn is_path_component(component: &str) -> bool {
    let is_word = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let mut separators = component.split(is_word).filter(|separator| !separator.is_empty());
    component.starts_with(is_word)
        && component.ends_with(is_word)
        && separators.all(|separator| {
            matches!(separator, "." | "_" | "__") || separator.chars().all(|letter| letter == '-')
        })
}

/// Whether the text could be a tag.
pub(crate) fn is_tag(tag: &str) -> bool {
    tag.len() <= TAG_BYTES
        && tag.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
        && tag
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '.' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_are_read_as_docker_does() {
        let check = |text: &str, full: &str, familiar: &str| {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(
                (reference.to_string().as_str(), reference.familiar().as_str()),
                (full, familiar)
            );
            assert_eq!(full.parse(), Ok(reference), "the full form means the same");
        };
        check("alpine", "docker.io/library/alpine:latest", "alpine:latest");
        check(
            "debian:bookworm",
            "docker.io/library/debian:bookworm",
            "debian:bookworm",
        );
        check(
            "user/app:V1.0_x-y",
            "docker.io/user/app:V1.0_x-y",
            "user/app:V1.0_x-y",
        );
        check(
            "docker.io/alpine",
            "docker.io/library/alpine:latest",
            "alpine:latest",
        );
        check(
            "index.docker.io/library/alpine",
            "docker.io/library/alpine:latest",
            "alpine:latest",
        );
        check("localhost/app", "localhost/app:latest", "localhost/app:latest");
        check(
            "localhost:5000/a/b:t",
            "localhost:5000/a/b:t",
            "localhost:5000/a/b:t",
        );
        check("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest");
        check(
            "quay.io/a__b/c--d.e",
            "quay.io/a__b/c--d.e:latest",
            "quay.io/a__b/c--d.e:latest",
        );
        check("Registry/app", "Registry/app:latest", "Registry/app:latest");
        check("deadbeef", "docker.io/library/deadbeef:latest", "deadbeef:latest");
        let digest = format!("sha256:{HEX}");
        check(
            &format!("alpine@{digest}"),
            &format!("docker.io/library/alpine@{digest}"),
            &format!("alpine@{digest}"),
        );
        check(
            &format!("alpine:3@{digest}"),
            &format!("docker.io/library/alpine:3@{digest}"),
            &format!("alpine:3@{digest}"),
        );
    }

    #[test]
    fn bad_references_are_refused() {
        let check = |text: &str| assert!(text.parse::<Reference>().is_err(), "{text:?}");
        for text in [
            "",
            ":tag",
            "/a",
            "a/",
            "a//b",
            "Alpine",
            "a:",
            "a:-x",
            "a:.x",
            "a___b",
            "a..b",
            "-a",
            "a-",
            "a b",
            "../a",
            "a/../b",
            "a:b:c",
            "a@sha256:00",
            "a@md5:00",
            "ü",
            "a:ü",
            "x.y:port/a",
            "-x.y/a",
            "[::1/a",
            "[]/a",
            "[::1]x/a",
        ] {
            check(text);
        }
        check(HEX);
        check(&"a".repeat(256));
        check(&format!("a:{}", "t".repeat(129)));
    }
}
