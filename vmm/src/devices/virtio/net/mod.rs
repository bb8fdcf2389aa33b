//! The network device (section 5.1): pairs of queues between a guest and the queues of a TAP interface.
//!
//! The kernel's network stack does the work: frames go between guest memory and the interface without a copy here, each
//! with the header by which guest and host agree on checksums and segments that are still to be made.

mod device;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod queue;
mod tap;
#[cfg(test)]
pub(super) mod tests;
mod worker;

pub use device::{Net, NetError, NetState, Settings};
pub use tap::{Port, Tap, TapError};
pub use worker::Counters;
