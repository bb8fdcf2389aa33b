//! The block device: its features and configuration, and the thread that serves it.
//!
//! Each disk has a thread of its own, because host files are read and written synchronously: a slow `fdatasync` must
//! hold up neither another disk nor the vsock. It is started with the machine and waits for the driver, so that whoever
//! handles the driver's writes need not be able to start threads.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{Builder, JoinHandle};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::disk::Disk;
use super::queue::{self, MAX_RANGE_SECTORS, MAX_RANGES, MAX_SEGMENT_BYTES, MAX_SEGMENTS, QUEUE_SIZE};
use crate::config::SECTOR_BYTES;
use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::ring::{Ring, RingState};
use crate::devices::virtio::state::{DeviceState, RestoreError};
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice, read_config_from};
use crate::memory::GuestMemory;
use crate::seccomp::{Filters, Kind};

/// Discards should be multiples of this many sectors: 4 KiB, the block size of the host's file systems.
const DISCARD_ALIGNMENT: u32 = 8;
const CONFIGURATION_BYTES: usize = 60;

/// A block device.
#[derive(Debug)]
pub struct Block {
    disk: Arc<Disk>,
    /// Blocking: the thread waits in a read of it.
    notification: [EventFd; 1],
    worker: Worker,
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
    /// A device for `disk`, with a thread under its filter.
    ///
    /// # Errors
    /// Those of `eventfd(2)` and of starting a thread.
    pub fn new(disk: Disk, filters: &Filters) -> io::Result<Self> {
        let notification = EventFd::new(EFD_CLOEXEC)?;
        let worker = Worker::start(notification.try_clone()?, filters.clone())?;
        Ok(Self {
            disk: Arc::new(disk),
            notification: [notification],
            worker,
            paused: None,
        })
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
            "{access}, {} bytes in {} files",
            self.disk.sectors() * SECTOR_BYTES,
            self.disk.parts()
        )
    }

    fn features(&self) -> u64 {
        let common = (1 << VIRTIO_BLK_F_SIZE_MAX) | (1 << VIRTIO_BLK_F_SEG_MAX) | (1 << VIRTIO_BLK_F_FLUSH);
        if self.disk.is_read_only() {
            return common | (1 << VIRTIO_BLK_F_RO);
        }
        common | (1 << VIRTIO_BLK_F_DISCARD) | (1 << VIRTIO_BLK_F_WRITE_ZEROES)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn notifications(&self) -> &[EventFd] {
        &self.notification
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(&self.configuration(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let [ring] = <[Ring; 1]>::try_from(activation.rings).map_err(|_| ActivateError::Queues)?;
        self.worker.begin(Task {
            ring,
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
        self.paused.iter().map(|task| task.ring.state()).collect()
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
    /// One message for the thread's start, and one for each task that has ended: the task, unless its queue is broken.
    ended: Receiver<Option<Task>>,
    thread: Option<JoinHandle<()>>,
    /// Whether a task was begun and not ended.
    busy: bool,
    stop: Arc<AtomicBool>,
    notification: EventFd,
}

impl Worker {
    fn start(notification: EventFd, filters: Filters) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (tasks, waiting) = mpsc::channel::<Task>();
        let (report, ended) = mpsc::channel();
        let (its_stop, its_notification) = (stop.clone(), notification.try_clone()?);
        let thread = Builder::new().name("disk".into()).spawn(move || {
            if filters.install(Kind::Disk).is_err() || report.send(None).is_err() {
                return;
            }
            for task in waiting {
                let task = task.run(&its_stop, &its_notification);
                if report.send(task).is_err() {
                    return;
                }
            }
        })?;
        // The first message: the filter is in force.
        ended
            .recv()
            .map_err(|_| io::Error::other("a disk's thread could not be confined"))?;
        Ok(Self {
            tasks: Some(tasks),
            ended,
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

    /// Ends the task after the request that it is serving, and returns it if it can go on.
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
    ring: Ring,
    disk: Arc<Disk>,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
}

impl Task {
    /// Serves the queue until `stop` is set; returns itself unless the queue is broken.
    fn run(mut self, stop: &AtomicBool, notification: &EventFd) -> Option<Self> {
        while !stop.load(Ordering::SeqCst) {
            let mut signal = || self.interrupt.signal_used();
            if queue::process(&mut self.ring, &self.memory, &self.disk, stop, &mut signal).is_err() {
                self.interrupt.signal_needs_reset();
                return None;
            }
            // Interrupted by a signal or not, the queue is looked at again.
            let _ = notification.read();
        }
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::devices::virtio::test_driver::Driver;
    use crate::resources;

    fn block(file: &File, read_only: bool) -> Block {
        let bytes = file.metadata().unwrap().len();
        let part = resources::Part {
            file: file.try_clone().unwrap(),
            bytes,
        };
        Block::new(
            Disk::new(resources::Disk {
                parts: vec![part],
                read_only,
            })
            .unwrap(),
            &Filters::none(),
        )
        .unwrap()
    }

    fn activation(driver: &Driver) -> (Activation, EventFd) {
        let line = EventFd::new(0).unwrap();
        let interrupt = Arc::new(Interrupt::new(line.try_clone().unwrap()));
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
