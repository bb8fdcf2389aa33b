//! What a container has changed, name by name. The list comes from where its files are read, and is as little to be trusted.

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::PathBuf;

use rvm_protocol::Extent;

use super::Export;
use crate::engine::{Engine, Error};

/// Bytes of an entry: its kind and a path, which has less than Linux's PATH_MAX.
const MOST_BYTES: u64 = 1 + 4096;

/// What has happened to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is new.
    Added,
    /// It, or something in it, is another.
    Changed,
    /// It is gone.
    Deleted,
}

/// A file that is not as in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What has happened to it.
    pub kind: Kind,
    path: Vec<u8>,
}

impl Difference {
    /// Docker's line for it. Control characters and what is no UTF-8 are shown as `\x1b`.
    #[must_use]
    pub fn line(&self) -> String {
        let kind = match self.kind {
            Kind::Added => 'A',
            Kind::Changed => 'C',
            Kind::Deleted => 'D',
        };
        let mut line = format!("{kind} ");
        let escape = |bytes: &[u8], line: &mut String| {
            for byte in bytes {
                // Writing to a string does not fail.
                let _ = write!(line, "\\x{byte:02x}");
            }
        };
        for chunk in self.path.utf8_chunks() {
            for character in chunk.valid().chars() {
                if character.is_control() {
                    escape(character.encode_utf8(&mut [0; 4]).as_bytes(), &mut line);
                } else {
                    line.push(character);
                }
            }
            escape(chunk.invalid(), &mut line);
        }
        line
    }

    /// Reads an entry of [`Extent::Diff`], without the NUL at its end.
    fn parse(entry: &[u8]) -> Option<Self> {
        let (kind, path) = entry.split_first()?;
        let kind = match kind {
            b'A' => Kind::Added,
            b'C' => Kind::Changed,
            b'D' => Kind::Deleted,
            _ => return None,
        };
        path.starts_with(b"/").then(|| Self {
            kind,
            path: path.to_vec(),
        })
    }
}

/// The differences, as they come.
#[derive(Debug)]
pub struct Diff {
    list: BufReader<Export>,
    /// Directories that were made for something to be mounted on.
    mount_points: Vec<PathBuf>,
}

impl Iterator for Diff {
    type Item = io::Result<Difference>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut entry = Vec::new();
            match (&mut self.list).take(MOST_BYTES).read_until(0, &mut entry) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
            let difference = entry.strip_suffix(b"\0").and_then(Difference::parse);
            let Some(difference) = difference else {
                return Some(Err(io::Error::other("the list of differences is malformed")));
            };
            let is_mount_point = |point: &PathBuf| point.as_os_str().as_encoded_bytes() == difference.path;
            if difference.kind != Kind::Added || !self.mount_points.iter().any(is_mount_point) {
                return Some(Ok(difference));
            }
        }
    }
}

impl Engine {
    /// What a container has added, changed and deleted, each directory in order and before what is in it.
    ///
    /// # Errors
    /// [`Error::Files`], [`Error::Store`].
    pub fn diff(&self, container: &str) -> Result<Diff, Error> {
        let (record, _) = self.directory(container)?;
        let spec = self.store().read_spec(&record.id)?;
        let mounts = spec.mounts().iter().flatten();
        Ok(Diff {
            mount_points: mounts.map(|mount| mount.destination().clone()).collect(),
            list: BufReader::new(self.files(&record, Extent::Diff)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_reach_a_terminal_raw() {
        let cases: [(&[u8], Option<&str>); 8] = [
            (b"A/new", Some("A /new")),
            (b"D/with space\\", Some("D /with space\\")),
            ("C/\u{e4}".as_bytes(), Some("C /\u{e4}")),
            (b"C/\x1b[2J\n", Some(r"C /\x1b[2J\x0a")),
            ("C/\u{9b}".as_bytes(), Some(r"C /\xc2\x9b")),
            (b"C/\xff\xfe", Some(r"C /\xff\xfe")),
            (b"X/new", None),
            (b"A", None),
        ];
        for (entry, expected) in cases {
            let line = Difference::parse(entry).map(|difference| difference.line());
            assert_eq!(line.as_deref(), expected, "{entry:?}");
        }
    }
}
