//! Datagrams to published ports. Whoever sends some has a session: a socket to the container from which its datagrams come, so
//! that the answers to them are known.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::{SocketType, connect};

use super::place::{self, Place};
use super::serve::Watcher;
use super::{Door, Socket, unbound};

/// How long a session is kept without a datagram: as long as Docker's.
const IDLE: Duration = Duration::from_secs(90);

/// Sessions of one container, each a descriptor. When there are more, that ends which was silent for longest.
const MOST_SESSIONS: usize = 256;

/// Datagrams that are passed on before it is others' turn.
const ROUNDS: usize = 64;

/// All sessions of one container.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_client: HashMap<Client, u64>,
    sessions: HashMap<u64, Session>,
    last: u64,
}

/// Who sends, and where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Client {
    door: usize,
    address: SocketAddr,
    /// Answers come from there.
    place: Place,
}

#[derive(Debug)]
struct Session {
    client: Client,
    target: SocketAddr,
    socket: UdpSocket,
    used: Instant,
}

impl Sessions {
    /// Passes on what has come to a door; whether there may be more.
    pub(super) fn pass_on(
        &mut self,
        door: usize,
        socket: &UdpSocket,
        target: Option<SocketAddr>,
        watcher: &Watcher,
        buffer: &mut [u8],
    ) -> bool {
        for _ in 0..ROUNDS {
            let arrival = match place::receive(socket, buffer) {
                Ok(arrival) => arrival,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // What became of an earlier answer.
                Err(_) => continue,
            };
            let Some(target) = target else { continue };
            let client = Client {
                door,
                address: arrival.client,
                place: arrival.place,
            };
            // What cannot be sent is lost, as any datagram may be.
            if let Ok(session) = self.session(client, target, watcher) {
                let _ = session
                    .socket
                    .send(buffer.get(..arrival.length).unwrap_or_default());
            }
        }
        true
    }

    /// Gives a session's client what the container has answered; whether there may be more.
    pub(super) fn answer(&mut self, number: u64, doors: &[Door], buffer: &mut [u8]) -> bool {
        let Some(session) = self.sessions.get_mut(&number) else {
            return false;
        };
        let client = session.client;
        let Some(Socket::Udp(outside)) = doors.get(client.door).map(|door| &door.socket) else {
            return false;
        };
        for _ in 0..ROUNDS {
            match session.socket.recv(buffer) {
                Ok(length) => {
                    session.used = Instant::now();
                    let datagram = buffer.get(..length).unwrap_or_default();
                    let _ = place::send(outside, datagram, client.address, client.place);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // Nobody listens in the container; somebody may yet.
                Err(_) => {}
            }
        }
        true
    }

    fn session(&mut self, client: Client, target: SocketAddr, watcher: &Watcher) -> io::Result<&Session> {
        let known = self.by_client.get(&client).copied();
        let number = match known {
            Some(number)
                if self
                    .sessions
                    .get(&number)
                    .is_some_and(|session| session.target == target) =>
            {
                number
            }
            // The container is elsewhere now.
            Some(number) => {
                self.end(number);
                self.open(client, target, watcher)?
            }
            None => self.open(client, target, watcher)?,
        };
        let session = self.sessions.get_mut(&number).ok_or(io::ErrorKind::NotFound)?;
        session.used = Instant::now();
        Ok(session)
    }

    fn open(&mut self, client: Client, target: SocketAddr, watcher: &Watcher) -> io::Result<u64> {
        if self.sessions.len() >= MOST_SESSIONS {
            let oldest = self.sessions.iter().min_by_key(|(_, session)| session.used);
            if let Some(number) = oldest.map(|(number, _)| *number) {
                self.end(number);
            }
        }
        let socket = unbound(SocketType::DGRAM, target)?;
        connect(&socket, &target)?;
        self.last += 1;
        watcher.watch_session(&socket, self.last)?;
        self.by_client.insert(client, self.last);
        self.sessions.insert(
            self.last,
            Session {
                client,
                target,
                socket: socket.into(),
                used: Instant::now(),
            },
        );
        Ok(self.last)
    }

    fn end(&mut self, number: u64) {
        if let Some(session) = self.sessions.remove(&number) {
            self.by_client.remove(&session.client);
        }
    }

    /// Ends sessions that nobody uses.
    pub(super) fn sweep(&mut self) {
        let idle = |session: &Session| session.used.elapsed() >= IDLE;
        let ended = self.sessions.iter().filter(|(_, session)| idle(session));
        let ended: Vec<_> = ended.map(|(number, _)| *number).collect();
        ended.into_iter().for_each(|number| self.end(number));
    }
}
