//! The block device (section 5.2): a disk made of parts of host files.

mod device;
mod disk;
mod queue;

pub use device::{Block, BlockState};
pub use disk::{Disk, DiskError};
