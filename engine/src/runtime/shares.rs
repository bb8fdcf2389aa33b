//! Directories and files of the host that a guest has: one `rvm-fs` for each, a file system device of the machine, and a
//! place in the guest.
//!
//! A worker is a child of who starts the machine and ends with that, or when its machine does. The specification that the
//! guest gets names the guest's places; apart from that it is the one that a container on the host gets.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rvm_protocol::Share;
use rvm_vmm::config::{FsConfig, FsTag};
use rvm_vmm::devices::virtio::fs::exchange::{Ends, exchange};

use super::machine::inherit;
use crate::layout::{self, Asset};
use crate::mounts::{self, MountError, MountPoint};
use crate::record::Record;

/// Where the agent mounts them.
const PLACE: &str = "/run/rvm/shares";

/// What a worker calls the one file that it serves.
const FILE: &str = "file";

/// Why a guest cannot have a directory or file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It could not be opened.
    #[error("cannot open the mount's source {path}")]
    Open {
        /// Which one.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The directory to be made could not be.
    #[error(transparent)]
    Source(#[from] MountError),
    /// It is a socket, a device or a FIFO.
    #[error(
        "{0} is neither a directory nor a file: a virtual machine takes no others. Use --isolation container"
    )]
    Special(PathBuf),
    /// A file has no room but in a mount namespace.
    #[error("{0} is a file: only root can give a virtual machine a single one. Mount its directory")]
    FileNeedsRoot(PathBuf),
    /// The worker's program is not there.
    #[error(transparent)]
    Asset(#[from] layout::Error),
    /// The worker could not be started.
    #[error("cannot start the server of {path}")]
    Start {
        /// What it was to serve.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Everything of the host that a guest has.
#[derive(Debug, Default)]
pub(super) struct Shares {
    all: Vec<Shared>,
    workers: Workers,
    seals: Seals,
}

/// Those that are to be read-only once a new volume has been filled: they are when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Seals(Vec<UnixStream>);

/// The processes. They end when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Workers(Vec<Child>);

#[derive(Debug)]
struct Shared {
    tag: String,
    /// The machine's side of what it shares with the worker.
    ends: Ends,
    mount: Mount,
}

impl Shares {
    /// Starts the workers for what is mounted in a container.
    pub(super) fn start(record: &Record, spec: &Spec) -> Result<Self, Error> {
        let mut shares = Self::default();
        for (index, point) in record.mounts.shared().enumerate() {
            let mounts = spec.mounts().iter().flatten();
            let Some(mount) = mounts.into_iter().find(|mount| point.is(mount)) else {
                continue;
            };
            shares.add(index, point, mount.clone())?;
        }
        Ok(shares)
    }

    fn add(&mut self, index: usize, point: &MountPoint, mut mount: Mount) -> Result<(), Error> {
        mounts::make_source(point)?;
        let file = open(point)?;
        let path = || point.source.clone();
        let status = rustix::fs::fstat(&file).map_err(|error| Error::Open {
            path: path(),
            source: error.into(),
        })?;
        let place = Path::new(PLACE).join(index.to_string());
        let (flag, source) = match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => ("--directory", place),
            FileType::RegularFile if rustix::process::geteuid().is_root() => ("--file", place.join(FILE)),
            FileType::RegularFile => return Err(Error::FileNeedsRoot(path())),
            _ => return Err(Error::Special(path())),
        };
        let protection = match point.read_only {
            true if mounts::is_to_fill(&mount) => Protection::Later,
            true => Protection::Now,
            false => Protection::None,
        };
        let started = start_worker(&file, flag, protection).map_err(|error| match error {
            Failure::Asset(error) => error.into(),
            Failure::Start(source) => Error::Start { path: path(), source },
        });
        let (worker, ends, seal) = started?;
        self.workers.0.push(worker);
        self.seals.0.extend(seal);
        mounts::set_source(&mut mount, source);
        self.all.push(Shared {
            tag: index.to_string(),
            ends,
            mount,
        });
        Ok(())
    }

    /// For the machine.
    pub(super) fn devices(&self) -> Vec<FsConfig> {
        // A number is a tag.
        let tag = |share: &Shared| FsTag::try_from(share.tag.clone()).ok();
        let device = |share| {
            Some(FsConfig {
                tag: tag(share)?,
                memory_fd: share.ends.memory.as_raw_fd(),
                requests_fd: share.ends.requests.as_raw_fd(),
                answers_fd: share.ends.answers.as_raw_fd(),
            })
        };
        self.all.iter().filter_map(device).collect()
    }

    /// For the machine as well.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.all.iter().flat_map(|share| share.ends.all())
    }

    /// For the agent.
    pub(super) fn places(&self) -> Vec<Share> {
        let place = |share: &Shared| Share {
            tag: share.tag.clone(),
            directory: Path::new(PLACE).join(&share.tag),
        };
        self.all.iter().map(place).collect()
    }

    /// The bind mounts, as they are in the guest.
    pub(super) fn mounts(&self) -> Vec<Mount> {
        self.all.iter().map(|share| share.mount.clone()).collect()
    }

    /// What is left where the machine has its sides.
    pub(super) fn into_workers(self) -> (Workers, Seals) {
        (self.workers, self.seals)
    }
}

/// Names the guest's places in a specification.
pub(super) fn as_in_guest(spec: &Spec, mounts: &[Mount]) -> Spec {
    let mut spec = spec.clone();
    for mount in spec.mounts_mut().iter_mut().flatten() {
        let same = |other: &&Mount| {
            other.destination() == mount.destination() && mount.typ().as_deref() == Some("bind")
        };
        if let Some(inside) = mounts.iter().find(same) {
            mount.clone_from(inside);
        }
    }
    spec
}

impl Drop for Workers {
    fn drop(&mut self) {
        for worker in &mut self.0 {
            // Both fail only where the process has ended and been waited for.
            let _ = worker.kill();
            let _ = worker.wait();
        }
    }
}

/// Opens what is mounted. Whoever writes to a volume is not to choose what a part of it is.
fn open(point: &MountPoint) -> Result<OwnedFd, Error> {
    let failed = |error: rustix::io::Errno| Error::Open {
        path: point
            .source
            .join(point.subpath.as_deref().unwrap_or(Path::new(""))),
        source: error.into(),
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let top = rustix::fs::open(&point.source, flags, Mode::empty()).map_err(failed)?;
    match &point.subpath {
        None => Ok(top),
        Some(below) => {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            rustix::fs::openat2(&top, below, flags, Mode::empty(), resolve).map_err(failed)
        }
    }
}

enum Failure {
    Asset(layout::Error),
    Start(io::Error),
}

impl<E: Into<io::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Start(error.into())
    }
}

/// Whether a worker refuses writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protection {
    None,
    Now,
    /// From when it is told.
    Later,
}

/// Starts a worker; returns it, the machine's side of what they share, and what it is sealed by.
fn start_worker(
    file: &OwnedFd,
    flag: &str,
    protection: Protection,
) -> Result<(Child, Ends, Option<UnixStream>), Failure> {
    let program = Asset::FileServer.find().map_err(Failure::Asset)?;
    let (ours, theirs) = exchange()?;
    let file = File::from(file.try_clone()?);
    inherit(file.as_fd())?;
    for end in theirs.all() {
        inherit(end)?;
    }
    let mut command = Command::new(program);
    command
        .args([flag, &file.as_raw_fd().to_string()])
        .args(theirs.arguments())
        .args((protection == Protection::Now).then_some("--read-only"))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    if protection != Protection::Later {
        return Ok((command.spawn()?, ours, None));
    }
    let (seal, of_worker) = UnixStream::pair()?;
    inherit(of_worker.as_fd())?;
    command.args(["--seal", &of_worker.as_raw_fd().to_string()]);
    Ok((command.spawn()?, ours, Some(seal)))
}
