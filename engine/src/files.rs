//! A container's files: exported as a tar, committed as a layer of a new image, or copied. What a guest has written comes from a
//! guest, by the same code that reads a container's on the host, and is as little to be trusted as any layer.

mod copy;
mod diff;
mod guest;
mod paths;
mod session;

use std::fs;
use std::io;
use std::path::PathBuf;

use rustix::fs::FlockOperation;
use rvm_images::{Change, Digest, NewImage, Progress, Reference, Source};
use rvm_isolation::{Archive, Layer, Rootfs};
use rvm_protocol::Extent;

use crate::control;
use crate::engine::{Engine, Error};
use crate::record::{Isolation, Record};
use crate::store::Owned;
pub use copy::{Copied, CopyFailure, CopyOptions, Local};
pub use diff::{Diff, Difference};
use guest::GuestFiles;

/// Why a container's files cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// Somebody else has the container, or its guest will not.
    #[error("cannot get at the files of container {name}")]
    Busy {
        /// The container.
        name: String,
        /// What its supervisor said last, or that there is none.
        #[source]
        error: control::Error,
    },
    /// It neither runs nor has ended.
    #[error("container {0} is being started: its files cannot be got at yet")]
    Starting(String),
    /// They cannot be copied.
    #[error(transparent)]
    Copy(#[from] CopyFailure),
    /// Its guest sent a part of them.
    #[error(
        "the archive of container {0} broke off, as when that ends: try again once it has, unless --rm removes it"
    )]
    Cut(String),
    /// No machine could be started to read them.
    #[error("cannot start a virtual machine that reads the container's files")]
    Machine(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It cannot be made to stand still.
    #[error("cannot pause container {name} to commit it")]
    Pause {
        /// The container.
        name: String,
        /// What its supervisor said.
        #[source]
        error: control::Error,
    },
    /// A directory could not be made, or a thread not started.
    #[error("cannot read the files of the container")]
    Read(#[source] io::Error),
}

impl FilesError {
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Pause { .. } => Some("--pause=false commits it while it runs"),
            Self::Copy(CopyFailure::ReadOnly) => Some("--read-only was given when it was made"),
            Self::Busy { .. }
            | Self::Copy(_)
            | Self::Cut(_)
            | Self::Machine(_)
            | Self::Read(_)
            | Self::Starting(_) => None,
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
    /// Whether the container, if it runs, is to stand still meanwhile.
    pub pauses: bool,
}

/// A container's files as a tar stream. A container that has ended is not removed meanwhile.
#[derive(Debug)]
pub struct Export(Files);

#[derive(Debug)]
enum Files {
    /// Read on the host: container mode.
    Host { archive: Archive, _stays: Option<Owned> },
    /// Read in a guest: VM mode.
    Guest(Box<GuestFiles>),
}

impl io::Read for Export {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Files::Host { archive, .. } => archive.read(buffer),
            Files::Guest(files) => files.read(buffer),
        }
    }
}

impl Engine {
    /// A container's whole root file system as a tar stream, while it runs or when it has ended.
    ///
    /// # Errors
    /// [`Error::Files`], [`Error::Store`].
    pub fn export(&self, container: &str) -> Result<Export, Error> {
        let (record, _) = self.directory(container)?;
        let files = self.files(&record, Extent::All)?;
        self.store.journal.container(&record, "export", &[]);
        Ok(files)
    }

    /// Makes an image of a container's own image and of what the container has changed.
    ///
    /// # Errors
    /// [`Error::Files`], [`Error::Store`], [`Error::Image`].
    pub fn commit(&self, commit: &Commit, progress: &mut dyn FnMut(Progress)) -> Result<Digest, Error> {
        let (record, _) = self.directory(&commit.container)?;
        let hold = if commit.pauses { self.hold(&record)? } else { None };
        let changes = self.files(&record, Extent::Changes)?;
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
        let made = self.images()?.make(&new, layer, progress);
        if let Some(hold) = hold {
            hold.release();
        }
        let id = made?;
        let image_id = id.to_string();
        let reference = commit.reference.as_ref().map(Reference::familiar);
        let more = [
            ("comment", commit.comment.as_deref().unwrap_or_default()),
            ("imageID", &image_id),
            ("imageRef", reference.as_deref().unwrap_or_default()),
        ];
        self.store.journal.container(&record, "commit", &more);
        Ok(id)
    }

    fn files(&self, record: &Record, extent: Extent) -> Result<Export, Error> {
        Ok(Export(match record.isolation {
            Isolation::Container => Files::Host {
                _stays: self.own(&record.id)?,
                archive: self.archive(record, extent)?,
            },
            Isolation::Vm => Files::Guest(Box::new(self.guest_files(record, extent)?)),
        }))
    }

    /// The parts of a container's files on the host, whose directories are made where there is none yet.
    fn rootfs(&self, record: &Record) -> Result<Rootfs, FilesError> {
        let bundle = self.layout().containers().join(&record.id);
        let directory = |name: &str| -> Result<PathBuf, FilesError> {
            let path = bundle.join(name);
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(FilesError::Read(error)),
                _ => Ok(path),
            }
        };
        let layers = record.layers.iter();
        Ok(Rootfs {
            layers: layers.map(|layer| Layer::File(layer.path.clone())).collect(),
            upper: directory("upper")?,
            work: directory("work")?,
            staging: directory("rootfs")?,
        })
    }

    fn archive(&self, record: &Record, extent: Extent) -> Result<Archive, Error> {
        let extent = match extent {
            Extent::All => rvm_isolation::Extent::All,
            Extent::Changes => rvm_isolation::Extent::Changes,
            Extent::Diff => rvm_isolation::Extent::Diff,
        };
        Ok(rvm_isolation::archive(self.rootfs(record)?, extent).map_err(FilesError::Read)?)
    }
}
