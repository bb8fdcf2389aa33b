//! Lists of directories with `.` and `..`, as every local file system gives them; the library leaves both out. Entries have the
//! numbers that the files' attributes have, not those by which the library knows them.

use std::ffi::CStr;
use std::io;

use fuse_backend_rs::abi::fuse_abi::Dirent;
use fuse_backend_rs::api::filesystem::{Context, DirEntry, FileSystem as _};
use fuse_backend_rs::passthrough::PassthroughFs;
use rvm_vmm::devices::virtio::fs::MAX_DATA_BYTES;
use vm_memory::ByteValued as _;

/// Where a list goes on after `.` and after `..`. No file system of Linux gives these: hashes of ext4 end below
/// `0x7fffffff_00000000` (fs/ext4/dir.c), and what others count is far smaller.
const AFTER_SELF: u64 = i64::MAX as u64 - 2;
const AFTER_PARENT: u64 = i64::MAX as u64 - 1;

/// Least that is read of a directory at a time, in bytes; what does not fit into an answer is read again.
const LEAST_READ: u32 = 4096;

/// How often entries are read where the first one is gone when it is looked at. An empty directory is read as often.
const ATTEMPTS: u32 = 8;

/// The root directory of a share (FUSE_ROOT_ID in include/uapi/linux/fuse.h).
const ROOT: u64 = 1;

/// What a driver asks for: `struct fuse_read_in`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    node: u64,
    handle: u64,
    offset: u64,
    size: u32,
}

impl Asked {
    /// Takes a request's body apart. A driver may ask for more than it can be sent, and gets as much as that.
    pub(crate) fn parse(node: u64, body: &[u8]) -> Option<Self> {
        let long = |at: usize| Some(u64::from_le_bytes(*body.get(at..)?.first_chunk()?));
        let size = u32::from_le_bytes(*body.get(16..)?.first_chunk()?);
        Some(Self {
            node,
            handle: long(0)?,
            offset: long(8)?,
            size: size.min(MAX_DATA_BYTES),
        })
    }
}

/// The next entries, as they are sent; nothing at the end.
///
/// # Errors
/// Those of the host's file system. `EINVAL` if not even the next entry fits.
pub(crate) fn list(files: &PassthroughFs, asked: Asked) -> io::Result<Vec<u8>> {
    let mut list = List {
        bytes: Vec::new(),
        room: asked.size as usize,
    };
    let fits = list.add_own(files, asked)?;
    // What is left of the room may be too little for any entry; then the next request gets it.
    if fits {
        let offset = match asked.offset {
            AFTER_SELF | AFTER_PARENT => 0,
            offset => offset,
        };
        until_sure(&mut || {
            let result = list.add_others(files, Asked { offset, ..asked });
            if list.bytes.is_empty() {
                result.map(|()| Found::Nothing { is_end: offset > 0 })
            } else {
                Ok(Found::Entries)
            }
        })?;
    } else if list.bytes.is_empty() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(list.bytes)
}

/// What a read found.
enum Found {
    Entries,
    Nothing { is_end: bool },
}

/// Reads until it is sure that what was found is all: the library stops at an entry that somebody has removed meanwhile. At the first
/// one it fails with the error that C libraries take for the end of a directory; right behind the two that it leaves out it does not.
fn until_sure(read: &mut dyn FnMut() -> io::Result<Found>) -> io::Result<()> {
    for _ in 1..ATTEMPTS {
        match read() {
            Ok(Found::Nothing { is_end: false }) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            sure => return sure.map(drop),
        }
    }
    read().map(drop)
}

struct List {
    bytes: Vec<u8>,
    room: usize,
}

impl List {
    /// Adds `.` and `..` where they come next. Whether there was room.
    fn add_own(&mut self, files: &PassthroughFs, asked: Asked) -> io::Result<bool> {
        let context = Context::default();
        let mut add = |ino, name: &[u8], offset| {
            let entry = DirEntry {
                ino,
                offset,
                type_: u32::from(libc::DT_DIR),
                name,
            };
            self.add(&entry) > 0
        };
        if asked.offset == 0 {
            let (own, _) = files.getattr(&context, asked.node, None)?;
            if !add(own.st_ino, b".", AFTER_SELF) {
                return Ok(false);
            }
        }
        if asked.offset == 0 || asked.offset == AFTER_SELF {
            let parent = parent(files, asked.node)?;
            return Ok(add(parent, b"..", AFTER_PARENT));
        }
        Ok(true)
    }

    /// Adds what the library lists.
    fn add_others(&mut self, files: &PassthroughFs, asked: Asked) -> io::Result<()> {
        let context = Context::default();
        let Asked {
            node, handle, offset, ..
        } = asked;
        // Of a read that finds no more than `.` and `..` the library makes nothing, which would be the end.
        let size = asked.size.max(LEAST_READ);
        // It looks each entry up in either case, and so gives the number that the file has.
        files.readdirplus(&context, node, handle, size, offset, &mut |entry, found| {
            let length = self.add(&entry);
            if length > 0 {
                // The driver does not hear of it. Of an entry that has no room the library forgets it.
                files.forget(&context, found.inode, 1);
            }
            Ok(length)
        })
    }

    /// Adds an entry and returns its length, 0 if there is no room.
    fn add(&mut self, entry: &DirEntry<'_>) -> usize {
        let Ok(namelen) = u32::try_from(entry.name.len()) else {
            return 0;
        };
        let head = Dirent {
            ino: entry.ino,
            off: entry.offset,
            namelen,
            type_: entry.type_,
        };
        let length = (size_of::<Dirent>() + entry.name.len()).next_multiple_of(8);
        let end = self.bytes.len() + length;
        if end > self.room {
            return 0;
        }
        self.bytes.extend(head.as_slice());
        self.bytes.extend(entry.name);
        self.bytes.resize(end, 0);
        length
    }
}

/// The number of the directory above, as far as the share goes.
fn parent(files: &PassthroughFs, node: u64) -> io::Result<u64> {
    const PARENT: &CStr = c"..";
    let context = Context::default();
    if node == ROOT {
        return Ok(files.getattr(&context, node, None)?.0.st_ino);
    }
    let found = files.lookup(&context, node, PARENT)?;
    files.forget(&context, found.inode, 1);
    Ok(found.attr.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_removed_meanwhile_does_not_end_a_list() {
        let gone = || Err(io::Error::from_raw_os_error(libc::ENOENT));
        let after = |times: u32, first: &dyn Fn() -> io::Result<Found>| {
            let mut reads = 0;
            let result = until_sure(&mut || {
                reads += 1;
                if reads <= times {
                    first()
                } else {
                    Ok(Found::Entries)
                }
            });
            (reads, result.map_err(|error| error.raw_os_error().unwrap()))
        };
        assert_eq!(after(0, &gone), (1, Ok(())));
        assert_eq!(after(3, &gone), (4, Ok(())));
        assert_eq!(after(100, &gone), (ATTEMPTS, Err(libc::ENOENT)));
        let maybe = || Ok(Found::Nothing { is_end: false });
        assert_eq!(after(3, &maybe), (4, Ok(())));
        assert_eq!(after(100, &maybe), (ATTEMPTS, Ok(())));
        assert_eq!(after(100, &|| Ok(Found::Nothing { is_end: true })), (1, Ok(())));
        let other = || Err(io::Error::from_raw_os_error(libc::EIO));
        assert_eq!(after(100, &other), (1, Err(libc::EIO)));
    }
}
