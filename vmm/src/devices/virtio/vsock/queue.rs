//! Moves packets between the guest's queues and the multiplexer.

use super::muxer::Muxer;
use super::packet::{HEADER_BYTES, Header};
use crate::devices::virtio::ring::{Outcome, Ring, RingError, RingState};
use crate::memory::GuestMemory;

/// Packets in each direction before the event loop looks at other things.
const MAX_PACKETS: usize = 128;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` in a `struct virtio_vsock_event` (section 5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = [0; 4];
const EVENT_BYTES: u32 = 4;

/// Whether the guest was told of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Announced {
    /// It was.
    pub(super) done: bool,
    /// The driver wants an interrupt.
    pub(super) signal: bool,
}

/// The queues of an active device.
#[derive(Debug)]
pub(super) struct Queues {
    pub(super) to_guest: Ring,
    pub(super) from_guest: Ring,
    /// For the one event that there is: the connections of a machine do not move with it.
    pub(super) events: Ring,
}

impl Queues {
    /// Where the queues are, in the order of their numbers.
    pub(super) fn state(&self) -> Vec<RingState> {
        [&self.to_guest, &self.from_guest, &self.events]
            .map(Ring::state)
            .to_vec()
    }

    /// Tells the guest that all of its connections are gone (section 5.10.6.7). Without a buffer for it nothing is said;
    /// the guest notifies when it has given one.
    ///
    /// # Errors
    /// [`RingError`] if the driver broke the queue.
    pub(super) fn announce_reset(&mut self, memory: &GuestMemory) -> Result<Announced, RingError> {
        let mut once = 1;
        let outcome = self.events.serve(
            memory,
            1,
            &mut once,
            |left| *left > 0,
            |left, chain| {
                if chain.writable.copy_from(&TRANSPORT_RESET) < TRANSPORT_RESET.len() {
                    return Err(RingError::Malformed);
                }
                *left = 0;
                Ok(Some(EVENT_BYTES))
            },
        )?;
        Ok(Announced {
            done: once == 0,
            signal: outcome.signal,
        })
    }

    /// Moves packets in both directions.
    ///
    /// # Errors
    /// [`RingError`] if the driver broke a queue.
    pub(super) fn serve(&mut self, memory: &GuestMemory, muxer: &mut Muxer) -> Result<Outcome, RingError> {
        // From the guest first: it may bring credit, and may ask for answers.
        let from = self.serve_from_guest(memory, muxer)?;
        let was_full = !muxer.can_receive();
        let to = self.serve_to_guest(memory, muxer)?;
        Ok(Outcome {
            signal: from.signal || to.signal,
            // The guest was not asked to notify again while there was no room for answers; now there is.
            more: from.more || to.more || (was_full && muxer.can_receive()),
        })
    }

    fn serve_from_guest(&mut self, memory: &GuestMemory, muxer: &mut Muxer) -> Result<Outcome, RingError> {
        // With too many answers waiting the guest has to take some first; it will notify the other queue then.
        let ready = |muxer: &Muxer| muxer.can_receive();
        self.from_guest
            .serve(memory, MAX_PACKETS, muxer, ready, |muxer, chain| {
                let (header, rest) = chain
                    .readable
                    .split_at(HEADER_BYTES)
                    .ok_or(RingError::Malformed)?;
                let header = Header::parse(&header.read().ok_or(RingError::Malformed)?);
                let length = usize::try_from(header.length).unwrap_or(usize::MAX);
                let (data, _) = rest
                    .split_at(length.min(rest.len()))
                    .ok_or(RingError::Malformed)?;
                if data.len() != length {
                    return Err(RingError::Malformed);
                }
                muxer.receive(&header, &data);
                Ok(Some(0))
            })
    }

    fn serve_to_guest(&mut self, memory: &GuestMemory, muxer: &mut Muxer) -> Result<Outcome, RingError> {
        let ready = |muxer: &Muxer| muxer.has_packets();
        self.to_guest
            .serve(memory, MAX_PACKETS, muxer, ready, |muxer, chain| {
                let (space, data) = chain
                    .writable
                    .split_at(HEADER_BYTES)
                    .ok_or(RingError::Malformed)?;
                if data.is_empty() {
                    return Err(RingError::Malformed);
                }
                let Some(header) = muxer.next_packet(&data) else {
                    return Ok(None);
                };
                space.copy_from(&header.to_bytes());
                let header_bytes = u32::try_from(HEADER_BYTES).map_err(|_| RingError::Malformed)?;
                Ok(Some(header_bytes + header.length))
            })
    }
}
