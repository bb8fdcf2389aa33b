//! All connections of a device: it accepts clients, finds the connection that a packet belongs to, and decides whose
//! turn it is to send to the guest.
//!
//! It has an epoll instance of its own. Sockets are watched by edges: a connection remembers what may be read or written
//! until the socket says otherwise, so that a stalled stream costs nothing.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::connection::{Connection, Phase};
use super::packet::{HOST_CID, Header, TYPE_STREAM, operation};
use crate::devices::virtio::chain::Buffers;

/// Most connections at a time. Each may hold a backlog of 256 KiB, so a hostile guest can make the process hold 64 MiB.
pub(super) const MAX_CONNECTIONS: usize = 256;
/// Most answers that wait for a guest which does not give buffers for them; it is not listened to until it does.
const MAX_RESETS: usize = 64;
/// Time for a client to say what it wants, and for a guest to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Deadlines are looked at this often, while there are any.
const TICK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// Ready sockets that are handled before the guest's queues get their turn.
pub(super) const MAX_EVENTS: usize = 64;
/// Host ports count from here, above those that programs choose.
pub(super) const FIRST_HOST_PORT: u32 = 1 << 30;
const LAST_HOST_PORT: u32 = (1 << 31) - 1;

const LISTENER: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

/// The multiplexer.
#[derive(Debug)]
pub(super) struct Muxer {
    guest_cid: u64,
    listener: UnixListener,
    epoll: OwnedFd,
    timer: OwnedFd,
    listening: bool,
    ticking: bool,
    /// By host port.
    connections: BTreeMap<u32, Connection>,
    next_port: u32,
    /// Connections with something for the guest, each once, in the order of their turns.
    turns: VecDeque<u32>,
    /// Answers to packets that belong to no connection.
    resets: VecDeque<Header>,
}

impl Muxer {
    /// A multiplexer without connections, which does not accept any yet.
    ///
    /// # Errors
    /// Those of making the descriptors.
    pub(super) fn new(guest_cid: u32, listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        Ok(Self {
            guest_cid: u64::from(guest_cid),
            listener,
            epoll,
            timer,
            listening: false,
            ticking: false,
            connections: BTreeMap::new(),
            next_port: FIRST_HOST_PORT,
            turns: VecDeque::new(),
            resets: VecDeque::new(),
        })
    }

    /// Accepts clients from now on. Those that came before have waited in the listener's queue.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub(super) fn start(&mut self) -> io::Result<()> {
        if !self.listening {
            epoll::add(
                &self.epoll,
                &self.listener,
                EventData::new_u64(LISTENER),
                EventFlags::IN,
            )?;
            self.listening = true;
        }
        Ok(())
    }

    /// Closes all connections and accepts none.
    pub(super) fn stop(&mut self) {
        self.stop_listening();
        // Fails only for a bad descriptor or time. It also takes away an expiration that nobody has read.
        let _ = self.set_timer(Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        });
        self.ticking = false;
        self.connections.clear();
        self.turns.clear();
        self.resets.clear();
    }

    fn stop_listening(&mut self) {
        if std::mem::take(&mut self.listening) {
            // It was added, so it can be removed.
            let _ = epoll::delete(&self.epoll, &self.listener);
        }
    }

    /// The port that the next connection gets at the earliest: all of the multiplexer that a guest can see when it has no
    /// connections.
    pub(super) fn next_port(&self) -> u32 {
        self.next_port
    }

    /// Goes on with the port of another multiplexer; one that is none of this one's is left aside.
    pub(super) fn set_next_port(&mut self, port: u32) {
        if (FIRST_HOST_PORT..=LAST_HOST_PORT).contains(&port) {
            self.next_port = port;
        }
    }

    /// Handles sockets that are ready, at most [`MAX_EVENTS`] of them; returns how many.
    ///
    /// # Errors
    /// Those of `epoll_wait(2)`.
    pub(super) fn poll(&mut self) -> io::Result<usize> {
        let mut events = Vec::with_capacity(MAX_EVENTS);
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&now),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            match event.data.u64() {
                LISTENER => self.accept()?,
                TIMER => self.tick()?,
                token => self.socket_ready(token, event.flags),
            }
        }
        Ok(events.len())
    }

    fn socket_ready(&mut self, token: u64, flags: EventFlags) {
        let Ok(port) = u32::try_from(token) else { return };
        let Some(connection) = self.connections.get_mut(&port) else {
            return;
        };
        let readable = flags.intersects(EventFlags::IN | EventFlags::RDHUP);
        let hung_up = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        connection.socket_ready(readable, flags.contains(EventFlags::OUT), hung_up);
        self.settle(port);
    }

    /// After a connection has changed: it takes its place in the turns, or is forgotten.
    fn settle(&mut self, port: u32) {
        let Some(connection) = self.connections.get_mut(&port) else {
            return;
        };
        if connection.phase() == Phase::Closed {
            self.connections.remove(&port);
        } else if connection.wants_guest() && !std::mem::replace(&mut connection.queued, true) {
            self.turns.push_back(port);
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..MAX_EVENTS {
            match self.listener.accept() {
                // Closing it says to the client that there is no room.
                Ok(_) if self.connections.len() >= MAX_CONNECTIONS => {}
                Ok((socket, _)) => self.add(socket)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Out of descriptors, most likely: it is tried again at the next tick, and not at every turn.
                Err(_) => {
                    self.stop_listening();
                    break;
                }
            }
        }
        self.start_ticking()
    }

    fn add(&mut self, socket: std::os::unix::net::UnixStream) -> io::Result<()> {
        let port = self.allocate_port();
        let watched = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, &socket, EventData::new_u64(u64::from(port)), watched)?;
        self.connections
            .insert(port, Connection::new(socket, port, Instant::now() + PATIENCE));
        Ok(())
    }

    /// A port that no connection has. There are far more ports than connections.
    fn allocate_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = if port == LAST_HOST_PORT {
                FIRST_HOST_PORT
            } else {
                port + 1
            };
            if !self.connections.contains_key(&port) {
                return port;
            }
        }
    }

    fn start_ticking(&mut self) -> io::Result<()> {
        if !std::mem::replace(&mut self.ticking, true) {
            self.set_timer(TICK)?;
        }
        Ok(())
    }

    fn set_timer(&self, interval: Timespec) -> io::Result<()> {
        let timer = Itimerspec {
            it_interval: interval,
            it_value: interval,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &timer)?;
        Ok(())
    }

    fn tick(&mut self) -> io::Result<()> {
        // Reading takes the event away; how many ticks there were does not matter.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        self.check_deadlines(Instant::now());
        self.start()?;
        if !self.connections.values().any(Connection::has_deadline) {
            self.ticking = false;
            self.set_timer(Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            })?;
        }
        Ok(())
    }

    pub(super) fn check_deadlines(&mut self, now: Instant) {
        let ports: Vec<u32> = self.connections.keys().copied().collect();
        for port in ports {
            if let Some(connection) = self.connections.get_mut(&port) {
                connection.check_deadline(now);
            }
            self.settle(port);
        }
    }

    /// Whether packets of the guest can be handled: the answers that they may need have room.
    pub(super) fn can_receive(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Handles a packet of the guest; `data` is what follows the header.
    pub(super) fn receive(&mut self, header: &Header, data: &Buffers<'_>) {
        if header.source_cid != self.guest_cid || header.destination_cid != HOST_CID {
            return;
        }
        let port = header.destination_port;
        let connection = self.connections.get_mut(&port);
        let connection = connection.filter(|connection| connection.talks_to(header.source_port));
        match connection.filter(|_| header.kind == TYPE_STREAM) {
            Some(connection) => {
                connection.receive(header, data);
                self.settle(port);
            }
            None if header.operation == operation::RESET => {}
            None => self.resets.push_back(Header {
                source_port: header.destination_port,
                destination_port: header.source_port,
                kind: header.kind,
                operation: operation::RESET,
                ..Default::default()
            }),
        }
    }

    /// Whether [`Muxer::next_packet`] may have something.
    pub(super) fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.turns.is_empty()
    }

    /// The next packet for the guest, whose data is put into `data` (not empty); `None` if there is none after all.
    pub(super) fn next_packet(&mut self, data: &Buffers<'_>) -> Option<Header> {
        if let Some(header) = self.resets.pop_front() {
            return Some(self.address(header));
        }
        while let Some(port) = self.turns.pop_front() {
            let Some(connection) = self.connections.get_mut(&port) else {
                continue;
            };
            connection.queued = false;
            let header = connection.next_packet(data);
            self.settle(port);
            if let Some(header) = header {
                return Some(self.address(Header {
                    kind: TYPE_STREAM,
                    ..header
                }));
            }
        }
        None
    }

    fn address(&self, header: Header) -> Header {
        Header {
            source_cid: HOST_CID,
            destination_cid: self.guest_cid,
            ..header
        }
    }
}

impl AsRawFd for Muxer {
    /// Becomes readable when [`Muxer::poll`] has something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

impl AsFd for Muxer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
