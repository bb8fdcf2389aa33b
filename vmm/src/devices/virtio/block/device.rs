//! The block device: its features and configuration, and the thread that serves it.
//!
//! Each disk has a thread of its own, which waits for the driver and for the disk's files at once; where the host has no
//! io_uring it waits for one operation at a time, and holds up no other disk and not the vsock. It is started with the
//! machine, so that whoever handles the driver's writes need not be able to start threads, and it makes its ring before it
//! is confined.
//!
//! All queues of a disk share the thread, the ring and one event descriptor: the transport has one interrupt line, so
//! what ends on several queues at a time is one interrupt, and one system call begins what was asked on all of them. More
//! queues are for the driver's sake, whose processors then do not wait for each other.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::backend::{Backend, BackendKind};
use super::disk::Disk;
use super::queue::{Context, QUEUE_SIZE, Server};
use super::request::{MAX_RANGE_SECTORS, MAX_RANGES, MAX_SEGMENT_BYTES, MAX_SEGMENTS};
use crate::config::SECTOR_BYTES;
use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::ring::{Ring, RingState};
use crate::devices::virtio::state::{DeviceState, RestoreError};
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice, read_config_from};
use crate::memory::GuestMemory;
use crate::seccomp::Filters;

/// Discards should be multiples of this many sectors: 4 KiB, the block size of the host's file systems.
const DISCARD_ALIGNMENT: u32 = 8;
const CONFIGURATION_BYTES: usize = 60;
/// Most queues of a disk: the one thread that serves them all is busy with as many processors' requests.
pub const MAX_QUEUES: u8 = 4;

/// A block device.
#[derive(Debug)]
pub struct Block {
    /// Before the disk, so that the thread has ended when the disk's files are closed, which it may not do.
    worker: Worker,
    disk: Arc<Disk>,
    /// One event descriptor for all queues, under as many numbers as there are queues. Blocking: the thread may wait in a
    /// read of it.
    notifications: Vec<EventFd>,
    queue_sizes: Vec<u16>,
    /// What the thread was doing before the machine was paused.
    paused: Option<Task>,
}

/// What a guest can see of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockState {
    sectors: u64,
    read_only: bool,
}

impl Block {
    /// A device for `disk` with a queue for each of `vcpus` processors, at least one and at most [`MAX_QUEUES`], and with a
    /// thread under its filter.
    ///
    /// # Errors
    /// Those of `eventfd(2)` and of starting a thread.
    pub fn new(disk: Disk, vcpus: u8, filters: &Filters) -> io::Result<Self> {
        Self::with_backend(disk, vcpus, filters, Backend::new)
    }

    fn with_backend(
        disk: Disk,
        vcpus: u8,
        filters: &Filters,
        backend: impl FnOnce(Arc<Disk>, EventFd) -> Backend + Send + 'static,
    ) -> io::Result<Self> {
        let disk = Arc::new(disk);
        let queues = usize::from(vcpus.clamp(1, MAX_QUEUES));
        let notification = EventFd::new(EFD_CLOEXEC)?;
        let notifications = (0..queues)
            .map(|_| notification.try_clone())
            .collect::<io::Result<_>>()?;
        let (its_disk, its_notification) = (disk.clone(), notification.try_clone()?);
        let make = move || backend(its_disk, its_notification);
        let worker = Worker::start(notification, filters.clone(), make)?;
        Ok(Self {
            disk,
            notifications,
            queue_sizes: vec![QUEUE_SIZE; queues],
            worker,
            paused: None,
        })
    }

    /// How requests are served.
    #[must_use]
    pub fn backend_kind(&self) -> &BackendKind {
        &self.worker.backend
    }

    fn state(&self) -> BlockState {
        BlockState {
            sectors: self.disk.sectors(),
            read_only: self.disk.is_read_only(),
        }
    }

    /// `struct virtio_blk_config` (section 5.2.4).
    fn configuration(&self) -> [u8; CONFIGURATION_BYTES] {
        let mut space = [0; CONFIGURATION_BYTES];
        space[..8].copy_from_slice(&self.disk.sectors().to_le_bytes());
        for (offset, value) in [
            (8, MAX_SEGMENT_BYTES),
            (12, MAX_SEGMENTS),
            (36, MAX_RANGE_SECTORS),
            (40, MAX_RANGES),
            (44, DISCARD_ALIGNMENT),
            (48, MAX_RANGE_SECTORS),
            (52, MAX_RANGES),
        ] {
            space[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        }
        let queues = u16::try_from(self.queue_sizes.len()).unwrap_or(1);
        space[34..36].copy_from_slice(&queues.to_le_bytes());
        space[56] = 1; // write-zeroes may give space back
        space
    }
}

impl VirtioDevice for Block {
    fn number(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn backend(&self) -> String {
        let access = if self.disk.is_read_only() {
            "read-only"
        } else {
            "writable"
        };
        format!(
            "{access}, {} bytes in {} files, {}{}",
            self.disk.sectors() * SECTOR_BYTES,
            self.disk.files().len(),
            self.worker.backend,
            if self.disk.waits_for_room() {
                ", waits for room on the host's disk"
            } else {
                ""
            }
        )
    }

    fn features(&self) -> u64 {
        let common = [
            VIRTIO_BLK_F_SIZE_MAX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_MQ,
        ]
        .into_iter()
        .fold(0, |features, feature| features | (1 << feature));
        if self.disk.is_read_only() {
            return common | (1 << VIRTIO_BLK_F_RO);
        }
        common | (1 << VIRTIO_BLK_F_DISCARD) | (1 << VIRTIO_BLK_F_WRITE_ZEROES)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn notifications(&self) -> &[EventFd] {
        &self.notifications
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(&self.configuration(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if activation.rings.len() != self.queue_sizes.len() {
            return Err(ActivateError::Queues);
        }
        self.worker.begin(Task {
            rings: activation.rings,
            disk: self.disk.clone(),
            memory: activation.memory,
            interrupt: activation.interrupt,
        })
    }

    fn reset(&mut self) {
        self.paused = None;
        self.worker.end();
    }

    fn pause(&mut self) {
        // Paused twice, it stays what it is.
        self.paused = self.worker.end().or(self.paused.take());
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        match self.paused.take() {
            Some(task) => self.worker.begin(task),
            None => Ok(()),
        }
    }

    fn queues(&self) -> Vec<RingState> {
        let task = self.paused.iter();
        task.flat_map(|task| task.rings.iter().map(Ring::state)).collect()
    }

    fn save(&self) -> DeviceState {
        DeviceState::Block(self.state())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Block(state) if *state == self.state() => Ok(()),
            DeviceState::Block(_) => Err(RestoreError::Differs("size or in being read-only")),
            _ => Err(RestoreError::Kind),
        }
    }
}

/// The thread of a device.
#[derive(Debug)]
struct Worker {
    /// `None` only while it is dropped.
    tasks: Option<Sender<Task>>,
    /// A message for each task that has ended: the task, unless a queue is broken.
    ended: Receiver<Option<Task>>,
    backend: BackendKind,
    thread: Option<JoinHandle<()>>,
    /// Whether a task was begun and not ended.
    busy: bool,
    stop: Arc<AtomicBool>,
    notification: EventFd,
}

impl Worker {
    fn start(
        notification: EventFd,
        filters: Filters,
        make: impl FnOnce() -> Backend + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (tasks, waiting) = mpsc::channel::<Task>();
        let (report, ended) = mpsc::channel();
        let (ready, confined) = mpsc::channel();
        let its_stop = stop.clone();
        let thread = crate::sys::thread_builder("disk".into()).spawn(move || {
            // Before the filter, which does not let a ring be made.
            let mut backend = make();
            if filters.install(backend.thread_kind()).is_err() || ready.send(backend.kind()).is_err() {
                return;
            }
            for task in waiting {
                if report.send(task.run(&its_stop, &mut backend)).is_err() {
                    return;
                }
            }
        })?;
        let backend = confined
            .recv()
            .map_err(|_| io::Error::other("a disk's thread could not be confined"))?;
        Ok(Self {
            tasks: Some(tasks),
            ended,
            backend,
            thread: Some(thread),
            busy: false,
            stop,
            notification,
        })
    }

    fn begin(&mut self, task: Task) -> Result<(), ActivateError> {
        self.end();
        self.stop.store(false, Ordering::SeqCst);
        let sent = self.tasks.as_ref().is_some_and(|tasks| tasks.send(task).is_ok());
        if !sent {
            return Err(ActivateError::Start(io::ErrorKind::BrokenPipe.into()));
        }
        self.busy = true;
        Ok(())
    }

    /// Ends the task after the requests that are under way, and returns it if it can go on.
    fn end(&mut self) -> Option<Task> {
        if !std::mem::take(&mut self.busy) {
            return None;
        }
        self.stop.store(true, Ordering::SeqCst);
        // Fails only if the counter is full, and then the thread is awake.
        let _ = self.notification.write(1);
        // Fails only if the thread has panicked, which ends the process in a release build; in a test it has been printed.
        self.ended.recv().ok().flatten()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            // As in `end`.
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Task {
    rings: Vec<Ring>,
    disk: Arc<Disk>,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
}

impl Task {
    /// Serves the queues until `stop` is set; returns itself unless the device cannot go on.
    fn run(mut self, stop: &AtomicBool, backend: &mut Backend) -> Option<Self> {
        let interrupt = self.interrupt.clone();
        let context = Context {
            memory: &self.memory,
            disk: &self.disk,
            stop,
            signal: &|| interrupt.signal_used(),
        };
        if Server::new(context, &mut self.rings, backend).run().is_err() {
            interrupt.signal_needs_reset();
            return None;
        }
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::File;
    use std::io::Write as _;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::FileExt;

    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

    use super::super::tests;
    use super::*;
    use crate::devices::virtio::test_driver::Driver;
    use crate::resources;

    fn block(file: &File, read_only: bool) -> Block {
        block_with(file, read_only, 1, Backend::new)
    }

    fn block_with(
        file: &File,
        read_only: bool,
        vcpus: u8,
        backend: fn(Arc<Disk>, EventFd) -> Backend,
    ) -> Block {
        let bytes = file.metadata().unwrap().len();
        let part = resources::Part {
            file: file.try_clone().unwrap(),
            bytes,
        };
        let parts = vec![part];
        let disk = Disk::new(resources::Disk { parts, read_only }).unwrap();
        Block::with_backend(disk, vcpus, &Filters::none(), backend).unwrap()
    }

    fn activation(driver: &Driver) -> (Activation, EventFd) {
        let line = EventFd::new(0).unwrap();
        let interrupt = Arc::new(Interrupt::of_test(line.try_clone().unwrap()));
        let rings = vec![driver.ring()];
        (
            Activation {
                features: 0,
                memory: driver.memory.clone(),
                rings,
                interrupt,
            },
            line,
        )
    }

    #[test]
    fn configuration_and_features_say_what_the_disk_is() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let mut capacity = [0; 8];
        let device = block(&file, true);
        device.read_config(0, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), 2048);
        assert_ne!(device.features() & (1 << VIRTIO_BLK_F_RO), 0);
        let device = block(&file, false);
        assert_eq!(device.features() & (1 << VIRTIO_BLK_F_RO), 0);
        assert_ne!(device.features() & (1 << VIRTIO_BLK_F_DISCARD), 0);
        let mut beyond = [0xff; 4];
        device.read_config(58, &mut beyond);
        assert_eq!(beyond, [0, 0, 0xff, 0xff]);
    }

    #[test]
    fn an_active_device_serves_notifications_until_reset() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[3; 512], 0).unwrap();
        let mut device = block(&file, true);
        let driver = Driver::new(8);
        let (activation, line) = activation(&driver);
        let interrupt = activation.interrupt.clone();
        device.activate(activation).unwrap();
        for count in 1..=3 {
            driver.request(&[&[0; 16]], &[512, 1]);
            device.notifications()[0].write(1).unwrap();
            line.read().unwrap();
            assert_eq!(driver.used().len(), count);
        }
        assert_eq!(interrupt.status(), 1);
        device.reset();
        driver.request(&[&[0; 16]], &[512, 1]);
        device.notifications()[0].write(1).unwrap();
        assert_eq!(driver.used().len(), 3);
    }

    /// A disk of two parts: a read of the first one ends when something is written to the returned end of a pipe.
    fn slow_disk() -> (Block, io::PipeWriter) {
        let (slow, sender) = io::pipe().unwrap();
        let fast = tempfile::tempfile().unwrap();
        fast.write_all_at(&[3; 512], 0).unwrap();
        let parts = [File::from(OwnedFd::from(slow)), fast]
            .map(|file| resources::Part { file, bytes: 512 })
            .into();
        let disk = Disk::new(resources::Disk {
            parts,
            read_only: true,
        });
        let block = Block::with_backend(disk.unwrap(), 1, &Filters::new().unwrap(), tests::ring);
        (block.unwrap(), sender)
    }

    fn read_sector(device: &Block, driver: &Driver, sector: u64) -> u64 {
        let header = [[0; 8], sector.to_le_bytes()].concat();
        let data = driver.request(&[&header], &[512, 1]);
        device.notifications()[0].write(1).unwrap();
        data
    }

    #[test]
    fn a_slow_request_does_not_hold_up_those_behind_it() {
        let (mut device, mut sender) = slow_disk();
        let driver = Driver::new(8);
        let (activation, line) = activation(&driver);
        device.activate(activation).unwrap();
        let slow = read_sector(&device, &driver, 0);
        let fast = read_sector(&device, &driver, 1);
        line.read().unwrap();
        assert_eq!(driver.used(), [(3, 513)]);
        assert_eq!(driver.read(fast, 512), [3; 512]);
        sender.write_all(&[5; 512]).unwrap();
        line.read().unwrap();
        assert_eq!(driver.used(), [(3, 513), (0, 513)]);
        assert_eq!(driver.read(slow, 512), [5; 512]);
    }

    #[test]
    fn a_pause_waits_for_what_is_under_way() {
        let (mut device, mut sender) = slow_disk();
        let driver = Driver::new(8);
        let (activation, line) = activation(&driver);
        device.activate(activation).unwrap();
        read_sector(&device, &driver, 0);
        read_sector(&device, &driver, 1);
        // The second one shows that the first one has been taken.
        line.read().unwrap();
        let pause = std::thread::spawn(move || {
            device.pause();
            device
        });
        sender.write_all(&[5; 512]).unwrap();
        let mut device = pause.join().unwrap();
        assert_eq!(driver.used(), [(3, 513), (0, 513)]);
        assert_eq!(
            (device.queues()[0].next_available, device.queues()[0].next_used),
            (2, 2)
        );
        read_sector(&device, &driver, 1);
        assert_eq!(driver.used().len(), 2, "nothing is served while it is paused");
        device.resume().unwrap();
        line.read().unwrap();
        while driver.used().len() < 3 {
            line.read().unwrap();
        }
        device.reset();
        assert!(device.queues().is_empty());
    }

    #[test]
    fn what_has_no_room_waits_and_holds_up_nobody() {
        // A thread without a ring closes its event descriptor at its end, which a debug build first looks at.
        let cases = [
            (tests::ring as fn(_, _) -> _, Filters::new().unwrap(), true),
            (tests::calls, Filters::none(), false),
        ];
        for (backend, filters, answered) in cases {
            let disk = Disk::without_room(1024);
            let mut device = Block::with_backend(disk, 1, &filters, backend).unwrap();
            let driver = Driver::new(16);
            let (activation, line) = activation(&driver);
            device.activate(activation).unwrap();
            // A write (VIRTIO_BLK_T_OUT), then a read.
            let write = [[1, 0, 0, 0, 0, 0, 0, 0], [0; 8]].concat();
            driver.request(&[&write, &[7; 512]], &[1]);
            device.notifications()[0].write(1).unwrap();
            while !device.disk.waits_for_room() {
                std::thread::yield_now();
            }
            assert!(device.backend().ends_with("waits for room on the host's disk"));
            if answered {
                read_sector(&device, &driver, 1);
                line.read().unwrap();
                assert_eq!(driver.used(), [(3, 513)]);
            }
            std::thread::sleep(std::time::Duration::from_millis(250));
            assert_eq!(driver.used().len(), usize::from(answered), "it still waits");
            // Whoever stops the device does not wait with it.
            device.pause();
            assert_eq!(driver.used().last(), Some(&(0, 1)));
            assert!(!device.disk.waits_for_room());
        }
    }

    #[test]
    fn every_queue_is_served() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[3; 512], 0).unwrap();
        for backend in [tests::ring, tests::calls] {
            let mut device = block_with(&file, true, 200, backend);
            assert_eq!(device.queue_sizes(), [QUEUE_SIZE; MAX_QUEUES as usize]);
            let mut queues = [0; 2];
            device.read_config(34, &mut queues);
            assert_eq!(u16::from_le_bytes(queues), u16::from(MAX_QUEUES));
            let memory = crate::memory::allocate(4).unwrap();
            let drivers: Vec<Driver> = (0..u64::from(MAX_QUEUES))
                .map(|index| Driver::in_memory(memory.clone(), 8, index))
                .collect();
            let (mut activation, line) = activation(&drivers[0]);
            activation.rings.extend(drivers[1..].iter().map(Driver::ring));
            device.activate(activation).unwrap();
            for (driver, notification) in drivers.iter().zip(device.notifications()) {
                driver.request(&[&[0; 16]], &[512, 1]);
                notification.write(1).unwrap();
                line.read().unwrap();
                assert_eq!(driver.used(), [(0, 513)]);
            }
            device.pause();
            let used: Vec<u16> = device.queues().iter().map(|queue| queue.next_used).collect();
            assert_eq!(used, [1; MAX_QUEUES as usize]);
        }
    }

    #[test]
    fn a_host_that_refuses_rings_gets_a_disk_all_the_same() {
        let refused = std::thread::spawn(|| {
            let filter = SeccompFilter::new(
                BTreeMap::from([(libc::SYS_io_uring_setup, Vec::new())]),
                SeccompAction::Allow,
                SeccompAction::Errno(libc::EPERM.unsigned_abs()),
                TargetArch::x86_64,
            );
            let program: BpfProgram = filter.unwrap().try_into().unwrap();
            seccompiler::apply_filter(&program).unwrap();
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&[3; 512], 0).unwrap();
            let mut device = block(&file, true);
            let BackendKind::Synchronous { reason } = device.backend_kind().clone() else {
                panic!("{}", device.backend());
            };
            assert!(reason.contains("Operation not permitted"), "{reason}");
            let driver = Driver::new(8);
            let (activation, line) = activation(&driver);
            device.activate(activation).unwrap();
            let data = read_sector(&device, &driver, 0);
            line.read().unwrap();
            assert_eq!(driver.read(data, 512), [3; 512]);
        });
        refused.join().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(512).unwrap();
        assert_eq!(*block(&file, true).backend_kind(), BackendKind::Asynchronous);
    }

    #[test]
    fn a_broken_queue_needs_a_reset() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(512).unwrap();
        let mut device = block(&file, true);
        let driver = Driver::new(8);
        let (activation, line) = activation(&driver);
        let interrupt = activation.interrupt.clone();
        driver.set_available_index(100);
        device.activate(activation).unwrap();
        line.read().unwrap();
        assert!(interrupt.needs_reset());
    }
}
