//! The containers of one root directory, and who owns each.
//!
//! A container is owned by whoever holds the `flock` of its directory: first the command that makes it, then, through
//! the same open file description, its supervisor. The kernel lets go of the lock when the last holder dies, however
//! it dies; a container that claims to run and has no owner is therefore dead, and [`Store::entries`] cleans up
//! after it before anybody sees it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;

use crate::events::Journal;
use crate::record::{Exited, Record, State, VERSION};
use crate::volumes::Volumes;
use crate::{Layout, cgroup, json, layout, names, path, tree};

/// Tries at finding a generated name that is free.
const NAME_TRIES: usize = 64;

/// The containers of one root directory.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) layout: Layout,
    pub(crate) journal: Journal,
}

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the store could not be used.
    #[error(transparent)]
    Json(#[from] json::Error),
    /// An operation on a path failed.
    #[error(transparent)]
    Path(#[from] path::Error),
    /// The record was written by a newer rvm.
    #[error("container {0} was made by a newer rvm")]
    Newer(String),
    /// The name is taken.
    #[error("the container name \"{0}\" is already in use")]
    NameTaken(String),
    /// The name could be mistaken for a path or an option.
    #[error(
        "\"{0}\" cannot name a container: use letters, digits, '_', '.' and '-', at least two characters"
    )]
    NameInvalid(String),
    /// The container has this name.
    #[error("the container is called \"{0}\" already")]
    SameName(String),
    /// The container could not be taken off its networks, or renamed there.
    #[error("cannot change the networks of container {0}")]
    Networks(String, #[source] Box<rvm_network::Error>),
    /// Nothing has this name or ID.
    #[error("no such container: {0}")]
    NotFound(String),
    /// Several IDs begin with this.
    #[error("several containers have an ID that begins with {0}")]
    Ambiguous(String),
    /// Its volumes could not be removed.
    #[error(transparent)]
    Volume(#[from] crate::volumes::Error),
    /// The container's cgroup could not be removed.
    #[error("cannot clean up after container {id}")]
    CleanUp {
        /// Its ID.
        id: String,
        /// The cause.
        #[source]
        source: cgroup::Error,
    },
}

/// What names and counts as a container for a caller that has not made one yet.
#[derive(Debug)]
pub struct Reservation {
    /// A fresh ID.
    pub id: String,
    /// The name asked for, or a generated one.
    pub name: String,
    /// The directory and its lock.
    pub owned: Owned,
}

/// A container's directory, with its lock held.
#[derive(Debug)]
pub struct Owned {
    directory: PathBuf,
    lock: File,
}

impl Owned {
    /// Takes over a lock that was inherited as an open file.
    #[must_use]
    pub fn inherited(directory: PathBuf, lock: File) -> Self {
        Self { directory, lock }
    }

    /// The container's directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The locked open file; whoever has it open owns the container.
    #[must_use]
    pub fn into_lock(self) -> File {
        self.lock
    }

    /// Another handle on the locked open file.
    ///
    /// # Errors
    /// [`Error::Path`] where there are no more descriptors.
    pub fn another_lock(&self) -> Result<File, Error> {
        let lock = self.lock.try_clone();
        Ok(lock.map_err(path::failed("keep the lock of", &self.directory))?)
    }

    /// Replaces the record.
    ///
    /// # Errors
    /// [`Error::Json`].
    pub fn write_record(&self, record: &Record) -> Result<(), Error> {
        Ok(json::write(&self.directory.join("container.json"), record)?)
    }

    /// Reads the record.
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::Newer`].
    pub fn read_record(&self) -> Result<Record, Error> {
        read_record(&self.directory)
    }

    /// Writes the bundle's `config.json`.
    ///
    /// # Errors
    /// [`Error::Json`].
    pub fn write_spec(&self, spec: &Spec) -> Result<(), Error> {
        Ok(json::write(&self.directory.join("config.json"), spec)?)
    }

    /// Reads the bundle's `config.json`.
    ///
    /// # Errors
    /// [`Error::Json`].
    pub fn read_spec(&self) -> Result<Spec, Error> {
        Ok(json::read(&self.directory.join("config.json"))?)
    }
}

impl Store {
    /// The containers below `layout`'s root.
    #[must_use]
    pub fn new(layout: Layout) -> Self {
        let journal = Journal::new(&layout);
        Self { layout, journal }
    }

    /// A container's directory.
    #[must_use]
    pub fn directory(&self, id: &str) -> PathBuf {
        self.layout.containers().join(id)
    }

    /// The directory of a running container's sockets.
    #[must_use]
    pub fn run_directory(&self, id: &str) -> PathBuf {
        self.layout.run().join(&id[..id.len().min(names::SHORT_ID)])
    }

    /// The directory of the sockets of a machine that reads a container's files. It says nothing of whether the container
    /// runs.
    #[must_use]
    pub fn files_directory(&self, id: &str) -> PathBuf {
        self.run_directory(id).with_extension("files")
    }

    /// Makes an empty, locked container directory under a new ID and reserves its name.
    ///
    /// # Errors
    /// [`Error::NameTaken`], [`Error::NameInvalid`], or [`Error::Path`].
    pub fn reserve(&self, name: Option<&str>) -> Result<Reservation, Error> {
        if let Some(name) = name.filter(|name| !names::is_valid_name(name)) {
            return Err(Error::NameInvalid(name.to_owned()));
        }
        let id = names::new_id();
        let directory = self.directory(&id);
        // Shared: whoever removes half-made directories takes it exclusively, and so never sees one without its lock.
        let guard = self.guard(FlockOperation::LockShared)?;
        layout::create_private(&directory).map_err(path::failed("create", &directory))?;
        // Another command may look at the new directory for a moment.
        let owned = Self::wait_to_own(&directory)?;
        drop(guard);
        match self.reserve_name(&id, name) {
            Ok(name) => Ok(Reservation { id, name, owned }),
            Err(error) => {
                remove_tree(&directory)?;
                Err(error)
            }
        }
    }

    /// Gives up a reservation that came to nothing.
    ///
    /// # Errors
    /// [`Error::Path`].
    pub fn discard(&self, reservation: &Reservation) -> Result<(), Error> {
        self.release_names_of(reservation.owned.directory())?;
        remove_tree(reservation.owned.directory())
    }

    /// Gives a container another name: on its record and as its link, with the caller's lock on the container.
    ///
    /// # Errors
    /// [`Error::NameInvalid`], [`Error::SameName`], [`Error::NameTaken`], [`Error::Path`], [`Error::Json`].
    pub fn rename(&self, owned: &Owned, record: &mut Record, name: &str) -> Result<(), Error> {
        if !names::is_valid_name(name) {
            return Err(Error::NameInvalid(name.to_owned()));
        }
        if record.name == name {
            return Err(Error::SameName(name.to_owned()));
        }
        let link = |name: &str| self.layout.names().join(name);
        // Whether somebody has the name is found out first: it may take the guard for putting a dead one right.
        if link(name).is_symlink() && !self.release_stale_name(&link(name))? {
            return Err(Error::NameTaken(name.to_owned()));
        }
        // With it, whoever finds a link whose container has another name on record knows that a renaming was cut short.
        let _guard = self.guard(FlockOperation::LockExclusive)?;
        match symlink(&record.id, link(name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::NameTaken(name.to_owned()));
            }
            made => made.map_err(path::failed("create", &link(name)))?,
        }
        let old = std::mem::replace(&mut record.name, name.to_owned());
        owned.write_record(record)?;
        self.journal
            .container(record, "rename", &[("oldName", &format!("/{old}"))]);
        Ok(fs::remove_file(link(&old)).map_err(path::failed("remove", &link(&old)))?)
    }

    fn reserve_name(&self, id: &str, wanted: Option<&str>) -> Result<String, Error> {
        let mut candidate = wanted.map_or_else(names::new_name, str::to_owned);
        for _ in 0..NAME_TRIES {
            let link = self.layout.names().join(&candidate);
            match symlink(id, &link) {
                Ok(()) => return Ok(candidate),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if self.release_stale_name(&link)? {
                        continue;
                    }
                    if wanted.is_some() {
                        break;
                    }
                    candidate = names::new_name();
                }
                Err(source) => return Err(path::failed("create", &link)(source).into()),
            }
        }
        Err(Error::NameTaken(candidate))
    }

    /// Removes a name whose container is gone, dead and to be removed, or has another name. Says whether the name may be
    /// tried again.
    fn release_stale_name(&self, link: &Path) -> Result<bool, Error> {
        let Ok(target) = fs::read_link(link) else {
            return Ok(true);
        };
        let directory = self.layout.containers().join(&target);
        self.examine(&directory)?;
        let _guard = self.guard(FlockOperation::LockExclusive)?;
        // A new container has its name before its record; one that is renamed is so under the guard.
        let has_it = match read_record(&directory) {
            Ok(record) => link.file_name() == Some(record.name.as_ref()),
            Err(_) => directory.exists(),
        };
        if has_it {
            return Ok(false);
        }
        match fs::remove_file(link) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(path::failed("remove", link)(source).into())
            }
            _ => Ok(true),
        }
    }

    /// Every container, newest first, after the dead ones have been cleaned up.
    ///
    /// # Errors
    /// [`Error::Path`] where the directory cannot be listed; [`Error::CleanUp`] and [`Error::Json`] from repairs.
    pub fn entries(&self) -> Result<Vec<Record>, Error> {
        let mut records = self.examine_all(|_| true)?;
        records.sort_by_key(|record| std::cmp::Reverse(record.created_ms));
        Ok(records)
    }

    /// Every container as it is on record, whether or not that is still so.
    pub(crate) fn records(&self) -> Result<Vec<Record>, Error> {
        let directory = self.layout.containers();
        let mut records = Vec::new();
        for entry in fs::read_dir(&directory).map_err(path::failed("list", &directory))? {
            let entry = entry.map_err(path::failed("list", &directory))?;
            match read_record(&entry.path()) {
                // It is being made or removed.
                Err(Error::Json(error)) if error.is_not_found() => {}
                record => records.push(record?),
            }
        }
        Ok(records)
    }

    /// The containers whose ID is wanted.
    fn examine_all(&self, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<Record>, Error> {
        let directory = self.layout.containers();
        let mut records = Vec::new();
        for entry in fs::read_dir(&directory).map_err(path::failed("list", &directory))? {
            let entry = entry.map_err(path::failed("list", &directory))?;
            let id = entry.file_name();
            let id = id.to_string_lossy();
            if !id.starts_with('.') && is_wanted(&id) {
                records.extend(self.examine(&entry.path())?);
            }
        }
        Ok(records)
    }

    /// Reads the specification of a container that others may own: it is only ever replaced as a whole.
    ///
    /// # Errors
    /// [`Error::Json`].
    pub fn read_spec(&self, id: &str) -> Result<Spec, Error> {
        Ok(json::read(&self.directory(id).join("config.json"))?)
    }

    /// Finds a container by name, ID or unique beginning of an ID.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`], and what [`Store::entries`] returns.
    pub fn find(&self, wanted: &str) -> Result<Record, Error> {
        // The others are none of this command's business, however many there are.
        if names::is_valid_name(wanted) {
            let named = fs::read_link(self.layout.names().join(wanted)).ok();
            for id in [Some(PathBuf::from(wanted)), named].into_iter().flatten() {
                match self.examine(&self.layout.containers().join(id))? {
                    Some(record) if record.name == wanted || record.id == wanted => return Ok(record),
                    _ => {}
                }
            }
        }
        let mut by_id = self.examine_all(|id| !wanted.is_empty() && id.starts_with(wanted))?;
        if by_id.is_empty() {
            // A removal that was killed may have taken the name and left the rest.
            by_id = self.entries()?;
            by_id.retain(|record| record.name == wanted);
        }
        match by_id.len() {
            0 => Err(Error::NotFound(wanted.to_owned())),
            1 => by_id.pop().ok_or_else(|| Error::NotFound(wanted.to_owned())),
            _ => Err(Error::Ambiguous(wanted.to_owned())),
        }
    }

    /// Reads one container, first putting right what a dead owner left. `None` where that means removing it, and
    /// where another command removes it at the same time.
    fn examine(&self, directory: &Path) -> Result<Option<Record>, Error> {
        let owned = match Self::try_own(directory) {
            Ok(owned) => owned,
            Err(Error::Path(path::Error { source, .. })) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let record = match read_record(directory) {
            Ok(record) => record,
            Err(Error::Json(error)) if error.is_not_found() => {
                return self.remove_half_made(directory, owned).map(|()| None);
            }
            Err(error) => return Err(error),
        };
        match owned {
            Some(owned) => self.repair(&owned, record),
            None => Ok(Some(record)),
        }
    }

    /// Removes a directory whose maker was killed before it wrote a record.
    fn remove_half_made(&self, directory: &Path, owned: Option<Owned>) -> Result<(), Error> {
        drop(owned);
        let _guard = self.guard(FlockOperation::LockExclusive)?;
        // Under the guard nobody is between making a directory and locking it, so a free lock means a dead maker.
        match Self::try_own(directory) {
            Ok(Some(owned)) if !directory.join("container.json").exists() => {
                self.release_names_of(directory)?;
                remove_tree(owned.directory())
            }
            Ok(_) => Ok(()),
            Err(Error::Path(path::Error { source, .. })) if source.kind() == io::ErrorKind::NotFound => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn release_names_of(&self, directory: &Path) -> Result<(), Error> {
        let names = self.layout.names();
        for entry in fs::read_dir(&names)
            .map_err(path::failed("list", &names))?
            .flatten()
        {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            if Some(target.as_os_str()) == directory.file_name() {
                fs::remove_file(entry.path()).map_err(path::failed("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// Puts right what a supervisor left that was killed: at any moment between making its sockets' directory, the first
    /// thing it does, and removing that, the last. `record` was read with the lock held.
    fn repair(&self, owned: &Owned, mut record: Record) -> Result<Option<Record>, Error> {
        let on_record = record.state.clone();
        // A command was killed while it read the files.
        let files = self.files_directory(&record.id);
        if files.exists() {
            remove_tree(&files)?;
        }
        if self.run_directory(&record.id).exists() || cgroup::exists(&record.id) {
            self.clean_up(&record.id)?;
            if !matches!(record.state, State::Exited(_)) {
                record.state = State::Exited(Exited::killed(&record.state));
            }
        } else if record.state.is_active() {
            // The machine was restarted.
            record.state = State::Exited(Exited::killed(&record.state));
        }
        let changed = on_record != record.state;
        // One that was never started waits for that, as Docker has it.
        let goes = record.auto_remove && record.state != State::Created;
        if changed && !goes {
            match owned.write_record(&record) {
                // The truth is shown all the same, and put on record by a later command.
                Err(Error::Json(error)) if error.is_no_room() => return Ok(Some(record)),
                written => written?,
            }
        }
        if changed {
            self.tell_killed(&record, &on_record);
        }
        if goes {
            self.remove(owned, &record, true)?;
            return Ok(None);
        }
        Ok(Some(record))
    }

    /// Tells that a container was killed which was in the state `before`.
    fn tell_killed(&self, record: &Record, before: &State) {
        // One that waits to be started again has died before.
        if !matches!(before, State::Restarting { .. }) {
            self.journal.died(record, &Exited::killed(before));
        }
    }

    /// Ends whatever may still live of a container that nobody owns: its processes, cgroups and sockets.
    ///
    /// # Errors
    /// [`Error::CleanUp`], [`Error::Path`].
    pub fn clean_up(&self, id: &str) -> Result<(), Error> {
        cgroup::remove(id).map_err(|source| Error::CleanUp {
            id: id.to_owned(),
            source,
        })?;
        self.leave_networks(id)?;
        remove_tree(&self.files_directory(id))?;
        remove_tree(&self.run_directory(id))
    }

    /// Takes the lock of a container that nobody owns; `None` where somebody does.
    ///
    /// # Errors
    /// [`Error::Path`], also where the directory is gone.
    pub fn own(&self, id: &str) -> Result<Option<Owned>, Error> {
        Self::try_own(&self.directory(id))
    }

    fn wait_to_own(directory: &Path) -> Result<Owned, Error> {
        let lock = File::open(directory).map_err(path::failed("open", directory))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| path::failed("lock", directory)(error.into()))?;
        Ok(Owned {
            directory: directory.to_owned(),
            lock,
        })
    }

    fn try_own(directory: &Path) -> Result<Option<Owned>, Error> {
        let lock = File::open(directory).map_err(path::failed("open", directory))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Owned {
                directory: directory.to_owned(),
                lock,
            })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(path::failed("lock", directory)(error.into()).into()),
        }
    }

    /// Removes everything of a container that has ended. The directory goes last: as long as it exists, the next
    /// command finds what remains to be cleaned up. With `volumes`, those volumes go too that were made for it without a name.
    ///
    /// # Errors
    /// [`Error::CleanUp`], [`Error::Path`], [`Error::Volume`].
    pub fn remove(&self, owned: &Owned, record: &Record, volumes: bool) -> Result<(), Error> {
        self.clean_up(&record.id)?;
        if volumes {
            Volumes::open(&self.layout)?.remove_of(self, record)?;
        }
        if record.state.is_active() {
            self.tell_killed(record, &record.state);
        }
        let link = self.layout.names().join(&record.name);
        if fs::read_link(&link).is_ok_and(|target| target.as_os_str() == record.id.as_str()) {
            fs::remove_file(&link).map_err(path::failed("remove", &link))?;
        }
        remove_tree(owned.directory())?;
        self.journal.container(record, "destroy", &[]);
        Ok(())
    }

    fn guard(&self, operation: FlockOperation) -> Result<File, Error> {
        let directory = self.layout.containers();
        let file = File::open(&directory).map_err(path::failed("open", &directory))?;
        flock(&file, operation).map_err(|error| path::failed("lock", &directory)(error.into()))?;
        Ok(file)
    }
}

fn read_record(directory: &Path) -> Result<Record, Error> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
        id: String,
    }
    let path = directory.join("container.json");
    let text = json::text(&path)?;
    let versioned: Versioned = json::parse(&path, &text)?;
    if versioned.version > VERSION {
        return Err(Error::Newer(versioned.id));
    }
    Ok(json::parse(&path, &text)?)
}

fn remove_tree(directory: &Path) -> Result<(), Error> {
    Ok(tree::remove(directory).map_err(path::failed("remove", directory))?)
}

#[cfg(test)]
mod tests;
