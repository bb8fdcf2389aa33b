//! One request to a registry and its answer: who asks, how often, and where redirects lead.

use std::io::Read as _;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use ureq::Body;
use ureq::http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use ureq::http::uri::Scheme;
use ureq::http::{HeaderName, Method, StatusCode, Uri};

use super::auth::{self, Accepted, Challenge};
use super::config::Registries;
use super::credentials::{self, Credentials};
use super::endpoint::Endpoint;
use super::error::{Error, is_transient, shown};
use super::redirect::{self, authority};
use super::transport::{Content, Outgoing, Part, Patience, Timing, Transport};
use crate::limits;

/// Tries of a request in all.
pub(super) const TRIES: u32 = 5;

/// Error messages that are shown of one answer, and characters of each.
const MESSAGES: usize = 3;
const MESSAGE_CHARACTERS: usize = 200;

/// Registries as this person may use them.
pub(crate) struct Client {
    pub(super) registries: Registries,
    pub(super) timing: Timing,
    transport: Transport,
    accepted: Accepted,
    identity: Identity,
}

/// Who asks.
pub(super) enum Identity {
    /// Whoever Docker's configuration file says.
    File(PathBuf),
    /// Somebody whose credentials are in no file.
    Given(Credentials),
    Nobody,
}

/// Where a request goes.
#[derive(Clone, Copy)]
enum Target<'a> {
    /// Below `/v2/`.
    Path(&'a str),
    /// Where the registry has said, which may be at another host.
    Address(&'a Uri),
}

/// What is asked of a registry.
pub(crate) struct Request<'a> {
    method: Method,
    target: Target<'a>,
    /// What a token has to be good for: `repository:NAME:pull`, or several of these with spaces between them.
    scope: &'a str,
    headers: Vec<(&'static str, &'a str)>,
    content: Content<'a>,
    patience: Patience,
}

impl<'a> Request<'a> {
    /// A request for what is at `path` below `/v2/`.
    pub(crate) fn get(path: &'a str, scope: &'a str) -> Self {
        Self::new(Method::GET, Target::Path(path), scope)
    }

    /// The question whether something is at `path` below `/v2/`.
    pub(super) fn head(path: &'a str, scope: &'a str) -> Self {
        Self::new(Method::HEAD, Target::Path(path), scope)
    }

    /// Something new below `path`.
    pub(super) fn post(path: &'a str, scope: &'a str) -> Self {
        Self::new(Method::POST, Target::Path(path), scope)
    }

    /// What is to be at `path`.
    pub(super) fn put(path: &'a str, scope: &'a str, media_type: &'a str, bytes: &'a [u8]) -> Self {
        let mut request = Self::new(Method::PUT, Target::Path(path), scope);
        request.headers.push((CONTENT_TYPE.as_str(), media_type));
        request.content = Content::Bytes(bytes);
        request
    }

    /// A request at an address that the registry gave.
    pub(super) fn at(method: Method, address: &'a Uri, scope: &'a str) -> Self {
        Self::new(method, Target::Address(address), scope)
    }

    fn new(method: Method, target: Target<'a>, scope: &'a str) -> Self {
        Self {
            method,
            target,
            scope,
            headers: Vec::new(),
            content: Content::Bytes(&[]),
            patience: Patience::Document,
        }
    }

    /// With a part of a file; `range` says which, where it is not the beginning.
    pub(super) fn part(mut self, part: Part<'a>, range: Option<&'a str>) -> Self {
        self.headers
            .push((CONTENT_TYPE.as_str(), "application/octet-stream"));
        self.headers
            .extend(range.map(|range| (CONTENT_RANGE.as_str(), range)));
        self.content = Content::Part(part);
        self.patience = Patience::Stream;
        self
    }

    /// The answer may take as long as it takes to put a large blob together.
    pub(super) fn patient(mut self) -> Self {
        self.patience = Patience::Commit;
        self
    }

    /// The media types that the answer may have.
    pub(crate) fn accept(mut self, types: &'a str) -> Self {
        self.headers.push((ACCEPT.as_str(), types));
        self
    }

    /// A part of the answer only, `bytes=N-`.
    pub(crate) fn range(mut self, range: &'a str) -> Self {
        self.headers.push((RANGE.as_str(), range));
        self
    }

    /// The answer may take any time, as long as it keeps coming.
    pub(crate) fn long(mut self) -> Self {
        self.patience = Patience::Stream;
        self
    }
}

/// An answer, and the address that gave it in the end.
pub(crate) struct Response {
    pub(super) inner: ureq::http::Response<Body>,
    pub(super) url: Uri,
}

impl Response {
    pub(crate) fn status(&self) -> StatusCode {
        self.inner.status()
    }

    pub(crate) fn header(&self, name: &HeaderName) -> Option<&str> {
        self.inner.headers().get(name)?.to_str().ok()
    }

    /// The media type without its parameters.
    pub(crate) fn media_type(&self) -> Option<&str> {
        let whole = self.header(&CONTENT_TYPE)?;
        whole.split(';').next().map(str::trim)
    }

    /// Where it came from, for messages.
    pub(crate) fn shown(&self) -> String {
        shown(&self.url)
    }

    /// The whole answer, which may not be larger than `limit`.
    pub(crate) fn read(self, limit: u64) -> Result<Vec<u8>, Error> {
        let url = self.shown();
        let mut bytes = Vec::new();
        let reader = self.inner.into_body().into_reader();
        let read = reader.take(limit.saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(|source| Error::Broken {
            url: url.clone(),
            source,
        })?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length <= limit) {
            Ok(bytes)
        } else {
            Err(Error::TooLarge { url, limit })
        }
    }

    /// The error that a status means.
    pub(crate) fn failure(self, registry: &str) -> Error {
        let status = self.status().as_u16();
        let url = self.shown();
        if status >= 400 && self.media_type() == Some("text/html") {
            return Error::Status {
                url,
                status,
                message: "a web page".to_owned(),
            };
        }
        let message = self
            .read(limits::ERROR_BYTES)
            .map_or_else(|_| String::new(), |body| messages(&body));
        match status {
            401 | 403 => Error::Denied {
                registry: registry.to_owned(),
                message,
            },
            _ => Error::Status { url, status, message },
        }
    }

    /// How long the server asks to wait.
    fn retry_after(&self) -> Option<Duration> {
        self.header(&RETRY_AFTER)?
            .trim()
            .parse()
            .ok()
            .map(Duration::from_secs)
    }
}

impl Client {
    /// A client with this person's credentials.
    pub(crate) fn new(registries: Registries) -> Self {
        let identity = credentials::default_path().map_or(Identity::Nobody, Identity::File);
        Self::with(registries, Timing::default(), identity)
    }

    pub(super) fn with(registries: Registries, timing: Timing, identity: Identity) -> Self {
        Self {
            registries,
            timing,
            transport: Transport::new(timing),
            accepted: Accepted::default(),
            identity,
        }
    }

    /// Sends a request, again where it may help. An answer with any status that is none of "later", "elsewhere" and "who are
    /// you" is returned as it is.
    pub(crate) fn send(&self, endpoint: &Endpoint, request: &Request<'_>) -> Result<Response, Error> {
        let mut attempt = 1;
        loop {
            let (error, asked) = match self.send_once(endpoint, request) {
                Ok(response) if is_transient(response.status().as_u16()) => {
                    let asked = response.retry_after();
                    (response.failure(endpoint.authority()), asked)
                }
                Ok(response) => return Ok(response),
                Err(error) => (error, None),
            };
            if attempt >= TRIES || !error.is_transient() {
                return Err(error);
            }
            if let (Some(wait), Error::Status { url, .. }) = (asked, &error)
                && wait > self.timing.longest_wait
            {
                return Err(Error::Wait {
                    url: url.clone(),
                    wait,
                });
            }
            thread::sleep(asked.unwrap_or_else(|| self.back_off(attempt)));
            attempt += 1;
        }
    }

    /// The wait after the failure of try number `attempt`, from 1.
    pub(super) fn back_off(&self, attempt: u32) -> Duration {
        self.timing
            .back_off
            .saturating_mul(1 << attempt.saturating_sub(1).min(6))
    }

    /// Answers a challenge, once: a registry that then still asks is told no more. For a request that, unlike what
    /// [`Client::send`] sends, may not be repeated as it is.
    pub(super) fn send_once(&self, endpoint: &Endpoint, request: &Request<'_>) -> Result<Response, Error> {
        let scheme = self.scheme(endpoint)?;
        let url = match request.target {
            Target::Path(path) => endpoint.url(&scheme, path)?,
            Target::Address(address) if !redirect::same_origin(address, &endpoint.url(&scheme, "")?) => {
                // Whoever that is: the credentials are not for it.
                return self.follow(address, request, None);
            }
            Target::Address(address) => address.clone(),
        };
        let known = self.accepted.get(endpoint.authority(), request.scope);
        let response = self.follow(&url, request, known.as_deref())?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let credentials = self.credentials(endpoint)?;
        let headers = response.inner.headers().get_all(WWW_AUTHENTICATE);
        let challenge = auth::challenge(headers.iter().filter_map(|value| value.to_str().ok()))
            .ok_or_else(|| Error::Challenge(endpoint.authority().to_owned()))?;
        let value = match (challenge, &credentials) {
            (Challenge::Basic, Some(Credentials::Password { user, password })) => {
                let value = auth::basic(user, password);
                self.accepted
                    .put(endpoint.authority(), request.scope, &value, None);
                value
            }
            (Challenge::Basic, _) => return Err(response.failure(endpoint.authority())),
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                credentials,
            ) => {
                let scope = if request.scope.is_empty() {
                    scope.as_deref()
                } else {
                    Some(request.scope)
                };
                let fields = auth::question(service.as_deref(), scope, credentials.as_ref());
                let (value, lifetime) = self.token(endpoint, &realm, &fields, credentials.as_ref())?;
                self.accepted
                    .put(endpoint.authority(), request.scope, &value, Some(lifetime));
                value
            }
        };
        let response = self.follow(&url, request, Some(&value))?;
        if response.status() == StatusCode::UNAUTHORIZED && credentials.is_some() {
            let Error::Denied { registry, message } = response.failure(endpoint.authority()) else {
                return Err(Error::Challenge(endpoint.authority().to_owned()));
            };
            return Err(Error::Rejected { registry, message });
        }
        Ok(response)
    }

    fn credentials(&self, endpoint: &Endpoint) -> Result<Option<Credentials>, Error> {
        let path = match &self.identity {
            Identity::File(path) => path,
            Identity::Given(credentials) => return Ok(Some(credentials.clone())),
            Identity::Nobody => return Ok(None),
        };
        credentials::find(path, endpoint.credentials_key())
            .map_err(|source| Error::Credentials(path.display().to_string(), source))
    }

    /// Gets a token for a scope: by a password or nothing with GET, by a refresh token with POST.
    fn token(
        &self,
        endpoint: &Endpoint,
        realm: &str,
        fields: &[(&str, &str)],
        credentials: Option<&Credentials>,
    ) -> Result<(String, Duration), Error> {
        let form = auth::encode(fields);
        let separator = if realm.contains('?') { '&' } else { '?' };
        let address = match credentials {
            Some(Credentials::Token(_)) => realm.to_owned(),
            _ if form.is_empty() => realm.to_owned(),
            _ => format!("{realm}{separator}{form}"),
        };
        let url: Uri = address.parse().map_err(|_| Error::Address(realm.to_owned()))?;
        let may_be_asked = match url.scheme_str() {
            Some("https") => true,
            Some("http") => {
                endpoint.scheme.get() == Some(&Scheme::HTTP)
                    && self.registries.allows_plain_http(authority(&url))
            }
            _ => false,
        };
        if !may_be_asked {
            return Err(Error::PlainRealm(shown(&url)));
        }
        let mut request = Request::get("", "");
        let mut header = None;
        match credentials {
            Some(Credentials::Token(_)) => {
                request.method = Method::POST;
                request
                    .headers
                    .push((CONTENT_TYPE.as_str(), "application/x-www-form-urlencoded"));
                request.content = Content::Bytes(form.as_bytes());
            }
            Some(Credentials::Password { user, password }) => header = Some(auth::basic(user, password)),
            None => {}
        }
        let response = self.follow(&url, &request, header.as_deref())?;
        let shown = response.shown();
        match response.status() {
            StatusCode::OK if response.media_type() == Some("text/html") => Err(Error::Html(shown)),
            StatusCode::OK => {
                let answer = response.read(limits::TOKEN_BYTES)?;
                auth::token(&answer).ok_or(Error::Token { url: shown })
            }
            StatusCode::UNAUTHORIZED if credentials.is_some() => Err(Error::Rejected {
                registry: endpoint.authority().to_owned(),
                message: messages(&response.read(limits::ERROR_BYTES)?),
            }),
            _ => Err(response.failure(endpoint.authority())),
        }
    }

    /// Sends a request and follows where it is led. One that changes something is only led by what says that it stays the
    /// same request.
    fn follow(
        &self,
        url: &Uri,
        request: &Request<'_>,
        authorization: Option<&str>,
    ) -> Result<Response, Error> {
        let mut url = url.clone();
        let origin = url.clone();
        for _ in 0..=limits::REDIRECTS {
            let mut headers = request.headers.clone();
            if redirect::same_origin(&origin, &url) {
                headers.extend(authorization.map(|value| (AUTHORIZATION.as_str(), value)));
            }
            let outgoing = Outgoing {
                method: &request.method,
                url: &url,
                headers,
                content: request.content,
                patience: request.patience,
            };
            let inner = self.transport.exchange(&outgoing, &self.registries)?;
            let response = Response { inner, url };
            let reads = matches!(request.method, Method::GET | Method::HEAD);
            if !redirect::leads(response.status(), reads) {
                return Ok(response);
            }
            let Some(location) = response.header(&LOCATION) else {
                return Ok(response);
            };
            url = redirect::target(&response.url, location, &self.registries)?;
        }
        Err(Error::Redirects { url: shown(&origin) })
    }

    /// The scheme of a registry that may have no TLS: TLS if it answers to that, else plain HTTP.
    fn scheme(&self, endpoint: &Endpoint) -> Result<Scheme, Error> {
        if let Some(scheme) = endpoint.scheme.get() {
            return Ok(scheme.clone());
        }
        let ask = |scheme: &Scheme| self.follow(&endpoint.url(scheme, "")?, &Request::get("", ""), None);
        let scheme = match ask(&Scheme::HTTPS) {
            Err(error) if error.may_be_plain() => {
                ask(&Scheme::HTTP)?;
                Scheme::HTTP
            }
            answer => {
                answer?;
                Scheme::HTTPS
            }
        };
        Ok(endpoint.scheme.get_or_init(|| scheme).clone())
    }
}

/// The messages of an error answer (distribution specification, "Error codes"), or nothing.
fn messages(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        errors: Vec<Item>,
        #[serde(default)]
        details: String,
    }
    #[derive(Deserialize)]
    struct Item {
        #[serde(default)]
        message: String,
        #[serde(default)]
        code: String,
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else {
        return String::new();
    };
    let text = |item: &Item| {
        if item.message.is_empty() {
            item.code.clone()
        } else {
            item.message.clone()
        }
    };
    let mut found: Vec<String> = answer.errors.iter().take(MESSAGES).map(text).collect();
    found.push(answer.details);
    found.retain(|message| !message.is_empty());
    let shortened = found
        .iter()
        .map(|message| message.chars().take(MESSAGE_CHARACTERS).collect::<String>());
    shortened.collect::<Vec<_>>().join(", ")
}
