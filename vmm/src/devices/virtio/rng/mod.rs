//! The entropy device (section 5.4): random bytes from the host's kernel.

mod device;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod queue;

pub use device::{Rng, RngState, RngSubscriber};
