//! The operations behind `rvm volume`, and what else has to know which container uses a volume.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Error as VolumeError, Volume, Volumes};
use crate::engine::{Engine, Error};
use crate::images::allocated;
use crate::record::Record;
use crate::store::{self, Store};

/// A volume, and who uses it.
#[derive(Debug, Clone)]
pub struct VolumeUsage {
    /// What is on record of it.
    pub volume: Volume,
    /// What is mounted of it.
    pub mountpoint: PathBuf,
    /// IDs of containers that refer to it, running or not.
    pub users: Vec<String>,
}

impl VolumeUsage {
    /// Bytes that it takes on the disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        allocated(self.mountpoint.clone())
    }
}

/// What was removed.
#[derive(Debug, Clone, Default)]
pub struct PrunedVolumes {
    /// Names.
    pub names: Vec<String>,
    /// Bytes that they took.
    pub freed_bytes: u64,
}

impl Engine {
    pub(crate) fn volumes(&self) -> Result<Volumes, Error> {
        Ok(Volumes::open(self.layout())?)
    }

    /// Makes a volume, under a generated name where none is given. One that is there already stays as it is.
    ///
    /// # Errors
    /// [`Error::Volume`].
    pub fn create_volume(
        &self,
        name: Option<&str>,
        labels: BTreeMap<String, String>,
    ) -> Result<Volume, Error> {
        let volumes = self.volumes()?;
        let _stay = volumes.stay()?;
        Ok(match name {
            Some(name) => volumes.create(name, labels)?,
            None => volumes.create_anonymous(labels)?,
        })
    }

    /// All volumes, by name.
    ///
    /// # Errors
    /// [`Error::Volume`], [`Error::Store`].
    pub fn list_volumes(&self) -> Result<Vec<VolumeUsage>, Error> {
        let records = self.containers()?;
        let volumes = self.volumes()?;
        let usage = |volume: Volume| usage(&volumes, &records, volume);
        Ok(volumes.list()?.into_iter().map(usage).collect())
    }

    /// One volume.
    ///
    /// # Errors
    /// [`Error::Volume`], [`Error::Store`].
    pub fn volume(&self, name: &str) -> Result<VolumeUsage, Error> {
        let records = self.containers()?;
        let volumes = self.volumes()?;
        let volume = volumes.find(name)?;
        Ok(usage(&volumes, &records, volume))
    }

    /// Removes a volume that no container refers to.
    ///
    /// # Errors
    /// [`Error::Volume`], [`Error::Store`].
    pub fn remove_volume(&self, name: &str) -> Result<(), Error> {
        // What dead containers left is put right before the lock is taken.
        self.containers()?;
        let volumes = self.volumes()?;
        let _alone = volumes.alone()?;
        let volume = volumes.find(name)?;
        let users = users(&self.store().records()?, name);
        if users.is_empty() {
            return Ok(volumes.take_away(&volume)?);
        }
        let name = name.to_owned();
        Err(VolumeError::InUse { name, users }.into())
    }

    /// Removes volumes that no container refers to, and that are chosen.
    ///
    /// # Errors
    /// [`Error::Volume`], [`Error::Store`].
    pub fn prune_volumes(&self, is_chosen: &dyn Fn(&Volume) -> bool) -> Result<PrunedVolumes, Error> {
        self.containers()?;
        let volumes = self.volumes()?;
        let _alone = volumes.alone()?;
        let records = self.store().records()?;
        let mut pruned = PrunedVolumes::default();
        for volume in volumes.list()? {
            if !is_chosen(&volume) || !users(&records, &volume.name).is_empty() {
                continue;
            }
            let bytes = allocated(volumes.data(&volume.name));
            volumes.take_away(&volume)?;
            pruned.freed_bytes = pruned.freed_bytes.saturating_add(bytes);
            pruned.names.push(volume.name);
        }
        Ok(pruned)
    }
}

impl Volumes {
    /// Removes the volumes without a name of a container that is about to be removed, unless others use them too.
    pub(crate) fn remove_of(&self, store: &Store, record: &Record) -> Result<(), store::Error> {
        if record.mounts.volumes().next().is_none() {
            return Ok(());
        }
        let _alone = self.alone()?;
        let others = store.records()?;
        for point in record.mounts.volumes() {
            let volume = match self.find(&point.name) {
                Ok(volume) if volume.is_anonymous() => volume,
                Ok(_) | Err(VolumeError::NotFound(_)) => continue,
                Err(error) => return Err(error.into()),
            };
            let users = users(&others, &volume.name);
            if users.iter().all(|id| *id == record.id) {
                self.take_away(&volume)?;
            }
        }
        Ok(())
    }
}

fn usage(volumes: &Volumes, records: &[Record], volume: Volume) -> VolumeUsage {
    VolumeUsage {
        mountpoint: volumes.data(&volume.name),
        users: users(records, &volume.name),
        volume,
    }
}

fn users(records: &[Record], name: &str) -> Vec<String> {
    let users = records.iter().filter(|record| record.mounts.has_volume(name));
    users.map(|record| record.id.clone()).collect()
}
