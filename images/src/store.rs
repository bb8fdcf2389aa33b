//! The image store.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::{Digest, Image};

/// The images of one root directory.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
}

/// Where a load reads from.
pub enum Source {
    /// An archive file, or a directory that is an OCI image layout.
    Path(PathBuf),
    /// An archive that can be read once (standard input).
    Stream(Box<dyn Read + Send>),
}

/// What a load is doing; each variant is reported repeatedly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// A stream, or a compressed archive, is copied to a temporary file first.
    Spooling {
        /// Bytes written so far.
        bytes: u64,
    },
    /// A layer is being verified and converted; layers run in parallel.
    Layer {
        /// Position in the image, 0 is the lowest.
        index: usize,
        /// Number of layers.
        layers: usize,
        /// The layer's diff ID.
        diff_id: Digest,
        /// Bytes of the stored (maybe compressed) layer read so far.
        done: u64,
        /// Bytes in all; `done == total` is reported once, when the layer is complete.
        total: u64,
    },
}

/// One image that a load brought in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The image ID.
    pub id: Digest,
    /// Full references that now name it; empty if the archive has no name for it.
    pub references: Vec<String>,
}

/// One line of `rvm images`: an image has a line per tag, or one without a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Familiar repository name (`debian`, not `docker.io/library/debian`); none for an untagged image.
    pub repository: Option<String>,
    /// The tag; none for an untagged image.
    pub tag: Option<String>,
    /// The image ID.
    pub id: Digest,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Creation time as the configuration gives it (RFC 3339).
    pub created: Option<String>,
    /// Bytes of the EROFS images of its layers, shared ones included.
    pub bytes: u64,
}

/// What a removal did, in Docker's words for each line of output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Full references that were removed ("Untagged: ...").
    pub untagged: Vec<String>,
    /// Image IDs that were deleted ("Deleted: ...").
    pub deleted: Vec<Digest>,
    /// Bytes freed on disk.
    pub freed_bytes: u64,
}

/// What went wrong in the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No image has this name or ID; the hint is to load it.
    #[error("image {0:?} is not in the local store")]
    NotFound(String),
}

impl Store {
    /// Opens the store below `root`, making it if it is not there.
    pub fn open(root: &Path) -> Result<Self, Error> {
        Ok(Self {
            root: root.to_owned(),
        })
    }

    /// Loads every image of an archive or layout directory.
    pub fn load(&self, input: Source, _progress: &mut dyn FnMut(Progress)) -> Result<Vec<Loaded>, Error> {
        drop(input);
        Err(Error::NotFound(self.root.display().to_string()))
    }

    /// Finds an image by `name[:tag][@digest]`, by ID or by a unique prefix of its ID.
    pub fn resolve(&self, reference: &str) -> Result<Image, Error> {
        Err(Error::NotFound(reference.to_owned()))
    }

    /// Every image, newest first.
    pub fn list(&self) -> Result<Vec<Summary>, Error> {
        Ok(Vec::new())
    }

    /// Removes a tag, and the image with its last tag; frees what nothing else refers to.
    ///
    /// `in_use` names what keeps an image ("container 1234 is using it"); such an image is not deleted.
    pub fn remove(
        &self,
        reference: &str,
        _in_use: &dyn Fn(&Digest) -> Option<String>,
        _force: bool,
    ) -> Result<Removed, Error> {
        Err(Error::NotFound(reference.to_owned()))
    }
}
