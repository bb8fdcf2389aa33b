//! How a device tells its driver something: the interrupt status register and the line behind it.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INTERRUPT_ACK;
use vmm_sys_util::eventfd::EventFd;

use super::registers::Registers;

/// Register that a driver writes to acknowledge an interrupt, for KVM's ioeventfd.
pub const ACKNOWLEDGE_REGISTER: u64 = VIRTIO_MMIO_INTERRUPT_ACK as u64;
/// Section 4.2.2: a queue has used buffers.
pub const USED_BUFFER: u32 = 1;
/// Section 4.2.2: configuration or status has changed.
pub const CONFIGURATION_CHANGE: u32 = 2;

/// Shared by a device and its transport; neither waits for the other.
#[derive(Debug)]
pub struct Interrupt {
    registers: Registers,
    line: EventFd,
}

/// What a guest can see of an interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterruptState {
    status: u32,
    needs_reset: bool,
}

impl Interrupt {
    /// An interrupt whose line is raised by writing `line`, of a device with these registers.
    #[must_use]
    pub fn new(line: EventFd, registers: Registers) -> Self {
        Self { registers, line }
    }

    /// The interrupt of a device whose registers no guest sees.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn of_test(line: EventFd) -> Self {
        Self::new(line, Registers::of_test())
    }

    /// The registers of the device, of which the cause of the interrupt is one.
    #[must_use]
    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    /// Tells the driver that a queue has used buffers.
    pub fn signal_used(&self) {
        self.raise(USED_BUFFER);
    }

    /// Tells the driver that the device has failed and does nothing until it is reset (section 2.1.2).
    pub fn signal_needs_reset(&self) {
        self.registers.set_needs_reset(true);
        self.raise(CONFIGURATION_CHANGE);
    }

    fn raise(&self, cause: u32) {
        self.registers.add_causes(cause);
        // An eventfd refuses a write only when its counter is full, and then the interrupt is pending.
        let _ = self.line.write(1);
    }

    /// What the register of causes holds. The driver reads it, writes back what it has read (section 4.2.3.4), and then looks at
    /// its queues. That write is swallowed by KVM where the cause is a used buffer alone, so that the register goes on saying that
    /// there is one: a driver looks at its queues once too often where it is interrupted for something else.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.registers.causes()
    }

    /// The driver has handled `causes`.
    pub fn acknowledge(&self, causes: u32) {
        self.registers.remove_causes(causes);
    }

    /// Whether the device has failed since it was reset.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.registers.needs_reset()
    }

    /// What the guest can see.
    #[must_use]
    pub fn save(&self) -> InterruptState {
        InterruptState {
            status: self.status(),
            needs_reset: self.needs_reset(),
        }
    }

    /// Takes over what was saved. An interrupt that the driver has not acknowledged is raised once more: whether it was
    /// delivered is not known, and a driver that finds nothing to do goes on.
    pub fn restore(&self, state: InterruptState) {
        self.registers.set_needs_reset(state.needs_reset);
        if state.status != 0 {
            self.raise(state.status);
        }
    }

    /// The driver has reset the device.
    pub fn clear(&self) {
        self.registers.remove_causes(u32::MAX);
        self.registers.set_needs_reset(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_gather_until_acknowledged() {
        let line = EventFd::new(0).unwrap();
        let interrupt = Interrupt::of_test(line.try_clone().unwrap());
        interrupt.signal_used();
        interrupt.signal_needs_reset();
        assert_eq!(interrupt.status(), USED_BUFFER | CONFIGURATION_CHANGE);
        assert_eq!(line.read().unwrap(), 2);
        interrupt.acknowledge(USED_BUFFER);
        assert_eq!(interrupt.status(), CONFIGURATION_CHANGE);
        assert!(interrupt.needs_reset());
        interrupt.clear();
        assert_eq!((interrupt.status(), interrupt.needs_reset()), (0, false));
    }

    #[test]
    fn what_was_not_acknowledged_is_raised_again() {
        let interrupt = |line: &EventFd| Interrupt::of_test(line.try_clone().unwrap());
        let (before, after) = (
            EventFd::new(0).unwrap(),
            EventFd::new(libc::EFD_NONBLOCK).unwrap(),
        );
        let saved = interrupt(&before).save();
        interrupt(&after).restore(saved);
        assert!(after.read().is_err(), "nothing was pending");
        let first = interrupt(&before);
        first.signal_used();
        first.signal_needs_reset();
        let second = interrupt(&after);
        second.restore(first.save());
        assert_eq!(second.save(), first.save());
        assert_eq!(after.read().unwrap(), 1);
    }
}
