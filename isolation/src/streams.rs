//! The workload's standard streams, which come from outside of the container: what of them it is given for its own.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Dev, FileType, OFlags, Stat, Uid};
use rustix::stdio;

use crate::reopen::Reopener;
use crate::root::{self, Root};

/// Numbers of the null device in `Documentation/admin-guide/devices.txt`.
const NULL: (u32, u32) = (1, 3);

/// Why the streams could not be made the container's own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot look at descriptor {0}")]
    Look(i32, #[source] io::Error),
    #[error("cannot find the null device for descriptor {0}")]
    FindNull(i32, #[source] root::Error),
    #[error("/dev/null of the container is not the null device")]
    NotNull,
    #[error("cannot open the container's null device for descriptor {0}")]
    OpenNull(i32, #[source] io::Error),
    #[error("cannot give descriptor {0} to the user")]
    Give(i32, #[source] io::Error),
}

/// A way to replace a standard stream.
type Replace = fn(OwnedFd) -> rustix::io::Result<()>;

/// The streams in order, as they are and with the way to replace them.
fn all() -> [(i32, BorrowedFd<'static>, Replace); 3] {
    [
        (0, stdio::stdin(), stdio::dup2_stdin),
        (1, stdio::stdout(), stdio::dup2_stdout),
        (2, stdio::stderr(), stdio::dup2_stderr),
    ]
}

/// Puts the container's own `/dev/null` in the place of one from outside. Through that one a workload that is root could
/// change the mode and the owner of the host's device.
pub(crate) fn replace_null(root: &Root, reopener: &Reopener) -> Result<(), Error> {
    for (number, stream, replace) in all() {
        if !is_null(&status(number, stream)?) {
            continue;
        }
        let find = |source| Error::FindNull(number, source);
        let found = root.open(Path::new("/dev/null")).map_err(find)?;
        let found = found.ok_or(Error::NotNull)?;
        let failed = |source: io::Error| Error::OpenNull(number, source);
        if !is_null(&rustix::fs::fstat(&found).map_err(|error| failed(error.into()))?) {
            return Err(Error::NotNull);
        }
        let flags = rustix::fs::fcntl_getfl(stream).map_err(|error| failed(error.into()))?;
        let own = reopener.open(&found, flags & OFlags::RWMODE).map_err(failed)?;
        replace(own).map_err(|error| failed(error.into()))?;
    }
    Ok(())
}

/// Lets a user other than root open `/dev/stdout` and its like when they are pipes. Anything else is not the container's.
pub(crate) fn give_to(uid: u32) -> Result<(), Error> {
    if uid == 0 {
        return Ok(());
    }
    for (number, stream, _) in all() {
        if FileType::from_raw_mode(status(number, stream)?.st_mode) == FileType::Fifo {
            rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), None)
                .map_err(|error| Error::Give(number, error.into()))?;
        }
    }
    Ok(())
}

fn status(number: i32, stream: BorrowedFd<'_>) -> Result<Stat, Error> {
    rustix::fs::fstat(stream).map_err(|error| Error::Look(number, error.into()))
}

fn is_null(status: &Stat) -> bool {
    let device: Dev = rustix::fs::makedev(NULL.0, NULL.1);
    FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice && status.st_rdev == device
}
