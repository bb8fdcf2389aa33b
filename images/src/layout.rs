//! The store's files: an OCI image layout, the layer cache beside it, and how both are changed safely.
//!
//! ```text
//! ROOT/images/   oci-layout  index.json  blobs/sha256/HEX     what image-spec's image-layout.md describes
//!                version.json                                 refuses an older rvm
//!                lock                                         held while anything below changes
//!                staging/NAME/                                what a running load has so far; its own lock inside
//!                partial/HEX                                  what was fetched of a blob; locked by who fetches it
//!                partial/HEX.image                            locked by who pulls the image with this manifest
//! ROOT/layers/   sha256/DIFFID.erofs                          a layer that means the same on top of any others
//!                sha256/CHAINID.chain.erofs                   one that depends on the layers below it
//! ```
//!
//! Files are complete and on the disk before they are renamed to where others see them, `index.json` last. A load
//! works in a staging directory without holding the lock; what it found in the store already is hard-linked into the
//! staging directory, so that a removal in between cannot take it away. Whoever takes the lock first removes the
//! staging directories of loads that died, and what a change cut short left unreferenced.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::document::{self, Index};
use crate::layer::{self, BlobId};
use crate::{Digest, limits, partial};

/// Version of everything described above.
const VERSION: u32 = 1;

pub(crate) const OCI_LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX: &str = "index.json";
/// Exists while a change is under way.
const UNFINISHED: &str = "unfinished";

/// Why the store's files cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot read {}", path.display())]
    Document { path: PathBuf, source: document::Error },
    #[error("{} has version {found}; this rvm knows only versions up to {VERSION}, a newer one is needed", path.display())]
    Version { path: PathBuf, found: u32 },
    #[error("{} has more than {limit} bytes", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
}

/// Puts action and path to an error.
pub(crate) fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionFile {
    version: u32,
}

/// The directories of a store.
#[derive(Debug)]
pub(crate) struct Layout {
    images: PathBuf,
    layers: PathBuf,
}

/// The right to change the store, until dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Layout {
    /// Makes what is not there yet, and refuses a store of a newer version.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        let layout = Self {
            images: root.join("images"),
            layers: root.join("layers"),
        };
        for directory in [
            layout.images.join("staging"),
            layout.images.join("partial"),
            layout.images.join("blobs/sha256"),
            layout.layers.join("sha256"),
        ] {
            fs::create_dir_all(&directory).map_err(at("create", &directory))?;
        }
        let path = layout.images.join("version.json");
        if !path.exists() {
            let _lock = layout.lock_file()?;
            layout.replace("oci-layout", OCI_LAYOUT.as_bytes())?;
            let version = document::to_bytes(&VersionFile { version: VERSION });
            layout.replace(
                "version.json",
                &version.map_err(|source| Error::Document {
                    path: path.clone(),
                    source,
                })?,
            )?;
        }
        // A newer version may have more fields, so only the number is looked at before it is known.
        let bytes = read_capped(&path, limits::MANIFEST_BYTES)?;
        let version: serde_json::Value = document::parse(&bytes).map_err(|source| Error::Document {
            path: path.clone(),
            source,
        })?;
        let found = version.get("version").and_then(serde_json::Value::as_u64);
        match found.and_then(|found| u32::try_from(found).ok()) {
            Some(VERSION) => {
                // What cannot be swept is in nobody's way; the next change of the store tries again, and says so.
                let _ = layout.sweep_if_idle();
                Ok(layout)
            }
            found => Err(Error::Version {
                path,
                found: found.unwrap_or(u32::MAX),
            }),
        }
    }

    /// Waits for the lock, and removes what loads that died have left. The answer is whether a change was cut short,
    /// so that there may be files to sweep.
    pub(crate) fn lock(&self) -> Result<(Lock, bool), Error> {
        let lock = Lock {
            _file: self.lock_file()?,
        };
        self.remove_dead_staging()?;
        partial::remove_old(&self.images.join("partial"))?;
        Ok((lock, self.images.join(UNFINISHED).exists()))
    }

    /// Removes what loads that died have left, unless somebody holds the lock and so has done it.
    fn sweep_if_idle(&self) -> Result<(), Error> {
        let (path, file) = self.open_lock_file()?;
        match file.try_lock() {
            Ok(()) => self.remove_dead_staging(),
            Err(TryLockError::WouldBlock) => Ok(()),
            Err(TryLockError::Error(source)) => Err(at("lock", &path)(source)),
        }
    }

    fn lock_file(&self) -> Result<File, Error> {
        let (path, file) = self.open_lock_file()?;
        file.lock().map_err(at("lock", &path))?;
        Ok(file)
    }

    fn open_lock_file(&self) -> Result<(PathBuf, File), Error> {
        let path = self.images.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(at("open", &path))?;
        Ok((path, file))
    }

    /// Marks the beginning and the end of a change that takes several steps.
    pub(crate) fn begin_change(&self, _lock: &Lock) -> Result<(), Error> {
        let path = self.images.join(UNFINISHED);
        File::create(&path).map_err(at("create", &path))?;
        sync_directory(&self.images)
    }

    pub(crate) fn end_change(&self, _lock: &Lock) -> Result<(), Error> {
        let path = self.images.join(UNFINISHED);
        remove_if_there(&path)
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.images.join("blobs/sha256").join(digest.hex())
    }

    /// Where a blob grows while it is fetched.
    pub(crate) fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.images.join("partial").join(digest.hex())
    }

    /// What the pull of one image locks.
    pub(crate) fn image_lock_path(&self, manifest: &Digest) -> PathBuf {
        self.images
            .join("partial")
            .join(format!("{}.image", manifest.hex()))
    }

    pub(crate) fn layer_path(&self, name: &str) -> PathBuf {
        self.layers.join("sha256").join(name)
    }

    /// Every blob.
    pub(crate) fn blob_files(&self) -> Result<Vec<PathBuf>, Error> {
        list(&self.images.join("blobs/sha256"))
    }

    /// Every layer image of the cache.
    pub(crate) fn layer_files(&self) -> Result<Vec<PathBuf>, Error> {
        list(&self.layers.join("sha256"))
    }

    /// Every blob that was not fetched to its end.
    pub(crate) fn partial_files(&self) -> Result<Vec<PathBuf>, Error> {
        list(&self.images.join("partial"))
    }

    /// The bytes of a small blob, verified.
    pub(crate) fn read_blob(&self, blob: BlobId) -> Result<Vec<u8>, Error> {
        let path = self.blob_path(&blob.digest);
        let bytes = read_capped(&path, limits::MANIFEST_BYTES)?;
        document::verify(&bytes, blob).map_err(|source| Error::Document { path, source })?;
        Ok(bytes)
    }

    pub(crate) fn index(&self) -> Result<Index, Error> {
        let path = self.images.join(INDEX);
        let bytes = match read_capped(&path, limits::MANIFEST_BYTES) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(Index::default());
            }
            other => other?,
        };
        document::parse(&bytes).map_err(|source| Error::Document { path, source })
    }

    pub(crate) fn write_index(&self, index: &Index, _lock: &Lock) -> Result<(), Error> {
        let path = self.images.join(INDEX);
        let bytes = document::to_bytes(index).map_err(|source| Error::Document {
            path: path.clone(),
            source,
        })?;
        // An index that could not be read again would make the store useless.
        let limit = limits::MANIFEST_BYTES;
        if !u64::try_from(bytes.len()).is_ok_and(|length| length <= limit) {
            return Err(Error::TooLarge { path, limit });
        }
        self.replace(INDEX, &bytes)
    }

    /// Deletes every blob and layer image for which `keep` does not answer yes; the bytes freed.
    pub(crate) fn sweep(
        &self,
        keep_blob: &dyn Fn(&str) -> bool,
        keep_layer: &dyn Fn(&str) -> bool,
        _lock: &Lock,
    ) -> Result<u64, Error> {
        let mut freed = 0_u64;
        for (directory, keep) in [
            (self.images.join("blobs/sha256"), keep_blob),
            (self.layers.join("sha256"), keep_layer),
        ] {
            for path in list(&directory)? {
                let name = path.file_name().and_then(|name| name.to_str());
                if name.is_some_and(keep) {
                    continue;
                }
                freed = freed.saturating_add(allocated(&path));
                remove_if_there(&path)?;
            }
        }
        Ok(freed)
    }

    /// Replaces a file of the layout: complete and on the disk before anyone sees it.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.images.join(name);
        let write = || -> io::Result<()> {
            let mut file = tempfile::Builder::new()
                .prefix(".new-")
                .tempfile_in(self.images.join("staging"))?;
            file.write_all(bytes)?;
            file.as_file().set_permissions(readable())?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            Ok(())
        };
        write().map_err(at("write", &path))?;
        sync_directory(&self.images)
    }

    fn remove_dead_staging(&self) -> Result<(), Error> {
        let directory = self.images.join("staging");
        for entry in fs::read_dir(&directory).map_err(at("list", &directory))? {
            let path = entry.map_err(at("list", &directory))?.path();
            if path.is_dir() {
                let lock = path.join("lock");
                let dead = match File::open(&lock) {
                    Ok(file) => file.try_lock().is_ok(),
                    Err(error) => error.kind() == io::ErrorKind::NotFound,
                };
                if dead {
                    match fs::remove_dir_all(&path) {
                        // Its load has come to its end meanwhile.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        result => result.map_err(at("remove", &path))?,
                    }
                }
            } else {
                // A document that was not renamed any more: they are written under the lock.
                remove_if_there(&path)?;
            }
        }
        Ok(())
    }
}

/// Files of a load before they are complete; removed with everything in it when dropped, or by the next command.
#[derive(Debug)]
pub(crate) struct Staging {
    directory: TempDir,
    _lock: File,
}

impl Staging {
    /// Made while the store is locked, so that nobody takes it for a dead one.
    pub(crate) fn new(layout: &Layout, _lock: &Lock) -> Result<Self, Error> {
        let parent = layout.images.join("staging");
        let directory = tempfile::Builder::new()
            .prefix("load-")
            .tempdir_in(&parent)
            .map_err(at("create", &parent))?;
        let path = directory.path().join("lock");
        let lock = File::create(&path).map_err(at("create", &path))?;
        lock.lock().map_err(at("lock", &path))?;
        Ok(Self {
            directory,
            _lock: lock,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// As [`Staging::create`], in place of a file that came to nothing.
    pub(crate) fn create_anew(&self, name: &str) -> Result<File, Error> {
        remove_if_there(&self.path(name))?;
        self.create(name)
    }

    pub(crate) fn create(&self, name: &str) -> Result<File, Error> {
        let path = self.path(name);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(at("create", &path))?;
        file.set_permissions(readable()).map_err(at("create", &path))?;
        Ok(file)
    }

    /// A nameless file: gone with its last descriptor, whatever happens.
    pub(crate) fn scratch(&self) -> Result<File, Error> {
        tempfile::tempfile_in(self.directory.path()).map_err(at("create a file in", self.directory.path()))
    }

    /// Whether a file is here, or in the store; in the latter case it is kept from vanishing.
    pub(crate) fn pin(&self, path: &Path, name: &str) -> Result<bool, Error> {
        let link = self.path(name);
        if link.exists() {
            return Ok(true);
        }
        match fs::hard_link(path, &link) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(at("link", path)(source)),
        }
    }

    /// Names of the complete layer images that are here.
    pub(crate) fn layer_names(&self) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        for path in list(self.directory.path())? {
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some((LAYER, name)) = name.and_then(|name| name.split_once('-')) {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Stores a document as a blob.
    pub(crate) fn add_blob(&self, bytes: &[u8]) -> Result<BlobId, Error> {
        let blob = BlobId {
            digest: layer::digest(bytes),
            bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        };
        let name = blob_name(&blob.digest);
        let path = self.path(&name);
        if !path.exists() {
            let mut file = self.create(&name)?;
            file.write_all(bytes)
                .and_then(|()| file.sync_data())
                .map_err(at("write", &path))?;
        }
        Ok(blob)
    }

    /// Names a complete file.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        let path = self.path(from);
        fs::rename(&path, self.path(to)).map_err(at("rename", &path))
    }

    /// Puts all complete files to where others see them.
    pub(crate) fn publish(&self, layout: &Layout, _lock: &Lock) -> Result<(), Error> {
        let directory = self.directory.path();
        for entry in fs::read_dir(directory).map_err(at("list", directory))? {
            let entry = entry.map_err(at("list", directory))?;
            let name = entry.file_name();
            let Some((kind, name)) = name.to_str().and_then(|name| name.split_once('-')) else {
                continue;
            };
            let target = match kind {
                BLOB => layout.images.join("blobs/sha256").join(name),
                LAYER => layout.layer_path(name),
                _ => continue,
            };
            fs::rename(entry.path(), &target).map_err(at("create", &target))?;
        }
        sync_directory(&layout.images.join("blobs/sha256"))?;
        sync_directory(&layout.layers.join("sha256"))
    }
}

const BLOB: &str = "blob";
const LAYER: &str = "layer";

/// Name of a complete blob in a staging directory.
pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("{BLOB}-{}", digest.hex())
}

/// Name of a complete layer image in a staging directory.
pub(crate) fn layer_name(name: &str) -> String {
    format!("{LAYER}-{name}")
}

/// Name of the image of a layer that stands alone.
pub(crate) fn standalone_layer(diff_id: &Digest) -> String {
    format!("{}.erofs", diff_id.hex())
}

/// Name of the image of a layer that depends on those below.
pub(crate) fn dependent_layer(chain_id: &Digest) -> String {
    format!("{}.chain.erofs", chain_id.hex())
}

/// World-readable, as the other files of a layout that others shall read.
pub(crate) fn readable() -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o644)
}

/// Makes renames in a directory last.
pub(crate) fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(at("write", path))
}

/// Reads a file that must be small.
pub(crate) fn read_capped(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(at("open", path))?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(at("read", path))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= limit) {
        Ok(bytes)
    } else {
        Err(Error::TooLarge {
            path: path.to_owned(),
            limit,
        })
    }
}

pub(crate) fn remove_if_there(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(error)),
        _ => Ok(()),
    }
}

/// What a directory has, sorted.
fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(at("list", directory))? {
        paths.push(entry.map_err(at("list", directory))?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Bytes a file takes on the disk; a sparse image takes less than its length.
pub(crate) fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::symlink_metadata(path).map_or(0, |metadata| metadata.blocks().saturating_mul(512))
}
