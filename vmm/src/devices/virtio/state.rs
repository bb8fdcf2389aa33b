//! What a guest can see of a virtio device, as plain data: enough to go on with a device of the same kind elsewhere.
//!
//! A snapshot of a machine is the sum of these. They are taken from a paused machine, and given to one that is built alike
//! and has not run yet, after its memory. Files, sockets and threads are not part of them; whoever restores a machine
//! brings its own.

use serde::{Deserialize, Serialize};

use super::ActivateError;
use super::block::BlockState;
use super::fs::FsState;
use super::interrupt::InterruptState;
use super::mmio::TransportState;
use super::net::NetState;
use super::ring::RingError;
use super::rng::RngState;
use super::vsock::VsockState;

/// A device with its transport.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtioState {
    /// The registers, and the queues as far as they were used.
    pub transport: TransportState,
    /// The interrupt.
    pub interrupt: InterruptState,
    /// What the device has of its own.
    pub device: DeviceState,
}

/// What a device has besides its queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DeviceState {
    /// A balloon has nothing: what was given up is gone from memory.
    Balloon,
    /// A disk.
    Block(BlockState),
    /// A network device.
    Net(NetState),
    /// A shared directory.
    Fs(FsState),
    /// An entropy source.
    Rng(RngState),
    /// A socket device.
    Vsock(VsockState),
}

/// Why a device does not go on from a state.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state is of a device of another kind.
    #[error("the state belongs to a device of another kind")]
    Kind,
    /// The device was built differently, as the guest would see.
    #[error("the device differs from the saved one in its {0}")]
    Differs(&'static str),
    /// The queues.
    #[error("a saved queue cannot be used")]
    Queue(#[from] RingError),
    /// The device would not start.
    #[error(transparent)]
    Activate(#[from] ActivateError),
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::{Arc, Mutex};

    use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INTERRUPT_ACK;
    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::bus::{BusDevice as _, lock};
    use crate::devices::virtio::VirtioDevice;
    use crate::devices::virtio::balloon::Balloon;
    use crate::devices::virtio::block::{Block, Disk};
    use crate::devices::virtio::fs::{self, Fs};
    use crate::devices::virtio::interrupt::Interrupt;
    use crate::devices::virtio::mmio::MmioTransport;
    use crate::devices::virtio::net::Net;
    use crate::devices::virtio::net::tests::one_pair;
    use crate::devices::virtio::rng::Rng;
    use crate::devices::virtio::test_driver::{Driver, start};
    use crate::devices::virtio::vsock::Vsock;
    use crate::memory::GuestMemory;
    use crate::resources;
    use crate::seccomp::Filters;

    /// A device in its machine.
    struct Attached<D> {
        device: Arc<Mutex<D>>,
        transport: MmioTransport,
        /// Readable after an interrupt.
        line: EventFd,
    }

    fn attach<D: VirtioDevice + 'static>(device: D, memory: &GuestMemory) -> Attached<D> {
        let (device, line) = (Arc::new(Mutex::new(device)), EventFd::new(0).unwrap());
        let interrupt = Arc::new(Interrupt::of_test(line.try_clone().unwrap()));
        let transport = MmioTransport::new(device.clone(), memory.clone(), interrupt);
        Attached {
            device,
            transport,
            line,
        }
    }

    fn used(drivers: &[Driver]) -> usize {
        drivers.iter().map(|driver| driver.used().len()).sum()
    }

    /// Saves a device after some work, and goes on with another one: it has the same state, also when that was written
    /// down in between, and works on from where the first one stopped.
    fn check<D: VirtioDevice + 'static>(make: impl Fn() -> D, work: impl Fn(&Attached<D>, &[Driver])) {
        let memory = crate::memory::allocate(4).unwrap();
        let mut first = attach(make(), &memory);
        let count = lock(&first.device).queue_sizes().len();
        let drivers: Vec<Driver> = (0..count)
            .map(|index| Driver::in_memory(memory.clone(), 8, index as u64))
            .collect();
        start(&mut first.transport, &drivers);
        work(&first, &drivers);
        let before = used(&drivers);
        assert_ne!(before, 0, "the work used a queue");
        let acknowledge = u64::from(VIRTIO_MMIO_INTERRUPT_ACK);
        first.transport.write(acknowledge, &3_u32.to_le_bytes());
        lock(&first.device).pause();
        let saved = first.transport.save();
        drop(first);

        let json = serde_json::to_string(&saved).unwrap();
        let read: VirtioState = serde_json::from_str(&json).unwrap();
        assert_eq!(read, saved);
        let mut second = attach(make(), &memory);
        second.transport.restore(&read).unwrap();
        lock(&second.device).pause();
        assert_eq!(second.transport.save(), saved);
        lock(&second.device).resume().unwrap();
        work(&second, &drivers);
        assert!(used(&drivers) >= 2 * before);

        let device = match saved.device {
            DeviceState::Balloon => DeviceState::Rng(RngState::default()),
            _ => DeviceState::Balloon,
        };
        let refused = attach(make(), &memory)
            .transport
            .restore(&VirtioState { device, ..saved });
        assert!(matches!(refused, Err(RestoreError::Kind)));
    }

    /// The second device is refused what the first one saves: a guest would see that it is another.
    fn check_differs<D: VirtioDevice + 'static>(first: D, second: D) {
        let memory = crate::memory::allocate(4).unwrap();
        let saved = attach(first, &memory).transport.save();
        let refused = attach(second, &memory).transport.restore(&saved);
        assert!(matches!(refused, Err(RestoreError::Differs(_))));
    }

    #[test]
    fn a_disk_goes_on() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let make = |bytes| {
            let file = file.try_clone().unwrap();
            let parts = vec![resources::Part { file, bytes }];
            let disk = resources::Disk {
                parts,
                read_only: false,
            };
            Block::new(Disk::new(disk).unwrap(), 1, &Filters::none()).unwrap()
        };
        check(
            || make(4096),
            |attached, drivers| {
                drivers[0].request(&[&[0; 16]], &[512, 1]);
                lock(&attached.device).notifications()[0].write(1).unwrap();
                attached.line.read().unwrap();
            },
        );
        check_differs(make(4096), make(2048));
    }

    #[test]
    fn an_entropy_source_goes_on() {
        let work = |attached: &Attached<Rng>, drivers: &[Driver]| {
            drivers[0].request(&[], &[64]);
            lock(&attached.device).serve();
        };
        check(|| Rng::new().unwrap(), work);
    }

    #[test]
    fn a_shared_directory_goes_on_with_another_worker() {
        let worker = std::cell::RefCell::new(None);
        let make = |tag| {
            let (device, its_worker) = fs::tests::device(tag);
            worker.replace(Some(its_worker));
            device
        };
        let work = |attached: &Attached<Fs>, drivers: &[Driver]| {
            drivers[1].request(&[&fs::tests::request(1, 7, b"name\0")], &[16]);
            lock(&attached.device).serve(None);
            let worker = worker.borrow();
            let worker = worker.as_ref().unwrap();
            let (id, _, _) = worker.next().unwrap();
            worker.answer(id, &[]);
            lock(&attached.device).serve(None);
        };
        check(|| make("data"), work);
        check_differs(make("data"), make("other"));
    }

    #[test]
    fn a_balloon_goes_on() {
        let work = |attached: &Attached<Balloon>, drivers: &[Driver]| {
            for driver in drivers {
                driver.request(&[], &[4096]);
            }
            lock(&attached.device).serve();
        };
        check(|| Balloon::new().unwrap(), work);
    }

    #[test]
    fn a_socket_device_goes_on_without_its_connections() {
        let directory = tempfile::tempdir().unwrap();
        let number = std::cell::Cell::new(0);
        let make = |cid| {
            number.set(number.get() + 1);
            let listener = UnixListener::bind(directory.path().join(number.get().to_string()));
            Vsock::new(cid, listener.unwrap()).unwrap()
        };
        // The guest gives a buffer for an event; it is told of its lost connections once, after it was restored.
        let work = |attached: &Attached<Vsock>, drivers: &[Driver]| {
            drivers[2].request(&[], &[4]);
            drivers[1].request(&[&[0; 44]], &[]);
            lock(&attached.device).serve();
            let announced = usize::from(number.get() == 2);
            assert_eq!(
                (drivers[2].used().len(), drivers[1].used().len()),
                (announced, number.get())
            );
        };
        check(|| make(3), work);
        check_differs(make(3), make(4));
    }

    #[test]
    fn a_network_device_goes_on() {
        let wires = std::cell::RefCell::new(Vec::new());
        let make = |mac| {
            let (device, wire) = one_pair(mac);
            wires.borrow_mut().push(wire);
            device
        };
        // A frame in each direction; the buffers for another are there, and taken in advance.
        let work = |attached: &Attached<Net>, drivers: &[Driver]| {
            let wires = wires.borrow();
            let wire = wires.last().unwrap();
            let before = used(drivers);
            drivers[0].request(&[], &[1514]);
            drivers[0].request(&[], &[1514]);
            drivers[1].request(&[&[0; 72]], &[]);
            rustix::io::write(wire, &[0; 72]).unwrap();
            lock(&attached.device).notifications()[0].write(1).unwrap();
            lock(&attached.device).notifications()[1].write(1).unwrap();
            while used(drivers) < before + 2 {
                attached.line.read().unwrap();
            }
            assert_eq!(drivers[0].used().len(), drivers[1].used().len());
        };
        check(|| make(1), work);
        check_differs(make(1), make(2));
    }
}
