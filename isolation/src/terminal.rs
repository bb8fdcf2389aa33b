//! A pseudo-terminal of the container's own (OCI runtime specification, config, `process.terminal`): made in its devpts, so
//! that it has a name in there. The process has the one side for its standard streams and its controlling terminal; the
//! other goes to the parent.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Gid, OFlags, Uid};
use rustix::pty::OpenptFlags;
use rustix::stdio;
use rustix::termios::Winsize;
use serde::{Deserialize, Serialize};

use crate::mounts;
use crate::reopen::Reopener;
use crate::root::{self, Root, Target};

/// Where the container's devpts has its multiplexer: `/dev/ptmx` is a link that a workload may have changed.
const MULTIPLEXER: &str = "/dev/pts/ptmx";

/// Number of every multiplexer in `Documentation/admin-guide/devices.txt`.
const MULTIPLEXER_DEVICE: (u32, u32) = (5, 2);

/// `DEVPTS_SUPER_MAGIC` of `linux/magic.h`.
const DEVPTS: i64 = 0x1cd1;

/// Where a workload finds its terminal beside `/dev/pts`.
const CONSOLE: &str = "/dev/console";

/// Why there is no terminal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot find {MULTIPLEXER}")]
    Find(#[source] root::Error),
    #[error("{MULTIPLEXER} is not the multiplexer of a devpts")]
    NoMultiplexer,
    #[error("cannot make a terminal")]
    Make(#[source] io::Error),
    #[error("cannot make {CONSOLE}")]
    Console(#[source] root::Error),
    #[error("cannot bind the terminal to {CONSOLE}")]
    Bind(#[source] io::Error),
    #[error("cannot make the terminal the process' own")]
    Take(#[source] io::Error),
}

/// Size of a terminal in characters; 0 is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Size {
    pub(crate) rows: u16,
    pub(crate) columns: u16,
}

/// Both sides of a new terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Terminal {
    /// Makes a terminal in the container whose root directory `root` is.
    pub(crate) fn make(root: &Root, reopener: &Reopener, size: Size) -> Result<Terminal, Error> {
        let found = root
            .open_strictly(Path::new(MULTIPLEXER))
            .map_err(Error::Find)?
            .ok_or(Error::NoMultiplexer)?;
        if !is_multiplexer(&found).map_err(Error::Make)? {
            return Err(Error::NoMultiplexer);
        }
        let outer = reopener.open(&found, OFlags::RDWR).map_err(Error::Make)?;
        let made = || -> io::Result<OwnedFd> {
            rustix::pty::unlockpt(&outer)?;
            // Not by name, which could lead to another one meanwhile.
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let inner = rustix::pty::ioctl_tiocgptpeer(&outer, flags)?;
            resize(&outer, size.rows, size.columns)?;
            Ok(inner)
        };
        let inner = made().map_err(Error::Make)?;
        Ok(Terminal { outer, inner })
    }

    /// Makes it the container's console.
    pub(crate) fn bind_console(&self, root: &Root) -> Result<(), Error> {
        let point = root
            .open_or_create(Path::new(CONSOLE), Target::File)
            .map_err(Error::Console)?;
        mounts::bind(&self.inner, point).map_err(Error::Bind)
    }

    /// Makes it the standard streams and the controlling terminal of this process, which leads a session, and the property of
    /// `uid`. Returns the parent's side.
    pub(crate) fn take(self, uid: u32) -> Result<OwnedFd, Error> {
        let Terminal { outer, inner } = self;
        let taken = || -> rustix::io::Result<()> {
            // The group stays devpts': that of terminals.
            rustix::fs::fchown(&inner, Some(Uid::from_raw(uid)), None::<Gid>)?;
            rustix::process::ioctl_tiocsctty(&inner)?;
            stdio::dup2_stdin(&inner)?;
            stdio::dup2_stdout(&inner)?;
            stdio::dup2_stderr(&inner)
        };
        taken().map_err(|error| Error::Take(error.into()))?;
        Ok(outer)
    }
}

fn is_multiplexer(found: &OwnedFd) -> io::Result<bool> {
    let status = rustix::fs::fstat(found)?;
    let (major, minor) = MULTIPLEXER_DEVICE;
    Ok(
        FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice
            && status.st_rdev == rustix::fs::makedev(major, minor)
            && rustix::fs::fstatfs(found)?.f_type == DEVPTS,
    )
}

/// Changes the size of a terminal, in characters; what runs in it is sent `SIGWINCH`. `terminal` is either side.
///
/// # Errors
/// When it is no terminal.
pub fn resize(terminal: impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}
