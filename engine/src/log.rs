//! A container's output, kept byte for byte: `log` and, once that is full, `log.1` in its directory.
//!
//! A file is a sequence of records: one byte for the stream (1 output, 2 error), eight bytes for the time in
//! milliseconds since the epoch, four bytes for the length, then the bytes as they came; integers are little-endian.
//! A record cut short by a crash ends the file. The pair of files is bounded, so that a workload that floods its
//! output cannot fill the host's disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use rvm_protocol::Stream;

use crate::record::now_ms;

/// A file is rotated when it has grown beyond this, so a container keeps at least this much and at most twice as
/// much: enough for a day of a chatty service, little beside its image.
const ROTATE_BYTES: u64 = 32 << 20;

/// Longest record that is written or believed.
const MAX_RECORD: u32 = 1 << 20;

const HEADER: usize = 13;

/// The guest kernel's console beside it.
pub(crate) const CONSOLE: &str = "console";

/// Appends to a container's log.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    length: u64,
    rotate_at: u64,
    buffer: Vec<u8>,
}

impl Writer {
    /// Opens the log of the container in `directory`, creating it if need be.
    ///
    /// # Errors
    /// Any of the file system's.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join("log");
        let file = OpenOptions::new().append(true).create(true).open(&path)?;
        let length = file.metadata()?.len();
        Ok(Self {
            path,
            file,
            length,
            rotate_at: ROTATE_BYTES,
            buffer: Vec::new(),
        })
    }

    /// Appends what the workload wrote to `stream`.
    ///
    /// # Errors
    /// Any of the file system's; the record is then missing or cut short.
    pub fn append(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(MAX_RECORD as usize) {
            if self.length >= self.rotate_at {
                self.rotate()?;
            }
            let length = u32::try_from(chunk.len()).unwrap_or(MAX_RECORD);
            self.buffer.clear();
            self.buffer.push(if stream == Stream::Stderr { 2 } else { 1 });
            self.buffer.extend(now_ms().to_le_bytes());
            self.buffer.extend(length.to_le_bytes());
            self.buffer.extend(chunk);
            self.file.write_all(&self.buffer)?;
            self.length += self.buffer.len() as u64;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        fs::rename(&self.path, self.path.with_extension("1"))?;
        self.file = OpenOptions::new().append(true).create(true).open(&self.path)?;
        self.length = 0;
        Ok(())
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

/// Reads the log of the container in `directory` from its beginning, oldest entry first.
///
/// # Errors
/// Any of the file system's but the absence of a file: a container that wrote nothing has no log.
pub fn read(directory: &Path) -> io::Result<impl Iterator<Item = io::Result<Entry>>> {
    let mut files = Vec::new();
    for name in ["log.1", "log"] {
        match File::open(directory.join(name)) {
            Ok(file) => files.push(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files.into_iter().flat_map(|file| {
        let mut reader = BufReader::new(file);
        std::iter::from_fn(move || next_entry(&mut reader).transpose())
    }))
}

/// The next entry; `None` at the end and at a record that is cut short or damaged.
fn next_entry(reader: &mut impl Read) -> io::Result<Option<Entry>> {
    let mut header = [0; HEADER];
    if !read_whole(reader, &mut header)? {
        return Ok(None);
    }
    let [stream, time @ .., a, b, c, d] = header;
    let stream = match stream {
        1 => Stream::Stdout,
        2 => Stream::Stderr,
        _ => return Ok(None),
    };
    let length = u32::from_le_bytes([a, b, c, d]);
    if length > MAX_RECORD {
        return Ok(None);
    }
    let mut bytes = vec![0; length as usize];
    if !read_whole(reader, &mut bytes)? {
        return Ok(None);
    }
    Ok(Some(Entry {
        stream,
        time_ms: u64::from_le_bytes(time),
        bytes,
    }))
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

    fn entries(directory: &Path) -> Vec<(Stream, Vec<u8>)> {
        read(directory)
            .unwrap()
            .map(|entry| entry.map(|entry| (entry.stream, entry.bytes)).unwrap())
            .collect()
    }

    #[test]
    fn every_byte_comes_back_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(directory.path()).unwrap();
        writer.append(Stream::Stdout, b"\0\xff\n").unwrap();
        writer.append(Stream::Stderr, b"error").unwrap();
        drop(writer);
        Writer::open(directory.path())
            .unwrap()
            .append(Stream::Stdout, b"again")
            .unwrap();
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
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(directory.path()).unwrap();
        writer.rotate_at = 1000;
        for number in 0..100u8 {
            writer.append(Stream::Stdout, &[number; 100]).unwrap();
        }
        let kept = entries(directory.path());
        assert_eq!(kept.last().unwrap().1[0], 99);
        assert!((9..=20).contains(&kept.len()), "{}", kept.len());
    }

    #[test]
    fn a_damaged_file_ends_early() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(directory.path()).unwrap();
        writer.append(Stream::Stdout, b"whole").unwrap();
        writer.append(Stream::Stdout, b"torn").unwrap();
        let path = directory.path().join("log");
        let bytes = fs::read(&path).unwrap();
        for cut in [bytes.len() - 1, HEADER + 5 + 3] {
            fs::write(&path, &bytes[..cut]).unwrap();
            assert_eq!(entries(directory.path()).len(), 1);
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
