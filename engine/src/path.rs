//! Operations on a path that failed.

use std::io;
use std::path::{Path, PathBuf};

/// What failed, on which path, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct Error {
    /// A verb.
    action: &'static str,
    /// What it was applied to.
    path: PathBuf,
    /// The cause.
    pub(crate) source: io::Error,
}

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error { action, path, source }
}
