//! One I/O port through which the guest sends single bytes to the supervisor, so that nobody has to poll for its state.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::reporter::Reporter;

/// The port.
pub struct Doorbell(Arc<Reporter>);

impl Doorbell {
    /// Rings at `reporter`.
    #[must_use]
    pub fn new(reporter: Arc<Reporter>) -> Self {
        Self(reporter)
    }
}

impl BusDevice for Doorbell {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if let [value] = data {
            self.0.doorbell(*value);
        }
    }
}
