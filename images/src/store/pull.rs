//! Pulling: a registry's image to the store.

use std::cell::RefCell;
use std::sync::Arc;

use super::load::Prepared;
use super::{Error, Progress, PullError, PullErrorKind, Store};
use crate::convert::{self, Input};
use crate::document::{Config, Descriptor};
use crate::layer::BlobId;
use crate::layout::{Staging, blob_name};
use crate::partial::{self, Locked};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::registry::{self, Client, Endpoint, Place, Places, Registries, RemoteBlob, Resolved};
use crate::{Digest, layout};

/// What is to be pulled.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// Which image.
    pub reference: Reference,
    /// For what kind of machine.
    pub platform: Platform,
    /// What is configured of registries.
    pub registries: Registries,
}

/// An image that is in the store now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The image ID.
    pub id: Digest,
    /// What the reference named at the registry: the digest of an index, or of a manifest.
    pub digest: Digest,
    /// Whether anything has changed: something was fetched, or the name had another image, or none.
    pub is_new: bool,
}

/// Why a step failed, before it is told for which image.
enum Failure {
    Pull(PullErrorKind),
    Store(Error),
}

impl<E: Into<PullErrorKind>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Pull(error.into())
    }
}

impl From<layout::Error> for Failure {
    fn from(error: layout::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Store {
    /// Pulls an image: what the store has already is not fetched, what another process fetches is waited for, and what an
    /// earlier pull has fetched of it is gone on with. On any error nothing of it is visible.
    ///
    /// # Errors
    /// [`Error::Pull`] says what the registry did.
    pub fn pull(&self, request: &PullRequest, progress: &mut dyn FnMut(Progress)) -> Result<Pulled, Error> {
        self.pull_with(Client::new(request.registries.clone()), request, progress)
    }

    pub(crate) fn pull_with(
        &self,
        client: Client,
        request: &PullRequest,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Pulled, Error> {
        let client = Arc::new(client);
        self.pull_from(&client, request, progress)
            .map_err(|failure| match failure {
                Failure::Store(error) => error,
                Failure::Pull(kind) => Error::Pull {
                    image: request.reference.familiar(),
                    source: PullError(Box::new(kind)),
                },
            })
    }

    fn pull_from(
        &self,
        client: &Arc<Client>,
        request: &PullRequest,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Pulled, Failure> {
        let reference = &request.reference;
        let (endpoint, resolved) = find(client, request)?;
        let manifest = resolved.descriptor.digest;
        let before = self.manifest_of(reference)?;
        let image = {
            let progress = RefCell::new(&mut *progress);
            let waiting = || (progress.borrow_mut())(Progress::WaitingForPull);
            Locked::new(&self.layout.image_lock_path(&manifest), &waiting)?
        };
        let staging = self.staging().map_err(Failure::Store)?;
        let places = places(endpoint, request);
        let config_bytes = self.config_bytes(client, &places, (&resolved, &staging))?;
        let config =
            Config::parse(&config_bytes, resolved.manifest.layers.len()).map_err(PullErrorKind::Config)?;
        let blobs = || resolved.manifest.layers.iter().map(Descriptor::blob);
        let input = |blob: BlobId| Input::Remote {
            remote: RemoteBlob::new(client, &places, blob),
            blob,
        };
        let inputs: Vec<Input> = blobs().map(input).collect();
        let layers = convert::convert((&self.layout, &staging), &config.diff_ids, &inputs, progress)?;
        let config_blob = staging.add_blob(&config_bytes)?;
        staging.add_blob(&resolved.bytes)?;
        let mut descriptor = resolved.descriptor.clone();
        descriptor.set_pulled_digest(&resolved.digest);
        let prepared = Prepared {
            id: config_blob.digest,
            manifest: descriptor,
            references: vec![reference.clone()],
        };
        self.publish(&staging, &[prepared]).map_err(Failure::Store)?;
        partial::remove_partials(&self.layout, blobs())?;
        image.remove()?;
        Ok(Pulled {
            id: config_blob.digest,
            digest: resolved.digest,
            is_new: before != Some(manifest) || layers.iter().any(|layer| layer.is_new),
        })
    }

    /// The manifest that a name has now.
    fn manifest_of(&self, reference: &Reference) -> Result<Option<Digest>, Failure> {
        let index = self.layout.index()?;
        let named = |descriptor: &&Descriptor| {
            let name = descriptor.name().and_then(|name| name.parse::<Reference>().ok());
            name.is_some_and(|name| name == *reference)
        };
        Ok(index
            .manifests
            .iter()
            .find(named)
            .map(|descriptor| descriptor.digest))
    }

    /// The configuration, from the store if it is there.
    fn config_bytes(
        &self,
        client: &Arc<Client>,
        places: &Places,
        (resolved, staging): (&Resolved, &Staging),
    ) -> Result<Vec<u8>, Failure> {
        let blob = resolved.manifest.config.blob();
        if staging.pin(&self.layout.blob_path(&blob.digest), &blob_name(&blob.digest))? {
            return Ok(self.layout.read_blob(blob)?);
        }
        let fetch = |place: &Place| registry::config(client, &place.endpoint, &place.repository, blob);
        Ok(match (fetch(&places.first), &places.then) {
            (Err(_), Some(then)) => fetch(then)?,
            (result, _) => result?,
        })
    }
}

/// Where an image's blobs are, after its manifest was found.
fn places(found: Endpoint, request: &PullRequest) -> Places {
    let registry = Endpoint::of(request.reference.domain(), &request.registries);
    let is_mirror = !found.is_same(&registry);
    let place = |endpoint: Endpoint| Place {
        repository: endpoint.repository(&request.reference),
        endpoint: Arc::new(endpoint),
    };
    Places {
        first: place(found),
        then: is_mirror.then(|| place(registry)),
    }
}

/// Asks the mirrors and then the registry, whose error is the one that counts.
fn find(client: &Client, request: &PullRequest) -> Result<(Endpoint, Resolved), registry::Error> {
    let (reference, platform) = (&request.reference, &request.platform);
    for mirror in Endpoint::mirrors(reference, &request.registries) {
        if let Ok(resolved) = registry::resolve(client, &mirror, reference, platform) {
            return Ok((mirror, resolved));
        }
    }
    let endpoint = Endpoint::of(reference.domain(), &request.registries);
    let resolved = registry::resolve(client, &endpoint, reference, platform)?;
    Ok((endpoint, resolved))
}
