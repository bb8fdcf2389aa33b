//! The end of the virtual machine.

use rustix::system::{RebootCommand, reboot};
use rvm_protocol::Doorbell;

use crate::{storage, sys};

/// Leaves the disk clean, tells the host that what follows is on purpose, and resets. The workload is gone already.
pub(crate) fn off() -> ! {
    if let Err(error) = storage::release() {
        eprintln!("rvm-agent: {error:#}");
    }
    if let Err(error) = sys::ring(Doorbell::PowerOff) {
        eprintln!("rvm-agent: ring the doorbell: {error}");
    }
    reset()
}

/// Resets the machine as the kernel's `reboot=` parameter says. Without the doorbell the host takes it for a crash.
pub(crate) fn reset() -> ! {
    // What was printed is still in the serial port's buffer; without a console there is nothing to wait for.
    let _ = rustix::termios::tcdrain(std::io::stderr());
    let _ = reboot(RebootCommand::Restart);
    // The kernel refuses the reset only without the capability for it. It panics when PID 1 ends.
    std::process::abort()
}
