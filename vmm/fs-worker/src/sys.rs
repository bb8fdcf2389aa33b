//! The calls that the compiler cannot check: the one module of this crate with unsafe code.

#![expect(unsafe_code, reason = "all unsafe code of the crate, behind safe signatures")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::process::Pid;

/// A lock of a part of a file (fcntl(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub(crate) kind: i16,
    /// First byte.
    pub(crate) start: i64,
    /// Bytes; 0 for all that there will ever be.
    pub(crate) length: i64,
}

impl Range {
    fn as_flock(self) -> libc::flock {
        libc::flock {
            l_type: self.kind,
            l_whence: 0, // SEEK_SET
            l_start: self.start,
            l_len: self.length,
            l_pid: 0,
        }
    }
}

/// Takes or gives back a lock for an open file description, without waiting.
///
/// # Errors
/// `EAGAIN` where another one has it, and others of fcntl(2).
pub(crate) fn lock_range(file: BorrowedFd<'_>, range: &Range) -> io::Result<()> {
    let lock = range.as_flock();
    // SAFETY: the command reads a struct flock, which lives until the call returns.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Finds a lock that is in the way of one, and its process; of kind `F_UNLCK` if there is none.
///
/// # Errors
/// Those of fcntl(2).
pub(crate) fn test_range(file: BorrowedFd<'_>, range: &Range) -> io::Result<(Range, i32)> {
    let mut lock = range.as_flock();
    // SAFETY: the command reads and writes a struct flock, which lives until the call returns.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } {
        0 => Ok((
            Range {
                kind: lock.l_type,
                start: lock.l_start,
                length: lock.l_len,
            },
            lock.l_pid,
        )),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Which of two processes this is.
pub(crate) enum Forked {
    /// The one that was there before, and the other's number.
    Parent(Pid),
    /// The first process of a new PID namespace.
    Child,
}

/// Makes a second process like this one, in a PID namespace of its own; both leave the host's IPC and UTS namespaces. The
/// caller has `CAP_SYS_ADMIN` and is the only thread; that it is, is checked.
///
/// # Errors
/// Those of `unshare(2)` and `fork(2)`, and `ResourceBusy` if there are other threads.
pub(crate) fn fork_into_own_namespaces() -> io::Result<Forked> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    let namespaces = libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    // SAFETY: unshare takes an integer; no descriptor table or memory is unshared. Of CLONE_NEWPID this process notices
    // nothing, only its children do.
    if unsafe { libc::unshare(namespaces) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: there is one thread, so the child finds no lock taken and no memory half changed. It goes on with a copy of
    // the same safe code.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Pid::from_raw(pid).map_or(Forked::Child, Forked::Parent))
}
