//! One cgroup v2 directory: made with its limits, read while the workload runs, killed and removed with everything in
//! it. The kernel's interface is described in `Documentation/admin-guide/cgroup-v2.rst`.

mod devices;
mod freezer;
mod limits;
mod processes;
mod usage;

use std::fs;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;
use rustix::event::{PollFd, PollFlags, Timespec};

pub(crate) use devices::Rule as DeviceRule;
pub use freezer::{freeze, thaw};
pub(crate) use limits::Limits;
pub use processes::{Process, Processes, processes};
pub use usage::{Traffic, Usage, usage, workload_usage};

/// How long a killed cgroup may take to become empty. Killing is immediate; what takes time is the end of processes that
/// own much memory or wait for a device.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// Why a cgroup could not be made, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Could not make the directory.
    #[error("cannot create cgroup {}", path.display())]
    Create {
        /// The cgroup's directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The cgroup lacks the file of a controller that a limit needs.
    #[error(
        "cgroup {} has no {file}: the controller is not enabled in cgroup.subtree_control of its parent",
        path.display()
    )]
    NoController {
        /// The cgroup's directory.
        path: PathBuf,
        /// The missing file.
        file: String,
    },
    /// Could not write one of the cgroup's files.
    #[error("cannot write {value:?} to {file} of cgroup {}", path.display())]
    Write {
        /// The cgroup's directory.
        path: PathBuf,
        /// The file.
        file: String,
        /// What was written.
        value: String,
        /// The cause.
        source: io::Error,
    },
    /// Could not read one of the cgroup's files.
    #[error("cannot read {file} of cgroup {}", path.display())]
    Read {
        /// The cgroup's directory.
        path: PathBuf,
        /// The file.
        file: String,
        /// The cause.
        source: io::Error,
    },
    /// The limits are none that a cgroup can have.
    #[error("cannot limit cgroup {} like this", path.display())]
    Limits {
        /// The cgroup's directory.
        path: PathBuf,
        /// Which of them.
        source: Box<crate::plan::Error>,
    },
    /// Could not restrict the devices that the cgroup may open. Needs `CONFIG_CGROUP_BPF`.
    #[error("cannot restrict the devices of cgroup {}", path.display())]
    Devices {
        /// The cgroup's directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The processes of the cgroup did not end although they were killed.
    #[error("cgroup {} is still populated {} s after it was killed", path.display(), EMPTY_WITHIN.as_secs())]
    StillPopulated {
        /// The cgroup's directory.
        path: PathBuf,
    },
    /// The processes of the cgroup did not stop.
    #[error(
        "the processes of cgroup {} do not stop within {} s: one of them waits for a device",
        path.display(), freezer::FROZEN_WITHIN.as_secs()
    )]
    NotFrozen {
        /// The cgroup's directory.
        path: PathBuf,
    },
    /// Could not remove the directory.
    #[error("cannot remove cgroup {}", path.display())]
    Remove {
        /// The cgroup's directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// An existing cgroup.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
}

impl Cgroup {
    /// Makes the directory and sets its limits. On failure nothing is left.
    pub(crate) fn create(path: &Path, limits: &Limits) -> Result<Cgroup, Error> {
        fs::create_dir(path).map_err(|source| Error::Create {
            path: path.into(),
            source,
        })?;
        let made = Cgroup::open(path).and_then(|cgroup| cgroup.set(limits).map(|()| cgroup));
        if made.is_err() {
            // The cause of the failure is worth more than that of a failed removal.
            let _ = fs::remove_dir(path);
        }
        made
    }

    /// Opens the cgroup whose directory is `path`.
    pub fn open(path: &Path) -> Result<Cgroup, Error> {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(|source| Error::Read {
            path: path.into(),
            file: ".".into(),
            source: source.into(),
        })?;
        Ok(Cgroup {
            path: path.into(),
            directory,
        })
    }

    /// The directory, as `clone3` and the device program want it.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    fn set(&self, limits: &Limits) -> Result<(), Error> {
        limits.settings().iter().try_for_each(|setting| {
            match write(&self.path.join(&setting.file), &setting.value) {
                Ok(()) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound && setting.optional => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::NoController {
                    path: self.path.clone(),
                    file: setting.file.clone(),
                }),
                Err(source) => Err(Error::Write {
                    path: self.path.clone(),
                    file: setting.file.clone(),
                    value: setting.value.clone(),
                    source,
                }),
            }
        })
    }

    /// Lets the cgroup's processes use the devices that `rules` allow, and no others.
    pub(crate) fn restrict_devices(&self, rules: &[DeviceRule]) -> Result<(), Error> {
        crate::sys::load_device_program(&devices::compile(rules))
            .and_then(|program| crate::sys::attach_device_program(&self.directory, program))
            .map_err(|source| Error::Devices {
                path: self.path.clone(),
                source,
            })
    }

    /// Bytes of memory charged now (`memory.current`).
    pub fn memory_bytes(&self) -> Result<u64, Error> {
        let text = self.read("memory.current")?;
        text.trim()
            .parse()
            .map_err(|error| self.malformed("memory.current", error))
    }

    /// Processor time used so far (`usage_usec` of `cpu.stat`).
    pub fn cpu_time(&self) -> Result<Duration, Error> {
        self.keyed("cpu.stat", "usage_usec").map(Duration::from_micros)
    }

    /// How many processes of the cgroup and its descendants any out-of-memory killer has ended. Zero where the memory
    /// controller is not enabled.
    pub fn out_of_memory_kills(&self) -> Result<u64, Error> {
        match self.keyed("memory.events", "oom_kill") {
            Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(0),
            other => other,
        }
    }

    fn read(&self, file: &str) -> Result<String, Error> {
        let read = fs::read_to_string(self.path.join(file));
        read.map_err(|source| Error::Read {
            path: self.path.clone(),
            file: file.into(),
            source,
        })
    }

    fn keyed(&self, file: &str, key: &str) -> Result<u64, Error> {
        let text = self.read(file)?;
        value_of(&text, key).ok_or_else(|| self.malformed(file, format!("no number for {key}")))
    }

    fn malformed(&self, file: &str, reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        let source = io::Error::new(io::ErrorKind::InvalidData, reason);
        Error::Read {
            path: self.path.clone(),
            file: file.into(),
            source,
        }
    }
}

/// Sets limits of the cgroup at `path`, which take effect at once, in the order of the specification. Those that are not
/// there, and device rules, are left as they are.
///
/// # Errors
/// [`Error::Limits`], with nothing changed; [`Error::NoController`], [`Error::Write`], where some may have been set.
pub fn limit(path: &Path, resources: &LinuxResources) -> Result<(), Error> {
    let limits = Limits::new(resources).map_err(|source| Error::Limits {
        path: path.into(),
        source: Box::new(source),
    })?;
    Cgroup::open(path)?.set(&limits)
}

/// The number after `key` in a flat keyed file.
fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Kills everything in the cgroup at `path` and removes it with all its descendants, waiting for at most ten seconds.
/// A cgroup that is not there is fine, so that this can be repeated.
pub fn remove(path: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + EMPTY_WITHIN;
    loop {
        match kill(path)
            .and_then(|()| wait_until_empty(path, deadline))
            .and_then(|()| remove_tree(path))
        {
            Ok(()) => return Ok(()),
            // Another command removed it meanwhile.
            Err(error) if is_gone(&error) => return Ok(()),
            // A process entered between the two steps, or one that has ended is still being taken apart.
            Err(Error::Remove { source, .. })
                if source.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {}
            Err(error) => return Err(error),
        }
    }
}

fn is_gone(error: &Error) -> bool {
    let (Error::Write { source, .. } | Error::Read { source, .. } | Error::Remove { source, .. }) = error
    else {
        return false;
    };
    // ENODEV: the directory went while one of its files was open.
    source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(libc::ENODEV)
}

fn kill(path: &Path) -> Result<(), Error> {
    write(&path.join("cgroup.kill"), "1").map_err(|source| Error::Write {
        path: path.into(),
        file: "cgroup.kill".into(),
        value: "1".into(),
        source,
    })
}

/// Writes to a file that is there. With `O_CREAT` the error for one that is not would be "permission denied".
fn write(path: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(value.as_bytes())
}

fn wait_until_empty(path: &Path, deadline: Instant) -> Result<(), Error> {
    match wait_for(path, ("populated", 0), deadline)? {
        true => Ok(()),
        false => Err(Error::StillPopulated { path: path.into() }),
    }
}

/// Waits until a key of `cgroup.events` has a value; whether it has before `deadline`.
fn wait_for(path: &Path, (key, value): (&str, u64), deadline: Instant) -> Result<bool, Error> {
    let failed = |source| Error::Read {
        path: path.into(),
        file: "cgroup.events".into(),
        source,
    };
    let mut file = fs::File::open(path.join("cgroup.events")).map_err(failed)?;
    loop {
        let mut text = String::new();
        file.rewind()
            .and_then(|()| file.read_to_string(&mut text))
            .map_err(failed)?;
        if value_of(&text, key) == Some(value) {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        // The kernel marks the file with POLLPRI when a value has changed since it was read.
        let timeout = Timespec::try_from(left).map_err(|error| failed(io::Error::other(error)))?;
        match rustix::event::poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// Removes `path` and every cgroup below it, deepest first.
fn remove_tree(path: &Path) -> Result<(), Error> {
    let failed = |path: &Path, source| Error::Remove {
        path: path.into(),
        source,
    };
    descendants(path)
        .map_err(|(path, source)| failed(&path, source))?
        .iter()
        .rev()
        .try_for_each(|directory| fs::remove_dir(directory).map_err(|source| failed(directory, source)))
}

/// The cgroup at `path` and every one below it, each after its parent. Iterative, because the workload chooses the depth.
fn descendants(path: &Path) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let mut directories = vec![path.to_path_buf()];
    let mut next = 0;
    while let Some(directory) = directories.get(next).cloned() {
        let failed = |source| (directory.clone(), source);
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                directories.push(entry.path());
            }
        }
        next += 1;
    }
    Ok(directories)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyed_files_are_read_by_whole_keys() {
        let text = "oom 3\noom_kill 2\noom_group_kill 0\n";
        let cases = [
            ("oom", Some(3)),
            ("oom_kill", Some(2)),
            ("oom_", None),
            ("max", None),
        ];
        for (key, expected) in cases {
            assert_eq!(value_of(text, key), expected, "{key}");
        }
        assert_eq!(value_of("populated x", "populated"), None);
    }

    #[test]
    fn removing_what_is_not_there_is_fine() {
        remove(Path::new("/sys/fs/cgroup/there/is/none")).unwrap();
    }
}
