//! The entropy device and its place in the event loop.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::queue::{self, Budget};
use crate::bus::lock;
use crate::devices::virtio::ring::{Ring, RingState};
use crate::devices::virtio::state::{DeviceState, RestoreError};
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice};
use crate::stop::StopSignal;

const QUEUE_SIZE: u16 = 64;
/// After this the budget is full again.
const REFILL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// What a guest can see of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RngState {
    budget: Budget,
}

/// An entropy device.
#[derive(Debug)]
pub struct Rng {
    notification: [EventFd; 1],
    /// Runs while the budget is used up.
    refill: OwnedFd,
    budget: Budget,
    active: Option<(Ring, Activation)>,
}

impl Rng {
    /// A device after reset.
    ///
    /// # Errors
    /// Those of `eventfd(2)` and `timerfd_create(2)`.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self {
            notification: [EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?],
            refill: timerfd_create(TimerfdClockId::Monotonic, flags)?,
            budget: Budget::default(),
            active: None,
        })
    }

    /// Serves the queue as far as the budget goes.
    pub(crate) fn serve(&mut self) {
        let Some((ring, activation)) = &mut self.active else {
            return;
        };
        let outcome = queue::process(ring, &activation.memory, &mut self.budget);
        if outcome.as_ref().is_ok_and(|outcome| outcome.signal) {
            activation.interrupt.signal_used();
        }
        let refill_failed =
            outcome.as_ref().is_ok_and(|outcome| outcome.exhausted) && self.start_refill().is_err();
        if (outcome.is_err() || refill_failed)
            && let Some((_, activation)) = self.active.take()
        {
            activation.interrupt.signal_needs_reset();
        }
    }

    fn start_refill(&self) -> io::Result<()> {
        let once = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: REFILL,
        };
        timerfd_settime(&self.refill, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    fn refilled(&mut self) {
        // The expirations are not counted; without one the read says EAGAIN.
        if rustix::io::read(&self.refill, &mut [0; 8]).is_ok() {
            self.budget = Budget::default();
        }
    }
}

impl VirtioDevice for Rng {
    fn number(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn backend(&self) -> String {
        "the random numbers of the host's kernel".to_owned()
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn notifications(&self) -> &[EventFd] {
        &self.notification
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let rings = std::mem::take(&mut activation.rings);
        let [ring] = <[Ring; 1]>::try_from(rings).map_err(|_| ActivateError::Queues)?;
        self.active = Some((ring, activation));
        // Requests may have come before. Fails only if the counter is full, and then the device is being woken.
        let _ = self.notification[0].write(1);
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn queues(&self) -> Vec<RingState> {
        self.active.iter().map(|(ring, _)| ring.state()).collect()
    }

    fn save(&self) -> DeviceState {
        DeviceState::Rng(RngState { budget: self.budget })
    }

    /// Where the budget is used up, the first look at the queue starts the refill.
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Rng(state) = state else {
            return Err(RestoreError::Kind);
        };
        self.budget = state.budget.bounded();
        Ok(())
    }
}

/// The device in the event loop.
pub struct RngSubscriber {
    device: Arc<Mutex<Rng>>,
    stop: Arc<StopSignal>,
}

impl RngSubscriber {
    /// Serves `device`.
    #[must_use]
    pub fn new(device: Arc<Mutex<Rng>>, stop: Arc<StopSignal>) -> Self {
        Self { device, stop }
    }
}

impl MutEventSubscriber for RngSubscriber {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let device = lock(&self.device);
        for fd in [device.notification[0].as_raw_fd(), device.refill.as_raw_fd()] {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                let detail = format!("cannot watch the entropy device: {error}");
                self.stop.stop(crate::event::StopReason::DeviceFailure, detail);
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        let mut device = lock(&self.device);
        if events.fd() == device.refill.as_raw_fd() {
            device.refilled();
        } else {
            // The count does not matter.
            let _ = device.notification[0].read();
        }
        device.serve();
    }
}
