//! Moves packets between the guest's queues and the multiplexer.

use serde::{Deserialize, Serialize};

use super::muxer::Muxer;
use super::packet::{HEADER_BYTES, Header};
use crate::devices::virtio::ring::{Ring, RingError, RingState};
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

/// How far the queues were served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The driver wants an interrupt.
    pub(super) signal: bool,
    /// There is more to do, and nothing will announce it.
    pub(super) more: bool,
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
        let ring = &mut self.from_guest;
        let (mut moved, mut more) = (0, false);
        ring.disable_notifications(memory)?;
        // With too many answers waiting the guest has to take some first; it will notify the other queue then.
        while muxer.can_receive() {
            if moved == MAX_PACKETS {
                more = true;
                break;
            }
            let Some(chain) = ring.pop(memory)? else {
                if ring.enable_notifications(memory)? {
                    continue;
                }
                break;
            };
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
            ring.complete(memory, chain.head, 0)?;
            moved += 1;
        }
        let signal = moved > 0 && ring.needs_interrupt(memory)?;
        Ok(Outcome { signal, more })
    }

    fn serve_to_guest(&mut self, memory: &GuestMemory, muxer: &mut Muxer) -> Result<Outcome, RingError> {
        let ring = &mut self.to_guest;
        let (mut moved, mut more) = (0, false);
        ring.disable_notifications(memory)?;
        while muxer.has_packets() {
            if moved == MAX_PACKETS {
                more = true;
                break;
            }
            let Some(chain) = ring.pop(memory)? else {
                if ring.enable_notifications(memory)? {
                    continue;
                }
                break;
            };
            let (space, data) = chain
                .writable
                .split_at(HEADER_BYTES)
                .ok_or(RingError::Malformed)?;
            if data.is_empty() {
                return Err(RingError::Malformed);
            }
            let Some(header) = muxer.next_packet(&data) else {
                ring.undo_pop();
                break;
            };
            space.copy_from(&header.to_bytes());
            let header_bytes = u32::try_from(HEADER_BYTES).map_err(|_| RingError::Malformed)?;
            ring.complete(memory, chain.head, header_bytes + header.length)?;
            moved += 1;
        }
        let signal = moved > 0 && ring.needs_interrupt(memory)?;
        Ok(Outcome { signal, more })
    }
}
