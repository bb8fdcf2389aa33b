//! Small JSON files, each written by rename under the lock of the networks.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something could not be done with a path.
    #[error("cannot {action} {path}")]
    Path {
        /// A verb.
        action: &'static str,
        /// What it was applied to.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The content is not what this version of rvm writes.
    #[error("{0} is malformed")]
    Malformed(PathBuf, #[source] serde_json::Error),
}

pub(crate) fn error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Path { action, path, source }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Reads a file; `None` where it is not there.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| Error::Malformed(path.to_owned(), source)),
        Err(source) if is_absent(&source) => Ok(None),
        Err(source) => Err(error("read", path)(source)),
    }
}

/// Replaces a file. A name that begins with a dot is a writer's that was killed, and is written over by the next.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let mut bytes = serde_json::to_vec(value).map_err(|source| Error::Malformed(path.to_owned(), source))?;
    bytes.push(b'\n');
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}"));
    fs::write(&temporary, bytes).map_err(error("write", &temporary))?;
    // Whatever the user's mask: the resolver reads some of them as another user. Nobody else gets into their directories.
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644)).map_err(error("write", &temporary))?;
    fs::rename(&temporary, path).map_err(error("write", path))
}

/// Removes a file; whether it was there.
pub(crate) fn remove(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(source) if is_absent(&source) => Ok(false),
        Err(source) => Err(error("remove", path)(source)),
    }
}

/// Removes a directory in which there is nothing but what writers have left that were killed; whether it is gone.
pub(crate) fn remove_empty_directory(path: &Path) -> Result<bool, Error> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(source) if is_absent(&source) => return Ok(true),
        Err(source) => return Err(error("list", path)(source)),
    };
    for entry in entries {
        let entry = entry.map_err(error("list", path))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            return Ok(false);
        }
        remove(&entry.path())?;
    }
    match fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(source) if is_absent(&source) => Ok(true),
        Err(source) => Err(error("remove", path)(source)),
    }
}

/// `mkdir -p`, whatever the user's mask: the resolver gets into some of them as another user. Nobody else gets into the
/// directory above them all.
pub(crate) fn make_directory(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_directory(parent)?;
    }
    match fs::create_dir(path) {
        Ok(()) => {}
        // By somebody else, just now.
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(error("create", path)(source)),
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(error("change", path))
}

/// The names in a directory that end so, without the ending; none where the directory is not there.
pub(crate) fn names(directory: &Path, ending: &str) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(source) if is_absent(&source) => return Ok(Vec::new()),
        Err(source) => return Err(error("list", directory)(source)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(error("list", directory))?;
        let name = entry.file_name();
        let stem = name.to_str().and_then(|name| name.strip_suffix(ending));
        names.extend(stem.filter(|stem| !stem.starts_with('.')).map(str::to_owned));
    }
    names.sort_unstable();
    Ok(names)
}
