//! A connection to who has a container's files, for copying. One protocol serves both modes: a guest's agent speaks it, and
//! on the host a thread of this command that has entered the container's files.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rvm_isolation::{CopyError, Files, Place};
use rvm_protocol::{
    ArchiveEnd, ArchiveReader, ArchiveWriter, CopyAnswer, CopyFiles, CopyRequest, CopyResult, Failure,
    FailureKind, FrameError, read_frame, serve_copy, write_frame,
};

use super::FilesError;
use super::copy::CopyFailure;
use super::guest::{BUSY_LIMIT, STALL_LIMIT, Started, TURN, Wish};
use super::paths::CleanPath;
use crate::cgroup;
use crate::engine::{Engine, Error};
use crate::mounts::{MountError, MountPoint};
use crate::record::{Isolation, Record, State};
use crate::store::Owned;
use crate::volumes::{self, Filling, Volumes};

impl Engine {
    /// Gets at a container's files.
    pub(super) fn session(&self, record: &Record, writes: bool) -> Result<Session, Error> {
        let deadline = Instant::now() + BUSY_LIMIT;
        loop {
            let session = match record.isolation {
                Isolation::Container => self.host_session(&record.id, writes)?,
                Isolation::Vm => {
                    let reached = self.reach_guest(record, Wish::Copy { writes })?;
                    Some(Session {
                        connection: reached.connection,
                        held: Held::Guest(reached.machine.map(Box::new)),
                        filling: reached.filling,
                    })
                }
            };
            // What is this command's own does not change by itself.
            let is_own = session.as_ref().is_some_and(Session::is_own);
            match session.map(Session::greeted).transpose() {
                Ok(Some(mut session)) => {
                    session.filled()?;
                    return Ok(session);
                }
                // It has just ended, or not quite begun.
                Ok(None) | Err(_) if !is_own && Instant::now() < deadline => thread::sleep(TURN),
                Ok(None) => return Err(FilesError::Starting(record.name.clone()).into()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// `None` where the container is neither running nor ended.
    fn host_session(&self, id: &str, writes: bool) -> Result<Option<Session>, Error> {
        let stays = self.own(id)?;
        let record = self.store().find(id)?;
        let mut filling = Filling::default();
        let place = if stays.is_some() {
            self.store().clean_up(id)?;
            let rootfs = self.rootfs(&record)?;
            let mounts = record.mounts.shared().map(MountPoint::as_mount);
            let mut mounts: Vec<_> = mounts.collect::<Result<_, _>>().map_err(MountError::from)?;
            filling = Filling::begin(&Volumes::open(self.layout())?, &record, &mut mounts)?;
            Place::Ended {
                rootfs,
                mounts,
                writes,
            }
        } else {
            let State::Running { pid, .. } = record.state else {
                return Ok(None);
            };
            let Some(process) = first_process(pid, id) else {
                return Ok(None);
            };
            Place::Running(process)
        };
        let (connection, far) = UnixStream::pair().map_err(FilesError::Read)?;
        let serve = move || {
            let served = |files: Result<&Files, CopyError>| match files {
                Ok(files) => serve_copy(&far, Ok(&Served(files))),
                Err(error) => serve_copy(&far, Err(&error)),
            };
            // Whoever asks learns it by the connection's end.
            let _ = rvm_isolation::inside(place, served);
        };
        let server = thread::Builder::new().name("files".to_owned()).spawn(serve);
        Ok(Some(Session {
            connection,
            held: Held::Host {
                server: Some(server.map_err(FilesError::Read)?),
                stays,
            },
            filling,
        }))
    }
}

/// A descriptor of a container's first process, if it is that. Numbers of processes are used again, so that the process has
/// to be in the container's cgroup.
fn first_process(pid: i32, id: &str) -> Option<OwnedFd> {
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    cgroup::is_payload(pid, id).then_some(process)
}

/// A connection to who has a container's files.
#[derive(Debug)]
pub(super) struct Session {
    connection: UnixStream,
    held: Held,
    /// Volumes that whoever has the files fills first.
    filling: Filling,
}

/// What there is for that connection.
#[derive(Debug)]
enum Held {
    /// A thread of this process.
    Host {
        server: Option<JoinHandle<()>>,
        stays: Option<Owned>,
    },
    /// A guest, which may have been started for it.
    Guest(Option<Box<Started>>),
}

impl Drop for Session {
    fn drop(&mut self) {
        // The other side ends with the connection, which may be broken already.
        let _ = self.connection.shutdown(Shutdown::Both);
        if let Held::Host { server, .. } = &mut self.held
            && let Some(server) = server.take()
        {
            // A panic would have ended this process.
            let _ = server.join();
        }
    }
}

impl Session {
    /// Whether the container does not run, and nobody else has it.
    fn is_own(&self) -> bool {
        match &self.held {
            Held::Host { stays, .. } => stays.is_some(),
            Held::Guest(machine) => machine.is_some(),
        }
    }

    /// Waits until the files can be got at.
    fn greeted(self) -> Result<Self, CopyFailure> {
        let limit = Some(STALL_LIMIT);
        self.connection
            .set_read_timeout(limit)
            .and_then(|()| self.connection.set_write_timeout(limit))
            .map_err(|error| CopyFailure::Lost(FrameError::Io(error)))?;
        self.answered()?;
        Ok(self)
    }

    /// It has the files, so its volumes have been filled.
    fn filled(&mut self) -> Result<(), volumes::Error> {
        if let Held::Guest(Some(machine)) = &mut self.held {
            machine.seal();
        }
        std::mem::take(&mut self.filling).done()
    }

    fn ask(&self, request: &CopyRequest) -> Result<(), CopyFailure> {
        write_frame(&self.connection, request).map_err(CopyFailure::Lost)
    }

    fn answer(&self) -> Result<CopyAnswer, CopyFailure> {
        match read_frame(&self.connection).map_err(CopyFailure::Lost)? {
            CopyAnswer::Failed(failure) => Err(CopyFailure::Told(failure.message)),
            answer => Ok(answer),
        }
    }

    fn answered(&self) -> Result<(), CopyFailure> {
        match self.answer()? {
            CopyAnswer::Done => Ok(()),
            _ => Err(CopyFailure::Unexpected),
        }
    }

    pub(super) fn find(&self, path: &Path, follow: bool) -> Result<(PathBuf, Option<u32>), CopyFailure> {
        let path = path.as_os_str().as_bytes().to_vec();
        self.ask(&CopyRequest::Find { path, follow })?;
        match self.answer()? {
            CopyAnswer::Found { path, mode } => Ok((OsString::from_vec(path).into(), mode)),
            _ => Err(CopyFailure::Unexpected),
        }
    }

    pub(super) fn pack(&self, path: &CleanPath, name: &OsStr, most: u64) -> Result<Counted<'_>, CopyFailure> {
        self.ask(&CopyRequest::Pack {
            path: path.full().into_os_string().into_vec(),
            name: name.as_bytes().to_vec(),
        })?;
        self.answered()?;
        Ok(Counted {
            archive: ArchiveReader::new(&self.connection, most),
            bytes: 0,
        })
    }

    /// Sends an archive that `make` writes; the result is its length in bytes.
    pub(super) fn unpack(
        &self,
        directory: &Path,
        owners: bool,
        make: impl FnOnce(&mut dyn Write) -> Result<(), CopyFailure>,
    ) -> Result<u64, CopyFailure> {
        self.ask(&CopyRequest::Unpack {
            directory: directory.as_os_str().as_bytes().to_vec(),
            owners,
        })?;
        let mut archive = Outgoing {
            archive: ArchiveWriter::new(&self.connection),
            connection: &self.connection,
            bytes: 0,
            is_answered: false,
        };
        let made = make(&mut archive);
        let Outgoing {
            archive,
            bytes,
            is_answered,
            ..
        } = archive;
        if is_answered {
            self.answered()?;
            // Nobody is done before the end.
            return Err(CopyFailure::Unexpected);
        }
        let end = match &made {
            Ok(()) => ArchiveEnd::Complete,
            Err(error) => ArchiveEnd::Failed(Failure {
                kind: FailureKind::Other,
                message: error.to_string(),
            }),
        };
        let ended = archive.end(&end);
        // Its own failure says more than the other side's, which is told of it.
        made?;
        let answered = self.answered();
        // An answer may have come although not all could be sent.
        answered.and(ended.map_err(CopyFailure::Lost))?;
        Ok(bytes)
    }
}

/// An archive on its way in.
pub(super) struct Counted<'a> {
    archive: ArchiveReader<&'a UnixStream>,
    pub(super) bytes: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.archive.read(buffer)?;
        self.bytes += u64::try_from(count).unwrap_or(u64::MAX);
        Ok(count)
    }
}

/// An archive on its way out. It stops where the other side has answered before its end: then something is wrong there.
struct Outgoing<'a> {
    archive: ArchiveWriter<&'a UnixStream>,
    connection: &'a UnixStream,
    bytes: u64,
    is_answered: bool,
}

impl Write for Outgoing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut news = [PollFd::new(self.connection, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if rustix::io::retry_on_intr(|| poll(&mut news, Some(&now)))? > 0 {
            self.is_answered = true;
            return Err(io::Error::other("it cannot be written there"));
        }
        let count = self.archive.write(bytes)?;
        self.bytes += u64::try_from(count).unwrap_or(u64::MAX);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.archive.flush()
    }
}

/// The isolation crate's files, for the protocol to serve.
struct Served<'a>(&'a Files);

impl CopyFiles for Served<'_> {
    fn find(&self, path: Vec<u8>, follow: bool) -> CopyResult<(Vec<u8>, Option<u32>)> {
        let (path, mode) = self.0.find(&path_of(path), follow)?;
        Ok((path.into_os_string().into_vec(), mode))
    }

    fn pack(&self, path: Vec<u8>, name: &[u8], output: &mut dyn Write) -> CopyResult<()> {
        Ok(self.0.pack(&path_of(path), name, output)?)
    }

    fn unpack(&self, directory: Vec<u8>, owners: bool, input: &mut dyn Read) -> CopyResult<()> {
        Ok(self.0.unpack(&path_of(directory), owners, input)?)
    }
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}
