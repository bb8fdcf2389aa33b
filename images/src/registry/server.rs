//! A registry for tests, that does what it is told, however bad.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::client::{Client, Identity};
use super::config::Registries;
use super::transport::Timing;
use crate::{Digest, layer};

/// Short enough that a test of a stall is quick, long enough for a busy machine to answer.
pub(crate) const TIMING: Timing = Timing {
    connect: Duration::from_secs(10),
    read: Duration::from_millis(500),
    document: Duration::from_secs(5),
    commit: Duration::from_secs(5),
    back_off: Duration::from_millis(1),
    longest_wait: Duration::from_secs(1),
};

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    headers: HashMap<String, String>,
    /// Of a request that did not want to be asked for it.
    pub(crate) body: String,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    fn read(stream: &TcpStream) -> io::Result<Self> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(':') else {
                break;
            };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let mut received = Self {
            method,
            path,
            headers,
            body: String::new(),
        };
        if received.header("expect").is_none() {
            let mut reader = reader.take(received.length());
            reader.read_to_string(&mut received.body)?;
        }
        Ok(received)
    }

    /// Bytes that it says it brings.
    pub(crate) fn length(&self) -> u64 {
        let length = self.header("content-length");
        length.and_then(|length| length.parse().ok()).unwrap_or(0)
    }

    /// Asks a request for what it brings, and reads up to `most` of it.
    pub(crate) fn receive(&self, stream: &mut TcpStream, most: u64) -> io::Result<Vec<u8>> {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        let mut bytes = Vec::new();
        stream.take(self.length().min(most)).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// Answers requests on loopback until it is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    stopped: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(
        answer: impl Fn(&Received, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (received, stopped) = (
            Arc::<Mutex<Vec<Received>>>::default(),
            Arc::<AtomicBool>::default(),
        );
        let (answer, requests, stop) = (Arc::new(answer), Arc::clone(&received), Arc::clone(&stopped));
        let accepting = thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(mut stream) = stream else { continue };
                let (answer, requests) = (Arc::clone(&answer), Arc::clone(&requests));
                thread::spawn(move || {
                    // A TLS greeting is answered as an HTTP server does that has no TLS.
                    let mut first = [0];
                    if stream.peek(&mut first).is_ok_and(|count| count == 1) && first[0] == 0x16 {
                        let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n");
                        return;
                    }
                    if let Ok(request) = Received::read(&stream) {
                        requests.lock().unwrap().push(request.clone());
                        // The client may have gone.
                        let _ = answer(&request, &mut stream);
                    }
                });
            }
        });
        Self {
            address,
            received,
            stopped,
            accepting: Some(accepting),
        }
    }

    pub(crate) fn authority(&self) -> String {
        self.address.to_string()
    }

    /// Everything but the question whether this is a registry.
    pub(crate) fn requests(&self) -> Vec<Received> {
        let received = self.received.lock().unwrap().clone();
        received
            .into_iter()
            .filter(|request| request.path != "/v2/")
            .collect()
    }

    /// Requests whose path contains a text.
    pub(crate) fn requests_for(&self, text: &str) -> Vec<Received> {
        let requests = self.requests().into_iter();
        requests.filter(|request| request.path.contains(text)).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let _ = self.accepting.take().map(JoinHandle::join);
    }
}

/// A client without credentials.
pub(crate) fn client() -> Client {
    Client::with(Registries::default(), TIMING, Identity::Nobody)
}

/// Writes a whole answer.
pub(crate) fn reply(stream: &mut TcpStream, status: &str, headers: &[&str], body: &[u8]) -> io::Result<()> {
    head(stream, status, headers, body.len())?;
    stream.write_all(body)
}

/// Writes the beginning of an answer of `length` bytes.
pub(crate) fn head(stream: &mut TcpStream, status: &str, headers: &[&str], length: usize) -> io::Result<()> {
    let mut text = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n");
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    stream.write_all(format!("{text}\r\n").as_bytes())
}

/// Sends no more until the client gives up.
pub(crate) fn stall(stream: &mut TcpStream) -> io::Result<()> {
    stream.read(&mut [0]).map(drop)
}

/// What a good registry has.
#[derive(Clone, Default)]
pub(crate) struct Content {
    /// By what follows `/manifests/`: media type and bytes.
    pub(crate) manifests: HashMap<String, (String, Vec<u8>)>,
    pub(crate) blobs: HashMap<String, Vec<u8>>,
}

impl Content {
    /// Adds a manifest under a name and its digest.
    pub(crate) fn manifest(&mut self, name: &str, media_type: &str, bytes: &[u8]) -> Digest {
        let digest = layer::digest(bytes);
        for name in [name, &digest.to_string()] {
            self.manifests
                .insert(name.to_owned(), (media_type.to_owned(), bytes.to_vec()));
        }
        digest
    }

    pub(crate) fn blob(&mut self, bytes: &[u8]) -> Digest {
        let digest = layer::digest(bytes);
        self.blobs.insert(digest.to_string(), bytes.to_vec());
        digest
    }

    /// Answers as a registry should.
    pub(crate) fn answer(&self, request: &Received, stream: &mut TcpStream) -> io::Result<()> {
        let (path, last) = request.path.rsplit_once('/').unwrap_or_default();
        if path.ends_with("/manifests") {
            if let Some((media_type, bytes)) = self.manifests.get(last) {
                return reply(stream, "200 OK", &[&format!("Content-Type: {media_type}")], bytes);
            }
        } else if path.ends_with("/blobs") {
            if let Some(bytes) = self.blobs.get(last) {
                return blob(request, stream, bytes);
            }
        } else if request.path == "/v2/" {
            return reply(stream, "200 OK", &[], b"{}");
        }
        let body = br#"{"errors":[{"code":"UNKNOWN","message":"not here"}]}"#;
        reply(stream, "404 Not Found", &["Content-Type: application/json"], body)
    }
}

/// Answers with a blob, or the part of it that is asked for.
pub(crate) fn blob(request: &Received, stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let range = request
        .header("range")
        .and_then(|range| range.strip_prefix("bytes="));
    match range.and_then(|range| range.strip_suffix('-')?.parse::<usize>().ok()) {
        Some(first) if first < bytes.len() => {
            let range = format!("Content-Range: bytes {first}-{}/{}", bytes.len() - 1, bytes.len());
            reply(stream, "206 Partial Content", &[&range], &bytes[first..])
        }
        Some(_) => reply(stream, "416 Range Not Satisfiable", &[], b""),
        None => reply(stream, "200 OK", &[], bytes),
    }
}

/// Of a registry that takes uploads.
#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) blobs: HashMap<String, Vec<u8>>,
    pub(crate) sessions: Vec<Vec<u8>>,
    /// Bytes that arrived, whether or not anything became of them.
    pub(crate) bytes: u64,
    /// By tag: media type and text.
    pub(crate) manifests: HashMap<String, (String, String)>,
}

pub(crate) type Shared = Arc<Mutex<Taken>>;

/// Answers as a registry should.
pub(crate) fn take(taken: &Shared, request: &Received, stream: &mut TcpStream) -> io::Result<()> {
    let mut state = taken.lock().unwrap();
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let last = path.rsplit('/').next().unwrap();
    let session = last.parse::<usize>().unwrap_or(0);
    let location = format!("Location: /sessions/{session}?state=x");
    match request.method.as_str() {
        "HEAD" if state.blobs.contains_key(last) => reply(stream, "200 OK", &[], b""),
        "POST" => {
            state.sessions.push(Vec::new());
            let location = format!("Location: /sessions/{}?state=x", state.sessions.len() - 1);
            reply(stream, "202 Accepted", &[&location], b"")
        }
        "PATCH" => {
            let bytes = request.receive(stream, u64::MAX)?;
            state.bytes += bytes.len() as u64;
            state.sessions[session].extend(bytes);
            let range = format!("Range: 0-{}", state.sessions[session].len().saturating_sub(1));
            reply(stream, "202 Accepted", &[&location, &range], b"")
        }
        "GET" => {
            let range = format!("Range: 0-{}", state.sessions[session].len().saturating_sub(1));
            reply(stream, "204 No Content", &[&location, &range], b"")
        }
        "PUT" if path.contains("/manifests/") => {
            let media_type = request.header("content-type").unwrap_or_default().to_owned();
            state
                .manifests
                .insert(last.to_owned(), (media_type, request.body.clone()));
            reply(stream, "201 Created", &[], b"")
        }
        "PUT" => {
            let bytes = state.sessions[session].clone();
            let digest = layer::digest(&bytes).to_string();
            if query != format!("state=x&digest={digest}") {
                let body = br#"{"errors":[{"code":"DIGEST_INVALID","message":"another digest"}]}"#;
                return reply(stream, "400 Bad Request", &[], body);
            }
            state.blobs.insert(digest, bytes);
            reply(stream, "201 Created", &[], b"")
        }
        _ => reply(stream, "404 Not Found", &[], b""),
    }
}
