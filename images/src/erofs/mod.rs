//! EROFS, the read-only file system that layers are mounted as: its format, a writer and a reader.
//!
//! Only the part that a layer needs: blocks of 4096 bytes, extended inodes (nanoseconds, 32-bit owners, 64-bit
//! sizes), flat data with the last partial block kept beside the inode, inline extended attributes, directories
//! sorted for binary search. No compression: layers are read where they lie, by as many containers as there are.
//!
//! The format is that of Linux's fs/erofs/erofs_fs.h, readable by every kernel since 5.4 and by erofs-utils.

mod directory;
mod format;
mod reader;
mod writer;

pub(crate) use directory::DirectoryChild;
pub(crate) use format::{FileType, Metadata, Xattrs, check_xattr_name};
pub(crate) use reader::{Error as ReadError, Inode, Reader};
pub(crate) use writer::{Error as WriteError, Nid, Writer};
