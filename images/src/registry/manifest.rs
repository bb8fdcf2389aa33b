//! From a reference to one image: indexes, the choice of a platform, manifest and configuration.

use ureq::http::{HeaderName, StatusCode};

use super::client::{Client, Request};
use super::endpoint::Endpoint;
use super::error::Error;
use crate::document::{self, Descriptor, Index, Kind, Manifest};
use crate::layer::{self, BlobId};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::{Digest, limits};

/// Every kind of document that is understood; a registry that has an image in several gives the first that it can.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
                        application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

pub(super) const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Docker's first schema, signed or not.
const FIRST_SCHEMA: &str = "application/vnd.docker.distribution.manifest.v1+";

/// One image, as a registry describes it; everything in here was verified against its digest.
pub(crate) struct Resolved {
    /// What the reference names: the digest of an index, or of the manifest itself.
    pub(crate) digest: Digest,
    pub(crate) descriptor: Descriptor,
    pub(crate) bytes: Vec<u8>,
    pub(crate) manifest: Manifest,
}

/// A document and what it says that it is.
struct Fetched {
    url: String,
    kind: Kind,
    media_type: String,
    bytes: Vec<u8>,
    digest: Digest,
}

/// What a document may be told by, whatever it is.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    schema_version: Option<u32>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
}

/// Finds the image of a reference for a platform.
pub(crate) fn resolve(
    client: &Client,
    endpoint: &Endpoint,
    reference: &Reference,
    platform: &Platform,
) -> Result<Resolved, Error> {
    let digest = reference.digest();
    let name = digest.map(|digest| digest.to_string());
    let name = name.as_deref().or(reference.tag()).unwrap_or_default();
    let repository = endpoint.repository(reference);
    let mut fetched = fetch(client, endpoint, &repository, name, reference)?;
    verify(&fetched, digest, None)?;
    let top = fetched.digest;
    for _ in 0..=limits::INDEX_NESTING {
        if fetched.kind == Kind::Manifest {
            return finish(top, fetched);
        }
        let unusable = |source| Error::Document {
            url: fetched.url.clone(),
            source,
        };
        let index: Index = document::parse(&fetched.bytes).map_err(unusable)?;
        let is_image = |entry: &&Descriptor| matches!(entry.kind(), Kind::Index | Kind::Manifest);
        let Some(chosen) = platform.choices(&index.manifests).into_iter().find(is_image) else {
            return Err(Error::Platform {
                wanted: platform.to_string(),
                offered: document::platforms(&index.manifests),
            });
        };
        let blob = chosen.blob();
        fetched = fetch(client, endpoint, &repository, &blob.digest.to_string(), reference)?;
        verify(&fetched, Some(blob.digest), Some(blob.bytes))?;
    }
    Err(Error::Nesting)
}

/// What a token has to be good for to read a repository.
pub(super) fn pull_scope(repository: &str) -> String {
    format!("repository:{repository}:pull")
}

/// The configuration, a small blob.
pub(crate) fn config(
    client: &Client,
    endpoint: &Endpoint,
    repository: &str,
    blob: BlobId,
) -> Result<Vec<u8>, Error> {
    let scope = pull_scope(repository);
    let path = format!("{repository}/blobs/{}", blob.digest);
    let response = client.send(endpoint, &Request::get(&path, &scope))?;
    if response.status() != StatusCode::OK {
        return Err(response.failure(endpoint.authority()));
    }
    let url = response.shown();
    if response.media_type() == Some("text/html") {
        return Err(Error::Html(url));
    }
    let bytes = response.read(limits::CONFIG_BYTES)?;
    document::verify(&bytes, blob).map_err(|source| Error::Document { url, source })?;
    Ok(bytes)
}

fn finish(digest: Digest, fetched: Fetched) -> Result<Resolved, Error> {
    let Fetched {
        url,
        media_type,
        bytes,
        ..
    } = fetched;
    let manifest = Manifest::parse(&bytes).map_err(|source| Error::Document {
        url: url.clone(),
        source,
    })?;
    if manifest.config.kind() != Kind::Config {
        return Err(Error::NoImage {
            url,
            what: manifest.config.media_type,
        });
    }
    let blob = BlobId {
        digest: fetched.digest,
        bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
    };
    Ok(Resolved {
        digest,
        descriptor: Descriptor::new(&media_type, blob),
        bytes,
        manifest,
    })
}

fn fetch(
    client: &Client,
    endpoint: &Endpoint,
    repository: &str,
    name: &str,
    reference: &Reference,
) -> Result<Fetched, Error> {
    let scope = pull_scope(repository);
    let path = format!("{repository}/manifests/{name}");
    let response = client.send(endpoint, &Request::get(&path, &scope).accept(ACCEPTED))?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => {
            return Err(Error::NotFound {
                registry: endpoint.authority().to_owned(),
                image: reference.familiar(),
            });
        }
        _ => return Err(response.failure(endpoint.authority())),
    }
    let url = response.shown();
    let declared = response.media_type().unwrap_or_default().to_owned();
    if declared == "text/html" {
        return Err(Error::Html(url));
    }
    let claimed = response.header(&DOCKER_CONTENT_DIGEST).map(str::to_owned);
    let bytes = response.read(limits::MANIFEST_BYTES)?;
    let digest = layer::digest(&bytes);
    if let Some(claimed) = claimed
        && claimed.starts_with("sha256:")
        && claimed != digest.to_string()
    {
        return Err(Error::ClaimedDigest {
            url,
            claimed,
            actual: digest,
        });
    }
    let (kind, media_type) = kind(&url, &declared, &bytes)?;
    Ok(Fetched {
        url,
        kind,
        media_type,
        bytes,
        digest,
    })
}

/// What a document is. One that could be read as two things is refused: others might read it the other way.
pub(crate) fn kind(url: &str, declared: &str, bytes: &[u8]) -> Result<(Kind, String), Error> {
    let outline: Outline = document::parse(bytes).map_err(|source| Error::Document {
        url: url.to_owned(),
        source,
    })?;
    let ambiguous = |inside: String| Error::MediaType {
        url: url.to_owned(),
        declared: declared.to_owned(),
        inside,
    };
    if declared.starts_with(FIRST_SCHEMA) || outline.schema_version == Some(1) {
        return Err(Error::FirstSchema(url.to_owned()));
    }
    let is_known = |text: &str| matches!(document::kind(text), Kind::Index | Kind::Manifest);
    let media_type = match outline.media_type {
        Some(inside) if is_known(declared) && inside != declared => return Err(ambiguous(inside)),
        Some(inside) if !is_known(declared) => inside,
        _ => declared.to_owned(),
    };
    let (is_index, is_manifest) = (
        outline.manifests.is_some(),
        outline.config.is_some() || outline.layers.is_some(),
    );
    match (document::kind(&media_type), is_index, is_manifest) {
        (Kind::Index, true, false) => Ok((Kind::Index, media_type)),
        (Kind::Manifest, false, true) => Ok((Kind::Manifest, media_type)),
        (Kind::Index | Kind::Manifest, ..) => Err(ambiguous("something else".to_owned())),
        _ => Err(Error::NoImage {
            url: url.to_owned(),
            what: media_type,
        }),
    }
}

fn verify(fetched: &Fetched, digest: Option<Digest>, bytes: Option<u64>) -> Result<(), Error> {
    let expected = BlobId {
        digest: digest.unwrap_or(fetched.digest),
        bytes: bytes.unwrap_or_else(|| u64::try_from(fetched.bytes.len()).unwrap_or(u64::MAX)),
    };
    document::verify(&fetched.bytes, expected).map_err(|source| Error::Document {
        url: fetched.url.clone(),
        source,
    })
}
