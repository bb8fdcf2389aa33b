//! The threads of a network device, one for each pair of queues.
//!
//! A pair is served by a thread of its own, so that neither a busy pair nor a disk holds another up. The thread of the first
//! pair also serves the control queue. Threads are started with the machine and wait for the driver, so that whoever
//! handles the driver's writes need not be able to start one.
//!
//! A thread waits for edges: an event descriptor that is written wakes it each time and is never read, and a port that
//! was found empty or full is left alone until it says otherwise.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver as Inbox, Sender};
use std::thread::JoinHandle;
use std::time::Instant;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{self, Link, Next, Receiver, Turn};
use super::tap::Port;
use crate::devices::limiter::Limiter;
use crate::devices::virtio::ActivateError;
use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::ring::{Ring, RingError, RingState};
use crate::memory::{GuestMemory, VolatileSlice};
use crate::seccomp::{Filters, Kind};

/// What an event says about a descriptor.
const FROM_DRIVER: u64 = 0;
const FROM_PORT: u64 = 1;
/// Descriptors of a thread: notifications of its two queues and of the control queue in both of its places, and the port.
const MOST_EVENTS: usize = 5;
/// Most frames that a port holds from before its driver was there: ten times what the kernel queues unless told otherwise.
const MAX_STALE_FRAMES: usize = 10_000;

/// What has passed, and what has not.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Counters {
    /// Frames that the guest got.
    pub received_frames: AtomicU64,
    /// Their bytes, without headers.
    pub received_bytes: AtomicU64,
    /// Frames that fitted into no buffers.
    pub receive_dropped: AtomicU64,
    /// Errors of the port.
    pub receive_failed: AtomicU64,
    /// Frames that the port took.
    pub transmitted_frames: AtomicU64,
    /// Their bytes, without headers.
    pub transmitted_bytes: AtomicU64,
    /// Frames that it refused.
    pub transmit_dropped: AtomicU64,
}

impl Counters {
    pub(super) fn count(counter: &AtomicU64) {
        Self::add(counter, 1);
    }

    pub(super) fn add(counter: &AtomicU64, amount: usize) {
        counter.fetch_add(u64::try_from(amount).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// What a thread has for as long as it lives.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) port: Arc<dyn Port>,
    pub(super) receive: Limiter,
    pub(super) transmit: Limiter,
    pub(super) counters: Arc<Counters>,
}

/// Decides how many pairs are used.
#[derive(Clone, Debug)]
pub(super) struct Control {
    pub(super) ports: Vec<Arc<dyn Port>>,
    /// Pairs in use, 1 or more.
    pub(super) active: Arc<AtomicU16>,
}

impl Control {
    /// Prepares the ports for a driver with these features: what they hold already was not meant for it.
    fn set_up(&self, features: u64) -> io::Result<()> {
        let [first, ..] = self.ports.as_slice() else {
            return Ok(());
        };
        first.set_features(features)?;
        self.attach(self.active.load(Ordering::SeqCst))?;
        for port in &self.ports {
            let mut header = [0; 1];
            for _ in 0..MAX_STALE_FRAMES {
                // A frame is read as a whole, however little of it fits. What cannot be read is no frame.
                if port.receive(&[VolatileSlice::from(&mut header[..])]).is_err() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Uses the first `pairs` pairs only.
    fn attach(&self, pairs: u16) -> io::Result<()> {
        let mut indexed = (0..).zip(&self.ports).skip(1);
        indexed.try_for_each(|(index, port): (u16, _)| port.set_attached(index < pairs))
    }

    /// As the driver wants it; returns whether that is possible.
    fn set_pairs(&self, pairs: u16) -> bool {
        if pairs == 0 || usize::from(pairs) > self.ports.len() {
            return false;
        }
        let before = self.active.load(Ordering::SeqCst);
        if self.attach(pairs).is_err() {
            // What could be changed is changed back; the rest has not changed.
            let _ = self.attach(before);
            return false;
        }
        self.active.store(pairs, Ordering::SeqCst);
        true
    }
}

/// The queues of a pair, while a driver uses them.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) pair: Pair,
    pub(super) receive: Ring,
    pub(super) transmit: Ring,
    /// The control queue, if this is the first pair and the driver uses it.
    pub(super) control: Option<(Ring, Control)>,
    pub(super) memory: GuestMemory,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) mergeable: bool,
}

impl Task {
    /// Serves the queues until `stop` is set; returns itself unless one of them is broken.
    fn run(mut self, stop: &AtomicBool, epoll: &Epoll) -> Option<Self> {
        match self.serve(stop, epoll) {
            Ok(()) => Some(self),
            Err(_) => {
                self.interrupt.signal_needs_reset();
                None
            }
        }
    }

    fn serve(&mut self, stop: &AtomicBool, epoll: &Epoll) -> Result<(), ServeError> {
        let memory = self.memory.clone();
        let pair = self.pair.clone();
        let link = |limiter| Link {
            port: &*pair.port,
            limiter,
            counters: &pair.counters,
            clock: Instant::now,
        };
        let (inwards, outwards) = (link(&pair.receive), link(&pair.transmit));
        let mut receiver = Receiver::new(&memory, self.mergeable);
        let mut port_ready = true;
        while !stop.load(Ordering::SeqCst) {
            let sent = queue::transmit(&mut self.transmit, &memory, outwards)?;
            // An empty port is not asked again before it says something.
            let idle = Turn {
                signal: false,
                next: Next::Port,
            };
            let received = match port_ready {
                true => receiver.turn(&mut self.receive, inwards)?,
                false => idle,
            };
            let commanded = self.obey(&memory)?;
            if sent.signal || received.signal || commanded.signal {
                self.interrupt.signal_used();
            }
            port_ready = received.next != Next::Port;
            port_ready |= wait(epoll, &[sent.next, received.next, commanded.next])?;
        }
        receiver.stop(&mut self.receive);
        Ok(())
    }

    fn obey(&mut self, memory: &GuestMemory) -> Result<Turn, RingError> {
        let Some((ring, control)) = &mut self.control else {
            return Ok(Turn {
                signal: false,
                next: Next::Driver,
            });
        };
        let outcome = queue::control(ring, memory, |pairs| control.set_pairs(pairs))?;
        Ok(Turn {
            signal: outcome.signal,
            next: if outcome.more { Next::Turn } else { Next::Driver },
        })
    }

    /// Where the queues are: receive, transmit, control.
    pub(super) fn state(&self) -> (RingState, RingState, Option<RingState>) {
        let control = self.control.as_ref().map(|(ring, _)| ring.state());
        (self.receive.state(), self.transmit.state(), control)
    }
}

/// Why a pair cannot go on. The guest is only told that it cannot.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("the host's descriptors cannot be watched")]
    Wait(#[from] io::Error),
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// Waits for what is to come next; returns whether the port has something to say.
fn wait(epoll: &Epoll, next: &[Next]) -> io::Result<bool> {
    let times = next.iter().filter_map(|next| match next {
        Next::Turn => Some(0),
        // Whole milliseconds, so that it is not too early.
        Next::Time(wait) => Some(i32::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)),
        Next::Port | Next::Driver => None,
    });
    let timeout = times.min().unwrap_or(-1);
    let mut events = [EpollEvent::default(); MOST_EVENTS];
    let count = match epoll.wait(timeout, &mut events) {
        Ok(count) => count,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
        Err(error) => return Err(error),
    };
    Ok(events.iter().take(count).any(|event| event.data() == FROM_PORT))
}

/// What a thread says.
#[derive(Debug)]
enum Report {
    /// Its filter is in force.
    Confined,
    /// The ports were prepared, or not.
    SetUp(io::Result<()>),
    /// A task has ended; with it, unless its queues are broken.
    Ended(Option<Box<Task>>),
}

/// What a thread is told.
#[derive(Debug)]
enum Order {
    /// Prepare the ports for a driver with these features.
    SetUp(Control, u64),
    Run(Box<Task>),
}

/// A thread, seen from the device.
#[derive(Debug)]
pub(super) struct Worker {
    /// `None` only while it is dropped.
    orders: Option<Sender<Order>>,
    reports: Inbox<Report>,
    thread: Option<JoinHandle<()>>,
    /// Whether a task was begun and not ended.
    busy: bool,
    stop: Arc<AtomicBool>,
    /// Written to wake the thread.
    notification: EventFd,
}

impl Worker {
    /// Starts the thread for `port` under its filter. It is woken by `notifications`, of which there is at least one.
    ///
    /// # Errors
    /// Those of making descriptors and of starting a thread.
    pub(super) fn start(
        port: &Arc<dyn Port>,
        notifications: &[&EventFd],
        filters: Filters,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let events = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, FROM_DRIVER);
        for notification in notifications {
            epoll.ctl(ControlOperation::Add, notification.as_raw_fd(), events)?;
        }
        let both = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        let events = EpollEvent::new(both, FROM_PORT);
        epoll.ctl(ControlOperation::Add, port.as_fd().as_raw_fd(), events)?;
        let wake = notifications.first().ok_or(io::ErrorKind::InvalidInput)?;
        let notification = wake.try_clone()?;

        let stop = Arc::new(AtomicBool::new(false));
        let (orders, inbox) = mpsc::channel();
        let (report, reports) = mpsc::channel();
        let its_stop = stop.clone();
        let thread = crate::sys::thread_builder("net".into()).spawn(move || {
            if filters.install(Kind::Net).is_err() || report.send(Report::Confined).is_err() {
                return;
            }
            for order in inbox {
                let said = match order {
                    Order::SetUp(control, features) => Report::SetUp(control.set_up(features)),
                    Order::Run(task) => Report::Ended(task.run(&its_stop, &epoll).map(Box::new)),
                };
                if report.send(said).is_err() {
                    return;
                }
            }
        })?;
        match reports.recv() {
            Ok(Report::Confined) => {}
            _ => {
                return Err(io::Error::other(
                    "a network device's thread could not be confined",
                ));
            }
        }
        Ok(Self {
            orders: Some(orders),
            reports,
            thread: Some(thread),
            busy: false,
            stop,
            notification,
        })
    }

    /// Prepares the ports for a driver with these features.
    ///
    /// # Errors
    /// [`ActivateError::Start`].
    pub(super) fn set_up(&mut self, control: Control, features: u64) -> Result<(), ActivateError> {
        self.end();
        self.order(Order::SetUp(control, features))?;
        match self.reports.recv() {
            Ok(Report::SetUp(result)) => Ok(result?),
            _ => Err(gone()),
        }
    }

    /// Serves the queues of `task`.
    ///
    /// # Errors
    /// [`ActivateError::Start`].
    pub(super) fn begin(&mut self, task: Box<Task>) -> Result<(), ActivateError> {
        self.end();
        self.stop.store(false, Ordering::SeqCst);
        self.order(Order::Run(task))?;
        self.busy = true;
        Ok(())
    }

    /// Ends the task after its turn, and returns it if it can go on.
    pub(super) fn end(&mut self) -> Option<Box<Task>> {
        if !std::mem::take(&mut self.busy) {
            return None;
        }
        self.stop.store(true, Ordering::SeqCst);
        // Fails only if the counter is full, and then the thread is awake.
        let _ = self.notification.write(1);
        // Fails only if the thread has panicked, which ends the process in a release build; in a test it has been printed.
        match self.reports.recv() {
            Ok(Report::Ended(task)) => task,
            _ => None,
        }
    }

    fn order(&self, order: Order) -> Result<(), ActivateError> {
        let sent = self
            .orders
            .as_ref()
            .is_some_and(|orders| orders.send(order).is_ok());
        if sent { Ok(()) } else { Err(gone()) }
    }
}

fn gone() -> ActivateError {
    ActivateError::Start(io::ErrorKind::BrokenPipe.into())
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // As in `end`.
            let _ = thread.join();
        }
    }
}
