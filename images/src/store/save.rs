//! Saving: images of the store to one archive, as `docker save` and as skopeo write them.
//!
//! A docker-archive holds layers as plain tars, named by their diff IDs, because that is what Docker's configuration
//! speaks of; an OCI archive holds every blob as it is in the store, byte for byte.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};

use serde_json::json;

use super::load::blobs;
use super::{Entry, Error, Store, find, is_found_by_name};
use crate::document::{self, Config, Descriptor, Index};
use crate::layer::{self, BlobId};
use crate::layout::{Staging, at, blob_name};
use crate::reference::Reference;
use crate::{Digest, layout};

/// The form of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveKind {
    /// `manifest.json`, configurations and plain layers (docker's image-spec v1.2).
    Docker,
    /// An OCI image layout.
    Oci,
}

/// Why an archive could not be written; its message and its sources say which file.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct SaveError(Box<SaveErrorKind>);

#[derive(Debug, thiserror::Error)]
enum SaveErrorKind {
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    #[error("cannot read the blob {0} of the store")]
    Read(Digest, #[source] io::Error),
    #[error("the blob {blob} of the store is damaged")]
    Damaged { blob: Digest },
    #[error(transparent)]
    Document(#[from] document::Error),
    #[error(transparent)]
    Store(#[from] layout::Error),
}

impl From<SaveErrorKind> for Error {
    fn from(kind: SaveErrorKind) -> Self {
        Self::Save(SaveError(Box::new(kind)))
    }
}

/// An image with the names that it is to have in the archive.
struct Saved<'a> {
    entry: &'a Entry,
    config: Config,
    names: Vec<Reference>,
}

impl Store {
    /// Writes images to an archive: with the name by which each was asked for, or without one if that was its ID. A
    /// repository without a tag is all of its tags that are here, as for Docker.
    ///
    /// Everything is verified while it is written, so an archive that was not written to its end is not to be used.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`], [`Error::Save`].
    pub fn save(&self, references: &[String], kind: ArchiveKind, output: impl Write) -> Result<(), Error> {
        let entries = self.entries()?;
        let mut images: Vec<Saved<'_>> = Vec::new();
        for (entry, name) in named(&entries, references)? {
            let manifest = entry.descriptor.digest;
            match images
                .iter_mut()
                .find(|image| image.entry.descriptor.digest == manifest)
            {
                Some(image) => image.names.extend(name),
                None => images.push(Saved {
                    entry,
                    config: self.config(entry)?,
                    names: name.into_iter().collect(),
                }),
            }
        }
        for image in &mut images {
            image.names.sort();
            image.names.dedup();
        }
        // Pinned: a removal meanwhile takes nothing away.
        let staging = self.staging()?;
        for blob in images.iter().flat_map(|image| blobs(image.entry)) {
            let path = self.layout.blob_path(&blob.digest);
            if !staging.pin(&path, &blob_name(&blob.digest))? {
                return Err(at("open", &path)(io::ErrorKind::NotFound.into()).into());
            }
        }
        let archive = Archive {
            staging: &staging,
            tar: ::tar::Builder::new(output),
            written: HashSet::new(),
        };
        match kind {
            ArchiveKind::Docker => archive.docker(&images)?,
            ArchiveKind::Oci => archive.oci(&images)?,
        }
        Ok(())
    }
}

/// The images that are asked for, and what each is called in the archive.
fn named<'a>(
    entries: &'a [Entry],
    references: &[String],
) -> Result<Vec<(&'a Entry, Option<Reference>)>, Error> {
    // An archive has tags: what was pulled by digest has no name there.
    let name = |entry: &Entry| entry.reference.as_ref().and_then(Reference::without_digest);
    let mut named = Vec::new();
    for text in references {
        let tags = named.len();
        if let Some(repository) = Reference::repository(text) {
            let of_it = |name: &Reference| name.same_repository(&repository);
            let all = entries.iter().map(|entry| (entry, name(entry).filter(of_it)));
            named.extend(all.filter(|(_, name)| name.is_some()));
        }
        if named.len() == tags {
            let entry = find(entries, text)?;
            named.push((entry, name(entry).filter(|_| is_found_by_name(entry, text))));
        }
    }
    Ok(named)
}

struct Archive<'a, W: Write> {
    staging: &'a Staging,
    tar: ::tar::Builder<W>,
    /// Names of members.
    written: HashSet<String>,
}

impl<W: Write> Archive<'_, W> {
    fn docker(mut self, images: &[Saved<'_>]) -> Result<(), SaveErrorKind> {
        let mut manifest = Vec::new();
        for image in images {
            let layers = &image.entry.manifest.layers;
            let mut names = Vec::with_capacity(layers.len());
            for (layer, diff_id) in layers.iter().zip(&image.config.diff_ids) {
                let name = format!("{}.tar", diff_id.hex());
                self.content(&name, layer.blob(), diff_id)?;
                names.push(name);
            }
            let config = image.entry.manifest.config.blob();
            let config_name = format!("{}.json", config.digest.hex());
            self.blob(&config_name, config)?;
            let tags: Vec<String> = image.names.iter().map(Reference::familiar).collect();
            // Docker writes null where there is no tag.
            let tags = (!tags.is_empty()).then_some(tags);
            manifest.push(json!({"Config": config_name, "RepoTags": tags, "Layers": names}));
        }
        self.document("manifest.json", &document::to_bytes(&manifest)?)?;
        self.finish()
    }

    fn oci(mut self, images: &[Saved<'_>]) -> Result<(), SaveErrorKind> {
        let mut index = Index::default();
        self.document("oci-layout", layout::OCI_LAYOUT.as_bytes())?;
        for image in images {
            for blob in blobs(image.entry) {
                self.blob(&format!("blobs/sha256/{}", blob.digest.hex()), blob)?;
            }
            let descriptor = |name: Option<&str>| {
                let manifest = &image.entry.descriptor;
                let mut descriptor = Descriptor::new(&manifest.media_type, manifest.blob());
                descriptor.platform.clone_from(&manifest.platform);
                descriptor.set_name(name);
                descriptor
            };
            if image.names.is_empty() {
                index.manifests.push(descriptor(None));
            }
            let names = image.names.iter().map(ToString::to_string);
            let named = names.map(|name| descriptor(Some(name.as_str())));
            index.manifests.extend(named);
        }
        self.document("index.json", &document::to_bytes(&index)?)?;
        self.finish()
    }

    fn finish(mut self) -> Result<(), SaveErrorKind> {
        self.tar.finish().map_err(SaveErrorKind::Write)?;
        let mut output = self.tar.into_inner().map_err(SaveErrorKind::Write)?;
        output.flush().map_err(SaveErrorKind::Write)
    }

    fn document(&mut self, name: &str, bytes: &[u8]) -> Result<(), SaveErrorKind> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.append(name, length, bytes).map_err(SaveErrorKind::Write)
    }

    /// Adds a blob as it is.
    fn blob(&mut self, name: &str, blob: BlobId) -> Result<(), SaveErrorKind> {
        if !self.written.insert(name.to_owned()) {
            return Ok(());
        }
        let read = |source| SaveErrorKind::Read(blob.digest, source);
        let mut hashing = layer::Hashing::new(self.open(blob).map_err(read)?);
        self.append(name, blob.bytes, &mut hashing)
            .map_err(SaveErrorKind::Write)?;
        check(blob.digest, hashing.finish(), blob)
    }

    /// Adds a layer's content. A tar says how long a member is before the member: what is compressed is read twice.
    fn content(&mut self, name: &str, blob: BlobId, diff_id: &Digest) -> Result<(), SaveErrorKind> {
        if blob.digest == *diff_id {
            return self.blob(name, blob);
        }
        if !self.written.insert(name.to_owned()) {
            return Ok(());
        }
        let read = |source| SaveErrorKind::Read(blob.digest, source);
        let open = || self.open(blob).and_then(layer::content).map_err(read);
        let mut content = open()?;
        let bytes = io::copy(&mut content, &mut io::sink()).map_err(read)?;
        check(*diff_id, content.finish(), blob)?;
        let mut content = open()?;
        self.append(name, bytes, &mut content)
            .map_err(SaveErrorKind::Write)?;
        check(*diff_id, content.finish(), blob)
    }

    fn open(&self, blob: BlobId) -> io::Result<BufReader<File>> {
        let file = File::open(self.staging.path(&blob_name(&blob.digest)))?;
        Ok(BufReader::with_capacity(layer::BUFFER_BYTES, file))
    }

    fn append(&mut self, name: &str, bytes: u64, content: impl Read) -> io::Result<()> {
        let mut header = ::tar::Header::new_ustar();
        header.set_size(bytes);
        header.set_mode(0o644);
        header.set_mtime(0);
        // Longer content than the header says would make the rest of the archive unreadable.
        self.tar.append_data(&mut header, name, content.take(bytes))
    }
}

fn check(expected: Digest, actual: Digest, blob: BlobId) -> Result<(), SaveErrorKind> {
    if expected == actual {
        return Ok(());
    }
    Err(SaveErrorKind::Damaged { blob: blob.digest })
}
