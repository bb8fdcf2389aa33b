//! The file system device and its place in the event loop.
//!
//! It has no thread of its own: nothing that it does waits for a disk, because that is done by the worker's threads.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::exchange::Ends;
use super::queue::{QUEUE_SIZE, Queues};
use super::session::Session;
use crate::bus::lock;
use crate::config::FsTag;
use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::ring::{Outcome, RingError, RingState};
use crate::devices::virtio::state::{DeviceState, RestoreError};
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice, read_config_from};
use crate::event::StopReason;
use crate::memory::GuestMemory;
use crate::stop::StopSignal;

/// Queues for requests. More would not be served faster: one thread looks at all of them, and the worker's threads take
/// what comes through one pipe.
const REQUEST_QUEUES: u32 = 1;

/// Those, and the one before them for requests that nobody waits for.
const QUEUES: usize = 1 + REQUEST_QUEUES as usize;

const TAG_BYTES: usize = 36;
/// The tag, the number of request queues, and the size of notifications, which are not offered.
const CONFIGURATION_BYTES: usize = TAG_BYTES + 8;

/// A file system device.
#[derive(Debug)]
pub struct Fs {
    tag: FsTag,
    session: Session,
    notifications: [EventFd; QUEUES],
    /// Answers may have come of which there will be no event.
    unheard: bool,
    active: Option<Active>,
}

#[derive(Debug)]
struct Active {
    queues: Queues,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
}

/// What a guest can see of the device. What it knows of files is not part of it: files that it has open are those of a
/// worker that does not move with the machine. With another worker they cannot be used; paths are looked up anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FsState {
    tag: FsTag,
    request_queues: u32,
}

/// What the worker was to share is something else, or there are no event descriptors.
#[derive(Debug, thiserror::Error)]
#[error("cannot use what is shared with the worker")]
pub struct FsError(#[from] io::Error);

impl Fs {
    /// A device that a guest mounts by `tag`; whoever has the other side of `ends` serves its files.
    ///
    /// # Errors
    /// [`FsError`].
    pub fn new(tag: FsTag, ends: Ends) -> Result<Self, FsError> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        Ok(Self {
            tag,
            session: Session::new(ends)?,
            notifications: [event()?, event()?],
            unheard: true,
            active: None,
        })
    }

    /// Does what an event leaves to do, up to a bound: of a queue, of the worker's answers, or (`None`) of any.
    pub(crate) fn serve(&mut self, event: Option<RawFd>) {
        let answers = self.session.answers().as_raw_fd();
        let Some(active) = &mut self.active else { return };
        for (queue, notification) in self.notifications.iter().enumerate() {
            if event.is_none_or(|event| event == notification.as_raw_fd()) {
                active.queues.look_at(queue);
            }
        }
        if event.is_none_or(|event| event == answers) || self.unheard {
            self.unheard = false;
            let outcome = active.queues.give_back(&active.memory, &mut self.session);
            self.tell(&outcome);
        }
        let Some(active) = &mut self.active else { return };
        let outcome = active.queues.take(&active.memory, &mut self.session);
        self.tell(&outcome);
    }

    fn tell(&mut self, outcome: &Result<Outcome, RingError>) {
        let Some(active) = &self.active else { return };
        match outcome {
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
                self.session.forget_driver();
            }
        }
    }

    /// Makes the event loop look at everything.
    fn wake(&mut self) {
        self.unheard = true;
        for notification in &self.notifications {
            // Fails only if the counter is full, after 2^64 times. Nobody reads it: each write is an edge.
            let _ = notification.write(1);
        }
    }

    fn state(&self) -> FsState {
        FsState {
            tag: self.tag.clone(),
            request_queues: REQUEST_QUEUES,
        }
    }
}

impl VirtioDevice for Fs {
    fn number(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn backend(&self) -> String {
        let worker = if self.session.is_lost() {
            "a worker that is lost"
        } else {
            "a worker"
        };
        format!("{worker}; the tag is {:?}", self.tag.as_str())
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; QUEUES]
    }

    fn notifications(&self) -> &[EventFd] {
        &self.notifications
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; CONFIGURATION_BYTES];
        for (byte, value) in space.iter_mut().zip(self.tag.as_str().bytes().take(TAG_BYTES)) {
            *byte = value;
        }
        space[TAG_BYTES..TAG_BYTES + 4].copy_from_slice(&REQUEST_QUEUES.to_le_bytes());
        read_config_from(&space, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if activation.rings.len() != QUEUES {
            return Err(ActivateError::Queues);
        }
        self.active = Some(Active {
            queues: Queues::new(activation.rings),
            memory: activation.memory,
            interrupt: activation.interrupt,
        });
        self.wake();
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.session.forget_driver();
    }

    /// Waits for the worker's answers, so that no request is between the two. None takes longer than the host's file
    /// system does, or than somebody else keeps a lock, but the event loop waits as well; a worker that is lost while this waits ends it.
    fn pause(&mut self) {
        let Some(active) = &mut self.active else { return };
        let outcome = active.queues.finish(&active.memory, &mut self.session);
        self.tell(&outcome);
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        // A descriptor tells its state once per change, and it may have changed.
        self.wake();
        Ok(())
    }

    fn queues(&self) -> Vec<RingState> {
        let active = self.active.as_ref();
        active.map(|active| active.queues.state()).unwrap_or_default()
    }

    fn save(&self) -> DeviceState {
        DeviceState::Fs(self.state())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Fs(state) if *state == self.state() => Ok(()),
            DeviceState::Fs(_) => Err(RestoreError::Differs("tag or number of queues")),
            _ => Err(RestoreError::Kind),
        }
    }
}

/// The device in the event loop.
pub struct FsSubscriber {
    device: Arc<Mutex<Fs>>,
    stop: Arc<StopSignal>,
}

impl FsSubscriber {
    /// Serves `device`.
    #[must_use]
    pub fn new(device: Arc<Mutex<Fs>>, stop: Arc<StopSignal>) -> Self {
        Self { device, stop }
    }
}

impl MutEventSubscriber for FsSubscriber {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let device = lock(&self.device);
        let notifications = device.notifications.iter().map(AsRawFd::as_raw_fd);
        // By edges, so that nobody has to read how often the driver has notified, which does not matter; and because the end of
        // the worker stays for good.
        for fd in notifications.chain([device.session.answers().as_raw_fd()]) {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN | EventSet::EDGE_TRIGGERED)) {
                let detail = format!("cannot watch a file system device: {error}");
                self.stop.stop(StopReason::DeviceFailure, detail);
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        let mut device = lock(&self.device);
        if events.event_set().contains(EventSet::HANG_UP) {
            device.session.hung_up();
        }
        device.serve(Some(events.fd()));
    }
}
