//! Volumes: directories that outlive containers.
//!
//! `ROOT/volumes/NAME` has `volume.json` and `_data`, which is what is mounted. It appears by a rename, whole, and goes by
//! one. Whoever is making a container holds the lock of `ROOT/volumes` shared until the container's record refers to its
//! volumes; whoever removes volumes holds it alone, and looks at all records. Nobody looks a container up while holding
//! it, because that may remove another one with its volumes.

mod fill;
mod verbs;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::events::Journal;
use crate::record::now_ms;
use crate::{Layout, json, names, path, tree};
pub(crate) use fill::Filling;
pub use verbs::{PrunedVolumes, VolumeUsage};

/// Version of `volume.json`.
const VERSION: u32 = 1;

/// Docker's label of a volume that was made without a name.
pub const ANONYMOUS: &str = "com.docker.volume.anonymous";

/// How names of directories begin that are being made or removed.
const TEMPORARY: &str = ".";

/// A volume: `volume.json` in its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Version of the file. One with a greater one was written by a newer rvm.
    pub version: u32,
    /// Unique among the volumes of one root directory; 64 hexadecimal digits where nobody chose one.
    pub name: String,
    /// When it was made, in milliseconds since the epoch.
    pub created_ms: u64,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Volume {
    /// Whether it was made for a container, without a name.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.labels.contains_key(ANONYMOUS)
    }
}

/// Why the volumes refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be used.
    #[error(transparent)]
    Json(#[from] json::Error),
    /// An operation on a path failed.
    #[error(transparent)]
    Path(#[from] path::Error),
    /// The volume was made by a newer rvm.
    #[error("volume {0} was made by a newer rvm")]
    Newer(String),
    /// Nothing has this name.
    #[error("get {0}: no such volume")]
    NotFound(String),
    /// The name could be mistaken for a path or an option.
    #[error(transparent)]
    Name(#[from] crate::mounts::MountError),
    /// Containers refer to it.
    #[error("remove {name}: volume is in use - [{}]", users.join(", "))]
    InUse {
        /// The volume.
        name: String,
        /// IDs of the containers.
        users: Vec<String>,
    },
}

/// The volumes of one root directory.
#[derive(Debug, Clone)]
pub(crate) struct Volumes {
    directory: PathBuf,
    journal: Journal,
}

impl Volumes {
    /// Those below `layout`'s root.
    pub(crate) fn open(layout: &Layout) -> Result<Self, Error> {
        let directory = layout.volumes();
        create_directory(&directory, 0o701).or_else(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(path::failed("create", &directory)(error)),
        })?;
        Ok(Self {
            directory,
            journal: Journal::new(layout),
        })
    }

    /// What is mounted of a volume.
    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.directory.join(name).join("_data")
    }

    /// As long as the answer is there, no volume is removed.
    pub(crate) fn stay(&self) -> Result<File, Error> {
        self.lock(FlockOperation::LockShared)
    }

    /// As long as the answer is there, nobody begins to use a volume. What others have left unfinished is gone, as far as it can
    /// be removed: it is no volume, and nobody waits for it to go.
    fn alone(&self) -> Result<File, Error> {
        let lock = self.lock(FlockOperation::LockExclusive)?;
        for name in self.names()? {
            if name.starts_with(TEMPORARY) {
                // It is tried again by the next one; whoever began has been told.
                let _ = tree::remove(&self.directory.join(name));
            }
        }
        Ok(lock)
    }

    fn lock(&self, operation: FlockOperation) -> Result<File, Error> {
        let file = File::open(&self.directory).map_err(path::failed("open", &self.directory))?;
        flock(&file, operation).map_err(|error| path::failed("lock", &self.directory)(error.into()))?;
        Ok(file)
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let listed = path::failed("list", &self.directory);
        let entries = fs::read_dir(&self.directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.map_err(listed)?;
        let name = |entry: fs::DirEntry| entry.file_name().into_string().ok();
        Ok(entries.into_iter().filter_map(name).collect())
    }

    /// All of them, by name.
    pub(crate) fn list(&self) -> Result<Vec<Volume>, Error> {
        let mut volumes = Vec::new();
        for name in self.names()? {
            if name.starts_with(TEMPORARY) {
                continue;
            }
            match self.find(&name) {
                Ok(volume) => volumes.push(volume),
                // It has just been removed.
                Err(Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        volumes.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(volumes)
    }

    /// The volume with this name.
    pub(crate) fn find(&self, name: &str) -> Result<Volume, Error> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        if !names::is_valid_name(name) {
            return Err(Error::NotFound(name.to_owned()));
        }
        let path = self.directory.join(name).join("volume.json");
        let text = match json::text(&path) {
            Err(error) if error.is_not_found() => return Err(Error::NotFound(name.to_owned())),
            text => text?,
        };
        let versioned: Versioned = json::parse(&path, &text)?;
        if versioned.version > VERSION {
            return Err(Error::Newer(name.to_owned()));
        }
        Ok(json::parse(&path, &text)?)
    }

    /// Makes a volume without a name.
    pub(crate) fn create_anonymous(&self, mut labels: BTreeMap<String, String>) -> Result<Volume, Error> {
        labels.insert(ANONYMOUS.to_owned(), String::new());
        self.create(&names::new_id(), labels)
    }

    /// Makes a volume; one that is there already stays as it is. The caller keeps volumes from being removed.
    pub(crate) fn create(&self, name: &str, labels: BTreeMap<String, String>) -> Result<Volume, Error> {
        if !names::is_valid_name(name) {
            return Err(crate::mounts::MountError::Name(name.to_owned()).into());
        }
        match self.find(name) {
            Err(Error::NotFound(_)) => {}
            found => return found,
        }
        let volume = Volume {
            version: VERSION,
            name: name.to_owned(),
            created_ms: now_ms(),
            labels,
        };
        let new = self.directory.join(format!("{TEMPORARY}new-{}", names::new_id()));
        let made = create_directory(&new, 0o701).and_then(|()| create_directory(&new.join("_data"), 0o755));
        made.map_err(path::failed("create", &new))?;
        json::write(&new.join("volume.json"), &volume)?;
        let path = self.directory.join(name);
        match fs::rename(&new, &path) {
            Ok(()) => {
                self.tell(&volume, "create");
                Ok(volume)
            }
            // Somebody else has made it meanwhile.
            Err(error) => {
                tree::remove(&new).map_err(path::failed("remove", &new))?;
                match self.find(name) {
                    Err(Error::NotFound(_)) => Err(path::failed("create", &path)(error).into()),
                    found => found,
                }
            }
        }
    }

    /// Removes a volume that was just made and that nobody knows of.
    pub(crate) fn remove_new(&self, name: &str) -> Result<(), Error> {
        self.take_away(&self.find(name)?)
    }

    /// Removes a volume. The caller has made sure that nobody uses it.
    fn take_away(&self, volume: &Volume) -> Result<(), Error> {
        let path = self.directory.join(&volume.name);
        let old = self.directory.join(format!("{TEMPORARY}old-{}", names::new_id()));
        fs::rename(&path, &old).map_err(path::failed("remove", &path))?;
        self.tell(volume, "destroy");
        Ok(tree::remove(&old).map_err(path::failed("remove", &path))?)
    }

    fn tell(&self, volume: &Volume, action: &str) {
        self.journal.volume(&volume.name, action);
    }
}

/// Makes a directory with exactly this mode.
fn create_directory(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().mode(mode).create(path)?;
    // The process' mask may take something away.
    rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(mode)).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn volumes() -> (tempfile::TempDir, Volumes) {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(
            Some(directory.path().join("root")),
            Some(directory.path().join("run")),
        )
        .unwrap();
        let volumes = Volumes::open(&layout).unwrap();
        (directory, volumes)
    }

    #[test]
    fn a_volume_is_made_once_and_removed_whole() {
        let (_directory, volumes) = volumes();
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let made = volumes.create("db", labels).unwrap();
        assert_eq!(volumes.create("db", BTreeMap::new()).unwrap(), made);
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(volumes.data("db")), 0o755);
        assert_eq!(mode(volumes.directory.join("db")), 0o701);
        fs::write(volumes.data("db").join("file"), "x").unwrap();
        let nameless = volumes.create_anonymous(BTreeMap::new()).unwrap();
        assert!(nameless.is_anonymous() && nameless.name.len() == 64);
        assert_eq!(volumes.list().unwrap().len(), 2);
        volumes.take_away(&made).unwrap();
        assert!(matches!(volumes.find("db"), Err(Error::NotFound(_))));
        assert_eq!(fs::read_dir(&volumes.directory).unwrap().count(), 1);
    }

    #[test]
    fn what_was_left_unfinished_is_no_volume_and_goes() {
        let (_directory, volumes) = volumes();
        fs::create_dir_all(volumes.directory.join(".new-1/_data")).unwrap();
        fs::create_dir_all(volumes.directory.join(".old-1/_data/x")).unwrap();
        assert_eq!(volumes.list().unwrap(), []);
        drop(volumes.alone().unwrap());
        assert_eq!(fs::read_dir(&volumes.directory).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_removed_is_in_nobody_s_way() {
        let (_directory, volumes) = volumes();
        // Its removal expects a directory.
        fs::write(volumes.directory.join(".old-1"), "").unwrap();
        fs::create_dir_all(volumes.directory.join(".old-2/_data")).unwrap();
        drop(volumes.alone().unwrap());
        assert!(volumes.directory.join(".old-1").exists() && !volumes.directory.join(".old-2").exists());
        assert_eq!(volumes.list().unwrap(), []);
    }

    #[test]
    fn names_cannot_be_paths() {
        let (_directory, volumes) = volumes();
        for name in ["", ".", "..", "a", "../x", "a/b", "-a"] {
            assert!(matches!(volumes.find(name), Err(Error::NotFound(_))), "{name}");
            assert!(
                matches!(volumes.create(name, BTreeMap::new()), Err(Error::Name(_))),
                "{name}"
            );
        }
    }

    #[test]
    fn the_format_is_frozen_and_a_newer_one_refused() {
        let (_directory, volumes) = volumes();
        let json = r#"{"version":1,"name":"db","created_ms":1,"labels":{"a":"b"}}"#;
        let volume: Volume = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&volume).unwrap(), json);
        volumes.create("db", BTreeMap::new()).unwrap();
        let newer = r#"{"version":2,"name":"db","more":true}"#;
        fs::write(volumes.directory.join("db/volume.json"), newer).unwrap();
        assert!(matches!(volumes.find("db"), Err(Error::Newer(_))));
    }
}
