//! The first serial port, a 16550: the guest's console. Output only.

use std::io;

use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Uart};
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

/// What a guest can see of the port: the registers of a 16550. Nothing is ever received, so there is no buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialState {
    baud_divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
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
    pub fn save(&self) -> SerialState {
        let state = self.0.state();
        SerialState {
            baud_divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
        }
    }

    /// A port that goes on from a saved state.
    ///
    /// # Errors
    /// Those of raising an interrupt that was pending.
    pub fn restore(interrupt: InterruptLine, console: Console, state: &SerialState) -> io::Result<Self> {
        let [baud_divisor_low, baud_divisor_high] = state.baud_divisor;
        let state = vm_superio::SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: Vec::new(),
        };
        let port = Uart::from_state(&state, interrupt, NoEvents, console);
        port.map(Self)
            .map_err(|error| io::Error::other(error.to_string()))
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

    #[test]
    fn a_port_goes_on_from_its_state() {
        let console = Console::new(None);
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let interrupt = || InterruptLine(line.try_clone().unwrap());
        let mut first = Serial::new(interrupt(), console.clone());
        first.write(7, &[0x5a]); // scratch
        first.write(1, &[2]); // an interrupt when the transmitter is empty, which it always is
        first.write(0, b"x");
        let saved: SerialState =
            serde_json::from_str(&serde_json::to_string(&first.save()).unwrap()).unwrap();
        line.read().unwrap();
        let mut second = Serial::restore(interrupt(), console.clone(), &saved).unwrap();
        assert_eq!(second.save(), first.save());
        line.read()
            .expect("the interrupt that was not acknowledged is raised again");
        second.write(0, b"y");
        assert_eq!(console.tail(), "xy");
        let mut scratch = [0];
        second.read(7, &mut scratch);
        assert_eq!(scratch, [0x5a]);
    }
}
