//! Messages and framing between the engine on the host and the agent in the guest.
//!
//! A connection is opened by the host and begins with one [`Hello`] frame, answered by one [`Welcome`] frame. What
//! follows depends on the [`Purpose`] the host named:
//!
//! - [`Purpose::Control`]: the host sends [`Request`] frames. Each is answered, in order, by one [`Event::Done`] or
//!   [`Event::Failed`] frame, but for [`Request::Resize`]; [`Event::Exited`] arrives by itself, once, when the workload has ended.
//! - [`Purpose::Exec`]: the same for one further process of the container.
//! - [`Purpose::Stream`], [`Purpose::ExecStream`]: raw bytes with no framing, one way only. End of file is a half-close of the connection.
//! - [`Purpose::Archive`]: the container's files as a tar stream, guest to host, as [`send_archive`] writes it. Possible at
//!   any time, with or without a container.
//! - [`Purpose::Copy`]: the host sends [`CopyRequest`] frames; what follows each is said there.
//! - [`Purpose::Workload`]: the host sends one [`Ask`], answered by one [`Answer`].
//!
//! Both sides are built from one source tree and shipped together, so messages are refused rather than guessed at:
//! unknown fields are errors and [`VERSION`] must be equal.
#![forbid(unsafe_code)]

mod archive;
mod boot;
mod copy;
mod frame;
mod message;
mod workload;

pub use archive::{ArchiveEnd, ArchiveError, ArchiveReader, ArchiveWriter, Extent, send_archive};
pub use boot::{BOOT_CONFIG_PATH, BootConfig, DOORBELL_PORT, Doorbell, LayerExtent, Share};
pub use copy::{CopyAnswer, CopyFiles, CopyRequest, CopyResult, serve_copy};
pub use frame::{FrameError, MAX_FRAME_BYTES, read_frame, write_frame};
pub use message::{
    AGENT_PORT, Create, Event, Exec, Failure, FailureKind, Hello, Interface, PrivateFile, Purpose, Request,
    Stream, TerminalSize, VERSION, Welcome,
};
pub use workload::{Answer, Ask};
