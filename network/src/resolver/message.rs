//! A question as it came from a member, and the answers that are made here.
//!
//! Messages are parsed and written by `simple-dns`. What is asked of a server is the member's own message with another
//! ID, and what it answers goes back as it is: neither is taken apart and put together, so nothing of EDNS is lost.

use std::net::IpAddr;

use simple_dns::rdata::{A, AAAA, OPT, PTR, RData};
use simple_dns::{
    CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, Question, RCODE, ResourceRecord, SimpleDnsError,
};

/// The type of an IPv4 address (RFC 1035, section 3.2.2).
pub const A_TYPE: u16 = 1;
/// The type of a name that an address has.
pub const PTR_TYPE: u16 = 12;
/// The type of an IPv6 address (RFC 3596).
pub const AAAA_TYPE: u16 = 28;
/// A question for all types.
pub const ANY_TYPE: u16 = 255;

/// Length of a header.
const HEADER: usize = 12;

/// What a header and a question take at most: a name has 255 bytes.
const QUESTION: usize = HEADER + 255 + 4;

/// Records of any kind in a question: the one of EDNS, and a signature.
const MOST_RECORDS: usize = 2;

/// What fits into a datagram without EDNS (RFC 1035, section 4.2.1).
const PLAIN_DATAGRAM: u16 = 512;

/// What a datagram takes at most, whatever the member says: more is told by TCP.
const MOST_DATAGRAM: u16 = 4096;

/// What this resolver takes in a datagram: what passes any network in one piece.
const OWN_DATAGRAM: u16 = 1232;

/// How long a member's address may be kept, in seconds. It may be another's soon.
const TTL: u32 = 5;

/// Why a message is not a question that can be answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is shorter than a header, or it is an answer. Answering it could go on for ever.
    #[error("not a question")]
    NoQuestion,
    /// It is answered with this code.
    #[error("a question that is answered with {0:?}")]
    Refused(RCODE),
}

/// A question.
#[derive(Debug, Clone)]
pub struct Query {
    id: u16,
    question: Question<'static>,
    recursion_desired: bool,
    /// Bytes of a datagram that the member takes.
    datagram: u16,
    edns: bool,
    /// In lower case, without a dot at the end; `None` where a label has other characters than a name's.
    name: Option<String>,
}

impl Query {
    /// Parses a message.
    ///
    /// # Errors
    /// [`Error`].
    pub fn parse(message: &[u8]) -> Result<Self, Error> {
        let [questions, rest @ ..] = counts(message).ok_or(Error::NoQuestion)?;
        if message.get(2).is_none_or(|flags| flags & 0x80 != 0) {
            return Err(Error::NoQuestion);
        }
        // Before anything is allocated by those counts.
        let [answers, servers, additional] = rest;
        if questions != 1 || answers != 0 || servers != 0 || additional > MOST_RECORDS {
            return Err(Error::Refused(RCODE::FormatError));
        }
        let packet = Packet::parse(message).map_err(|_| Error::Refused(RCODE::FormatError))?;
        if packet.opcode() != OPCODE::StandardQuery {
            return Err(Error::Refused(RCODE::NotImplemented));
        }
        let question = packet.questions.first().ok_or(Error::NoQuestion)?;
        if !matches!(question.qclass, QCLASS::CLASS(CLASS::IN)) {
            return Err(Error::Refused(RCODE::NotImplemented));
        }
        let datagram = packet.opt().map_or(PLAIN_DATAGRAM, |opt| opt.udp_packet_size);
        Ok(Self {
            id: packet.id(),
            recursion_desired: packet.has_flags(PacketFlag::RECURSION_DESIRED),
            datagram: datagram.clamp(PLAIN_DATAGRAM, MOST_DATAGRAM),
            edns: packet.opt().is_some(),
            name: text(&question.qname),
            question: question.clone().into_owned(),
        })
    }

    /// The name, in lower case; `None` where it is none that a host can have.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The type's number.
    #[must_use]
    pub fn kind(&self) -> u16 {
        self.question.qtype.into()
    }

    /// The address that is asked about, in a question of type PTR.
    #[must_use]
    pub fn reverse(&self) -> Option<IpAddr> {
        let name = (self.kind() == PTR_TYPE).then(|| self.name()).flatten()?;
        reverse(name)
    }

    /// Bytes that a datagram with the answer may have.
    #[must_use]
    pub fn datagram(&self) -> usize {
        usize::from(self.datagram)
    }

    /// An answer without records.
    ///
    /// # Errors
    /// Those of `simple-dns`, which has parsed the question and can write it.
    pub fn answer(&self, code: RCODE) -> Result<Vec<u8>, SimpleDnsError> {
        self.reply(code).build_bytes_vec_compressed()
    }

    /// An answer with the addresses that fit the question, or without any where none does. One that is longer than
    /// `most` bytes says that it was truncated.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub fn addresses(&self, addresses: &[IpAddr], most: usize) -> Result<Vec<u8>, SimpleDnsError> {
        let kind = self.kind();
        let data = addresses.iter().filter_map(|address| match address {
            IpAddr::V4(address) if kind == A_TYPE || kind == ANY_TYPE => Some(RData::A(A {
                address: u32::from(*address),
            })),
            IpAddr::V6(address) if kind == AAAA_TYPE || kind == ANY_TYPE => Some(RData::AAAA(AAAA {
                address: u128::from(*address),
            })),
            _ => None,
        });
        self.records(data, most)
    }

    /// An answer with a name.
    ///
    /// # Errors
    /// As [`Self::answer`]; a name that is none.
    pub fn pointer(&self, name: &str, most: usize) -> Result<Vec<u8>, SimpleDnsError> {
        self.records(std::iter::once(RData::PTR(PTR(Name::new(name)?))), most)
    }

    /// An answer that says that the whole of it is to be had by TCP.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub fn truncated(&self) -> Result<Vec<u8>, SimpleDnsError> {
        let mut reply = self.reply(RCODE::NoError);
        reply.set_flags(PacketFlag::TRUNCATION);
        reply.build_bytes_vec_compressed()
    }

    fn records<'a>(
        &'a self,
        data: impl Iterator<Item = RData<'a>>,
        most: usize,
    ) -> Result<Vec<u8>, SimpleDnsError> {
        let mut reply = self.reply(RCODE::NoError);
        let record = |data| ResourceRecord::new(self.question.qname.clone(), CLASS::IN, TTL, data);
        reply.answers = data.map(record).collect();
        let message = reply.build_bytes_vec_compressed()?;
        if message.len() > most {
            return self.truncated();
        }
        Ok(message)
    }

    fn reply(&self, code: RCODE) -> Packet<'_> {
        let mut reply = Packet::new_reply(self.id);
        reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
        if self.recursion_desired {
            reply.set_flags(PacketFlag::RECURSION_DESIRED);
        }
        *reply.rcode_mut() = code;
        reply.questions.push(self.question.clone());
        if self.edns {
            *reply.opt_mut() = Some(OPT {
                opt_codes: Vec::new(),
                udp_packet_size: OWN_DATAGRAM,
                version: 0,
            });
        }
        reply
    }

    /// Whether a message is an answer to this question, under the ID that it was asked with.
    #[must_use]
    pub fn is_answered_by(&self, message: &[u8], id: u16) -> bool {
        let is_answer = message.get(2).is_some_and(|flags| flags & 0x80 != 0);
        let has_id = message.first_chunk::<2>() == Some(&id.to_be_bytes());
        if !is_answer || !has_id || counts(message).is_none_or(|[questions, ..]| questions != 1) {
            return false;
        }
        // Only the question: what follows is the member's to understand.
        let mut head = message.get(..QUESTION).unwrap_or(message).to_vec();
        if let Some(counts) = head.get_mut(6..HEADER) {
            counts.fill(0);
        }
        let Ok(packet) = Packet::parse(&head) else {
            return false;
        };
        packet.questions.first().is_some_and(|question| {
            question.qname == self.question.qname
                && question.qtype == self.question.qtype
                && question.qclass == self.question.qclass
        })
    }

    /// The addresses that an answer to this question tells, and for how many seconds: those of its name, and of the names
    /// that it says are meant by that.
    ///
    /// # Errors
    /// An answer that cannot be parsed.
    pub fn told(&self, answer: &[u8]) -> Result<Vec<(IpAddr, u32)>, SimpleDnsError> {
        let records = counts(answer).map_or(0, |counts| counts.iter().sum());
        // The shortest record has eleven bytes. Before anything is allocated by those counts.
        if records > answer.len() / 5 {
            return Err(SimpleDnsError::InvalidDnsPacket);
        }
        let packet = Packet::parse(answer)?;
        let mut name = &self.question.qname;
        let mut told = Vec::new();
        // Each turn follows a record of its own, so no more turns than records.
        for _ in 0..=packet.answers.len() {
            let mut next = None;
            for record in packet.answers.iter().filter(|record| record.name == *name) {
                match &record.rdata {
                    RData::A(a) => told.push((IpAddr::V4(a.address.into()), record.ttl)),
                    RData::AAAA(aaaa) => told.push((IpAddr::V6(aaaa.address.into()), record.ttl)),
                    RData::CNAME(cname) => next = Some(&cname.0),
                    _ => {}
                }
            }
            match next {
                Some(next) if told.is_empty() => name = next,
                _ => break,
            }
        }
        Ok(told)
    }
}

/// The answer to a message whose question could not be parsed: its header alone.
#[must_use]
pub fn refusal(message: &[u8], code: RCODE) -> Option<Vec<u8>> {
    let id = u16::from_be_bytes(*message.first_chunk::<2>()?);
    let mut reply = Packet::new_reply(id);
    *reply.rcode_mut() = code;
    reply.build_bytes_vec().ok()
}

/// The code of an answer.
#[must_use]
pub fn code_of(answer: &[u8]) -> Option<RCODE> {
    answer.get(3).map(|flags| RCODE::from(u16::from(flags & 0x0f)))
}

/// Whether an answer was truncated.
#[must_use]
pub fn is_truncated(answer: &[u8]) -> bool {
    answer.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// Gives a message another ID.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(place) = message.first_chunk_mut::<2>() {
        *place = id.to_be_bytes();
    }
}

/// Questions, answers, servers and additional records, by the header.
fn counts(message: &[u8]) -> Option<[usize; 4]> {
    let bytes: &[u8; HEADER] = message.first_chunk()?;
    let [.., a, b, c, d, e, f, g, h] = *bytes;
    Some([[a, b], [c, d], [e, f], [g, h]].map(|count| usize::from(u16::from_be_bytes(count))))
}

/// A name as text. A label with a dot in it would read like two.
fn text(name: &Name<'_>) -> Option<String> {
    let mut text = String::new();
    for label in name.as_bytes() {
        if !label.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'.') {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    Some(text)
}

/// The address of a name below `in-addr.arpa` or `ip6.arpa` (RFC 1035, section 3.5; RFC 3596, section 2.5).
fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let octets = labels.split('.').rev().map(|label| label.parse().ok());
        let octets: [u8; 4] = octets.collect::<Option<Vec<u8>>>()?.try_into().ok()?;
        return Some(IpAddr::from(octets));
    }
    let labels = name.strip_suffix(".ip6.arpa")?;
    let digits = labels.split('.').rev().map(|label| {
        let digit = label.chars().next().filter(|_| label.len() == 1)?;
        digit.to_digit(16)
    });
    let digits = digits.collect::<Option<Vec<u32>>>()?;
    let value = digits
        .iter()
        .fold(0_u128, |value, digit| value << 4 | u128::from(*digit));
    (digits.len() == 32).then(|| IpAddr::V6(value.into()))
}
