//! Messages and framing between the engine on the host and the agent in the guest.
//!
//! A connection is opened by the host and begins with one [`Hello`] frame, answered by one [`Welcome`] frame. What
//! follows depends on the [`Purpose`] the host named:
//!
//! - [`Purpose::Control`]: the host sends [`Request`] frames. Each is answered, in order, by one [`Event::Done`] or
//!   [`Event::Failed`] frame; [`Event::Exited`] arrives by itself, once, when the workload has ended.
//! - [`Purpose::Stream`]: raw bytes with no framing, one way only. End of file is a half-close of the connection.
//!
//! Both sides are built from one source tree and shipped together, so messages are refused rather than guessed at:
//! unknown fields are errors and [`VERSION`] must be equal.
#![forbid(unsafe_code)]

mod boot;
mod frame;
mod message;

pub use boot::{BOOT_CONFIG_PATH, BootConfig, DOORBELL_PORT, Doorbell, LayerExtent};
pub use frame::{FrameError, MAX_FRAME_BYTES, read_frame, write_frame};
pub use message::{
    AGENT_PORT, Create, Event, Failure, FailureKind, Hello, Purpose, Request, Stream, VERSION, Welcome,
};
