//! One connection: a Unix socket of the host on one side, the guest's packets on the other.
//!
//! Towards the guest nothing is buffered: the socket is read straight into the guest's buffers, when the guest has given
//! credit for it. From the guest at most [`BUFFER_BYTES`] are kept, the credit that it was given. So a side that does not
//! read stops its own stream and no other, in bounded memory.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::net::{RecvFlags, SendFlags};

use super::packet::{Header, NO_MORE_RECEIVING, NO_MORE_SENDING, operation};
use crate::devices::virtio::chain::Buffers;
use crate::sys;

/// Data from the guest that the host's program has not taken yet: the credit given to the guest.
pub(super) const BUFFER_BYTES: u32 = 256 << 10;
/// A guest is told of free space when it has not heard of this much. Smaller steps cost packets, larger ones stall it.
const UPDATE_BYTES: u32 = BUFFER_BYTES / 4;
/// Most data in a packet to the guest.
const MAX_DATA_BYTES: usize = 64 << 10;
/// Longest first line of a client: `CONNECT `, a port, and a newline fit twice.
const MAX_LINE_BYTES: usize = 40;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The client has to say which port it wants.
    Greeting,
    /// The guest has to answer; `sent` says whether it was asked.
    Requested { sent: bool },
    /// Data flows.
    Open,
    /// The guest has forgotten the connection; the host's program still takes what was sent before.
    Draining,
    /// Over.
    Closed,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    socket: UnixStream,
    host_port: u32,
    guest_port: u32,
    phase: Phase,
    /// End of the time for [`Phase::Greeting`] and [`Phase::Requested`].
    deadline: Instant,
    /// Reading or writing the socket may succeed; it is told by edges when this becomes true again.
    readable: bool,
    writable: bool,
    to_guest: ToGuest,
    to_host: ToHost,
    /// Flags of the shutdown that the guest has to hear of, and those that it has heard of.
    shutdown_due: u32,
    shutdown_sent: u32,
    /// The guest has to hear that the connection is over.
    reset_due: bool,
    /// In the multiplexer's list of connections with something for the guest.
    pub(super) queued: bool,
}

/// The direction towards the guest.
#[derive(Debug, Default)]
struct ToGuest {
    /// The guest's buffer, and what it has taken out of it.
    buffer_bytes: u32,
    forwarded: Wrapping<u32>,
    sent: Wrapping<u32>,
    credit_asked: bool,
    /// The host's program has sent its last byte, or the guest wants no more.
    ended: bool,
}

impl ToGuest {
    fn credit(&self) -> u32 {
        self.buffer_bytes.saturating_sub((self.sent - self.forwarded).0)
    }
}

/// The direction towards the host.
#[derive(Debug, Default)]
struct ToHost {
    backlog: VecDeque<u8>,
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    /// What the guest knows of `forwarded`.
    announced: Wrapping<u32>,
    credit_asked: bool,
    /// The guest has sent its last byte.
    ended: bool,
    /// The host's program was told so. Once only: each time wakes whoever watches the socket, us included.
    end_passed_on: bool,
    /// The host's program takes nothing any more.
    refused: bool,
}

/// A packet for the guest, but for what is the same for all of its connection's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packet {
    operation: u16,
    flags: u32,
    length: usize,
}

impl Packet {
    fn control(operation: u16, flags: u32) -> Self {
        Self {
            operation,
            flags,
            length: 0,
        }
    }
}

impl Connection {
    /// A connection that a client has just opened.
    pub(super) fn new(socket: UnixStream, host_port: u32, deadline: Instant) -> Self {
        Self {
            socket,
            host_port,
            guest_port: 0,
            phase: Phase::Greeting,
            deadline,
            readable: true,
            writable: true,
            to_guest: ToGuest::default(),
            to_host: ToHost::default(),
            shutdown_due: 0,
            shutdown_sent: 0,
            reset_due: false,
            queued: false,
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether packets from this port of the guest belong here.
    pub(super) fn talks_to(&self, guest_port: u32) -> bool {
        self.guest_port == guest_port && matches!(self.phase, Phase::Requested { .. } | Phase::Open)
    }

    /// Takes notice of what epoll says about the socket, and does what has become possible towards the host.
    pub(super) fn socket_ready(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.readable |= readable || hung_up;
        self.writable |= writable || hung_up;
        match self.phase {
            Phase::Greeting => self.read_greeting(),
            // A client that has gone before the guest answered; the guest is told once it has been asked.
            Phase::Requested { sent } if hung_up => self.end(sent),
            Phase::Open | Phase::Draining => {
                if hung_up {
                    self.host_refuses();
                }
                self.flush();
            }
            Phase::Requested { .. } | Phase::Closed => {}
        }
    }

    /// What is kept of the guest's data.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn backlog_bytes(&self) -> u32 {
        u32::try_from(self.to_host.backlog.len()).unwrap_or(u32::MAX)
    }

    /// Gives up if the other side has taken too long.
    pub(super) fn check_deadline(&mut self, now: Instant) {
        match self.phase {
            Phase::Greeting if now >= self.deadline => self.end(false),
            Phase::Requested { sent } if now >= self.deadline => self.end(sent),
            _ => {}
        }
    }

    /// Whether the connection waits for somebody and has a deadline.
    pub(super) fn has_deadline(&self) -> bool {
        matches!(self.phase, Phase::Greeting | Phase::Requested { .. })
    }

    /// Whether [`Connection::next_packet`] may have something.
    pub(super) fn wants_guest(&self) -> bool {
        match self.phase {
            Phase::Requested { sent } => !sent || self.reset_due,
            Phase::Open => {
                self.reset_due
                    || self.can_read()
                    || self.needs_credit()
                    || self.owes_credit()
                    || self.shutdown_due & !self.shutdown_sent != 0
            }
            Phase::Greeting | Phase::Draining | Phase::Closed => false,
        }
    }

    /// The next packet for the guest, whose data is put into `data` (not empty); `None` if there is none after all.
    pub(super) fn next_packet(&mut self, data: &Buffers<'_>) -> Option<Header> {
        let packet = match self.phase {
            Phase::Requested { .. } | Phase::Open if self.reset_due => {
                self.phase = Phase::Closed;
                Packet::control(operation::RESET, 0)
            }
            Phase::Requested { sent: false } => {
                self.phase = Phase::Requested { sent: true };
                Packet::control(operation::REQUEST, 0)
            }
            Phase::Open => self.next_open_packet(data)?,
            _ => return None,
        };
        self.to_host.announced = self.to_host.forwarded;
        self.to_host.credit_asked = false;
        Some(Header {
            source_port: self.host_port,
            destination_port: self.guest_port,
            length: u32::try_from(packet.length).unwrap_or_default(),
            operation: packet.operation,
            flags: packet.flags,
            buffer_bytes: BUFFER_BYTES,
            forwarded: self.to_host.forwarded.0,
            ..Default::default()
        })
    }

    /// Data before a shutdown, because that must not overtake it.
    fn next_open_packet(&mut self, data: &Buffers<'_>) -> Option<Packet> {
        if self.can_read()
            && let Some(length) = self.read_socket(data)
        {
            return Some(Packet {
                operation: operation::DATA,
                flags: 0,
                length,
            });
        }
        if self.shutdown_due & !self.shutdown_sent != 0 {
            self.shutdown_sent = self.shutdown_due;
            return Some(Packet::control(operation::SHUTDOWN, self.shutdown_due));
        }
        if self.needs_credit() {
            self.to_guest.credit_asked = true;
            return Some(Packet::control(operation::CREDIT_REQUEST, 0));
        }
        self.owes_credit()
            .then_some(Packet::control(operation::CREDIT_UPDATE, 0))
    }

    fn can_read(&self) -> bool {
        self.readable && !self.to_guest.ended && self.to_guest.credit() > 0
    }

    fn needs_credit(&self) -> bool {
        let stalled = self.readable && !self.to_guest.ended && self.to_guest.credit() == 0;
        stalled && !self.to_guest.credit_asked
    }

    fn owes_credit(&self) -> bool {
        let unknown = (self.to_host.forwarded - self.to_host.announced).0;
        self.to_host.credit_asked || unknown >= UPDATE_BYTES
    }

    /// Reads from the host into `data` as far as the credit goes; `None` if there is nothing to read.
    fn read_socket(&mut self, data: &Buffers<'_>) -> Option<usize> {
        let credit = usize::try_from(self.to_guest.credit()).unwrap_or(usize::MAX);
        let (space, _) = data.split_at(data.len().min(credit).min(MAX_DATA_BYTES))?;
        match sys::receive(self.socket.as_fd(), space.slices()) {
            Ok(0) => self.host_has_ended(),
            Ok(length) => {
                self.to_guest.sent += u32::try_from(length).unwrap_or_default();
                return Some(length);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(_) => {
                self.host_has_ended();
                self.host_refuses();
            }
        }
        None
    }

    fn host_has_ended(&mut self) {
        self.to_guest.ended = true;
        self.shutdown_due |= NO_MORE_SENDING;
    }

    /// Handles a packet of the guest.
    pub(super) fn receive(&mut self, header: &Header, data: &Buffers<'_>) {
        self.to_guest.buffer_bytes = header.buffer_bytes;
        self.to_guest.forwarded = Wrapping(header.forwarded);
        if self.to_guest.credit() > 0 {
            self.to_guest.credit_asked = false;
        }
        match (self.phase, header.operation) {
            (_, operation::RESET) => {
                let unfinished = self.phase == Phase::Open && !self.to_host.backlog.is_empty();
                self.phase = if unfinished {
                    Phase::Draining
                } else {
                    Phase::Closed
                };
            }
            // The connection is ending. What else the guest sends would reach the host behind a gap.
            _ if self.reset_due => {}
            (Phase::Requested { sent: true }, operation::RESPONSE) => self.accepted(),
            (Phase::Open, operation::DATA) => self.receive_data(data),
            (Phase::Open, operation::SHUTDOWN) => self.receive_shutdown(header.flags),
            (Phase::Open, operation::CREDIT_UPDATE) => {}
            (Phase::Open, operation::CREDIT_REQUEST) => self.to_host.credit_asked = true,
            _ => self.reset_due = true,
        }
    }

    /// Tells the client that the guest has accepted. The socket is new, so the line fits into its buffer.
    fn accepted(&mut self) {
        let line = format!("OK {}\n", self.host_port);
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if rustix::net::send(&self.socket, line.as_bytes(), flags) == Ok(line.len()) {
            self.phase = Phase::Open;
        } else {
            self.reset_due = true;
        }
    }

    fn receive_data(&mut self, data: &Buffers<'_>) {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let held = (self.to_host.received - self.to_host.forwarded).0;
        if self.to_host.ended || held.saturating_add(length) > BUFFER_BYTES {
            // The guest sends after its end, or more than it has credit for.
            self.reset_due = true;
            return;
        }
        self.to_host.received += length;
        let mut rest = data.clone();
        while !rest.is_empty() && self.to_host.backlog.is_empty() && self.writable && !self.to_host.refused {
            match sys::send(self.socket.as_fd(), rest.slices()) {
                Ok(sent) => {
                    self.to_host.forwarded += u32::try_from(sent).unwrap_or_default();
                    let Some((_, after)) = rest.split_at(sent) else {
                        break;
                    };
                    rest = after;
                }
                Err(error) => self.send_failed(&error),
            }
        }
        if self.to_host.refused {
            self.to_host.forwarded = self.to_host.received;
        } else if !rest.is_empty() {
            let mut bytes = vec![0; rest.len()];
            rest.copy_to(&mut bytes);
            self.to_host.backlog.extend(bytes);
        }
    }

    fn receive_shutdown(&mut self, flags: u32) {
        if flags & NO_MORE_RECEIVING != 0 {
            self.to_guest.ended = true;
            // It fails only if the client has gone, which its hang-up tells as well.
            let _ = self.socket.shutdown(Shutdown::Read);
        }
        if flags & NO_MORE_SENDING != 0 {
            self.to_host.ended = true;
        }
        if flags & NO_MORE_RECEIVING != 0 && flags & NO_MORE_SENDING != 0 {
            // Both directions at once: the guest waits for a reset to forget the connection (section 5.10.6.5).
            self.shutdown_due |= NO_MORE_SENDING | NO_MORE_RECEIVING;
            self.shutdown_sent = self.shutdown_due;
        }
        self.flush();
    }

    /// Writes the backlog as far as the host takes it, then the end, if the guest has come to it.
    fn flush(&mut self) {
        while self.writable && !self.to_host.backlog.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.socket, self.to_host.backlog.as_slices().0, flags) {
                Ok(sent) => {
                    self.to_host.backlog.drain(..sent);
                    self.to_host.forwarded += u32::try_from(sent).unwrap_or_default();
                }
                Err(error) => self.send_failed(&error.into()),
            }
        }
        if !self.to_host.backlog.is_empty() {
            return;
        }
        self.to_host.backlog = VecDeque::new();
        if self.phase == Phase::Draining {
            self.phase = Phase::Closed;
        } else if self.to_host.ended {
            if !std::mem::replace(&mut self.to_host.end_passed_on, true) {
                // It fails only if the client has gone, which its hang-up tells as well.
                let _ = self.socket.shutdown(Shutdown::Write);
            }
            let both = NO_MORE_SENDING | NO_MORE_RECEIVING;
            self.reset_due |= self.to_guest.ended && self.shutdown_sent & both == both;
        }
    }

    fn send_failed(&mut self, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.writable = false,
            io::ErrorKind::Interrupted => {}
            _ => self.host_refuses(),
        }
    }

    /// The host's program has closed its side: nothing reaches it any more.
    fn host_refuses(&mut self) {
        self.to_host.refused = true;
        self.to_host.backlog.clear();
        self.to_host.forwarded = self.to_host.received;
        self.shutdown_due |= NO_MORE_RECEIVING;
    }

    /// Gives up before the connection is open. The client hears at once, even if the guest takes no packets.
    fn end(&mut self, tell_guest: bool) {
        if self.reset_due {
            // Shutting down wakes whoever watches the socket, us included, so it is done once.
            return;
        }
        let _ = self.socket.shutdown(Shutdown::Both);
        if tell_guest {
            self.reset_due = true;
        } else {
            self.phase = Phase::Closed;
        }
    }

    /// Reads the client's first line, and nothing behind it.
    fn read_greeting(&mut self) {
        let mut line = [0; MAX_LINE_BYTES];
        let peeked = rustix::net::recv(&self.socket, &mut line, RecvFlags::PEEK | RecvFlags::DONTWAIT);
        let available = match peeked {
            Ok((count, _)) if count > 0 => line.get(..count).unwrap_or_default(),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
            _ => return self.end(false),
        };
        let Some(end) = available.iter().position(|byte| *byte == b'\n') else {
            if available.len() == MAX_LINE_BYTES {
                self.end(false);
            }
            return;
        };
        match parse_greeting(available.get(..end).unwrap_or_default()) {
            Some(port) => {
                let mut taken = [0; MAX_LINE_BYTES];
                // These bytes are there: they were just looked at.
                let taken = taken.get_mut(..=end).unwrap_or_default();
                let _ = rustix::net::recv(&self.socket, taken, RecvFlags::DONTWAIT);
                self.guest_port = port;
                self.phase = Phase::Requested { sent: false };
            }
            None => self.end(false),
        }
    }
}

/// The port of `CONNECT <port>`.
fn parse_greeting(line: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(line).ok()?.strip_prefix("CONNECT ")?;
    digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| digits.parse().ok())?
}

impl AsFd for Connection {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
