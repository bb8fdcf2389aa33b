//! Copying into a container and out of it, by Docker's rules. What comes out of a container may be a lie.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rvm_isolation::{Unpack, UnpackPlace};
use rvm_protocol::FrameError;

use super::FilesError;
use super::guest::most_bytes;
use super::paths::{CleanPath, Landing, Origin, PathError, land};
use super::session::Session;
use crate::engine::{Engine, Error};

/// Links followed to where a copy goes on this machine; as many as Docker follows.
const MOST_LINKS: usize = 10;

/// Why nothing, or not all, was copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyFailure {
    /// There is no such file in the container.
    #[error("Could not find the file {} in container {container}", path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
        /// The container.
        container: String,
    },
    /// Docker's rules do not allow it.
    #[error("cannot copy to {target}")]
    Path {
        /// Where to.
        target: String,
        /// What is wrong.
        #[source]
        error: PathError,
    },
    /// What is there must not be replaced.
    #[error("destination {0:?} must be a directory or a regular file")]
    Special(String),
    /// An archive goes into directories only.
    #[error("destination {0:?} must be a directory")]
    NotDirectory(String),
    /// The parent of what is to be made is no directory.
    #[error("invalid output path: directory {0:?} does not exist")]
    NoParent(PathBuf),
    /// The container may not be written to.
    #[error("container rootfs is marked read-only")]
    ReadOnly,
    /// A file of this machine cannot be read.
    #[error("cannot open {}", path.display())]
    Local {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Files of this machine cannot be read to their end, or not be written.
    #[error(transparent)]
    Files(Box<dyn std::error::Error + Send + Sync>),
    /// Standard input or output failed.
    #[error("cannot copy the archive")]
    Stream(#[source] io::Error),
    /// Whoever has the container's files says so.
    #[error("{0}")]
    Told(String),
    /// The connection to who has them broke, as when the container ends.
    #[error("lost the connection to the container's files, as when the container ends")]
    Lost(#[source] FrameError),
    /// Something came that is no answer.
    #[error("what has the container's files does not answer what it was asked")]
    Unexpected,
}

/// How files are copied.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyOptions {
    /// Whether a symbolic link is copied as what it leads to.
    pub follow: bool,
    /// Whether files keep their owners. Else they belong to root, and on this machine to the user.
    pub owners: bool,
}

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Bytes of the archive that went one way or the other.
    pub bytes: u64,
    /// Where to: an absolute path.
    pub target: PathBuf,
}

/// A side of a copy that is not the container.
pub enum Local<'a, S: ?Sized, P = &'a OsStr> {
    /// A path, as it was typed.
    Path(P),
    /// A stream with an archive.
    Stream(&'a mut S),
}

impl Engine {
    /// Copies files out of a container.
    ///
    /// # Errors
    /// [`Error::Files`], [`Error::Store`]. What was made before stays.
    pub fn copy_out(
        &self,
        container: &str,
        source: &OsStr,
        target: Local<'_, dyn Write>,
        options: CopyOptions,
    ) -> Result<Copied, Error> {
        let record = self.store().find(container)?;
        let session = self.session(&record, false)?;
        let source = CleanPath::new(Path::new("/"), source);
        let (found, mode) = session.find(&source.full(), options.follow)?;
        let Some(mode) = mode else {
            return Err(not_found(source.path(), container).into());
        };
        let origin = Origin {
            name: source.name(),
            is_directory: FileType::from_raw_mode(mode) == FileType::Directory,
        };
        let place = match target {
            Local::Path(text) => Local::Path(Landed::new(&origin, text)?),
            Local::Stream(output) => Local::Stream(output),
        };
        let mut archive = session.pack(&source.moved_to(&found), &origin.name, most_bytes(&record))?;
        let target = match place {
            Local::Stream(output) => {
                io::copy(&mut archive, output)
                    .and_then(|_| output.flush())
                    .map_err(CopyFailure::Stream)?;
                PathBuf::new()
            }
            Local::Path(landed) => {
                let unpack = Unpack {
                    owners: options.owners,
                    place: UnpackPlace::Machine,
                    top: Some((origin.name, landed.landing.name)),
                };
                let unpacked = unpack.unpack(&landed.directory, &mut archive);
                unpacked.map_err(|error| CopyFailure::Files(error.into()))?;
                landed.target
            }
        };
        self.store().journal.container(&record, "archive-path", &[]);
        Ok(Copied {
            bytes: archive.bytes,
            target,
        })
    }

    /// Copies files into a container.
    ///
    /// # Errors
    /// [`Error::Files`], [`Error::Store`]. What was made before stays.
    pub fn copy_in(
        &self,
        container: &str,
        source: Local<'_, dyn Read>,
        target: &OsStr,
        options: CopyOptions,
    ) -> Result<Copied, Error> {
        let record = self.store().find(container)?;
        // Before a machine is started for nothing.
        let source = match source {
            Local::Stream(input) => Local::Stream(input),
            Local::Path(text) => Local::Path(local_source(text, options.follow)?),
        };
        let spec = self.store().read_spec(&record.id)?;
        if spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly) == Some(true) {
            return Err(CopyFailure::ReadOnly.into());
        }
        let session = self.session(&record, true)?;
        let (target, there) = target_inside(&session, container, target)?;
        let named = || format!("{container}:{}", target.path().display());
        let bytes = match source {
            Local::Path((path, origin)) => {
                let landing = land(&origin, &target, there).map_err(|error| path_error(named(), error))?;
                let (_, mode) = session.find(&landing.directory, true)?;
                match mode.map(FileType::from_raw_mode) {
                    Some(FileType::Directory) => {}
                    Some(_) => return Err(CopyFailure::NotDirectory(named()).into()),
                    None => return Err(not_found(&landing.directory, container).into()),
                }
                let pack = |output: &mut dyn Write| {
                    let packed = rvm_isolation::pack(&path, landing.name.as_bytes(), output);
                    packed.map_err(|error| CopyFailure::Files(error.into()))
                };
                session.unpack(&landing.directory, options.owners, pack)?
            }
            Local::Stream(input) if there == Some(true) => {
                let send =
                    |output: &mut dyn Write| io::copy(input, output).map(drop).map_err(CopyFailure::Stream);
                session.unpack(target.path(), options.owners, send)?
            }
            Local::Stream(_) => return Err(CopyFailure::NotDirectory(named()).into()),
        };
        // What was started for this has ended, and all is on its disk, before anybody is told.
        drop(session);
        self.store().journal.container(&record, "extract-to-dir", &[]);
        Ok(Copied {
            bytes,
            target: target.path().to_owned(),
        })
    }
}

/// Where a copy goes in a container, after links at its end, and whether a directory is there, if anything.
fn target_inside(
    session: &Session,
    container: &str,
    text: &OsStr,
) -> Result<(CleanPath, Option<bool>), CopyFailure> {
    let target = CleanPath::new(Path::new("/"), text);
    let (found, mode) = session.find(&target.full(), true)?;
    let there = match mode.map(FileType::from_raw_mode) {
        None => None,
        Some(FileType::Directory) => Some(true),
        Some(FileType::RegularFile) => Some(false),
        Some(_) => {
            let named = format!("{container}:{}", target.path().display());
            return Err(CopyFailure::Special(named));
        }
    };
    Ok((target.moved_to(&found), there))
}

/// Where a copy goes on this machine.
struct Landed {
    landing: Landing,
    /// Of the landing.
    directory: OwnedFd,
    /// What the person is told.
    target: PathBuf,
}

impl Landed {
    fn new(origin: &Origin, text: &OsStr) -> Result<Self, CopyFailure> {
        let (target, there) = local_target(text)?;
        let landing = land(origin, &target, there).map_err(|error| path_error(target.path(), error))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&landing.directory, flags, Mode::empty());
        Ok(Self {
            directory: directory.map_err(|_| CopyFailure::NoParent(landing.directory.clone()))?,
            target: target.path().to_owned(),
            landing,
        })
    }
}

impl From<CopyFailure> for Error {
    fn from(error: CopyFailure) -> Self {
        FilesError::Copy(error).into()
    }
}

fn not_found(path: &Path, container: &str) -> CopyFailure {
    CopyFailure::NotFound {
        path: path.to_owned(),
        container: container.to_owned(),
    }
}

fn path_error(target: impl AsRef<Path>, error: PathError) -> CopyFailure {
    CopyFailure::Path {
        target: target.as_ref().display().to_string(),
        error,
    }
}

fn local_error(path: &Path, source: io::Error) -> CopyFailure {
    let path = path.to_owned();
    CopyFailure::Local { path, source }
}

fn clean(text: &OsStr) -> Result<CleanPath, CopyFailure> {
    let here = std::env::current_dir().map_err(|error| local_error(Path::new("."), error))?;
    Ok(CleanPath::new(&here, text))
}

/// What of this machine is copied: where it is, and what it is.
fn local_source(text: &OsStr, follow: bool) -> Result<(PathBuf, Origin), CopyFailure> {
    let source = clean(text)?;
    let path = source.full();
    let failed = |error| local_error(&path, error);
    let (path, metadata) = if follow {
        let path = fs::canonicalize(&path).map_err(failed)?;
        let metadata = fs::symlink_metadata(&path).map_err(failed)?;
        (path, metadata)
    } else {
        let metadata = fs::symlink_metadata(&path).map_err(failed)?;
        (path, metadata)
    };
    let origin = Origin {
        name: source.name(),
        is_directory: metadata.is_dir(),
    };
    Ok((path, origin))
}

/// Where on this machine a copy goes, after links at its end, and whether a directory is there, if anything.
fn local_target(text: &OsStr) -> Result<(CleanPath, Option<bool>), CopyFailure> {
    let mut target = clean(text)?;
    for _ in 0..MOST_LINKS {
        let path = target.full();
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok((target, None));
            }
            Err(error) => return Err(local_error(&path, error)),
        };
        if !metadata.is_symlink() {
            return match kind(&metadata) {
                Some(is_directory) => Ok((target, Some(is_directory))),
                None => Err(CopyFailure::Special(path.display().to_string())),
            };
        }
        let link = fs::read_link(&path).map_err(|error| local_error(&path, error))?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        target = target.moved_to(&parent.join(link));
    }
    let error = io::Error::from(rustix::io::Errno::LOOP);
    Err(local_error(target.path(), error))
}

/// Whether it is a directory; `None` for what is neither that nor a file.
fn kind(metadata: &Metadata) -> Option<bool> {
    (metadata.is_dir() || metadata.is_file()).then(|| metadata.is_dir())
}
