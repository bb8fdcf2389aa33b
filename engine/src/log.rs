//! A container's output, kept byte for byte: `log` in its directory and, once that is full, `log.1` and so on, the
//! greatest number the oldest.
//!
//! A file is a sequence of records: one byte for the stream (1 output, 2 error), eight bytes for the time in
//! milliseconds since the epoch, four bytes for the length, then the bytes as they came; integers are little-endian.
//! A record cut short by a crash ends the file. Files are bounded in size and number, so that a workload that floods its
//! output cannot fill the host's disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use rvm_protocol::Stream;

use crate::record::{LogLimits, now_ms};
use crate::rotated::{self, Files};

/// The file that grows.
const NAME: &str = "log";

/// What is to become that file.
const NEW: &str = "log.new";

/// Longest record that is written or believed.
const MAX_RECORD: u32 = 1 << 20;

const HEADER: usize = 13;

/// The guest kernel's console beside it.
pub(crate) const CONSOLE: &str = "console";

/// Appends to a container's log.
#[derive(Debug)]
pub struct Writer {
    directory: PathBuf,
    file: File,
    length: u64,
    limits: LogLimits,
    buffer: Vec<u8>,
}

impl Writer {
    /// Opens the log of the container in `directory`, creating it if need be. A record that a crash has cut short is
    /// removed: nobody could read beyond it.
    ///
    /// # Errors
    /// Any of the file system's.
    pub fn open(directory: &Path, limits: LogLimits) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(rotated::path(directory, NAME, 0))?;
        let length = whole(&mut file)?;
        file.set_len(length)?;
        Ok(Self {
            directory: directory.to_owned(),
            file,
            length,
            limits,
            buffer: Vec::new(),
        })
    }

    /// Appends what the workload wrote to `stream`.
    ///
    /// # Errors
    /// Any of the file system's. What was not written is lost; later records can be.
    pub fn append(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(MAX_RECORD as usize) {
            if self.length >= self.limits.max_bytes {
                self.rotate()?;
            }
            let length = u32::try_from(chunk.len()).unwrap_or(MAX_RECORD);
            self.buffer.clear();
            self.buffer.push(if stream == Stream::Stderr { 2 } else { 1 });
            self.buffer.extend(now_ms().to_le_bytes());
            self.buffer.extend(length.to_le_bytes());
            self.buffer.extend(chunk);
            if let Err(error) = self.file.write_all(&self.buffer) {
                // A record that is cut short would hide those that come once there is room again.
                let _ = self.file.set_len(self.length);
                return Err(error);
            }
            self.length += self.buffer.len() as u64;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        // First: a full disk, where this fails, must not cost one file after the other.
        let new = self.directory.join(NEW);
        let file = OpenOptions::new().append(true).create(true).open(&new)?;
        let oldest = self.limits.max_files.saturating_sub(1);
        let path = |number| rotated::path(&self.directory, NAME, number);
        for number in (0..oldest).rev() {
            match fs::rename(path(number), path(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(new, path(0))?;
        self.file = file;
        self.length = 0;
        Ok(())
    }
}

/// The length of a file up to the end of its last whole record.
fn whole(file: &mut File) -> io::Result<u64> {
    let end = file.metadata()?.len();
    let mut reader = BufReader::new(file);
    let mut position = 0;
    loop {
        let mut header = [0; HEADER];
        let Some((_, _, length)) = read_whole(&mut reader, &mut header)?
            .then(|| parse(header))
            .flatten()
        else {
            return Ok(position);
        };
        let next = position + HEADER as u64 + u64::from(length);
        if next > end {
            return Ok(position);
        }
        reader.seek_relative(length.into())?;
        position = next;
    }
}

/// One piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it was written to.
    pub stream: Stream,
    /// When, in milliseconds since the epoch.
    pub time_ms: u64,
    /// What.
    pub bytes: Vec<u8>,
}

/// Reads a container's log, also while it grows and is rotated.
#[derive(Debug)]
pub struct Reader(Files);

impl Reader {
    /// Opens the log of the container in `directory` at its beginning. A container that wrote nothing has no log.
    ///
    /// # Errors
    /// Any of the file system's but the absence of files.
    pub fn open(directory: &Path) -> io::Result<Self> {
        Ok(Self(Files::open(directory, NAME)?))
    }

    /// Goes back to the beginning of what [`Reader::next_known`] reads.
    pub fn rewind(&mut self) {
        self.0.rewind();
    }

    /// The next entry, oldest first, of the files that were there when this was opened.
    ///
    /// # Errors
    /// Any of the file system's.
    pub fn next_known(&mut self) -> io::Result<Option<Entry>> {
        self.0.next_known(next_entry)
    }

    /// The next entry, oldest first; `None` where there is none yet.
    ///
    /// # Errors
    /// Any of the file system's.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        self.0.next(next_entry)
    }
}

/// The next entry and its length; `None` at the end and at a record that is cut short or damaged.
fn next_entry(mut file: &File) -> rotated::Read<Entry> {
    let mut header = [0; HEADER];
    if !read_whole(&mut file, &mut header)? {
        return Ok(None);
    }
    let Some((stream, time_ms, length)) = parse(header) else {
        return Ok(None);
    };
    let mut bytes = vec![0; length as usize];
    if !read_whole(&mut file, &mut bytes)? {
        return Ok(None);
    }
    let entry = Entry {
        stream,
        time_ms,
        bytes,
    };
    Ok(Some((entry, HEADER as u64 + u64::from(length))))
}

/// Stream, time and length; `None` where it is no header.
fn parse(header: [u8; HEADER]) -> Option<(Stream, u64, u32)> {
    let [stream, time @ .., a, b, c, d] = header;
    let stream = match stream {
        1 => Stream::Stdout,
        2 => Stream::Stderr,
        _ => return None,
    };
    let length = u32::from_le_bytes([a, b, c, d]);
    (length <= MAX_RECORD).then(|| (stream, u64::from_le_bytes(time), length))
}

/// Fills `buffer`; `false` where the file ends first.
fn read_whole(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// What the guest kernel of the container in `directory` wrote to its console. The VMM bounds it.
///
/// # Errors
/// Any of the file system's but the absence of the file.
pub fn console(directory: &Path) -> io::Result<Vec<u8>> {
    match fs::read(directory.join(CONSOLE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(reader: &mut Reader) -> Option<(Stream, Vec<u8>)> {
        let entry = reader.next_entry().unwrap();
        entry.map(|entry| (entry.stream, entry.bytes))
    }

    fn entries(directory: &Path) -> Vec<(Stream, Vec<u8>)> {
        let mut reader = Reader::open(directory).unwrap();
        std::iter::from_fn(|| next(&mut reader)).collect()
    }

    fn writer(directory: &Path) -> Writer {
        Writer::open(directory, LogLimits::default()).unwrap()
    }

    fn small(directory: &Path, max_bytes: u64, max_files: u32) -> Writer {
        let limits = LogLimits { max_bytes, max_files };
        Writer::open(directory, limits).unwrap()
    }

    #[test]
    fn every_byte_comes_back_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = writer(directory.path());
        first.append(Stream::Stdout, b"\0\xff\n").unwrap();
        first.append(Stream::Stderr, b"error").unwrap();
        drop(first);
        writer(directory.path()).append(Stream::Stdout, b"again").unwrap();
        assert_eq!(
            entries(directory.path()),
            [
                (Stream::Stdout, b"\0\xff\n".to_vec()),
                (Stream::Stderr, b"error".to_vec()),
                (Stream::Stdout, b"again".to_vec())
            ]
        );
    }

    #[test]
    fn a_flood_is_bounded_and_keeps_the_newest() {
        for (files, kept) in [(1, 1..=10), (2, 9..=20), (4, 27..=40)] {
            let directory = tempfile::tempdir().unwrap();
            let mut writer = small(directory.path(), 1000, files);
            for number in 0..100u8 {
                writer.append(Stream::Stdout, &[number; 100]).unwrap();
            }
            let entries = entries(directory.path());
            assert!(kept.contains(&entries.len()), "{}", entries.len());
            let numbers = entries.iter().map(|(_, bytes)| bytes[0]);
            assert!(numbers.eq(100 - u8::try_from(entries.len()).unwrap()..100));
            let names = fs::read_dir(directory.path()).unwrap().count();
            assert_eq!(names, files as usize);
        }
    }

    #[test]
    fn a_reader_follows_through_rotations() {
        let directory = tempfile::tempdir().unwrap();
        let mut reader = Reader::open(directory.path()).unwrap();
        assert_eq!(next(&mut reader), None);
        let mut writer = small(directory.path(), 300, 3);
        for number in 0..100u8 {
            writer.append(Stream::Stdout, &[number; 100]).unwrap();
            if number % 2 == 1 {
                for expected in [number - 1, number] {
                    assert_eq!(next(&mut reader), Some((Stream::Stdout, vec![expected; 100])));
                }
                assert_eq!(next(&mut reader), None);
            }
        }
        // One that falls behind goes on with the oldest that is left.
        for number in 100..200u8 {
            writer.append(Stream::Stdout, &[number; 100]).unwrap();
        }
        let seen: Vec<_> = std::iter::from_fn(|| next(&mut reader))
            .map(|(_, bytes)| bytes[0])
            .collect();
        assert_eq!(seen.last(), Some(&199));
        assert!(seen.is_sorted() && seen.len() < 100, "{seen:?}");
    }

    #[test]
    fn what_was_open_is_read_again_whatever_was_removed() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = small(directory.path(), 300, 2);
        for number in 0..4u8 {
            writer.append(Stream::Stdout, &[number; 100]).unwrap();
        }
        let mut reader = Reader::open(directory.path()).unwrap();
        for number in 4..12u8 {
            writer.append(Stream::Stdout, &[number; 100]).unwrap();
        }
        assert_eq!(next(&mut reader), Some((Stream::Stdout, vec![0; 100])));
        reader.rewind();
        assert_eq!(next(&mut reader), Some((Stream::Stdout, vec![0; 100])));
    }

    #[test]
    fn a_damaged_file_ends_early_and_is_mended_by_the_next_writer() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = writer(directory.path());
        first.append(Stream::Stdout, b"whole").unwrap();
        first.append(Stream::Stdout, b"torn").unwrap();
        let path = directory.path().join("log");
        let bytes = fs::read(&path).unwrap();
        for cut in [bytes.len() - 1, HEADER + 5 + 3] {
            fs::write(&path, &bytes[..cut]).unwrap();
            assert_eq!(entries(directory.path()).len(), 1);
            writer(directory.path()).append(Stream::Stderr, b"after").unwrap();
            let expected = [
                (Stream::Stdout, b"whole".to_vec()),
                (Stream::Stderr, b"after".to_vec()),
            ];
            assert_eq!(entries(directory.path()), expected);
        }
        fs::write(&path, [9; 100]).unwrap();
        assert!(entries(directory.path()).is_empty());
    }

    #[test]
    fn no_log_is_an_empty_log() {
        assert!(entries(tempfile::tempdir().unwrap().path()).is_empty());
        assert!(console(Path::new("/nonexistent")).unwrap().is_empty());
    }
}
