//! The container's root directory, as a place in which paths are resolved. The image decides what lies there, symbolic
//! links included; with `RESOLVE_IN_ROOT` they cannot lead outside, and the magic links of /proc are refused, because they
//! are descriptors in disguise.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Mode of a directory and of a file that is made because the image lacks it.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

/// Why a path inside the root could not be opened or made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot open {} of the image", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot create {} in the image", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("{} of the image is not a directory", path.display())]
    NotADirectory { path: PathBuf },
    #[error("{} of the image is a directory", path.display())]
    IsADirectory { path: PathBuf },
    #[error("{} of the image is a symbolic link", path.display())]
    IsALink { path: PathBuf },
}

impl Error {
    /// Whether there is nothing at the path.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// What has to be at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Directory,
    /// A directory that no symbolic link leads to.
    RealDirectory,
    /// Anything but a directory.
    File,
}

/// A directory that paths do not lead out of.
#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

impl Root {
    /// The root directory of this process.
    pub(crate) fn current() -> io::Result<Root> {
        Root::at(Path::new("/"))
    }

    /// The directory at `path`.
    pub(crate) fn at(path: &Path) -> io::Result<Root> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Root(rustix::fs::open(path, flags, Mode::empty())?))
    }

    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// A descriptor (`O_PATH`) of what `path` leads to, if there is anything.
    pub(crate) fn open(&self, path: &Path) -> Result<Option<OwnedFd>, Error> {
        existing(path, self.resolve(path, ResolveFlags::empty()))
    }

    /// As [`Root::open`], but a symbolic link on the way is an error.
    pub(crate) fn open_strictly(&self, path: &Path) -> Result<Option<OwnedFd>, Error> {
        match self.resolve(path, ResolveFlags::NO_SYMLINKS) {
            Err(Errno::LOOP) => Err(Error::IsALink { path: path.into() }),
            found => existing(path, found),
        }
    }

    /// Opens what is at `path` if no symbolic link leads there.
    pub(crate) fn open_plain(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        rustix::fs::openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// A descriptor (`O_PATH`) of the target at `path`, which is made with its parents if it is not there.
    pub(crate) fn open_or_create(&self, path: &Path, target: Target) -> Result<OwnedFd, Error> {
        let flags = if target == Target::RealDirectory {
            ResolveFlags::NO_SYMLINKS
        } else {
            ResolveFlags::empty()
        };
        let found = match self.resolve(path, flags) {
            Ok(found) => found,
            Err(Errno::NOENT) => return self.create(path, target),
            Err(Errno::LOOP) => return Err(Error::IsALink { path: path.into() }),
            Err(error) => {
                return Err(Error::Open {
                    path: path.into(),
                    source: error.into(),
                });
            }
        };
        let status = rustix::fs::fstat(&found).map_err(|error| Error::Open {
            path: path.into(),
            source: error.into(),
        })?;
        let directory =
            rustix::fs::FileType::from_raw_mode(status.st_mode) == rustix::fs::FileType::Directory;
        match (directory, target) {
            (true, Target::File) => Err(Error::IsADirectory { path: path.into() }),
            (false, Target::Directory | Target::RealDirectory) => {
                Err(Error::NotADirectory { path: path.into() })
            }
            _ => Ok(found),
        }
    }

    fn resolve(&self, path: &Path, flags: ResolveFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | flags;
        rustix::fs::openat2(
            &self.0,
            path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
    }

    fn create(&self, path: &Path, target: Target) -> Result<OwnedFd, Error> {
        let mut reached = PathBuf::from("/");
        let mut directory = self
            .resolve(&reached, ResolveFlags::empty())
            .map_err(|error| Error::Open {
                path: reached.clone(),
                source: error.into(),
            })?;
        let names: Vec<&OsStr> = path.iter().filter(|name| *name != "/").collect();
        for (index, name) in names.iter().enumerate() {
            reached.push(name);
            let as_file = index + 1 == names.len() && target == Target::File;
            directory = match self.resolve(&reached, ResolveFlags::empty()) {
                Ok(found) => found,
                Err(Errno::NOENT) => make(&directory, name, as_file).map_err(|error| Error::Create {
                    path: reached.clone(),
                    source: error.into(),
                })?,
                Err(error) => {
                    return Err(Error::Open {
                        path: reached,
                        source: error.into(),
                    });
                }
            };
        }
        Ok(directory)
    }
}

fn existing(path: &Path, found: rustix::io::Result<OwnedFd>) -> Result<Option<OwnedFd>, Error> {
    match found {
        Ok(descriptor) => Ok(Some(descriptor)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(Error::Open {
            path: path.into(),
            source: error.into(),
        }),
    }
}

/// Makes `name`, which does not exist, in `parent`. A symbolic link to nowhere is in the way, not followed.
fn make(parent: &OwnedFd, name: &OsStr, as_file: bool) -> rustix::io::Result<OwnedFd> {
    if as_file {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        drop(rustix::fs::openat(parent, name, flags, FILE_MODE)?);
    } else {
        rustix::fs::mkdirat(parent, name, DIRECTORY_MODE)?;
    }
    rustix::fs::openat(
        parent,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// The absolute path without `.` and doubled slashes; nothing if it is relative, or has `..` or a NUL byte.
pub(crate) fn inside(path: &Path) -> Option<PathBuf> {
    let plain = path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&0);
    let components = path.components();
    let climbs = path
        .components()
        .any(|component| component == Component::ParentDir);
    (plain && !climbs).then(|| components.collect())
}

/// Changes to the directory `path` inside the root.
pub(crate) fn change_directory(root: &Root, path: &Path) -> Result<(), Error> {
    let failed = |error: Errno| Error::Open {
        path: path.into(),
        source: error.into(),
    };
    let directory = root.resolve(path, ResolveFlags::empty()).map_err(failed)?;
    rustix::process::fchdir(&directory).map_err(|error| match error {
        Errno::NOTDIR => Error::NotADirectory { path: path.into() },
        error => failed(error),
    })
}

/// Whether `name` exists in the directory `parent` of the root, links not followed.
pub(crate) fn exists(root: &Root, path: &str) -> bool {
    rustix::fs::statat(
        root.directory(),
        path.trim_start_matches('/'),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn paths_are_normalised() {
        let cases = [
            ("/a//b/./c/", Some("/a/b/c")),
            ("/", Some("/")),
            ("a", None),
            ("/a/../b", None),
            ("/a\0", None),
        ];
        for (path, expected) in cases {
            assert_eq!(inside(Path::new(path)), expected.map(PathBuf::from), "{path:?}");
        }
    }

    #[test]
    fn links_stay_inside() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        let outside = directory.path().join("outside");
        fs::create_dir_all(tree.join("real")).unwrap();
        fs::create_dir(&outside).unwrap();
        symlink(&outside, tree.join("absolute")).unwrap();
        symlink("../../outside", tree.join("climbing")).unwrap();
        symlink("real", tree.join("harmless")).unwrap();
        symlink("/proc/self/root", tree.join("nowhere")).unwrap();
        fs::write(tree.join("file"), "").unwrap();
        let root = Root::at(&tree).unwrap();
        let create = |path: &str, target| {
            root.open_or_create(Path::new(path), target)
                .map(drop)
                .map_err(|error| error.to_string())
        };

        // The link's target is looked for inside the tree, where it is missing, and a link is never replaced.
        let blocked = |path| Err(format!("cannot create {path} in the image"));
        assert_eq!(create("/absolute/x", Target::Directory), blocked("/absolute"));
        assert_eq!(create("/climbing/x", Target::File), blocked("/climbing"));
        assert_eq!(create("/nowhere", Target::File), blocked("/nowhere"));
        assert_eq!(create("/harmless/x/y", Target::File), Ok(()));
        assert!(tree.join("real/x/y").is_file());
        assert_eq!(create("/new/deep", Target::Directory), Ok(()));
        assert!(tree.join("new/deep").is_dir());
        assert_eq!(
            create("/file", Target::Directory),
            Err("/file of the image is not a directory".into())
        );
        assert_eq!(
            create("/real", Target::File),
            Err("/real of the image is a directory".into())
        );
        let link = Err("/harmless of the image is a symbolic link".into());
        assert_eq!(create("/harmless", Target::RealDirectory), link);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }
}
