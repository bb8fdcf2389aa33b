//! Where the guest's console output goes: a capped log file, and the last few KiB in memory.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use crate::bus::lock;

/// Most bytes written to the log: a guest must not fill the host's disk through its console.
pub const LOG_BYTES: u64 = 1 << 20;
/// Bytes kept for [`Console::tail`].
pub const TAIL_BYTES: usize = 8 << 10;
/// A line is written when it ends or reaches this length, so that the log costs a system call a line, not a byte.
const LINE_BYTES: usize = 512;
const CAP_NOTE: &[u8] = b"\n[the rest of the console output was dropped]\n";

/// A handle on the console; clones write to the same one.
#[derive(Clone, Debug)]
pub struct Console(Arc<Mutex<Log>>);

#[derive(Debug)]
struct Log {
    file: Option<File>,
    line: Vec<u8>,
    /// Bytes that may still go to the file.
    room: u64,
    tail: VecDeque<u8>,
}

impl Console {
    /// A console that is logged to `file`, if there is one.
    #[must_use]
    pub fn new(file: Option<File>) -> Self {
        let log = Log {
            file,
            line: Vec::new(),
            room: LOG_BYTES,
            tail: VecDeque::new(),
        };
        Self(Arc::new(Mutex::new(log)))
    }

    /// The last lines, at most [`TAIL_BYTES`]. Bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn tail(&self) -> String {
        let mut log = lock(&self.0);
        String::from_utf8_lossy(log.tail.make_contiguous()).into_owned()
    }

    /// Writes an unfinished line to the log.
    pub fn finish(&self) {
        lock(&self.0).write_line();
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = lock(&self.0);
        for byte in bytes {
            log.push(*byte);
        }
        Ok(bytes.len())
    }

    /// Does nothing: the serial port flushes after each byte; lines are written when they end.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn push(&mut self, byte: u8) {
        if self.tail.len() == TAIL_BYTES {
            self.tail.pop_front();
        }
        self.tail.push_back(byte);
        if self.room == 0 {
            return;
        }
        self.line.push(byte);
        self.room -= 1;
        if self.room == 0 {
            self.line.extend_from_slice(CAP_NOTE);
        }
        if byte == b'\n' || self.line.len() >= LINE_BYTES || self.room == 0 {
            self.write_line();
        }
    }

    fn write_line(&mut self) {
        if let Some(file) = &mut self.file {
            // A log that cannot be written (a full disk) must not end the machine; the tail is still there.
            let _ = file.write_all(&self.line);
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    fn read(mut file: &File) -> Vec<u8> {
        let mut contents = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut contents).unwrap();
        contents
    }

    #[test]
    fn lines_are_written_whole_and_the_last_one_at_the_end() {
        let file = tempfile::tempfile().unwrap();
        let mut console = Console::new(Some(file.try_clone().unwrap()));
        console.write_all(b"one\ntwo").unwrap();
        assert_eq!(read(&file), b"one\n");
        console.finish();
        assert_eq!(read(&file), b"one\ntwo");
        assert_eq!(console.tail(), "one\ntwo");
    }

    #[test]
    fn the_log_is_capped_and_the_tail_goes_on() {
        let file = tempfile::tempfile().unwrap();
        let mut console = Console::new(Some(file.try_clone().unwrap()));
        let line = [&[b'x'; 63][..], b"\n"].concat();
        for _ in 0..(LOG_BYTES / 64 + 100) {
            console.write_all(&line).unwrap();
        }
        console.write_all(b"the end \xff").unwrap();
        console.finish();
        let contents = read(&file);
        assert_eq!(contents.len() as u64, LOG_BYTES + CAP_NOTE.len() as u64);
        assert!(contents.ends_with(CAP_NOTE));
        let tail = console.tail();
        assert!(tail.ends_with("x\nthe end \u{fffd}"));
        assert_eq!(tail.chars().count(), TAIL_BYTES);
    }
}
