//! Answering members.
//!
//! A thread for each socket reads questions and answers what it knows. What has to be asked elsewhere, and each
//! connection, has a thread of its own, so that nobody waits for another's slow server; how many a member may have at
//! once is limited, and how many there are in all.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use simple_dns::RCODE;

use super::members::{Found, Members, Table};
use super::message::{self, A_TYPE, AAAA_TYPE, ANY_TYPE, Error as MessageError, Query};
use super::policy::{self, Allow, Log};
use super::upstream::{self, HostServers};
use crate::endpoint::Endpoint;

/// Questions of one member that wait for a server. A browser that opens a page has a few dozen; one that waits in vain takes
/// eight seconds.
const MOST_QUESTIONS: usize = 64;

/// Connections of one member: a C library has one.
const MOST_CONNECTIONS: usize = 8;

/// Questions and connections of all members: each is a thread with a stack of [`STACK`].
const MOST_THREADS: usize = 512;

/// The stack of a thread that asks. The largest thing on it is a message's header.
const STACK: usize = 128 << 10;

/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(10);

/// How long a thread waits after the kernel failed it, so that it does not fill the log with what lasts.
const PAUSE: Duration = Duration::from_millis(100);

/// How long nothing is said after something was.
const QUIET: Duration = Duration::from_secs(10);

/// The largest message.
const MOST_MESSAGE: usize = 65535;

/// What a network's resolver answers by.
pub struct Server {
    /// The members.
    pub members: Members,
    /// Servers of members that name none.
    pub host_servers: HostServers,
    /// What lets members with a policy out.
    pub allow: Box<dyn Allow>,
    /// What was refused.
    pub log: Log,
    /// What is under way.
    pub load: Load,
}

/// Sockets that members reach.
#[derive(Debug, Default)]
pub struct Sockets {
    /// For datagrams.
    pub udp: Vec<UdpSocket>,
    /// For connections.
    pub tcp: Vec<TcpListener>,
}

/// Threads at work, by member and by what for.
#[derive(Debug, Default, Clone)]
pub struct Load(Arc<Mutex<HashMap<(IpAddr, Use), usize>>>);

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Use {
    Question,
    Connection,
}

/// The right to a thread.
#[derive(Debug)]
struct Permit {
    load: Load,
    key: (IpAddr, Use),
}

impl Load {
    fn permit(&self, member: IpAddr, of: Use) -> Option<Permit> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let most = match of {
            Use::Question => MOST_QUESTIONS,
            Use::Connection => MOST_CONNECTIONS,
        };
        if counts.values().sum::<usize>() >= MOST_THREADS {
            return None;
        }
        let count = counts.entry((member, of)).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Permit {
            load: self.clone(),
            key: (member, of),
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.load.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

/// What is to be done with a message.
enum Decision {
    /// Nothing.
    Silence,
    /// This is the answer.
    Answer(Vec<u8>),
    /// Somebody else knows.
    Ask(Box<Asked>),
}

/// A question for somebody else.
struct Asked {
    query: Query,
    message: Vec<u8>,
    member: Arc<Endpoint>,
}

impl Server {
    /// Starts the threads that answer. They end with the process.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub fn start(self: &Arc<Self>, sockets: Sockets) -> io::Result<()> {
        for socket in sockets.udp {
            let server = self.clone();
            spawn("datagrams", move || server.serve_datagrams(&Arc::new(socket)))?;
        }
        for listener in sockets.tcp {
            let server = self.clone();
            spawn("connections", move || server.serve_connections(&listener))?;
        }
        Ok(())
    }

    fn serve_datagrams(self: &Arc<Self>, socket: &Arc<UdpSocket>) {
        let mut buffer = vec![0; MOST_MESSAGE];
        loop {
            let (length, from) = match socket.recv_from(&mut buffer) {
                Ok(received) => received,
                // An error of one member's is told here, too: it has closed its socket.
                Err(error) => {
                    wait_after(&error);
                    continue;
                }
            };
            let datagram = buffer.get(..length).unwrap_or_default();
            match self.decide(datagram, from.ip(), None) {
                Decision::Silence => {}
                Decision::Answer(answer) => send(socket, &answer, from),
                Decision::Ask(asked) => self.ask_aside(*asked, socket, from),
            }
        }
    }

    /// Asks in a thread of its own, and sends the answer.
    fn ask_aside(self: &Arc<Self>, asked: Asked, socket: &Arc<UdpSocket>, from: SocketAddr) {
        let query = asked.query.clone();
        let permit = self.load.permit(from.ip(), Use::Question);
        let started = permit.is_some_and(|permit| {
            let (server, socket) = (self.clone(), socket.clone());
            let body = move || {
                if let Some(answer) = server.ask(&asked, asked.query.datagram(), false) {
                    send(&socket, &answer, from);
                }
                drop(permit);
            };
            spawn("question", body).is_ok()
        });
        if !started && let Ok(answer) = query.answer(RCODE::ServerFailure) {
            send(socket, &answer, from);
        }
    }

    fn serve_connections(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            let (stream, from) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) => {
                    wait_after(&error);
                    continue;
                }
            };
            // Without a permit it is closed, as where there is no thread for it.
            if let Some(permit) = self.load.permit(from.ip(), Use::Connection) {
                let server = self.clone();
                let body = move || {
                    server.serve_connection(stream, from.ip());
                    drop(permit);
                };
                if let Err(error) = spawn("connection", body) {
                    wait_after(&error);
                }
            }
        }
    }

    /// Answers one question after the other until the member closes, is silent or sends what is no question.
    fn serve_connection(&self, mut stream: TcpStream, member: IpAddr) {
        if stream.set_write_timeout(Some(IDLE)).is_err() {
            return;
        }
        while let Ok(message) = upstream::read_message(&mut stream, Instant::now() + IDLE) {
            let answer = match self.decide(&message, member, Some(MOST_MESSAGE)) {
                Decision::Silence => None,
                Decision::Answer(answer) => Some(answer),
                Decision::Ask(asked) => self.ask(&asked, MOST_MESSAGE, true),
            };
            let Some(answer) = answer else { return };
            if upstream::write_message(&mut stream, &answer).is_err() {
                return;
            }
        }
    }

    /// What is to be done with a message from an address. An answer has `most` bytes, or what the question says.
    fn decide(&self, message: &[u8], from: IpAddr, most: Option<usize>) -> Decision {
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(MessageError::NoQuestion) => return Decision::Silence,
            Err(MessageError::Refused(code)) => return answer(message::refusal(message, code)),
        };
        let most = most.unwrap_or(query.datagram());
        let table = match self.members.now() {
            Ok(table) => table,
            Err(error) => {
                complain(&format!("cannot read the members: {error}"));
                return answer(query.answer(RCODE::ServerFailure).ok());
            }
        };
        // Only members are answered. An address that is nobody's has lost its endpoint, or is made up.
        let Some(member) = table.by_address(from) else {
            return answer(query.answer(RCODE::Refused).ok());
        };
        if let Some(known) = self.known(&query, member, &table, most) {
            return answer(known.ok());
        }
        // For this member there is no such name. musl goes on to its next search domain after no other answer, and waits.
        if let Some(egress) = &member.egress
            && !query.name().is_some_and(|name| egress.allows_name(name))
        {
            self.log.refused(member, query.name(), query.kind());
            return answer(query.answer(RCODE::NameError).ok());
        }
        if self.members.network().internal {
            return answer(query.answer(RCODE::NameError).ok());
        }
        Decision::Ask(Box::new(Asked {
            message: message.to_vec(),
            member: member.clone(),
            query,
        }))
    }

    /// The answer, where the question is about this network, or another one of the member's.
    fn known(
        &self,
        query: &Query,
        member: &Endpoint,
        table: &Table,
        most: usize,
    ) -> Option<Result<Vec<u8>, simple_dns::SimpleDnsError>> {
        let others = || match self.members.others(&member.container) {
            Ok(tables) => tables,
            Err(error) => {
                complain(&format!("cannot read the members of other networks: {error}"));
                Vec::new()
            }
        };
        if let Some(address) = query.reverse() {
            return match self.members.name(table, address) {
                Found::Member(name) => Some(query.pointer(&name, most)),
                Found::Nobody => Some(query.answer(RCODE::NameError)),
                Found::Elsewhere => others()
                    .iter()
                    .find_map(|table| table.name(address))
                    .map(|name| query.pointer(name, most)),
            };
        }
        let name = query.name()?;
        let addresses = |table: &Table| match self.members.addresses(table, name) {
            Found::Member(addresses) => Some(addresses),
            _ => None,
        };
        let found = addresses(table).or_else(|| others().iter().find_map(|table| addresses(table)))?;
        Some(query.addresses(&found, most))
    }

    /// Asks elsewhere; the answer for the member, of `most` bytes. `None` where not even a failure can be written.
    fn ask(&self, asked: &Asked, most: usize, by_tcp: bool) -> Option<Vec<u8>> {
        let Asked {
            query,
            message,
            member,
        } = asked;
        let servers = if member.dns_servers.is_empty() {
            self.host_servers.now()
        } else {
            member.dns_servers.iter().copied().map(upstream::server).collect()
        };
        let told = match upstream::ask(message, query, &servers, by_tcp) {
            Ok(told) => told,
            // The member's business: its server, or its question. It is told so, and it may ask as often as it likes.
            Err(_) => return query.answer(RCODE::ServerFailure).ok(),
        };
        if member.egress.is_some() && matches!(query.kind(), A_TYPE | AAAA_TYPE | ANY_TYPE) {
            let allowed = query.told(&told).map(policy::allowed);
            let allowed = allowed.map_err(io::Error::other);
            // Before the answer is sent, because the member connects at once.
            let opened = allowed.and_then(|addresses| match &*addresses {
                [] => Ok(()),
                addresses => self.allow.allow(&member.interface, addresses),
            });
            if let Err(error) = opened {
                complain(&format!("cannot allow what a name stands for: {error}"));
                return query.answer(RCODE::ServerFailure).ok();
            }
        }
        if told.len() > most {
            return query.truncated().ok();
        }
        Some(told)
    }
}

/// Says what is wrong, once in [`QUIET`]: what members ask and servers answer must not fill the log, which is in memory.
fn complain(what: &str) {
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if last.is_none_or(|last| last.elapsed() >= QUIET) {
        *last = Some(Instant::now());
        eprintln!("rvm-resolver: {what}");
    }
}

fn answer(message: Option<Vec<u8>>) -> Decision {
    message.map_or(Decision::Silence, Decision::Answer)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name(name.into())
        .stack_size(STACK)
        .spawn(body)
        .map(drop)
}

fn send(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    // It is lost, as any datagram may be; the member asks again.
    let _ = socket.send_to(answer, to);
}

fn wait_after(error: &io::Error) {
    let is_passing = matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionRefused
    );
    if !is_passing {
        eprintln!("rvm-resolver: {error}");
        thread::sleep(PAUSE);
    }
}
