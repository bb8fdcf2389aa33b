//! The block device: its features and configuration, and the thread that serves it.
//!
//! Each disk has a thread of its own, because host files are read and written synchronously: a slow `fdatasync` must
//! hold up neither another disk nor the vsock.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::disk::Disk;
use super::queue::{self, MAX_RANGE_SECTORS, MAX_RANGES, MAX_SEGMENT_BYTES, MAX_SEGMENTS, QUEUE_SIZE};
use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice, read_config_from};
use crate::memory::GuestMemory;

/// Discards should be multiples of this many sectors: 4 KiB, the block size of the host's file systems.
const DISCARD_ALIGNMENT: u32 = 8;
const CONFIGURATION_BYTES: usize = 60;

/// A block device.
#[derive(Debug)]
pub struct Block {
    disk: Arc<Disk>,
    /// Blocking: the thread waits in a read of it.
    notification: [EventFd; 1],
    worker: Option<Worker>,
}

impl Block {
    /// A device for `disk`.
    ///
    /// # Errors
    /// Those of `eventfd(2)`.
    pub fn new(disk: Disk) -> io::Result<Self> {
        Ok(Self {
            disk: Arc::new(disk),
            notification: [EventFd::new(EFD_CLOEXEC)?],
            worker: None,
        })
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
        let task = Task {
            ring,
            disk: self.disk.clone(),
            memory: activation.memory,
            interrupt: activation.interrupt,
            notification: self.notification[0].try_clone()?,
            stop: Arc::new(AtomicBool::new(false)),
        };
        self.worker = Some(Worker::start(task)?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.stop();
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.reset();
    }
}

/// The thread of an active device.
#[derive(Debug)]
struct Worker {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
    notification: EventFd,
}

impl Worker {
    fn start(task: Task) -> io::Result<Self> {
        let (stop, notification) = (task.stop.clone(), task.notification.try_clone()?);
        let thread = Builder::new().name("disk".into()).spawn(move || task.run())?;
        Ok(Self {
            thread,
            stop,
            notification,
        })
    }

    /// Ends the thread after the request that it is serving.
    fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        // Fails only if the counter is full, and then the thread is awake.
        let _ = self.notification.write(1);
        // A panic on the thread ends the process in a release build; in a test it has been printed.
        let _ = self.thread.join();
    }
}

struct Task {
    ring: Ring,
    disk: Arc<Disk>,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    notification: EventFd,
    stop: Arc<AtomicBool>,
}

impl Task {
    fn run(mut self) {
        while !self.stop.load(Ordering::SeqCst) {
            let mut signal = || self.interrupt.signal_used();
            if queue::process(&mut self.ring, &self.memory, &self.disk, &self.stop, &mut signal).is_err() {
                self.interrupt.signal_needs_reset();
                return;
            }
            // Interrupted by a signal or not, the queue is looked at again.
            let _ = self.notification.read();
        }
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
