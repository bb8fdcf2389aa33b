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

use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendFlags};
use serde::{Deserialize, Serialize};

use super::policy::Allow;
use crate::endpoint::egress_set;
use crate::netfilter::{ACKNOWLEDGE, Attributes, CREATE, NESTED, Netfilter, REQUEST, attribute, messages};

/// Addresses of one request, so that it fits a packet of the socket.
const MOST_ADDRESSES: usize = 64;

/// Bytes of a request: an address with its time takes less than a hundred.
const MOST_REQUEST: usize = 16 << 10;

/// What is sent where an element was added.
const DONE: &[u8] = b"done";

// include/uapi/linux/netfilter/nf_tables.h.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_ELEMENTS: u16 = SUBSYSTEM << 8 | 12;
const GET_ELEMENTS: u16 = SUBSYSTEM << 8 | 13;
const DELETE_ELEMENTS: u16 = SUBSYSTEM << 8 | 14;
const INET: u8 = 1;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_TIMEOUT: u16 = 4;
const ELEMENT_EXPIRATION: u16 = 5;
const DATA_VALUE: u16 = 1;
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
pub fn serve(socket: impl AsFd, mut kernel: Kernel) -> io::Result<()> {
    let mut buffer = vec![0; MOST_REQUEST];
    loop {
        let (length, _) = retry_on_intr(|| rustix::net::recv(&socket, &mut *buffer, RecvFlags::empty()))?;
        if length == 0 {
            return Ok(());
        }
        let done = serde_json::from_slice(buffer.get(..length).unwrap_or_default())
            .map_err(io::Error::from)
            .and_then(|request: Request| kernel.add(&request));
        let answer = match done {
            Ok(()) => DONE.to_vec(),
            Err(error) => error.to_string().into_bytes(),
        };
        retry_on_intr(|| rustix::net::send(&socket, &answer, SendFlags::NOSIGNAL))?;
    }
}

/// The kernel's sets of one table.
#[derive(Debug)]
pub struct Kernel {
    netfilter: Netfilter,
    table: String,
}

impl Kernel {
    /// Opens a socket to it, in the namespace of the host.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn open(table: String) -> io::Result<Self> {
        let netfilter = Netfilter::open()?;
        Ok(Self { netfilter, table })
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
            let set = egress_set(&request.interface, is_ipv6);
            let mut elements = Vec::new();
            for (address, seconds) in of_kind.copied() {
                // Another name's answer may have opened it for longer.
                if self.remaining(&set, address)? < seconds.saturating_mul(1000) {
                    elements.push((address, seconds));
                }
            }
            if !elements.is_empty() {
                self.add_elements(&set, &elements)?;
            }
        }
        Ok(())
    }

    /// For how many milliseconds an address is in a set as yet.
    fn remaining(&mut self, set: &str, address: IpAddr) -> io::Result<u64> {
        let element = elements_of(&self.table, set, &[(address, 0)], false)?;
        let mut request = Vec::new();
        let sequence = self
            .netfilter
            .append(&mut request, GET_ELEMENTS, REQUEST, INET, 0, &element)?;
        self.netfilter.send(&request)?;
        loop {
            let datagram = self.netfilter.receive()?;
            let answer = messages(&datagram).find(|message| message.sequence == sequence);
            if let Some(answer) = answer {
                // An error says that it is not there.
                let is_there = answer.outcome().is_none();
                return Ok(if is_there {
                    expiration(answer.attributes())
                } else {
                    0
                });
            }
        }
    }

    /// Adds elements, or makes the time of those that are there begin anew: in one transaction each is added, which is
    /// nothing where it is there, removed, and added with its time. Older kernels leave the time alone otherwise.
    fn add_elements(&mut self, set: &str, elements: &[(IpAddr, u64)]) -> io::Result<()> {
        let list = |with_time| elements_of(&self.table, set, elements, with_time);
        let netfilter = &mut self.netfilter;
        let mut batch = Vec::new();
        netfilter.append(&mut batch, BATCH_BEGIN, REQUEST, 0, SUBSYSTEM, &[])?;
        netfilter.append(&mut batch, NEW_ELEMENTS, REQUEST | CREATE, INET, 0, &list(true)?)?;
        netfilter.append(&mut batch, DELETE_ELEMENTS, REQUEST, INET, 0, &list(false)?)?;
        let flags = REQUEST | CREATE | ACKNOWLEDGE;
        let last = netfilter.append(&mut batch, NEW_ELEMENTS, flags, INET, 0, &list(true)?)?;
        netfilter.append(&mut batch, BATCH_END, REQUEST, 0, SUBSYSTEM, &[])?;
        netfilter.send(&batch)?;
        loop {
            if let Some(outcome) = outcome(&netfilter.receive()?, last) {
                return outcome;
            }
        }
    }
}

/// What a datagram says of the batch with this last request; `None` where it says nothing of it.
fn outcome(answers: &[u8], last: u32) -> Option<io::Result<()>> {
    // Errors of an earlier batch are its own; that a request before the last one was done says nothing.
    let mut of_batch = messages(answers).filter(|message| last.wrapping_sub(message.sequence) < 4);
    of_batch.find_map(|message| {
        let outcome = message.outcome()?;
        (outcome.is_err() || message.sequence == last).then_some(outcome)
    })
}

/// When the element is over that an answer tells of, in milliseconds.
fn expiration(answer: Attributes<'_>) -> u64 {
    let element = answer.find(LIST_ELEMENTS).map(Attributes);
    let element = element.and_then(|list| list.find(LIST_ELEMENT)).map(Attributes);
    let time = element.and_then(|element| element.find(ELEMENT_EXPIRATION));
    time.and_then(|time| time.first_chunk())
        .map_or(0, |time| u64::from_be_bytes(*time))
}

/// For the harness: reads a datagram to its end.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read(datagram: &[u8]) {
    for message in messages(datagram) {
        let _ = expiration(message.attributes());
    }
    if let Some(Err(error)) = outcome(datagram, 4) {
        assert!(error.raw_os_error() != Some(0));
    }
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
