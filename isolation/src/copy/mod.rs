//! Copying files into a container and out of it, as tar streams.
//!
//! Whoever works on a container's files is a thread that has entered them: the mounts and the root directory of a container
//! that runs, or those of one that does not, mounted for this. No path then leads anywhere else, whatever the workload
//! puts in the way meanwhile, and what is mounted goes with the thread. The other side, a directory of the caller's own, is
//! only reached through names without links; see [`Unpack`].

mod unpack;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::thread::ThreadNameSpaceType;

use crate::archive::{self, Extent, Top, Tree};
use crate::environment::Rootfs;
use crate::mounts::Mount;
use crate::reopen::Reopener;
use crate::root::Root;
use crate::{fill, rootfs, sys};
pub use unpack::{Unpack, UnpackError, UnpackPlace};

/// Links followed on the way to one file: the kernel's own limit.
const MOST_LINKS: usize = 40;

/// How a container's files are reached.
#[derive(Debug)]
pub enum Place {
    /// It runs, and this is its first process (pidfd).
    Running(OwnedFd),
    /// It does not; nobody else has its files meanwhile.
    Ended {
        /// Its files.
        rootfs: Rootfs,
        /// What is mounted in them: bind mounts of its specification, in order.
        mounts: Vec<oci_spec::runtime::Mount>,
        /// Whether they are to be changed.
        writes: bool,
    },
}

/// Why files could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A thread could not be started, or could not get to the container's files.
    #[error("cannot enter the container's files")]
    Enter(#[source] io::Error),
    /// The files of a container that does not run could not be mounted.
    #[error("cannot mount the container's files")]
    Mount(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A file could not be opened or looked at.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// More symbolic links than anybody means.
    #[error("too many symbolic links at {}", .0.display())]
    Links(PathBuf),
    /// Files could not be read to their end.
    #[error(transparent)]
    Pack(Box<dyn std::error::Error + Send + Sync>),
    /// Files could not be written.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// What was written could not be made to stay.
    #[error("cannot write the files to the disk")]
    Sync(#[source] io::Error),
}

/// A container's files, for a thread that has entered them.
#[derive(Debug)]
pub struct Files {
    root: Root,
    reopener: Reopener,
    /// Whether what is written has to be on the disk before anybody is told.
    syncs: bool,
}

/// Has `work` done by a thread that has entered a container's files.
///
/// # Errors
/// [`CopyError::Enter`], where there is no thread; why it could not enter is told to `work`.
pub fn inside<T: Send>(
    place: Place,
    work: impl FnOnce(Result<&Files, CopyError>) -> T + Send,
) -> Result<T, CopyError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("copy".to_owned())
            .spawn_scoped(scope, || match enter(place) {
                Ok(files) => work(Ok(&files)),
                Err(error) => work(Err(error)),
            })
            .map_err(CopyError::Enter)?;
        let died = |_| CopyError::Enter(io::Error::other("the thread for it has died"));
        thread.join().map_err(died)
    })
}

fn enter(place: Place) -> Result<Files, CopyError> {
    let mut syncs = false;
    // While `/proc` is still this process's own.
    let reopener = Reopener::new().map_err(CopyError::Enter)?;
    match place {
        Place::Running(process) => {
            // A mount namespace is only joined by who shares no root directory.
            sys::leave_directories().map_err(CopyError::Enter)?;
            rustix::thread::move_into_thread_name_spaces(process.as_fd(), ThreadNameSpaceType::MOUNT)
                .map_err(|error| CopyError::Enter(error.into()))?;
        }
        Place::Ended {
            rootfs,
            mounts,
            writes,
        } => {
            enter_ended(&rootfs, &mounts, writes).map_err(CopyError::Mount)?;
            sys::enter_directory().map_err(CopyError::Enter)?;
            syncs = writes;
        }
    }
    // Modes of files made here are exact. The mask belongs to what this thread shares with no other any more.
    rustix::process::umask(Mode::empty());
    let root = Root::current().map_err(CopyError::Enter)?;
    Ok(Files {
        root,
        reopener,
        syncs,
    })
}

/// Leaves the host's mounts, mounts the files of a container that does not run, and makes them the working directory. Volumes
/// that are to be filled are so before.
fn enter_ended(
    rootfs: &Rootfs,
    mounts: &[oci_spec::runtime::Mount],
    writes: bool,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mounts: Vec<Mount> = mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| Mount::new(index, mount))
        .collect::<Result<_, _>>()?;
    fill::fill(rootfs, &mounts)?;
    sys::leave_mounts()?;
    let sources: Vec<_> = mounts.iter().map(Mount::open_source).collect::<Result<_, _>>()?;
    // Where something is mounted for the first time, a directory may have to be made.
    if writes || !mounts.is_empty() {
        rootfs::mount(rootfs)?;
    } else {
        rootfs::mount_read_only(rootfs)?;
    }
    let root = Root::at(Path::new("."))?;
    for (mount, source) in mounts.iter().zip(sources) {
        mount.attach(&root, source)?;
    }
    Ok(())
}

impl Files {
    /// What is at a path: the path, and its type and mode as `st_mode` if there is anything. With `follow` it is that of
    /// where a symbolic link at its end leads; others are followed anyway. No link leads out of the container. Where a link
    /// was followed, the path has no `..`, nor a link before its end, if its directory is there.
    ///
    /// # Errors
    /// [`CopyError::Open`], [`CopyError::Links`].
    pub fn find(&self, path: &Path, follow: bool) -> Result<(PathBuf, Option<u32>), CopyError> {
        let mut path = path.to_owned();
        for _ in 0..MOST_LINKS {
            let file = match self.open(&path, OFlags::PATH | OFlags::NOFOLLOW) {
                Ok(file) => file,
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok((path, None)),
                Err(error) => return Err(open_error(&path, error)),
            };
            let status = rustix::fs::fstat(&file).map_err(|error| open_error(&path, error))?;
            if !follow || FileType::from_raw_mode(status.st_mode) != FileType::Symlink {
                return Ok((path, Some(status.st_mode)));
            }
            let target =
                rustix::fs::readlinkat(&file, "", Vec::new()).map_err(|error| open_error(&path, error))?;
            let parent = path.parent().unwrap_or(Path::new("/"));
            path = plain(parent.join(OsString::from_vec(target.into_bytes())));
        }
        Err(CopyError::Links(path))
    }

    /// Writes what is at a path as a tar; `name` stands for the path in it. What is mounted below it is left out.
    ///
    /// # Errors
    /// [`CopyError::Pack`].
    pub fn pack(&self, path: &Path, name: &[u8], output: &mut dyn Write) -> Result<(), CopyError> {
        write_tree(path, name, true, &self.reopener, output)
    }

    /// Makes files of a tar in a directory. Links that are there already are followed within the container.
    ///
    /// # Errors
    /// [`CopyError::Open`], [`CopyError::Unpack`], [`CopyError::Sync`].
    pub fn unpack(&self, directory: &Path, owners: bool, input: &mut dyn Read) -> Result<(), CopyError> {
        let opened = self.open(directory, OFlags::PATH | OFlags::DIRECTORY);
        let opened = opened.map_err(|error| open_error(directory, error))?;
        let unpack = Unpack {
            owners,
            place: UnpackPlace::Container,
            top: None,
        };
        unpack.unpack(&opened, input)?;
        if self.syncs {
            let root = self
                .root
                .open_plain(Path::new("/"), OFlags::RDONLY | OFlags::DIRECTORY);
            root.and_then(rustix::fs::syncfs)
                .map_err(|error| CopyError::Sync(error.into()))?;
        }
        Ok(())
    }

    fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC;
        rustix::fs::openat2(self.root.directory(), path, flags, Mode::empty(), resolve)
    }
}

/// The same place by its directory's real path: a `..` means nothing behind links that are taken for directories. Where
/// there is no such directory it stays as it is, for whoever opens it to say so.
fn plain(path: PathBuf) -> PathBuf {
    let real = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => std::fs::canonicalize(parent).map(|parent| parent.join(name)),
        _ => std::fs::canonicalize(&path),
    };
    real.unwrap_or(path)
}

fn open_error(path: &Path, error: Errno) -> CopyError {
    CopyError::Open {
        path: path.to_owned(),
        source: error.into(),
    }
}

fn write_tree(
    path: &Path,
    name: &[u8],
    one_mount: bool,
    reopener: &Reopener,
    output: &mut dyn Write,
) -> Result<(), CopyError> {
    let failed = |error: archive::Error| CopyError::Pack(error.into());
    // A slash or a dot at its end makes a link the directory that it leads to.
    let bytes = path.as_os_str().as_bytes();
    let is_directory = bytes.ends_with(b"/") || bytes.ends_with(b"/.");
    let path = if is_directory {
        std::fs::canonicalize(path).map_err(|source| CopyError::Open {
            path: path.to_owned(),
            source,
        })?
    } else {
        path.to_owned()
    };
    let top = Top {
        path,
        name: name.to_vec(),
        one_mount,
    };
    Tree::new(top, Extent::All, reopener, output)
        .write()
        .map_err(failed)
}

/// Writes files of the caller's own as a tar, in which `name` stands for `path`. Symbolic links are not followed, but for
/// those on the way to the directory that `path` is in, or that it is, if it ends with a slash or a dot.
///
/// # Errors
/// [`CopyError::Open`], [`CopyError::Pack`].
pub fn pack(path: &Path, name: &[u8], output: &mut dyn Write) -> Result<(), CopyError> {
    let reopener = Reopener::new().map_err(|source| CopyError::Open {
        path: "/proc/self/fd".into(),
        source,
    })?;
    write_tree(path, name, false, &reopener, output)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn where_links_lead_is_a_path_without_detours() {
        let directory = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(directory.path()).unwrap();
        fs::create_dir_all(top.join("var")).unwrap();
        fs::create_dir_all(top.join("run/deep")).unwrap();
        fs::write(top.join("bar"), "").unwrap();
        // As /var/run is one.
        symlink("../run", top.join("var/run")).unwrap();
        symlink("../bar", top.join("run/foo")).unwrap();
        symlink("../var/run/deep/..", top.join("run/up")).unwrap();
        symlink("../var/run/new", top.join("run/dangling")).unwrap();
        symlink("../none/../bar", top.join("run/lost")).unwrap();
        let files = Files {
            root: Root::current().unwrap(),
            reopener: Reopener::new().unwrap(),
            syncs: false,
        };
        let cases = [
            ("var/run/foo", true, "bar", true),
            ("var/run/foo", false, "var/run/foo", true),
            ("var/run/up", true, "run", true),
            ("var/run/dangling", true, "run/new", false),
            ("var/run/lost", true, "var/run/../none/../bar", false),
        ];
        for (path, follow, expected, there) in cases {
            let (found, mode) = files.find(&top.join(path), follow).unwrap();
            assert_eq!((found, mode.is_some()), (top.join(expected), there), "{path}");
        }
    }
}
