//! Files that belong to where a container is and not to its image: `/etc/hosts` and the like. They lie in a small file
//! system of the container's own, so that it may write to them, and neither a commit nor an export has what is in them.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, XattrFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, OpenTreeFlags};

use crate::environment::{PrivateFile, Rootfs};
use crate::root::{self, Root, Target};
use crate::{mounts, plan};

/// Why such a file could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot make a file system for the container's own files")]
    FileSystem(#[source] io::Error),
    #[error("cannot write the container's own {}", _0.display())]
    Write(PathBuf, #[source] io::Error),
    #[error("cannot put the container's own {} in its place", path.display())]
    Place { path: PathBuf, source: root::Error },
    #[error("cannot mount the container's own {}", _0.display())]
    Mount(PathBuf, #[source] io::Error),
}

/// Marks a file that was made for one of these to be mounted on, so that it is not taken for the workload's.
pub(crate) const MOUNT_POINT: &[u8] = b"trusted.rvm.mount-point";

/// Largest sum of their contents in bytes.
const LARGEST: usize = 256 << 10;

/// Checks that the files can be made.
pub(crate) fn check(files: &[PrivateFile]) -> Result<(), plan::Error> {
    let refuse = |reason: String| {
        Err(plan::Error::Invalid {
            field: "environment.files".into(),
            reason,
        })
    };
    if let Some(file) = files.iter().find(|file| root::inside(&file.path).is_none()) {
        return refuse(format!("{:?} is not an absolute path without \"..\"", file.path));
    }
    if files.iter().map(|file| file.content.len()).sum::<usize>() > LARGEST {
        return refuse(format!("have more than {LARGEST} bytes"));
    }
    Ok(())
}

/// A file of a container's own, to be written to later: it is the one that the workload has found at `path`, whatever it has
/// done there since.
#[derive(Debug)]
pub struct OwnFile {
    /// Where it is inside.
    pub path: PathBuf,
    /// What it is.
    pub file: File,
}

/// A file that is written.
pub(crate) struct Prepared {
    mount: OwnedFd,
    /// For [`OwnFile`].
    file: OwnedFd,
}

/// Writes the files, while `staging` can still be reached.
pub(crate) fn prepare(rootfs: &Rootfs, files: &[PrivateFile]) -> Result<Vec<Prepared>, Error> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let directory = rootfs.staging.join("files");
    fs::create_dir(&directory).map_err(Error::FileSystem)?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount(
        "files",
        &directory,
        "tmpfs",
        flags,
        c"mode=755,size=1m,nr_inodes=64",
    )
    .map_err(|error| Error::FileSystem(error.into()))?;
    let write = |(index, file): (usize, &PrivateFile)| {
        let failed = |source| Error::Write(file.path.clone(), source);
        let path = directory.join(index.to_string());
        fs::write(&path, &file.content).map_err(failed)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(failed)?;
        let mount = open(&path).map_err(failed)?;
        let file = File::options().read(true).write(true).open(&path);
        Ok(Prepared {
            mount,
            file: file.map_err(failed)?.into(),
        })
    };
    files.iter().enumerate().map(write).collect()
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

/// Links that are followed one after the other, as many as the kernel follows.
const MOST_LINKS: usize = 40;

/// What is at `path`, or a new file. A link to nowhere, which images of services have that make the file as they start, is
/// followed to where the file would be.
fn place(root: &Root, path: &Path) -> Result<OwnedFd, root::Error> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let is_new = matches!(root.open(&path), Ok(None));
        let opened = root.open_or_create(&path, Target::File);
        let link = match &opened {
            Err(_) => fs::read_link(&path),
            Ok(_) if is_new => return mark(&path).and(opened),
            Ok(_) => return opened,
        };
        let Ok(target) = link else { return opened };
        path.pop();
        // Nothing but the new root directory can be reached, and nothing above it.
        for component in target.components() {
            match component {
                Component::RootDir => path = PathBuf::from("/"),
                Component::ParentDir => drop(path.pop()),
                Component::Normal(name) => path.push(name),
                Component::CurDir | Component::Prefix(_) => {}
            }
        }
    }
    root.open_or_create(&path, Target::File)
}

/// A file system without such marks, or that refuses them to a guest as a volume's does, has a file more to show.
fn mark(path: &Path) -> Result<(), root::Error> {
    match rustix::fs::lsetxattr(path, MOUNT_POINT, b"y", XattrFlags::empty()) {
        Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => Ok(()),
        Err(error) => Err(root::Error::Create {
            path: path.into(),
            source: error.into(),
        }),
    }
}

/// Puts the files in their places; the answer is a descriptor of each.
pub(crate) fn attach(
    root: &Root,
    files: &[PrivateFile],
    prepared: Vec<Prepared>,
) -> Result<Vec<OwnedFd>, Error> {
    let mut descriptors = Vec::new();
    for (
        file,
        Prepared {
            mount,
            file: descriptor,
        },
    ) in files.iter().zip(prepared)
    {
        let point = place(root, &file.path).map_err(|source| Error::Place {
            path: file.path.clone(),
            source,
        })?;
        mounts::attach(mount, point).map_err(|source| Error::Mount(file.path.clone(), source))?;
        descriptors.push(descriptor);
    }
    Ok(descriptors)
}
