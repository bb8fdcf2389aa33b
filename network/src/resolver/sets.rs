//! The second process: it puts addresses into the sets of nftables that policies' rules allow.
//!
//! The resolver reads what guests and the world send, so it has no capability. This process has the one that changes the
//! host's network, and does one thing with it: for a line of JSON on its socket it adds elements to a set of rvm's own
//! table. A resolver that was taken over can open the way to an address for a member with a policy, and nothing else.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendFlags};
use serde::{Deserialize, Serialize};

use super::policy::Allow;
use crate::endpoint::egress_set;

/// Addresses of one request, so that it fits a packet of the socket.
const MOST_ADDRESSES: usize = 64;

/// Bytes of a request: an address with its time takes less than a hundred.
const MOST_REQUEST: usize = 16 << 10;

/// What is sent where an element was added.
const DONE: &[u8] = b"done";

// include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_ELEMENTS: u16 = SUBSYSTEM << 8 | 12;
const DELETE_ELEMENTS: u16 = SUBSYSTEM << 8 | 14;
const INET: u8 = 1;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_TIMEOUT: u16 = 4;
const DATA_VALUE: u16 = 1;
/// What is in an attribute are attributes (include/uapi/linux/netlink.h).
const NESTED: u16 = 1 << 15;
// Flags of requests.
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const CREATE: u16 = 0x400;
/// The type of an answer that is an error, or none.
const ERROR: u16 = 2;
/// Length of a netlink header.
const HEADER: usize = 16;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    interface: String,
    /// With the seconds that each is allowed.
    addresses: Vec<(IpAddr, u64)>,
}

/// The resolver's end of the socket.
#[derive(Debug)]
pub struct Sets(Mutex<OwnedFd>);

impl Sets {
    /// Of a connected socket of packets.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self(Mutex::new(socket))
    }

    fn request(&self, request: &Request) -> io::Result<()> {
        let message = serde_json::to_vec(request)?;
        let mut answer = [0; 512];
        // One at a time, so that an answer is to what was asked last.
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        retry_on_intr(|| rustix::net::send(&*socket, &message, SendFlags::NOSIGNAL))?;
        let (length, _) = retry_on_intr(|| rustix::net::recv(&*socket, &mut answer, RecvFlags::empty()))?;
        match answer.get(..length) {
            Some(DONE) => Ok(()),
            Some([]) | None => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(error) => Err(io::Error::other(String::from_utf8_lossy(error).into_owned())),
        }
    }
}

impl Allow for Sets {
    fn allow(&self, interface: &str, addresses: &[(IpAddr, Duration)]) -> io::Result<()> {
        addresses.chunks(MOST_ADDRESSES).try_for_each(|addresses| {
            let addresses = addresses.iter().map(|(address, time)| (*address, time.as_secs()));
            let done = self.request(&Request {
                interface: interface.to_owned(),
                addresses: addresses.collect(),
            });
            if let Err(error) = &done
                && matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe
                )
            {
                // Both are started anew by whoever keeps this one.
                eprintln!("rvm-resolver: the process that changes sets is gone");
                std::process::exit(1);
            }
            done
        })
    }
}

/// Serves the other end until it is closed.
///
/// # Errors
/// Those of the sockets.
pub fn serve(socket: impl AsFd, mut netfilter: Netfilter) -> io::Result<()> {
    let mut buffer = vec![0; MOST_REQUEST];
    loop {
        let (length, _) = retry_on_intr(|| rustix::net::recv(&socket, &mut *buffer, RecvFlags::empty()))?;
        if length == 0 {
            return Ok(());
        }
        let done = serde_json::from_slice(buffer.get(..length).unwrap_or_default())
            .map_err(io::Error::from)
            .and_then(|request: Request| netfilter.add(&request));
        let answer = match done {
            Ok(()) => DONE.to_vec(),
            Err(error) => error.to_string().into_bytes(),
        };
        retry_on_intr(|| rustix::net::send(&socket, &answer, SendFlags::NOSIGNAL))?;
    }
}

/// A socket to the kernel's netfilter.
#[derive(Debug)]
pub struct Netfilter {
    socket: Socket,
    table: String,
    sequence: u32,
}

impl Netfilter {
    /// Opens one, in the namespace of the host, for the sets of a table.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn open(table: String) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            table,
            sequence: 0,
        })
    }

    fn add(&mut self, request: &Request) -> io::Result<()> {
        let is_name = |name: &str| {
            (1..=15).contains(&name.len())
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        if !is_name(&request.interface) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "no name of an interface",
            ));
        }
        for is_ipv6 in [false, true] {
            let of_kind = request
                .addresses
                .iter()
                .filter(|(address, _)| address.is_ipv6() == is_ipv6);
            let elements: Vec<_> = of_kind.copied().collect();
            if !elements.is_empty() {
                self.add_elements(&egress_set(&request.interface, is_ipv6), &elements)?;
            }
        }
        Ok(())
    }

    /// Adds elements, or makes the time of those that are there begin anew: in one transaction each is added, which is
    /// nothing where it is there, removed, and added with its time. Older kernels leave the time alone otherwise.
    fn add_elements(&mut self, set: &str, elements: &[(IpAddr, u64)]) -> io::Result<()> {
        let table = self.table.clone();
        let list = |with_time| elements_of(&table, set, elements, with_time);
        let mut batch = Vec::new();
        self.append(&mut batch, BATCH_BEGIN, REQUEST, 0, SUBSYSTEM, &[])?;
        self.append(&mut batch, NEW_ELEMENTS, REQUEST | CREATE, INET, 0, &list(true)?)?;
        self.append(&mut batch, DELETE_ELEMENTS, REQUEST, INET, 0, &list(false)?)?;
        let flags = REQUEST | CREATE | ACKNOWLEDGE;
        self.append(&mut batch, NEW_ELEMENTS, flags, INET, 0, &list(true)?)?;
        let last = self.sequence;
        self.append(&mut batch, BATCH_END, REQUEST, 0, SUBSYSTEM, &[])?;
        self.socket.send(&batch, 0)?;
        self.wait_for(last)
    }

    fn append(
        &mut self,
        batch: &mut Vec<u8>,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        attributes: &[u8],
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = HEADER + 4 + attributes.len();
        let length = u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        batch.extend(length.to_ne_bytes());
        batch.extend(kind.to_ne_bytes());
        batch.extend(flags.to_ne_bytes());
        batch.extend(self.sequence.to_ne_bytes());
        batch.extend([0; 4]);
        batch.extend([family, 0]);
        batch.extend(resource.to_be_bytes());
        batch.extend(attributes);
        Ok(())
    }

    /// Waits for the answer to a request, or for an error before it.
    fn wait_for(&mut self, last: u32) -> io::Result<()> {
        loop {
            let (answers, _) = self.socket.recv_from_full()?;
            if let Some(outcome) = outcome(&answers, last) {
                return outcome;
            }
        }
    }
}

/// What a datagram says of the batch with this last request; `None` where it says nothing of it.
fn outcome(answers: &[u8], last: u32) -> Option<io::Result<()>> {
    let mut rest = answers;
    while let Some((kind, sequence, code)) = head(rest) {
        // Errors of an earlier batch are its own.
        if kind == ERROR && last.wrapping_sub(sequence) < 4 {
            if code != 0 {
                return Some(Err(io::Error::from_raw_os_error(code.saturating_neg())));
            }
            if sequence == last {
                return Some(Ok(()));
            }
        }
        rest = next(rest);
    }
    None
}

/// For the harness: reads a datagram to its end.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read(datagram: &[u8]) {
    if let Some(Err(error)) = outcome(datagram, 4) {
        assert!(error.raw_os_error() != Some(0));
    }
}

/// Type, sequence number and code of an error.
fn head(message: &[u8]) -> Option<(u16, u32, i32)> {
    let word = |at: usize| message.get(at..)?.first_chunk::<4>().copied();
    let [low, high, ..] = word(4)?;
    let code = word(HEADER).map_or(0, i32::from_ne_bytes);
    Some((
        u16::from_ne_bytes([low, high]),
        u32::from_ne_bytes(word(8)?),
        code,
    ))
}

/// What follows a message; they start at multiples of four.
fn next(message: &[u8]) -> &[u8] {
    let length = message
        .first_chunk::<4>()
        .map_or(0, |bytes| u32::from_ne_bytes(*bytes));
    let length = usize::try_from(length).unwrap_or(usize::MAX).max(HEADER);
    message.get(length.saturating_add(3) & !3..).unwrap_or_default()
}

fn elements_of(table: &str, set: &str, elements: &[(IpAddr, u64)], with_time: bool) -> io::Result<Vec<u8>> {
    let mut list = Vec::new();
    for (address, seconds) in elements {
        let bytes = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let mut element = attribute(ELEMENT_KEY | NESTED, &attribute(DATA_VALUE, &bytes)?)?;
        if with_time {
            let milliseconds = seconds.saturating_mul(1000);
            element.extend(attribute(ELEMENT_TIMEOUT, &milliseconds.to_be_bytes())?);
        }
        list.extend(attribute(LIST_ELEMENT | NESTED, &element)?);
    }
    let mut attributes = attribute(LIST_TABLE, format!("{table}\0").as_bytes())?;
    attributes.extend(attribute(LIST_SET, format!("{set}\0").as_bytes())?);
    attributes.extend(attribute(LIST_ELEMENTS | NESTED, &list)?);
    Ok(attributes)
}

/// An attribute: length, type, value, and nothing up to a multiple of four.
fn attribute(kind: u16, value: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(4 + value.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut attribute = Vec::with_capacity(usize::from(length) + 3);
    attribute.extend(length.to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    Ok(attribute)
}
