//! Framing: a little-endian `u32` length in bytes, then that many bytes of JSON.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest frame either side accepts. An OCI runtime specification with the default seccomp profile is about 20 kB;
/// an environment of the largest size that `execve` takes is 2 MiB, and JSON may escape each byte sixfold.
pub const MAX_FRAME_BYTES: u32 = 16 << 20;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection ended before the first byte of a frame.
    #[error("the peer closed the connection")]
    Closed,
    /// The transport failed, or ended inside a frame.
    #[error("connection failed")]
    Io(#[source] io::Error),
    /// The length exceeds [`MAX_FRAME_BYTES`].
    #[error("frame of {0} bytes is longer than the {MAX_FRAME_BYTES} allowed")]
    TooLong(usize),
    /// The payload is not the JSON that was expected.
    #[error("malformed message")]
    Json(#[source] serde_json::Error),
}

/// Writes `message` as one frame with a single call to `write_all`, so that concurrent writers holding a lock
/// around this function never interleave.
///
/// # Errors
/// [`FrameError::TooLong`] for a message beyond the limit, [`FrameError::Io`] when the transport fails.
pub fn write_frame<T: Serialize>(mut writer: impl Write, message: &T) -> Result<(), FrameError> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message).map_err(FrameError::Json)?;
    let length = u32::try_from(bytes.len() - 4)
        .ok()
        .filter(|length| *length <= MAX_FRAME_BYTES);
    let Some(length) = length else {
        return Err(FrameError::TooLong(bytes.len() - 4));
    };
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    writer.write_all(&bytes).map_err(FrameError::Io)
}

/// Reads one frame. Memory grows with the bytes that arrive, not with the length that the peer claims.
///
/// # Errors
/// [`FrameError::Closed`] at a clean end of file, otherwise as [`FrameError`] says.
pub fn read_frame<T: DeserializeOwned>(mut reader: impl Read) -> Result<T, FrameError> {
    let mut header = [0; 4];
    let mut filled = 0;
    while filled < header.len() {
        match reader.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Err(FrameError::Closed),
            Ok(0) => return Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(FrameError::Io(error)),
        }
    }
    let length = u32::from_le_bytes(header);
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong(length as usize));
    }
    let mut payload = Vec::new();
    reader
        .take(u64::from(length))
        .read_to_end(&mut payload)
        .map_err(FrameError::Io)?;
    if payload.len() < length as usize {
        return Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    serde_json::from_slice(&payload).map_err(FrameError::Json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip_and_end_cleanly() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &"one").unwrap();
        write_frame(&mut bytes, &2).unwrap();
        assert_eq!(&bytes[..9], b"\x05\0\0\0\"one\"");
        let mut reader = bytes.as_slice();
        assert_eq!(read_frame::<String>(&mut reader).unwrap(), "one");
        assert_eq!(read_frame::<u8>(&mut reader).unwrap(), 2);
        assert!(matches!(read_frame::<u8>(&mut reader), Err(FrameError::Closed)));
    }

    #[test]
    fn hostile_frames_are_refused() {
        let cases: [(&[u8], &str); 5] = [
            (b"\xff\xff\xff\xff", "longer than"),
            (b"\x05\0\0", "connection failed"),
            (b"\x05\0\0\0\"on", "connection failed"),
            (b"\x03\0\0\0nul", "malformed"),
            (b"\0\0\0\0", "malformed"),
        ];
        for (bytes, expected) in cases {
            let error = read_frame::<String>(bytes).unwrap_err().to_string();
            assert!(error.contains(expected), "{bytes:?}: {error}");
        }
    }

    #[test]
    fn an_oversized_message_is_not_sent() {
        let mut bytes = Vec::new();
        let message = "x".repeat(MAX_FRAME_BYTES as usize);
        assert!(matches!(
            write_frame(&mut bytes, &message),
            Err(FrameError::TooLong(_))
        ));
        assert!(bytes.is_empty());
    }
}
