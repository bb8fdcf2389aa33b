//! Blobs on their way from a registry: files that grow, that outlive a pull that is cut short, and that one process at a
//! time works on.
//!
//! Who holds the lock of `partial/HEX` fetches that blob; whoever wants it too waits and then finds it, whole. It is a whole
//! one until its image is complete, and is removed then. So a pull that was killed, or that ran out of network, goes on where
//! it stopped: what is there is read and hashed as if it came from the registry, and the rest is asked for.
//!
//! An image as a whole is locked as well, before any blob of it, so that two pulls of the same image do not both convert it.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::layer::BlobId;
use crate::layout::{self, Layout, Staging, at, blob_name, readable, remove_if_there};

/// What nobody has touched for so long will not be gone on with.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// A file that this process has locked.
#[derive(Debug)]
pub(crate) struct Locked {
    path: PathBuf,
    file: File,
}

/// Tries to lock a file, whose holder may remove it.
enum Attempt {
    Locked(Locked),
    /// The holder has removed it; there may be another one now.
    Gone,
}

impl Locked {
    /// Locks the file at `path`, making it if it is not there. `waiting` is told if somebody else has it.
    pub(crate) fn new(path: &Path, waiting: &dyn Fn()) -> Result<Self, layout::Error> {
        loop {
            if let Attempt::Locked(locked) = Self::attempt(path, waiting)? {
                return Ok(locked);
            }
        }
    }

    fn attempt(path: &Path, waiting: &dyn Fn()) -> Result<Attempt, layout::Error> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path).map_err(at("open", path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock().map_err(at("lock", path))?;
            }
            Err(TryLockError::Error(source)) => return Err(at("lock", path)(source)),
        }
        let here = file.metadata().map_err(at("read", path))?;
        let is_same =
            fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (here.dev(), here.ino()));
        let path = path.to_owned();
        Ok(if is_same {
            Attempt::Locked(Self { path, file })
        } else {
            Attempt::Gone
        })
    }

    /// Removes the file, and then gives up the lock.
    pub(crate) fn remove(self) -> Result<(), layout::Error> {
        remove_if_there(&self.path)
    }
}

/// A blob that this process fetches.
#[derive(Debug)]
pub(crate) struct Partial {
    locked: Locked,
    blob: BlobId,
    /// What was there when it was acquired.
    bytes: u64,
}

/// What is to be done for a blob.
pub(crate) enum Acquired {
    /// Nothing: it is in the staging directory, because the store has it or another process has fetched it.
    Present,
    Partial(Partial),
}

impl Partial {
    /// Waits until nobody else fetches the blob.
    pub(crate) fn acquire(
        layout: &Layout,
        staging: &Staging,
        blob: BlobId,
        waiting: &dyn Fn(),
    ) -> Result<Acquired, layout::Error> {
        let path = layout.partial_path(&blob.digest);
        loop {
            if staging.pin(&layout.blob_path(&blob.digest), &blob_name(&blob.digest))? {
                return Ok(Acquired::Present);
            }
            let Attempt::Locked(locked) = Locked::attempt(&path, waiting)? else {
                continue;
            };
            // Its image may have been completed while this process waited.
            if staging.pin(&layout.blob_path(&blob.digest), &blob_name(&blob.digest))? {
                locked.remove()?;
                return Ok(Acquired::Present);
            }
            locked
                .file
                .set_permissions(readable())
                .map_err(at("create", &path))?;
            let bytes = locked.file.metadata().map_err(at("read", &path))?.len();
            let mut partial = Self { locked, blob, bytes };
            if bytes > blob.bytes {
                partial.clear()?;
            }
            return Ok(Acquired::Partial(partial));
        }
    }

    /// Bytes that an earlier pull has fetched.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The whole blob: what is here, then what `network` gives, which is kept.
    pub(crate) fn filled_from<'a>(&'a self, network: impl Read + 'a) -> impl Read + 'a {
        Filling {
            partial: self,
            position: 0,
            network,
        }
    }

    /// Forgets what is here.
    pub(crate) fn clear(&mut self) -> Result<(), layout::Error> {
        self.bytes = 0;
        self.locked
            .file
            .set_len(0)
            .map_err(at("write", &self.locked.path))
    }

    /// Takes the blob into the staging directory. It stays here, for others and for another try, until
    /// [`remove_partials`].
    pub(crate) fn complete(self, layout: &Layout, staging: &Staging) -> Result<(), layout::Error> {
        let path = &self.locked.path;
        self.locked.file.sync_data().map_err(at("write", path))?;
        // Who had fetched it before may have completed its image, and then it is in the store and no longer here.
        let name = blob_name(&self.blob.digest);
        if staging.pin(path, &name)? || staging.pin(&layout.blob_path(&self.blob.digest), &name)? {
            return Ok(());
        }
        Err(at("link", path)(io::ErrorKind::NotFound.into()))
    }
}

/// Removes the files of blobs that the store has now.
pub(crate) fn remove_partials(
    layout: &Layout,
    blobs: impl IntoIterator<Item = BlobId>,
) -> Result<(), layout::Error> {
    for blob in blobs {
        // Whoever waits for the lock of this file sees that it is gone, and that the store has the blob.
        remove_if_there(&layout.partial_path(&blob.digest))?;
    }
    Ok(())
}

/// Removes what nobody will go on with.
pub(crate) fn remove_old(directory: &Path) -> Result<(), layout::Error> {
    for entry in fs::read_dir(directory).map_err(at("list", directory))? {
        let path = entry.map_err(at("list", directory))?.path();
        let Ok(file) = File::open(&path) else { continue };
        let age = file.metadata().and_then(|metadata| metadata.modified());
        let is_old = age.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > KEPT));
        if is_old && file.try_lock().is_ok() {
            remove_if_there(&path)?;
        }
    }
    Ok(())
}

struct Filling<'a, R> {
    partial: &'a Partial,
    position: u64,
    network: R,
}

impl<R: Read> Read for Filling<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let file = &self.partial.locked.file;
        let here = self.partial.bytes.saturating_sub(self.position);
        let count = if here > 0 {
            let wanted = usize::try_from(here).unwrap_or(usize::MAX).min(buffer.len());
            file.read_at(buffer.get_mut(..wanted).unwrap_or_default(), self.position)?
        } else {
            let count = self.network.read(buffer)?;
            file.write_all_at(buffer.get(..count).unwrap_or_default(), self.position)?;
            count
        };
        self.position = self
            .position
            .saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }
}
