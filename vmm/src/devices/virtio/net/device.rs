//! The network device: its features and configuration, and its pairs of queues.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::queue::{CONTROL_QUEUE_SIZE, QUEUE_SIZE};
use super::tap::{Port, Tap, TapError};
use super::worker::{Control, Counters, Pair, Task, Worker};
use crate::config::LimitsConfig;
use crate::devices::limiter::Limiter;
use crate::devices::virtio::ring::RingState;
use crate::devices::virtio::state::{DeviceState, RestoreError};
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice, read_config_from};
use crate::resources::Network;
use crate::seccomp::Filters;

/// What every network device offers: checksums and segments may be left to the other side in both directions.
const FEATURES: [u32; 11] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS,
];
const CONFIGURATION_BYTES: usize = 12;

/// Why there is no network device.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// One of its queues.
    #[error("queue {index}")]
    Tap {
        /// Which.
        index: usize,
        /// What is wrong with it.
        #[source]
        source: TapError,
    },
    /// The queues beyond the first cannot be kept out of the traffic.
    #[error("cannot detach a queue")]
    Detach(#[source] io::Error),
    /// An event descriptor or thread could not be made.
    #[error("cannot make its descriptors and threads")]
    Start(#[source] io::Error),
}

/// What a guest can see of a network device. What it was sent and has not read, it has lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetState {
    mac: [u8; 6],
    mtu: Option<u16>,
    pairs: u16,
    /// As many as the driver wants to use.
    active_pairs: u16,
}

/// What a guest is told, and what it may do.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The guest's address.
    pub mac: [u8; 6],
    /// Largest packet in bytes.
    pub mtu: Option<u16>,
    /// Limits of what it receives.
    pub receive: LimitsConfig,
    /// Limits of what it transmits.
    pub transmit: LimitsConfig,
}

/// A network device.
#[derive(Debug)]
pub struct Net {
    settings: Settings,
    queue_sizes: Vec<u16>,
    notifications: Vec<EventFd>,
    control: Control,
    pairs: Vec<Pair>,
    /// A thread for each pair.
    workers: Vec<Worker>,
    /// What each thread was doing before the machine was paused.
    paused: Vec<Option<Box<Task>>>,
}

impl Net {
    /// A device on the queues of a TAP interface.
    ///
    /// # Errors
    /// [`NetError`].
    pub fn on_tap(network: Network, filters: &Filters) -> Result<Self, NetError> {
        let several = network.taps.len() > 1;
        let mut ports: Vec<Arc<dyn Port>> = Vec::new();
        for (index, fd) in network.taps.into_iter().enumerate() {
            let tap = Tap::new(fd, several).map_err(|source| NetError::Tap { index, source })?;
            ports.push(Arc::new(tap));
        }
        let settings = Settings {
            mac: network.mac,
            mtu: network.mtu,
            receive: network.receive,
            transmit: network.transmit,
        };
        Self::new(settings, ports, filters)
    }

    /// A device with a pair of queues for each of `ports`, with threads under their filter. Only the first one is used until
    /// a driver wants more.
    ///
    /// # Errors
    /// [`NetError`].
    pub fn new(settings: Settings, ports: Vec<Arc<dyn Port>>, filters: &Filters) -> Result<Self, NetError> {
        for port in ports.iter().skip(1) {
            port.set_attached(false).map_err(NetError::Detach)?;
        }
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * ports.len()];
        if ports.len() > 1 {
            queue_sizes.push(CONTROL_QUEUE_SIZE);
        }
        let event = |_: &u16| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let notifications: Vec<EventFd> = queue_sizes
            .iter()
            .map(event)
            .collect::<io::Result<_>>()
            .map_err(NetError::Start)?;
        let now = Instant::now();
        let (receive, transmit) = (
            Limiter::new(settings.receive, now),
            Limiter::new(settings.transmit, now),
        );
        let pairs: Vec<Pair> = ports
            .iter()
            .map(|port| Pair {
                port: port.clone(),
                receive: receive.clone(),
                transmit: transmit.clone(),
                counters: Arc::new(Counters::default()),
            })
            .collect();
        let mut workers = Vec::new();
        for (index, pair) in pairs.iter().enumerate() {
            let own = notifications.iter().skip(2 * index).take(2);
            // The control queue comes after the pairs that the driver has agreed to: one, or all.
            let control = [2, 2 * pairs.len()].map(|queue| notifications.get(queue));
            let control = control.into_iter().flatten().filter(|_| index == 0);
            let watched: Vec<&EventFd> = own.chain(control).collect();
            workers.push(Worker::start(&pair.port, &watched, filters.clone()).map_err(NetError::Start)?);
        }
        Ok(Self {
            settings,
            queue_sizes,
            notifications,
            control: Control {
                ports,
                active: Arc::new(AtomicU16::new(1)),
            },
            pairs,
            workers,
            paused: Vec::new(),
        })
    }

    /// What each pair has moved.
    pub fn counters(&self) -> impl Iterator<Item = &Counters> {
        self.pairs.iter().map(|pair| &*pair.counters)
    }

    fn pair_count(&self) -> u16 {
        u16::try_from(self.pairs.len()).unwrap_or(u16::MAX)
    }

    fn state(&self) -> NetState {
        NetState {
            mac: self.settings.mac,
            mtu: self.settings.mtu,
            pairs: self.pair_count(),
            active_pairs: self.control.active.load(Ordering::SeqCst),
        }
    }

    /// `struct virtio_net_config` (section 5.1.4), as far as features give its fields a meaning.
    fn configuration(&self) -> [u8; CONFIGURATION_BYTES] {
        let mut space = [0; CONFIGURATION_BYTES];
        let status = u16::try_from(VIRTIO_NET_S_LINK_UP).unwrap_or_default();
        space[..6].copy_from_slice(&self.settings.mac);
        space[6..8].copy_from_slice(&status.to_le_bytes());
        space[8..10].copy_from_slice(&self.pair_count().to_le_bytes());
        space[10..].copy_from_slice(&self.settings.mtu.unwrap_or_default().to_le_bytes());
        space
    }

    /// The queues of each pair, and the control queue for the first.
    fn tasks(&self, activation: Activation) -> Result<Vec<Option<Box<Task>>>, ActivateError> {
        let has = |feature: u32| activation.features & (1 << feature) != 0;
        let (mergeable, has_control) = (has(VIRTIO_NET_F_MRG_RXBUF), has(VIRTIO_NET_F_CTRL_VQ));
        if activation.rings.len() != self.queues_in_use(activation.features) {
            return Err(ActivateError::Queues);
        }
        let mut rings = activation.rings;
        let mut control = match has_control {
            true => rings.pop().map(|ring| (ring, self.control.clone())),
            false => None,
        };
        let mut rings = rings.into_iter();
        let mut tasks = Vec::new();
        for pair in &self.pairs {
            let (Some(receive), Some(transmit)) = (rings.next(), rings.next()) else {
                break;
            };
            tasks.push(Some(Box::new(Task {
                pair: pair.clone(),
                receive,
                transmit,
                control: control.take(),
                memory: activation.memory.clone(),
                interrupt: activation.interrupt.clone(),
                mergeable,
            })));
        }
        Ok(tasks)
    }

    fn begin(&mut self, tasks: Vec<Option<Box<Task>>>) -> Result<(), ActivateError> {
        for (worker, task) in self.workers.iter_mut().zip(tasks) {
            if let Some(task) = task {
                worker.begin(task)?;
            }
        }
        Ok(())
    }
}

impl VirtioDevice for Net {
    fn number(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn backend(&self) -> String {
        let [a, b, c, d, e, f] = self.settings.mac;
        format!(
            "a TAP interface, {} queues; the guest's address is {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}",
            self.pairs.len()
        )
    }

    fn features(&self) -> u64 {
        let mut features = FEATURES.iter().fold(0, |all, feature| all | (1 << feature));
        if self.settings.mtu.is_some() {
            features |= 1 << VIRTIO_NET_F_MTU;
        }
        if self.pairs.len() > 1 {
            features |= (1 << VIRTIO_NET_F_CTRL_VQ) | (1 << VIRTIO_NET_F_MQ);
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// Section 5.1.2: a driver that does not know of several pairs uses the first, and the control queue, if it uses that,
    /// comes after the pairs.
    fn queues_in_use(&self, features: u64) -> usize {
        let has = |feature: u32| features & (1 << feature) != 0;
        let pairs = if has(VIRTIO_NET_F_MQ) { self.pairs.len() } else { 1 };
        2 * pairs + usize::from(has(VIRTIO_NET_F_CTRL_VQ))
    }

    fn notifications(&self) -> &[EventFd] {
        &self.notifications
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(&self.configuration(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let features = activation.features;
        let tasks = self.tasks(activation)?;
        let control = self.control.clone();
        if let Some(first) = self.workers.first_mut() {
            first.set_up(control, features)?;
        }
        self.begin(tasks)
    }

    fn reset(&mut self) {
        self.paused.clear();
        for worker in &mut self.workers {
            worker.end();
        }
        self.control.active.store(1, Ordering::SeqCst);
    }

    fn pause(&mut self) {
        // Paused twice, it stays what it is.
        let ended: Vec<_> = self.workers.iter_mut().map(Worker::end).collect();
        if ended.iter().any(Option::is_some) {
            self.paused = ended;
        }
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        let tasks = std::mem::take(&mut self.paused);
        self.begin(tasks)
    }

    fn queues(&self) -> Vec<RingState> {
        let tasks = self.paused.iter().map_while(Option::as_deref);
        let states: Vec<_> = tasks.map(Task::state).collect();
        if states.len() < self.paused.iter().flatten().count() {
            // One before others is broken, and the device does nothing until its driver resets it.
            return Vec::new();
        }
        let control = states.iter().find_map(|(_, _, control)| *control);
        let pairs = states
            .iter()
            .flat_map(|(receive, transmit, _)| [*receive, *transmit]);
        pairs.chain(control).collect()
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net(self.state())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Net(state) = state else {
            return Err(RestoreError::Kind);
        };
        let own = self.state();
        if (state.mac, state.mtu, state.pairs) != (own.mac, own.mtu, own.pairs) {
            return Err(RestoreError::Differs("address, MTU or number of queues"));
        }
        if state.active_pairs == 0 || state.active_pairs > own.pairs {
            return Err(RestoreError::Differs("number of queues in use"));
        }
        self.control.active.store(state.active_pairs, Ordering::SeqCst);
        Ok(())
    }
}
