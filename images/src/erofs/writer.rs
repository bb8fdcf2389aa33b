//! Writing an image in one pass: file data go out as they arrive.
//!
//! The image grows at its end only. Data of files are block-aligned runs there; inodes of 64 bytes, with attributes
//! and the file's last partial block behind them, are packed into metadata blocks that are reserved in between and
//! written when full, so that nothing but a few open blocks stays in memory. Directories come last, when all names
//! are known. An inode's number is its position, and EROFS lets inodes lie anywhere, which makes this possible.
//!
//! Blocks of zeros are not written: the image file is sparse where its files are.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::directory::{self, DirectoryChild};
use super::format::{
    self, BLOCK, BLOCK_BYTES, FileType, INODE_BYTES, INODE_LINKS_OFFSET, Metadata, RawInode, SLOT,
    SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET, Superblock, XattrError,
};

/// Bytes gathered before they are written: large enough that system calls cost nothing.
const BUFFER_BYTES: usize = 256 << 10;

/// Metadata blocks open at once. With several to choose from, a tail that does not fit one fits another: in a Debian
/// image 8 leave 4 % of the metadata unused, where 1 leaves 17 %.
const OPEN_BLOCKS: usize = 8;

/// Position of the root directory's inode: its number has 16 bits only, so it is put right behind the superblock.
const ROOT_OFFSET: usize = SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES;

/// Why an image cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot write the EROFS image")]
    Write(#[source] io::Error),
    #[error("the layer is too large for an EROFS image")]
    TooLarge,
    #[error(transparent)]
    Xattr(#[from] XattrError),
    #[error("the root directory has too many extended attributes")]
    RootXattrs,
    #[error("there is no device number {0}:{1}")]
    Device(u32, u32),
}

/// An inode's number, its position in units of 32 bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Nid(u64);

impl Nid {
    pub(super) const fn new(number: u64) -> Self {
        Self(number)
    }

    pub(super) const fn number(self) -> u64 {
        self.0
    }

    pub(super) fn offset(self) -> Option<u64> {
        self.0.checked_mul(SLOT)
    }
}

/// An image being written.
pub(crate) struct Writer {
    file: File,
    /// What was appended but not yet written, and its position; the latter is a multiple of the block size.
    buffer: Vec<u8>,
    buffer_offset: u64,
    open: Vec<OpenBlock>,
    inodes: u32,
    /// The first block; the superblock is put into it last.
    head: Box<[u8; BLOCK]>,
}

/// A metadata block that still has room.
struct OpenBlock {
    offset: u64,
    bytes: Vec<u8>,
}

/// A directory whose place is fixed but whose content is not yet written.
#[derive(Debug)]
pub(crate) struct ReservedDirectory {
    offset: u64,
    xattrs: Vec<u8>,
    tail: usize,
    inline: bool,
    size: u64,
    serial: u32,
}

impl ReservedDirectory {
    pub(crate) fn nid(&self) -> Nid {
        Nid(self.offset / SLOT)
    }
}

impl Writer {
    /// Begins an image in an empty file.
    pub(crate) fn new(file: File) -> Self {
        Self {
            file,
            buffer: Vec::with_capacity(BUFFER_BYTES + BLOCK),
            buffer_offset: BLOCK_BYTES,
            open: Vec::with_capacity(OPEN_BLOCKS + 1),
            inodes: 0,
            head: Box::new([0; BLOCK]),
        }
    }

    /// Bytes of the image so far.
    pub(crate) fn position(&self) -> u64 {
        self.buffer_offset.saturating_add(length(&self.buffer))
    }

    /// Begins a regular file of `size` bytes, which are to be given to the sink.
    pub(crate) fn file<'a>(&'a mut self, metadata: &'a Metadata, size: u64) -> Result<FileSink<'a>, Error> {
        self.data(metadata, FileType::File, size)
    }

    /// Adds a symbolic link.
    pub(crate) fn symlink(&mut self, metadata: &Metadata, target: &[u8]) -> Result<Nid, Error> {
        let mut sink = self.data(metadata, FileType::Symlink, length(target))?;
        sink.write(target)?;
        sink.finish()
    }

    /// Adds a device or a fifo (whose device number is ignored).
    pub(crate) fn special(
        &mut self,
        metadata: &Metadata,
        kind: FileType,
        (major, minor): (u32, u32),
    ) -> Result<Nid, Error> {
        let device = format::device_number(major, minor).ok_or(Error::Device(major, minor))?;
        let xattrs = format::encode_xattrs(&metadata.xattrs)?;
        let inode = RawInode {
            start_or_device: device,
            ..raw_inode(metadata, kind, xattrs.len())
        };
        self.inode(inode, &xattrs, &[])
    }

    /// Fixes the place of a directory from the lengths of its names, so that others can refer to it.
    pub(crate) fn reserve_directory(
        &mut self,
        metadata: &Metadata,
        names: impl Iterator<Item = usize>,
        is_root: bool,
    ) -> Result<ReservedDirectory, Error> {
        let xattrs = format::encode_xattrs(&metadata.xattrs)?;
        let (blocks, tail) = directory::shape(names);
        let room = if is_root { BLOCK - ROOT_OFFSET } else { BLOCK };
        let inline = INODE_BYTES + xattrs.len() + tail <= room;
        let bytes = INODE_BYTES + xattrs.len() + if inline { tail } else { 0 };
        let offset = if !is_root {
            self.reserve(bytes)?
        } else if bytes <= room {
            length(&self.head[..ROOT_OFFSET])
        } else {
            return Err(Error::RootXattrs);
        };
        let tail_bytes = u64::try_from(tail).unwrap_or(u64::MAX);
        let size = blocks
            .checked_mul(BLOCK_BYTES)
            .ok_or(Error::TooLarge)?
            .saturating_add(tail_bytes);
        Ok(ReservedDirectory {
            offset,
            xattrs,
            tail,
            inline,
            size,
            serial: self.next_serial()?,
        })
    }

    /// Writes a reserved directory. `children` are the names it was reserved for, sorted by bytes, with `.` and `..`.
    pub(crate) fn directory(
        &mut self,
        reserved: &ReservedDirectory,
        metadata: &Metadata,
        children: &[DirectoryChild<'_>],
    ) -> Result<(), Error> {
        let mut content = directory::encode(children);
        debug_assert_eq!(length(&content), reserved.size);
        let tail = if reserved.inline {
            content.split_off(content.len() - reserved.tail)
        } else {
            Vec::new()
        };
        let start = self.begin_run()?;
        self.append(&content)?;
        self.align()?;
        let subdirectories = children
            .iter()
            .filter(|child| child.kind == FileType::Directory)
            .count();
        let inode = RawInode {
            size: reserved.size,
            links: u32::try_from(subdirectories).map_err(|_| Error::TooLarge)?,
            serial: reserved.serial,
            inline_tail: reserved.inline,
            start_or_device: start,
            ..raw_inode(metadata, FileType::Directory, reserved.xattrs.len())
        };
        let bytes = [&inode.encode()[..], &reserved.xattrs, &tail].concat();
        match usize::try_from(reserved.offset) {
            Ok(ROOT_OFFSET) => format::put(&mut self.head[..], ROOT_OFFSET, &bytes),
            _ => self.patch(reserved.offset, &bytes)?,
        }
        Ok(())
    }

    /// Sets the number of names of an inode that has several.
    pub(crate) fn set_links(&mut self, nid: Nid, links: u32) -> Result<(), Error> {
        let offset = nid.offset().ok_or(Error::TooLarge)?;
        self.patch(offset.saturating_add(INODE_LINKS_OFFSET), &links.to_le_bytes())
    }

    /// Completes the image and hands its file back; the data may not be on the disk yet.
    pub(crate) fn finish(mut self) -> Result<File, Error> {
        self.flush_open(0)?;
        self.align()?;
        self.flush()?;
        let bytes = self.position();
        let blocks = u32::try_from(bytes / BLOCK_BYTES).map_err(|_| Error::TooLarge)?;
        let root = u16::try_from(ROOT_OFFSET / 32).unwrap_or(u16::MAX);
        Superblock {
            root,
            inodes: u64::from(self.inodes),
            blocks,
        }
        .encode(&mut self.head);
        self.file.write_all_at(&self.head[..], 0).map_err(Error::Write)?;
        self.file.set_len(bytes).map_err(Error::Write)?;
        Ok(self.file)
    }

    fn data<'a>(
        &'a mut self,
        metadata: &'a Metadata,
        kind: FileType,
        size: u64,
    ) -> Result<FileSink<'a>, Error> {
        let xattrs = format::encode_xattrs(&metadata.xattrs)?;
        let tail = size % BLOCK_BYTES;
        let inline =
            length(&xattrs).saturating_add(tail) <= BLOCK_BYTES - length(&[0; INODE_BYTES]) && tail > 0;
        let start = self.begin_run()?;
        let inode = RawInode {
            size,
            start_or_device: start,
            inline_tail: inline,
            ..raw_inode(metadata, kind, xattrs.len())
        };
        let in_blocks = if inline { size - tail } else { size };
        Ok(FileSink {
            writer: self,
            inode,
            xattrs,
            in_blocks,
            missing: size,
            tail: Vec::new(),
        })
    }

    fn next_serial(&mut self) -> Result<u32, Error> {
        self.inodes = self.inodes.checked_add(1).ok_or(Error::TooLarge)?;
        Ok(self.inodes)
    }

    fn inode(&mut self, inode: RawInode, xattrs: &[u8], tail: &[u8]) -> Result<Nid, Error> {
        let serial = self.next_serial()?;
        let bytes = [&RawInode { serial, ..inode }.encode()[..], xattrs, tail].concat();
        let offset = self.place(&bytes)?;
        Ok(Nid(offset / SLOT))
    }

    /// Puts metadata into an open block, or into blocks of their own if they are larger than one.
    fn place(&mut self, bytes: &[u8]) -> Result<u64, Error> {
        if bytes.len() > BLOCK {
            let offset = self.position();
            self.append(bytes)?;
            self.align()?;
            return Ok(offset);
        }
        let fitting = self
            .open
            .iter_mut()
            .filter(|block| block.bytes.len() + bytes.len() <= BLOCK);
        if let Some(block) = fitting.max_by_key(|block| block.bytes.len()) {
            return Ok(block.add(bytes));
        }
        let mut block = OpenBlock {
            offset: self.position(),
            bytes: Vec::with_capacity(BLOCK),
        };
        self.append(&[0; BLOCK])?;
        let offset = block.add(bytes);
        self.open.push(block);
        self.flush_open(OPEN_BLOCKS)?;
        Ok(offset)
    }

    fn reserve(&mut self, bytes: usize) -> Result<u64, Error> {
        self.place(&vec![0; bytes])
    }

    /// Writes the fullest open blocks until `keep` are left.
    fn flush_open(&mut self, keep: usize) -> Result<(), Error> {
        while self.open.len() > keep {
            let fullest = self
                .open
                .iter()
                .enumerate()
                .max_by_key(|(_, block)| block.bytes.len());
            let Some((index, _)) = fullest else { break };
            let block = self.open.swap_remove(index);
            self.patch(block.offset, &block.bytes)?;
        }
        Ok(())
    }

    /// Overwrites bytes that were appended or reserved before.
    fn patch(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let holder = self.open.iter_mut().find(|block| {
            offset >= block.offset && offset.saturating_add(length(bytes)) <= block.offset + BLOCK_BYTES
        });
        let (target, start) = match holder {
            Some(block) => (&mut block.bytes, block.offset),
            None => (&mut self.buffer, self.buffer_offset),
        };
        let within = offset
            .checked_sub(start)
            .and_then(|start| usize::try_from(start).ok());
        let slice = within.and_then(|start| target.get_mut(start..start.checked_add(bytes.len())?));
        match slice {
            Some(slice) => slice.copy_from_slice(bytes),
            // Both ends lie in what was written: metadata never straddles a flush, which ends at a block's end, unless
            // it has more than a block, and that is never patched as a whole before it is flushed.
            None => {
                self.flush()?;
                self.file.write_all_at(bytes, offset).map_err(Error::Write)?;
            }
        }
        Ok(())
    }

    /// The block number at which a run of data begins.
    fn begin_run(&mut self) -> Result<u32, Error> {
        u32::try_from(self.position() / BLOCK_BYTES).map_err(|_| Error::TooLarge)
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let room = BUFFER_BYTES - self.buffer.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == BUFFER_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn append_zeros(&mut self, count: u64) -> Result<(), Error> {
        let to_boundary = (BLOCK - self.buffer.len() % BLOCK) % BLOCK;
        let head = usize::try_from(count).unwrap_or(usize::MAX).min(to_boundary);
        self.append(&[0; BLOCK][..head])?;
        let rest = count.saturating_sub(length(&[0; BLOCK][..head]));
        if rest >= BLOCK_BYTES {
            self.flush()?;
            let whole = rest - rest % BLOCK_BYTES;
            self.buffer_offset = self.buffer_offset.checked_add(whole).ok_or(Error::TooLarge)?;
        }
        let tail = usize::try_from(rest % BLOCK_BYTES).unwrap_or(0);
        self.append(&[0; BLOCK][..tail])
    }

    /// Fills the last block with zeros.
    fn align(&mut self) -> Result<(), Error> {
        let count = (BLOCK - self.buffer.len() % BLOCK) % BLOCK;
        self.append(&[0; BLOCK][..count])
    }

    /// Writes the buffer's whole blocks, except those of zeros.
    fn flush(&mut self) -> Result<(), Error> {
        let (blocks, rest) = self.buffer.as_chunks::<BLOCK>();
        let is_zero = |block: &[u8; BLOCK]| *block == [0; BLOCK];
        let mut offset = self.buffer_offset;
        for run in blocks.chunk_by(|one, other| is_zero(one) == is_zero(other)) {
            let bytes = run.as_flattened();
            if !run.first().is_none_or(is_zero) {
                self.file.write_all_at(bytes, offset).map_err(Error::Write)?;
            }
            offset = offset.saturating_add(length(bytes));
        }
        let rest = rest.len();
        self.buffer_offset = offset;
        let written = self.buffer.len() - rest;
        self.buffer.drain(..written);
        Ok(())
    }
}

impl OpenBlock {
    /// The position of the bytes in the image. What follows begins at a slot.
    fn add(&mut self, bytes: &[u8]) -> u64 {
        let offset = self.offset.saturating_add(length(&self.bytes));
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(32), 0);
        offset
    }
}

/// Takes the content of a file or symbolic link; exactly as many bytes as were announced.
pub(crate) struct FileSink<'a> {
    writer: &'a mut Writer,
    inode: RawInode,
    xattrs: Vec<u8>,
    /// Bytes that still go to data blocks; the rest is the inline tail.
    in_blocks: u64,
    missing: u64,
    tail: Vec<u8>,
}

impl FileSink<'_> {
    /// Appends bytes; more than announced are an error of the caller and dropped.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let wanted = usize::try_from(self.missing)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        debug_assert_eq!(wanted, bytes.len());
        let bytes = &bytes[..wanted];
        self.missing = self.missing.saturating_sub(length(bytes));
        let count = usize::try_from(self.in_blocks)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let (blocks, tail) = bytes.split_at(count);
        self.in_blocks = self.in_blocks.saturating_sub(length(blocks));
        self.tail.extend_from_slice(tail);
        self.writer.append(blocks)
    }

    /// Appends a hole.
    pub(crate) fn zeros(&mut self, count: u64) -> Result<(), Error> {
        let count = count.min(self.missing);
        self.missing -= count;
        let in_blocks = count.min(self.in_blocks);
        self.in_blocks -= in_blocks;
        let tail = usize::try_from(count - in_blocks).map_err(|_| Error::TooLarge)?;
        self.tail.resize(self.tail.len() + tail, 0);
        self.writer.append_zeros(in_blocks)
    }

    /// Completes the file; bytes that were announced and not given are zeros.
    pub(crate) fn finish(mut self) -> Result<Nid, Error> {
        self.zeros(self.missing)?;
        self.writer.align()?;
        self.writer.inode(self.inode, &self.xattrs, &self.tail)
    }
}

fn raw_inode(metadata: &Metadata, kind: FileType, xattr_bytes: usize) -> RawInode {
    RawInode {
        mode: metadata.mode | kind.mode(),
        uid: metadata.uid,
        gid: metadata.gid,
        mtime: metadata.mtime,
        size: 0,
        links: 1,
        serial: 0,
        inline_tail: false,
        start_or_device: 0,
        xattr_bytes,
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
