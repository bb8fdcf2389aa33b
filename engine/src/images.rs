//! Operations on all images, which have to know what containers use.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use rustix::fs::FlockOperation;
use rvm_images::{Digest, Removed, Usage};

use crate::engine::{Engine, Error};
use crate::record::Record;

/// What an installation takes on the disk.
#[derive(Debug, Clone)]
pub struct DiskUsage {
    /// The images.
    pub images: Usage,
    /// The containers, newest first.
    pub containers: Vec<ContainerUsage>,
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
    /// Removes the images without a name, or with `all` every one, that no container uses and of which `is_chosen` says
    /// so when told the moment that they were made (RFC 3339).
    ///
    /// # Errors
    /// [`Error::Image`], [`Error::Store`].
    pub fn prune_images(
        &self,
        all: bool,
        is_chosen: &dyn Fn(Option<&str>) -> bool,
    ) -> Result<Removed, Error> {
        let _no_new_users = self.lock_images(FlockOperation::LockExclusive)?;
        let users = self.containers()?;
        Ok(self.images()?.prune(all, is_chosen, &|id| is_used(&users, id))?)
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
            containers: containers.collect(),
        })
    }
}

fn is_used(users: &[Record], id: &Digest) -> bool {
    let id = id.to_string();
    users.iter().any(|record| record.image.id == id)
}

/// Bytes that a tree takes on the disk. What vanishes meanwhile, and what lies too deep to have a path, is not counted.
fn allocated(top: PathBuf) -> u64 {
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
