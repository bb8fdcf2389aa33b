//! The pass over a layer's tar stream.

use std::fs::File;

use super::lower;
use super::path::{PathError, components, display};
use super::tree::{Tree, TreeError};
use crate::erofs::{FileType, Metadata, Nid, ReadError, WriteError, Writer, Xattrs, check_xattr_name};
use crate::limits;
use rvm_tar::{self as tar, Entry, Input, Kind};

/// Prefix of names that remove a name of the lower layers (image-spec, layer.md).
const WHITEOUT: &[u8] = b".wh.";
/// Removes everything that lower layers have in its directory.
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
/// Any other name with this prefix is housekeeping of aufs.
const AUFS: &[u8] = b".wh..wh.";

/// Bytes of data taken from the stream at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Why a layer cannot be converted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Tar(#[from] tar::Error),
    #[error("the name {name:?} of an entry is not allowed")]
    Name { name: String, source: PathError },
    #[error("the link target {target:?} of entry {name:?} is not allowed")]
    LinkTarget {
        name: String,
        target: String,
        source: PathError,
    },
    #[error("the entry {name:?} is not allowed")]
    Place { name: String, source: TreeError },
    #[error("the entry {name:?} is a device 0:0, which overlayfs would take for a whiteout")]
    WhiteoutDevice { name: String },
    #[error("the entry {name:?} cannot be stored")]
    Store { name: String, source: WriteError },
    #[error(
        "the symbolic link {name:?} has a target of {bytes} bytes, which is not between 1 and {}",
        limits::SYMLINK_BYTES
    )]
    Symlink { name: String, bytes: usize },
    #[error("the files of the layer have more than {} bytes", limits::UNPACKED_BYTES)]
    TooLarge,
    #[error("the hard link to {target:?} leads nowhere: neither this layer nor one below has that file")]
    DanglingLink { target: String },
    #[error("{0:?} and another name of the layer are the same file on the layers below")]
    Conflict(String),
    #[error(transparent)]
    Lower(#[from] lower::Error),
    #[error("cannot copy {target:?} from a layer below")]
    Copy { target: String, source: ReadError },
    #[error("cannot complete the layer's image")]
    Write(#[from] WriteError),
}

/// A layer whose stream has been read: all file data are in the image, its directories are not.
pub(crate) struct Unfinished {
    pub(super) writer: Writer,
    pub(super) tree: Tree,
    /// Sum of the sizes of all files.
    pub(super) bytes: u64,
}

impl Unfinished {
    /// Whether the layer's image would be the same on top of any others (its root directory aside).
    pub(crate) fn stands_alone(&self) -> bool {
        self.tree.stands_alone()
    }
}

/// Reads a layer up to the end mark of its tar stream and writes what can be written into the (empty) file.
pub(crate) fn read_layer<R: Input>(stream: &mut tar::Reader<R>, file: File) -> Result<Unfinished, Error> {
    let mut layer = Builder {
        writer: Writer::new(file),
        tree: Tree::new(),
        buffer: vec![0; CHUNK_BYTES],
        bytes: 0,
    };
    while let Some(entry) = stream.next_entry()? {
        layer.entry(stream, &entry)?;
    }
    Ok(Unfinished {
        writer: layer.writer,
        tree: layer.tree,
        bytes: layer.bytes,
    })
}

struct Builder {
    writer: Writer,
    tree: Tree,
    buffer: Vec<u8>,
    /// Sum of the sizes of all files.
    bytes: u64,
}

impl Builder {
    fn entry<R: Input>(&mut self, stream: &mut tar::Reader<R>, entry: &Entry) -> Result<(), Error> {
        let name = || display(&entry.path);
        let parts = components(&entry.path).map_err(|source| Error::Name { name: name(), source })?;
        let place = |source| Error::Place { name: name(), source };
        if let Some((last, parents)) = parts.split_last() {
            if let Some(result) = self.whiteout(parents, last) {
                return result.map_err(place);
            }
            // Before any data are written: an entry that has no place is refused without being read.
            self.tree.parent(parents).map_err(place)?;
        }
        let store = |source| Error::Store { name: name(), source };
        let metadata = metadata(entry);
        let (nid, kind) = match entry.kind {
            Kind::Directory => {
                return self.tree.insert_directory(&parts, metadata).map_err(place);
            }
            Kind::HardLink => {
                let target = components(&entry.link).map_err(|source| Error::LinkTarget {
                    name: name(),
                    target: display(&entry.link),
                    source,
                })?;
                return self.tree.insert_link(&parts, &target).map_err(place);
            }
            Kind::File => (self.file(stream, entry, &metadata)?, FileType::File),
            Kind::Symlink => {
                let bytes = entry.link.len();
                if bytes == 0 || bytes > limits::SYMLINK_BYTES || entry.link.contains(&0) {
                    return Err(Error::Symlink { name: name(), bytes });
                }
                // Linux shows links with all permissions, whatever the archive says.
                let metadata = Metadata {
                    mode: 0o777,
                    ..metadata
                };
                (
                    self.writer.symlink(&metadata, &entry.link).map_err(store)?,
                    FileType::Symlink,
                )
            }
            Kind::CharacterDevice if entry.device == (0, 0) => {
                return Err(Error::WhiteoutDevice { name: name() });
            }
            Kind::CharacterDevice => self
                .special(&metadata, FileType::CharacterDevice, entry.device)
                .map_err(store)?,
            Kind::BlockDevice => self
                .special(&metadata, FileType::BlockDevice, entry.device)
                .map_err(store)?,
            Kind::Fifo => self.special(&metadata, FileType::Fifo, (0, 0)).map_err(store)?,
        };
        self.tree.insert_leaf(&parts, nid, kind).map_err(place)
    }

    /// Nothing if the name is not one of the reserved ones.
    fn whiteout(&mut self, parents: &[&[u8]], name: &[u8]) -> Option<Result<(), TreeError>> {
        if name == OPAQUE_WHITEOUT {
            return Some(self.tree.opaque(parents));
        }
        if name.starts_with(AUFS) || parents.iter().any(|parent| parent.starts_with(AUFS)) {
            return Some(Ok(()));
        }
        name.strip_prefix(WHITEOUT)
            .map(|removed| self.tree.whiteout(parents, removed))
    }

    fn special(
        &mut self,
        metadata: &Metadata,
        kind: FileType,
        device: (u32, u32),
    ) -> Result<(Nid, FileType), WriteError> {
        Ok((self.writer.special(metadata, kind, device)?, kind))
    }

    fn file<R: Input>(
        &mut self,
        stream: &mut tar::Reader<R>,
        entry: &Entry,
        metadata: &Metadata,
    ) -> Result<Nid, Error> {
        let store = |source| Error::Store {
            name: display(&entry.path),
            source,
        };
        self.bytes = self.bytes.saturating_add(entry.size);
        if self.bytes > limits::UNPACKED_BYTES {
            return Err(Error::TooLarge);
        }
        let mut sink = self.writer.file(metadata, entry.size).map_err(store)?;
        let whole = [tar::Extent {
            offset: 0,
            length: entry.stored,
        }];
        let mut position = 0;
        for extent in entry.extents.as_deref().unwrap_or(&whole) {
            sink.zeros(extent.offset.saturating_sub(position))
                .map_err(store)?;
            let mut left = extent.length;
            while left > 0 {
                let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
                let count = stream.read(&mut self.buffer[..wanted])?;
                sink.write(&self.buffer[..count]).map_err(store)?;
                // The reader fails rather than giving nothing before the end of the entry's data.
                left = left.saturating_sub(u64::try_from(count.max(1)).unwrap_or(u64::MAX));
            }
            position = extent.offset.saturating_add(extent.length);
        }
        sink.finish().map_err(store)
    }
}

fn metadata(entry: &Entry) -> Metadata {
    Metadata {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        xattrs: xattrs(&entry.xattrs),
    }
}

/// The attributes that a layer may bring. Left out are those that would steer overlayfs, those that belong to the
/// machine the layer was made on (as umoci does), and those that no Linux file system here could store.
fn xattrs(all: &Xattrs) -> Xattrs {
    let foreign = |name: &[u8]| {
        name.starts_with(b"trusted.overlay.")
            || name.starts_with(b"user.overlay.")
            || name == b"security.selinux"
            || !check_xattr_name(name)
    };
    all.iter()
        .filter(|(name, _)| !foreign(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}
