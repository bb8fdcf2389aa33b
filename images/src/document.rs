//! The JSON documents of an image (image-spec: descriptor, index, manifest; Docker's own media types mean the same).
//!
//! Own types because digests are parsed as they are read, because fields that are not known here are kept when a
//! document is written again, and because what is written is the same bytes every time.

use std::collections::BTreeMap;

use oci_spec::image::{Arch, ImageConfiguration, Os};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::layer::{self, BlobId};
use crate::{Digest, Healthcheck, limits};

pub(crate) const MEDIA_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MEDIA_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const MEDIA_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MEDIA_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const MEDIA_DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const MEDIA_DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const MEDIA_DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// The name of an image as image-spec has it: a tag, or a whole reference.
pub(crate) const ANNOTATION_REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The whole reference, as containerd and Docker write it beside the tag.
pub(crate) const ANNOTATION_IMAGE_NAME: &str = "io.containerd.image.name";

/// The digest by which an image was pulled: that of the index, of which the store has only one manifest.
const ANNOTATION_PULLED: &str = "rvm.pulled.digest";

/// Why a document cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("it is not valid")]
    Json(#[from] serde_json::Error),
    #[error("it has the digest {actual}, not {expected}")]
    Digest { expected: Digest, actual: Digest },
    #[error("it has {actual} bytes, not {expected}")]
    Size { expected: u64, actual: u64 },
    #[error("it names {count} layers, more than {}", limits::LAYERS)]
    Layers { count: usize },
    #[error("it has {diff_ids} diff IDs for {layers} layers")]
    DiffIds { diff_ids: usize, layers: usize },
    #[error("the image is for {os}/{architecture}, and this machine runs linux/amd64")]
    Platform { os: Os, architecture: Arch },
}

/// Reference to a blob.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(flatten)]
    other: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    pub(crate) architecture: String,
    pub(crate) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
    #[serde(flatten)]
    other: serde_json::Map<String, serde_json::Value>,
}

/// What a blob is, as far as its media type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Index,
    Manifest,
    Config,
    Other,
}

/// What a media type means.
pub(crate) fn kind(media_type: &str) -> Kind {
    match media_type {
        MEDIA_INDEX | MEDIA_DOCKER_LIST => Kind::Index,
        MEDIA_MANIFEST | MEDIA_DOCKER_MANIFEST => Kind::Manifest,
        MEDIA_CONFIG | MEDIA_DOCKER_CONFIG => Kind::Config,
        _ => Kind::Other,
    }
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, blob: BlobId) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: blob.digest,
            size: blob.bytes,
            annotations: None,
            platform: None,
            other: serde_json::Map::new(),
        }
    }

    pub(crate) fn blob(&self) -> BlobId {
        BlobId {
            digest: self.digest,
            bytes: self.size,
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        kind(&self.media_type)
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// The image's name: containerd's annotation is a whole reference where the other may be a bare tag.
    pub(crate) fn name(&self) -> Option<&str> {
        self.annotation(ANNOTATION_IMAGE_NAME)
            .or_else(|| self.annotation(ANNOTATION_REF_NAME))
    }

    /// The digest that the image's name had at its registry: an index's, where there is one.
    pub(crate) fn pulled_digest(&self) -> Option<Digest> {
        self.annotation(ANNOTATION_PULLED)?.parse().ok()
    }

    /// Notes where an image was pulled from; never taken over from a document that came from outside.
    pub(crate) fn set_pulled_digest(&mut self, digest: &Digest) {
        let annotations = self.annotations.get_or_insert_default();
        annotations.insert(ANNOTATION_PULLED.to_owned(), digest.to_string());
    }

    /// Takes away what [`Descriptor::set_pulled_digest`] has noted.
    pub(crate) fn forget_pulled_digest(&mut self) {
        if let Some(annotations) = &mut self.annotations {
            annotations.remove(ANNOTATION_PULLED);
        }
    }

    /// Sets or takes away the image's name.
    pub(crate) fn set_name(&mut self, name: Option<&str>) {
        let mut annotations = self.annotations.take().unwrap_or_default();
        for key in [ANNOTATION_REF_NAME, ANNOTATION_IMAGE_NAME] {
            match name {
                Some(name) => annotations.insert(key.to_owned(), name.to_owned()),
                None => annotations.remove(key),
            };
        }
        self.annotations = (!annotations.is_empty()).then_some(annotations);
    }
}

impl Platform {
    /// Whether this machine and its guests run it.
    pub(crate) fn runs_here(&self) -> bool {
        self.os == "linux" && self.architecture == "amd64"
    }
}

/// What an index offers, for a message.
pub(crate) fn platforms(descriptors: &[Descriptor]) -> String {
    let mut names: Vec<String> = descriptors
        .iter()
        .filter_map(|descriptor| descriptor.platform.as_ref())
        .map(ToString::to_string)
        .collect();
    names.dedup();
    names.truncate(16);
    if names.is_empty() {
        "no platform".to_owned()
    } else {
        names.join(", ")
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(formatter, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// A list of manifests: `index.json`, or the platforms of one image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    pub(crate) manifests: Vec<Descriptor>,
    #[serde(flatten)]
    other: serde_json::Map<String, serde_json::Value>,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            schema_version: 2,
            media_type: Some(MEDIA_INDEX.to_owned()),
            manifests: Vec::new(),
            other: serde_json::Map::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    #[serde(flatten)]
    other: serde_json::Map<String, serde_json::Value>,
}

impl Manifest {
    /// Checks what every manifest has to keep to.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let manifest: Self = serde_json::from_slice(bytes)?;
        if manifest.layers.len() > limits::LAYERS {
            return Err(Error::Layers {
                count: manifest.layers.len(),
            });
        }
        Ok(manifest)
    }

    /// A manifest for an image that came without one, with its layers as they are.
    pub(crate) fn generate(config: BlobId, layers: &[(BlobId, layer::Compression)]) -> Self {
        let layer = |(blob, compression): &(BlobId, layer::Compression)| {
            let suffix = match compression {
                layer::Compression::None => "",
                layer::Compression::Gzip => "+gzip",
                layer::Compression::Zstd => "+zstd",
            };
            Descriptor::new(&format!("{MEDIA_LAYER}{suffix}"), *blob)
        };
        Self {
            schema_version: 2,
            media_type: Some(MEDIA_MANIFEST.to_owned()),
            config: Descriptor::new(MEDIA_CONFIG, config),
            layers: layers.iter().map(layer).collect(),
            other: serde_json::Map::new(),
        }
    }
}

/// A configuration, and the diff IDs of its layers.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) image: ImageConfiguration,
    pub(crate) healthcheck: Option<Healthcheck>,
    pub(crate) diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct ConfigRootfs {
    rootfs: Rootfs,
    config: Option<ConfigConfig>,
}

/// What `oci_spec` does not know of it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ConfigConfig {
    healthcheck: Option<Healthcheck>,
}

#[derive(Deserialize)]
struct Rootfs {
    diff_ids: Option<Vec<Digest>>,
}

impl Config {
    pub(crate) fn parse(bytes: &[u8], layers: usize) -> Result<Self, Error> {
        let ConfigRootfs { rootfs, config } = serde_json::from_slice(bytes)?;
        let diff_ids = rootfs.diff_ids.unwrap_or_default();
        if diff_ids.len() != layers {
            return Err(Error::DiffIds {
                diff_ids: diff_ids.len(),
                layers,
            });
        }
        if layers > limits::LAYERS {
            return Err(Error::Layers { count: layers });
        }
        let image: ImageConfiguration = serde_json::from_slice(bytes)?;
        Ok(Self {
            image,
            healthcheck: config.and_then(|config| config.healthcheck),
            diff_ids,
        })
    }

    /// As [`Config::parse`], and refuses what cannot run on this machine.
    pub(crate) fn parse_runnable(bytes: &[u8], layers: usize) -> Result<Self, Error> {
        let config = Self::parse(bytes, layers)?;
        config.check_platform()?;
        Ok(config)
    }

    /// Refuses what cannot run on this machine.
    pub(crate) fn check_platform(&self) -> Result<(), Error> {
        let image = &self.image;
        if (image.os(), image.architecture()) == (&Os::Linux, &Arch::Amd64) {
            return Ok(());
        }
        Err(Error::Platform {
            os: image.os().clone(),
            architecture: image.architecture().clone(),
        })
    }
}

/// Chain IDs of a stack of layers (image-spec, config.md): what a layer's content on top of those below is named by.
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => *diff_id,
            Some(below) => layer::digest(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

/// Checks bytes against a descriptor.
pub(crate) fn verify(bytes: &[u8], expected: BlobId) -> Result<(), Error> {
    let actual = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if actual != expected.bytes {
        return Err(Error::Size {
            expected: expected.bytes,
            actual,
        });
    }
    match layer::digest(bytes) {
        actual if actual == expected.digest => Ok(()),
        actual => Err(Error::Digest {
            expected: expected.digest,
            actual,
        }),
    }
}

/// Bytes that [`Manifest`] and [`Index`] are written as.
pub(crate) fn to_bytes(document: &impl Serialize) -> Result<Vec<u8>, Error> {
    Ok(serde_json::to_vec_pretty(document)?)
}

/// Reads any document.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    Ok(serde_json::from_slice(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_kept() {
        let text = r#"{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0,"artifactType":"y"}],"subject":{"a":1}}"#;
        let index: Index = parse(text.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&index).unwrap(), text);
    }

    #[test]
    fn bad_documents_are_refused() {
        let layer = format!(
            r#"{{"mediaType":"","digest":"{}","size":1}}"#,
            layer::digest(b"x")
        );
        let many = vec![layer.as_str(); 128].join(",");
        let manifest = format!(r#"{{"schemaVersion":2,"config":{layer},"layers":[{many}]}}"#);
        assert!(matches!(
            Manifest::parse(manifest.as_bytes()),
            Err(Error::Layers { count: 128 })
        ));
        assert!(matches!(Manifest::parse(b"[]"), Err(Error::Json(_))));
        assert!(matches!(
            Manifest::parse(layer.replace("\"size\":1", "\"size\":-1").as_bytes()),
            Err(Error::Json(_))
        ));
        let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        assert!(Config::parse(config, 0).is_ok());
        assert!(matches!(Config::parse(config, 1), Err(Error::DiffIds { .. })));
        let blob = BlobId {
            digest: layer::digest(b"x"),
            bytes: 1,
        };
        assert!(verify(b"x", blob).is_ok());
        assert!(matches!(verify(b"y", blob), Err(Error::Digest { .. })));
        assert!(matches!(verify(b"xx", blob), Err(Error::Size { .. })));
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let (a, b) = (layer::digest(b"a"), layer::digest(b"b"));
        let chain = chain_ids(&[a, b]);
        assert_eq!(chain, [a, layer::digest(format!("{a} {b}").as_bytes())]);
    }
}
