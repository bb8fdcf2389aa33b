//! Asking the servers that know the world: the host's, or a member's own.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use simple_dns::RCODE;

use super::message::{self, Query};

/// The port of DNS.
const PORT: u16 = 53;

/// How many servers of the host's are asked: as many as resolv.conf(5) takes.
const MOST_SERVERS: usize = 3;

/// How long one server is waited for before the next is asked.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How long all of them are. Most programs ask again after five seconds, and give up after ten.
const TOTAL: Duration = Duration::from_secs(8);

/// What a message has at most.
const MOST_MESSAGE: usize = 65535;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody is to be asked.
    #[error("there is no server to ask")]
    NoServer,
    /// No server answered in time.
    #[error("no server answered; {server} was the last one")]
    NoAnswer {
        /// Which was asked last.
        server: SocketAddr,
        /// What happened.
        #[source]
        source: io::Error,
    },
}

/// The servers of `resolv.conf`, which is read again when it has changed.
#[derive(Debug)]
pub struct HostServers {
    path: PathBuf,
    seen: Mutex<(Option<SystemTime>, Vec<SocketAddr>)>,
}

impl HostServers {
    /// Those that a file names.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            seen: Mutex::default(),
        }
    }

    /// Servers that no file names.
    #[cfg(test)]
    pub(super) fn of_test(servers: Vec<SocketAddr>) -> Self {
        Self {
            path: PathBuf::new(),
            seen: Mutex::new((None, servers)),
        }
    }

    /// The servers now; the last ones known while the file is not there.
    pub fn now(&self) -> Vec<SocketAddr> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = fs::metadata(&self.path).and_then(|metadata| metadata.modified());
        if let Ok(changed) = changed
            && seen.0 != Some(changed)
            && let Ok(text) = fs::read_to_string(&self.path)
        {
            *seen = (Some(changed), parse(&text));
        }
        seen.1.clone()
    }
}

/// The servers of a `resolv.conf`. One with an interface behind its address is left out; the host itself is the server of one
/// that names none (resolv.conf(5)).
fn parse(text: &str) -> Vec<SocketAddr> {
    let words = text.lines().map(str::split_ascii_whitespace);
    let addresses = words.filter_map(|mut words| {
        let address = (words.next() == Some("nameserver")).then(|| words.next())??;
        address.parse::<IpAddr>().ok()
    });
    let servers: Vec<_> = addresses.take(MOST_SERVERS).map(server).collect();
    if servers.is_empty() {
        return vec![server(Ipv4Addr::LOCALHOST.into())];
    }
    servers
}

/// The server at an address.
#[must_use]
pub fn server(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, PORT)
}

/// Asks servers in turn, each twice at most, for a member's question. `by_tcp` says that the member takes an answer of any
/// length. The answer has the question's ID.
///
/// # Errors
/// [`Error`].
pub fn ask(message: &[u8], query: &Query, servers: &[SocketAddr], by_tcp: bool) -> Result<Vec<u8>, Error> {
    let end = Instant::now() + TOTAL;
    let mut unwilling = None;
    let mut last = None;
    for server in servers.iter().chain(servers) {
        let left = end.saturating_duration_since(Instant::now()).min(TIMEOUT);
        if left.is_zero() {
            break;
        }
        match ask_one(message, query, *server, left, by_tcp) {
            Ok(answer) if is_unwilling(&answer) => unwilling = Some(answer),
            Ok(answer) => return Ok(answer),
            Err(source) => {
                last = Some(Error::NoAnswer {
                    server: *server,
                    source,
                })
            }
        }
        // A server that does not want to will not want to in a second either.
        if unwilling.is_some() && servers.len() == 1 {
            break;
        }
    }
    match unwilling {
        Some(answer) => Ok(answer),
        None => Err(last.unwrap_or(Error::NoServer)),
    }
}

/// Whether another server may know better.
fn is_unwilling(answer: &[u8]) -> bool {
    matches!(
        message::code_of(answer),
        Some(RCODE::ServerFailure | RCODE::NotImplemented | RCODE::Refused)
    )
}

fn ask_one(
    message: &[u8],
    query: &Query,
    server: SocketAddr,
    timeout: Duration,
    by_tcp: bool,
) -> io::Result<Vec<u8>> {
    let mut asked = message.to_vec();
    let id = random_id()?;
    message::set_id(&mut asked, id);
    let mut answer = by_datagram(&asked, query, id, server, timeout)?;
    if by_tcp && message::is_truncated(&answer) {
        answer = by_stream(&asked, server, timeout)?;
        if !query.is_answered_by(&answer, id) {
            let what = "the server answered something else";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
    }
    if let Some(own) = message.first_chunk::<2>() {
        message::set_id(&mut answer, u16::from_be_bytes(*own));
    }
    Ok(answer)
}

fn random_id() -> io::Result<u16> {
    let mut bytes = [0; 2];
    let length = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if length != bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(u16::from_ne_bytes(bytes))
}

/// Asks from a socket of its own, whose port the kernel chooses at random, and which hears this server alone. Whatever is
/// no answer to this question is not heard: it may be late, or forged.
fn by_datagram(
    asked: &[u8],
    query: &Query,
    id: u16,
    server: SocketAddr,
    timeout: Duration,
) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.send(asked)?;
    let end = Instant::now() + timeout;
    let mut buffer = vec![0; MOST_MESSAGE];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if let Some(answer) = buffer.get(..length)
            && query.is_answered_by(answer, id)
        {
            return Ok(answer.to_vec());
        }
    }
}

fn by_stream(asked: &[u8], server: SocketAddr, timeout: Duration) -> io::Result<Vec<u8>> {
    let end = Instant::now() + timeout;
    let mut stream = TcpStream::connect_timeout(&server, timeout)?;
    stream.set_write_timeout(Some(timeout))?;
    write_message(&mut stream, asked)?;
    read_message(&mut stream, end)
}

/// Writes a message with its length before it (RFC 1035, section 4.2.2).
///
/// # Errors
/// Those of the stream, and a message that is too long.
pub fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // In one write, so that it is one packet.
    stream.write_all(&[&length.to_be_bytes(), message].concat())
}

/// Reads a message with its length before it, until a time: a peer that sends a byte now and then does not hold it up.
///
/// # Errors
/// Those of the stream; `TimedOut`; `UnexpectedEof`, also where the stream ends before the first byte.
pub fn read_message(stream: &mut TcpStream, end: Instant) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    read_until(stream, &mut length, end)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    read_until(stream, &mut message, end)?;
    Ok(message)
}

fn read_until(stream: &mut TcpStream, mut buffer: &mut [u8], end: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => buffer = buffer.get_mut(length..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
