//! HTTP and TLS: one agent for each host, with the certificates, the proxy and the time limits that apply to it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ureq::http::header::{CONTENT_LENGTH, EXPECT};
use ureq::http::{Method, Request, Response, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, AsSendBody, Body, Proxy, SendBody};

use super::certificates;
use super::config::{Registries, is_loopback};
use super::error::{Error, shown};
use super::redirect::authority;

/// How long is waited for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// To resolve a name, and to be connected.
    pub(crate) connect: Duration,
    /// For the next byte: longer is a stall.
    pub(crate) read: Duration,
    /// For the whole answer where it is small.
    pub(crate) document: Duration,
    /// For the answer of a registry that puts a large blob together and reads it again.
    pub(crate) commit: Duration,
    /// Before the second try; each further one waits twice as long.
    pub(crate) back_off: Duration,
    /// What a server may ask to wait at most; a person who needs longer is told so.
    pub(crate) longest_wait: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            read: Duration::from_secs(30),
            document: Duration::from_secs(60),
            commit: Duration::from_secs(15 * 60),
            back_off: Duration::from_millis(500),
            longest_wait: Duration::from_secs(60),
        }
    }
}

/// Connections to any number of hosts.
pub(super) struct Transport {
    timing: Timing,
    system_certificates: OnceLock<Vec<Certificate<'static>>>,
    agents: Mutex<HashMap<String, Agent>>,
}

/// One request as it goes over the wire.
pub(super) struct Outgoing<'a> {
    pub(super) method: &'a Method,
    pub(super) url: &'a Uri,
    pub(super) headers: Vec<(&'static str, &'a str)>,
    /// Of methods that have some.
    pub(super) content: Content<'a>,
    pub(super) patience: Patience,
}

/// What a request brings.
#[derive(Clone, Copy)]
pub(super) enum Content<'a> {
    Bytes(&'a [u8]),
    Part(Part<'a>),
}

/// A part of a file, which is read as it is sent, and again if it has to be sent again.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) file: &'a File,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    /// Is told how far the file has been read, and whether to go on.
    pub(super) go_on: &'a dyn Fn(u64) -> bool,
}

/// How long an exchange may take.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Something small, there and back.
    Document,
    /// As long as something keeps going, there or back.
    Stream,
    /// As [`Timing::commit`].
    Commit,
}

/// Reads a [`Part`].
struct PartReader<'a> {
    part: Part<'a>,
    sent: u64,
}

impl Read for PartReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let position = self.part.offset.saturating_add(self.sent);
        if !(self.part.go_on)(position) {
            return Err(io::Error::other("another layer failed"));
        }
        let left = usize::try_from(self.part.bytes.saturating_sub(self.sent)).unwrap_or(usize::MAX);
        let wanted = left.min(buffer.len());
        let count = self
            .part
            .file
            .read_at(buffer.get_mut(..wanted).unwrap_or_default(), position)?;
        if count == 0 && wanted > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file is too short",
            ));
        }
        self.sent = self.sent.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }
}

impl Transport {
    pub(super) fn new(timing: Timing) -> Self {
        Self {
            timing,
            system_certificates: OnceLock::new(),
            agents: Mutex::new(HashMap::new()),
        }
    }

    /// One request, one answer, whatever its status.
    pub(super) fn exchange(
        &self,
        outgoing: &Outgoing<'_>,
        registries: &Registries,
    ) -> Result<Response<Body>, Error> {
        let url = outgoing.url;
        let agent = self.agent(url, registries)?;
        let mut request = Request::builder().method(outgoing.method).uri(url);
        for (name, value) in &outgoing.headers {
            request = request.header(*name, *value);
        }
        let result = match &outgoing.content {
            _ if matches!(*outgoing.method, Method::GET | Method::HEAD | Method::DELETE) => {
                self.run(&agent, request.body(()), outgoing.patience)
            }
            Content::Bytes(bytes) => self.run(&agent, request.body(*bytes), outgoing.patience),
            Content::Part(part) => {
                let mut reader = PartReader { part: *part, sent: 0 };
                // A registry that does not want it says so before it is sent, and not by breaking the connection.
                let request = request
                    .header(CONTENT_LENGTH, part.bytes)
                    .header(EXPECT, "100-continue")
                    .body(SendBody::from_reader(&mut reader));
                self.run(&agent, request, outgoing.patience)
            }
        };
        result.map_err(|cause| Error::Connect {
            url: shown(url),
            cause: Box::new(cause),
        })
    }

    fn run(
        &self,
        agent: &Agent,
        request: Result<Request<impl AsSendBody>, ureq::http::Error>,
        patience: Patience,
    ) -> Result<Response<Body>, ureq::Error> {
        let Timing {
            read,
            document,
            commit,
            ..
        } = self.timing;
        let (whole, answer, read) = match patience {
            Patience::Document => (Some(document), document, read),
            Patience::Stream => (None, document, read),
            Patience::Commit => (Some(commit), commit, commit),
        };
        let request = agent
            .configure_request(request?)
            .timeout_global(whole)
            .timeout_recv_response(Some(answer))
            .timeout_per_read(Some(read))
            .build();
        agent.run(request)
    }

    fn agent(&self, url: &Uri, registries: &Registries) -> Result<Agent, Error> {
        let key = format!("{}://{}", url.scheme_str().unwrap_or_default(), authority(url));
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(&key) {
            return Ok(agent.clone());
        }
        let agent = self.new_agent(url, registries)?;
        agents.insert(key, agent.clone());
        Ok(agent)
    }

    fn new_agent(&self, url: &Uri, registries: &Registries) -> Result<Agent, Error> {
        let insecure = registries.is_insecure(authority(url));
        let has_tls = url.scheme_str() == Some("https");
        // Read only where they are needed, which takes some milliseconds.
        let certificates = if has_tls && !insecure {
            self.certificates(authority(url))?
        } else {
            Vec::new()
        };
        let client = if has_tls {
            certificates::client(authority(url))?
        } else {
            None
        };
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::Specific(Arc::new(certificates)))
            .disable_verification(insecure)
            .client_cert(client)
            .build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("rvm/", env!("CARGO_PKG_VERSION")))
            .proxy(proxy(url)?)
            .tls_config(tls)
            .timeout_resolve(Some(self.timing.connect))
            .timeout_connect(Some(self.timing.connect))
            .timeout_per_write(Some(self.timing.read))
            .build();
        Ok(Agent::new_with_config(config))
    }

    /// The system's authorities, and those that are only for this host.
    fn certificates(&self, authority: &str) -> Result<Vec<Certificate<'static>>, Error> {
        let system = self.system_certificates.get_or_init(|| {
            // What cannot be read is not trusted; if nothing can, the connection's error says so.
            let loaded = rustls_native_certs::load_native_certs();
            loaded
                .certs
                .iter()
                .map(|der| Certificate::from_der(der).to_owned())
                .collect()
        });
        let mut certificates = system.clone();
        for directory in certificates::directories(authority) {
            certificates.extend(certificates::authorities_in(&directory)?);
        }
        Ok(certificates)
    }
}

/// The environment's proxy for an address, as other programs understand these variables. This machine is asked directly.
fn proxy(url: &Uri) -> Result<Option<Proxy>, Error> {
    let variable = |name: &str| {
        let value = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        value(&name.to_lowercase()).or_else(|| value(name))
    };
    let name = if url.scheme_str() == Some("https") {
        "HTTPS_PROXY"
    } else {
        "HTTP_PROXY"
    };
    proxy_for(
        url,
        variable(name).or_else(|| variable("ALL_PROXY")),
        variable("NO_PROXY"),
    )
}

fn proxy_for(url: &Uri, address: Option<String>, exceptions: Option<String>) -> Result<Option<Proxy>, Error> {
    let Some(address) = address.filter(|_| !is_loopback(authority(url))) else {
        return Ok(None);
    };
    let host = url.host().unwrap_or_default().to_ascii_lowercase();
    let excepted = exceptions.unwrap_or_default().split(',').any(|exception| {
        let exception = exception.trim().to_ascii_lowercase();
        let domain = exception.trim_start_matches('*').trim_start_matches('.');
        exception == "*"
            || (!domain.is_empty()
                && (host == domain
                    || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
                    || authority(url).eq_ignore_ascii_case(domain)))
    });
    if excepted {
        return Ok(None);
    }
    Proxy::new(&address)
        .map(Some)
        .map_err(|_| Error::Proxy(without_password(&address)))
}

fn without_password(address: &str) -> String {
    address.rsplit('@').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_chosen_as_elsewhere() {
        let check = |url: &str, exceptions: &str, expected: bool| {
            let url: Uri = url.parse().unwrap();
            let proxy = proxy_for(
                &url,
                Some("http://p:3128".to_owned()),
                Some(exceptions.to_owned()),
            );
            assert_eq!(proxy.unwrap().is_some(), expected, "{url} {exceptions}");
        };
        check("https://r.example/v2/", "", true);
        check("https://r.example/v2/", "example", false);
        check("https://r.example/v2/", ".example", false);
        check("https://r.example/v2/", "*.example", false);
        check("https://r.example/v2/", "ample", true);
        check("https://r.example/v2/", "other, R.Example", false);
        check("https://r.example:5000/v2/", "r.example:5000", false);
        check("https://r.example/v2/", "*", false);
        check("https://localhost:5000/v2/", "", false);
        let url: Uri = "https://r.example/".parse().unwrap();
        let error = proxy_for(&url, Some("gopher://me:secret@p".to_owned()), None)
            .err()
            .unwrap();
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
