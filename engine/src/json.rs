//! Small JSON files that are either the old or the new version, at whatever moment a process is killed.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest file that is read: an OCI runtime specification holds the whole environment of a process, which the
/// kernel limits to a few MiB.
const MAX_BYTES: u64 = 32 << 20;

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// The file could not be written.
    #[error("cannot write {0}")]
    Write(PathBuf, #[source] io::Error),
    /// The content is not what this version of rvm writes.
    #[error("{0} is malformed")]
    Parse(PathBuf, #[source] serde_json::Error),
    /// The file is far longer than anything rvm writes.
    #[error("{0} is longer than {MAX_BYTES} bytes")]
    TooLong(PathBuf),
}

impl Error {
    /// Whether it could not be written for now: there is no room, or the file system takes no writes.
    pub(crate) fn is_no_room(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        matches!(self, Self::Write(_, source) if matches!(source.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem))
    }

    /// Whether the file is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Read(_, source) if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads and parses `path`.
///
/// # Errors
/// As [`Error`] says.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    parse(path, &text(path)?)
}

/// Reads `path`.
///
/// # Errors
/// [`Error::Read`], [`Error::TooLong`].
pub(crate) fn text(path: &Path) -> Result<Vec<u8>, Error> {
    let read = |source| Error::Read(path.to_owned(), source);
    let file = File::open(path).map_err(read)?;
    // With one byte more than there is, the end shows without another allocation. `take` alone would begin with 32 bytes.
    let length = file.metadata().map_err(read)?.len().min(MAX_BYTES);
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default() + 1);
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::TooLong(path.to_owned()));
    }
    Ok(bytes)
}

/// Parses the `text` of `path`.
///
/// # Errors
/// [`Error::Parse`].
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(text).map_err(|source| Error::Parse(path.to_owned(), source))
}

/// Replaces `path` with `value` by rename. The caller holds whatever lock guards the file, so one temporary name is
/// enough and a leftover of a killed writer is overwritten.
///
/// # Errors
/// [`Error::Write`].
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let written = |source| Error::Write(path.to_owned(), source);
    let mut bytes = serde_json::to_vec(value).map_err(|source| Error::Parse(path.to_owned(), source))?;
    bytes.push(b'\n');
    let temporary = path.with_extension("json.new");
    let mut file = File::create(&temporary).map_err(written)?;
    file.write_all(&bytes).map_err(written)?;
    fs::rename(&temporary, path).map_err(written)
}
