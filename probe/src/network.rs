//! TCP between the probe and whoever measures it: both ends of a small protocol, so that they cannot disagree about it.
//!
//! The first line of a connection says what it is for:
//! - `sink BYTES`: so many bytes follow, and the answer is a line with how many have come, and their sum;
//! - `source BYTES`: the answer is so many bytes, and such a line;
//! - `echo`: everything comes back;
//! - an HTTP/1.1 request: it is answered with [`BODY`] bytes, and so are all that follow.
//!
//! Bytes are always [`block`] again and again, and a sum is that of their words, wrapping.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of a stream, or of ten together.
pub const STREAM_BYTES: u64 = 40 << 20;

/// Connections over which HTTP requests are made at the same time.
pub const HTTP_CONNECTIONS: usize = 4;

/// Requests over each of them.
const REQUESTS: u64 = 250;

/// Bytes of the answer to an HTTP request.
pub const BODY: usize = 1024;

/// Bytes that come again and again.
const BLOCK: usize = 64 << 10;

/// Bytes of a round trip.
const MESSAGE: usize = 64;

/// Longest line of either side.
const LONGEST_LINE: u64 = 4096;

/// Nothing takes longer, on an emulated processor either.
const PATIENCE: Duration = Duration::from_secs(60);

/// What went wrong on the way.
#[derive(Debug)]
pub enum Error {
    /// The connection.
    Connection(io::Error),
    /// The other end has counted or sent something else.
    Wrong(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connection(_) => formatter.write_str("a connection failed"),
            Self::Wrong(what) => formatter.write_str(what),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connection(error) => Some(error),
            Self::Wrong(_) => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Connection(error)
    }
}

/// The bytes that are sent: outputs of `SplitMix64` from zero, least significant byte first.
#[must_use]
pub fn block() -> Vec<u8> {
    let mut state = 0_u64;
    let mut block = Vec::with_capacity(BLOCK);
    while block.len() < BLOCK {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        block.extend_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
    }
    block
}

fn sum(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words
        .iter()
        .fold(0, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}

fn blocks(bytes: u64) -> u64 {
    bytes / u64::try_from(BLOCK).unwrap_or(u64::MAX)
}

/// The line that tells what has gone over a connection.
fn account(bytes: u64, sum: u64) -> String {
    format!("{bytes} {sum:016x}\n")
}

/// What such a line has to be.
fn expected(bytes: u64) -> String {
    account(bytes, sum(&block()).wrapping_mul(blocks(bytes)))
}

/// Sends so many bytes; their account.
fn send(stream: &mut impl Write, bytes: u64) -> io::Result<String> {
    let block = block();
    let (mut sent, mut total) = (0_u64, 0_u64);
    for _ in 0..blocks(bytes) {
        stream.write_all(&block)?;
        sent += 1;
        total = total.wrapping_add(sum(&block));
    }
    Ok(account(sent * u64::try_from(BLOCK).unwrap_or(0), total))
}

/// Receives so many bytes; their account.
fn receive(stream: &mut impl Read, bytes: u64) -> io::Result<String> {
    let mut buffer = vec![0; BLOCK];
    let (mut received, mut total) = (0_u64, 0_u64);
    for _ in 0..blocks(bytes) {
        stream.read_exact(&mut buffer)?;
        received += 1;
        total = total.wrapping_add(sum(&buffer));
    }
    Ok(account(received * u64::try_from(BLOCK).unwrap_or(0), total))
}

fn line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    stream.take(LONGEST_LINE).read_line(&mut line)?;
    Ok(line)
}

/// Serves connections, each by a thread, until this process ends. Files are served where there is one, else [`block`]'s beginning.
pub fn serve(listener: TcpListener, file: Option<PathBuf>) {
    let file = Arc::new(file);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let file = Arc::clone(&file);
            // Whoever is at the other end finds out what went wrong.
            thread::spawn(move || answer(stream, file.as_ref().as_ref()));
        }
    });
}

fn answer(mut stream: TcpStream, file: Option<&PathBuf>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let first = line(&mut reader)?;
    let words: Vec<&str> = first.split_whitespace().collect();
    let count = |text: &str| text.parse::<u64>().map_err(io::Error::other);
    match words.as_slice() {
        ["sink", bytes] => {
            let account = receive(&mut reader, count(bytes)?)?;
            stream.write_all(account.as_bytes())
        }
        ["source", bytes] => {
            let account = send(&mut stream, count(bytes)?)?;
            stream.write_all(account.as_bytes())
        }
        ["echo"] => {
            let mut message = [0; MESSAGE];
            while reader.read_exact(&mut message).is_ok() {
                stream.write_all(&message)?;
            }
            Ok(())
        }
        ["GET", _, "HTTP/1.1"] => pages(&mut reader, &mut stream, file),
        _ => Ok(()),
    }
}

/// Answers requests of which the first line of the first has been read.
fn pages(reader: &mut impl BufRead, stream: &mut TcpStream, file: Option<&PathBuf>) -> io::Result<()> {
    let content = block();
    loop {
        while !line(reader)?.trim().is_empty() {}
        let body = match file {
            Some(path) => fs::read(path)?,
            None => content.get(..BODY).unwrap_or_default().to_vec(),
        };
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        answer.extend_from_slice(&body);
        stream.write_all(&answer)?;
        if line(reader)?.is_empty() {
            return Ok(());
        }
    }
}

/// The other end.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    server: SocketAddr,
}

impl Client {
    /// Of this server.
    #[must_use]
    pub fn new(server: SocketAddr) -> Self {
        Self { server }
    }

    fn open(self) -> Result<TcpStream, Error> {
        let stream = TcpStream::connect_timeout(&self.server, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Makes a connection; in how many nanoseconds.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn connect(self) -> Result<u64, Error> {
        let begun = Instant::now();
        let stream = TcpStream::connect_timeout(&self.server, PATIENCE)?;
        let ns = nanoseconds(begun);
        drop(stream);
        Ok(ns)
    }

    /// Sends bytes over so many connections, so many over each: how many in all, and in how many nanoseconds they had come.
    ///
    /// # Errors
    /// Where a connection fails, or the server has not counted and summed what was sent.
    pub fn upload(self, streams: usize, bytes: u64) -> Result<(u64, u64), Error> {
        self.transfer(streams, bytes, |mut stream| {
            let mut reader = BufReader::new(stream.try_clone()?);
            stream.write_all(format!("sink {bytes}\n").as_bytes())?;
            let sent = send(&mut stream, bytes)?;
            agree(bytes, &sent, &line(&mut reader)?)
        })
    }

    /// The other way round.
    ///
    /// # Errors
    /// Likewise.
    pub fn download(self, streams: usize, bytes: u64) -> Result<(u64, u64), Error> {
        self.transfer(streams, bytes, |mut stream| {
            let mut reader = BufReader::new(stream.try_clone()?);
            stream.write_all(format!("source {bytes}\n").as_bytes())?;
            let received = receive(&mut reader, bytes)?;
            agree(bytes, &received, &line(&mut reader)?)
        })
    }

    fn transfer(
        self,
        streams: usize,
        bytes: u64,
        one: impl Fn(TcpStream) -> Result<(), Error> + Sync,
    ) -> Result<(u64, u64), Error> {
        let opened = (0..streams).map(|_| self.open()).collect::<Result<Vec<_>, _>>()?;
        let ns = together(opened, one)?;
        Ok((bytes * u64::try_from(streams).unwrap_or(0), ns))
    }

    /// Sends a message and waits for it to come back, so many times: how long each took, in nanoseconds.
    ///
    /// # Errors
    /// Where the connection fails, or something else comes back.
    pub fn round_trips(self, times: usize) -> Result<Vec<u64>, Error> {
        let mut stream = self.open()?;
        stream.write_all(b"echo\n")?;
        (0..times)
            .map(|number| {
                let mut message = [0; MESSAGE];
                message.fill(number.to_le_bytes()[0]);
                let begun = Instant::now();
                stream.write_all(&message)?;
                let mut back = [0; MESSAGE];
                stream.read_exact(&mut back)?;
                let ns = nanoseconds(begun);
                if back == message {
                    Ok(ns)
                } else {
                    Err(Error::Wrong("another message came back than was sent".to_owned()))
                }
            })
            .collect()
    }

    /// Makes HTTP requests over so many connections at the same time: how many in all, and in how many nanoseconds.
    ///
    /// # Errors
    /// Where a connection fails, or the answer is another one.
    pub fn http(self, connections: usize) -> Result<(u64, u64), Error> {
        let opened = (0..connections)
            .map(|_| self.open())
            .collect::<Result<Vec<_>, _>>()?;
        let content = block();
        let body = content.get(..BODY).unwrap_or_default();
        let ns = together(opened, |mut stream| {
            let mut reader = BufReader::new(stream.try_clone()?);
            for _ in 0..REQUESTS {
                request(&mut stream, &mut reader, body)?;
            }
            Ok(())
        })?;
        Ok((REQUESTS * u64::try_from(connections).unwrap_or(0), ns))
    }
}

fn request(stream: &mut TcpStream, reader: &mut impl BufRead, body: &[u8]) -> Result<(), Error> {
    let wrong = |what: &str| Err(Error::Wrong(what.to_owned()));
    stream.write_all(b"GET / HTTP/1.1\r\nHost: probe\r\n\r\n")?;
    if line(reader)?.trim() != "HTTP/1.1 200 OK" {
        return wrong("an HTTP request was refused");
    }
    if line(reader)?.trim() != format!("Content-Length: {}", body.len()) || !line(reader)?.trim().is_empty() {
        return wrong("an HTTP answer has another length");
    }
    let mut found = vec![0; body.len()];
    reader.read_exact(&mut found)?;
    if found == body {
        Ok(())
    } else {
        wrong("an HTTP answer has another content")
    }
}

/// Does something with each connection at the same time; nanoseconds until all have done it.
fn together(
    streams: Vec<TcpStream>,
    work: impl Fn(TcpStream) -> Result<(), Error> + Sync,
) -> Result<u64, Error> {
    let start = Barrier::new(streams.len() + 1);
    thread::scope(|scope| {
        let threads: Vec<_> = streams
            .into_iter()
            .map(|stream| {
                scope.spawn(|| {
                    start.wait();
                    work(stream)
                })
            })
            .collect();
        start.wait();
        let begun = Instant::now();
        for thread in threads {
            match thread.join() {
                Ok(result) => result?,
                Err(_) => return Err(Error::Wrong("a thread has failed".to_owned())),
            }
        }
        Ok(nanoseconds(begun))
    })
}

/// Both ends' accounts have to be what was asked for.
fn agree(bytes: u64, own: &str, other: &str) -> Result<(), Error> {
    let expected = expected(bytes);
    if own == expected && other == expected {
        Ok(())
    } else {
        Err(Error::Wrong(format!(
            "{bytes} bytes came to {:?} at this end and to {:?} at the other",
            own.trim(),
            other.trim().chars().take(64).collect::<String>()
        )))
    }
}

fn nanoseconds(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_nanos())
        .unwrap_or(u64::MAX)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::new(listener.local_addr().unwrap());
        serve(listener, None);
        client
    }

    #[test]
    fn both_ends_agree() {
        let client = client();
        assert_eq!(client.upload(3, 1 << 20).unwrap().0, 3 << 20);
        assert_eq!(client.download(3, 1 << 20).unwrap().0, 3 << 20);
        assert_eq!(client.round_trips(10).unwrap().len(), 10);
        assert_eq!(client.http(2).unwrap().0, 2 * REQUESTS);
        assert!(client.connect().unwrap() > 0);
    }

    #[test]
    fn what_was_lost_or_changed_on_the_way_is_found() {
        let right = expected(1 << 20);
        agree(1 << 20, &right, &right).unwrap();
        let short = expected((1 << 20) - (64 << 10));
        let error = agree(1 << 20, &right, &short).unwrap_err().to_string();
        assert!(error.contains("1048576 bytes came to"), "{error}");
        assert!(agree(1 << 20, &right, &right.replace('0', "1")).is_err());
        let mut changed = block();
        changed[100] ^= 1;
        assert_ne!(
            receive(&mut changed.as_slice(), 64 << 10).unwrap(),
            expected(64 << 10)
        );
        assert!(receive(&mut block().as_slice(), 128 << 10).is_err());
    }
}
