//! Pushing: an image of the store to a registry.

use std::collections::HashSet;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use super::{Entry, Error, Progress, PushError, Store};
use crate::Digest;
use crate::document::{Descriptor, Kind, MEDIA_MANIFEST};
use crate::layer::BlobId;
use crate::layout::{self, at};
use crate::reference::Reference;
use crate::registry::{self, Client, Endpoint, LocalBlob, Registries, Target};

/// Layers that are sent at the same time.
const MAX_WORKERS: usize = 4;

/// What is to be pushed.
#[derive(Debug, Clone)]
pub struct PushRequest {
    /// Which image, by its name.
    pub reference: Reference,
    /// Every name that the store has of the same repository, instead.
    pub all_tags: bool,
    /// What is configured of registries.
    pub registries: Registries,
}

/// An image that is at its registry now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Under which tag.
    pub tag: String,
    /// The manifest's digest.
    pub digest: Digest,
    /// Bytes of the manifest.
    pub bytes: u64,
}

/// How far a layer is that goes to a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendStep {
    /// The registry has it in this repository.
    Exists,
    /// The registry took it from another of its repositories.
    Mounted,
    /// It is sent.
    Sending {
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The connection broke, or the registry lost what it had, and it is tried again.
    Retrying,
    /// The registry has it now.
    Done,
}

/// Why a step failed, before it is told for which image.
enum Failure {
    Registry(registry::Error),
    Store(Error),
}

impl From<registry::Error> for Failure {
    fn from(error: registry::Error) -> Self {
        Self::Registry(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<layout::Error> for Failure {
    fn from(error: layout::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Store {
    /// Pushes an image, or all of a repository: layers, then configuration, then the manifest as the store has it. What the
    /// registry has is not sent.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::PushDigest`]; [`Error::Push`] says what the registry did.
    pub fn push(
        &self,
        request: &PushRequest,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Pushed>, Error> {
        self.push_with(&Client::new(request.registries.clone()), request, progress)
    }

    pub(crate) fn push_with(
        &self,
        client: &Client,
        request: &PushRequest,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Pushed>, Error> {
        let reference = &request.reference;
        if reference.digest().is_some() {
            return Err(Error::PushDigest(reference.familiar()));
        }
        let entries = self.entries()?;
        let chosen: Vec<&Entry> = entries.iter().filter(|entry| is_wanted(entry, request)).collect();
        if chosen.is_empty() {
            return Err(Error::NotFound(reference.familiar()));
        }
        let endpoint = Endpoint::of(reference.domain(), &request.registries);
        let target = Target::new(client, &endpoint, endpoint.repository(reference));
        let mut pushed = Vec::with_capacity(chosen.len());
        for entry in chosen {
            let name = entry.reference.as_ref().unwrap_or(reference);
            let done = self.push_one(&target, name, (entry, &entries), progress);
            pushed.push(done.map_err(|failure| match failure {
                Failure::Store(error) => error,
                Failure::Registry(error) => Error::Push {
                    image: name.familiar(),
                    source: PushError(Box::new(error)),
                },
            })?);
        }
        Ok(pushed)
    }

    fn push_one(
        &self,
        target: &Target<'_>,
        name: &Reference,
        (entry, entries): (&Entry, &[Entry]),
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Pushed, Failure> {
        let manifest = entry.descriptor.blob();
        let bytes = self.layout.read_blob(manifest)?;
        // All are opened before anything is sent: whoever removes the image meanwhile does not disturb.
        let mut seen = HashSet::new();
        let layers = entry.manifest.layers.iter().map(Descriptor::blob);
        let layers: Vec<LocalBlob> = layers
            .filter(|blob| seen.insert(blob.digest))
            .map(|blob| self.local_blob(blob, name, entries))
            .collect::<Result<_, _>>()?;
        let config = self.local_blob(entry.manifest.config.blob(), name, entries)?;
        // One question alone: who asks, and whether there is TLS, is settled when the layers go.
        let has_config = target.has(&config.blob.digest)?;
        send_layers(target, &layers, progress)?;
        if !has_config {
            target.send(&config, &AtomicBool::new(false), &|_| ())?;
        }
        let media_type = match entry.descriptor.kind() {
            Kind::Manifest => entry.descriptor.media_type.as_str(),
            _ => MEDIA_MANIFEST,
        };
        let tag = name.tag().unwrap_or_default().to_owned();
        target.put_manifest(&tag, media_type, &manifest.digest, &bytes)?;
        self.note_pushed(name, manifest.digest)?;
        Ok(Pushed {
            tag,
            digest: manifest.digest,
            bytes: manifest.bytes,
        })
    }

    /// Opens a blob, and looks which other repository of the registry has it.
    fn local_blob(&self, blob: BlobId, name: &Reference, entries: &[Entry]) -> Result<LocalBlob, Error> {
        let path = self.layout.blob_path(&blob.digest);
        let file = File::open(&path).map_err(at("open", &path))?;
        let actual = file.metadata().map_err(at("read", &path))?.len();
        if actual != blob.bytes {
            let expected = blob.bytes;
            return Err(self.damaged(blob, crate::document::Error::Size { expected, actual }));
        }
        let has_it = |entry: &&Entry| {
            entry.id() == blob.digest
                || entry
                    .manifest
                    .layers
                    .iter()
                    .any(|layer| layer.digest == blob.digest)
        };
        let source = entries
            .iter()
            .filter(|entry| entry.descriptor.pulled_digest().is_some())
            .filter(has_it)
            .filter_map(|entry| entry.reference.as_ref())
            .find(|other| other.domain() == name.domain() && !other.same_repository(name))
            .map(|other| other.path().to_owned());
        Ok(LocalBlob { blob, file, source })
    }

    /// Notes that the registry has an image now, under the digest that it has here.
    fn note_pushed(&self, name: &Reference, digest: Digest) -> Result<(), Error> {
        let lock = self.lock()?;
        let mut index = self.layout.index()?;
        for entry in &mut index.manifests {
            let named = entry.name().and_then(|text| text.parse::<Reference>().ok());
            if entry.digest == digest && named.is_some_and(|named| named == *name) {
                entry.set_pulled_digest(&digest);
            }
        }
        Ok(self.layout.write_index(&index, &lock)?)
    }
}

fn is_wanted(entry: &Entry, request: &PushRequest) -> bool {
    entry.reference.as_ref().is_some_and(|name| {
        name.tag().is_some()
            && name.digest().is_none()
            && if request.all_tags {
                name.same_repository(&request.reference)
            } else {
                *name == request.reference
            }
    })
}

/// Sends layers, some at a time; the first failure stops the others.
fn send_layers(
    target: &Target<'_>,
    layers: &[LocalBlob],
    progress: &mut dyn FnMut(Progress),
) -> Result<(), registry::Error> {
    let (sender, receiver) = mpsc::channel();
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let first_error = Mutex::new(None);
    let work = |sender: mpsc::Sender<Progress>| {
        while !stop.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(layer) = layers.get(index) else { return };
            let report = |step| {
                // Nobody listening is no reason to stop.
                let _ = sender.send(Progress::Send {
                    index,
                    digest: layer.blob.digest,
                    step,
                });
            };
            if let Err(error) = target.send(layer, &stop, &report) {
                let mut first = first_error.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert(error);
                stop.store(true, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..MAX_WORKERS.min(layers.len()) {
            let (sender, work) = (sender.clone(), &work);
            scope.spawn(move || work(sender));
        }
        // The channel ends with the last worker.
        drop(sender);
        for event in receiver {
            progress(event);
        }
    });
    match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
