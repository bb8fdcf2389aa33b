//! A container's files: exported as a tar, or committed as a layer of a new image.

use std::fs;
use std::io;
use std::path::PathBuf;

use rustix::fs::FlockOperation;
use rvm_images::{Change, Digest, NewImage, Progress, Reference, Source};
use rvm_isolation::{Archive, Extent, Layer, Rootfs};

use crate::engine::{Engine, Error};
use crate::record::{Isolation, Record, State};
use crate::store::Owned;

/// Why a container's files cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The writable layer is a disk that a guest has written, which nothing on the host may parse.
    #[error("the files of {0} lie on its virtual machine's disk: rvm cannot read them without a machine yet")]
    InMachine(String),
    /// Pausing is not possible.
    #[error("container {0} is running, and rvm cannot pause it yet")]
    Pause(String),
    /// A directory could not be made, or a thread not started.
    #[error("cannot read the files of the container")]
    Read(#[source] io::Error),
}

impl FilesError {
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::InMachine(_) => Some("containers with --isolation container can be exported and committed"),
            Self::Pause(_) => Some("--pause=false commits it while it runs"),
            Self::Read(_) => None,
        }
    }
}

/// An image to be made of a container.
#[derive(Debug, Clone)]
pub struct Commit {
    /// Name or ID of the container.
    pub container: String,
    /// Name of the image.
    pub reference: Option<Reference>,
    /// Changes of its configuration.
    pub changes: Vec<Change>,
    /// Who makes it.
    pub author: Option<String>,
    /// What its history says.
    pub comment: Option<String>,
    /// When it is made (RFC 3339).
    pub created: String,
    /// Whether the container is to stand still meanwhile.
    pub pauses: bool,
}

/// A container's files as a tar stream. A container that has ended is not removed meanwhile.
#[derive(Debug)]
pub struct Export {
    archive: Archive,
    _stays: Option<Owned>,
}

impl io::Read for Export {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.archive.read(buffer)
    }
}

impl Engine {
    /// A container's whole root file system as a tar stream, while it runs or when it has ended.
    ///
    /// # Errors
    /// [`Error::Files`], [`Error::Store`].
    pub fn export(&self, container: &str) -> Result<Export, Error> {
        let record = self.record(container)?;
        Ok(Export {
            _stays: self.own(&record.id)?,
            archive: self.archive(&record, Extent::All)?,
        })
    }

    /// Makes an image of a container's own image and of what the container has changed.
    ///
    /// # Errors
    /// [`Error::Files`], [`Error::Store`], [`Error::Image`].
    pub fn commit(&self, commit: &Commit, progress: &mut dyn FnMut(Progress)) -> Result<Digest, Error> {
        let record = self.record(&commit.container)?;
        let _stays = self.own(&record.id)?;
        if commit.pauses && matches!(record.state, State::Running { .. }) {
            return Err(FilesError::Pause(record.name).into());
        }
        let changes = self.archive(&record, Extent::Changes)?;
        // The image below has a user, and so stays.
        let _images_stay = self.lock_images(FlockOperation::LockShared)?;
        let new = NewImage {
            base: Some(&record.image.id),
            reference: commit.reference.clone(),
            changes: commit.changes.clone(),
            created: commit.created.clone(),
            author: commit.author.clone(),
            created_by: Some(record.command.join(" ")),
            comment: commit.comment.clone(),
        };
        let layer = Source::Stream(Box::new(changes));
        Ok(self.images()?.make(&new, layer, progress)?)
    }

    fn record(&self, container: &str) -> Result<Record, Error> {
        let (record, _) = self.directory(container)?;
        match record.isolation {
            Isolation::Container => Ok(record),
            Isolation::Vm => Err(FilesError::InMachine(record.name).into()),
        }
    }

    fn archive(&self, record: &Record, extent: Extent) -> Result<Archive, Error> {
        let bundle = self.layout().containers().join(&record.id);
        let directory = |name: &str| -> Result<PathBuf, FilesError> {
            let path = bundle.join(name);
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(FilesError::Read(error)),
                _ => Ok(path),
            }
        };
        let layers = record.layers.iter();
        let rootfs = Rootfs {
            layers: layers.map(|layer| Layer::File(layer.path.clone())).collect(),
            upper: directory("upper")?,
            work: directory("work")?,
            staging: directory("rootfs")?,
        };
        Ok(rvm_isolation::archive(rootfs, extent).map_err(FilesError::Read)?)
    }
}
