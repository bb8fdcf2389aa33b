//! Moves frames between a pair of queues and a port, and carries out the control queue's commands (section 5.1.6).
//!
//! A port says how long a frame is only when it is read. So the buffers that the driver has given are taken in advance, as
//! many as the longest frame needs; a frame is read into all of them at once, and those that it did not reach wait for the
//! next. Where the driver has given fewer, a spill behind them takes the rest, until more buffers come: no frame is cut
//! short because it came at the wrong moment, and only such a frame is copied.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use super::tap::Port;
use super::worker::Counters;
use crate::devices::limiter::Limiter;
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::ring::{Outcome, Ring, RingError};
use crate::memory::{GuestMemory, VolatileSlice};

/// Descriptors of a receive or transmit queue.
pub(super) const QUEUE_SIZE: u16 = 256;
/// Descriptors of the control queue: Linux has one command under way at a time, of three descriptors.
pub(super) const CONTROL_QUEUE_SIZE: u16 = 16;
/// `struct virtio_net_hdr_v1`.
pub(super) const HEADER_BYTES: usize = 12;
/// Where `num_buffers` is in it.
const BUFFERS_OFFSET: usize = 10;
/// Longest frame with its header: an IP packet of 64 KiB behind an Ethernet header and two VLAN tags.
pub(super) const MAX_FRAME_BYTES: usize = HEADER_BYTES + 14 + 8 + (64 << 10);
/// Frames of a direction before the other has its turn and the driver is told; as many as Linux takes in a turn of its own.
const MAX_TURN_FRAMES: usize = 64;
/// Buffers that were given back are forgotten when there are so many.
const MAX_GIVEN: usize = 1024;
/// Most control commands at a time.
const MAX_COMMANDS: usize = 16;

/// What a direction waits for after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: there is more to do.
    Turn,
    /// The port, which has no frame or no room for one.
    Port,
    /// The driver, which will notify.
    Driver,
    /// The end of this time, because of a limit.
    Time(Duration),
}

/// What came of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// The driver wants an interrupt.
    pub(super) signal: bool,
    pub(super) next: Next,
}

/// What both directions work with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link<'l> {
    pub(super) port: &'l dyn Port,
    pub(super) limiter: &'l Limiter,
    pub(super) counters: &'l Counters,
    pub(super) clock: fn() -> Instant,
}

/// The direction towards the guest.
#[derive(Debug)]
pub(super) struct Receiver<'m> {
    memory: &'m GuestMemory,
    /// A frame may take several chains (`VIRTIO_NET_F_MRG_RXBUF`).
    mergeable: bool,
    /// Taken from the queue, in its order, and not used yet.
    chains: VecDeque<Taken>,
    /// Their buffers, behind [`Receiver::given`] that are the driver's again.
    slices: Vec<VolatileSlice<'m>>,
    given: usize,
    /// Bytes that they take.
    room: usize,
    spill: Box<[u8]>,
    /// A frame whose end is in the spill.
    held: Option<Held>,
    /// The chain that was taken last and the chains of one frame, here to be allocated once.
    taken: Chain<'m>,
    used: Vec<(u16, u32)>,
}

/// A chain whose buffers are among the receiver's slices.
#[derive(Clone, Copy, Debug)]
struct Taken {
    head: u16,
    bytes: usize,
    slices: usize,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    /// In all.
    bytes: usize,
    /// At its end, in the spill.
    spilled: usize,
    /// Slices that are full of it.
    full: usize,
}

impl<'m> Receiver<'m> {
    pub(super) fn new(memory: &'m GuestMemory, mergeable: bool) -> Self {
        Self {
            memory,
            mergeable,
            chains: VecDeque::new(),
            slices: Vec::new(),
            given: 0,
            room: 0,
            spill: vec![0; MAX_FRAME_BYTES].into(),
            held: None,
            taken: Chain::default(),
            used: Vec::new(),
        }
    }

    /// Receives frames as long as there are frames, buffers and nothing against it.
    ///
    /// # Errors
    /// [`RingError`] if the driver broke the queue.
    pub(super) fn turn(&mut self, ring: &mut Ring, link: Link<'_>) -> Result<Turn, RingError> {
        let (mut next, mut any) = (Next::Turn, false);
        for _ in 0..MAX_TURN_FRAMES {
            self.refill(ring)?;
            if let Some(held) = self.held {
                if !self.finish(held, ring, link.counters)? {
                    next = Next::Driver;
                    break;
                }
                any = true;
                continue;
            }
            if self.chains.is_empty() {
                next = Next::Driver;
                break;
            }
            if let Some(wait) = link.limiter.wait(link.clock) {
                next = Next::Time(wait);
                break;
            }
            let bytes = match self.read(link.port) {
                Ok(bytes) => bytes,
                Err(error) => {
                    // An interface that is gone has nothing more either.
                    if error.kind() != ErrorKind::WouldBlock {
                        Counters::count(&link.counters.receive_failed);
                    }
                    next = Next::Port;
                    break;
                }
            };
            link.limiter.take(bytes.saturating_sub(HEADER_BYTES));
            any |= self.deliver(bytes, ring, link.counters)?;
        }
        let signal = any && ring.needs_interrupt()?;
        Ok(Turn { signal, next })
    }

    /// Gives back to the queue what was not used. A frame that is held is lost, as on any wire.
    pub(super) fn stop(&mut self, ring: &mut Ring) {
        self.held = None;
        self.room = 0;
        self.slices.clear();
        self.given = 0;
        for _ in self.chains.drain(..) {
            ring.undo_pop();
        }
    }

    /// Takes chains from the queue until the longest frame fits, or there are no more. Only if that stops the device is the
    /// driver asked to tell of new ones.
    fn refill(&mut self, ring: &mut Ring) -> Result<(), RingError> {
        let enough = |receiver: &Self| {
            if receiver.mergeable {
                receiver.room >= MAX_FRAME_BYTES
            } else {
                !receiver.chains.is_empty()
            }
        };
        ring.disable_notifications(self.memory)?;
        if self.given >= MAX_GIVEN {
            self.slices.drain(..self.given);
            self.given = 0;
        }
        while !enough(self) {
            if !ring.pop_into(self.memory, &mut self.taken)? {
                let stops = self.chains.is_empty() || self.held.is_some();
                if stops && ring.enable_notifications(self.memory)? {
                    continue;
                }
                break;
            }
            let buffers = &self.taken.writable;
            // Section 5.1.6.3.1: each buffer is at least as long as the header.
            if buffers.len() < HEADER_BYTES {
                return Err(RingError::Malformed);
            }
            self.slices.extend_from_slice(buffers.slices());
            self.room += buffers.len();
            self.chains.push_back(Taken {
                head: self.taken.head,
                bytes: buffers.len(),
                slices: buffers.slices().len(),
            });
        }
        Ok(())
    }

    /// The buffers that a frame may be written to.
    fn buffers(&self) -> &[VolatileSlice<'m>] {
        self.slices.get(self.given..).unwrap_or_default()
    }

    /// Reads a frame into all buffers, and the spill if they could be too short.
    fn read(&mut self, port: &dyn Port) -> std::io::Result<usize> {
        if self.room >= MAX_FRAME_BYTES {
            return port.receive(self.buffers());
        }
        // A system call takes IOV_MAX slices, and the spill is one. A driver that shreds its buffers so that there are more
        // loses the middle of a frame.
        let mut slices: Vec<VolatileSlice<'_>> = self.buffers().iter().take(1023).copied().collect();
        slices.push(VolatileSlice::from(&mut *self.spill));
        port.receive(&slices)
    }

    /// Gives a frame of `bytes`, which was just read, to the driver. Returns whether that was possible.
    fn deliver(&mut self, bytes: usize, ring: &mut Ring, counters: &Counters) -> Result<bool, RingError> {
        if !(HEADER_BYTES..=MAX_FRAME_BYTES).contains(&bytes) {
            Counters::count(&counters.receive_dropped);
            return Ok(false);
        }
        let Some(spilled) = bytes.checked_sub(self.room).filter(|spilled| *spilled > 0) else {
            return self.give(bytes, ring, counters).map(|()| true);
        };
        if self.mergeable {
            self.held = Some(Held {
                bytes,
                spilled,
                full: self.buffers().len(),
            });
        } else {
            Counters::count(&counters.receive_dropped);
        }
        Ok(false)
    }

    /// Puts the end of a frame into buffers that have come since. Returns false if there are still too few.
    fn finish(&mut self, held: Held, ring: &mut Ring, counters: &Counters) -> Result<bool, RingError> {
        if self.room < held.bytes {
            // A driver that has nothing left to give never will be given this frame.
            if self.chains.len() < usize::from(ring.state().size) {
                return Ok(false);
            }
            self.held = None;
            Counters::count(&counters.receive_dropped);
            return Ok(true);
        }
        self.held = None;
        let mut rest = self.spill.get(..held.spilled).unwrap_or_default();
        for slice in self.buffers().iter().skip(held.full) {
            slice.copy_from(rest);
            rest = rest.get(slice.len()..).unwrap_or_default();
        }
        self.give(held.bytes, ring, counters)?;
        Ok(true)
    }

    /// Gives the first chains, which hold a frame of `bytes`, back to the driver.
    fn give(&mut self, bytes: usize, ring: &mut Ring, counters: &Counters) -> Result<(), RingError> {
        let (mut left, mut slices) = (bytes, 0);
        self.used.clear();
        while left > 0
            && let Some(chain) = self.chains.pop_front()
        {
            let here = left.min(chain.bytes);
            let written = u32::try_from(here).map_err(|_| RingError::Malformed)?;
            self.used.push((chain.head, written));
            self.room -= chain.bytes;
            left -= here;
            slices += chain.slices;
        }
        // The port does not write it (section 5.1.6.4 wants it, also where buffers are not merged).
        self.write_count(u16::try_from(self.used.len()).unwrap_or(u16::MAX));
        self.given += slices;
        ring.complete_together(&self.used)?;
        Counters::count(&counters.received_frames);
        Counters::add(&counters.received_bytes, bytes - HEADER_BYTES);
        Ok(())
    }

    /// Writes `num_buffers` into the header at the beginning, which may be cut into pieces.
    fn write_count(&self, count: u16) {
        let [low, high] = count.to_le_bytes();
        for (offset, byte) in [(BUFFERS_OFFSET, low), (BUFFERS_OFFSET + 1, high)] {
            let mut before = offset;
            for slice in self.buffers() {
                if let Ok(here) = slice.offset(before)
                    && !here.is_empty()
                {
                    here.copy_from(&[byte]);
                    break;
                }
                before = before.saturating_sub(slice.len());
            }
        }
    }
}

/// Sends the guest's frames as long as there are any and nothing is against it.
///
/// # Errors
/// [`RingError`] if the driver broke the queue.
pub(super) fn transmit(ring: &mut Ring, memory: &GuestMemory, link: Link<'_>) -> Result<Turn, RingError> {
    // Why there is no next frame, if it is not for lack of one.
    let mut stopped = Cell::new(None);
    let ready = |stopped: &Cell<Option<Next>>| {
        if stopped.get().is_none() {
            stopped.set(link.limiter.wait(link.clock).map(Next::Time));
        }
        stopped.get().is_none()
    };
    let outcome = ring.serve(memory, MAX_TURN_FRAMES, &mut stopped, ready, |stopped, chain| {
        let Some(frame_bytes) = chain.readable.len().checked_sub(HEADER_BYTES) else {
            return Err(RingError::Malformed);
        };
        if chain.readable.len() > MAX_FRAME_BYTES {
            Counters::count(&link.counters.transmit_dropped);
            return Ok(Some(0));
        }
        match link.port.send(chain.readable.slices()) {
            Ok(_) => {
                Counters::count(&link.counters.transmitted_frames);
                Counters::add(&link.counters.transmitted_bytes, frame_bytes);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                stopped.set(Some(Next::Port));
                return Ok(None);
            }
            // The header made no sense, or the interface is down: a frame may be lost.
            Err(_) => Counters::count(&link.counters.transmit_dropped),
        }
        link.limiter.take(frame_bytes);
        Ok(Some(0))
    })?;
    let next = match stopped.get() {
        Some(next) => next,
        None if outcome.more => Next::Turn,
        None => Next::Driver,
    };
    Ok(Turn {
        signal: outcome.signal,
        next,
    })
}

/// Carries out the commands of the control queue (section 5.1.6.5). `set_pairs` is asked to use that many pairs, and says
/// whether it does.
///
/// # Errors
/// [`RingError`] if the driver broke the queue.
pub(super) fn control(
    ring: &mut Ring,
    memory: &GuestMemory,
    mut set_pairs: impl FnMut(u16) -> bool,
) -> Result<Outcome, RingError> {
    ring.serve(
        memory,
        MAX_COMMANDS,
        &mut set_pairs,
        |_| true,
        |set_pairs, chain| {
            if chain.writable.is_empty() {
                return Err(RingError::Malformed);
            }
            let done = pairs_command(chain).is_some_and(set_pairs);
            let answer = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            chain
                .writable
                .copy_from(&[u8::try_from(answer).unwrap_or(u8::MAX)]);
            Ok(Some(1))
        },
    )
}

/// The number of pairs, if the command is to set it.
fn pairs_command(chain: &Chain<'_>) -> Option<u16> {
    let [class, command, low, high] = chain.readable.read()?;
    let is_pairs = u32::from(class) == VIRTIO_NET_CTRL_MQ
        && u32::from(command) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET
        && chain.readable.len() == 4;
    is_pairs.then_some(u16::from_le_bytes([low, high]))
}
