//! The running container's record. Several threads of its supervisor change it; what they change is on disk before they
//! go on.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use oci_spec::runtime::Spec;

use crate::record::{Exited, Record};
use crate::store::{self, Owned, Store};

/// A record, and the right to change it.
pub(super) struct Book {
    store: Store,
    owned: Owned,
    record: Mutex<Record>,
}

impl Book {
    /// Reads the record of the container whose lock `owned` is.
    pub(super) fn open(store: Store, owned: Owned) -> Result<Self, store::Error> {
        let record = Mutex::new(owned.read_record()?);
        Ok(Self { store, owned, record })
    }

    /// The containers.
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// What is on record now.
    pub(super) fn record(&self) -> Record {
        self.lock().clone()
    }

    /// The container's directory.
    pub(super) fn directory(&self) -> &Path {
        self.owned.directory()
    }

    /// The directory of its sockets.
    pub(super) fn run_directory(&self) -> PathBuf {
        self.store.run_directory(&self.lock().id)
    }

    /// Its specification.
    pub(super) fn spec(&self) -> Result<Spec, store::Error> {
        self.owned.read_spec()
    }

    /// Replaces the specification.
    pub(super) fn write_spec(&self, spec: &Spec) -> Result<(), store::Error> {
        self.owned.write_spec(spec)
    }

    /// Changes the record.
    pub(super) fn update(&self, change: impl FnOnce(&mut Record)) -> Result<(), store::Error> {
        let mut record = self.lock();
        change(&mut record);
        self.owned.write_record(&record)
    }

    /// Tells what has happened to the container, in Docker's word for it.
    pub(super) fn tell(&self, action: &str, more: &[(&str, &str)]) {
        self.store.journal.container(&self.record(), action, more);
    }

    /// Tells of the container's end.
    pub(super) fn tell_end(&self, exited: &Exited) {
        self.store.journal.died(&self.record(), exited);
    }

    /// Gives the container another name.
    pub(super) fn rename(&self, name: &str) -> Result<(), store::Error> {
        let mut record = self.lock();
        self.store.rename(&self.owned, &mut record, name)?;
        self.store.rename_on_networks(&record.id, name)
    }

    /// Removes what is only there while the container runs, and the container where it is not to stay.
    pub(super) fn close(&self) -> Result<(), store::Error> {
        let record = self.lock();
        if record.auto_remove {
            return self.store.remove(&self.owned, &record, true);
        }
        self.owned.write_record(&record)?;
        self.store.clean_up(&record.id)
    }

    /// Removes what is only there while the container runs, and keeps its lock.
    pub(super) fn rest(&self) -> Result<(), store::Error> {
        self.store.clean_up(&self.lock().id)
    }

    /// Another handle on the container's lock.
    pub(super) fn another_lock(&self) -> Result<File, store::Error> {
        self.owned.another_lock()
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        // A panic aborts the process.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
