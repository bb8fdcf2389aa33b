//! Filling a new volume: what the image has where a volume is about to be mounted is copied to it first, as Docker does.
//!
//! It is read as an export reads a container's files, by a thread with mounts and a root directory of its own, and made by
//! the same code that a copy into a container is made by. That comes before the container's first process, so that neither
//! the workload's limits nor its users are in the way.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::archive::{self, Extent, Top, Tree};
use crate::copy::{Unpack, UnpackError, UnpackPlace};
use crate::environment::Rootfs;
use crate::mounts::{self, Mount};
use crate::reopen::Reopener;
use crate::{rootfs, sys};

/// Why a volume could not be filled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot leave the host's mounts")]
    Namespace(#[source] io::Error),
    #[error(transparent)]
    Rootfs(#[from] rootfs::Error),
    #[error(transparent)]
    Source(#[from] mounts::Error),
    #[error("cannot make a thread or a pipe")]
    Prepare(#[source] io::Error),
    #[error("cannot enter the image's files")]
    Enter(#[source] io::Error),
    #[error("cannot read {} of the image", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot give the volume the attributes of {} of the image", path.display())]
    Attributes { path: PathBuf, source: io::Error },
    #[error("cannot read what the image has for the volume")]
    Read(#[source] archive::Error),
    #[error("cannot write what the image has to the volume")]
    Write(#[source] UnpackError),
    #[error("the thread for it has died")]
    Died,
}

/// Fills those sources of bind mounts that are to be filled. What is there already stays, but for files that the image has
/// too: a filling that was cut short is made whole.
pub(crate) fn fill(rootfs: &Rootfs, mounts: &[Mount]) -> Result<(), Error> {
    let mut volumes = Vec::new();
    for mount in mounts {
        if let Some(source) = mount.to_fill()? {
            volumes.push((mount.destination(), source));
        }
    }
    if volumes.is_empty() {
        return Ok(());
    }
    // While `/proc` is still this process's own.
    let reopener = Reopener::new().map_err(Error::Prepare)?;
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("fill".to_owned())
            .spawn_scoped(scope, || {
                sys::leave_mounts().map_err(Error::Namespace)?;
                rootfs::mount_read_only(rootfs)?;
                sys::enter_directory().map_err(Error::Enter)?;
                volumes
                    .iter()
                    .try_for_each(|(destination, volume)| fill_one(destination, volume, &reopener))
            })
            .map_err(Error::Prepare)?;
        thread.join().map_err(|_| Error::Died)?
    })
}

/// By a thread whose root directory is the image's.
fn fill_one(destination: &Path, volume: &OwnedFd, reopener: &Reopener) -> Result<(), Error> {
    let open_error = |source| Error::Open {
        path: destination.to_owned(),
        source,
    };
    let path = match std::fs::canonicalize(destination) {
        Ok(path) if path.is_dir() => path,
        // There is nothing to be copied; whether it can be mounted on is told later.
        Ok(_) => return Ok(()),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(());
        }
        Err(error) => return Err(open_error(error)),
    };
    let top = Top {
        path: path.clone(),
        name: b".".to_vec(),
        one_mount: true,
    };
    let (mut input, output) = io::pipe().map_err(Error::Prepare)?;
    thread::scope(|scope| {
        let writer = thread::Builder::new()
            .name("fill".to_owned())
            .spawn_scoped(scope, move || {
                let unpack = Unpack {
                    owners: true,
                    place: UnpackPlace::Volume,
                    top: None,
                };
                unpack.unpack(volume, &mut input)
            })
            .map_err(Error::Prepare)?;
        let read = Tree::new(top, Extent::All, reopener, output).write();
        // If this failed, reading did only because nobody took what was read.
        writer.join().map_err(|_| Error::Died)?.map_err(Error::Write)?;
        read.map_err(Error::Read)
    })?;
    copy_attributes(&path, volume, reopener).map_err(|source| Error::Attributes { path, source })
}

/// Gives the volume's own directory the owner, mode, attributes and time of the image's.
fn copy_attributes(path: &Path, volume: &OwnedFd, reopener: &Reopener) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = rustix::fs::open(path, flags, Mode::empty())?;
    let to = reopener.open(volume, flags)?;
    let status = rustix::fs::fstat(&from)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::Directory {
        return Err(Errno::NOTDIR.into());
    }
    let (owner, group) = (Uid::from_raw(status.st_uid), Gid::from_raw(status.st_gid));
    rustix::fs::fchown(&to, Some(owner), Some(group))?;
    rustix::fs::fchmod(&to, Mode::from_raw_mode(status.st_mode & 0o7777))?;
    rootfs::copy_xattrs(from.as_fd(), to.as_fd())?;
    let time = Timespec {
        tv_sec: status.st_mtime,
        tv_nsec: status.st_mtime_nsec.cast_signed(),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(rustix::fs::futimens(&to, &times)?)
}
