//! Which FUSE requests are let through to the library, and in what shape (include/uapi/linux/fuse.h).
//!
//! A request of a kind that is not listed is answered with `ENOSYS`, which tells a driver to do without. One that is cut
//! off, or has too much, or a name that is none, is answered with `EINVAL` here: the library would answer some of these
//! twice, and others not at all.

use rvm_vmm::devices::virtio::fs::{IN_HEADER_BYTES, has_answer};
use rvm_vmm::memory::VolatileSlice;

use crate::share::Access;

pub(crate) const SYMLINK: u32 = 6;
pub(crate) const OPEN: u32 = 14;
pub(crate) const READ: u32 = 15;
pub(crate) const WRITE: u32 = 16;
pub(crate) const SETXATTR: u32 = 21;
pub(crate) const GETXATTR: u32 = 22;
pub(crate) const LISTXATTR: u32 = 23;
pub(crate) const REMOVEXATTR: u32 = 24;
pub(crate) const RELEASE: u32 = 18;
pub(crate) const FLUSH: u32 = 25;
pub(crate) const INIT: u32 = 26;
pub(crate) const OPENDIR: u32 = 27;
pub(crate) const READDIR: u32 = 28;
pub(crate) const GETLK: u32 = 31;
pub(crate) const SETLK: u32 = 32;
pub(crate) const SETLKW: u32 = 33;
pub(crate) const CREATE: u32 = 35;
pub(crate) const INTERRUPT: u32 = 36;
pub(crate) const DESTROY: u32 = 38;
pub(crate) const BATCH_FORGET: u32 = 42;
pub(crate) const SYNCFS: u32 = 50;

/// Longest value and longest list of extended attributes (include/uapi/linux/limits.h).
const MAX_XATTR_BYTES: u32 = 64 << 10;

/// Flags with which files may be opened. Not among them is `O_DIRECT`: the buffers here are not aligned, and the guest's own
/// cache is passed by all the same. With `O_PATH` or `O_ASYNC` no driver opens.
const OPEN_FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_CREAT
    | libc::O_DIRECTORY
    | libc::O_DSYNC
    | libc::O_EXCL
    | libc::O_LARGEFILE
    | libc::O_NOATIME
    | libc::O_NOCTTY
    | libc::O_NOFOLLOW
    | libc::O_NONBLOCK
    | libc::O_SYNC
    | libc::O_TRUNC;

/// For requests of nonsense that are not all refused here: how many bytes and texts follow the head.
#[cfg(test)]
pub(crate) fn shape_of(opcode: u32) -> Option<(usize, usize)> {
    let shape = SHAPES.iter().find(|shape| shape.opcode == opcode)?;
    Some((shape.fixed, shape.texts))
}

/// What follows the head of a request.
struct Shape {
    opcode: u32,
    /// A structure of so many bytes,
    fixed: usize,
    /// then so many texts, each with a NUL at its end,
    texts: usize,
    /// then data or not.
    data: Data,
    /// Changes something in the directory.
    changes: bool,
}

enum Data {
    None,
    /// As many bytes as this field of the structure says.
    Counted(usize),
    /// So many times as the first field of the structure says, so many bytes.
    Items(usize),
    /// More of the structure, of drivers that are newer.
    Optional,
}

const fn reads(opcode: u32, fixed: usize, texts: usize) -> Shape {
    Shape {
        opcode,
        fixed,
        texts,
        data: Data::None,
        changes: false,
    }
}

const fn changes(opcode: u32, fixed: usize, texts: usize) -> Shape {
    Shape {
        changes: true,
        ..reads(opcode, fixed, texts)
    }
}

const SHAPES: &[Shape] = &[
    reads(1, 0, 1),    // LOOKUP
    reads(2, 8, 0),    // FORGET
    reads(3, 16, 0),   // GETATTR
    changes(4, 88, 0), // SETATTR
    reads(5, 0, 0),    // READLINK
    changes(SYMLINK, 0, 2),
    changes(8, 16, 1), // MKNOD
    changes(9, 8, 1),  // MKDIR
    changes(10, 0, 1), // UNLINK
    changes(11, 0, 1), // RMDIR
    changes(12, 8, 2), // RENAME
    changes(13, 8, 1), // LINK
    reads(OPEN, 8, 0),
    reads(READ, 40, 0),
    Shape {
        data: Data::Counted(16),
        ..changes(WRITE, 40, 0)
    },
    reads(17, 0, 0), // STATFS
    reads(RELEASE, 24, 0),
    reads(20, 16, 0), // FSYNC
    Shape {
        data: Data::Counted(0),
        ..changes(SETXATTR, 8, 1)
    },
    reads(GETXATTR, 8, 1),
    reads(LISTXATTR, 8, 0),
    changes(REMOVEXATTR, 0, 1),
    reads(FLUSH, 24, 0),
    Shape {
        data: Data::Optional,
        ..reads(INIT, 16, 0)
    },
    reads(OPENDIR, 8, 0),
    reads(READDIR, 40, 0),
    reads(29, 24, 0), // RELEASEDIR
    reads(30, 16, 0), // FSYNCDIR
    reads(GETLK, 48, 0),
    reads(SETLK, 48, 0),
    reads(SETLKW, 48, 0),
    reads(34, 8, 0), // ACCESS
    changes(CREATE, 16, 1),
    reads(INTERRUPT, 8, 0),
    reads(DESTROY, 0, 0),
    Shape {
        data: Data::Items(16),
        ..reads(BATCH_FORGET, 8, 0)
    },
    changes(43, 32, 0), // FALLOCATE
    changes(45, 16, 2), // RENAME2
    reads(46, 24, 0),   // LSEEK
    reads(SYNCFS, 8, 0),
];

/// What comes before the data of a write: the head and `struct fuse_write_in`.
pub(crate) const WRITE_HEAD_BYTES: usize = IN_HEADER_BYTES + 40;

/// A whole request.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) opcode: u32,
    /// All of it but for the data of a write.
    pub(crate) message: &'a mut [u8],
}

/// What is not let through: the error number to answer with; `None` if nobody waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) Option<i32>);

impl<'a> Request<'a> {
    /// Copies a request to `space`, so that it stays as it is when it is checked: whoever wrote it could change it. Data to
    /// write is left where it is.
    ///
    /// # Errors
    /// [`Refused`] where it is none.
    pub(crate) fn take(
        slot: VolatileSlice<'_>,
        space: &'a mut [u8],
        access: Access,
    ) -> Result<Self, Refused> {
        let mut head = [0; IN_HEADER_BYTES];
        slot.copy_to(&mut head);
        let length = word(&head, 0).and_then(|length| usize::try_from(length).ok());
        let length = length
            .filter(|length| *length <= slot.len())
            .ok_or(Refused(None))?;
        let data = match word(&head, 4) {
            Some(WRITE) => length.saturating_sub(WRITE_HEAD_BYTES),
            _ => 0,
        };
        let message = space.get_mut(..length - data).ok_or(Refused(None))?;
        slot.copy_to(message);
        // The length and the kind are those that have been looked at.
        let heads = message.len().min(IN_HEADER_BYTES);
        message
            .iter_mut()
            .zip(head)
            .take(heads)
            .for_each(|(byte, seen)| *byte = seen);
        Self::check(message, data, access)
    }

    /// Checks a message, of which so much data is elsewhere, and takes out of it what the library is not to see.
    fn check(message: &'a mut [u8], data: usize, access: Access) -> Result<Self, Refused> {
        let opcode = match (word(message, 0), word(message, 4)) {
            (Some(length), Some(opcode))
                if usize::try_from(length) == Ok(message.len() + data)
                    && message.len() >= IN_HEADER_BYTES =>
            {
                opcode
            }
            _ => return Err(Refused(None)),
        };
        let refuse = |error| Refused(has_answer(opcode).then_some(error));
        let shape = SHAPES.iter().find(|shape| shape.opcode == opcode);
        let shape = shape.ok_or(refuse(libc::ENOSYS))?;
        let body = message.get_mut(IN_HEADER_BYTES..).unwrap_or_default();
        if !shape.fits(body, data) {
            return Err(refuse(libc::EINVAL));
        }
        let flags = limit_flags(opcode, body);
        if access == Access::ReadOnly && (shape.changes || flags.is_some_and(open_changes)) {
            return Err(refuse(libc::EROFS));
        }
        Ok(Self { opcode, message })
    }

    /// The file that it is about.
    pub(crate) fn node(&self) -> u64 {
        long(self.message, 16).unwrap_or_default()
    }

    /// What follows the head.
    pub(crate) fn body(&self) -> &[u8] {
        self.message.get(IN_HEADER_BYTES..).unwrap_or_default()
    }

    /// Whether its data is in the slot alone.
    pub(crate) fn is_write(&self) -> bool {
        self.opcode == WRITE
    }

    /// Makes it one that opens no file that is there already, if it creates one. Whether something else was asked for.
    pub(crate) fn only_create(&mut self) -> bool {
        let flags = match self.opcode {
            CREATE => self.message.get_mut(IN_HEADER_BYTES..),
            _ => None,
        };
        let Some(field) = flags.and_then(<[u8]>::first_chunk_mut) else {
            return false;
        };
        let flags = i32::from_le_bytes(*field);
        *field = (flags | libc::O_EXCL).to_le_bytes();
        flags & libc::O_EXCL == 0
    }

    /// The user and the first group that it is of.
    pub(crate) fn user(&self) -> (u32, u32) {
        let id = |at| word(self.message, at).unwrap_or(u32::MAX);
        (id(24), id(28))
    }

    /// Makes it a request of root, whoever it was of.
    pub(crate) fn set_root(&mut self) {
        if let Some(ids) = self.message.get_mut(24..32) {
            ids.fill(0);
        }
    }
}

impl Shape {
    /// Whether this is the body, with so much data behind it.
    fn fits(&self, body: &[u8], data: usize) -> bool {
        let Some((fixed, mut rest)) = body.split_at_checked(self.fixed) else {
            return false;
        };
        for index in 0..self.texts {
            let Some(end) = rest.iter().position(|byte| *byte == 0) else {
                return false;
            };
            let (text, behind) = rest.split_at(end);
            // The second text of a link is where it points to, which may be anything.
            let is_name = !matches!(self.opcode, SETXATTR | GETXATTR | REMOVEXATTR)
                && (self.opcode, index) != (SYMLINK, 1);
            if is_name && !is_name_of_entry(text) {
                return false;
            }
            rest = behind.get(1..).unwrap_or_default();
        }
        let size = |at| word(fixed, at).and_then(|size| usize::try_from(size).ok());
        let data_fits = match self.data {
            Data::None => rest.is_empty(),
            Data::Counted(at) => size(at) == Some(rest.len() + data),
            Data::Items(bytes) => size(0).and_then(|count| count.checked_mul(bytes)) == Some(rest.len()),
            Data::Optional => true,
        };
        // The library makes room for as much as a driver claims to have.
        let is_xattr = matches!(self.opcode, GETXATTR | LISTXATTR);
        data_fits && !(is_xattr && word(fixed, 0).is_none_or(|size| size > MAX_XATTR_BYTES))
    }
}

/// Whether a text names an entry of a directory, and not a way to another directory. How long it may be is known to the
/// file system.
fn is_name_of_entry(text: &[u8]) -> bool {
    !matches!(text, b"" | b"." | b"..") && !text.contains(&b'/')
}

/// Clears flags of open files that are not among [`OPEN_FLAGS`], and returns the others if the request opens one.
fn limit_flags(opcode: u32, body: &mut [u8]) -> Option<i32> {
    let at = match opcode {
        OPEN | OPENDIR | CREATE => 0,
        READ | WRITE => 32,
        _ => return None,
    };
    let field: &mut [u8; 4] = body.get_mut(at..)?.first_chunk_mut()?;
    let flags = i32::from_le_bytes(*field) & OPEN_FLAGS;
    *field = flags.to_le_bytes();
    (at == 0).then_some(flags)
}

fn open_changes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY || flags & (libc::O_TRUNC | libc::O_CREAT) != 0
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let chunk = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*chunk))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    let chunk = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
        let mut message = vec![0; IN_HEADER_BYTES];
        let length = u32::try_from(IN_HEADER_BYTES + body.len()).unwrap();
        message[..4].copy_from_slice(&length.to_le_bytes());
        message[4..8].copy_from_slice(&opcode.to_le_bytes());
        message[8] = 7;
        message[24..32].fill(9);
        message.extend(body);
        message
    }

    fn check_as(access: Access, opcode: u32, body: &[u8], expected: Result<(), i32>) {
        let result = take(&mut message(opcode, body), access, |_| ());
        let expected = expected.map_err(|error| Refused(Some(error)));
        assert_eq!(result, expected, "{opcode} {body:?}");
    }

    /// Takes a request out of a slot that has room for it alone.
    fn take<T>(
        message: &mut [u8],
        access: Access,
        look: impl FnOnce(Request<'_>) -> T,
    ) -> Result<T, Refused> {
        let mut space = vec![0; message.len()];
        Request::take(VolatileSlice::from(message), &mut space, access).map(look)
    }

    fn check(opcode: u32, body: &[u8], expected: Result<(), i32>) {
        check_as(Access::ReadWrite, opcode, body, expected);
    }

    const INVALID: Result<(), i32> = Err(libc::EINVAL);

    #[test]
    fn names_name_entries() {
        check(1, b"name\0", Ok(()));
        check(1, b"...\0", Ok(()));
        check(1, b"with blank\n\xff\0", Ok(()));
        for name in [
            &b"name"[..],
            b"",
            b"\0",
            b".\0",
            b"..\0",
            b"a/b\0",
            b"/\0",
            b"a\0b\0",
            b"a\0\0",
        ] {
            check(1, name, INVALID);
        }
        check(SYMLINK, b"link\0/../anywhere\0", Ok(()));
        check(SYMLINK, b"../link\0target\0", INVALID);
        check(SYMLINK, b"link\0target", INVALID);
        check(12, b"\x01\0\0\0\0\0\0\0old\0new\0", Ok(()));
        check(12, b"\x01\0\0\0\0\0\0\0old\0..\0", INVALID);
        check(12, b"\x01\0\0\0\0\0\0\0old\0", INVALID);
        check(SETXATTR, b"\x02\0\0\0\0\0\0\0user.a\0xy", Ok(()));
        check(SETXATTR, b"\x03\0\0\0\0\0\0\0user.a\0xy", INVALID);
    }

    #[test]
    fn lengths_are_exact() {
        for shape in SHAPES {
            if matches!(shape.data, Data::Optional) || !has_answer(shape.opcode) {
                continue;
            }
            let mut body = vec![0; shape.fixed];
            (0..shape.texts).for_each(|_| body.extend(b"n\0"));
            check(shape.opcode, &body, Ok(()));
            for length in 0..body.len() {
                check(shape.opcode, &body[..length], INVALID);
            }
            body.push(1);
            check(shape.opcode, &body, INVALID);
        }
        check(LISTXATTR, &[0, 0, 1, 0, 0, 0, 0, 0], Ok(()));
        check(LISTXATTR, &[1, 0, 1, 0, 0, 0, 0, 0], INVALID);
        check(LISTXATTR, &[0xff; 8], INVALID);
        check(99, b"", Err(libc::ENOSYS));
        check(39, &[0; 32], Err(libc::ENOSYS)); // IOCTL
    }

    #[test]
    fn what_nobody_waits_for_has_no_answer() {
        let check = |message: &mut [u8]| {
            assert_eq!(take(message, Access::ReadWrite, |_| ()), Err(Refused(None)));
        };
        check(&mut message(2, &[0; 7]));
        check(&mut message(BATCH_FORGET, &[2, 0, 0, 0, 0, 0, 0, 0, 1, 1]));
        check(&mut message(BATCH_FORGET, &[0xff; 24]));
        let whole = message(1, b"name\0");
        check(&mut whole[..whole.len() - 1].to_vec());
        check(&mut whole[..39].to_vec());
        check(&mut []);
        // One that is shorter than a head, in a slot that is not.
        let mut short = message(1, b"name\0");
        short[..4].copy_from_slice(&39_u32.to_le_bytes());
        check(&mut short);
    }

    #[test]
    fn data_to_write_stays_where_it_is() {
        let body = [&[0; 16][..], &100_u32.to_le_bytes(), &[0; 20], &[5; 100]].concat();
        let copied = take(&mut message(WRITE, &body), Access::ReadWrite, |request| {
            assert!(request.is_write());
            request.body().to_vec()
        });
        assert_eq!(copied.as_deref(), Ok(&body[..40]));
        check(WRITE, &body[..139], INVALID);
        check(WRITE, &[&body[..], &[5]].concat(), INVALID);
        let copied = take(&mut message(1, b"name\0"), Access::ReadWrite, |request| {
            request.body().to_vec()
        });
        assert_eq!(copied.as_deref(), Ok(&b"name\0"[..]));
    }

    #[test]
    fn a_read_only_directory_is_not_changed() {
        let check = |opcode, body: &[u8], expected| check_as(Access::ReadOnly, opcode, body, expected);
        let refused = Err(libc::EROFS);
        check(9, b"\0\0\0\0\0\0\0\0name\0", refused);
        check(10, b"name\0", refused);
        check(1, b"name\0", Ok(()));
        let open = |flags: i32| [&flags.to_le_bytes()[..], &[0; 4]].concat();
        check(OPEN, &open(libc::O_RDONLY), Ok(()));
        check(OPEN, &open(libc::O_RDONLY | libc::O_TRUNC), refused);
        check(OPEN, &open(libc::O_RDWR), refused);
        check(OPEN, &open(libc::O_WRONLY), refused);
        check(OPENDIR, &open(libc::O_RDONLY | libc::O_DIRECTORY), Ok(()));
        check(OPENDIR, &open(libc::O_RDWR | libc::O_TMPFILE), refused);
        assert_eq!(SHAPES.iter().filter(|shape| shape.changes).count(), 14);
    }

    #[test]
    fn flags_are_limited_and_root_can_stand_for_anybody() {
        let flags = libc::O_DIRECT | libc::O_PATH | libc::O_ASYNC | libc::O_WRONLY | libc::O_APPEND;
        let mut bytes = message(OPEN, &[&flags.to_le_bytes()[..], &[0; 4]].concat());
        let look = |mut request: Request<'_>| {
            let left = libc::O_WRONLY | libc::O_APPEND;
            assert_eq!(request.body()[..4], left.to_le_bytes());
            request.set_root();
            assert_eq!(request.message[20..36], [[0; 4]; 4].concat());
            assert_eq!((request.opcode, request.message[8]), (OPEN, 7));
        };
        take(&mut bytes, Access::ReadWrite, look).unwrap();
    }
}
