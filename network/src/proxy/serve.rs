//! The thread that serves published ports: one loop over everything that is open.
//!
//! All descriptors are watched for edges: each is worked on until the kernel has no more, or until it has had its share;
//! then it is put at the end of the row.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::process::{Resource, getrlimit};

use super::datagram::Sessions;
use super::stream::{Connection, State};
use super::{Door, Socket};
use crate::endpoint::Published;

/// Connections of one container at a time; those after wait in the kernel's backlog. Each has two descriptors and up to 128
/// KiB that one side has not taken yet.
const MOST_CONNECTIONS: usize = 4096;

/// One part in this many of the process's descriptors is for connections; the rest is for the supervisor's other work.
const SHARE: u64 = 2;

/// How long it is not accepted after the kernel had no descriptor or no memory.
const PAUSE: Duration = Duration::from_millis(100);

/// How often sessions of UDP are looked at.
const SWEEP: Duration = Duration::from_secs(10);

/// Events that are fetched at once.
const EVENTS: usize = 64;

/// Bytes that are copied at once.
const BUFFER: usize = 64 << 10;

/// Where the container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Its address.
    pub ipv4: Ipv4Addr,
    /// Its address, where it has one.
    pub ipv6: Option<Ipv6Addr>,
}

impl Target {
    /// The address for what came to an address of the host.
    fn of(self, host: IpAddr, port: u16) -> SocketAddr {
        match (host, self.ipv6) {
            (IpAddr::V6(_), Some(address)) => SocketAddr::new(address.into(), port),
            _ => SocketAddr::new(self.ipv4.into(), port),
        }
    }
}

/// Published ports that are served as long as this is there; when it is gone, so are the sockets.
#[derive(Debug)]
pub struct Proxy {
    target: Arc<Mutex<Option<Target>>>,
    /// What ends the thread, and the thread.
    thread: Option<(OwnedFd, JoinHandle<()>)>,
}

impl Proxy {
    pub(super) fn start(doors: Vec<Door>) -> io::Result<Self> {
        let target = Arc::default();
        if doors.is_empty() {
            return Ok(Self { target, thread: None });
        }
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mut looping = Loop::new(doors, Arc::clone(&target), &stop)?;
        let body = move || {
            if let Err(error) = looping.run() {
                eprintln!("rvm: the published ports are not served any more: {error}");
            }
        };
        let thread = thread::Builder::new().name("ports".into()).spawn(body)?;
        Ok(Self {
            target,
            thread: Some((stop, thread)),
        })
    }

    /// Sends what comes from now on there; where there is nowhere to send it to, it is closed or lost.
    pub fn send_to(&self, target: Option<Target>) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take()
            && rustix::io::write(&stop, &1_u64.to_ne_bytes()).is_ok()
        {
            // It has said what went wrong itself.
            let _ = thread.join();
        }
    }
}

/// What an event is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Of {
    Door(usize),
    Connection(u64),
    Session(u64),
    Stop,
}

impl Of {
    fn token(self) -> u64 {
        match self {
            Self::Door(index) => u64::try_from(index).unwrap_or(u64::MAX) << 2,
            Self::Connection(number) => number << 2 | 1,
            Self::Session(number) => number << 2 | 2,
            Self::Stop => 3,
        }
    }

    fn from_token(token: u64) -> Option<Self> {
        let number = token >> 2;
        match token & 3 {
            0 => usize::try_from(number).ok().map(Self::Door),
            1 => Some(Self::Connection(number)),
            2 => Some(Self::Session(number)),
            _ => Some(Self::Stop),
        }
    }
}

/// Watches a descriptor for edges.
pub(super) struct Watcher {
    epoll: OwnedFd,
}

impl Watcher {
    fn watch(&self, fd: impl AsFd, of: Of) -> io::Result<()> {
        let flags = match of {
            // It can always be written to.
            Of::Stop => epoll::EventFlags::IN,
            _ => epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET,
        };
        let data = epoll::EventData::new_u64(of.token());
        Ok(epoll::add(&self.epoll, fd, data, flags)?)
    }

    /// Watches a socket to the container for datagrams' sake.
    pub(super) fn watch_session(&self, fd: impl AsFd, number: u64) -> io::Result<()> {
        self.watch(fd, Of::Session(number))
    }
}

struct Loop {
    watcher: Watcher,
    target: Arc<Mutex<Option<Target>>>,
    doors: Vec<Door>,
    connections: HashMap<u64, Connection>,
    most_connections: usize,
    sessions: Sessions,
    /// The number of the last connection.
    last: u64,
    /// What is not finished although there is no event to come.
    row: VecDeque<Of>,
    /// Doors that have connections which were not accepted.
    waiting: Vec<usize>,
    buffer: Vec<u8>,
}

impl Loop {
    fn new(doors: Vec<Door>, target: Arc<Mutex<Option<Target>>>, stop: &OwnedFd) -> io::Result<Self> {
        let watcher = Watcher {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        };
        watcher.watch(stop, Of::Stop)?;
        for (index, door) in doors.iter().enumerate() {
            match &door.socket {
                Socket::Tcp(listener) => watcher.watch(listener, Of::Door(index))?,
                Socket::Udp(socket) => watcher.watch(socket, Of::Door(index))?,
            }
        }
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let most = usize::try_from(descriptors / SHARE / 2).unwrap_or(usize::MAX);
        Ok(Self {
            watcher,
            target,
            doors,
            connections: HashMap::new(),
            most_connections: most.clamp(1, MOST_CONNECTIONS),
            sessions: Sessions::default(),
            last: 0,
            row: VecDeque::new(),
            waiting: Vec::new(),
            buffer: vec![0; BUFFER],
        })
    }

    /// Until it is told to stop, or waiting fails.
    fn run(&mut self) -> io::Result<()> {
        let mut swept = Instant::now();
        loop {
            let timeout = match (self.row.is_empty(), self.waiting.is_empty()) {
                (false, _) => Duration::ZERO,
                (true, false) => PAUSE,
                (true, true) => SWEEP,
            };
            let events = self.wait(timeout)?;
            if events.contains(&Of::Stop) {
                return Ok(());
            }
            // Those that wait for their next share come first.
            let row = std::mem::take(&mut self.row);
            for of in row.into_iter().chain(events) {
                self.work_on(of);
            }
            for index in std::mem::take(&mut self.waiting) {
                self.work_on(Of::Door(index));
            }
            if swept.elapsed() >= SWEEP {
                self.sessions.sweep();
                swept = Instant::now();
            }
        }
    }

    fn wait(&self, timeout: Duration) -> io::Result<Vec<Of>> {
        let mut events = Vec::with_capacity(EVENTS);
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        match epoll::wait(
            &self.watcher.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&timeout),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(events
            .iter()
            .filter_map(|event| Of::from_token(event.data.u64()))
            .collect())
    }

    fn work_on(&mut self, of: Of) {
        let has_more = match of {
            Of::Door(index) => self.serve_door(index),
            Of::Connection(number) => self.serve_connection(number),
            Of::Stop => false,
            Of::Session(number) => self.sessions.answer(number, &self.doors, &mut self.buffer),
        };
        if has_more && !self.row.contains(&of) {
            self.row.push_back(of);
        }
    }

    /// Where what came to a door is to go.
    fn target(&self, door: &Published) -> Option<SocketAddr> {
        let target = *self.target.lock().unwrap_or_else(PoisonError::into_inner);
        target.map(|target| target.of(door.host_address, door.container_port))
    }

    /// Whether there is more to do at once.
    fn serve_door(&mut self, index: usize) -> bool {
        let Some(door) = self.doors.get(index) else {
            return false;
        };
        match &door.socket {
            Socket::Udp(socket) => {
                let target = self.target(&door.published);
                self.sessions
                    .pass_on(index, socket, target, &self.watcher, &mut self.buffer)
            }
            Socket::Tcp(listener) => {
                if self.connections.len() >= self.most_connections {
                    self.waiting.push(index);
                    return false;
                }
                match listener.accept() {
                    Ok((client, _)) => {
                        // Without a container it is closed.
                        let target = self.target(&door.published);
                        let connection = target.map(|target| Connection::start(client, target));
                        if let Some(Ok(connection)) = connection {
                            self.add(connection);
                        }
                        true
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
                    // It has gone, or it is worth trying again at once.
                    Err(error)
                        if matches!(
                            error.kind(),
                            io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                        ) =>
                    {
                        true
                    }
                    Err(_) => {
                        self.waiting.push(index);
                        false
                    }
                }
            }
        }
    }

    fn add(&mut self, connection: Connection) {
        self.last += 1;
        let of = Of::Connection(self.last);
        let [client, container] = connection.sockets();
        // What cannot be watched is closed.
        if self.watcher.watch(client, of).is_ok() && self.watcher.watch(container, of).is_ok() {
            self.connections.insert(self.last, connection);
            self.row.push_back(of);
        }
    }

    fn serve_connection(&mut self, number: u64) -> bool {
        let Some(connection) = self.connections.get_mut(&number) else {
            return false;
        };
        match connection.work(&mut self.buffer) {
            State::Waiting => false,
            State::HasMore => true,
            State::Ended => {
                // Closed, and watched no more.
                self.connections.remove(&number);
                false
            }
        }
    }
}
