//! The socket device and its place in the event loop.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::muxer::{MAX_EVENTS, Muxer};
use super::queue::Queues;
use crate::bus::lock;
use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::ring::{Outcome, Ring, RingError, RingState};
use crate::devices::virtio::state::{DeviceState, RestoreError};
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice, read_config_from};
use crate::event::StopReason;
use crate::memory::GuestMemory;
use crate::stop::StopSignal;

/// Linux fills the queue towards the guest with buffers of 4 KiB: half a MiB, enough for the several packets that one
/// turn of the event loop moves.
const QUEUE_SIZE: u16 = 128;

/// A socket device.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u32,
    muxer: Muxer,
    notifications: [EventFd; 3],
    active: Option<Active>,
    /// The guest has connections from before it was restored, and does not know yet that they are gone.
    lost_connections: bool,
}

#[derive(Debug)]
struct Active {
    queues: Queues,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
}

/// What a guest can see of the device. Connections are not part of it: their other ends are programs that do not move
/// with the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockState {
    guest_cid: u32,
    next_port: u32,
}

impl Vsock {
    /// A device for the guest with this context identifier; clients of the host connect to `listener`.
    ///
    /// # Errors
    /// Those of making event descriptors.
    pub fn new(guest_cid: u32, listener: UnixListener) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let notifications = [event()?, event()?, event()?];
        Ok(Self {
            guest_cid,
            muxer: Muxer::new(guest_cid, listener)?,
            notifications,
            active: None,
            lost_connections: false,
        })
    }

    /// Does what there is to do, up to a bound.
    pub(crate) fn serve(&mut self) {
        let Some(active) = &mut self.active else { return };
        match active.serve(&mut self.muxer, &mut self.lost_connections) {
            Ok(outcome) => {
                if outcome.signal {
                    active.interrupt.signal_used();
                }
                if outcome.more {
                    self.wake();
                }
            }
            Err(_) => {
                active.interrupt.signal_needs_reset();
                self.active = None;
                self.muxer.stop();
            }
        }
    }

    /// Makes the event loop come back.
    fn wake(&self) {
        // Fails only if the counter is full, and then the event loop comes anyway.
        let _ = self.notifications[0].write(1);
    }
}

impl Active {
    fn serve(&mut self, muxer: &mut Muxer, lost_connections: &mut bool) -> Result<Outcome, ServeError> {
        let mut signal = false;
        if *lost_connections {
            let announced = self.queues.announce_reset(&self.memory)?;
            *lost_connections = !announced.done;
            signal = announced.signal;
        }
        let events = muxer.poll()?;
        let outcome = self.queues.serve(&self.memory, muxer)?;
        Ok(Outcome {
            signal: signal || outcome.signal,
            more: outcome.more || events == MAX_EVENTS,
        })
    }
}

/// Why the device cannot go on. The guest is only told that it cannot.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("the host's sockets cannot be watched")]
    Poll(#[from] io::Error),
    #[error(transparent)]
    Ring(#[from] RingError),
}

impl VirtioDevice for Vsock {
    fn number(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn backend(&self) -> String {
        format!(
            "a Unix socket; the guest's context identifier is {}",
            self.guest_cid
        )
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 3]
    }

    fn notifications(&self) -> &[EventFd] {
        &self.notifications
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(&u64::from(self.guest_cid).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let [to_guest, from_guest, events] =
            <[Ring; 3]>::try_from(activation.rings).map_err(|_| ActivateError::Queues)?;
        let queues = Queues {
            to_guest,
            from_guest,
            events,
        };
        self.muxer.start()?;
        self.active = Some(Active {
            queues,
            memory: activation.memory,
            interrupt: activation.interrupt,
        });
        self.wake();
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.lost_connections = false;
        self.muxer.stop();
    }

    fn queues(&self) -> Vec<RingState> {
        let active = self.active.as_ref();
        active.map(|active| active.queues.state()).unwrap_or_default()
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock(VsockState {
            guest_cid: self.guest_cid,
            next_port: self.muxer.next_port(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Vsock(state) = state else {
            return Err(RestoreError::Kind);
        };
        if state.guest_cid != self.guest_cid {
            return Err(RestoreError::Differs("context identifier"));
        }
        self.muxer.set_next_port(state.next_port);
        self.lost_connections = true;
        Ok(())
    }
}

/// The device in the event loop.
pub struct VsockSubscriber {
    device: Arc<Mutex<Vsock>>,
    stop: Arc<StopSignal>,
}

impl VsockSubscriber {
    /// Serves `device`.
    #[must_use]
    pub fn new(device: Arc<Mutex<Vsock>>, stop: Arc<StopSignal>) -> Self {
        Self { device, stop }
    }
}

impl MutEventSubscriber for VsockSubscriber {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let device = lock(&self.device);
        let notifications = device.notifications.iter().map(AsRawFd::as_raw_fd);
        for fd in notifications.chain([device.muxer.as_raw_fd()]) {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                let detail = format!("cannot watch the vsock device: {error}");
                self.stop.stop(StopReason::DeviceFailure, detail);
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        let mut device = lock(&self.device);
        let notified = device
            .notifications
            .iter()
            .find(|event| event.as_raw_fd() == events.fd());
        if let Some(event) = notified {
            // The count does not matter; without one the read says EAGAIN.
            let _ = event.read();
        }
        device.serve();
    }
}
