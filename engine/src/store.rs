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

use crate::record::{Exited, Record, State, VERSION};
use crate::{Layout, cgroup, json, layout, names, tree};

/// Tries at finding a generated name that is free.
const NAME_TRIES: usize = 64;

/// The containers of one root directory.
#[derive(Debug, Clone)]
pub struct Store {
    layout: Layout,
}

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the store could not be used.
    #[error(transparent)]
    Json(#[from] json::Error),
    /// An operation on a path failed.
    #[error("cannot {action} {path}")]
    Path {
        /// A verb.
        action: &'static str,
        /// What it was applied to.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
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
    /// Nothing has this name or ID.
    #[error("no such container: {0}")]
    NotFound(String),
    /// Several IDs begin with this.
    #[error("several containers have an ID that begins with {0}")]
    Ambiguous(String),
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
        Self { layout }
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
        layout::create_private(&directory).map_err(path_error("create", &directory))?;
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
                Err(source) => return Err(path_error("create", &link)(source)),
            }
        }
        Err(Error::NameTaken(candidate))
    }

    /// Removes a name whose container is gone or dead and to be removed. Says whether the name may be tried again.
    fn release_stale_name(&self, link: &Path) -> Result<bool, Error> {
        let Ok(target) = fs::read_link(link) else {
            return Ok(true);
        };
        let directory = self.layout.containers().join(&target);
        self.examine(&directory)?;
        if directory.exists() {
            return Ok(false);
        }
        let _guard = self.guard(FlockOperation::LockExclusive)?;
        match fs::remove_file(link) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(path_error("remove", link)(source))
            }
            _ => Ok(true),
        }
    }

    /// Every container, newest first, after the dead ones have been cleaned up.
    ///
    /// # Errors
    /// [`Error::Path`] where the directory cannot be listed; [`Error::CleanUp`] and [`Error::Json`] from repairs.
    pub fn entries(&self) -> Result<Vec<Record>, Error> {
        let directory = self.layout.containers();
        let mut records = Vec::new();
        for entry in fs::read_dir(&directory).map_err(path_error("list", &directory))? {
            let entry = entry.map_err(path_error("list", &directory))?;
            if !entry.file_name().to_string_lossy().starts_with('.') {
                records.extend(self.examine(&entry.path())?);
            }
        }
        records.sort_by_key(|record| std::cmp::Reverse(record.created_ms));
        Ok(records)
    }

    /// Reads the specification of a container that others may own: it is written once.
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
        let mut by_id = Vec::new();
        for record in self.entries()? {
            if record.name == wanted || record.id == wanted {
                return Ok(record);
            }
            if !wanted.is_empty() && record.id.starts_with(wanted) {
                by_id.push(record);
            }
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
            Err(Error::Path { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
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
            Err(Error::Path { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn release_names_of(&self, directory: &Path) -> Result<(), Error> {
        let names = self.layout.names();
        for entry in fs::read_dir(&names)
            .map_err(path_error("list", &names))?
            .flatten()
        {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            if Some(target.as_os_str()) == directory.file_name() {
                fs::remove_file(entry.path()).map_err(path_error("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// Puts right what a supervisor left that was killed: at any moment between making its sockets' directory, the first
    /// thing it does, and removing that, the last.
    fn repair(&self, owned: &Owned, mut record: Record) -> Result<Option<Record>, Error> {
        if self.run_directory(&record.id).exists() || cgroup::exists(&record.id) {
            self.clean_up(&record.id)?;
            if !matches!(record.state, State::Exited(_)) {
                record.state = State::Exited(Exited::killed(&record.state));
            }
        } else if let State::Running { .. } = record.state {
            // The machine was restarted.
            record.state = State::Exited(Exited::killed(&record.state));
        }
        if record.auto_remove {
            self.remove(owned, &record)?;
            return Ok(None);
        }
        if owned.read_record()?.state != record.state {
            owned.write_record(&record)?;
        }
        Ok(Some(record))
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
        let lock = File::open(directory).map_err(path_error("open", directory))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| path_error("lock", directory)(error.into()))?;
        Ok(Owned {
            directory: directory.to_owned(),
            lock,
        })
    }

    fn try_own(directory: &Path) -> Result<Option<Owned>, Error> {
        let lock = File::open(directory).map_err(path_error("open", directory))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Owned {
                directory: directory.to_owned(),
                lock,
            })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(path_error("lock", directory)(error.into())),
        }
    }

    /// Removes everything of a container that has ended. The directory goes last: as long as it exists, the next
    /// command finds what remains to be cleaned up.
    ///
    /// # Errors
    /// [`Error::CleanUp`], [`Error::Path`].
    pub fn remove(&self, owned: &Owned, record: &Record) -> Result<(), Error> {
        self.clean_up(&record.id)?;
        let link = self.layout.names().join(&record.name);
        if fs::read_link(&link).is_ok_and(|target| target.as_os_str() == record.id.as_str()) {
            fs::remove_file(&link).map_err(path_error("remove", &link))?;
        }
        remove_tree(owned.directory())
    }

    fn guard(&self, operation: FlockOperation) -> Result<File, Error> {
        let directory = self.layout.containers();
        let file = File::open(&directory).map_err(path_error("open", &directory))?;
        flock(&file, operation).map_err(|error| path_error("lock", &directory)(error.into()))?;
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
    let versioned: Versioned = json::read(&path)?;
    if versioned.version > VERSION {
        return Err(Error::Newer(versioned.id));
    }
    Ok(json::read(&path)?)
}

fn path_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Path { action, path, source }
}

fn remove_tree(directory: &Path) -> Result<(), Error> {
    tree::remove(directory).map_err(path_error("remove", directory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{ImageReference, Isolation, now_ms};

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(
            Some(directory.path().join("root")),
            Some(directory.path().join("run")),
        )
        .unwrap();
        (directory, Store::new(layout))
    }

    fn record(reservation: &Reservation, auto_remove: bool, state: State) -> Record {
        Record {
            version: VERSION,
            id: reservation.id.clone(),
            name: reservation.name.clone(),
            isolation: Isolation::Container,
            image: ImageReference {
                id: "sha256:0".into(),
                name: "test".into(),
            },
            layers: Vec::new(),
            command: vec!["true".into()],
            created_ms: now_ms(),
            auto_remove,
            open_stdin: false,
            machine: None,
            state,
        }
    }

    fn make(store: &Store, name: &str, auto_remove: bool, state: State) -> (String, Owned) {
        let reservation = store.reserve(Some(name)).unwrap();
        let record = record(&reservation, auto_remove, state);
        reservation.owned.write_record(&record).unwrap();
        (reservation.id, reservation.owned)
    }

    #[test]
    fn a_name_is_taken_until_its_container_is_removed() {
        let (_directory, store) = store();
        let (id, owned) = make(&store, "web", false, State::Created);
        assert!(matches!(store.reserve(Some("web")), Err(Error::NameTaken(_))));
        assert!(matches!(store.reserve(Some("../x")), Err(Error::NameInvalid(_))));
        let record = store.find("web").unwrap();
        assert_eq!(record.id, id);
        store.remove(&owned, &record).unwrap();
        assert!(matches!(store.find("web"), Err(Error::NotFound(_))));
        store.reserve(Some("web")).unwrap();
    }

    #[test]
    fn a_failed_reservation_leaves_nothing() {
        let (_directory, store) = store();
        let (_, _owned) = make(&store, "web", false, State::Created);
        assert!(store.reserve(Some("web")).is_err());
        assert_eq!(fs::read_dir(store.layout.containers()).unwrap().count(), 1);
    }

    #[test]
    fn containers_are_found_by_unique_beginnings() {
        let (_directory, store) = store();
        let (first, _a) = make(&store, "one", false, State::Created);
        let (_, _b) = make(&store, "two", false, State::Created);
        assert_eq!(store.find(&first[..SHORT]).unwrap().name, "one");
        assert!(matches!(store.find(""), Err(Error::NotFound(_))));
    }
    const SHORT: usize = names::SHORT_ID;

    #[test]
    fn a_half_made_container_disappears_with_its_name() {
        let (_directory, store) = store();
        let reservation = store.reserve(Some("half")).unwrap();
        assert_eq!(store.entries().unwrap().len(), 0);
        assert!(reservation.owned.directory().exists(), "its maker still lives");
        drop(reservation);
        assert_eq!(store.entries().unwrap().len(), 0);
        assert_eq!(fs::read_dir(store.layout.containers()).unwrap().count(), 0);
        assert_eq!(fs::read_dir(store.layout.names()).unwrap().count(), 0);
    }

    #[test]
    fn a_container_without_owner_is_not_shown_as_running() {
        let (_directory, store) = store();
        let running = State::Running {
            supervisor_pid: 1,
            pid: 1,
            started_ms: 1,
        };
        let (kept, owned) = make(&store, "kept", false, running.clone());
        let (_, owned_too) = make(&store, "gone", true, running);
        assert_eq!(store.entries().unwrap().len(), 2);
        drop((owned, owned_too));
        let records = store.entries().unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].id, kept);
        assert!(matches!(&records[0].state, State::Exited(exited) if exited.code == 137));
        store.reserve(Some("gone")).unwrap();
    }

    #[test]
    fn a_newer_record_is_refused() {
        let (_directory, store) = store();
        let (id, _owned) = make(&store, "new", false, State::Created);
        let path = store.directory(&id).join("container.json");
        let newer = fs::read_to_string(&path)
            .unwrap()
            .replace("\"version\":1", "\"version\":2,\"more\":true");
        fs::write(&path, newer).unwrap();
        assert!(matches!(store.entries(), Err(Error::Newer(_))));
    }
}
