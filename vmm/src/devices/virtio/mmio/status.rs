//! What a transport tells about itself and its device, for a person.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_ids::{
    VIRTIO_ID_BALLOON, VIRTIO_ID_BLOCK, VIRTIO_ID_FS, VIRTIO_ID_NET, VIRTIO_ID_RNG, VIRTIO_ID_VSOCK,
};

use super::MmioTransport;
use crate::bus::lock;
use crate::devices::virtio::ring::RingState;
use crate::status::{DeviceStatus, DriverStatus, QueueStatus};

impl MmioTransport {
    /// What the device is, which is at this address and interrupt line, and how far its driver has come. The device may run.
    #[must_use]
    pub fn status_at(&self, address: u64, interrupt: u32) -> DeviceStatus {
        let queue = |queue: &RingState| QueueStatus {
            size: queue.size,
            ready: queue.ready,
        };
        DeviceStatus {
            kind: kind(self.device_number),
            backend: lock(&self.device).backend(),
            address,
            interrupt,
            features_offered: self.device_features,
            features: self.state.driver_features,
            driver: self.driver(),
            queues: self.state.queues.iter().map(queue).collect(),
        }
    }

    fn driver(&self) -> DriverStatus {
        let status = self.status();
        let stages = [
            (VIRTIO_CONFIG_S_FAILED, DriverStatus::Failed),
            (VIRTIO_CONFIG_S_NEEDS_RESET, DriverStatus::NeedsReset),
            (VIRTIO_CONFIG_S_DRIVER_OK, DriverStatus::Ready),
            (u32::MAX, DriverStatus::Starting),
        ];
        let stage = stages.into_iter().find(|(bits, _)| status & bits != 0);
        stage.map_or(DriverStatus::Absent, |(_, stage)| stage)
    }
}

/// The names of section 5.
fn kind(number: u32) -> String {
    match number {
        VIRTIO_ID_NET => "network".to_owned(),
        VIRTIO_ID_BLOCK => "block".to_owned(),
        VIRTIO_ID_RNG => "entropy".to_owned(),
        VIRTIO_ID_BALLOON => "balloon".to_owned(),
        VIRTIO_ID_VSOCK => "socket".to_owned(),
        VIRTIO_ID_FS => "file system".to_owned(),
        number => format!("device {number}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::bus::BusDevice as _;
    use crate::devices::virtio::interrupt::Interrupt;
    use crate::devices::virtio::rng::Rng;
    use crate::devices::virtio::test_driver::{Driver, start};

    #[test]
    fn a_driver_is_followed() {
        let memory = crate::memory::allocate(4).unwrap();
        let interrupt = Arc::new(Interrupt::of_test(EventFd::new(0).unwrap()));
        let device = Arc::new(Mutex::new(Rng::new().unwrap()));
        let mut transport = MmioTransport::new(device, memory.clone(), interrupt.clone());
        let check = |transport: &MmioTransport, expected: DriverStatus, ready: bool| {
            let status = transport.status_at(0xd000_0000, 5);
            assert_eq!((status.driver, status.queues.len()), (expected, 1));
            assert_eq!(status.queues[0].ready, ready);
            assert_eq!(status.kind, "entropy");
            assert_eq!(status.features & !status.features_offered, 0);
        };
        check(&transport, DriverStatus::Absent, false);
        let write_status = |transport: &mut MmioTransport, status: u32| {
            transport.write(0x70, &status.to_le_bytes());
        };
        write_status(&mut transport, 1);
        check(&transport, DriverStatus::Starting, false);
        write_status(&mut transport, 0);
        start(&mut transport, &[Driver::in_memory(memory, 8, 0)]);
        check(&transport, DriverStatus::Ready, true);
        interrupt.signal_needs_reset();
        check(&transport, DriverStatus::NeedsReset, true);
        write_status(&mut transport, 0x80);
        check(&transport, DriverStatus::Failed, true);
        write_status(&mut transport, 0);
        check(&transport, DriverStatus::Absent, false);
    }
}
