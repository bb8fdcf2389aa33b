//! Reading tar streams: ustar, GNU, star and PAX.
//!
//! Own code rather than a crate because a layer needs all of it in one forward pass: PAX attributes and nanoseconds,
//! long names, base-256 numbers and every kind of sparse file, each with a cap, and an error that says at which byte
//! of which entry. The reader hands out names as the archive has them; what a name may be is the caller's business.

mod header;
mod pax;
mod sparse;

use std::collections::BTreeMap;
use std::io::{self, Read};

pub(crate) use header::HeaderError;
pub(crate) use pax::PaxError;
pub(crate) use sparse::{Extent, SparseError};

use crate::limits;
use header::Header;
use pax::Records;

/// Tar's unit of everything.
pub(crate) const BLOCK: usize = 512;

/// A point in time, relative to 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Timestamp {
    /// Whole seconds, rounded down.
    pub(crate) seconds: i64,
    /// 0 to 999,999,999.
    pub(crate) nanoseconds: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry; of a file the data are still to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits, no type bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    /// Target of a hard or symbolic link.
    pub(crate) link: Vec<u8>,
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Bytes of a file, with its holes; 0 for anything else.
    pub(crate) size: u64,
    /// Bytes of data that follow in the stream.
    pub(crate) stored: u64,
    /// Of a sparse file: where those bytes belong. Ordered, disjoint, within `size`, `stored` bytes in all.
    pub(crate) extents: Option<Vec<Extent>>,
}

/// Why a tar stream cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read the tar stream at byte {offset}")]
    Read { offset: u64, source: io::Error },
    #[error("the tar stream ends at byte {offset}, in the middle of {what}")]
    Truncated { offset: u64, what: &'static str },
    #[error("the tar header at byte {offset} is bad")]
    Header { offset: u64, source: HeaderError },
    #[error("the tar header at byte {offset} has bad PAX records")]
    Pax { offset: u64, source: PaxError },
    #[error("the sparse file {path:?} in the tar stream has a bad map")]
    Sparse { path: String, source: SparseError },
    #[error("the sparse file {path:?} in the tar stream is of an unknown version")]
    SparseVersion { path: String },
    #[error(
        "the extended tar header at byte {offset} has {size} bytes, more than {}",
        limits::TAR_EXTENSION_BYTES
    )]
    ExtensionSize { offset: u64, size: u64 },
}

/// Input that may know how to pass over bytes without reading them.
pub(crate) trait Input: Read + Sized {
    /// Passes over exactly `count` bytes; reaching the end before is an error of kind `UnexpectedEof`.
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
pub(crate) struct Forward<R>(pub(crate) R);

impl<R: Read> Read for Forward<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Input for Forward<R> {}

/// The entries of a tar stream, in order.
pub(crate) struct Reader<R> {
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
    pub(crate) fn new(input: R) -> Self {
        Self {
            input,
            offset: 0,
            unread: 0,
            padding: 0,
        }
    }

    /// Bytes consumed so far: after [`Reader::next`] the position of the entry's data.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next entry, passing over what is left of this one's data; nothing at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Error> {
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
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
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
        let length = usize::try_from(size)
            .ok()
            .filter(|_| size <= limits::TAR_EXTENSION_BYTES);
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
mod tests {
    use super::*;

    type Bytes = Vec<u8>;

    /// A header block with a right checksum, for what the `tar` crate would not write.
    pub(super) fn raw_header(
        name: &[u8],
        type_flag: u8,
        size: &[u8],
        patch: impl Fn(&mut [u8; BLOCK]),
    ) -> Bytes {
        let mut block = [0; BLOCK];
        block[..name.len()].copy_from_slice(name);
        block[100..108].copy_from_slice(b"0000644\0");
        block[108..116].copy_from_slice(b"0000000\0");
        block[116..124].copy_from_slice(b"0000000\0");
        block[124..124 + size.len()].copy_from_slice(size);
        block[136..148].copy_from_slice(b"00000000000\0");
        block[156] = type_flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        patch(&mut block);
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block.to_vec()
    }

    fn entries(bytes: &[u8]) -> Result<Vec<(Entry, Bytes)>, Error> {
        let mut reader = Reader::new(Forward(bytes));
        let mut found = Vec::new();
        while let Some(entry) = reader.next()? {
            let mut data = Vec::new();
            let mut buffer = [0; 100];
            loop {
                let count = reader.read(&mut buffer)?;
                if count == 0 {
                    break;
                }
                data.extend_from_slice(&buffer[..count]);
            }
            found.push((entry, data));
        }
        Ok(found)
    }

    fn padded(mut data: Bytes) -> Bytes {
        data.resize(data.len().next_multiple_of(BLOCK), 0);
        data
    }

    fn pax(records: &[(&str, &[u8])]) -> Bytes {
        let mut body = Vec::new();
        for (key, value) in records {
            let tail = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
            let length = (1..)
                .find(|length: &usize| length.to_string().len() + tail.len() == *length)
                .unwrap();
            body.extend_from_slice(length.to_string().as_bytes());
            body.extend_from_slice(&tail);
        }
        let size = format!("{:011o}\0", body.len());
        [raw_header(b"pax", b'x', size.as_bytes(), |_| {}), padded(body)].concat()
    }

    #[test]
    fn the_tar_crate_and_this_reader_agree() {
        let mut builder = tar::Builder::new(Vec::new());
        let long = "d/".repeat(120) + "file";
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o4755);
        header.set_uid(3_000_000_000);
        header.set_gid(7);
        header.set_mtime(1_700_000_000);
        header.set_size(5);
        builder
            .append_data(&mut header, &long, b"hello".as_slice())
            .unwrap();
        header.set_size(0);
        header.set_entry_type(tar::EntryType::Symlink);
        builder.append_link(&mut header, "link", "x".repeat(150)).unwrap();
        let found = entries(&builder.into_inner().unwrap()).unwrap();
        assert_eq!(found[0].0.path, long.as_bytes());
        assert_eq!(
            (found[0].0.mode, found[0].0.uid, found[0].0.gid),
            (0o4755, 3_000_000_000, 7)
        );
        assert_eq!(found[0].0.mtime.seconds, 1_700_000_000);
        assert_eq!(found[0].1, b"hello");
        assert_eq!((found[1].0.kind, found[1].0.link.len()), (Kind::Symlink, 150));
    }

    #[test]
    fn pax_records_override_the_header() {
        let stream = [
            pax(&[
                ("path", b"new\xff"),
                ("size", b"3"),
                ("mtime", b"-1.5"),
                ("SCHILY.xattr.user.k", b"v"),
                ("uid", b"70000"),
            ]),
            raw_header(b"old", b'0', b"00000000000\0", |_| {}),
            padded(b"abc".to_vec()),
            raw_header(b"next", b'0', b"00000000000\0", |_| {}),
        ]
        .concat();
        let found = entries(&stream).unwrap();
        assert_eq!(
            (found[0].0.path.as_slice(), found[0].1.as_slice()),
            (b"new\xff".as_slice(), b"abc".as_slice())
        );
        assert_eq!(
            found[0].0.mtime,
            Timestamp {
                seconds: -2,
                nanoseconds: 500_000_000
            }
        );
        assert_eq!((found[0].0.uid, found[0].0.xattrs.len()), (70_000, 1));
        assert_eq!(found[1].0.path, b"next");
        assert!(found[1].0.xattrs.is_empty(), "records hold for one entry");
    }

    #[test]
    fn sparse_files_of_every_kind() {
        let expected = vec![
            Extent {
                offset: 1024,
                length: 3,
            },
            Extent {
                offset: 4096,
                length: 2,
            },
        ];
        let gnu = [
            raw_header(b"s", b'S', b"00000000005\0", |block| {
                block[257..265].copy_from_slice(b"ustar  \0");
                block[386..410].copy_from_slice(b"00000002000\x0000000000003\0");
                block[482] = 1;
                block[483..495].copy_from_slice(b"00000020000\0");
            }),
            padded([b"00000010000\x0000000000002\0".to_vec(), vec![0; 488]].concat()),
            padded(b"abcde".to_vec()),
        ]
        .concat();
        let v00 = [
            pax(&[
                ("GNU.sparse.size", b"8192"),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.offset", b"1024"),
                ("GNU.sparse.numbytes", b"3"),
                ("GNU.sparse.offset", b"4096"),
                ("GNU.sparse.numbytes", b"2"),
            ]),
            raw_header(b"s", b'0', b"00000000005\0", |_| {}),
            padded(b"abcde".to_vec()),
        ]
        .concat();
        let v01 = [
            pax(&[
                ("GNU.sparse.size", b"8192"),
                ("GNU.sparse.map", b"1024,3,4096,2"),
                ("GNU.sparse.name", b"s"),
            ]),
            raw_header(b"GNUSparseFile.0/s", b'0', b"00000000005\0", |_| {}),
            padded(b"abcde".to_vec()),
        ]
        .concat();
        let v10 = [
            pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.realsize", b"8192"),
                ("GNU.sparse.name", b"s"),
            ]),
            raw_header(b"GNUSparseFile.0/s", b'0', b"00000001005\0", |_| {}),
            padded(b"2\n1024\n3\n4096\n2\n".to_vec()),
            padded(b"abcde".to_vec()),
        ]
        .concat();
        for stream in [gnu, v00, v01, v10] {
            let stream = [stream, raw_header(b"next", b'0', b"00000000000\0", |_| {})].concat();
            let found = entries(&stream).unwrap();
            let (entry, data) = &found[0];
            assert_eq!(
                (entry.path.as_slice(), entry.size, entry.stored),
                (b"s".as_slice(), 8192, 5)
            );
            assert_eq!(
                (entry.extents.as_ref(), data.as_slice()),
                (Some(&expected), b"abcde".as_slice())
            );
            assert_eq!(found[1].0.path, b"next");
        }
    }

    #[test]
    fn bad_streams_are_refused() {
        let check = |bytes: &[u8], expected: &str| {
            let error = entries(bytes).unwrap_err();
            let text = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
            let text: Vec<_> = text.map(ToString::to_string).collect();
            assert!(
                text.join(": ").contains(expected),
                "{text:?} should contain {expected:?}"
            );
        };
        check(&[b'x'; 512], "checksum");
        check(&[b'x'; 100], "in the middle of a block");
        check(
            &raw_header(b"a", b'0', b"00000001000\0", |_| {}),
            "middle of an entry's data",
        );
        check(&raw_header(b"a", b'V', b"00000000000\0", |_| {}), "type 'V'");
        check(
            &raw_header(
                b"a",
                b'0',
                b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
                |_| {},
            ),
            "size is out of range",
        );
        check(&raw_header(b"a", b'0', b"zz", |_| {}), "size is not a number");
        check(
            &raw_header(b"a", b'x', b"77777777777\0", |_| {}),
            "extended tar header",
        );
        let lying = [
            pax(&[("size", b"18446744073709551615")]),
            raw_header(b"a", b'0', b"00000000000\0", |_| {}),
        ];
        check(&lying.concat(), "middle of an entry's data");
    }

    #[test]
    fn an_end_mark_ends_the_archive() {
        let entry = raw_header(b"a", b'0', b"00000000000\0", |_| {});
        assert_eq!(entries(&entry).unwrap().len(), 1);
        assert_eq!(entries(&[entry.clone(), vec![0; 512]].concat()).unwrap().len(), 1);
        assert_eq!(
            entries(&[entry.clone(), vec![0; 1024], entry].concat())
                .unwrap()
                .len(),
            1
        );
        assert!(entries(&[]).unwrap().is_empty());
    }
}
