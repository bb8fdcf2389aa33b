//! An io_uring that can do little: read files that were registered with it into guest memory, make them durable, allocate
//! their space, and watch one event descriptor. It is restricted to that for good before it is used, because seccomp
//! sees only that something was submitted, not what.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::squeue::Flags;
use io_uring::types::{Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::VolatileSlice;

/// Entries of the submission queue.
const ENTRIES: u16 = 128;
/// Most operations at a time: all entries but the one that watches the event descriptor. So there is always room.
pub(crate) const MAX_OPERATIONS: u16 = ENTRIES - 1;
/// Most threads of the kernel that wait for files on behalf of one ring. Few requests need one: those for files whose file
/// system cannot do the operation without waiting.
const MAX_WORKERS: u32 = 4;
/// Most elements of a vectored operation (`IOV_MAX`).
const MAX_VECTOR: usize = 1024;
/// The entry that watches the event descriptor.
const WATCH: u64 = u64::MAX;

/// What has happened.
#[derive(Debug)]
pub(crate) enum Completion {
    /// The event descriptor was written.
    Notified,
    /// An operation has ended.
    Ended {
        /// The number that it was started with.
        token: u16,
        /// Bytes that were read.
        result: io::Result<usize>,
    },
}

/// A restricted ring. It belongs to the thread that made it, the only one that may submit.
pub(crate) struct Uring {
    ring: IoUring,
    /// Per token: the vector of its operation, and whether that has not ended.
    operations: Box<[(Vec<libc::iovec>, bool)]>,
    /// Place of the event descriptor among the registered files.
    notification: u32,
    /// Where its counter is read to. It is never given back, so that the kernel may write it until the ring is gone.
    counter: &'static AtomicU64,
    /// Whether a read of it is under way.
    watching: bool,
}

impl Uring {
    /// A ring for `files`, which are then known by their place, that watches `notification`.
    ///
    /// # Errors
    /// Those of `io_uring_setup(2)` and `io_uring_register(2)`: the host may lack it, forbid it, or be older than Linux 6.1.
    pub(crate) fn new(files: &[&File], notification: &EventFd) -> io::Result<Self> {
        let ring = disabled_ring()?;
        let submitter = ring.submitter();
        submitter.register_restrictions(&mut restrictions())?;
        let mut descriptors: Vec<_> = files.iter().map(|file| file.as_raw_fd()).collect();
        descriptors.push(notification.as_raw_fd());
        submitter.register_files(&descriptors)?;
        submitter.register_iowq_max_workers(&mut [MAX_WORKERS, MAX_WORKERS])?;
        submitter.register_enable_rings()?;
        let operations = (0..MAX_OPERATIONS).map(|_| (Vec::new(), false)).collect();
        let notification = u32::try_from(files.len()).map_err(io::Error::other)?;
        Ok(Self {
            ring,
            operations,
            notification,
            counter: Box::leak(Box::default()),
            watching: false,
        })
    }

    /// Starts to read at `offset` of `file`. Guest memory may change until the operation has ended.
    ///
    /// # Errors
    /// [`Uring::start`].
    pub(crate) fn read(
        &mut self,
        token: u16,
        file: u32,
        into: &[VolatileSlice<'_>],
        offset: u64,
    ) -> io::Result<()> {
        self.start(token, into, |vector| match vector {
            [one] => opcode::Read::new(Fixed(file), one.iov_base.cast(), length(one))
                .offset(offset)
                .build(),
            many => opcode::Readv::new(Fixed(file), many.as_ptr(), count(many))
                .offset(offset)
                .build(),
        })
    }

    /// Starts to make durable what was written to `file`.
    ///
    /// # Errors
    /// [`Uring::start`].
    pub(crate) fn synchronise(&mut self, token: u16, file: u32) -> io::Result<()> {
        self.start(token, &[], |_| {
            opcode::Fsync::new(Fixed(file))
                .flags(FsyncFlags::DATASYNC)
                .build()
        })
    }

    /// Starts a `fallocate(2)` of `file`.
    ///
    /// # Errors
    /// [`Uring::start`].
    pub(crate) fn allocate(
        &mut self,
        token: u16,
        file: u32,
        mode: i32,
        offset: u64,
        bytes: u64,
    ) -> io::Result<()> {
        self.start(token, &[], |_| {
            opcode::Fallocate::new(Fixed(file), bytes)
                .offset(offset)
                .mode(mode)
                .build()
        })
    }

    /// Submits what was started, waits until something has happened or the time is over, and appends to `completions` all
    /// that has happened.
    ///
    /// # Errors
    /// Those of `io_uring_enter(2)` that do not pass by themselves, and those of watching the event descriptor.
    pub(crate) fn wait(
        &mut self,
        completions: &mut Vec<Completion>,
        limit: Option<Duration>,
    ) -> io::Result<()> {
        if !self.watching {
            // A read takes the counter back to zero, so that the next one waits.
            let entry = opcode::Read::new(Fixed(self.notification), self.counter.as_ptr().cast(), 8).build();
            self.push(entry.user_data(WATCH))?;
            self.watching = true;
        }
        let limit = limit.map(Timespec::from);
        let submitted = match &limit {
            None => self.ring.submit_and_wait(1),
            Some(limit) => {
                let arguments = SubmitArgs::new().timespec(limit);
                self.ring.submitter().submit_with_args(1, &arguments)
            }
        };
        match submitted.map_err(|error| error.raw_os_error()) {
            // The time is over, a signal, a full completion queue, a kernel short of memory: what has happened is seen to, then it goes on.
            Ok(_) | Err(Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(error) => return Err(io::Error::from_raw_os_error(error.unwrap_or(libc::EIO))),
        }
        for entry in self.ring.completion() {
            if entry.user_data() != WATCH {
                completions.extend(ended(&mut self.operations, &entry));
                continue;
            }
            self.watching = false;
            match entry.result() {
                code if code < 0 && ![libc::EINTR, libc::EAGAIN].contains(&-code) => {
                    return Err(io::Error::from_raw_os_error(-code));
                }
                _ => completions.push(Completion::Notified),
            }
        }
        Ok(())
    }

    /// Starts the operation that `entry` makes of a vector of `slices`.
    ///
    /// # Errors
    /// `InvalidInput` if the token is not below [`MAX_OPERATIONS`] or its last operation has not ended.
    fn start(
        &mut self,
        token: u16,
        slices: &[VolatileSlice<'_>],
        entry: impl FnOnce(&[libc::iovec]) -> squeue::Entry,
    ) -> io::Result<()> {
        let operation = self
            .operations
            .get_mut(usize::from(token))
            .filter(|(_, busy)| !busy);
        let Some((vector, busy)) = operation else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        vector.clear();
        vector.extend(slices.iter().take(MAX_VECTOR).map(|slice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        }));
        let entry = entry(vector).user_data(u64::from(token));
        *busy = true;
        self.push(entry)
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        let entry = entry.flags(Flags::FIXED_FILE);
        // SAFETY: what an entry points to must be valid until its operation has ended. That is guest memory, which stays
        // mapped as long as the process lives (`map_guest_memory`) and holds no Rust object; and the vector of a token,
        // which is not touched until that token's operation has ended, and lives as long as the ring; and the counter, which lives
        // for ever and is changed by the kernel only. A ring that is
        // dropped with operations under way has had its vectors read: the kernel copies them when it takes the entry.
        unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)
    }
}

/// A ring that takes nothing yet. Operations that have ended are worked on only when they are waited for, by the one
/// thread that submits: a kernel that cannot do that (before Linux 6.1) interrupts the thread for each, and answers EINVAL.
fn disabled_ring() -> io::Result<IoUring> {
    IoUring::builder()
        .setup_r_disabled()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(u32::from(ENTRIES))
}

/// What the ring may do: these operations, on registered files only. No registration is among them.
fn restrictions() -> Vec<Restriction> {
    let operations = [
        opcode::Read::CODE,
        opcode::Readv::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
    ];
    let fixed = Flags::FIXED_FILE.bits();
    operations
        .into_iter()
        .map(Restriction::sqe_op)
        .chain([
            Restriction::sqe_flags_allowed(fixed),
            Restriction::sqe_flags_required(fixed),
        ])
        .collect()
}

fn ended(operations: &mut [(Vec<libc::iovec>, bool)], entry: &cqueue::Entry) -> Option<Completion> {
    let token = u16::try_from(entry.user_data()).ok()?;
    operations.get_mut(usize::from(token))?.1 = false;
    let code = entry.result();
    let result = usize::try_from(code).map_err(|_| io::Error::from_raw_os_error(code.saturating_neg()));
    Some(Completion::Ended { token, result })
}

/// A buffer comes from one descriptor, whose length has 32 bits; a longer one would be read in part, which is handled.
fn length(vector: &libc::iovec) -> u32 {
    u32::try_from(vector.iov_len).unwrap_or(u32::MAX)
}

fn count(vectors: &[libc::iovec]) -> u32 {
    u32::try_from(vectors.len()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::os::fd::RawFd;

    use super::*;

    fn ring(file: &File) -> Uring {
        Uring::new(&[file], &EventFd::new(0).unwrap()).unwrap()
    }

    /// How the kernel answers `entry`.
    fn result_of(ring: &mut Uring, entry: &squeue::Entry) -> i32 {
        // SAFETY: the entries of these tests point to static data at most.
        unsafe { ring.ring.submission().push(entry).unwrap() };
        ring.ring.submit_and_wait(1).unwrap();
        ring.ring.completion().next().unwrap().result()
    }

    #[test]
    fn a_ring_does_nothing_else() {
        let file = tempfile::tempfile().unwrap();
        let mut ring = ring(&file);
        let raw: RawFd = file.as_raw_fd();
        let path = c"/".as_ptr();
        let fixed = |entry: squeue::Entry| entry.flags(Flags::FIXED_FILE);
        for (entry, what) in [
            (
                opcode::OpenAt::new(io_uring::types::Fd(raw), path).build(),
                "open",
            ),
            (opcode::Nop::new().build(), "nothing"),
            (fixed(opcode::Nop::new().build()), "nothing, with a file"),
            (fixed(opcode::PollAdd::new(Fixed(0), 1).build()), "poll"),
            (fixed(opcode::Socket::new(1, 1, 0).build()), "make a socket"),
            (fixed(opcode::Close::new(Fixed(0)).build()), "close"),
            (
                fixed(opcode::Statx::new(io_uring::types::Fd(raw), path, std::ptr::null_mut()).build()),
                "look at a file",
            ),
            (
                opcode::Fsync::new(io_uring::types::Fd(raw)).build(),
                "synchronise a file that was not registered",
            ),
            (
                opcode::Fsync::new(Fixed(0))
                    .build()
                    .flags(Flags::FIXED_FILE | Flags::IO_DRAIN),
                "wait for all others first",
            ),
        ] {
            assert_eq!(result_of(&mut ring, &entry), -libc::EACCES, "{what}");
        }
        let entry = fixed(opcode::Fsync::new(Fixed(0)).build());
        assert_eq!(result_of(&mut ring, &entry), 0);
        let entry = fixed(opcode::Fsync::new(Fixed(2)).build());
        assert_eq!(result_of(&mut ring, &entry), -libc::EBADF);
    }

    #[test]
    fn a_ring_takes_no_more_registrations() {
        let file = tempfile::tempfile().unwrap();
        let ring = ring(&file);
        let submitter = ring.ring.submitter();
        let refused = [
            submitter.register_files_update(0, &[0]).map(drop),
            submitter.unregister_files(),
            submitter.register_personality().map(drop),
            submitter.register_iowq_max_workers(&mut [9, 9]),
        ];
        for result in refused {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EACCES));
        }
    }

    #[test]
    fn a_token_has_one_operation_at_a_time() {
        let file = tempfile::tempfile().unwrap();
        let mut ring = ring(&file);
        ring.synchronise(3, 0).unwrap();
        assert!(ring.synchronise(3, 0).is_err());
        assert!(ring.synchronise(MAX_OPERATIONS, 0).is_err());
        let mut completions = Vec::new();
        while completions.is_empty() {
            ring.wait(&mut completions, None).unwrap();
        }
        assert!(matches!(
            completions.as_slice(),
            [Completion::Ended {
                token: 3,
                result: Ok(0)
            }]
        ));
        ring.synchronise(3, 0).unwrap();
    }

    #[test]
    fn notifications_wake_again_and_again() {
        let file = tempfile::tempfile().unwrap();
        let notification = EventFd::new(0).unwrap();
        let mut ring = Uring::new(&[&file], &notification).unwrap();
        for _ in 0..300 {
            notification.write(1).unwrap();
            let mut completions = Vec::new();
            while completions.is_empty() {
                ring.wait(&mut completions, None).unwrap();
            }
            assert!(matches!(completions.as_slice(), [Completion::Notified]));
        }
    }
}
