//! The balloon device and its place in the event loop.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::queue::{self, Purpose};
use crate::bus::lock;
use crate::devices::virtio::ring::{Ring, RingError, RingState};
use crate::devices::virtio::state::{DeviceState, RestoreError};
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice, read_config_from};
use crate::event::StopReason;
use crate::stop::StopSignal;

/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM` and `VIRTIO_BALLOON_F_REPORTING` (include/uapi/linux/virtio_balloon.h): the guest may
/// take pages out of the balloon when it needs them, and reports pages that it frees.
const FEATURES: u64 = (1 << 2) | (1 << 5);

/// What the queues are for. Without the features that have queues in between, the reporting queue is the third.
const PURPOSES: [Purpose; 3] = [Purpose::Inflate, Purpose::Deflate, Purpose::Report];
const QUEUE_SIZES: [u16; 3] = [32; 3];

/// `struct virtio_balloon_config`: the size that the host wants the balloon to have, the one it has, and two fields of
/// features that are not offered. All are zero: the host wants nothing, and what the driver says is not looked at.
const CONFIGURATION: [u8; 16] = [0; 16];

/// A balloon device.
#[derive(Debug)]
pub struct Balloon {
    notifications: [EventFd; 3],
    active: Option<([Ring; 3], Activation)>,
}

impl Balloon {
    /// A device after reset.
    ///
    /// # Errors
    /// Those of `eventfd(2)`.
    pub fn new() -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        Ok(Self {
            notifications: [event()?, event()?, event()?],
            active: None,
        })
    }

    /// Serves all queues: they are rarely used, and one that has nothing costs a look.
    pub(crate) fn serve(&mut self) {
        let Some((rings, activation)) = &mut self.active else {
            return;
        };
        let result = PURPOSES.iter().zip(rings).zip(&self.notifications).try_for_each(
            |((purpose, ring), notification)| {
                let outcome = queue::process(ring, &activation.memory, *purpose)?;
                if outcome.signal {
                    activation.interrupt.signal_used();
                }
                if outcome.more {
                    // Fails only if the counter is full, and then the device is being woken.
                    let _ = notification.write(1);
                }
                Ok::<(), RingError>(())
            },
        );
        if result.is_err()
            && let Some((_, activation)) = self.active.take()
        {
            activation.interrupt.signal_needs_reset();
        }
    }
}

impl VirtioDevice for Balloon {
    fn number(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn backend(&self) -> String {
        "the memory of the machine".to_owned()
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn notifications(&self) -> &[EventFd] {
        &self.notifications
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(&CONFIGURATION, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let rings = std::mem::take(&mut activation.rings);
        let rings = <[Ring; 3]>::try_from(rings).map_err(|_| ActivateError::Queues)?;
        self.active = Some((rings, activation));
        // Requests may have come before; see `serve` for why this cannot fail.
        let _ = self.notifications[0].write(1);
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn queues(&self) -> Vec<RingState> {
        let rings = self.active.iter().flat_map(|(rings, _)| rings);
        rings.map(Ring::state).collect()
    }

    fn save(&self) -> DeviceState {
        DeviceState::Balloon
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Balloon => Ok(()),
            _ => Err(RestoreError::Kind),
        }
    }
}

/// The device in the event loop.
pub struct BalloonSubscriber {
    device: Arc<Mutex<Balloon>>,
    stop: Arc<StopSignal>,
}

impl BalloonSubscriber {
    /// Serves `device`.
    #[must_use]
    pub fn new(device: Arc<Mutex<Balloon>>, stop: Arc<StopSignal>) -> Self {
        Self { device, stop }
    }
}

impl MutEventSubscriber for BalloonSubscriber {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for notification in &lock(&self.device).notifications {
            if let Err(error) = ops.add(Events::new(notification, EventSet::IN)) {
                let detail = format!("cannot watch the balloon device: {error}");
                self.stop.stop(StopReason::DeviceFailure, detail);
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        let mut device = lock(&self.device);
        for notification in &device.notifications {
            if notification.as_raw_fd() == events.fd() {
                // The count does not matter.
                let _ = notification.read();
            }
        }
        device.serve();
    }
}
