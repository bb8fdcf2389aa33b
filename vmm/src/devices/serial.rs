//! The first serial port, a 16550: the guest's console. Output only.

use std::io;

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Uart, SerialState};
use vmm_sys_util::eventfd::EventFd;

use super::console::Console;
use crate::bus::BusDevice;

/// I/O ports of the first serial port.
pub const PORTS: std::ops::Range<u64> = 0x3f8..0x400;

/// An interrupt line that is raised through KVM's irqfd.
#[derive(Debug)]
pub struct InterruptLine(pub EventFd);

impl Trigger for InterruptLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The port.
#[derive(Debug)]
pub struct Serial(Uart<InterruptLine, NoEvents, Console>);

impl Serial {
    /// A port at reset that prints to `console`.
    #[must_use]
    pub fn new(interrupt: InterruptLine, console: Console) -> Self {
        Self(Uart::new(interrupt, console))
    }

    /// What the guest can see of it.
    #[must_use]
    pub fn state(&self) -> SerialState {
        self.0.state()
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self.0.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            // Fails only if the interrupt's eventfd is full, and then the interrupt is pending anyway.
            let _ = self.0.write(offset, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_reach_the_console_and_wide_accesses_do_nothing() {
        let console = Console::new(None);
        let mut serial = Serial::new(InterruptLine(EventFd::new(0).unwrap()), console.clone());
        for byte in b"hi" {
            serial.write(0, &[*byte]);
        }
        serial.write(0, b"wide");
        assert_eq!(console.tail(), "hi");
        let mut status = [0];
        serial.read(5, &mut status);
        assert_eq!(status[0] & 0x60, 0x60, "the transmitter is always empty");
        let mut wide = [0xff; 2];
        serial.read(5, &mut wide);
        assert_eq!(wide, [0xff; 2]);
    }
}
