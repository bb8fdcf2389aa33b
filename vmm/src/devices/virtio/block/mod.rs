//! The block device (section 5.2): a disk made of parts of host files.

mod backend;
mod device;
mod disk;
mod queue;
mod request;
#[cfg(test)]
mod tests;

pub use backend::BackendKind;
pub use device::{Block, BlockState, MAX_QUEUES};
pub use disk::{Disk, DiskError};
