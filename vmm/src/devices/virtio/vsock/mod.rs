//! The socket device (section 5.10): streams between programs on the host and in the guest.
//!
//! The host's side is a listening Unix stream socket. A client connects, sends `CONNECT <port>\n`, and reads
//! `OK <host port>\n` once the guest has accepted; from then on the connection is the raw stream. A connection that the
//! guest refuses, or does not answer, is closed. The guest cannot open connections: the host has no listeners for it.

mod connection;
mod device;
#[cfg(any(test, feature = "fuzzing"))]
#[expect(
    clippy::unwrap_used,
    reason = "a harness whose scene cannot be set up has to stop"
)]
pub(crate) mod fuzz;
mod muxer;
mod packet;
mod queue;
#[cfg(test)]
mod tests;

pub use device::{Vsock, VsockState, VsockSubscriber};
