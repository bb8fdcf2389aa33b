//! Requests to the kernel's netfilter over netlink, as bytes: headers, attributes, and what answers are made of
//! (include/uapi/linux/netlink.h, netfilter/nfnetlink.h).

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

/// Flags of requests.
pub(crate) const REQUEST: u16 = 1;
pub(crate) const ACKNOWLEDGE: u16 = 4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const CREATE: u16 = 0x400;

/// What is in an attribute are attributes.
pub(crate) const NESTED: u16 = 1 << 15;

/// Types of answers: an error, or none; and the end of a list.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Length of a netlink header, and of nfnetlink's own behind it.
const HEADER: usize = 16;
const OWN_HEADER: usize = 4;

/// A socket to the netfilter of the namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Netfilter {
    socket: Socket,
    sequence: u32,
}

impl Netfilter {
    /// Opens one.
    ///
    /// # Errors
    /// Those of socket(2).
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Appends a request to `batch`; its number.
    pub(crate) fn append(
        &mut self,
        batch: &mut Vec<u8>,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        attributes: &[u8],
    ) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = HEADER + OWN_HEADER + attributes.len();
        let length = u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        batch.extend(length.to_ne_bytes());
        batch.extend(kind.to_ne_bytes());
        batch.extend(flags.to_ne_bytes());
        batch.extend(self.sequence.to_ne_bytes());
        batch.extend([0; 4]);
        batch.extend([family, 0]);
        batch.extend(resource.to_be_bytes());
        batch.extend(attributes);
        Ok(self.sequence)
    }

    /// Sends requests.
    pub(crate) fn send(&self, batch: &[u8]) -> io::Result<()> {
        self.socket.send(batch, 0).map(drop)
    }

    /// Waits for a datagram with answers.
    pub(crate) fn receive(&self) -> io::Result<Vec<u8>> {
        Ok(self.socket.recv_from_full()?.0)
    }
}

/// An attribute: length, type, value, and nothing up to a multiple of four.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(4 + value.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut attribute = Vec::with_capacity(usize::from(length) + 3);
    attribute.extend(length.to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    Ok(attribute)
}

/// An answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    kind: u16,
    /// The number of the request.
    pub(crate) sequence: u32,
    /// What is behind the netlink header.
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Whether it says how a request has ended, and how.
    pub(crate) fn outcome(&self) -> Option<io::Result<()>> {
        if ![ERROR, DONE].contains(&self.kind) {
            return None;
        }
        // A list may end without a code.
        let code = self
            .body
            .first_chunk()
            .map_or(0, |code| i32::from_ne_bytes(*code));
        Some(match code {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        })
    }

    /// The attributes of one that tells something.
    pub(crate) fn attributes(&self) -> Attributes<'a> {
        Attributes(self.body.get(OWN_HEADER..).unwrap_or_default())
    }
}

/// The messages of a datagram; they start at multiples of four.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<HEADER>()?;
        let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]);
        let length = usize::try_from(length).unwrap_or(usize::MAX).max(HEADER);
        let message = rest.get(..length).unwrap_or(rest);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            body: message.get(HEADER..)?,
        })
    })
}

/// Attributes one after the other: the type of each without its flags, and its value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The value of the first of a type.
    pub(crate) fn find(mut self, wanted: u16) -> Option<&'a [u8]> {
        self.find_map(|(kind, value)| (kind == wanted).then_some(value))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        const FLAGS: u16 = NESTED | 1 << 14;
        let [l0, l1, k0, k1] = *self.0.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & !FLAGS, value))
    }
}
