//! Creating a file where there is one already: the guest has found none, and so has not checked whether its user may open it. The
//! worker does not open for anybody what it has not been checked for.

use std::ffi::CStr;
use std::io;

use fuse_backend_rs::abi::fuse_abi::{EntryOut, OpenOut};
use fuse_backend_rs::api::filesystem::{Context, FileSystem as _};
use fuse_backend_rs::passthrough::PassthroughFs;
use vm_memory::ByteValued as _;

use crate::request::Request;

/// How often a file is created that others make and remove meanwhile: where they do nothing else, three of four attempts fail. In a
/// directory that is gone it is tried as often.
pub(crate) const ATTEMPTS: u32 = 100;

/// Opens the file that a request was to create, and returns what the request is answered with.
///
/// # Errors
/// `ENOENT` where it has vanished; `ESTALE`, after which a guest looks at it, where it is the guest's to say whether its user may.
pub(crate) fn open_existing(files: &PassthroughFs, request: &Request<'_>) -> io::Result<Vec<u8>> {
    let asked = Asked::parse(request).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    let context = Context::default();
    let entry = files.lookup(&context, request.node(), asked.name)?;
    let node = entry.inode;
    let opened = if may_open(&entry.attr, request.user(), asked.flags) {
        files.open(&context, node, asked.flags.cast_unsigned(), asked.fuse_flags)
    } else {
        Err(io::Error::from_raw_os_error(libc::ESTALE))
    };
    let (handle, options, _) = opened.inspect_err(|_| files.forget(&context, node, 1))?;
    let open = OpenOut {
        fh: handle.unwrap_or_default(),
        open_flags: options.bits(),
        ..OpenOut::default()
    };
    Ok([EntryOut::from(entry).as_slice(), open.as_slice()].concat())
}

/// `struct fuse_create_in`, and a name.
struct Asked<'a> {
    flags: i32,
    fuse_flags: u32,
    name: &'a CStr,
}

impl<'a> Asked<'a> {
    fn parse(request: &'a Request<'_>) -> Option<Self> {
        let (fixed, name) = request.body().split_at_checked(16)?;
        let word = |at: usize| Some(u32::from_le_bytes(*fixed.get(at..)?.first_chunk()?));
        Some(Self {
            flags: word(0)?.cast_signed() & !(libc::O_CREAT | libc::O_EXCL),
            fuse_flags: word(12)?,
            name: CStr::from_bytes_with_nul(name).ok()?,
        })
    }
}

/// Whether it is certain by a file's mode that a user may open it, whatever further groups that user is in.
fn may_open(file: &libc::stat64, (user, group): (u32, u32), flags: i32) -> bool {
    let granted = match file.st_mode {
        mode if mode & libc::S_IFMT != libc::S_IFREG => 0,
        mode if file.st_uid == user => mode >> 6,
        mode if file.st_gid == group => mode >> 3,
        mode => mode & mode >> 3,
    };
    let needed = match flags & libc::O_ACCMODE {
        libc::O_RDONLY if flags & libc::O_TRUNC == 0 => 0o4,
        libc::O_WRONLY => 0o2,
        _ => 0o6,
    };
    // For this one it takes more.
    granted & needed == needed && flags & libc::O_NOATIME == 0
}

#[cfg(test)]
mod tests {
    use fuse_backend_rs::api::filesystem::Entry;

    use super::*;

    #[test]
    fn what_is_not_certain_is_the_guest_s_to_say() {
        let check = |mode: u32, user: (u32, u32), flags: i32| {
            let mut file = Entry::default().attr;
            (file.st_mode, file.st_uid, file.st_gid) = (mode, 7, 8);
            may_open(&file, user, flags)
        };
        let (owner, member, other) = ((7, 1), (1, 8), (1, 1));
        for (mode, user, read, write) in [
            (0o644, owner, true, true),
            (0o644, member, true, false),
            (0o644, other, true, false),
            (0o600, other, false, false),
            (0o066, owner, false, false),
            (0o606, member, false, false),
            // By another of its groups it may be a member.
            (0o606, other, false, false),
            (0o622, other, false, true),
            (0o600, (0, 0), false, false),
        ] {
            let mode = libc::S_IFREG | mode;
            assert_eq!(check(mode, user, libc::O_RDONLY), read, "{mode:o} {user:?}");
            assert_eq!(check(mode, user, libc::O_WRONLY), write, "{mode:o} {user:?}");
            for flags in [libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
                assert_eq!(check(mode, user, flags), read && write, "{mode:o} {user:?}");
            }
            assert!(!check(mode, user, libc::O_NOATIME));
        }
        for kind in [libc::S_IFDIR, libc::S_IFLNK, libc::S_IFIFO] {
            assert!(!check(kind | 0o777, owner, libc::O_RDONLY));
        }
    }
}
