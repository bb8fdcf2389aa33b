//! Moves packets between the guest's queues and the multiplexer.

use serde::{Deserialize, Serialize};

use super::muxer::Muxer;
use super::packet::{HEADER_BYTES, Header};
use crate::devices::virtio::ring::{Outcome, Ring, RingError, RingState};
use crate::memory::GuestMemory;

/// Packets in each direction before the event loop looks at other things.
const MAX_PACKETS: usize = 128;

/// The queues of an active device.
#[derive(Debug)]
pub(super) struct Queues {
    pub(super) to_guest: Ring,
    pub(super) from_guest: Ring,
    /// For events of the transport, of which there are none before machines are saved and restored.
    pub(super) events: Ring,
}

/// The state of the three queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QueuesState([RingState; 3]);

impl Queues {
    /// Where the queues are.
    pub(super) fn state(&self) -> QueuesState {
        QueuesState([
            self.to_guest.state(),
            self.from_guest.state(),
            self.events.state(),
        ])
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
