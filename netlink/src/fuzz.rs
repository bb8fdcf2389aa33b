//! Entry point for fuzzing: what comes over a netlink socket, which is the kernel's, but is made of what others have named and
//! addressed. `tests/fuzz` runs it under libFuzzer, by the list of rvm-network.

use super::{RouteNetlinkMessage, destination, link, messages, own_address};
use netlink_packet_core::NetlinkPayload;

/// Reads a datagram as answers to the request with the number 1.
///
/// # Panics
/// If an answer is taken for one to this request that is none, or has a prefix that no address has.
pub fn answer(datagram: &[u8]) {
    for message in messages(datagram, 1).unwrap_or_default() {
        assert_eq!(message.header.sequence_number, 1);
        let NetlinkPayload::InnerMessage(inner) = message.payload else {
            continue;
        };
        match inner {
            RouteNetlinkMessage::NewLink(message) => {
                assert!(link(message).is_none_or(|link| !link.name.is_empty()));
            }
            RouteNetlinkMessage::NewAddress(message) => drop(own_address(&message)),
            RouteNetlinkMessage::NewRoute(message) => drop(destination(&message)),
            _ => {}
        }
    }
}
