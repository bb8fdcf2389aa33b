//! The image store: what is in it, and how it is asked.

mod check;
mod details;
mod import;
mod load;
mod prune;
mod pull;
mod push;
mod remove;
mod save;
mod tag;
mod usage;

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;

use crate::archive::{self, LayerInput, Section};
use crate::convert::Input;
use crate::document::{self, Config, Descriptor, Manifest, chain_ids};
use crate::erofs::Reader;
use crate::image::{Image, LayerFile, RootDirectory};
use crate::layer::BlobId;
use crate::layout::{self, Layout, Lock, Staging, at, dependent_layer, standalone_layer};
use crate::reference::{Reference, ReferenceError};
use crate::{Digest, convert, registry};
pub use check::{Checked, Fault};
pub use details::{Details, LayerSize};
pub use import::NewImage;
pub use prune::Candidate;
pub use pull::{PullRequest, Pulled};
pub use push::{PushRequest, Pushed, SendStep};
pub use save::{ArchiveKind, SaveError};
pub use usage::{ImageUsage, Space, Usage};

/// The images of one root directory.
#[derive(Debug)]
pub struct Store {
    layout: Layout,
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
        /// Bytes in all; `done == total` is reported when the layer has been read.
        total: u64,
    },
    /// Another process pulls the same image at the moment, and is waited for.
    WaitingForPull,
    /// A layer comes from a registry; layers run in parallel.
    Fetch {
        /// Position in the image, 0 is the lowest.
        index: usize,
        /// Number of layers.
        layers: usize,
        /// The digest of its blob.
        digest: Digest,
        /// What is happening.
        step: FetchStep,
    },
    /// A layer goes to a registry; layers run in parallel.
    Send {
        /// Position among the image's different layers, 0 is the lowest.
        index: usize,
        /// The digest of its blob.
        digest: Digest,
        /// What is happening.
        step: SendStep,
    },
}

/// How far a layer is that comes from a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchStep {
    /// The store has it.
    Exists,
    /// Another process fetches it at the moment.
    Waiting,
    /// It is fetched, verified and converted.
    Reading {
        /// Bytes so far, with those of an earlier pull that was cut short.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The connection broke, and is made again.
    Retrying,
    /// It has been read, and is what it should be.
    Done,
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
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Bytes of the EROFS images of its layers, shared ones included.
    pub bytes: u64,
}

/// What a removal did, in Docker's words for each line of output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Familiar references that were removed ("Untagged: ...").
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
    /// The text can be neither a name nor an ID.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// Several images have IDs that begin so.
    #[error("{0:?} is the beginning of several image IDs")]
    Ambiguous(String),
    /// An image with several names is removed by its ID and without force.
    #[error("image {id} has several names ({names}): removing it by ID must be forced")]
    SeveralNames {
        /// The image.
        id: String,
        /// Its names.
        names: String,
    },
    /// The image is in use; it cannot be deleted, only untagged while it has other names.
    #[error("image {image} is in use: {reason}")]
    InUse {
        /// As the caller named it.
        image: String,
        /// What the caller's check answered.
        reason: String,
    },
    /// A tag cannot have a digest.
    #[error("cannot make the tag {0:?}: a name with a digest belongs to what has that digest")]
    TagWithDigest(String),
    /// The archive or layout directory cannot be loaded.
    #[error("cannot load the image")]
    Load(#[source] LoadError),
    /// The layer's stream makes no image.
    #[error("cannot make the image")]
    Make(#[source] LoadError),
    /// The archive cannot be written.
    #[error("cannot save the image")]
    Save(#[source] SaveError),
    /// The image cannot be pulled.
    #[error("cannot pull {image}")]
    Pull {
        /// As people write it.
        image: String,
        /// Why.
        source: PullError,
    },
    /// The image cannot be pushed.
    #[error("cannot push {image}")]
    Push {
        /// As people write it.
        image: String,
        /// Why.
        source: PushError,
    },
    /// A registry is told a tag.
    #[error("cannot push {0}: a push needs a tag, the digest comes of itself")]
    PushDigest(String),
    /// The image was made for another kind of machine.
    #[error("image {image:?} cannot run here")]
    Platform {
        /// As the caller named it.
        image: String,
        /// Which one.
        source: LoadError,
    },
    /// A layer's EROFS image was missing and cannot be made again from its blob.
    #[error("cannot restore a layer of image {image:?}")]
    Restore {
        /// As the caller named it.
        image: String,
        /// Why.
        source: LoadError,
    },
    /// The store's files cannot be read or written.
    #[error("the image store cannot be used")]
    Store(#[source] StoreError),
}

/// Why a load failed; its message and its sources say where in the archive and what.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct LoadError(Box<LoadErrorKind>);

#[derive(Debug, thiserror::Error)]
enum LoadErrorKind {
    #[error(transparent)]
    Archive(#[from] archive::Error),
    #[error(transparent)]
    Convert(#[from] convert::Error),
    #[error(transparent)]
    Document(#[from] document::Error),
}

/// Why a pull failed; its message and its sources say what the registry did.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct PullError(Box<PullErrorKind>);

#[derive(Debug, thiserror::Error)]
enum PullErrorKind {
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error(transparent)]
    Convert(#[from] convert::Error),
    #[error("the image's configuration cannot be used")]
    Config(#[source] document::Error),
}

/// Why a push failed; its message and its sources say what the registry did.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct PushError(Box<registry::Error>);

impl PushError {
    /// What a person can do about it, where that is not obvious.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        self.0.push_hint()
    }
}

impl PullError {
    /// What a person can do about it, where that is not obvious.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match &*self.0 {
            PullErrorKind::Registry(error) => error.hint(),
            PullErrorKind::Convert(_) | PullErrorKind::Config(_) => None,
        }
    }
}

/// Why the store's files cannot be used; the message names the file.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StoreError(layout::Error);

impl From<layout::Error> for Error {
    fn from(error: layout::Error) -> Self {
        Self::Store(StoreError(error))
    }
}

impl<E: Into<LoadErrorKind>> From<E> for Error {
    fn from(error: E) -> Self {
        Self::Load(LoadError(Box::new(error.into())))
    }
}

/// An entry of the store's index with its documents.
struct Entry {
    descriptor: Descriptor,
    /// None for an untagged image, or for a name that is no reference.
    reference: Option<Reference>,
    manifest: Manifest,
}

impl Entry {
    fn id(&self) -> Digest {
        self.manifest.config.digest
    }
}

impl Store {
    /// Opens the store below `root`, making it if it is not there. `root` is to be one file system.
    ///
    /// # Errors
    /// If the directories cannot be made, or were made by a newer rvm.
    pub fn open(root: &Path) -> Result<Self, Error> {
        Ok(Self {
            layout: Layout::open(root)?,
        })
    }

    /// Finds an image by `name[:tag][@digest]`, by ID or by a unique prefix of its ID.
    ///
    /// A layer's EROFS image that is missing from the cache is made again from its blob.
    ///
    /// # Errors
    /// [`Error::NotFound`] and [`Error::Ambiguous`], or if the store is damaged.
    pub fn resolve(&self, reference: &str) -> Result<Image, Error> {
        let entries = self.entries()?;
        let entry = find(&entries, reference)?;
        let config = self.config(entry)?;
        config.check_platform().map_err(|source| Error::Platform {
            image: reference.to_owned(),
            source: LoadError(Box::new(source.into())),
        })?;
        let mut layers = self.layer_files(&config);
        if layers.len() < config.diff_ids.len() {
            self.restore(entry, &config).map_err(|error| match error {
                Error::Load(source) => Error::Restore {
                    image: reference.to_owned(),
                    source,
                },
                other => other,
            })?;
            layers = self.layer_files(&config);
        }
        Ok(Image {
            id: entry.id(),
            manifest: entry.descriptor.digest,
            reference: entry.reference.as_ref().map(ToString::to_string),
            root: root_directory(layers.last())?,
            config: config.image,
            healthcheck: config.healthcheck,
            layers,
        })
    }

    /// Every image, newest first.
    ///
    /// # Errors
    /// If the store is damaged.
    pub fn list(&self) -> Result<Vec<Summary>, Error> {
        let mut list = Vec::new();
        for entry in self.entries()? {
            let config = self.config(&entry)?;
            let reference = entry.reference.as_ref();
            list.push(Summary {
                repository: reference.map(Reference::familiar_repository),
                tag: reference.and_then(Reference::tag).map(str::to_owned),
                id: entry.id(),
                manifest: entry.descriptor.digest,
                created: config.image.created().clone(),
                labels: labels(&config.image),
                bytes: self.layer_files(&config).iter().map(|layer| layer.bytes).sum(),
            });
        }
        list.sort_by(|one, other| {
            let name = |summary: &Summary| (summary.repository.clone(), summary.tag.clone());
            other
                .created
                .cmp(&one.created)
                .then_with(|| name(one).cmp(&name(other)))
        });
        Ok(list)
    }

    fn entries(&self) -> Result<Vec<Entry>, Error> {
        let index = self.layout.index()?;
        index
            .manifests
            .into_iter()
            .map(|descriptor| self.entry(descriptor))
            .collect()
    }

    fn entry(&self, descriptor: Descriptor) -> Result<Entry, Error> {
        let bytes = self.layout.read_blob(descriptor.blob())?;
        let manifest = Manifest::parse(&bytes).map_err(|source| self.damaged(descriptor.blob(), source))?;
        let reference = descriptor.name().and_then(|name| name.parse().ok());
        Ok(Entry {
            descriptor,
            reference,
            manifest,
        })
    }

    fn config(&self, entry: &Entry) -> Result<Config, Error> {
        let blob = entry.manifest.config.blob();
        let bytes = self.layout.read_blob(blob)?;
        Config::parse(&bytes, entry.manifest.layers.len()).map_err(|source| self.damaged(blob, source))
    }

    fn damaged(&self, blob: BlobId, source: document::Error) -> Error {
        layout::Error::Document {
            path: self.layout.blob_path(&blob.digest),
            source,
        }
        .into()
    }

    /// The layers' images, lowest first, up to the first that is missing.
    fn layer_files(&self, config: &Config) -> Vec<LayerFile> {
        let chain_ids = chain_ids(&config.diff_ids);
        let stack = config.diff_ids.iter().zip(&chain_ids);
        stack
            .map_while(|(diff_id, chain_id)| self.layer_file(diff_id, chain_id))
            .collect()
    }

    /// What each layer takes, lowest first.
    fn layer_sizes(&self, config: &Config) -> Vec<LayerSize> {
        let chain_ids = chain_ids(&config.diff_ids);
        let size = |(diff_id, chain_id): (&Digest, &Digest)| LayerSize {
            diff_id: *diff_id,
            bytes: self.layer_file(diff_id, chain_id).map(|file| file.bytes),
        };
        config.diff_ids.iter().zip(&chain_ids).map(size).collect()
    }

    fn layer_file(&self, diff_id: &Digest, chain_id: &Digest) -> Option<LayerFile> {
        // What was made for this very stack comes first: only there may the other be wrong.
        let names = [dependent_layer(chain_id), standalone_layer(diff_id)];
        names.iter().find_map(|name| {
            let path = self.layout.layer_path(name);
            let bytes = path.metadata().ok()?.len();
            Some(LayerFile {
                diff_id: *diff_id,
                path,
                bytes,
            })
        })
    }

    /// Makes the missing images of an image's layers again.
    fn restore(&self, entry: &Entry, config: &Config) -> Result<(), Error> {
        let staging = self.staging()?;
        let inputs = self.layer_inputs(entry)?;
        let inputs: Vec<Input> = inputs.into_iter().map(Input::Local).collect();
        convert::convert((&self.layout, &staging), &config.diff_ids, &inputs, &mut |_| {})?;
        let lock = self.lock()?;
        staging.publish(&self.layout, &lock)?;
        Ok(())
    }

    /// The blobs of an image's layers.
    fn layer_inputs(&self, entry: &Entry) -> Result<Vec<LayerInput>, Error> {
        let mut inputs = Vec::with_capacity(entry.manifest.layers.len());
        for layer in &entry.manifest.layers {
            let path = self.layout.blob_path(&layer.digest);
            let data = File::open(&path)
                .and_then(Section::whole)
                .map_err(at("open", &path))?;
            inputs.push(LayerInput::new(data, Some(layer.blob()))?);
        }
        Ok(inputs)
    }

    fn staging(&self) -> Result<Staging, Error> {
        let lock = self.lock()?;
        Ok(Staging::new(&self.layout, &lock)?)
    }

    /// Takes the store's lock, and finishes what a killed command left.
    fn lock(&self) -> Result<Lock, Error> {
        let (lock, unfinished) = self.layout.lock()?;
        if unfinished {
            self.sweep(&lock)?;
            self.layout.end_change(&lock)?;
        }
        Ok(lock)
    }

    /// Deletes blobs and layer images that no entry of the index refers to; the bytes freed. If an entry cannot be
    /// read nothing is deleted, because what it refers to is not known.
    fn sweep(&self, lock: &Lock) -> Result<u64, Error> {
        let (mut blobs, mut layers) = (HashSet::new(), HashSet::new());
        let Ok(entries) = self.entries() else { return Ok(0) };
        for entry in &entries {
            let Ok(config) = self.config(entry) else {
                return Ok(0);
            };
            blobs.extend([entry.descriptor.digest.hex(), entry.id().hex()]);
            blobs.extend(entry.manifest.layers.iter().map(|layer| layer.digest.hex()));
            layers.extend(config.diff_ids.iter().map(standalone_layer));
            layers.extend(chain_ids(&config.diff_ids).iter().map(dependent_layer));
        }
        let freed = self
            .layout
            .sweep(&|name| blobs.contains(name), &|name| layers.contains(name), lock)?;
        Ok(freed)
    }
}

/// Finds by name first, then by ID, as Docker does.
fn find<'a>(entries: &'a [Entry], text: &str) -> Result<&'a Entry, Error> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let is_id = !hex.is_empty()
        && hex.len() <= 64
        && hex
            .bytes()
            .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    match text.parse::<Reference>() {
        Ok(wanted) => {
            let named = entries.iter().find(|entry| is_named(entry, &wanted));
            if let Some(entry) = named {
                return Ok(entry);
            }
        }
        // A full ID is not a reference.
        Err(error) if !is_id => return Err(error.into()),
        Err(_) => {}
    }
    let mut by_id = entries
        .iter()
        .filter(|entry| is_id && entry.id().hex().starts_with(hex));
    let first = by_id.next().ok_or_else(|| Error::NotFound(text.to_owned()))?;
    if by_id.any(|other| other.id() != first.id()) {
        return Err(Error::Ambiguous(text.to_owned()));
    }
    Ok(first)
}

/// Whether `text`, by which this entry was found, is its name and not its ID.
fn is_found_by_name(entry: &Entry, text: &str) -> bool {
    text.parse::<Reference>()
        .is_ok_and(|wanted| is_named(entry, &wanted))
}

/// A digest decides where there is one; the repository has to agree.
fn is_named(entry: &Entry, wanted: &Reference) -> bool {
    let Some(reference) = &entry.reference else {
        return false;
    };
    match wanted.digest() {
        Some(digest) => {
            reference.same_repository(wanted)
                && (entry.descriptor.digest == digest || entry.descriptor.pulled_digest() == Some(digest))
        }
        None => reference == wanted,
    }
}

/// Owner and mode of the uppermost layer's root directory, which a layer without one has from those below.
fn root_directory(uppermost: Option<&LayerFile>) -> Result<RootDirectory, Error> {
    let Some(layer) = uppermost else {
        return Ok(RootDirectory {
            mode: 0o755,
            uid: 0,
            gid: 0,
        });
    };
    let file = File::open(&layer.path).map_err(at("open", &layer.path))?;
    let root = Reader::new(file).and_then(|reader| reader.metadata(&reader.root()?));
    let root = root.map_err(|source| at("read", &layer.path)(std::io::Error::other(source)))?;
    Ok(RootDirectory {
        mode: root.mode,
        uid: root.uid,
        gid: root.gid,
    })
}

fn labels(image: &ImageConfiguration) -> BTreeMap<String, String> {
    let labels = image.config().as_ref().and_then(|config| config.labels().clone());
    labels.unwrap_or_default().into_iter().collect()
}

#[cfg(test)]
mod tests;
