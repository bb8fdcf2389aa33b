//! The files of a container in VM mode. A guest reads them: its own where it runs, else one that is started for it.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rvm_protocol::{ArchiveError, ArchiveReader, Extent, Purpose};

use super::FilesError;
use crate::control::{self, Connection};
use crate::engine::{Engine, Error};
use crate::mounts::Mounts;
use crate::network::Connected;
use crate::record::{Isolation, Record};
use crate::runtime::{Alarm, Context, FilesMachine};
use crate::store::Owned;
use crate::timeline::Timeline;
use crate::volumes::{Filling, Volumes};
use crate::{disk, kvm, layout, tree};

/// A supervisor that begins or ends, and a command that looks at a container, are done within this.
pub(super) const BUSY_LIMIT: Duration = Duration::from_secs(10);

/// Time between two tries.
pub(super) const TURN: Duration = Duration::from_millis(50);

/// A supervisor has asked its guest within this; a guest has 20 seconds for it.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A guest that sends nothing for this long is not waited for: a directory of a million files takes it some seconds.
pub(super) const STALL_LIMIT: Duration = Duration::from_secs(120);

/// How many times longer than its disks an archive may be. Names and attributes take more room in one than on a disk, and a
/// file in very many pieces has its holes filled; a guest that sends without end must not fill the host's disk.
const MOST_TIMES: u64 = 4;

/// What is wanted of a guest's files.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wish {
    /// All of them, or a layer, or a list.
    Archive(Extent),
    /// Some of them, one way or the other.
    Copy { writes: bool },
}

impl Wish {
    fn ask(self, connection: &Connection) -> Result<UnixStream, control::Error> {
        match self {
            Self::Archive(extent) => connection.archive(extent),
            Self::Copy { .. } => connection.copy(),
        }
    }

    fn purpose(self) -> Purpose {
        match self {
            Self::Archive(extent) => Purpose::Archive(extent),
            Self::Copy { writes } => Purpose::Copy { writes },
        }
    }
}

/// A connection to a guest that has the files, and the machine if it was started for them.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) connection: UnixStream,
    pub(super) machine: Option<Started>,
    /// Volumes that the machine fills first.
    pub(super) filling: Filling,
}

/// How many bytes may come of a container's files. On the host, they are there already.
pub(super) fn most_bytes(record: &Record) -> u64 {
    if record.isolation == Isolation::Container {
        return u64::MAX;
    }
    let layers = record.layers.iter().map(|layer| layer.bytes);
    let disks = layers.fold(disk::BYTES, u64::saturating_add);
    disks.saturating_mul(MOST_TIMES)
}

/// A container's files on their way out of a guest.
#[derive(Debug)]
pub(super) struct GuestFiles {
    archive: ArchiveReader<UnixStream>,
    name: String,
    machine: Option<Started>,
}

/// A machine that was started for the files. Dropped in this order.
#[derive(Debug)]
pub(super) struct Started {
    machine: FilesMachine,
    _sockets: Sockets,
    _stays: Owned,
}

/// A directory of sockets that goes with its machine.
#[derive(Debug)]
struct Sockets(PathBuf);

impl Drop for Sockets {
    fn drop(&mut self) {
        // What cannot be removed now, the next command finds.
        let _ = tree::remove(&self.0);
    }
}

impl Started {
    /// See [`FilesMachine::seal`].
    pub(super) fn seal(&mut self) {
        self.machine.seal();
    }
}

impl GuestFiles {
    fn new(reached: Reached, record: &Record) -> Result<Self, Error> {
        let Reached {
            connection, machine, ..
        } = reached;
        connection
            .set_read_timeout(Some(STALL_LIMIT))
            .map_err(FilesError::Read)?;
        Ok(Self {
            archive: ArchiveReader::new(connection, most_bytes(record)),
            name: record.name.clone(),
            machine,
        })
    }
}

impl Read for GuestFiles {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.archive.read(buffer);
        let is_cut = |error: &io::Error| {
            let inner = error.get_ref().and_then(|error| error.downcast_ref());
            matches!(inner, Some(ArchiveError::Cut))
        };
        match read {
            // A machine that was started for this has no workload that could end.
            Err(error) if self.machine.is_none() && is_cut(&error) => {
                Err(io::Error::other(FilesError::Cut(self.name.clone())))
            }
            read => read,
        }
    }
}

impl Engine {
    /// Begins to read the files of a container in VM mode. One that has ended stays as it is until that is dropped.
    pub(super) fn guest_files(&self, record: &Record, extent: Extent) -> Result<GuestFiles, Error> {
        GuestFiles::new(self.reach_guest(record, Wish::Archive(extent))?, record)
    }

    /// Connects to a guest that has the files of a container.
    pub(super) fn reach_guest(&self, record: &Record, wish: Wish) -> Result<Reached, Error> {
        let deadline = Instant::now() + BUSY_LIMIT;
        loop {
            if let Some(owned) = self.own(&record.id)? {
                return self.start_for_files(owned, wish);
            }
            let run_directory = self.store().run_directory(&record.id);
            let asked =
                Connection::open(&run_directory, ANSWER_LIMIT).and_then(|connection| wish.ask(&connection));
            match asked {
                Ok(connection) => {
                    return Ok(Reached {
                        connection,
                        machine: None,
                        filling: Filling::default(),
                    });
                }
                // It may have just ended, or not quite begun.
                Err(_) if Instant::now() < deadline => thread::sleep(TURN),
                Err(error) => {
                    let name = record.name.clone();
                    return Err(FilesError::Busy { name, error }.into());
                }
            }
        }
    }

    fn start_for_files(&self, owned: Owned, wish: Wish) -> Result<Reached, Error> {
        kvm::require(self.layout())?;
        let (mut record, mut spec) = (owned.read_record()?, owned.read_spec()?);
        if matches!(wish, Wish::Archive(_)) {
            // It leaves out what is mounted, so that need not be there any more.
            record.mounts = Mounts::default();
        }
        // Its last owner may have been killed since it was looked up.
        self.store().clean_up(&record.id)?;
        let mounts = spec.mounts_mut().as_deref_mut().unwrap_or_default();
        let filling = Filling::begin(&Volumes::open(self.layout())?, &record, mounts)?;
        let sockets = Sockets(self.store().files_directory(&record.id));
        layout::create_private(&sockets.0).map_err(FilesError::Read)?;
        let context = Context {
            record: &record,
            spec: &spec,
            directory: owned.directory(),
            run_directory: &sockets.0,
            layout: self.layout(),
            cgroup: None,
            network: &Connected::default(),
            alarm: &Alarm::default(),
            timeline: &Timeline::new(false),
        };
        let failed = |error| FilesError::Machine(Box::new(error));
        let machine = FilesMachine::boot(&context).map_err(failed)?;
        let mut started = Started {
            machine,
            _sockets: sockets,
            _stays: owned,
        };
        let connection = started.machine.open(wish.purpose()).map_err(failed)?;
        Ok(Reached {
            connection,
            machine: Some(started),
            filling,
        })
    }
}

#[cfg(test)]
mod tests;
