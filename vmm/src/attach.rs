//! Attaches virtio devices to a machine: each gets an address, an interrupt line, and a word on the kernel's command
//! line, which is how a guest without firmware finds it.

use std::io;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::arch::x86_64::cmdline::CommandLine;
use crate::arch::x86_64::layout::{DEVICE_INTERRUPTS, MMIO_DEVICE_BYTES, MMIO_START};
use crate::bus::{Bus, Overlap, lock};
use crate::devices::virtio::balloon::{Balloon, BalloonSubscriber};
use crate::devices::virtio::block::{Block, Disk, DiskError};
use crate::devices::virtio::fs::{Fs, FsError, FsSubscriber};
use crate::devices::virtio::interrupt::{ACKNOWLEDGE_REGISTER, Interrupt, USED_BUFFER};
use crate::devices::virtio::mmio::{MmioTransport, NOTIFY_REGISTER, SharedDevice};
use crate::devices::virtio::net::{Net, NetError};
use crate::devices::virtio::registers::Registers;
use crate::devices::virtio::rng::{Rng, RngSubscriber};
use crate::devices::virtio::vsock::{Vsock, VsockSubscriber};
use crate::event_loop::Subscriber;
use crate::resources;
use crate::seccomp::Filters;
use crate::status::DeviceStatus;
use crate::stop::StopSignal;
use crate::vm::{Vm, VmError};

/// Why a device was not attached.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There are as many devices as interrupt lines already.
    #[error("the machine has at most {most} virtio devices", most = DEVICE_INTERRUPTS.len())]
    TooMany,
    /// An event descriptor, timer or duplicate could not be made.
    #[error("cannot make a device's event descriptors")]
    Descriptor(#[source] io::Error),
    /// A disk's files.
    #[error("disk {index}")]
    Disk {
        /// Its place among the disks.
        index: usize,
        /// What is wrong.
        #[source]
        source: DiskError,
    },
    /// A network device's queues.
    #[error("network device {index}")]
    Network {
        /// Its place among the network devices.
        index: usize,
        /// What is wrong.
        #[source]
        source: NetError,
    },
    /// A file system's worker.
    #[error("file system {tag}")]
    FileSystem {
        /// Its tag.
        tag: String,
        /// What is wrong.
        #[source]
        source: FsError,
    },
    /// KVM would not connect it.
    #[error(transparent)]
    Connect(#[from] VmError),
    /// Its address is taken.
    #[error(transparent)]
    Bus(#[from] Overlap),
}

/// A device in its place.
pub struct AttachedDevice {
    pub(crate) transport: Arc<Mutex<MmioTransport>>,
    address: u64,
    line: u32,
}

impl AttachedDevice {
    /// What it is and how far its driver has come.
    #[must_use]
    pub fn status(&self) -> DeviceStatus {
        lock(&self.transport).status_at(self.address, self.line)
    }
}

/// The devices of a machine that is being built.
pub struct VirtioDevices<'a> {
    vm: &'a Vm,
    vcpus: u8,
    command_line: &'a mut CommandLine,
    filters: &'a Filters,
    bus: Bus,
    subscribers: Vec<Subscriber>,
    devices: Vec<AttachedDevice>,
    attached: usize,
    disks: usize,
    networks: usize,
}

impl<'a> VirtioDevices<'a> {
    /// No devices yet. Each one that is added has queues for `vcpus` processors if that pays, is announced on `command_line`,
    /// and starts its threads under `filters`.
    #[must_use]
    pub fn new(vm: &'a Vm, vcpus: u8, command_line: &'a mut CommandLine, filters: &'a Filters) -> Self {
        Self {
            vm,
            vcpus,
            command_line,
            filters,
            bus: Bus::default(),
            subscribers: Vec::new(),
            devices: Vec::new(),
            attached: 0,
            disks: 0,
            networks: 0,
        }
    }

    /// Adds a disk; the first one is `vda`.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn add_disk(&mut self, disk: resources::Disk) -> Result<(), DeviceError> {
        let index = self.disks;
        self.disks += 1;
        let disk = Disk::new(disk).map_err(|source| DeviceError::Disk { index, source })?;
        let block = Block::new(disk, self.vcpus, self.filters).map_err(DeviceError::Descriptor)?;
        self.attach(Arc::new(Mutex::new(block)))
    }

    /// Adds a network device; the first one is `eth0`.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn add_network(&mut self, network: resources::Network) -> Result<(), DeviceError> {
        let index = self.networks;
        self.networks += 1;
        let net =
            Net::on_tap(network, self.filters).map_err(|source| DeviceError::Network { index, source })?;
        self.attach(Arc::new(Mutex::new(net)))
    }

    /// Adds a socket device.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn add_vsock(&mut self, vsock: resources::Vsock, stop: &Arc<StopSignal>) -> Result<(), DeviceError> {
        let device = Vsock::new(vsock.guest_cid, vsock.listener).map_err(DeviceError::Descriptor)?;
        let device = Arc::new(Mutex::new(device));
        self.subscribers.push(Arc::new(Mutex::new(VsockSubscriber::new(
            device.clone(),
            stop.clone(),
        ))));
        self.attach(device)
    }

    /// Adds a file system device.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn add_file_system(
        &mut self,
        file_system: resources::FileSystem,
        stop: &Arc<StopSignal>,
    ) -> Result<(), DeviceError> {
        let tag = file_system.tag.as_str().to_owned();
        let device = Fs::new(file_system.tag, file_system.ends)
            .map_err(|source| DeviceError::FileSystem { tag, source })?;
        let device = Arc::new(Mutex::new(device));
        self.subscribers.push(Arc::new(Mutex::new(FsSubscriber::new(
            device.clone(),
            stop.clone(),
        ))));
        self.attach(device)
    }

    /// Adds an entropy device.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn add_rng(&mut self, stop: &Arc<StopSignal>) -> Result<(), DeviceError> {
        let device = Arc::new(Mutex::new(Rng::new().map_err(DeviceError::Descriptor)?));
        self.subscribers.push(Arc::new(Mutex::new(RngSubscriber::new(
            device.clone(),
            stop.clone(),
        ))));
        self.attach(device)
    }

    /// Adds a balloon device.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn add_balloon(&mut self, stop: &Arc<StopSignal>) -> Result<(), DeviceError> {
        let device = Arc::new(Mutex::new(Balloon::new().map_err(DeviceError::Descriptor)?));
        self.subscribers.push(Arc::new(Mutex::new(BalloonSubscriber::new(
            device.clone(),
            stop.clone(),
        ))));
        self.attach(device)
    }

    /// How many there are.
    #[must_use]
    pub fn attached(&self) -> usize {
        self.attached
    }

    /// The bus with all devices, those that the event loop has to serve, and all of them.
    #[must_use]
    pub fn finish(self) -> (Bus, Vec<Subscriber>, Vec<AttachedDevice>) {
        (self.bus, self.subscribers, self.devices)
    }

    fn attach(&mut self, device: SharedDevice) -> Result<(), DeviceError> {
        let line = *DEVICE_INTERRUPTS.get(self.attached).ok_or(DeviceError::TooMany)?;
        let index = u64::try_from(self.attached).map_err(|_| DeviceError::TooMany)?;
        let address = MMIO_START + index * MMIO_DEVICE_BYTES;
        self.attached += 1;

        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(DeviceError::Descriptor)?;
        self.vm.connect_interrupt(&event, line)?;
        for (queue, notification) in (0_u32..).zip(lock(&device).notifications()) {
            self.vm
                .connect_doorbell(notification, address + NOTIFY_REGISTER, queue)?;
        }
        // Each interrupt of a queue is acknowledged, of which nobody has to know: one way out to this process less. KVM keeps the
        // event, which nobody reads.
        let acknowledged = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(DeviceError::Descriptor)?;
        self.vm
            .connect_doorbell(&acknowledged, address + ACKNOWLEDGE_REGISTER, USED_BUFFER)?;
        let registers = Registers::new(self.vm.registers(), address).ok_or(DeviceError::TooMany)?;
        let interrupt = Arc::new(Interrupt::new(event, registers));
        let transport = MmioTransport::new(device, self.vm.memory().clone(), interrupt);
        let transport = Arc::new(Mutex::new(transport));
        self.bus
            .add(address..address + MMIO_DEVICE_BYTES, transport.clone())?;
        self.devices.push(AttachedDevice {
            transport,
            address,
            line: u32::from(line),
        });
        self.command_line
            .add(&format!("virtio_mmio.device=4K@{address:#x}:{line}"));
        Ok(())
    }
}
