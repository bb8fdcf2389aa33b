//! The block queue under a hostile driver.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::backend::Backend;
use super::disk::Disk;
use super::queue::{Context, QUEUE_SIZE, ServeError, Server};
use crate::devices::virtio::ring::{Ring, RingState};
use crate::devices::virtio::state::{DeviceState, RestoreError};
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice};
use crate::fuzz::{Input, Permit, memory, scene, scratch_file};
use crate::memory::GuestMemory;
use crate::resources;

/// Bytes of the disk, and of the file behind it that are not the guest's.
const DISK_BYTES: usize = 4096;
const BEHIND_BYTES: usize = 1024;
/// More than any queue here has chains: a driver that adds more while it is served is cut off, as a reset would do.
const MOST_SIGNALS: u32 = 64;

/// What is kept from one input to the next.
struct Disks {
    file: File,
    read_only_file: File,
    writable: Target,
    read_only: Target,
}

/// A disk, and who does the work: the calling thread, so that an input means the same each time.
struct Target {
    disk: Arc<Disk>,
    backend: Backend,
}

impl Target {
    fn new(parts: Vec<resources::Part>, read_only: bool) -> Self {
        let disk = Arc::new(Disk::new(resources::Disk { parts, read_only }).unwrap());
        let notification = EventFd::new(EFD_CLOEXEC).unwrap();
        let backend = Backend::calls(disk.clone(), notification, String::new());
        Self { disk, backend }
    }

    /// Serves what is available; `told` is called for each interrupt.
    fn serve(&mut self, rings: &mut [Ring], memory: &GuestMemory, told: impl Fn()) -> Result<(), ServeError> {
        let (stop, signals) = (AtomicBool::new(false), Cell::new(0));
        let signal = || {
            told();
            signals.set(signals.get() + 1);
            stop.store(signals.get() == MOST_SIGNALS, Ordering::Relaxed);
        };
        let context = Context {
            memory,
            disk: &self.disk,
            stop: &stop,
            signal: &signal,
        };
        Server::new(context, rings, &mut self.backend).turn()
    }
}

impl Disks {
    fn new() -> Self {
        let (file, read_only_file) = (scratch_file(), scratch_file());
        file.write_all_at(&[7; DISK_BYTES + BEHIND_BYTES], 0).unwrap();
        read_only_file.write_all_at(&[5; 1500], 0).unwrap();
        let part = |file: &File, bytes: usize| resources::Part {
            file: file.try_clone().unwrap(),
            bytes: bytes as u64,
        };
        Self {
            writable: Target::new(vec![part(&file, DISK_BYTES)], false),
            // The second part ends behind its file.
            read_only: Target::new(vec![part(&file, 1024), part(&read_only_file, 4096)], true),
            file,
            read_only_file,
        }
    }

    /// The same disks for every input, with the same content.
    fn with<T>(run: impl FnOnce(&mut Self) -> T) -> T {
        thread_local! {
            static DISKS: RefCell<Option<Disks>> = const { RefCell::new(None) };
        }
        DISKS.with_borrow_mut(|disks| {
            let disks = disks.get_or_insert_with(Disks::new);
            let result = run(disks);
            disks.check_and_restore();
            result
        })
    }

    /// What is not the guest's is as it was, and what is the guest's is made so.
    fn check_and_restore(&self) {
        let mut contents = [0; DISK_BYTES + BEHIND_BYTES + 1];
        let bytes = self.file.read_at(&mut contents, 0).unwrap();
        assert_eq!(contents[DISK_BYTES..bytes], [7; BEHIND_BYTES]);
        if contents[..DISK_BYTES] != [7; DISK_BYTES] {
            self.file.write_all_at(&[7; DISK_BYTES], 0).unwrap();
        }
        let mut contents = [0; 1501];
        let bytes = self.read_only_file.read_at(&mut contents, 0).unwrap();
        assert_eq!(contents[..bytes], [5; 1500]);
    }
}

/// A request's header, and the ranges that follow it in some.
pub(crate) fn request(input: &mut Input<'_>) -> Vec<u8> {
    let kind = input.one_of(&[0_u32, 1, 4, 8, 11, 13, 99]);
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector(input).to_le_bytes());
    for _ in 0..input.below(4) {
        bytes.extend(sector(input).to_le_bytes());
        bytes.extend(u32::from(input.below(12)).to_le_bytes());
        bytes.extend(u32::from(input.below(3)).to_le_bytes());
    }
    bytes
}

/// 8 sectors are the disk's.
fn sector(input: &mut Input<'_>) -> u64 {
    match input.byte() {
        any @ 0..0xf0 => u64::from(any % 12),
        _ => input.long(),
    }
}

pub(crate) fn queue(data: &[u8]) {
    let (mut input, memory) = (Input::new(data), memory());
    let options = input.byte();
    let Some(first) = scene(&mut input, &memory, 0, request) else {
        return;
    };
    let mut scenes = vec![first];
    if options & 2 != 0 {
        scenes.extend(scene(&mut input, &memory, 1, request));
    }
    let permit = scenes
        .iter()
        .fold(Permit::none(&memory), |permit, scene| permit.and(&scene.state));
    let mut rings: Vec<Ring> = scenes.into_iter().map(|scene| scene.ring).collect();
    Disks::with(|disks| {
        let read_only = options & 1 != 0;
        let target = if read_only {
            &mut disks.read_only
        } else {
            &mut disks.writable
        };
        // Nonsense is an error, sense is served.
        let _ = target.serve(&mut rings, &memory, || ());
        if read_only {
            let mut contents = [0; DISK_BYTES];
            disks.file.read_exact_at(&mut contents, 0).unwrap();
            assert_eq!(contents, [7; DISK_BYTES]);
        }
    });
    permit.check(&memory);
}

/// A disk whose queue is served when that is asked for, by whoever asks: the real device has a thread for it.
pub(crate) struct Served {
    notification: [EventFd; 1],
    active: Option<(Ring, Activation)>,
}

impl Served {
    pub(crate) fn new() -> Self {
        Self {
            notification: [EventFd::new(EFD_CLOEXEC).unwrap()],
            active: None,
        }
    }

    pub(crate) fn serve(&mut self) {
        let Some((ring, activation)) = &mut self.active else {
            return;
        };
        let Activation {
            memory, interrupt, ..
        } = activation;
        let told = || interrupt.signal_used();
        let result = Disks::with(|disks| disks.writable.serve(std::slice::from_mut(ring), memory, told));
        if result.is_err() {
            activation.interrupt.signal_needs_reset();
            self.active = None;
        }
    }
}

impl VirtioDevice for Served {
    fn number(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }
    fn backend(&self) -> String {
        String::new()
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
    fn read_config(&self, _: u64, _: &mut [u8]) {}
    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let rings = std::mem::take(&mut activation.rings);
        let [ring] = <[Ring; 1]>::try_from(rings).map_err(|_| ActivateError::Queues)?;
        self.active = Some((ring, activation));
        Ok(())
    }
    fn reset(&mut self) {
        self.active = None;
    }
    fn queues(&self) -> Vec<RingState> {
        self.active.iter().map(|(ring, _)| ring.state()).collect()
    }
    fn save(&self) -> DeviceState {
        // The state of a disk is that of its file, and this one's never differs.
        DeviceState::Balloon
    }
    fn restore(&mut self, _: &DeviceState) -> Result<(), RestoreError> {
        Ok(())
    }
}
