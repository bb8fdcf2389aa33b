//! A blob as a stream that survives broken connections: it is asked for again from where it stopped.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ureq::BodyReader;
use ureq::http::StatusCode;
use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE};

use super::client::{Client, Request, Response, TRIES};
use super::endpoint::Endpoint;
use super::error::Error;
use super::manifest::pull_scope;
use crate::layer::BlobId;

/// So much progress makes a further failure the first one again. Less would let a server feed a pull for ever, byte by byte.
const PROGRESS_BYTES: u64 = 1 << 20;

/// A connection that brings less than [`SLOWEST_BYTES`] in this time has stalled, even if each read brings something.
const SLOWEST_TIME: Duration = Duration::from_secs(60);
const SLOWEST_BYTES: u64 = 60 << 10;

/// A repository at a registry or a mirror.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) repository: String,
}

/// Where the blobs of an image are.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// Where its manifest was.
    pub(crate) first: Place,
    /// The registry itself, if that was a mirror: it may lack a blob of an image that it has.
    pub(crate) then: Option<Place>,
}

/// A blob of a repository.
pub(crate) struct RemoteBlob {
    client: Arc<Client>,
    places: Places,
    blob: BlobId,
}

impl RemoteBlob {
    pub(crate) fn new(client: &Arc<Client>, places: &Places, blob: BlobId) -> Self {
        Self {
            client: Arc::clone(client),
            places: places.clone(),
            blob,
        }
    }

    /// The blob's bytes from `offset` on, no more than its size. They are not verified here. `stop` ends it; `retrying` is
    /// told of each new connection after a failure.
    pub(crate) fn read<'a>(
        &'a self,
        offset: u64,
        stop: &'a AtomicBool,
        retrying: &'a dyn Fn(),
    ) -> impl Read + 'a {
        Reader {
            remote: self,
            place: &self.places.first,
            then: self.places.then.as_ref(),
            position: offset,
            body: None,
            failures: 0,
            good_until: offset,
            window: (Instant::now(), offset),
            stop,
            retrying,
            failed: None,
        }
    }
}

struct Reader<'a> {
    remote: &'a RemoteBlob,
    place: &'a Place,
    then: Option<&'a Place>,
    /// Bytes of the blob that have been given out.
    position: u64,
    body: Option<BodyReader<'static>>,
    failures: u32,
    /// Reaching this forgets failures.
    good_until: u64,
    /// When the present measurement of speed began, and at which position.
    window: (Instant, u64),
    stop: &'a AtomicBool,
    retrying: &'a dyn Fn(),
    /// The end of all tries, for whoever reads on.
    failed: Option<Arc<Error>>,
}

/// What `std::io` carries; shared because a reader gives the same error again.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Failed(#[from] Arc<Error>);

/// Whether a reader's error is only that somebody stopped it.
pub(crate) fn was_stopped(error: &io::Error) -> bool {
    let failed = error.get_ref().and_then(|inner| inner.downcast_ref::<Failed>());
    failed.is_some_and(|Failed(error)| matches!(**error, Error::Stopped))
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(failed) = &self.failed {
            return Err(io::Error::other(Failed(Arc::clone(failed))));
        }
        self.read_on(buffer).map_err(|error| {
            let error = Arc::new(error);
            self.failed = Some(Arc::clone(&error));
            io::Error::other(Failed(error))
        })
    }
}

impl Reader<'_> {
    fn read_on(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            let left = self.remote.blob.bytes.saturating_sub(self.position);
            if left == 0 || buffer.is_empty() {
                return Ok(0);
            }
            let mut body = match self.body.take() {
                Some(body) => body,
                None => match self.open() {
                    Ok(body) => body,
                    Err(error) => {
                        if matches!(error, Error::Broken { .. }) {
                            self.after_failure(error)?;
                        } else {
                            // Its own tries are behind it.
                            self.after_end(error)?;
                        }
                        continue;
                    }
                },
            };
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let part = buffer.get_mut(..wanted).unwrap_or_default();
            match body.read(part).and_then(|count| self.check(count)) {
                Ok(count) => {
                    self.body = Some(body);
                    return Ok(count);
                }
                Err(source) => {
                    let url = self.path();
                    self.after_failure(Error::Broken { url, source })?;
                }
            }
        }
    }

    /// Counts what was read, and tells an early end and a crawl from good data.
    fn check(&mut self, count: usize) -> io::Result<usize> {
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended too early"));
        }
        self.position = self
            .position
            .saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        if self.position >= self.good_until {
            self.failures = 0;
        }
        let (since, from) = self.window;
        if since.elapsed() >= SLOWEST_TIME {
            if self.position - from < SLOWEST_BYTES {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it has all but stopped"));
            }
            self.window = (Instant::now(), self.position);
        }
        Ok(count)
    }

    fn after_failure(&mut self, error: Error) -> Result<(), Error> {
        self.failures += 1;
        self.good_until = self.position.saturating_add(PROGRESS_BYTES);
        if self.failures >= TRIES {
            return self.after_end(error);
        }
        thread::sleep(self.remote.client.back_off(self.failures));
        self.window = (Instant::now(), self.position);
        (self.retrying)();
        Ok(())
    }

    /// Goes on at the next place, if there is one.
    fn after_end(&mut self, error: Error) -> Result<(), Error> {
        self.place = self.then.take().ok_or(error)?;
        self.failures = 0;
        self.window = (Instant::now(), self.position);
        (self.retrying)();
        Ok(())
    }

    fn path(&self) -> String {
        format!("{}/blobs/{}", self.place.repository, self.remote.blob.digest)
    }

    /// Asks for the blob, or for a part of it.
    fn ask(&self, range: Option<&str>) -> Result<(Response, &str), Error> {
        let Place { endpoint, repository } = self.place;
        let (path, scope) = (self.path(), pull_scope(repository));
        let mut request = Request::get(&path, &scope).long();
        if let Some(range) = range {
            request = request.range(range);
        }
        let response = self.remote.client.send(endpoint, &request)?;
        Ok((response, endpoint.authority()))
    }

    /// Connects, so that the next byte is that at the position.
    fn open(&self) -> Result<BodyReader<'static>, Error> {
        let blob = self.remote.blob;
        let range = format!("bytes={}-", self.position);
        let (response, authority) = self.ask((self.position > 0).then_some(range.as_str()))?;
        let url = response.shown();
        if response.media_type() == Some("text/html") && response.status().is_success() {
            return Err(Error::Html(url));
        }
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let length = response.header(&CONTENT_LENGTH).and_then(number);
        let skipped = match response.status() {
            StatusCode::PARTIAL_CONTENT if self.position > 0 => {
                // "bytes FIRST-LAST/WHOLE"
                let range = response.header(&CONTENT_RANGE).unwrap_or_default();
                let first = range
                    .strip_prefix("bytes ")
                    .and_then(|rest| number(rest.split('-').next()?));
                if first != Some(self.position) {
                    return Err(Error::Range { url });
                }
                self.position
            }
            StatusCode::OK => 0,
            // A registry that cannot go on from here can begin anew.
            StatusCode::RANGE_NOT_SATISFIABLE if self.position > 0 => {
                return self.begin_anew();
            }
            _ => return Err(response.failure(authority)),
        };
        if let Some(length) = length
            && skipped.saturating_add(length) != blob.bytes
        {
            return Err(Error::Length {
                url,
                expected: blob.bytes,
                actual: skipped.saturating_add(length),
            });
        }
        let body = response.inner.into_body().into_reader();
        if skipped == 0 {
            self.pass_over(body, &url)
        } else {
            Ok(body)
        }
    }

    fn begin_anew(&self) -> Result<BodyReader<'static>, Error> {
        let (response, authority) = self.ask(None)?;
        if response.status() != StatusCode::OK {
            return Err(response.failure(authority));
        }
        let url = response.shown();
        self.pass_over(response.inner.into_body().into_reader(), &url)
    }

    /// Reads what is there already: the registry does not know ranges. The digest covers both.
    fn pass_over(&self, mut body: BodyReader<'static>, url: &str) -> Result<BodyReader<'static>, Error> {
        let broken = |source| Error::Broken {
            url: url.to_owned(),
            source,
        };
        let passed = io::copy(&mut body.by_ref().take(self.position), &mut io::sink()).map_err(broken)?;
        if passed < self.position {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(body)
    }
}
