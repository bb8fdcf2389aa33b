//! Reading images that [`super::Writer`] made: looking up what a lower layer has, and checking what was written.
//!
//! The files lie in the store, where only root writes; nevertheless every number in them is checked, because a damaged
//! file must give an error and not a panic, a loop or a huge allocation.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::directory::{self, DirectoryEntry};
use super::format::{
    self, BLOCK, BLOCK_BYTES, FileType, INODE_BYTES, Metadata, RawInode, SUPERBLOCK_OFFSET, Superblock,
};
use super::writer::Nid;
use crate::limits;

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read the EROFS image")]
    Read(#[source] io::Error),
    #[error("the EROFS image is damaged: {0}")]
    Damaged(&'static str),
}

/// An image opened for reading.
#[derive(Debug)]
pub(crate) struct Reader {
    file: File,
    superblock: Superblock,
}

/// A file of the image.
#[derive(Debug, Clone)]
pub(crate) struct Inode {
    pub(crate) nid: Nid,
    pub(crate) kind: FileType,
    raw: RawInode,
    /// Position behind inode and attributes.
    tail_offset: u64,
}

impl Inode {
    /// Bytes of content.
    pub(crate) fn size(&self) -> u64 {
        self.raw.size
    }

    pub(crate) fn links(&self) -> u32 {
        self.raw.links
    }

    /// Major and minor number of a device.
    pub(crate) fn device_numbers(&self) -> (u32, u32) {
        format::device_numbers(self.raw.start_or_device)
    }

    /// Whether this is how overlayfs marks a name as removed: a character device 0:0.
    pub(crate) fn is_whiteout(&self) -> bool {
        self.kind == FileType::CharacterDevice && self.device_numbers() == (0, 0)
    }
}

impl Reader {
    /// Opens an image and checks its superblock and its length.
    pub(crate) fn new(file: File) -> Result<Self, Error> {
        let bytes = file.metadata().map_err(Error::Read)?.len();
        let mut block = [0; BLOCK];
        file.read_exact_at(&mut block, 0).map_err(Error::Read)?;
        let superblock = Superblock::decode(&block).ok_or(Error::Damaged("bad superblock"))?;
        if u64::from(superblock.blocks).checked_mul(BLOCK_BYTES) != Some(bytes) {
            return Err(Error::Damaged("wrong length"));
        }
        Ok(Self { file, superblock })
    }

    pub(crate) fn root(&self) -> Result<Inode, Error> {
        self.inode(Nid::new(u64::from(self.superblock.root)))
    }

    /// Where the image has the root directory's time, and the checksum of the block that this is in.
    pub(crate) fn root_time(&self) -> Option<[Range<u64>; 2]> {
        let inode = Nid::new(u64::from(self.superblock.root)).offset()?;
        let checksum = u64::try_from(SUPERBLOCK_OFFSET).ok()? + 4;
        Some([
            inode.checked_add(32)?..inode.checked_add(44)?,
            checksum..checksum + 4,
        ])
    }

    pub(crate) fn inode(&self, nid: Nid) -> Result<Inode, Error> {
        let offset = nid.offset().ok_or(Error::Damaged("inode number out of range"))?;
        let mut bytes = [0; INODE_BYTES];
        self.read_exact(&mut bytes, offset)?;
        let raw = RawInode::decode(&bytes).ok_or(Error::Damaged("bad inode"))?;
        let kind = FileType::from_mode(raw.mode).ok_or(Error::Damaged("bad file type"))?;
        let attributes = u64::try_from(INODE_BYTES + raw.xattr_bytes).unwrap_or(u64::MAX);
        Ok(Inode {
            nid,
            kind,
            raw,
            tail_offset: offset.saturating_add(attributes),
        })
    }

    /// Owner, mode, time and attributes.
    pub(crate) fn metadata(&self, inode: &Inode) -> Result<Metadata, Error> {
        let mut bytes = vec![0; inode.raw.xattr_bytes];
        let start = inode
            .tail_offset
            .saturating_sub(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.read_exact(&mut bytes, start)?;
        let xattrs = if bytes.is_empty() {
            Some(format::Xattrs::new())
        } else {
            format::decode_xattrs(&bytes)
        };
        Ok(Metadata {
            mode: inode.raw.mode & 0o7777,
            uid: inode.raw.uid,
            gid: inode.raw.gid,
            mtime: inode.raw.mtime,
            xattrs: xattrs.ok_or(Error::Damaged("bad extended attributes"))?,
        })
    }

    /// Reads content at a position; the number of bytes read is less than asked for only at the end.
    pub(crate) fn read(&self, inode: &Inode, offset: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        let left = inode.raw.size.saturating_sub(offset);
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..wanted];
        let tail_start = if inode.raw.inline_tail {
            inode.raw.size - inode.raw.size % BLOCK_BYTES
        } else {
            inode.raw.size
        };
        let in_blocks = usize::try_from(tail_start.saturating_sub(offset))
            .unwrap_or(usize::MAX)
            .min(wanted);
        let (blocks, tail) = buffer.split_at_mut(in_blocks);
        let start = u64::from(inode.raw.start_or_device) * BLOCK_BYTES;
        if !blocks.is_empty() {
            self.read_exact(
                blocks,
                start
                    .checked_add(offset)
                    .ok_or(Error::Damaged("size out of range"))?,
            )?;
        }
        if !tail.is_empty() {
            self.read_exact(
                tail,
                inode
                    .tail_offset
                    .saturating_add(offset.saturating_sub(tail_start)),
            )?;
        }
        Ok(wanted)
    }

    pub(crate) fn symlink(&self, inode: &Inode) -> Result<Vec<u8>, Error> {
        let length = usize::try_from(inode.size())
            .ok()
            .filter(|length| *length <= limits::SYMLINK_BYTES);
        let mut target = vec![0; length.ok_or(Error::Damaged("symbolic link too long"))?];
        self.read(inode, 0, &mut target)?;
        Ok(target)
    }

    /// Finds a name by bisecting the directory's blocks, then the block's entries.
    pub(crate) fn lookup(&self, directory: &Inode, name: &[u8]) -> Result<Option<DirectoryEntry>, Error> {
        let (mut low, mut high) = (0, directory.size().div_ceil(BLOCK_BYTES));
        while low < high {
            let middle = low + (high - low) / 2;
            let entries = self.block(directory, middle)?;
            match (entries.first(), entries.last()) {
                (Some(first), _) if name < first.name.as_slice() => high = middle,
                (_, Some(last)) if name > last.name.as_slice() => low = middle + 1,
                _ => return Ok(entries.into_iter().find(|entry| entry.name == name)),
            }
        }
        Ok(None)
    }

    /// Calls `visit` for every name, `.` and `..` left out, a block at a time so that memory stays small.
    pub(crate) fn entries(
        &self,
        directory: &Inode,
    ) -> impl Iterator<Item = Result<DirectoryEntry, Error>> + '_ {
        let directory = directory.clone();
        let blocks = 0..directory.size().div_ceil(BLOCK_BYTES);
        blocks.flat_map(move |block| {
            let (entries, error) = match self.block(&directory, block) {
                Ok(entries) => (entries, None),
                Err(error) => (Vec::new(), Some(Err(error))),
            };
            let named = entries
                .into_iter()
                .filter(|entry| entry.name != b"." && entry.name != b"..");
            named.map(Ok).chain(error)
        })
    }

    fn block(&self, directory: &Inode, number: u64) -> Result<Vec<DirectoryEntry>, Error> {
        if directory.kind != FileType::Directory {
            return Err(Error::Damaged("not a directory"));
        }
        let mut block = [0; BLOCK];
        let length = self.read(directory, number * BLOCK_BYTES, &mut block)?;
        directory::decode(&block[..length]).ok_or(Error::Damaged("bad directory"))
    }

    fn read_exact(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => Error::Damaged("a block beyond its end"),
                _ => Error::Read(error),
            })
    }
}
