//! Virtio 1.2 devices on the memory-mapped transport.
//!
//! A device has three layers, so that each is tested without the next: `queue.rs` works on descriptor chains and knows
//! no event descriptor, `device.rs` holds features, configuration space and activation, and [`mmio`] is the transport
//! that the guest's driver talks to. Section numbers are those of the virtio specification 1.2.

pub mod balloon;
pub mod block;
pub mod chain;
mod descriptors;
pub mod fs;
#[cfg(any(test, feature = "fuzzing"))]
#[expect(
    clippy::unwrap_used,
    reason = "a harness whose scene cannot be set up has to stop"
)]
pub(crate) mod fuzz;
#[cfg(test)]
pub(crate) mod hostile;
#[cfg(test)]
mod hostile_guest;
pub mod interrupt;
pub mod mmio;
pub mod net;
pub mod registers;
pub mod ring;
pub mod rng;
pub mod state;
#[cfg(test)]
pub(crate) mod test_driver;
pub mod vsock;

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestMemory;
use interrupt::Interrupt;
use ring::{Ring, RingState};
use state::{DeviceState, RestoreError};

/// A virtio device as the transport sees it.
pub trait VirtioDevice: Send {
    /// Device number (section 5).
    fn number(&self) -> u32;

    /// What is behind it on the host, for a person.
    fn backend(&self) -> String;

    /// Features of the device's own; the transport adds those that concern it.
    fn features(&self) -> u64;

    /// Largest size of each queue, a power of two.
    fn queue_sizes(&self) -> &[u16];

    /// How many of the queues, from the first one on, a driver that has agreed on `features` sets up. The others are not
    /// touched, and [`Activation::rings`] does not have them.
    fn queues_in_use(&self, features: u64) -> usize {
        let _ = features;
        self.queue_sizes().len()
    }

    /// An event descriptor per queue, written when the driver notifies the queue. KVM writes them without leaving the
    /// guest, from the machine's start on; before activation nobody looks at them.
    fn notifications(&self) -> &[EventFd];

    /// Reads from the configuration space. What lies outside stays as it is.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Starts the device: the driver has set `DRIVER_OK`, and the queues are valid.
    ///
    /// # Errors
    /// [`ActivateError`]; the transport then tells the driver that the device needs a reset.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops the device and forgets the driver. Nothing touches the queues when it returns.
    fn reset(&mut self);

    /// Stops between two requests and remembers where. Nothing touches the queues or guest memory when it returns.
    ///
    /// A device without threads does nothing: the event loop, which serves it, does not while the machine is paused.
    fn pause(&mut self) {}

    /// Goes on after [`VirtioDevice::pause`].
    ///
    /// # Errors
    /// [`ActivateError::Start`].
    fn resume(&mut self) -> Result<(), ActivateError> {
        Ok(())
    }

    /// How far the queues were used; none if the device is not active. The device is paused.
    fn queues(&self) -> Vec<RingState>;

    /// What a guest can see of the device besides its queues. The device is paused.
    fn save(&self) -> DeviceState;

    /// Takes over what was saved from another device, before it is activated.
    ///
    /// # Errors
    /// [`RestoreError`] if a guest would see that it is another device.
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError>;
}

/// What a device gets when its driver is ready.
#[derive(Debug)]
pub struct Activation {
    /// Features that both sides have agreed on.
    pub features: u64,
    /// Guest memory.
    pub memory: GuestMemory,
    /// The queues, as many as are in use.
    pub rings: Vec<Ring>,
    /// How to tell the driver something.
    pub interrupt: Arc<Interrupt>,
}

/// Why a device did not start.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The transport handed over another number of queues than the device has.
    #[error("wrong number of queues")]
    Queues,
    /// A thread or event descriptor could not be made.
    #[error("cannot start the device")]
    Start(#[from] std::io::Error),
}

/// Copies the part of `space` that a read of configuration space covers.
pub(crate) fn read_config_from(space: &[u8], offset: u64, data: &mut [u8]) {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    for (byte, value) in data.iter_mut().zip(space.iter().skip(offset)) {
        *byte = *value;
    }
}
