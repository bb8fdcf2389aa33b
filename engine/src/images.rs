//! Operations on images that have to know what containers use, or that are told as events.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use rustix::fs::FlockOperation;
use rvm_images::{
    ArchiveKind, Candidate, Digest, Loaded, NewImage, Progress, Reference, Removed, Source, Summary, Usage,
};

use crate::engine::{Engine, Error};
use crate::record::Record;
use crate::volumes::VolumeUsage;

/// What an installation takes on the disk.
#[derive(Debug, Clone)]
pub struct DiskUsage {
    /// The images.
    pub images: Usage,
    /// The containers, newest first.
    pub containers: Vec<ContainerUsage>,
    /// The volumes, by name.
    pub volumes: Vec<VolumeUsage>,
}

/// What a container takes on the disk.
#[derive(Debug, Clone)]
pub struct ContainerUsage {
    /// Which one.
    pub record: Record,
    /// Bytes of its directory: what it has written, and its log.
    pub bytes: u64,
}

impl Engine {
    /// Gives an image a name, and takes it from the image that had it.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub fn tag(&self, source: &str, target: &Reference) -> Result<(), Error> {
        self.images()?.tag(source, target)?;
        self.tell_image(source, Some(&target.familiar()), "tag");
        Ok(())
    }

    /// Loads every image of an archive or layout directory: all of them, or on any error none.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub fn load(&self, input: Source, progress: &mut dyn FnMut(Progress)) -> Result<Vec<Loaded>, Error> {
        let loaded = self.images()?.load(input, progress)?;
        for image in &loaded {
            let name = image
                .references
                .first()
                .and_then(|name| name.parse::<Reference>().ok());
            let name = name.map(|name| name.familiar());
            self.tell_image(&image.id.to_string(), name.as_deref(), "load");
        }
        Ok(loaded)
    }

    /// Writes images to an archive: by name, all tags of a name without one, or by ID.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub fn save(&self, references: &[String], kind: ArchiveKind, output: impl Write) -> Result<(), Error> {
        self.images()?.save(references, kind, output)?;
        for reference in references {
            self.tell_image(reference, Some(reference), "save");
        }
        Ok(())
    }

    /// Makes an image of a root file system; the answer is its ID.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub fn import(
        &self,
        new: &NewImage<'_>,
        layer: Source,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Digest, Error> {
        let id = self.images()?.make(new, layer, progress)?;
        let name = new.reference.as_ref().map(Reference::familiar);
        self.tell_image(&id.to_string(), name.as_deref(), "import");
        Ok(id)
    }

    /// Tells what has happened to an image of the store: by its ID, where it can be found, with its labels.
    fn tell_image(&self, wanted: &str, name: Option<&str>, action: &str) {
        let details = self.images().ok().and_then(|images| images.details(wanted).ok());
        let id = details
            .as_ref()
            .map_or_else(|| wanted.to_owned(), |details| details.id.to_string());
        let labels = details.and_then(|details| details.config.config().as_ref()?.labels().clone());
        let labels = labels.unwrap_or_default().into_iter().collect();
        let journal = &self.store.journal;
        journal.image(&id, name.unwrap_or(&id), action, &labels);
    }

    /// Tells what has happened to an image by a name of it, as Docker does of those that come and go.
    pub(crate) fn tell_moved(&self, reference: &Reference, action: &str) {
        let labels = BTreeMap::new();
        let (id, name) = (reference.familiar(), reference.familiar_repository());
        self.store.journal.image(&id, &name, action, &labels);
    }

    /// Tells which names and images of those that there were `before` have been removed.
    pub(crate) fn tell_removed(&self, before: &[Summary], removed: &Removed) {
        let (journal, labels) = (&self.store.journal, BTreeMap::new());
        for name in &removed.untagged {
            let has_it = |image: &&Summary| {
                let parts = image.repository.as_ref().zip(image.tag.as_ref());
                parts.is_some_and(|(repository, tag)| *name == format!("{repository}:{tag}"))
            };
            let id = before.iter().find(has_it).map(|image| image.id.to_string());
            journal.image(id.as_deref().unwrap_or(name), name, "untag", &labels);
        }
        for id in &removed.deleted {
            let id = id.to_string();
            journal.image(&id, &id, "delete", &labels);
        }
    }

    /// Removes the images without a name, or with `all` every one, that no container uses and of which `is_chosen` says
    /// so.
    ///
    /// # Errors
    /// [`Error::Image`], [`Error::Store`].
    pub fn prune_images(&self, all: bool, is_chosen: &dyn Fn(&Candidate) -> bool) -> Result<Removed, Error> {
        let _no_new_users = self.lock_images(FlockOperation::LockExclusive)?;
        let users = self.containers()?;
        let images = self.images()?;
        // What cannot be listed has no names to be told.
        let before = images.list().unwrap_or_default();
        let removed = images.prune(all, is_chosen, &|id| is_used(&users, id))?;
        self.tell_removed(&before, &removed);
        Ok(removed)
    }

    /// Measures everything.
    ///
    /// # Errors
    /// [`Error::Image`], [`Error::Store`].
    pub fn disk_usage(&self) -> Result<DiskUsage, Error> {
        let records = self.containers()?;
        let images = self.images()?.usage(&|id| is_used(&records, id))?;
        let containers = records.into_iter().map(|record| ContainerUsage {
            bytes: allocated(self.layout().containers().join(&record.id)),
            record,
        });
        Ok(DiskUsage {
            images,
            volumes: self.list_volumes()?,
            containers: containers.collect(),
        })
    }
}

fn is_used(users: &[Record], id: &Digest) -> bool {
    let id = id.to_string();
    users.iter().any(|record| record.image.id == id)
}

/// Bytes that a tree takes on the disk. What vanishes meanwhile, and what lies too deep to have a path, is not counted.
pub(crate) fn allocated(top: PathBuf) -> u64 {
    let (mut bytes, mut pending) = (0_u64, vec![top]);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            // Of the entry itself, not of what a symbolic link leads to.
            let Ok(metadata) = entry.metadata() else { continue };
            // Each name of a file has its share of it.
            let share = if metadata.is_file() {
                metadata.nlink().max(1)
            } else {
                1
            };
            bytes = bytes.saturating_add(metadata.blocks().saturating_mul(512) / share);
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    bytes
}
