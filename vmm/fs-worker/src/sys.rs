//! The calls that the compiler cannot check: the one module of this crate with unsafe code.

#![expect(unsafe_code, reason = "all unsafe code of the crate, behind safe signatures")]

use std::io;

use rustix::process::Pid;

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
