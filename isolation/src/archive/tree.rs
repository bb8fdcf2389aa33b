//! Walking a tree of files, each directory sorted, and writing what is found.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;
use tar::EntryType;

use super::writer::{Meta, Writer};
use super::{Error, Extent};
use crate::files;
use crate::reopen::Reopener;

/// Bytes read and written at once.
const BUFFER_BYTES: usize = 256 << 10;

/// Bytes of a list of attributes, and of one's value: XATTR_LIST_MAX and XATTR_SIZE_MAX.
const XATTR_BYTES: usize = 64 << 10;

/// How a name is marked as removed, and a directory as hiding what is below it (image-spec, layer.md).
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Overlayfs's own attributes, which mean something in its upper directory only.
const OVERLAY: &[u8] = b"trusted.overlay.";
pub(super) const OVERLAY_OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// Extents of a file beyond which it is written with its holes filled: a reader holds the list in memory.
const MAX_EXTENTS: usize = 1 << 16;

/// What a tree is called in an archive, and how far it reaches.
#[derive(Debug, Clone)]
pub(crate) struct Top {
    /// Where it is: an absolute path.
    pub(crate) path: PathBuf,
    /// What stands in the place of that path in names; `.` for no more than `./`, and nothing for not even that, except for
    /// the top itself.
    pub(crate) name: Vec<u8>,
    /// Whether a directory on which something is mounted is empty.
    pub(crate) one_mount: bool,
}

impl Top {
    /// Everything that the root directory holds.
    pub(super) fn root() -> Self {
        Self {
            path: "/".into(),
            name: Vec::new(),
            one_mount: false,
        }
    }

    /// A path as an archive has it: relative, and with a slash behind a directory.
    fn name(&self, path: &Path, is_directory: bool) -> Vec<u8> {
        let below = path.strip_prefix(&self.path).unwrap_or(path);
        let below = below.as_os_str().as_bytes();
        let name = match (self.name.as_slice(), below) {
            (b"", b"") => b".".to_vec(),
            (b"", below) => below.to_vec(),
            (name, b"") => name.to_vec(),
            (name, below) => [name, b"/", below].concat(),
        };
        if is_directory {
            [name.as_slice(), b"/"].concat()
        } else {
            name
        }
    }
}

/// Files on their way into an archive.
pub(crate) struct Tree<'a, W: Write> {
    top: Top,
    extent: Extent,
    reopener: &'a Reopener,
    output: Writer<BufWriter<W>>,
    /// Where a file with several names was written, by device and inode.
    seen: HashMap<(u64, u64), PathBuf>,
    buffer: Vec<u8>,
}

impl<'a, W: Write> Tree<'a, W> {
    pub(crate) fn new(top: Top, extent: Extent, reopener: &'a Reopener, output: W) -> Self {
        Self {
            top,
            extent,
            reopener,
            output: Writer::new(BufWriter::with_capacity(BUFFER_BYTES, output)),
            seen: HashMap::new(),
            buffer: vec![0; BUFFER_BYTES],
        }
    }

    /// Writes everything. Directories come before what is in them.
    pub(crate) fn write(mut self) -> Result<(), Error> {
        let top = self.top.path.clone();
        let mut levels = Vec::new();
        if self.entry(&top)? {
            levels.push(children(&top)?.into_iter());
        }
        while let Some(level) = levels.last_mut() {
            match level.next() {
                None => drop(levels.pop()),
                Some(path) => {
                    if self.entry(&path)? && !self.is_mount(&path)? {
                        levels.push(children(&path)?.into_iter());
                    }
                }
            }
        }
        self.output.finish().map_err(Error::Write)
    }

    /// Whether something is mounted there that is left out.
    fn is_mount(&self, path: &Path) -> Result<bool, Error> {
        let mount = |path: &Path| match rustix::fs::statx(
            rustix::fs::CWD,
            path,
            AtFlags::SYMLINK_NOFOLLOW,
            StatxFlags::MNT_ID,
        ) {
            Ok(status) => Ok(Some(status.stx_mnt_id)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(Error::Read {
                path: path.to_owned(),
                source: error.into(),
            }),
        };
        Ok(self.top.one_mount && mount(path)? != mount(&self.top.path)?)
    }

    /// Writes one file; the answer is whether it is a directory. What is gone meanwhile is left out.
    fn entry(&mut self, path: &Path) -> Result<bool, Error> {
        let failed = |source| Error::Read {
            path: path.to_owned(),
            source,
        };
        let metadata = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            metadata => metadata.map_err(failed)?,
        };
        let kind = metadata.file_type();
        let is_device = kind.is_char_device() || kind.is_block_device();
        if self.extent == Extent::Changes {
            if kind.is_char_device() && metadata.rdev() == 0 {
                return self.whiteout(path).map(|()| false);
            }
            if path
                .file_name()
                .is_some_and(|name| name.as_bytes().starts_with(WHITEOUT))
            {
                return Err(Error::WhiteoutName(path.to_owned()));
            }
        }
        let attributes = attributes(path).map_err(failed)?;
        // It is there for one of the container's own to be mounted on.
        if metadata.len() == 0 && attributes.iter().any(|(name, _)| name == files::MOUNT_POINT) {
            return Ok(false);
        }
        let is_opaque = attributes
            .iter()
            .any(|(name, value)| name == OVERLAY_OPAQUE && value == b"y");
        let meta = meta(&metadata, attributes);
        let name = self.top.name(path, kind.is_dir());
        let written = if kind.is_dir() {
            self.output.entry(EntryType::Directory, (&name, b""), &meta, 0)
        } else if kind.is_symlink() {
            let target = fs::read_link(path).map_err(failed)?;
            let link = target.as_os_str().as_bytes();
            self.output.entry(EntryType::Symlink, (&name, link), &meta, 0)
        } else if let Some(first) = self.first_name(path, &metadata) {
            let link = self.top.name(&first, false);
            self.output.entry(EntryType::Link, (&name, &link), &meta, 0)
        } else if kind.is_file() {
            return self.file(path, &name, &meta).map(|()| false);
        } else if is_device {
            let kind = if kind.is_char_device() {
                EntryType::Char
            } else {
                EntryType::Block
            };
            self.output.entry(kind, (&name, b""), &meta, 0)
        } else if kind.is_fifo() {
            self.output.entry(EntryType::Fifo, (&name, b""), &meta, 0)
        } else {
            // A socket: nobody listens to it in another place.
            Ok(())
        };
        written.map_err(Error::Write)?;
        if is_opaque && self.extent == Extent::Changes {
            self.mark(&path.join(OsStr::from_bytes(OPAQUE)))?;
        }
        Ok(kind.is_dir())
    }

    /// The name under which a file with several names was written; none for the first of them.
    fn first_name(&mut self, path: &Path, metadata: &Metadata) -> Option<PathBuf> {
        if metadata.nlink() < 2 {
            return None;
        }
        let inode = (metadata.dev(), metadata.ino());
        if let Some(first) = self.seen.get(&inode) {
            return Some(first.clone());
        }
        self.seen.insert(inode, path.to_owned());
        None
    }

    fn whiteout(&mut self, path: &Path) -> Result<(), Error> {
        let name = path.file_name().unwrap_or_default().as_bytes();
        let name = [WHITEOUT, name].concat();
        self.mark(&path.with_file_name(OsStr::from_bytes(&name)))
    }

    /// Writes an empty file whose name says everything.
    fn mark(&mut self, path: &Path) -> Result<(), Error> {
        let name = self.top.name(path, false);
        let meta = Meta::default();
        self.output
            .entry(EntryType::Regular, (&name, b""), &meta, 0)
            .map_err(Error::Write)
    }

    fn file(&mut self, path: &Path, name: &[u8], meta: &Meta) -> Result<(), Error> {
        let failed = |source| Error::Read {
            path: path.to_owned(),
            source,
        };
        // A running workload may have put something else there, which must not even be opened.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        let status = rustix::fs::fstat(&found).map_err(|error| failed(error.into()))?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err(Error::Replaced(path.to_owned()));
        }
        let file = self.reopener.open(&found, OFlags::RDONLY | OFlags::NONBLOCK);
        let file = File::from(file.map_err(failed)?);
        let size = file.metadata().map_err(failed)?.len();
        let extents = extents(&file, size).map_err(failed)?;
        let header = match &extents {
            Some(extents) => self.output.sparse(name, meta, size, extents),
            None => self.output.entry(EntryType::Regular, (name, b""), meta, size),
        };
        header.map_err(Error::Write)?;
        for (start, length) in extents.unwrap_or_else(|| vec![(0, size)]) {
            self.copy(&file, path, start, length)?;
        }
        self.output.pad().map_err(Error::Write)
    }

    fn copy(&mut self, file: &File, path: &Path, mut position: u64, length: u64) -> Result<(), Error> {
        let mut left = length;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let chunk = self.buffer.get_mut(..wanted).unwrap_or_default();
            let count = match file.read_at(chunk, position) {
                Ok(0) => return Err(Error::Shrunk(path.to_owned())),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    return Err(Error::Read {
                        path: path.to_owned(),
                        source,
                    });
                }
            };
            let read = chunk.get(..count).unwrap_or_default();
            self.output.content(read).map_err(Error::Write)?;
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            position += count;
            left = left.saturating_sub(count);
        }
        Ok(())
    }
}

/// Paths of what a directory has, sorted. One that is gone is empty.
fn children(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Read {
        path: directory.to_owned(),
        source,
    };
    let mut paths = Vec::new();
    let entries = match fs::read_dir(directory) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(paths);
        }
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn meta(metadata: &Metadata, mut xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Meta {
    xattrs.retain(|(name, _)| !name.starts_with(OVERLAY));
    xattrs.sort();
    Meta {
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: (
            metadata.mtime(),
            u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
        ),
        device: (
            rustix::fs::major(metadata.rdev()),
            rustix::fs::minor(metadata.rdev()),
        ),
        xattrs,
    }
}

/// Every extended attribute of a file itself.
fn attributes(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0; XATTR_BYTES];
    let length = match rustix::fs::llistxattr(path, &mut *names) {
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        length => length?,
    };
    let mut value = vec![0; XATTR_BYTES];
    let mut attributes = Vec::new();
    let names = names.get(..length).unwrap_or_default();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        match rustix::fs::lgetxattr(path, name, &mut *value) {
            Ok(length) => {
                let value = value.get(..length).unwrap_or_default();
                attributes.push((name.to_vec(), value.to_vec()));
            }
            // Taken away meanwhile.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(attributes)
}

/// Where a file with holes has data; none for one without holes. The last extent is empty and says where the file ends.
fn extents(file: &File, size: u64) -> io::Result<Option<Vec<(u64, u64)>>> {
    let mut extents = Vec::new();
    let mut position = 0;
    while position < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(position)) {
            Ok(start) => start.min(size),
            Err(Errno::NXIO) => break,
            // A file system that does not know.
            Err(Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size);
        if (start, end) == (0, size) {
            return Ok(None);
        }
        if start < end {
            extents.push((start, end - start));
        }
        if extents.len() > MAX_EXTENTS {
            return Ok(None);
        }
        position = end.max(start);
        if start >= size {
            break;
        }
    }
    if size == 0 {
        return Ok(None);
    }
    extents.push((size, 0));
    Ok(Some(extents))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_top() {
        let cases: [(&str, &str, &str, bool, &str); 8] = [
            ("/", "", "/", true, "./"),
            ("/", "", "/a/b", false, "a/b"),
            ("/", "", "/a", true, "a/"),
            ("/a/b", "x", "/a/b", true, "x/"),
            ("/a/b", "x", "/a/b/c/d", false, "x/c/d"),
            ("/a/b", "x", "/a/b", false, "x"),
            ("/a", ".", "/a", true, "./"),
            ("/a", ".", "/a/b", true, "./b/"),
        ];
        for (top, name, path, is_directory, expected) in cases {
            let top = Top {
                path: top.into(),
                name: name.into(),
                one_mount: false,
            };
            let found = top.name(Path::new(path), is_directory);
            assert_eq!(String::from_utf8(found).unwrap(), expected, "{top:?} {path}");
        }
    }

    #[test]
    fn what_has_become_a_device_is_not_opened() {
        let reopener = Reopener::new().unwrap();
        let mut tree = Tree::new(Top::root(), Extent::All, &reopener, io::sink());
        let outcome = tree.file(Path::new("/dev/null"), b"x", &Meta::default());
        assert!(matches!(outcome, Err(Error::Replaced(_))), "{outcome:?}");
    }
}
