//! What a device and its worker share: memory with slots for messages, and two pipes by which each tells the other which slots
//! have one.
//!
//! The machine copies a request into a free slot and writes the slot's number, one byte, to the first pipe; a thread of the worker
//! reads it, leaves its answer in the same slot, and writes the number to the second pipe. Every request is answered this way, also
//! where nobody waits for it: that makes the slot free again. So a message costs one copy and hardly more than a byte of a pipe,
//! and reads and writes of files go between the file and the slot.
//!
//! The memory cannot be made shorter, so that no access to it can fail. Both sides can write to all of it at any time, and so
//! each looks at a copy of what it has to understand.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, MemfdFlags, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::message::{MAX_MESSAGE_BYTES, OUT_HEADER_BYTES};
use crate::memory::{self, Mapping, VolatileMemory as _, VolatileSlice};

/// Requests that the worker has at once. Linux has rarely more than 16 (`max_background`) and one for each thread that waits for
/// a file; memory is there for those that there are.
pub(super) const SLOTS: usize = 64;

/// Longest message: a whole number of pages.
const SLOT_BYTES: usize = MAX_MESSAGE_BYTES;

/// Descriptors of one side.
#[derive(Debug)]
pub struct Ends {
    /// The slots: a memfd that can get neither shorter nor longer.
    pub memory: OwnedFd,
    /// An end of the pipe from the machine to the worker.
    pub requests: OwnedFd,
    /// An end of the pipe from the worker to the machine.
    pub answers: OwnedFd,
}

impl Ends {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> [BorrowedFd<'_>; 3] {
        [&self.memory, &self.requests, &self.answers].map(AsFd::as_fd)
    }

    /// How `rvm-fs` is told of the worker's side, which it inherits.
    #[must_use]
    pub fn arguments(&self) -> [String; 6] {
        let [memory, requests, answers] = self.all().map(|fd| fd.as_raw_fd().to_string());
        let [first, second, third] = ["--memory", "--requests", "--answers"].map(String::from);
        [first, memory, second, requests, third, answers]
    }
}

/// Makes what a machine and a worker share: the machine's side, and the worker's.
///
/// # Errors
/// Those of `memfd_create(2)` and `pipe(2)`.
pub fn exchange() -> io::Result<(Ends, Ends)> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("rvm-fs", flags)?;
    rustix::fs::ftruncate(&memory, (SLOTS * SLOT_BYTES) as u64)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memory, seals)?;
    let (requests_of_worker, requests) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (answers, answers_of_worker) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let machine = Ends {
        memory: memory.try_clone()?,
        requests,
        answers,
    };
    let worker = Ends {
        memory,
        requests: requests_of_worker,
        answers: answers_of_worker,
    };
    Ok((machine, worker))
}

/// The slots, mapped.
#[derive(Debug)]
pub(super) struct Slots(Mapping);

impl Slots {
    /// Maps them.
    ///
    /// # Errors
    /// `InvalidInput` where it is other memory, and those of `mmap(2)`.
    pub(super) fn map(memory: OwnedFd) -> io::Result<Self> {
        let bytes = SLOTS * SLOT_BYTES;
        // Anything else has no seals at all, and that is an error.
        let seals = rustix::fs::fcntl_get_seals(&memory)?;
        let size = rustix::fs::fstat(&memory)?.st_size;
        if !seals.contains(SealFlags::SHRINK) || usize::try_from(size) != Ok(bytes) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        memory::map_shared(File::from(memory), bytes).map(Self)
    }

    /// The slot of this number, if there is one.
    pub(super) fn get(&self, index: u8) -> Option<VolatileSlice<'_>> {
        let index = usize::from(index);
        if index >= SLOTS {
            return None;
        }
        self.0.get_slice(index * SLOT_BYTES, SLOT_BYTES).ok()
    }
}

/// Checks that a descriptor is a pipe, and lets nothing wait for it, or everything.
pub(super) fn use_pipe(pipe: &OwnedFd, nonblocking: bool) -> io::Result<()> {
    let status = rustix::fs::fstat(pipe)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::Fifo {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = rustix::fs::fcntl_getfl(pipe)?.difference(OFlags::NONBLOCK);
    let flags = if nonblocking {
        flags | OFlags::NONBLOCK
    } else {
        flags
    };
    Ok(rustix::fs::fcntl_setfl(pipe, flags)?)
}

/// The worker's side. Several threads may wait for requests.
#[derive(Debug)]
pub struct Worker {
    slots: Slots,
    requests: OwnedFd,
    answers: OwnedFd,
}

/// A slot with a request that is to be answered.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'a> {
    index: u8,
    memory: VolatileSlice<'a>,
}

impl Worker {
    /// Takes the side over.
    ///
    /// # Errors
    /// `InvalidInput` where it is none, and those of `mmap(2)`.
    pub fn new(ends: Ends) -> io::Result<Self> {
        use_pipe(&ends.requests, false)?;
        use_pipe(&ends.answers, false)?;
        Ok(Self {
            slots: Slots::map(ends.memory)?,
            requests: ends.requests,
            answers: ends.answers,
        })
    }

    /// Waits for the next request. `None` once the machine has gone, or has had enough.
    ///
    /// # Errors
    /// Those of `read(2)`; `InvalidData` where the machine names a slot that there is not.
    pub fn next(&self) -> io::Result<Option<Slot<'_>>> {
        let mut index = [0];
        loop {
            return match rustix::io::read(&self.requests, &mut index) {
                Ok(0) => Ok(None),
                Ok(_) => match self.slot(index[0]) {
                    Some(slot) => Ok(Some(slot)),
                    None => Err(io::ErrorKind::InvalidData.into()),
                },
                Err(Errno::INTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }

    /// The slot of this number, if there is one.
    #[must_use]
    pub fn slot(&self, index: u8) -> Option<Slot<'_>> {
        let memory = self.slots.get(index)?;
        Some(Slot { index, memory })
    }

    /// Answers with an error number, or 0 and a body that is in the slot already, or none.
    ///
    /// # Errors
    /// `InvalidInput` if the body is too long; `EPIPE` if the machine is gone, and others of `write(2)`.
    pub fn answer(&self, slot: Slot<'_>, error: i32, body_bytes: usize) -> io::Result<()> {
        let length = body_bytes.saturating_add(OUT_HEADER_BYTES);
        if length > slot.memory.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        // The number of the request stays where it was: both heads have it in the same place.
        slot.memory
            .copy_from(&[length, error.wrapping_neg().cast_unsigned()].map(u32::to_le));
        self.give_back(slot)
    }

    /// Says that the slot has an answer, or needs none.
    ///
    /// # Errors
    /// `EPIPE` if the machine is gone, and others of `write(2)`.
    pub fn give_back(&self, slot: Slot<'_>) -> io::Result<()> {
        loop {
            match rustix::io::write(&self.answers, &[slot.index]) {
                Err(Errno::INTR) => {}
                result => return Ok(result.map(drop)?),
            }
        }
    }

    /// Lets nothing wait.
    #[cfg(any(test, feature = "fuzzing"))]
    #[expect(clippy::unwrap_used, reason = "without it, a test would stop for good")]
    pub(super) fn of_test(ends: Ends) -> Self {
        let worker = Self::new(ends).unwrap();
        use_pipe(&worker.requests, true).unwrap();
        use_pipe(&worker.answers, true).unwrap();
        worker
    }

    /// Says any number.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn say(&self, index: u8) -> rustix::io::Result<usize> {
        rustix::io::write(&self.answers, &[index])
    }
}

impl<'a> Slot<'a> {
    /// By which it is found again.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.index
    }

    /// The request, and from [`OUT_HEADER_BYTES`] on what is to be its answer's body.
    #[must_use]
    pub fn memory(&self) -> VolatileSlice<'a> {
        self.memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_apart_and_shared() {
        let (machine, worker) = exchange().unwrap();
        let (ours, theirs) = (
            Slots::map(machine.memory).unwrap(),
            Slots::map(worker.memory).unwrap(),
        );
        ours.get(1).unwrap().copy_from(&[7_u8; SLOT_BYTES]);
        let mut seen = [1_u8; SLOT_BYTES];
        for (index, expected) in [(0, 0), (1, 7), (2, 0), (63, 0)] {
            theirs.get(index).unwrap().copy_to(&mut seen);
            assert!(seen.iter().all(|byte| *byte == expected), "{index}");
        }
        assert!([64, 65, 255].iter().all(|index| theirs.get(*index).is_none()));
    }

    #[test]
    fn memory_that_can_get_shorter_is_refused() {
        let (machine, _worker) = exchange().unwrap();
        assert!(rustix::fs::ftruncate(&machine.memory, 0).is_err());
        let bytes = (SLOTS * SLOT_BYTES) as u64;
        for (size, seals) in [
            (bytes, SealFlags::GROW),
            (bytes - 4096, SealFlags::SHRINK),
            (bytes + 4096, SealFlags::SHRINK),
        ] {
            let memory = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
            rustix::fs::ftruncate(&memory, size).unwrap();
            rustix::fs::fcntl_add_seals(&memory, seals).unwrap();
            assert!(Slots::map(memory).is_err(), "{size} {seals:?}");
        }
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        assert!(Slots::map(file.into()).is_err());
    }

    #[test]
    fn a_machine_that_makes_no_sense_or_is_gone_is_found_out() {
        let (machine, worker) = exchange().unwrap();
        let worker = Worker::new(worker).unwrap();
        rustix::io::write(&machine.requests, &[3, 64]).unwrap();
        assert_eq!(worker.next().unwrap().map(|slot| slot.index()), Some(3));
        assert_eq!(worker.next().unwrap_err().kind(), io::ErrorKind::InvalidData);
        let slot = worker.slot(3).unwrap();
        assert!(worker.answer(slot, 0, SLOT_BYTES - OUT_HEADER_BYTES).is_ok());
        assert!(worker.answer(slot, 0, SLOT_BYTES - OUT_HEADER_BYTES + 1).is_err());
        drop(machine);
        assert!(worker.next().unwrap().is_none());
        let error = worker.answer(slot, 0, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
