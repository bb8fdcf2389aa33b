//! A virtual machine's writable layer: a sparse ext4 disk, copied from an empty one that is made once.
//!
//! It is a file and not memory, so that what a workload writes does not count against the guest's RAM. The host only
//! ever copies the empty one; it never reads what a guest has written.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, SeekFrom, flock};
use rustix::io::Errno;

use crate::engine::TURN;
use crate::names;

/// Capacity. Sparse: only what the workload writes takes space on the host.
pub(crate) const BYTES: u64 = 10 << 30;

/// Part of the prepared disk's name: to be changed with anything below that changes its content.
const FORMAT: u32 = 1;

/// A machine whose owner was killed has let go of its disk within this.
const RELEASE_LIMIT: Duration = Duration::from_secs(20);

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be made or copied.
    #[error("cannot write {0}")]
    File(PathBuf, #[source] io::Error),
    /// mkfs.ext4 could not be run.
    #[error("cannot run mkfs.ext4")]
    Run(#[source] io::Error),
    /// mkfs.ext4 failed.
    #[error("mkfs.ext4 failed: {0}")]
    Make(String),
    /// Another machine has it.
    #[error("a virtual machine that does not end has {0} open")]
    InUse(PathBuf),
}

/// Opens the writable disk in a container's directory, making it if need be, and says how long it is. The disk is locked
/// as long as anybody has this file open: a machine whose owner was killed may go on writing for a moment, and is waited for.
///
/// # Errors
/// As [`Error`] says.
pub(crate) fn writable(cache: &Path, directory: &Path) -> Result<(File, u64), Error> {
    let path = directory.join("disk.ext4");
    let failed = |source| Error::File(path.clone(), source);
    match OpenOptions::new().read(true).write(true).open(&path) {
        Ok(file) => {
            lock(&file, &path)?;
            return Ok((file, BYTES));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let template = File::open(template(cache)?).map_err(failed)?;
    // Copied under another name: a disk that has its name is whole.
    let partial = directory.join("disk.ext4.new");
    let copy = create(&partial).map_err(failed)?;
    lock(&copy, &partial)?;
    copy_sparse(&template, &copy).map_err(failed)?;
    fs::rename(&partial, &path).map_err(failed)?;
    Ok((copy, BYTES))
}

/// Locks a disk, once nobody else has it open.
fn lock(file: &File, path: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + RELEASE_LIMIT;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(TURN),
            Err(Errno::WOULDBLOCK) => return Err(Error::InUse(path.to_owned())),
            Err(error) => return Err(Error::File(path.to_owned(), error.into())),
        }
    }
}

/// Makes the disk that is copied, before the first container needs it.
///
/// # Errors
/// As [`Error`] says.
pub fn prepare(cache: &Path) -> Result<(), Error> {
    template(cache).map(drop)
}

/// The path of the empty disk, after making it where it is not there. Of several commands one makes it, the others
/// wait.
fn template(cache: &Path) -> Result<PathBuf, Error> {
    let path = cache.join(format!("writable-{FORMAT}.ext4"));
    if path.exists() {
        return Ok(path);
    }
    let failed = |source| Error::File(path.clone(), source);
    let directory = File::open(cache).map_err(failed)?;
    flock(&directory, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
    if path.exists() {
        return Ok(path);
    }
    remove_leftovers(cache).map_err(failed)?;
    // A name of its own each time: the mkfs.ext4 of a command that was killed may still be writing.
    let partial = cache.join(format!("writable-{}.new", names::new_id()));
    let file = create(&partial).map_err(failed)?;
    file.set_len(BYTES).map_err(failed)?;
    make_file_system(&partial)?;
    // What is copied for every container must have reached the disk before it has its name.
    file.sync_all().map_err(failed)?;
    fs::rename(&partial, &path).map_err(failed)?;
    Ok(path)
}

/// Removes what commands that were killed have left. The caller holds the lock.
fn remove_leftovers(cache: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cache)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "new") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn make_file_system(path: &Path) -> Result<(), Error> {
    // Few inodes and a small journal keep the copy short. lazy_itable_init leaves inode tables unwritten; the guest
    // mounts with noinit_itable, so that they stay so. No reserved blocks: nobody but the workload writes here.
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-i", "65536", "-I", "256", "-J", "size=8"])
        .args([
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0",
        ])
        .args([
            "-O",
            "^resize_inode,metadata_csum,64bit,sparse_super2",
            "-L",
            "rvm-writable",
        ])
        .arg(path)
        .env(
            "PATH",
            "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin",
        )
        .stdin(Stdio::null())
        .output()
        .map_err(Error::Run)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Make(
        String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    ))
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// Copies the data and leaves the holes (lseek(2), `SEEK_DATA`).
fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut position = 0;
    while position < length {
        let start = match rustix::fs::seek(from, SeekFrom::Data(position)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start))?;
        let (mut source, mut target) = (start, start);
        while source < end {
            let left = usize::try_from(end - source).unwrap_or(usize::MAX);
            let count = rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), left)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        position = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    #[test]
    fn copies_are_sparse_and_equal() {
        let directory = tempfile::tempdir().unwrap();
        let from = create(&directory.path().join("from")).unwrap();
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"first", 0).unwrap();
        from.write_all_at(b"middle", (32 << 20) + 5).unwrap();
        let to = create(&directory.path().join("to")).unwrap();
        copy_sparse(&from, &to).unwrap();
        let mut bytes = [0; 6];
        to.read_exact_at(&mut bytes, (32 << 20) + 5).unwrap();
        assert_eq!(&bytes, b"middle");
        let metadata = to.metadata().unwrap();
        assert_eq!(metadata.len(), 64 << 20);
        assert!(metadata.blocks() * 512 < 1 << 20);
    }

    #[test]
    fn a_disk_is_made_once_and_copied() {
        let directory = tempfile::tempdir().unwrap();
        let (file, bytes) = writable(directory.path(), directory.path()).unwrap();
        let mut magic = [0; 2];
        file.read_exact_at(&mut magic, 1024 + 56).unwrap();
        assert_eq!(magic, [0x53, 0xef]);
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), bytes);
        assert!(metadata.blocks() * 512 < 8 << 20, "{} kB", metadata.blocks() / 2);
        file.write_all_at(b"changed", 0).unwrap();
        drop(file);
        let (again, _) = writable(directory.path(), directory.path()).unwrap();
        let mut bytes = [0; 7];
        again.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"changed");
        let other = File::open(directory.path().join("disk.ext4")).unwrap();
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
    }
}
