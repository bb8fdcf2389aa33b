//! Why a registry did not give what was asked of it.

use std::time::Duration;

use ureq::http::Uri;

use super::endpoint::DOCKER_HUB;
use crate::{Digest, document, limits};

/// Why a request, or what it answered, is of no use. Addresses are without their query, which may be a secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0:?} is no address")]
    Address(String),
    #[error("cannot reach {url}: {}", reason(cause))]
    Connect { url: String, cause: Box<ureq::Error> },
    #[error("the connection to {url} broke")]
    Broken { url: String, source: std::io::Error },
    #[error("{from} redirects to where it may not: {reason}")]
    Redirect { from: String, reason: &'static str },
    #[error("{url} redirects more than {} times", limits::REDIRECTS)]
    Redirects { url: String },
    #[error("{registry} has no image {image}")]
    NotFound { registry: String, image: String },
    #[error("{registry} does not give access{}", said(message))]
    Denied { registry: String, message: String },
    #[error("{registry} does not accept the credentials for it{}", said(message))]
    Rejected { registry: String, message: String },
    #[error("{url} answered {status}{}", said(message))]
    Status {
        url: String,
        status: u16,
        message: String,
    },
    #[error("{url} asks to wait for {} seconds", wait.as_secs())]
    Wait { url: String, wait: Duration },
    #[error("{0} answered with a web page: this is no registry, or a proxy or a login page is in between")]
    Html(String),
    #[error("{url} answered with more than {limit} bytes")]
    TooLarge { url: String, limit: u64 },
    #[error("{url} has {actual} bytes, not {expected} as the manifest says")]
    Length { url: String, expected: u64, actual: u64 },
    #[error("{url} sent another part of the blob than was asked for")]
    Range { url: String },
    #[error("{0} asks for a kind of authentication that is not supported: basic and bearer are")]
    Challenge(String),
    #[error("the token server {url} gave no usable token")]
    Token { url: String },
    #[error("the registry names {0} as its token server, which may not be asked by plain HTTP")]
    PlainRealm(String),
    #[error("cannot use the credentials in {0}")]
    Credentials(String, #[source] super::credentials::Error),
    #[error("cannot read the certificates in {path}: {reason}")]
    Certificates { path: String, reason: String },
    #[error("the proxy {0:?} of the environment is no address")]
    Proxy(String),
    #[error("the document at {url} cannot be used")]
    Document { url: String, source: document::Error },
    #[error("{url} says that it is {declared:?}, and that it is {inside:?}")]
    MediaType {
        url: String,
        declared: String,
        inside: String,
    },
    #[error("{url} has the digest {actual}, and the registry says {claimed}")]
    ClaimedDigest {
        url: String,
        claimed: String,
        actual: Digest,
    },
    #[error("{0} is a manifest of Docker's first schema, which registries gave up; push the image anew")]
    FirstSchema(String),
    #[error("{url} is no image but {what}")]
    NoImage { url: String, what: String },
    #[error("the image is not there for {wanted}, only for {offered}")]
    Platform { wanted: String, offered: String },
    #[error("{0} answered without saying where to send the blob to")]
    NoLocation(String),
    #[error("{url} says that it has {actual} bytes of {expected} that were sent")]
    Offset { url: String, expected: u64, actual: u64 },
    #[error("the indexes of the image are nested too deeply")]
    Nesting,
    #[error("stopped, because another layer failed")]
    Stopped,
}

impl Error {
    /// Whether the same request may succeed a moment later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Broken { .. } => true,
            Self::Status { status, .. } => is_transient(*status),
            Self::Connect { cause, .. } => match &**cause {
                ureq::Error::Io(error) => tls(cause).is_none() && !is_unknown_name(error),
                ureq::Error::Timeout(ureq::Timeout::Resolve) => false,
                ureq::Error::Timeout(_) | ureq::Error::Protocol(_) | ureq::Error::ConnectionFailed => true,
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether the other side does not speak TLS, or nobody is there.
    pub(super) fn may_be_plain(&self) -> bool {
        match self {
            Self::Connect { cause, .. } => match tls(cause) {
                Some(error) => matches!(error, rustls::Error::InvalidMessage(_)),
                None => true,
            },
            _ => false,
        }
    }

    /// What a person can do about it, where that is not obvious.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Connect { cause, .. }
                if matches!(tls(cause), Some(rustls::Error::InvalidCertificate(_))) =>
            {
                Some(
                    "put the authority's certificate into /etc/docker/certs.d/HOST:PORT/ca.crt, or use --tls-verify=false"
                        .to_owned(),
                )
            }
            Self::Connect { cause, .. } if tls(cause).is_some() => Some(
                "a registry without TLS has to be named in the configuration file, or use --tls-verify=false".to_owned(),
            ),
            Self::Denied { registry, .. } => Some(format!(
                "if the image is there, it needs credentials: {}",
                login(registry)
            )),
            Self::Rejected { registry, .. } => {
                Some(format!("the credentials are old or wrong: {}", login(registry)))
            }
            Self::Status { status: 413, .. } => Some(
                "the registry, or a proxy before it, limits how large an upload may be: the limit has to be raised there"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    /// The same, for somebody who pushes.
    pub(crate) fn push_hint(&self) -> Option<String> {
        match self {
            Self::Denied { registry, .. } => Some(format!(
                "only who may write to the repository can push: {}",
                login(registry)
            )),
            other => other.hint(),
        }
    }
}

/// The command that asks for credentials.
fn login(authority: &str) -> String {
    if authority == DOCKER_HUB {
        "rvm login".to_owned()
    } else {
        format!("rvm login {authority}")
    }
}

/// Statuses that say "not now".
pub(super) fn is_transient(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// Whether a name does not exist, as the C library says it; the standard library gives nothing but its text. That a name
/// server cannot be reached at the moment is another text.
fn is_unknown_name(error: &std::io::Error) -> bool {
    let text = error.to_string();
    text.starts_with("failed to lookup address information") && !text.contains("Temporary failure")
}

/// The TLS library's error within an HTTP error.
fn tls(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

/// The library's own texts are for programmers.
fn reason(error: &ureq::Error) -> String {
    match (error, tls(error)) {
        (_, Some(rustls::Error::InvalidMessage(_))) => "it does not speak TLS".to_owned(),
        (_, Some(error)) => error.to_string(),
        (ureq::Error::Io(error), None) => error.to_string(),
        (ureq::Error::HostNotFound, _) => "there is no host of this name".to_owned(),
        (ureq::Error::Timeout(ureq::Timeout::Resolve), _) => "its name was not resolved in time".to_owned(),
        (ureq::Error::Timeout(_), _) => "it did not answer in time".to_owned(),
        (other, None) => other.to_string(),
    }
}

/// An address as it may be shown.
pub(super) fn shown(uri: &Uri) -> String {
    let host = uri.authority().map_or("", |authority| authority.as_str());
    format!(
        "{}://{}{}",
        uri.scheme_str().unwrap_or_default(),
        host,
        uri.path()
    )
}

fn said(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}
