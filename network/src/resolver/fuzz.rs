//! Harnesses: a member's question with a server's answer to it, and answers of the kernel.

use std::net::IpAddr;

use simple_dns::{Packet, RCODE};

use super::message::{Error, Query, is_truncated, refusal, set_id};
use super::sets;
use crate::conntrack;
use crate::endpoint::Egress;

/// Addresses of both kinds for one answer: more than fits into a plain datagram.
const MANY: usize = 30;

/// The first two bytes say how long the question is; what follows it is a server's answer.
pub(crate) fn message(data: &[u8]) {
    let Some((length, rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let (question, answer) = rest.split_at(length);
    match Query::parse(question) {
        Ok(query) => ask(&query, question, answer),
        Err(Error::NoQuestion) => {}
        Err(Error::Refused(code)) => {
            let refusal = refusal(question, code).unwrap();
            // It is an answer, so that nobody answers it in turn.
            assert!(matches!(Query::parse(&refusal), Err(Error::NoQuestion)));
            assert_eq!(refusal.first_chunk::<2>(), question.first_chunk::<2>());
        }
    }
}

fn ask(query: &Query, question: &[u8], answer: &[u8]) {
    let id = u16::from_be_bytes(*question.first_chunk().unwrap());
    let most = query.datagram();
    assert!((512..=4096).contains(&most));
    if let Some(name) = query.name() {
        assert!(
            !name
                .bytes()
                .any(|byte| byte.is_ascii_uppercase() || !byte.is_ascii_graphic())
        );
        let egress: Egress = "allow=example.org,*.example.net".parse().unwrap();
        let is_one = name == "example.org" || name.ends_with(".example.net");
        assert_eq!(egress.allows_name(name), is_one);
    }
    let addresses: Vec<IpAddr> = (0..MANY)
        .flat_map(|_| [[10, 0, 0, 1].into(), IpAddr::from([0xfd; 16])])
        .collect();
    for (reply, most) in [
        (query.answer(RCODE::NameError), usize::MAX),
        (query.addresses(&addresses, most), most),
        (
            query.addresses(&addresses, usize::from(u16::MAX)),
            usize::from(u16::MAX),
        ),
        (query.pointer("web.app", most), most),
        (query.truncated(), usize::MAX),
    ] {
        let reply = reply.unwrap();
        assert!(reply.len() <= most);
        assert!(Packet::parse(&reply).is_ok());
        assert!(query.is_answered_by(&reply, id), "its own answer");
        assert!(!query.is_answered_by(&reply, id ^ 1), "another's answer");
        assert!(query.told(&reply).unwrap().len() <= addresses.len());
    }
    if let Some(address) = query.reverse() {
        // A name of an address is read as no other one.
        assert!(
            query.kind() == 12
                && query
                    .name()
                    .is_some_and(|name| name.len() >= address.to_string().len().min(12))
        );
    }
    // What a server sends is passed on as it is, under the member's number.
    let mut passed = answer.to_vec();
    set_id(&mut passed, id);
    assert_eq!(passed.get(2..), answer.get(2..));
    let _ = (query.is_answered_by(&passed, id), is_truncated(&passed));
    if let Ok(told) = query.told(&passed) {
        // The shortest record has eleven bytes.
        assert!(told.len() <= answer.len() / 11);
    }
}

/// What is read of answers to changes of sets, of lists of connections, and of those of rtnetlink.
pub(crate) fn answer_of_the_kernel(data: &[u8]) {
    sets::read(data);
    conntrack::read(data);
    rvm_netlink::fuzz::answer(data);
}
