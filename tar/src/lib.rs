//! Reading tar streams: ustar, GNU, star and PAX.
//!
//! Own code rather than a crate because a layer needs all of it in one forward pass: PAX attributes and nanoseconds,
//! long names, base-256 numbers and every kind of sparse file, each with a cap, and an error that says at which byte
//! of which entry. The reader hands out names as the archive has them; what a name may be is the caller's business.
//! Everything in a stream may be a lie.

#![forbid(unsafe_code)]

mod header;
mod pax;
mod sparse;

use std::collections::BTreeMap;
use std::io::{self, Read};

pub use header::{HeaderError, number};
pub use pax::PaxError;
pub use sparse::{Extent, SparseError};

use header::Header;
use pax::Records;

/// Tar's unit of everything, in bytes.
pub const BLOCK: usize = 512;

/// Bytes of one extended header (PAX records, GNU long name, sparse map).
const EXTENSION_BYTES: u64 = 1 << 20;

/// Data extents of a sparse file; more is not a file but an attack on memory.
const SPARSE_EXTENTS: usize = 1 << 17;

/// A point in time, relative to 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file with content.
    File,
    /// Another name of an earlier entry.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A FIFO.
    Fifo,
}

/// One entry; of a file the data are still to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name, as the archive has it.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, no type bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When its content was changed last.
    pub mtime: Timestamp,
    /// Target of a hard or symbolic link.
    pub link: Vec<u8>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes by full name (`user.name`).
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Bytes of a file, with its holes; 0 for anything else.
    pub size: u64,
    /// Bytes of data that follow in the stream.
    pub stored: u64,
    /// Of a sparse file: where those bytes belong. Ordered, disjoint, within `size`, `stored` bytes in all.
    pub extents: Option<Vec<Extent>>,
}

/// Why a tar stream cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream failed.
    #[error("cannot read the tar stream at byte {offset}")]
    Read {
        /// Where.
        offset: u64,
        /// The cause.
        source: io::Error,
    },
    /// It ends too early.
    #[error("the tar stream ends at byte {offset}, in the middle of {what}")]
    Truncated {
        /// Where.
        offset: u64,
        /// What is not whole.
        what: &'static str,
    },
    /// A header makes no sense.
    #[error("the tar header at byte {offset} is bad")]
    Header {
        /// Where.
        offset: u64,
        /// What is wrong with it.
        source: HeaderError,
    },
    /// PAX records make no sense.
    #[error("the tar header at byte {offset} has bad PAX records")]
    Pax {
        /// Where.
        offset: u64,
        /// What is wrong with them.
        source: PaxError,
    },
    /// The map of a sparse file makes no sense.
    #[error("the sparse file {path:?} in the tar stream has a bad map")]
    Sparse {
        /// The file.
        path: String,
        /// What is wrong with the map.
        source: SparseError,
    },
    /// A sparse file of a version that is not known.
    #[error("the sparse file {path:?} in the tar stream is of an unknown version")]
    SparseVersion {
        /// The file.
        path: String,
    },
    /// An extended header is longer than any that is of use.
    #[error(
        "the extended tar header at byte {offset} has {size} bytes, more than {}",
        EXTENSION_BYTES
    )]
    ExtensionSize {
        /// Where.
        offset: u64,
        /// Its length in bytes.
        size: u64,
    },
}

/// Input that may know how to pass over bytes without reading them.
pub trait Input: Read + Sized {
    /// Passes over exactly `count` bytes.
    ///
    /// # Errors
    /// Those of reading; reaching the end before is one of kind `UnexpectedEof`.
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.by_ref().take(count), &mut io::sink())?;
        if skipped == count {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

/// A stream that can only be read.
pub struct Forward<R>(
    /// The stream.
    pub R,
);

impl<R: Read> Read for Forward<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Input for Forward<R> {}

/// The entries of a tar stream, in order.
pub struct Reader<R> {
    input: R,
    /// Bytes consumed so far.
    offset: u64,
    /// Bytes of the current entry's data not yet consumed, and the padding behind them.
    unread: u64,
    padding: u64,
}

/// What extension entries said about the entry that follows them.
#[derive(Default)]
struct Extensions {
    records: Records,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Input> Reader<R> {
    /// Reads `input` from its beginning.
    pub fn new(input: R) -> Self {
        Self {
            input,
            offset: 0,
            unread: 0,
            padding: 0,
        }
    }

    /// Bytes consumed so far: after [`Reader::next_entry`] the position of the entry's data.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next entry, passing over what is left of this one's data; nothing at the end of the archive.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let offset = self.offset;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = header.size().map_err(|source| Error::Header { offset, source })?;
            match header.type_flag() {
                b'x' => {
                    let bytes = self.extension(offset, size)?;
                    extensions.records =
                        Records::parse(&bytes).map_err(|source| Error::Pax { offset, source })?;
                }
                b'L' => extensions.long_path = Some(without_nul(self.extension(offset, size)?)),
                b'K' => extensions.long_link = Some(without_nul(self.extension(offset, size)?)),
                // Global records hold a comment in practice (git archive). Docker ignores them all, and so must
                // whoever wants to see the same tree.
                b'g' => {
                    self.extension(offset, size)?;
                }
                _ => return self.entry(offset, &header, extensions).map(Some),
            }
        }
    }

    /// Reads data of the current entry as stored; 0 at their end.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Truncated`].
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let wanted = usize::try_from(self.unread)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let offset = self.offset;
        let count = loop {
            match self.input.read(&mut buffer[..wanted]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(|source| Error::Read { offset, source })?,
            }
        };
        if count == 0 {
            return Err(Error::Truncated {
                offset,
                what: "an entry's data",
            });
        }
        let consumed = u64::try_from(count).unwrap_or(u64::MAX);
        self.offset = self.offset.saturating_add(consumed);
        self.unread = self.unread.saturating_sub(consumed);
        Ok(count)
    }

    fn skip_rest(&mut self) -> Result<(), Error> {
        let offset = self.offset;
        let count = self.unread.saturating_add(self.padding);
        self.input.skip(count).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => Error::Truncated {
                offset,
                what: "an entry's data",
            },
            _ => Error::Read { offset, source },
        })?;
        self.offset = self.offset.saturating_add(count);
        (self.unread, self.padding) = (0, 0);
        Ok(())
    }

    /// One block; nothing if the stream is at its end.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => {
                    return Err(Error::Truncated {
                        offset: self.offset,
                        what: "a block",
                    });
                }
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(Error::Read {
                        offset: self.offset,
                        source,
                    });
                }
            }
        }
        self.offset = self.offset.saturating_add(512);
        Ok(Some(block))
    }

    /// The next header; nothing at the end mark (two blocks of zeros) or where the stream simply ends, which is how
    /// some writers leave it.
    fn header(&mut self) -> Result<Option<Header>, Error> {
        let offset = self.offset;
        let Some(mut block) = self.block()? else {
            return Ok(None);
        };
        if block == [0; BLOCK] {
            match self.block()? {
                None => return Ok(None),
                Some(next) if next == [0; BLOCK] => return Ok(None),
                Some(next) => block = next,
            }
        }
        Header::parse(block)
            .map(Some)
            .map_err(|source| Error::Header { offset, source })
    }

    /// The data of an extension entry.
    fn extension(&mut self, offset: u64, size: u64) -> Result<Vec<u8>, Error> {
        let length = usize::try_from(size).ok().filter(|_| size <= EXTENSION_BYTES);
        let length = length.ok_or(Error::ExtensionSize { offset, size })?;
        self.begin_data(size);
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            filled += self.read(&mut bytes[filled..])?;
        }
        Ok(bytes)
    }

    fn begin_data(&mut self, size: u64) {
        self.unread = size;
        self.padding = (512 - size % 512) % 512;
    }

    fn entry(&mut self, offset: u64, header: &Header, extensions: Extensions) -> Result<Entry, Error> {
        let bad = |source| Error::Header { offset, source };
        let Extensions {
            mut records,
            long_path,
            long_link,
        } = extensions;
        let sparse_name = records.sparse.name.take();
        let path = sparse_name
            .or(records.path.take())
            .or(long_path)
            .unwrap_or_else(|| header.path());
        let kind = header.kind(&path).map_err(bad)?;
        let (major, minor) = match kind {
            Kind::CharacterDevice | Kind::BlockDevice => header.device().map_err(bad)?,
            _ => (0, 0),
        };
        let mut entry = Entry {
            link: records.link.take().or(long_link).unwrap_or_else(|| header.link()),
            mode: header.mode().map_err(bad)?,
            uid: records.uid.map_or_else(|| header.uid(), Ok).map_err(bad)?,
            gid: records.gid.map_or_else(|| header.gid(), Ok).map_err(bad)?,
            mtime: records.mtime.map_or_else(|| header.mtime(), Ok).map_err(bad)?,
            device: (
                records.device_major.unwrap_or(major),
                records.device_minor.unwrap_or(minor),
            ),
            xattrs: std::mem::take(&mut records.xattrs),
            size: 0,
            stored: 0,
            extents: None,
            path,
            kind,
        };
        // Only files have data: a size on anything else is ignored, as by every other reader.
        if kind == Kind::File {
            entry.stored = records.size.map_or_else(|| header.size(), Ok).map_err(bad)?;
            entry.size = entry.stored;
            self.begin_data(entry.stored);
            self.sparse(header, records.sparse, &mut entry)
                .map_err(|source| source.located(offset, &entry))?;
        }
        Ok(entry)
    }

    /// Recognises a sparse file and reads its map, wherever it stands.
    fn sparse(
        &mut self,
        header: &Header,
        records: pax::SparseRecords,
        entry: &mut Entry,
    ) -> Result<(), MapError> {
        let (size, extents) = if header.type_flag() == b'S' {
            (
                header.real_size().map_err(MapError::Header)?,
                self.gnu_map(header)?,
            )
        } else {
            match (records.major, records.minor, records.real_size) {
                (Some(1), Some(0), Some(size)) => (size, self.pax_map(entry)?),
                (None | Some(0), _, Some(size)) if records.map.is_some() => {
                    (size, sparse::pairs(&records.map.unwrap_or_default())?)
                }
                (None | Some(0), _, None) if records.map.is_none() => return Ok(()),
                _ => return Err(MapError::Version),
            }
        };
        entry.size = size;
        entry.extents = Some(sparse::checked(extents, size, entry.stored)?);
        Ok(())
    }

    /// GNU's extension blocks stand between header and data and are not part of the entry's size.
    fn gnu_map(&mut self, header: &Header) -> Result<Vec<Extent>, MapError> {
        let mut extents = Vec::new();
        let (fields, mut more) = header.sparse_extents();
        sparse::gnu_extents(fields, &mut extents)?;
        while more {
            let truncated = Error::Truncated {
                offset: self.offset,
                what: "a sparse map",
            };
            let block = self.block()?.ok_or(truncated)?;
            more = sparse::gnu_extension(&block, &mut extents)?;
            // A chain of empty blocks would otherwise be followed without end.
            if more && extents.is_empty() {
                return Err(SparseError::Number.into());
            }
        }
        Ok(extents)
    }

    /// PAX 1.0: the map is the beginning of the data.
    fn pax_map(&mut self, entry: &mut Entry) -> Result<Vec<Extent>, MapError> {
        let mut lines = sparse::Lines::default();
        loop {
            let offset = self.offset;
            let truncated = Error::Truncated {
                offset,
                what: "a sparse map",
            };
            entry.stored = entry.stored.checked_sub(512).ok_or(truncated)?;
            let truncated = Error::Truncated {
                offset,
                what: "a sparse map",
            };
            let block = self.block()?.ok_or(truncated)?;
            self.unread = entry.stored;
            if let Some(extents) = lines.feed(&block)? {
                return Ok(extents);
            }
        }
    }
}

/// Errors on the way to a sparse map, before the entry's name is put to them.
enum MapError {
    Tar(Error),
    Header(HeaderError),
    Map(SparseError),
    Version,
}

impl MapError {
    fn located(self, offset: u64, entry: &Entry) -> Error {
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        match self {
            Self::Tar(error) => error,
            Self::Header(source) => Error::Header { offset, source },
            Self::Map(source) => Error::Sparse { path, source },
            Self::Version => Error::SparseVersion { path },
        }
    }
}

impl From<Error> for MapError {
    fn from(error: Error) -> Self {
        Self::Tar(error)
    }
}

impl From<SparseError> for MapError {
    fn from(error: SparseError) -> Self {
        Self::Map(error)
    }
}

/// GNU writes long names with a terminating NUL.
fn without_nul(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|byte| *byte == 0) {
        name.truncate(end);
    }
    name
}

#[cfg(test)]
mod tests;
