//! A container's files on their way from a guest to its host: pieces, each a little-endian `u32` length in bytes and that
//! many bytes; then a length of 0 and one [`ArchiveEnd`] frame. What ends otherwise is not whole.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::frame::{FrameError, read_frame, write_frame};
use crate::message::Failure;

/// What is wanted of a container's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extent {
    /// The root file system as the workload sees it, without what is mounted in it.
    All,
    /// What the workload has changed, as a layer.
    Changes,
    /// No archive but a list of what the workload has changed: `A`, `C` or `D`, an absolute path, NUL.
    Diff,
}

/// Last frame of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ArchiveEnd {
    /// All of it has been sent.
    Complete,
    /// The files could not be read to their end.
    Failed(Failure),
}

/// Bytes of a piece with its length: a vsock packet.
const PIECE_BYTES: usize = 64 << 10;

/// Bytes of a length.
const LENGTH_BYTES: usize = 4;

/// Sends everything that `archive` has, and how that ended. `explain` says why it could not be read.
///
/// # Errors
/// Those of `output`. An archive that cannot be read is told to the reader.
pub fn send_archive(
    archive: &mut dyn Read,
    output: &mut dyn Write,
    explain: impl FnOnce(&io::Error) -> Failure,
) -> Result<(), FrameError> {
    let mut piece = vec![0; PIECE_BYTES];
    let end = loop {
        let (length, content) = piece.split_at_mut(LENGTH_BYTES);
        let count = match archive.read(content) {
            Ok(0) => break ArchiveEnd::Complete,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => break ArchiveEnd::Failed(explain(&error)),
        };
        let bytes = u32::try_from(count).map_err(|_| FrameError::TooLong(count))?;
        length.copy_from_slice(&bytes.to_le_bytes());
        let sent = piece.get(..LENGTH_BYTES + count).unwrap_or_default();
        output.write_all(sent).map_err(FrameError::Io)?;
    };
    output.write_all(&[0; LENGTH_BYTES]).map_err(FrameError::Io)?;
    write_frame(output, &end)
}

/// Sends what is written to it, as [`send_archive`] does. It is not whole before [`ArchiveWriter::end`].
#[derive(Debug)]
pub struct ArchiveWriter<W> {
    output: W,
    piece: Vec<u8>,
}

impl<W: Write> ArchiveWriter<W> {
    /// Begins an archive.
    pub fn new(output: W) -> Self {
        Self {
            output,
            piece: Vec::with_capacity(PIECE_BYTES),
        }
    }

    /// Says how it ended.
    ///
    /// # Errors
    /// Those of the output.
    pub fn end(mut self, end: &ArchiveEnd) -> Result<(), FrameError> {
        self.output
            .write_all(&[0; LENGTH_BYTES])
            .map_err(FrameError::Io)?;
        write_frame(self.output, end)
    }
}

impl<W: Write> Write for ArchiveWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE_BYTES - LENGTH_BYTES);
        if count == 0 {
            return Ok(0);
        }
        self.piece.clear();
        let length = u32::try_from(count).map_err(io::Error::other)?;
        self.piece.extend(length.to_le_bytes());
        self.piece.extend(bytes.get(..count).unwrap_or_default());
        self.output.write_all(&self.piece)?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Why an archive is not whole. What it says of its sender's reasons is the sender's text.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The connection ended too early.
    #[error("the archive broke off, as when the container ends")]
    Cut,
    /// Nothing came for as long as the connection waits.
    #[error("the archive does not go on")]
    Stalled,
    /// The sender could not go on.
    #[error("{}", .0.message)]
    Failed(Failure),
    /// It is longer than it may be.
    #[error("the archive is longer than the {0} bytes that it may have")]
    TooLong(u64),
    /// The connection failed, or what came at the end is no [`ArchiveEnd`].
    #[error("cannot read the archive")]
    Frame(#[source] FrameError),
}

/// Receives what [`send_archive`] sent, from a sender that may be lying. It ends without an error only where the sender
/// said that all was there.
#[derive(Debug)]
pub struct ArchiveReader<R> {
    input: R,
    /// Bytes of the present piece that are still to come.
    piece: u32,
    /// Bytes that may still come.
    left: u64,
    limit: u64,
    ended: bool,
}

impl<R: Read> ArchiveReader<R> {
    /// Reads an archive of at most `limit` bytes.
    pub fn new(input: R, limit: u64) -> Self {
        Self {
            input,
            piece: 0,
            left: limit,
            limit,
            ended: false,
        }
    }

    /// The length of the next piece; 0 at the end, which has then been read.
    fn next_piece(&mut self) -> Result<u32, ArchiveError> {
        let mut length = [0; LENGTH_BYTES];
        self.input.read_exact(&mut length).map_err(broken)?;
        let length = u32::from_le_bytes(length);
        if length > 0 {
            return Ok(length);
        }
        match read_frame(&mut self.input) {
            Ok(ArchiveEnd::Complete) => Ok(0),
            Ok(ArchiveEnd::Failed(failure)) => Err(ArchiveError::Failed(failure)),
            Err(FrameError::Closed) => Err(ArchiveError::Cut),
            Err(FrameError::Io(error)) => Err(broken(error)),
            Err(error) => Err(ArchiveError::Frame(error)),
        }
    }
}

fn broken(error: io::Error) -> ArchiveError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => ArchiveError::Cut,
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ArchiveError::Stalled,
        _ => ArchiveError::Frame(FrameError::Io(error)),
    }
}

impl<R: Read> Read for ArchiveReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ended || buffer.is_empty() {
            return Ok(0);
        }
        if self.piece == 0 {
            self.piece = self.next_piece().map_err(io::Error::other)?;
            if self.piece == 0 {
                self.ended = true;
                return Ok(0);
            }
            self.left = self
                .left
                .checked_sub(self.piece.into())
                .ok_or_else(|| io::Error::other(ArchiveError::TooLong(self.limit)))?;
        }
        let wanted = usize::try_from(self.piece)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = match self.input.read(buffer.get_mut(..wanted).unwrap_or_default()) {
            Ok(0) => return Err(io::Error::other(ArchiveError::Cut)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            count => count.map_err(|error| io::Error::other(broken(error)))?,
        };
        self.piece = self
            .piece
            .saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::FailureKind;

    fn explain(error: &io::Error) -> Failure {
        Failure {
            kind: FailureKind::Other,
            message: error.to_string(),
        }
    }

    fn receive(bytes: &[u8], limit: u64) -> (Vec<u8>, Result<usize, String>) {
        let mut received = Vec::new();
        let outcome = ArchiveReader::new(bytes, limit).read_to_end(&mut received);
        (received, outcome.map_err(|error| error.to_string()))
    }

    /// An archive that ends, or fails.
    struct Source<'a>(&'a [u8], Option<&'static str>);

    impl Read for Source<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match (self.0.read(buffer)?, self.1) {
                (0, Some(error)) => Err(io::Error::other(error)),
                (count, _) => Ok(count),
            }
        }
    }

    fn send(bytes: &[u8], error: Option<&'static str>) -> Vec<u8> {
        let mut sent = Vec::new();
        send_archive(&mut Source(bytes, error), &mut sent, explain).unwrap();
        sent
    }

    #[test]
    fn archives_come_whole_or_with_the_reason() {
        let bytes: Vec<u8> = (0..300_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        for length in [0, 1, PIECE_BYTES - 4, PIECE_BYTES, 300_000] {
            let sent = send(&bytes[..length], None);
            assert_eq!(receive(&sent, 300_000), (bytes[..length].to_vec(), Ok(length)));
        }
        let (received, outcome) = receive(&send(b"begun", Some("disk on fire")), 5);
        assert_eq!(
            (received.as_slice(), outcome),
            (b"begun".as_slice(), Err("disk on fire".to_owned()))
        );
    }

    #[test]
    fn nothing_but_the_whole_is_taken_for_it() {
        let sent = send(&[7; 100_000], None);
        let ends = (0..sent.len()).filter(|end| *end < 8 || end % 997 == 0 || end + 40 > sent.len());
        for length in ends {
            let (received, outcome) = receive(&sent[..length], u64::MAX);
            assert!(received.iter().all(|byte| *byte == 7));
            assert_eq!(
                outcome,
                Err("the archive broke off, as when the container ends".to_owned()),
                "{length}"
            );
        }
    }

    #[test]
    fn what_a_liar_sends_is_an_error() {
        let cases: [(&[u8], &str); 6] = [
            (b"\xff\xff\xff\xffabc", "longer than the 1000 bytes"),
            (b"\xe8\x03\0\0abc", "broke off"),
            (b"\0\0\0\0\xff\xff\xff\xff", "cannot read"),
            (b"\0\0\0\0\x04\0\0\0true", "cannot read"),
            (b"\0\0\0\0\x08\0\0\0\"failed\"", "cannot read"),
            (b"\x01\0\0\0a\0\0\0\0\x0a\0\0\0\"compl", "broke off"),
        ];
        for (bytes, expected) in cases {
            let (_, outcome) = receive(bytes, 1000);
            let error = outcome.unwrap_err();
            assert!(error.contains(expected), "{bytes:?}: {error}");
        }
        // However it is cut into pieces.
        let endless = [1, 0, 0, 0, b'x'].repeat(1001);
        let (received, outcome) = receive(&endless, 1000);
        assert_eq!(received.len(), 1000);
        assert!(outcome.unwrap_err().contains("longer than"));
    }

    #[test]
    fn the_wire_format_is_frozen() {
        let mut expected = b"\x02\0\0\0hi\0\0\0\0\x0a\0\0\0\"complete\"".to_vec();
        assert_eq!(send(b"hi", None), expected);
        expected.truncate(10);
        let end = br#"{"failed":{"kind":"other","message":"no"}}"#;
        expected.extend(u32::try_from(end.len()).unwrap().to_le_bytes());
        expected.extend(end);
        assert_eq!(send(b"hi", Some("no")), expected);
    }
}
