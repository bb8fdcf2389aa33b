//! The keyboard controller, of which only the reset line is there: the way a kernel with `reboot=k` resets the machine.

use std::convert::Infallible;
use std::sync::Arc;

use vm_superio::{I8042Device, Trigger};

use crate::bus::BusDevice;
use crate::event::StopReason;
use crate::stop::StopSignal;

/// I/O ports from the controller's data port to its command port.
pub const PORTS: std::ops::Range<u64> = 0x60..0x65;

/// Ends the machine.
struct Reset(Arc<StopSignal>);

impl Trigger for Reset {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.stop(StopReason::Reset, "the guest reset itself");
        Ok(())
    }
}

/// The controller.
pub struct KeyboardController(I8042Device<Reset>);

impl KeyboardController {
    /// A controller whose reset line ends the machine.
    #[must_use]
    pub fn new(stop: Arc<StopSignal>) -> Self {
        Self(I8042Device::new(Reset(stop)))
    }
}

impl BusDevice for KeyboardController {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self.0.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            let Ok(()) = self.0.write(offset, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        let stop = Arc::new(StopSignal::new().unwrap());
        let mut controller = KeyboardController::new(stop.clone());
        let mut status = [0xff];
        controller.read(4, &mut status);
        assert_eq!(
            status,
            [0],
            "the input buffer is empty, so the kernel does not wait"
        );
        controller.write(4, &[0xfd]);
        controller.write(0, &[0xfe]);
        controller.write(4, &[0xfe, 0xfe]);
        assert!(!stop.is_set());
        controller.write(4, &[0xfe]);
        assert_eq!(stop.cause().map(|cause| cause.reason), Some(StopReason::Reset));
    }
}
