//! Who does the work on a disk's files: a ring, which waits for many operations at a time, or where the host has none the
//! calling thread, which waits for each.
//!
//! What need not be waited for is a plain call in both cases, which is cheaper than a submission: data that the host has in
//! its cache is read, and data is written into that cache. The ring gets what has to come from the device, and what makes
//! data durable or gives space back.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FallocateFlags;
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::disk::{Disk, Extent};
use crate::memory::VolatileSlice;
use crate::seccomp::Kind;
use crate::sys;
use crate::sys::uring::{self, Completion, Uring};

/// How a disk's requests are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum BackendKind {
    /// Many at a time, by io_uring.
    Asynchronous,
    /// One after the other.
    Synchronous {
        /// Why not otherwise.
        reason: String,
    },
}

impl fmt::Display for BackendKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asynchronous => formatter.write_str("io_uring"),
            Self::Synchronous { reason } => write!(formatter, "synchronous ({reason})"),
        }
    }
}

/// An operation on one file of a disk.
#[derive(Clone, Copy)]
pub(super) struct Operation<'a, 'm> {
    /// Which of the disk's files.
    pub(super) place: usize,
    pub(super) kind: OperationKind<'a, 'm>,
}

#[derive(Clone, Copy)]
pub(super) enum OperationKind<'a, 'm> {
    Read {
        offset: u64,
        into: &'a [VolatileSlice<'m>],
    },
    Write {
        offset: u64,
        from: &'a [VolatileSlice<'m>],
    },
    /// What was written becomes durable.
    Synchronise,
    Allocate {
        flags: FallocateFlags,
        extent: Extent,
    },
}

/// The back end of one disk, on the disk's thread.
pub(super) enum Backend {
    Ring {
        disk: Arc<Disk>,
        ring: Box<Uring>,
    },
    Calls {
        disk: Arc<Disk>,
        notification: EventFd,
        reason: String,
    },
}

impl Backend {
    /// A ring if the host has one for us, otherwise calls. Whoever writes `notification` ends a [`Backend::wait`].
    pub(super) fn new(disk: Arc<Disk>, notification: EventFd) -> Self {
        let files: Vec<&File> = disk.files().collect();
        match Uring::new(&files, &notification) {
            Ok(ring) => Self::Ring {
                ring: Box::new(ring),
                disk,
            },
            Err(error) => Self::calls(disk, notification, format!("cannot make an io_uring: {error}")),
        }
    }

    /// The back end that any host has.
    pub(super) fn calls(disk: Arc<Disk>, notification: EventFd, reason: String) -> Self {
        Self::Calls {
            disk,
            notification,
            reason,
        }
    }

    pub(super) fn kind(&self) -> BackendKind {
        match self {
            Self::Ring { .. } => BackendKind::Asynchronous,
            Self::Calls { reason, .. } => BackendKind::Synchronous {
                reason: reason.clone(),
            },
        }
    }

    /// What the thread may do once this exists.
    pub(super) fn thread_kind(&self) -> Kind {
        match self {
            Self::Ring { .. } => Kind::DiskRing,
            Self::Calls { .. } => Kind::Disk,
        }
    }

    /// Most operations that are under way at a time.
    pub(super) fn depth(&self) -> u16 {
        match self {
            Self::Ring { .. } => uring::MAX_OPERATIONS,
            Self::Calls { .. } => 1,
        }
    }

    /// Begins an operation. The result if it has ended already; otherwise [`Backend::wait`] will name `token`, which must
    /// not have an operation under way.
    pub(super) fn begin(&mut self, token: u16, operation: Operation<'_, '_>) -> Option<io::Result<usize>> {
        match self {
            Self::Ring { disk, ring } => match call_without_waiting(disk, operation) {
                Some(result) => Some(result),
                None => submit(ring, token, operation).err().map(Err),
            },
            Self::Calls { disk, .. } => Some(call(disk, operation)),
        }
    }

    /// Waits until an operation ends, the event descriptor is written or the time is over, and appends what has happened.
    ///
    /// # Errors
    /// None that pass by themselves.
    pub(super) fn wait(
        &mut self,
        completions: &mut Vec<Completion>,
        limit: Option<Duration>,
    ) -> io::Result<()> {
        match (self, limit) {
            (Self::Ring { ring, .. }, limit) => ring.wait(completions, limit),
            (Self::Calls { .. }, Some(limit)) => {
                // Without looking at the descriptor: there is no room for another request before the one that waits.
                std::thread::sleep(limit);
                completions.push(Completion::Notified);
                Ok(())
            }
            (Self::Calls { notification, .. }, None) => {
                // Interrupted by a signal or not, the queues are looked at again.
                let _ = notification.read();
                completions.push(Completion::Notified);
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind().fmt(formatter)
    }
}

fn submit(ring: &mut Uring, token: u16, operation: Operation<'_, '_>) -> io::Result<()> {
    let file = u32::try_from(operation.place).map_err(io::Error::other)?;
    match operation.kind {
        OperationKind::Read { offset, into } => ring.read(token, file, into, offset),
        // Never waited for, so never submitted.
        OperationKind::Write { .. } => Err(io::ErrorKind::Unsupported.into()),
        OperationKind::Synchronise => ring.synchronise(token, file),
        OperationKind::Allocate { flags, extent } => {
            let mode = flags.bits().cast_signed();
            ring.allocate(token, file, mode, extent.offset, extent.bytes)
        }
    }
}

/// Carries out an operation that need not wait for a device; `None` if it has to.
fn call_without_waiting(disk: &Disk, operation: Operation<'_, '_>) -> Option<io::Result<usize>> {
    match operation.kind {
        OperationKind::Read { offset, into } => {
            let file = disk.files().nth(operation.place)?;
            // What it cannot read at once, for whatever reason, is waited for, and what fails then has failed.
            sys::read_cached_at(file, into, offset).ok().map(Ok)
        }
        OperationKind::Write { .. } => Some(call(disk, operation)),
        OperationKind::Synchronise | OperationKind::Allocate { .. } => None,
    }
}

fn call(disk: &Disk, operation: Operation<'_, '_>) -> io::Result<usize> {
    let file = disk.files().nth(operation.place).ok_or(io::ErrorKind::NotFound)?;
    match operation.kind {
        OperationKind::Read { offset, into } => sys::read_at(file, into, offset),
        OperationKind::Write { offset, from } => sys::write_at(file, from, offset),
        OperationKind::Synchronise => file.sync_data().map(|()| 0),
        OperationKind::Allocate { flags, extent } => {
            rustix::fs::fallocate(file, flags, extent.offset, extent.bytes)?;
            Ok(0)
        }
    }
}
