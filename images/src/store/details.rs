//! One image in full, as it is shown.

use oci_spec::image::ImageConfiguration;

use super::{Error, Store, find};
use crate::Digest;
use crate::document;

/// An image whose layers nobody needs to read.
#[derive(Debug, Clone)]
pub struct Details {
    /// The image ID.
    pub id: Digest,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Its tags, as people write them.
    pub names: Vec<String>,
    /// `REPOSITORY@DIGEST` for each name under which it was pulled.
    pub digests: Vec<String>,
    /// The configuration document.
    pub config: ImageConfiguration,
    /// The same as it is in the store, with fields that image-spec does not have.
    pub document: serde_json::Value,
    /// Its layers, lowest first.
    pub layers: Vec<LayerSize>,
}

/// A layer, and what it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSize {
    /// Digest of the layer's uncompressed tar stream.
    pub diff_id: Digest,
    /// Length of its EROFS image; none while the cache does not have it.
    pub bytes: Option<u64>,
}

impl Store {
    /// Everything about an image, whatever machine it is for.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`], or if the store is damaged.
    pub fn details(&self, reference: &str) -> Result<Details, Error> {
        let entries = self.entries()?;
        let found = find(&entries, reference)?;
        let id = found.id();
        let config = self.config(found)?;
        let bytes = self.layout.read_blob(found.manifest.config.blob())?;
        let document =
            document::parse(&bytes).map_err(|source| self.damaged(found.manifest.config.blob(), source))?;
        let same_image = || entries.iter().filter(|entry| entry.id() == id);
        let mut digests: Vec<String> = same_image()
            .filter_map(|entry| {
                let reference = entry.reference.as_ref()?;
                let digest = reference.digest().or_else(|| entry.descriptor.pulled_digest())?;
                Some(format!("{}@{digest}", reference.familiar_repository()))
            })
            .collect();
        digests.dedup();
        Ok(Details {
            id,
            manifest: found.descriptor.digest,
            names: same_image()
                .filter_map(|entry| entry.reference.as_ref()?.without_digest())
                .map(|reference| reference.familiar())
                .collect(),
            digests,
            layers: self.layer_sizes(&config),
            config: config.image,
            document,
        })
    }
}
