//! One connection to a published port, and the one to the container that goes with it.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};

use rustix::io::Errno;
use rustix::net::{SocketType, connect};

use super::unbound;

/// How many buffers are copied each way before it is others' turn.
const ROUNDS: usize = 8;

/// How a connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// With an event.
    Waiting,
    /// At once.
    HasMore,
    /// Not at all.
    Ended,
}

/// Two connections that are one.
#[derive(Debug)]
pub(super) struct Connection {
    client: TcpStream,
    container: TcpStream,
    is_connected: bool,
    to_container: Way,
    to_client: Way,
}

/// One way of the two.
#[derive(Debug, Default)]
struct Way {
    /// What was read and could not be written yet: one buffer at most.
    rest: Vec<u8>,
    /// Nothing more is read.
    has_ended: bool,
    /// The other side knows that.
    is_shut: bool,
}

impl Connection {
    /// Begins to connect to the container.
    pub(super) fn start(client: TcpStream, target: SocketAddr) -> io::Result<Self> {
        client.set_nonblocking(true)?;
        let container = unbound(SocketType::STREAM, target)?;
        match connect(&container, &target) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let container = TcpStream::from(container);
        // What the one side sent as a packet of its own goes on at once.
        client.set_nodelay(true)?;
        container.set_nodelay(true)?;
        Ok(Self {
            client,
            container,
            is_connected: false,
            to_container: Way::default(),
            to_client: Way::default(),
        })
    }

    pub(super) fn sockets(&self) -> [&TcpStream; 2] {
        [&self.client, &self.container]
    }

    /// Copies what there is, each way.
    pub(super) fn work(&mut self, buffer: &mut [u8]) -> State {
        if !self.is_connected {
            match self.container.take_error() {
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return State::Ended,
            }
            if self.container.peer_addr().is_err() {
                return State::Waiting;
            }
            self.is_connected = true;
        }
        let there = self.to_container.copy(&self.client, &self.container, buffer);
        let back = self.to_client.copy(&self.container, &self.client, buffer);
        match (there, back) {
            (Ok(there), Ok(back)) => {
                if self.to_container.is_shut && self.to_client.is_shut {
                    State::Ended
                } else if there || back {
                    State::HasMore
                } else {
                    State::Waiting
                }
            }
            // One side has reset it; closing resets the other where it still sends.
            _ => State::Ended,
        }
    }
}

impl Way {
    /// Copies until one side has to be waited for; whether it stopped before that.
    fn copy(&mut self, mut from: &TcpStream, mut to: &TcpStream, buffer: &mut [u8]) -> io::Result<bool> {
        for _ in 0..ROUNDS {
            while !self.rest.is_empty() {
                let Some(written) = unless_blocked(|| to.write(&self.rest))? else {
                    return Ok(false);
                };
                self.rest.drain(..written);
            }
            if self.has_ended {
                if !self.is_shut {
                    to.shutdown(Shutdown::Write)?;
                    self.is_shut = true;
                }
                return Ok(false);
            }
            let Some(length) = unless_blocked(|| from.read(buffer))? else {
                return Ok(false);
            };
            let bytes = buffer.get(..length).unwrap_or_default();
            self.has_ended = bytes.is_empty();
            let written = match bytes {
                [] => 0,
                bytes => unless_blocked(|| to.write(bytes))?.unwrap_or(0),
            };
            self.rest.extend(bytes.get(written..).unwrap_or_default());
        }
        Ok(true)
    }
}

fn unless_blocked(mut action: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match action() {
            Ok(length) => return Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
