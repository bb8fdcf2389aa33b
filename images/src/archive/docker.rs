//! docker-archive: `manifest.json` names configurations, layers and tags (docker's image-spec v1.2, `docker save`).

use serde::Deserialize;

use super::{Candidate, Container, Error, LayerInput};
use crate::document::{self, Config};
use crate::reference::Reference;
use crate::{Digest, layer, limits};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

pub(super) fn candidates(container: &Container) -> Result<Vec<Candidate>, Error> {
    let name = "manifest.json";
    let bytes = container.read(name, limits::MANIFEST_BYTES)?;
    let images: Vec<Image> = document::parse(&bytes).map_err(|source| Error::Document {
        name: name.to_owned(),
        source,
    })?;
    if images.len() > limits::IMAGES {
        return Err(Error::Images);
    }
    images
        .into_iter()
        .map(|image| candidate(container, image))
        .collect()
}

fn candidate(container: &Container, image: Image) -> Result<Candidate, Error> {
    let unusable = |source| Error::Document {
        name: image.config.clone(),
        source,
    };
    let config_bytes = container.read(&image.config, limits::CONFIG_BYTES)?;
    if let Some(promised) = promised_digest(&image.config) {
        let actual = layer::digest(&config_bytes);
        if actual != promised {
            return Err(unusable(document::Error::Digest {
                expected: promised,
                actual,
            }));
        }
    }
    let names = image.layers.unwrap_or_default();
    let config = Config::parse_runnable(&config_bytes, names.len()).map_err(unusable)?;
    let layers = names
        .iter()
        .map(|name| LayerInput::new(container.section(name)?, None));
    let references = image.repo_tags.unwrap_or_default();
    Ok(Candidate {
        manifest: None,
        layers: layers.collect::<Result<_, _>>()?,
        references: references
            .iter()
            .map(|tag| tag.parse())
            .collect::<Result<Vec<Reference>, _>>()?,
        config_bytes,
        config,
    })
}

/// Every tool names the configuration by its digest: `HEX.json`, or `blobs/sha256/HEX`.
fn promised_digest(name: &str) -> Option<Digest> {
    let last = name.rsplit('/').next()?;
    Digest::from_hex(last.strip_suffix(".json").unwrap_or(last))
}
