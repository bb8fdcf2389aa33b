//! OCI image layout, in an archive or a directory (image-spec, image-layout.md).

use super::{Candidate, Container, Error, LayerInput};
use crate::document::{self, Config, Descriptor, Index, Kind, Manifest};
use crate::layer::BlobId;
use crate::limits;
use crate::platform::Platform;
use crate::reference::{self, Reference};

/// Indexes within indexes: `index.json`, an image's platforms, and one more for good measure.
const MAX_NESTING: usize = 3;

/// All images of the layout. `stem` is the input's name, for images that have only a tag.
pub(super) fn candidates(container: &Container, stem: Option<&str>) -> Result<Vec<Candidate>, Error> {
    let name = "index.json";
    let bytes = container.read(name, limits::MANIFEST_BYTES)?;
    let index: Index = document::parse(&bytes).map_err(|source| Error::Document {
        name: name.to_owned(),
        source,
    })?;
    if index.manifests.len() > limits::IMAGES {
        return Err(Error::Images);
    }
    let here: Vec<&Descriptor> = index
        .manifests
        .iter()
        .filter(|descriptor| usable(descriptor))
        .collect();
    if here.is_empty() && !index.manifests.is_empty() {
        return Err(Error::Platform(document::platforms(&index.manifests)));
    }
    let mut candidates: Vec<Candidate> = Vec::new();
    for descriptor in here {
        let references = references(descriptor, stem)?;
        let Some(manifest) = choose(container, descriptor, MAX_NESTING)? else {
            continue;
        };
        candidates.extend(candidate(container, &manifest, references)?);
    }
    Ok(candidates)
}

/// The manifest for this platform; nothing for what is no image.
fn choose(
    container: &Container,
    descriptor: &Descriptor,
    nesting: usize,
) -> Result<Option<Descriptor>, Error> {
    match descriptor.kind() {
        Kind::Manifest => return Ok(Some(descriptor.clone())),
        Kind::Index if nesting == 0 => return Err(Error::Nesting),
        Kind::Index => {}
        Kind::Config | Kind::Other => return Ok(None),
    }
    let bytes = read_blob(container, descriptor.blob(), limits::MANIFEST_BYTES)?;
    let index: Index = document::parse(&bytes).map_err(|source| unusable(descriptor.blob(), source))?;
    for inner in Platform::default().choices(&index.manifests) {
        if let Some(manifest) = choose(container, inner, nesting - 1)? {
            return Ok(Some(manifest));
        }
    }
    Err(Error::Platform(document::platforms(&index.manifests)))
}

/// Nothing for a manifest whose configuration is not an image's: signatures and other artifacts.
fn candidate(
    container: &Container,
    descriptor: &Descriptor,
    references: Vec<Reference>,
) -> Result<Option<Candidate>, Error> {
    let bytes = read_blob(container, descriptor.blob(), limits::MANIFEST_BYTES)?;
    let manifest = Manifest::parse(&bytes).map_err(|source| unusable(descriptor.blob(), source))?;
    if manifest.config.kind() != Kind::Config {
        return Ok(None);
    }
    let config_bytes = read_blob(container, manifest.config.blob(), limits::CONFIG_BYTES)?;
    let config = Config::parse_runnable(&config_bytes, manifest.layers.len())
        .map_err(|source| unusable(manifest.config.blob(), source))?;
    let layers = manifest.layers.iter().map(|layer| {
        let data = container.section(&blob_name(layer.blob()))?;
        LayerInput::new(data, Some(layer.blob()))
    });
    Ok(Some(Candidate {
        layers: layers.collect::<Result<_, _>>()?,
        manifest: Some((bytes, descriptor.media_type.clone())),
        config_bytes,
        config,
        references,
    }))
}

/// The names of an image. An annotation that is only a tag is put behind the input's own name (`debian.tar` with tag
/// `bookworm` is `debian:bookworm`); without such a name the image can be reached by its ID.
fn references(descriptor: &Descriptor, stem: Option<&str>) -> Result<Vec<Reference>, Error> {
    let Some(name) = descriptor.name() else {
        return Ok(Vec::new());
    };
    if !reference::is_tag(name) {
        return Ok(vec![name.parse()?]);
    }
    let named = stem.and_then(|stem| format!("{stem}:{name}").parse().ok());
    Ok(named.into_iter().collect())
}

fn usable(descriptor: &Descriptor) -> bool {
    descriptor
        .platform
        .as_ref()
        .is_none_or(document::Platform::runs_here)
}

fn blob_name(blob: BlobId) -> String {
    format!("blobs/sha256/{}", blob.digest.hex())
}

fn read_blob(container: &Container, blob: BlobId, limit: u64) -> Result<Vec<u8>, Error> {
    let bytes = container.read(&blob_name(blob), limit)?;
    document::verify(&bytes, blob).map_err(|source| unusable(blob, source))?;
    Ok(bytes)
}

fn unusable(blob: BlobId, source: document::Error) -> Error {
    Error::Document {
        name: blob_name(blob),
        source,
    }
}
