//! A container's files as a tar stream: its whole root file system, or what the workload has changed of it.
//!
//! The stream is made by a thread with a mount namespace and a root directory of its own: what is mounted for it goes with
//! it, and a symbolic link that a running workload puts in the way leads to nowhere but the container's own files.
//!
//! Where the writable layer is a disk that a guest has written, this has to run in a guest.

mod diff;
mod tree;
mod writer;

use std::io::{self, PipeReader, Read};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use crate::environment::Rootfs;
use crate::reopen::Reopener;
use crate::root::Root;
use crate::{rootfs, sys};
pub(crate) use tree::{Top, Tree};

/// What is wanted of a container's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// The root file system as the workload sees it, without what is mounted in it.
    All,
    /// The upper directory as a layer (image-spec, layer.md): whiteouts and opaque directories by their names.
    Changes,
    /// No archive but a list of what the upper directory changes: `A`, `C` or `D` for added, changed and deleted, then an
    /// absolute path, then NUL; each directory sorted and before what is in it.
    Diff,
}

/// Why the files cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot leave the host's mounts")]
    Namespace(#[source] io::Error),
    #[error(transparent)]
    Rootfs(#[from] rootfs::Error),
    #[error("cannot open this process's descriptors")]
    Descriptors(#[source] io::Error),
    #[error("cannot enter the container's files")]
    Enter(#[source] io::Error),
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    #[error("{} has a name that means a removed file in a layer", .0.display())]
    WhiteoutName(PathBuf),
    #[error("{} was replaced while it was read", .0.display())]
    Replaced(PathBuf),
    #[error("{} has grown shorter while it was read", .0.display())]
    Shrunk(PathBuf),
}

/// A tar stream that is made while it is read. It ends with an error where the files could not be read to their end.
#[derive(Debug)]
pub struct Archive {
    pipe: PipeReader,
    maker: Option<JoinHandle<Result<(), Error>>>,
}

/// Begins to read the files of a container. The workload may run: what it changes meanwhile is in the stream or not.
///
/// # Errors
/// If there is no pipe or no thread; all others come from reading the stream.
pub fn archive(rootfs: Rootfs, extent: Extent) -> io::Result<Archive> {
    let (pipe, output) = io::pipe()?;
    let make = move || {
        let reopener = Reopener::new().map_err(Error::Descriptors)?;
        sys::leave_mounts().map_err(Error::Namespace)?;
        match extent {
            Extent::All => rootfs::mount_read_only(&rootfs)?,
            Extent::Changes => {
                rootfs::prepare_upper(&rootfs)?;
                std::env::set_current_dir(&rootfs.upper).map_err(Error::Enter)?;
            }
            Extent::Diff => {
                let upper = Root::at(&rootfs.upper).map_err(Error::Enter)?;
                rootfs::mount_layers_alone(&rootfs)?;
                let lower = Root::at(Path::new(".")).map_err(Error::Enter)?;
                return diff::write(&upper, &lower, output);
            }
        }
        sys::enter_directory().map_err(Error::Enter)?;
        Tree::new(Top::root(), extent, &reopener, output).write()
    };
    let maker = thread::Builder::new().name("archive".to_owned()).spawn(make)?;
    Ok(Archive {
        pipe,
        maker: Some(maker),
    })
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.pipe.read(buffer)?;
        if count > 0 || buffer.is_empty() {
            return Ok(count);
        }
        match self.maker.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(0),
            Some(Ok(Err(error))) => Err(io::Error::other(error)),
            Some(Err(_)) => Err(io::Error::other("the thread that reads the files has died")),
        }
    }
}
