//! Loading: archive to staging, staging to store.

use super::{Entry, Error, Loaded, Progress, Source, Store};
use crate::archive::{self, Candidate};
use crate::convert::Input;
use crate::document::{self, Descriptor, Index, MEDIA_MANIFEST, Manifest};
use crate::layer::{self, BlobId};
use crate::layout::{Lock, Staging, blob_name, layer_name};
use crate::reference::Reference;
use crate::{Digest, convert};

/// An image whose every file is in the staging directory.
pub(super) struct Prepared {
    pub(super) id: Digest,
    pub(super) manifest: Descriptor,
    pub(super) references: Vec<Reference>,
}

impl Store {
    /// Loads every image of an archive or layout directory: all of them, or on any error none.
    ///
    /// What the store has already is not read again. A name that another image had is taken from it.
    ///
    /// # Errors
    /// [`Error::Load`] says what is wrong with the input; nothing of it is left in the store then.
    pub fn load(&self, input: Source, progress: &mut dyn FnMut(Progress)) -> Result<Vec<Loaded>, Error> {
        let staging = self.staging()?;
        let candidates = archive::open(input, &staging, progress)?;
        let mut prepared = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            prepared.push(self.prepare(candidate, &staging, progress)?);
        }
        self.publish(&staging, &prepared)?;
        let loaded = |image: &Prepared| Loaded {
            id: image.id,
            references: image.references.iter().map(ToString::to_string).collect(),
        };
        Ok(prepared.iter().map(loaded).collect())
    }

    /// Makes images visible.
    pub(super) fn publish(&self, staging: &Staging, prepared: &[Prepared]) -> Result<(), Error> {
        let lock = self.lock()?;
        self.layout.begin_change(&lock)?;
        staging.publish(&self.layout, &lock)?;
        self.enter(prepared, &lock)?;
        Ok(self.layout.end_change(&lock)?)
    }

    fn prepare(
        &self,
        candidate: Candidate,
        staging: &Staging,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Prepared, Error> {
        let id = layer::digest(&candidate.config_bytes);
        if candidate.manifest.is_none()
            && let Some(manifest) = self.existing(id, staging)?
        {
            return Ok(Prepared {
                id,
                manifest,
                references: candidate.references,
            });
        }
        let diff_ids = &candidate.config.diff_ids;
        let compressions: Vec<_> = candidate.layers.iter().map(|layer| layer.compression).collect();
        let inputs: Vec<_> = candidate.layers.into_iter().map(Input::Local).collect();
        let layers = convert::convert((&self.layout, staging), diff_ids, &inputs, progress)?;
        let config = staging.add_blob(&candidate.config_bytes)?;
        let (bytes, media_type) = match candidate.manifest {
            Some(manifest) => manifest,
            None => {
                let blobs = layers.iter().map(|layer| layer.blob);
                let layers: Vec<_> = blobs.zip(compressions).collect();
                (
                    document::to_bytes(&Manifest::generate(config, &layers))?,
                    MEDIA_MANIFEST.to_owned(),
                )
            }
        };
        let blob = staging.add_blob(&bytes)?;
        Ok(Prepared {
            id,
            manifest: Descriptor::new(&media_type, blob),
            references: candidate.references,
        })
    }

    /// The manifest of an image that the store has in full, kept from vanishing. An archive without manifests has
    /// nothing to add to it: the configuration's digest covers the content of all layers.
    fn existing(&self, id: Digest, staging: &Staging) -> Result<Option<Descriptor>, Error> {
        let entries = self.entries()?;
        let Some(entry) = entries.iter().find(|entry| entry.id() == id) else {
            return Ok(None);
        };
        let config = self.config(entry)?;
        let layers = self.layer_files(&config);
        let mut complete = layers.len() == config.diff_ids.len();
        for layer in &layers {
            let name = layer
                .path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            complete = complete && staging.pin(&layer.path, &layer_name(name))?;
        }
        for BlobId { digest, .. } in blobs(entry) {
            complete = complete && staging.pin(&self.layout.blob_path(&digest), &blob_name(&digest))?;
        }
        let mut descriptor = entry.descriptor.clone();
        descriptor.set_name(None);
        Ok(complete.then_some(descriptor))
    }

    /// Writes the images into the index.
    fn enter(&self, prepared: &[Prepared], lock: &Lock) -> Result<(), Error> {
        let mut index = self.layout.index()?;
        for image in prepared {
            for reference in &image.references {
                set_name(&mut index, &image.manifest, reference);
            }
            if !index
                .manifests
                .iter()
                .any(|entry| entry.digest == image.manifest.digest)
            {
                index.manifests.push(image.manifest.clone());
            }
        }
        Ok(self.layout.write_index(&index, lock)?)
    }
}

/// Gives a name to a manifest. The image that had it before keeps its other names, or stays without one.
pub(super) fn set_name(index: &mut Index, manifest: &Descriptor, reference: &Reference) {
    let name = reference.to_string();
    for entry in &mut index.manifests {
        let same = entry
            .name()
            .and_then(|name| name.parse::<Reference>().ok())
            .is_some_and(|other| other == *reference);
        if same {
            entry.set_name(None);
        }
    }
    let mut named = manifest.clone();
    named.set_name(Some(&name));
    index.manifests.push(named);
    drop_superfluous(index);
}

/// An entry without a name is only needed if its manifest has no other entry.
pub(super) fn drop_superfluous(index: &mut Index) {
    let all = index.manifests.clone();
    let mut position = 0;
    index.manifests.retain(|entry| {
        let here = position;
        position += 1;
        entry.name().is_some()
            || !all.iter().enumerate().any(|(other, descriptor)| {
                descriptor.digest == entry.digest && (descriptor.name().is_some() || other < here)
            })
    });
}

/// All blobs of an image.
pub(super) fn blobs(entry: &Entry) -> impl Iterator<Item = BlobId> + '_ {
    let documents = [entry.descriptor.blob(), entry.manifest.config.blob()];
    documents
        .into_iter()
        .chain(entry.manifest.layers.iter().map(Descriptor::blob))
}
