//! The names of a network: one process for each network that has members, in no container's life.
//!
//! - [`start`]: whoever has a member on a network sees to it that the process runs, and starts it again when it has ended.
//! - [`process`]: what the process sets up, and [`confine`], what it gives up then.
//! - [`server`]: it answers members, about [`members`] by itself, about the rest by asking [`upstream`].
//! - [`policy`]: what a member with a policy may ask, and where its answers let it go; [`sets`] is the second process, which
//!   alone may change the host's rules.
//! - [`message`]: the questions, which come from whoever runs in a member and are not to be trusted.

pub mod confine;
#[cfg(any(test, feature = "fuzzing"))]
#[expect(clippy::unwrap_used, reason = "a harness panics where something is broken")]
pub(crate) mod fuzz;
pub mod members;
pub mod message;
pub mod policy;
pub mod process;
pub mod server;
pub mod sets;
pub mod start;
pub mod upstream;

#[cfg(test)]
mod tests;
