//! Making the files that a tar stream describes, in a directory. Each name is taken apart and its parent opened by
//! descriptor, so that neither `..` nor a link leads out; what is in the way is replaced and never written through.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use rvm_tar::{Entry, Extent, Forward, Kind, Reader};

/// Bytes written at once.
const BUFFER_BYTES: usize = 256 << 10;

/// Why files could not be made.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// What came is no tar, or not whole.
    #[error("the archive is damaged or not a tar")]
    Tar(#[from] rvm_tar::Error),
    /// What came broke off behind the tar.
    #[error("cannot read the archive to its end")]
    Rest(#[source] io::Error),
    /// An entry's name leads elsewhere.
    #[error("the archive has an entry {0:?}, which does not belong to what is copied")]
    Outside(String),
    /// It is a device.
    #[error("{0:?} is a device: devices are not made on this machine; they are in the archive that - writes")]
    Device(String),
    /// Docker's words.
    #[error("cannot overwrite directory {0:?} with non-directory")]
    Directory(String),
    /// Docker's words.
    #[error("cannot overwrite non-directory {0:?} with directory")]
    NotDirectory(String),
    /// It would be another name of a file that has nothing to do with the archive.
    #[error("the archive links to {0:?}, which it has not made: such a file is not given another name")]
    Foreign(String),
    /// A file could not be made.
    #[error("cannot make {path:?}")]
    Make {
        /// Its name, relative to the directory.
        path: String,
        /// The cause.
        source: io::Error,
    },
}

/// Whose files are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnpackPlace {
    /// A container's, by who has entered it. Links on the way are followed, and devices are made.
    Container,
    /// This machine's, of what a container has sent. Links on the way are an error, and so are devices.
    Machine,
    /// A volume's, which other containers may be changing. Links on the way are an error, and devices are left out.
    Volume,
}

/// How files are made.
#[derive(Debug, Clone)]
pub struct Unpack {
    /// Whether they get the archive's owners and groups, or belong to who makes them. In the latter case, files made on this
    /// machine get no set-user-ID, set-group-ID and file capabilities.
    pub owners: bool,
    /// Where they are made.
    pub place: UnpackPlace,
    /// The first component that every name of the archive has, and what stands for it instead.
    pub top: Option<(OsString, OsString)>,
}

impl Unpack {
    /// Makes the files in a directory.
    ///
    /// # Errors
    /// As [`UnpackError`] says. What was made before stays.
    pub fn unpack(&self, directory: impl AsFd, input: &mut dyn Read) -> Result<(), UnpackError> {
        let mut work = Work {
            unpack: self,
            directory: &directory,
            open: Vec::new(),
            made: HashSet::new(),
            buffer: vec![0; BUFFER_BYTES],
        };
        let mut reader = Reader::new(Forward(&mut *input));
        while let Some(entry) = reader.next_entry()? {
            work.entry(&mut reader, &entry)?;
        }
        work.close_others(Path::new(""))?;
        // The stream tells only at its end whether it is whole.
        io::copy(input, &mut io::sink()).map_err(UnpackError::Rest)?;
        Ok(())
    }

    /// Where an entry belongs: a relative path without `..`, empty for the directory itself.
    fn place_of(&self, name: &[u8]) -> Result<PathBuf, UnpackError> {
        let outside = || UnpackError::Outside(text(name));
        let mut path = PathBuf::new();
        for component in Path::new(OsStr::from_bytes(name)).components() {
            match component {
                Component::Normal(name) => path.push(name),
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => return Err(outside()),
            }
        }
        if name.contains(&0) {
            return Err(outside());
        }
        let Some((top, instead)) = &self.top else {
            return Ok(path);
        };
        let below = if top == "." {
            &path
        } else {
            path.strip_prefix(top).map_err(|_| outside())?
        };
        Ok(if instead == "." {
            below.to_owned()
        } else if below.as_os_str().is_empty() {
            instead.into()
        } else {
            Path::new(instead).join(below)
        })
    }
}

/// A name for a person.
fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

struct Work<'a, D> {
    unpack: &'a Unpack,
    directory: &'a D,
    /// Directories on the way to the last entry: a directory's time is set when nothing more is made in it.
    open: Vec<(PathBuf, OwnedFd, Timestamps)>,
    /// Files made on this machine, by device and inode: no others get further names. Each also takes an inode there.
    made: HashSet<(u64, u64)>,
    buffer: Vec<u8>,
}

impl<D: AsFd> Work<'_, D> {
    fn entry<R: Read>(&mut self, reader: &mut Reader<Forward<R>>, entry: &Entry) -> Result<(), UnpackError> {
        let path = self.unpack.place_of(&entry.path)?;
        let Some(name) = path.file_name() else {
            // The directory itself, which stays as it is.
            return Ok(());
        };
        let failed = |error: Errno| make_error(&path, error);
        self.close_others(&path)?;
        let parent = self.parent(&path)?;
        if matches!(entry.kind, Kind::CharacterDevice | Kind::BlockDevice) {
            match self.unpack.place {
                UnpackPlace::Container => {}
                UnpackPlace::Machine => return Err(UnpackError::Device(text(&entry.path))),
                UnpackPlace::Volume => return Ok(()),
            }
        }
        if !self.make_way(&parent, name, &path, entry.kind)? {
            return self.attributes_of_directory(&parent, &path, entry);
        }
        match entry.kind {
            Kind::File => return self.file(reader, &parent, &path, entry),
            Kind::Directory => {
                rustix::fs::mkdirat(&parent, name, Mode::RWXU).map_err(failed)?;
                return self.attributes_of_directory(&parent, &path, entry);
            }
            Kind::Symlink => {
                rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), &parent, name).map_err(failed)?;
            }
            Kind::HardLink => return self.link(&parent, &path, entry),
            Kind::CharacterDevice | Kind::BlockDevice | Kind::Fifo => {
                let kind = match entry.kind {
                    Kind::CharacterDevice => FileType::CharacterDevice,
                    Kind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let device = rustix::fs::makedev(entry.device.0, entry.device.1);
                rustix::fs::mknodat(&parent, name, kind, self.mode(entry), device).map_err(failed)?;
            }
        }
        let made = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        self.remember(&made);
        let (owner, group) = self.owner(entry);
        rustix::fs::chownat(&parent, name, owner, group, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        rustix::fs::utimensat(&parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
    }

    /// Opens the directory that an entry belongs in, and makes it where the archive does not say what it is like.
    fn parent(&self, path: &Path) -> Result<OwnedFd, UnpackError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        match self.open_directory(parent) {
            Err(Errno::NOENT) => {}
            result => return result.map_err(|error| make_error(path, error)),
        }
        let mut reached = PathBuf::new();
        let mut directory = self.open_directory(&reached);
        for name in parent {
            let above = directory.map_err(|error| make_error(path, error))?;
            match rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(make_error(path, error)),
            }
            reached.push(name);
            directory = self.open_directory(&reached);
        }
        directory.map_err(|error| make_error(path, error))
    }

    fn open_directory(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let resolve = match self.unpack.place {
            UnpackPlace::Container => ResolveFlags::NO_MAGICLINKS,
            UnpackPlace::Machine | UnpackPlace::Volume => {
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
            }
        };
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(self.directory, path, flags, Mode::empty(), resolve)
    }

    /// Removes what an entry replaces; `false` where it is a directory that is there already.
    fn make_way(&self, parent: &OwnedFd, name: &OsStr, path: &Path, kind: Kind) -> Result<bool, UnpackError> {
        let there = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) => FileType::from_raw_mode(status.st_mode),
            Err(Errno::NOENT) => return Ok(true),
            Err(error) => return Err(make_error(path, error)),
        };
        match (there == FileType::Directory, kind == Kind::Directory) {
            (true, true) => Ok(false),
            (true, false) => Err(UnpackError::Directory(path.display().to_string())),
            (false, true) => Err(UnpackError::NotDirectory(path.display().to_string())),
            (false, false) => rustix::fs::unlinkat(parent, name, AtFlags::empty())
                .map(|()| true)
                .map_err(|error| make_error(path, error)),
        }
    }

    fn file<R: Read>(
        &mut self,
        reader: &mut Reader<Forward<R>>,
        parent: &OwnedFd,
        path: &Path,
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let failed = |error: io::Error| UnpackError::Make {
            path: path.display().to_string(),
            source: error,
        };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = path.file_name().unwrap_or_default();
        let file = rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(file.map_err(|error| failed(error.into()))?);
        self.remember(&rustix::fs::fstat(&file).map_err(|error| failed(error.into()))?);
        let whole = [Extent {
            offset: 0,
            length: entry.size,
        }];
        for extent in entry.extents.as_deref().unwrap_or(&whole) {
            let (mut position, mut left) = (extent.offset, extent.length);
            while left > 0 {
                let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
                let chunk = self.buffer.get_mut(..wanted).unwrap_or_default();
                let count = reader.read(chunk)?;
                let read = chunk.get(..count).unwrap_or_default();
                file.write_all_at(read, position).map_err(failed)?;
                let count = u64::try_from(count).unwrap_or(u64::MAX);
                position += count;
                left = left.saturating_sub(count);
            }
        }
        if entry.extents.is_some() {
            file.set_len(entry.size).map_err(failed)?;
        }
        self.attributes(&file, entry)
            .map_err(|error| failed(error.into()))?;
        rustix::fs::futimens(&file, &times(entry)).map_err(|error| failed(error.into()))
    }

    fn remember(&mut self, made: &Stat) {
        if self.unpack.place == UnpackPlace::Machine {
            self.made.insert((made.st_dev, made.st_ino));
        }
    }

    /// Makes another name of an entry that came before.
    fn link(&self, parent: &OwnedFd, path: &Path, entry: &Entry) -> Result<(), UnpackError> {
        let failed = |error: Errno| make_error(path, error);
        let first = self.unpack.place_of(&entry.link)?;
        let directory = self.open_directory(first.parent().unwrap_or(Path::new("")));
        let first = first
            .file_name()
            .ok_or_else(|| UnpackError::Outside(text(&entry.link)))?;
        let name = path.file_name().unwrap_or_default();
        let directory = directory.map_err(failed)?;
        if self.unpack.place == UnpackPlace::Machine {
            let there = rustix::fs::statat(&directory, first, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            if !self.made.contains(&(there.st_dev, there.st_ino)) {
                return Err(UnpackError::Foreign(text(&entry.link)));
            }
        }
        rustix::fs::linkat(directory, first, parent, name, AtFlags::empty()).map_err(failed)
    }

    fn attributes_of_directory(
        &mut self,
        parent: &OwnedFd,
        path: &Path,
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let failed = |error: Errno| make_error(path, error);
        let name = path.file_name().unwrap_or_default();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(failed)?;
        self.attributes(&directory, entry).map_err(failed)?;
        self.open.push((path.to_owned(), directory, times(entry)));
        Ok(())
    }

    /// Sets the times of directories that a path is not in.
    fn close_others(&mut self, path: &Path) -> Result<(), UnpackError> {
        while let Some((open, directory, times)) = self
            .open
            .pop_if(|(open, ..)| path == open || !path.starts_with(open))
        {
            rustix::fs::futimens(&directory, &times).map_err(|error| make_error(&open, error))?;
        }
        Ok(())
    }

    /// Sets everything but times. The order is the kernel's: a new owner takes mode bits and capabilities away.
    fn attributes(&self, file: impl AsFd, entry: &Entry) -> rustix::io::Result<()> {
        let (owner, group) = self.owner(entry);
        rustix::fs::fchown(&file, owner, group)?;
        rustix::fs::fchmod(&file, self.mode(entry))?;
        // As Docker's: others mean something to the kernel or to file systems that whoever wrote them has no say in.
        let wanted = |name: &[u8]| {
            (name == b"security.capability" && self.keeps_privileges()) || name.starts_with(b"user.")
        };
        for (name, value) in entry.xattrs.iter().filter(|(name, _)| wanted(name)) {
            match rustix::fs::fsetxattr(&file, name.as_slice(), value, XattrFlags::empty()) {
                // There is no place for it here.
                Ok(()) | Err(Errno::NOTSUP) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The mode that an entry gets.
    fn mode(&self, entry: &Entry) -> Mode {
        let mode = Mode::from_raw_mode(entry.mode.into());
        match (self.keeps_privileges(), entry.kind) {
            (true, _) => mode,
            // Of a directory, it protects what is in it.
            (false, Kind::Directory) => mode - Mode::SUID - Mode::SGID,
            (false, _) => mode - Mode::SUID - Mode::SGID - Mode::SVTX,
        }
    }

    /// Whether a program may get rights by running. Not what a container names and who copies then owns: root, mostly.
    fn keeps_privileges(&self) -> bool {
        self.unpack.owners || self.unpack.place == UnpackPlace::Container
    }

    fn owner(&self, entry: &Entry) -> (Option<Uid>, Option<Gid>) {
        // The highest number stands for none.
        let wanted = |number: u32| self.unpack.owners && number != u32::MAX;
        (
            wanted(entry.uid).then(|| Uid::from_raw(entry.uid)),
            wanted(entry.gid).then(|| Gid::from_raw(entry.gid)),
        )
    }
}

fn make_error(path: &Path, error: Errno) -> UnpackError {
    UnpackError::Make {
        path: path.display().to_string(),
        source: error.into(),
    }
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec {
        tv_sec: entry.mtime.seconds,
        tv_nsec: entry.mtime.nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

#[cfg(test)]
mod tests;
