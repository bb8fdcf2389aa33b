//! Sending blobs and manifests.
//!
//! A blob goes through an upload session (distribution specification, "Pushing blobs"): POST opens one, PATCH streams the
//! blob into it, PUT with the digest closes it. The registry says with each answer where the session is; that address is as
//! suspect as any redirect. A broken connection is followed by the question how far the session is, and by the rest; a
//! session that is lost, or whose offset cannot be true, by a new one.

use std::cell::Cell;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ureq::http::header::{LOCATION, RANGE};
use ureq::http::{Method, StatusCode, Uri};

use super::client::{Client, Request, Response, TRIES};
use super::endpoint::Endpoint;
use super::error::Error;
use super::manifest::DOCKER_CONTENT_DIGEST;
use super::redirect;
use super::transport::Part;
use crate::Digest;
use crate::layer::BlobId;
use crate::store::SendStep;

/// So much that the registry has confirmed makes a further failure the first one again.
const PROGRESS_BYTES: u64 = 1 << 20;

/// A repository to which an image is pushed.
pub(crate) struct Target<'a> {
    client: &'a Client,
    endpoint: &'a Endpoint,
    repository: String,
    scope: String,
}

/// A blob that is here.
pub(crate) struct LocalBlob {
    pub(crate) blob: BlobId,
    pub(crate) file: File,
    /// Another repository at the same registry that has it.
    pub(crate) source: Option<String>,
}

/// An upload session.
#[derive(Debug, Clone)]
struct Session {
    location: Uri,
    /// Bytes that the registry has.
    offset: u64,
}

/// What came of the wish to send a blob.
enum Begun {
    Mounted,
    Session(Session),
}

/// A failure, and what it leaves.
struct Failure {
    error: Box<Error>,
    next: Next,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Nothing will help.
    GiveUp,
    /// The session may be gone on with.
    Resume,
    /// It has to be another session.
    BeginAnew,
}

/// Outside a session, what [`Client::send`] could not do in all its tries is final.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            error: Box::new(error),
            next: Next::GiveUp,
        }
    }
}

impl<'a> Target<'a> {
    pub(crate) fn new(client: &'a Client, endpoint: &'a Endpoint, repository: String) -> Self {
        Self {
            scope: format!("repository:{repository}:pull,push"),
            client,
            endpoint,
            repository,
        }
    }

    /// Whether the registry has a blob in this repository.
    pub(crate) fn has(&self, digest: &Digest) -> Result<bool, Error> {
        let path = format!("{}/blobs/{digest}", self.repository);
        let response = self
            .client
            .send(self.endpoint, &Request::head(&path, &self.scope))?;
        match response.status() {
            StatusCode::OK if response.media_type() == Some("text/html") => {
                Err(Error::Html(response.shown()))
            }
            StatusCode::OK => Ok(true),
            StatusCode::UNAUTHORIZED => Err(response.failure(self.endpoint.authority())),
            // Should that be a refusal, sending it will be refused in more words: this answer has no body.
            _ => Ok(false),
        }
    }

    /// Sends a blob unless it is there.
    pub(crate) fn send(
        &self,
        blob: &LocalBlob,
        stop: &AtomicBool,
        report: &dyn Fn(SendStep),
    ) -> Result<(), Error> {
        if self.has(&blob.blob.digest)? {
            report(SendStep::Exists);
            return Ok(());
        }
        let session = match self.begin(blob)? {
            Begun::Mounted => {
                report(SendStep::Mounted);
                return Ok(());
            }
            Begun::Session(session) => session,
        };
        let upload = Upload {
            target: self,
            blob,
            stop,
            report,
            session: Some(session),
            is_new: true,
            resumed: false,
            read: Cell::new(0),
            reported: Cell::new(0),
            failures: 0,
            good_until: PROGRESS_BYTES,
        };
        upload.run()?;
        report(SendStep::Done);
        Ok(())
    }

    /// Puts a manifest under a tag.
    pub(crate) fn put_manifest(
        &self,
        tag: &str,
        media_type: &str,
        digest: &Digest,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let path = format!("{}/manifests/{tag}", self.repository);
        let request = Request::put(&path, &self.scope, media_type, bytes);
        let response = self.client.send(self.endpoint, &request)?;
        self.accepted(response, digest)
    }

    /// Begins an upload; where another repository has the blob, the registry may take it from there.
    fn begin(&self, blob: &LocalBlob) -> Result<Begun, Error> {
        if let Some(source) = &blob.source {
            let path = format!(
                "{}/blobs/uploads/?mount={}&from={source}",
                self.repository, blob.blob.digest
            );
            let scope = format!("{} repository:{source}:pull", self.scope);
            match self.client.send(self.endpoint, &Request::post(&path, &scope)) {
                Ok(response) if response.status() == StatusCode::CREATED => return Ok(Begun::Mounted),
                Ok(response) if response.status() == StatusCode::ACCEPTED => {
                    return self.session(&response, None).map(Begun::Session);
                }
                // A registry without mounts, or one that does not let this person read there.
                Ok(_) | Err(Error::Denied { .. } | Error::Rejected { .. } | Error::Status { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let path = format!("{}/blobs/uploads/", self.repository);
        let response = self
            .client
            .send(self.endpoint, &Request::post(&path, &self.scope))?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(self.failure(response));
        }
        self.session(&response, None).map(Begun::Session)
    }

    /// The session that an answer tells of. `before` is the address so far, which stays if there is no new one.
    fn session(&self, response: &Response, before: Option<&Uri>) -> Result<Session, Error> {
        let location = match (response.header(&LOCATION), before) {
            (Some(location), _) => redirect::target(&response.url, location, &self.client.registries)?,
            (None, Some(before)) => before.clone(),
            (None, None) => return Err(Error::NoLocation(response.shown())),
        };
        Ok(Session { location, offset: 0 })
    }

    /// Checks that something was taken as what it is.
    fn accepted(&self, response: Response, digest: &Digest) -> Result<(), Error> {
        let is_page = response.media_type() == Some("text/html");
        if is_page || !matches!(response.status().as_u16(), 200 | 201 | 204) {
            return Err(self.failure(response));
        }
        let claimed = response.header(&DOCKER_CONTENT_DIGEST).unwrap_or_default();
        if claimed.starts_with("sha256:") && claimed != digest.to_string() {
            return Err(Error::ClaimedDigest {
                url: response.shown(),
                claimed: claimed.to_owned(),
                actual: *digest,
            });
        }
        Ok(())
    }

    fn failure(&self, response: Response) -> Error {
        if response.status().is_success() && response.media_type() == Some("text/html") {
            return Error::Html(response.shown());
        }
        response.failure(self.endpoint.authority())
    }
}

/// A blob on its way.
struct Upload<'a> {
    target: &'a Target<'a>,
    blob: &'a LocalBlob,
    stop: &'a AtomicBool,
    report: &'a dyn Fn(SendStep),
    session: Option<Session>,
    /// Whether the session is so new that there is no need to ask how far it is.
    is_new: bool,
    /// Whether the session has been gone on with after a failure.
    resumed: bool,
    /// How far the file has been read at most: the registry cannot have more.
    read: Cell<u64>,
    /// How far the last report went.
    reported: Cell<u64>,
    failures: u32,
    /// Reaching this forgets failures.
    good_until: u64,
}

impl Upload<'_> {
    fn run(mut self) -> Result<(), Error> {
        loop {
            let failure = match self.attempt() {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            self.failures += 1;
            if failure.next == Next::GiveUp || self.failures >= TRIES {
                return Err(*failure.error);
            }
            if failure.next == Next::BeginAnew {
                self.session = None;
            }
            self.is_new = false;
            (self.report)(SendStep::Retrying);
            thread::sleep(self.target.client.back_off(self.failures));
        }
    }

    fn attempt(&mut self) -> Result<(), Failure> {
        let current = match self.session.take() {
            Some(session) if self.is_new => Some(session),
            Some(session) => self.ask(&session)?,
            None => None,
        };
        let mut session = match current {
            Some(session) => session,
            // Its end may have been reached without our knowing.
            None if self.target.has(&self.blob.blob.digest)? => return Ok(()),
            None => {
                self.resumed = false;
                match self.target.begin(self.blob)? {
                    Begun::Mounted => return Ok(()),
                    Begun::Session(session) => session,
                }
            }
        };
        self.session = Some(session.clone());
        if session.offset < self.blob.blob.bytes {
            session = self.send_rest(&session)?;
            self.session = Some(session.clone());
        }
        self.commit(&session)
    }

    /// How far a session is; nothing if it is lost, or cannot be as it says.
    fn ask(&mut self, session: &Session) -> Result<Option<Session>, Failure> {
        let Target {
            client,
            endpoint,
            scope,
            ..
        } = self.target;
        let response = client.send(endpoint, &Request::at(Method::GET, &session.location, scope))?;
        if !response.status().is_success() {
            return Ok(None);
        }
        let offset = received(&response).unwrap_or(0);
        if offset > self.read.get() {
            return Ok(None);
        }
        if offset >= self.good_until {
            self.failures = 0;
            self.good_until = offset.saturating_add(PROGRESS_BYTES);
        }
        self.resumed = true;
        let location = self.target.session(&response, Some(&session.location))?.location;
        Ok(Some(Session { location, offset }))
    }

    /// Streams what the session lacks.
    fn send_rest(&self, session: &Session) -> Result<Session, Failure> {
        let Target {
            client,
            endpoint,
            scope,
            ..
        } = self.target;
        let total = self.blob.blob.bytes;
        let go_on = |position: u64| {
            self.read.set(self.read.get().max(position));
            if position >= self.reported.get().saturating_add(PROGRESS_BYTES)
                || position < self.reported.get()
            {
                self.reported.set(position);
                (self.report)(SendStep::Sending {
                    done: position,
                    total,
                });
            }
            !self.stop.load(Ordering::Relaxed)
        };
        (self.report)(SendStep::Sending {
            done: session.offset,
            total,
        });
        let part = Part {
            file: &self.blob.file,
            offset: session.offset,
            bytes: total.saturating_sub(session.offset),
            go_on: &go_on,
        };
        let range = format!("{}-{}", session.offset, total.saturating_sub(1));
        // A whole blob is a stream, which every registry takes; the range would make a chunk of it, which not all do.
        let range = (session.offset > 0).then_some(range.as_str());
        let request = Request::at(Method::PATCH, &session.location, scope).part(part, range);
        let response = client.send_once(endpoint, &request).map_err(in_session)?;
        if response.status() != StatusCode::ACCEPTED && response.status() != StatusCode::NO_CONTENT {
            return Err(in_session(self.target.failure(response)));
        }
        self.read.set(total);
        let next = self.target.session(&response, Some(&session.location))?;
        match received(&response) {
            Some(offset) if offset != total => Err(Failure {
                error: Box::new(Error::Offset {
                    url: response.shown(),
                    expected: total,
                    actual: offset,
                }),
                next: Next::BeginAnew,
            }),
            _ => Ok(Session {
                offset: total,
                ..next
            }),
        }
    }

    fn commit(&self, session: &Session) -> Result<(), Failure> {
        let Target {
            client,
            endpoint,
            scope,
            ..
        } = self.target;
        let digest = &self.blob.blob.digest;
        let location = session.location.to_string();
        let separator = if session.location.query().is_some() {
            '&'
        } else {
            '?'
        };
        let address = format!("{location}{separator}digest={digest}");
        let address: Uri = address.parse().map_err(|_| Error::Address(location))?;
        let request = Request::at(Method::PUT, &address, scope).patient();
        let response = client.send_once(endpoint, &request).map_err(in_session)?;
        let is_refused = response.status() == StatusCode::BAD_REQUEST;
        self.target.accepted(response, digest).map_err(|error| {
            let mut failure = in_session(error);
            // What was put together from pieces is tried in one piece.
            if is_refused && self.resumed {
                failure.next = Next::BeginAnew;
            }
            failure
        })
    }
}

/// What an error within a session leaves of it.
fn in_session(error: Error) -> Failure {
    let next = match &error {
        Error::Status {
            status: 404 | 410 | 416,
            ..
        } => Next::BeginAnew,
        error if error.is_transient() => Next::Resume,
        _ => Next::GiveUp,
    };
    let error = Box::new(error);
    Failure { error, next }
}

/// Bytes that a session has, by its `Range: 0-LAST`. Nothing and one byte look the same, and count as nothing.
fn received(response: &Response) -> Option<u64> {
    let range = response.header(&RANGE)?;
    let range = range.strip_prefix("bytes=").unwrap_or(range);
    let last: u64 = range.strip_prefix("0-")?.trim().parse().ok()?;
    Some(if last == 0 { 0 } else { last.saturating_add(1) })
}
