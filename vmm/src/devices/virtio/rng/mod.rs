//! The entropy device (section 5.4): random bytes from the host's kernel.

mod device;
mod queue;

pub use device::{Rng, RngState, RngSubscriber};
