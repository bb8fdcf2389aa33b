//! The balloon device (section 5.5): memory that the guest does not use goes back to the host.
//!
//! The guest reports pages as it frees them (section 5.5.6.7), so nobody has to set a size: the balloon itself is always
//! empty unless the driver fills it.

mod device;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod queue;

pub use device::{Balloon, BalloonSubscriber};
