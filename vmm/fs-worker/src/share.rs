//! The directory as a file system: requests in, answers out.
//!
//! **What other guests and the host see.** What is written is in the host's page cache when the write is answered, and on its
//! disk when an `fsync` or a `sync` is. The guest asks anew for every name and attribute (no time-outs), and reads every file
//! anew (`FOPEN_DIRECT_IO`), so that what others have changed is seen by the next system call. A page cache in the guest could
//! only be checked by a file's time and size, which stay the same where two write within a tick of the host's clock; and to ask
//! for those takes a request as well, so that nothing would be saved. Only memory that is mapped to a file may show what was there
//! before: the guest has pages for that alone. A path of n names costs up to 2n requests this way; with any time-out, a guest could
//! hear of a change from another one before it sees it.
//! `O_APPEND` appends at the host's end of the file. Locks (`flock`, `fcntl`) are the host's.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{FsOptions, InitIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION};
use fuse_backend_rs::api::filesystem::{Context, FileSystem as _};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};
use fuse_backend_rs::transport::{FuseBuf, FuseDevWriter, Reader, Writer};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rvm_vmm::devices::virtio::fs::exchange::{Slot, Worker};
use rvm_vmm::devices::virtio::fs::{MAX_DATA_BYTES, MAX_MESSAGE_BYTES, OUT_HEADER_BYTES, has_answer};
use vm_memory::ByteValued as _;

use crate::confine::Room;
use crate::creation;
use crate::data::{self, DurableHandles};
use crate::listing;
use crate::locks::{self, Locks, Outcome};
use crate::request::{
    CREATE, DESTROY, FLUSH, GETLK, INIT, INTERRUPT, READ, READDIR, RELEASE, Refused, Request, SETLK, SETLKW,
    SYNCFS, WRITE,
};

/// The oldest minor version of the protocol that is spoken, of Linux 5.4, the first with this device.
const OLDEST_MINOR: u32 = 31;

/// Pages of one request.
const MAX_PAGES: u16 = 32;

/// Requests that a driver may have running for its read-ahead and the like.
const MAX_BACKGROUND: u16 = 16;

/// Files that are read past the page cache can still be mapped, shared (`FUSE_DIRECT_IO_ALLOW_MMAP` in the upper half of the
/// flags). The library has no name for it.
const DIRECT_IO_ALLOW_MMAP: u32 = 1 << (36 - 32);

/// What a guest may do with the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    ReadWrite,
    /// Look.
    ReadOnly,
}

/// As whom files are created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creator {
    /// As the guest's user. The process may become anybody.
    GuestUser,
    /// As the user that the worker runs as.
    Worker,
}

/// Why no more requests are served.
#[derive(Debug)]
pub enum Ended {
    /// The machine is gone, or wants no more.
    Closed,
    /// The directory is read-only from now on; requests are served.
    Sealed,
    /// What is shared with the machine does not work, or the seal.
    Failed(io::Error),
}

/// A directory that is served.
pub struct Share {
    files: Arc<PassthroughFs>,
    server: Server<Arc<PassthroughFs>>,
    /// For `syncfs`.
    root: OwnedFd,
    /// Where the library's errors go, which it leaves in memory as well.
    nowhere: OwnedFd,
    read_only: AtomicBool,
    creator: Creator,
    locks: Locks,
    durable: DurableHandles,
}

impl Share {
    /// Opens the directory in `room`. What is written to `nowhere` is gone.
    ///
    /// # Errors
    /// Those of opening it and of `/proc/self`.
    pub fn open(room: &Room, access: Access, nowhere: OwnedFd) -> io::Result<Self> {
        let config = Config {
            root_dir: room.directory().to_owned(),
            entry_timeout: Duration::ZERO,
            attr_timeout: Duration::ZERO,
            cache_policy: CachePolicy::Never,
            xattr: true,
            killpriv_v2: true,
            // Else it would remember each file that it has ever seen.
            use_host_ino: true,
            allow_direct_io: false,
            ..Config::default()
        };
        let files = Arc::new(PassthroughFs::new(config)?);
        files.import()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(room.directory(), flags, Mode::empty())?;
        Ok(Self {
            server: Server::new(files.clone()),
            files,
            root,
            nowhere,
            read_only: (access == Access::ReadOnly).into(),
            creator: room.creator(),
            locks: Locks::default(),
            durable: DurableHandles::default(),
        })
    }

    /// Waits until `seal` ends, and from then on lets nothing be changed.
    pub fn seal_after(&self, seal: &OwnedFd) -> Ended {
        loop {
            match recv(seal, &mut [0; 1], RecvFlags::empty()) {
                Ok((0, _)) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Ended::Failed(error.into()),
            }
        }
        self.read_only.store(true, Ordering::SeqCst);
        Ended::Sealed
    }

    fn access(&self) -> Access {
        if self.read_only.load(Ordering::SeqCst) {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        }
    }

    /// Serves the machine's requests as they come. Several threads may do so at once.
    pub fn serve_all(&self, machine: &Worker) -> Ended {
        let mut message = vec![0; MAX_MESSAGE_BYTES];
        let mut answer = vec![0; MAX_MESSAGE_BYTES];
        loop {
            let served = match machine.next() {
                Ok(Some(slot)) => self.serve(machine, slot, &mut message, &mut answer),
                Ok(None) => return Ended::Closed,
                Err(error) => Err(error),
            };
            if let Err(error) = served {
                return ended(error);
            }
        }
    }

    /// Serves the request in a slot, and gives the slot back once, unless that comes later.
    fn serve(
        &self,
        machine: &Worker,
        slot: Slot<'_>,
        message: &mut [u8],
        space: &mut [u8],
    ) -> io::Result<()> {
        let mut request = match Request::take(slot.memory(), message, self.access()) {
            Ok(request) => request,
            Err(Refused(Some(error))) => return machine.answer(slot, error, 0),
            Err(Refused(None)) => return machine.give_back(slot),
        };
        match request.opcode {
            READ | WRITE => match data::move_data(&self.files, &self.durable, &request, slot.memory()) {
                Ok(bytes) => machine.answer(slot, 0, bytes),
                Err(error) => machine.answer(slot, number(&error), 0),
            },
            INIT => match self.begin(request.body()) {
                Ok(agreed) => {
                    self.forget_handles(machine)?;
                    answer(machine, slot, agreed.as_slice())
                }
                Err(error) => machine.answer(slot, error, 0),
            },
            DESTROY => {
                self.forget_handles(machine)?;
                self.files.destroy();
                machine.answer(slot, 0, 0)
            }
            SYNCFS => {
                let result = rustix::fs::syncfs(&self.root);
                machine.answer(slot, result.err().map_or(0, Errno::raw_os_error), 0)
            }
            GETLK | SETLK | SETLKW => self.lock(machine, slot, &request),
            READDIR => self.list(machine, slot, &request),
            // What was asked for cannot be taken back: Linux does not even say so to a virtio device.
            INTERRUPT => machine.give_back(slot),
            CREATE => self.create(machine, slot, request, space),
            _ => {
                self.give_locks_back(&request);
                self.take_role(&mut request);
                let said = self.ask_library(request.message, space);
                self.hand_over(machine, slot, &request, said)
            }
        }
    }

    /// Creates a file, or opens the one that somebody has made since the guest looked.
    fn create(
        &self,
        machine: &Worker,
        slot: Slot<'_>,
        mut request: Request<'_>,
        space: &mut [u8],
    ) -> io::Result<()> {
        self.take_role(&mut request);
        let is_narrowed = request.only_create();
        for _ in 1..creation::ATTEMPTS {
            let said = self.ask_library(request.message, space);
            match said.and_then(error_of) {
                Some(libc::EEXIST) if is_narrowed => match creation::open_existing(&self.files, &request) {
                    Ok(body) => {
                        self.durable.learn(&request, &body);
                        return answer(machine, slot, &body);
                    }
                    Err(error) if number(&error) == libc::ENOENT => {}
                    Err(error) => return machine.answer(slot, number(&error), 0),
                },
                // Also where the library has made it, and somebody removed it before the library looked.
                Some(libc::ENOENT) => {}
                _ => return self.hand_over(machine, slot, &request, said),
            }
        }
        let said = self.ask_library(request.message, space);
        if is_narrowed && said.and_then(error_of) == Some(libc::EEXIST) {
            return machine.answer(slot, libc::ESTALE, 0);
        }
        self.hand_over(machine, slot, &request, said)
    }

    fn take_role(&self, request: &mut Request<'_>) {
        if self.creator == Creator::Worker {
            request.set_root();
        }
    }

    /// Answers a request with what the library said.
    fn hand_over(
        &self,
        machine: &Worker,
        slot: Slot<'_>,
        request: &Request<'_>,
        said: Option<&[u8]>,
    ) -> io::Result<()> {
        let Some(said) = said else {
            return if has_answer(request.opcode) {
                machine.answer(slot, libc::EIO, 0)
            } else {
                machine.give_back(slot)
            };
        };
        if error_of(said) == Some(0) {
            self.durable
                .learn(request, said.get(OUT_HEADER_BYTES..).unwrap_or_default());
        }
        slot.memory().copy_from(said);
        machine.give_back(slot)
    }

    /// Answers requests that wait for locks, as soon as they have them.
    pub fn serve_locks(&self, machine: &Worker) -> Ended {
        ended(
            self.locks
                .serve(|index, error| answer_later(machine, index, error)),
        )
    }

    fn lock(&self, machine: &Worker, slot: Slot<'_>, request: &Request<'_>) -> io::Result<()> {
        let node = request.node();
        let Some(asked) = locks::Asked::parse(node, request.body()) else {
            return machine.answer(slot, libc::EINVAL, 0);
        };
        let open = || self.open_for_locks(node);
        if request.opcode == GETLK {
            return match self.locks.test(&asked, open) {
                Ok(found) => answer(machine, slot, &found),
                Err(error) => machine.answer(slot, error, 0),
            };
        }
        match self
            .locks
            .set((slot.index(), asked), request.opcode == SETLKW, open)
        {
            Outcome::Answer(error) => machine.answer(slot, error, 0),
            Outcome::Later => Ok(()),
        }
    }

    fn list(&self, machine: &Worker, slot: Slot<'_>, request: &Request<'_>) -> io::Result<()> {
        let listed = listing::Asked::parse(request.node(), request.body())
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
            .and_then(|asked| listing::list(&self.files, asked));
        match listed {
            Ok(entries) => answer(machine, slot, &entries),
            Err(error) => machine.answer(slot, number(&error), 0),
        }
    }

    /// What was locked by a file that is closed is free before that is answered.
    fn give_locks_back(&self, request: &Request<'_>) {
        let body = request.body();
        let handle = field(body, 0).unwrap_or_default();
        match request.opcode {
            FLUSH => self
                .locks
                .close(request.node(), field(body, 16).unwrap_or_default()),
            RELEASE => self.locks.release(request.node(), handle),
            _ => {}
        }
    }

    fn forget_handles(&self, machine: &Worker) -> io::Result<()> {
        self.durable.clear();
        let waited = self.locks.clear();
        waited
            .into_iter()
            .try_for_each(|index| answer_later(machine, index, libc::EINTR))
    }

    /// Opens a file that the driver knows once more, by the name that it has now. One without a name cannot be locked.
    fn open_for_locks(&self, node: u64) -> io::Result<File> {
        let context = Context::default();
        let (known, _) = self.files.getattr(&context, node, None)?;
        let path = self.files.readlinkat_proc_file(node)?;
        let no_lock = || io::Error::from_raw_os_error(libc::ENOLCK);
        // Somebody may have given the name to another file, even to one that it does something to open.
        let found = open_at(&path, OFlags::PATH | OFlags::NOFOLLOW).map_err(|_| no_lock())?;
        let of_found = rustix::fs::fstat(&found)?;
        let is_known = (of_found.st_dev, of_found.st_ino) == (known.st_dev, known.st_ino);
        if !is_known || !matches!(of_found.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR) {
            return Err(no_lock());
        }
        self.open_any_way(&found).map_err(|_| no_lock())
    }

    /// For writing, if that is possible: a lock against all others needs it.
    fn open_any_way(&self, found: &OwnedFd) -> rustix::io::Result<File> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
        let open = |access| open_at(&path, access | OFlags::NONBLOCK | OFlags::NOCTTY).map(File::from);
        match self.access() {
            Access::ReadOnly => open(OFlags::RDONLY),
            Access::ReadWrite => open(OFlags::RDWR).or_else(|_| open(OFlags::RDONLY)),
        }
    }

    /// What the library answers, if it does.
    fn ask_library<'a>(&self, message: &mut [u8], space: &'a mut [u8]) -> Option<&'a [u8]> {
        let sent = {
            let reader = Reader::<()>::from_fuse_buffer(FuseBuf::new(message)).ok()?;
            let mut whole = FuseDevWriter::<()>::new(self.nowhere.as_raw_fd(), space).ok()?;
            // A part of a writer keeps what it is given, which is all that is wanted of this one.
            let writer = Writer::FuseDev(whole.split_at(0).ok()?);
            self.server.handle_message(reader, writer, None, None)
        };
        // It fails where its answer does not fit.
        space.get(..sent.ok()?).filter(|said| !said.is_empty())
    }

    /// Begins anew with a driver, whatever there was before; returns what was agreed on, or an error number.
    fn begin(&self, body: &[u8]) -> Result<InitOut, i32> {
        let mut asked = InitIn::default();
        let head = body.get(..size_of::<InitIn>()).ok_or(libc::EINVAL)?;
        asked.as_mut_slice().copy_from_slice(head);
        if asked.major < KERNEL_VERSION || (asked.major == KERNEL_VERSION && asked.minor < OLDEST_MINOR) {
            return Err(libc::EPROTO);
        }
        let mut agreed = InitOut {
            major: KERNEL_VERSION,
            minor: KERNEL_MINOR_VERSION,
            ..InitOut::default()
        };
        if asked.major > KERNEL_VERSION {
            // The driver asks again, in this version.
            return Ok(agreed);
        }
        self.files.destroy();
        let offered = FsOptions::from_bits_truncate(u64::from(asked.flags));
        // Attributes in lists would be asked for again by who wants them: a guest believes none.
        let offered = offered - (FsOptions::DO_READDIRPLUS | FsOptions::READDIRPLUS_AUTO);
        let wanted = FsOptions::ASYNC_READ
            | FsOptions::BIG_WRITES
            | FsOptions::ATOMIC_O_TRUNC
            | FsOptions::AUTO_INVAL_DATA
            | FsOptions::INIT_EXT
            | FsOptions::PARALLEL_DIROPS
            | FsOptions::POSIX_LOCKS
            | FsOptions::FLOCK_LOCKS
            | FsOptions::ASYNC_DIO
            | FsOptions::MAX_PAGES;
        let of_library = self.files.init(offered).map_err(|_| libc::EIO)?;
        let common = offered & (wanted | of_library);
        agreed.flags = u32::try_from(common.bits()).map_err(|_| libc::EIO)?;
        if offered.contains(FsOptions::INIT_EXT) {
            let more = body.get(size_of::<InitIn>()..).and_then(<[u8]>::first_chunk);
            agreed.flags2 = u32::from_le_bytes(*more.ok_or(libc::EINVAL)?) & DIRECT_IO_ALLOW_MMAP;
        }
        agreed.max_readahead = asked.max_readahead;
        agreed.max_background = MAX_BACKGROUND;
        agreed.congestion_threshold = MAX_BACKGROUND / 4 * 3;
        agreed.max_write = MAX_DATA_BYTES;
        agreed.max_pages = MAX_PAGES;
        agreed.time_gran = 1;
        Ok(agreed)
    }
}

/// Not `open`, which some C libraries make another system call of.
fn open_at(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty())
}

/// A number in the body of a request.
fn field(body: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*body.get(at..)?.first_chunk()?))
}

/// The number of the error that an answer is.
fn error_of(said: &[u8]) -> Option<i32> {
    let number = i32::from_le_bytes(*said.get(4..)?.first_chunk()?);
    number.checked_neg()
}

/// Answers a request with a body.
fn answer(machine: &Worker, slot: Slot<'_>, body: &[u8]) -> io::Result<()> {
    match slot.memory().offset(OUT_HEADER_BYTES) {
        Ok(place) if place.len() >= body.len() => {
            place.copy_from(body);
            machine.answer(slot, 0, body.len())
        }
        _ => machine.answer(slot, libc::EIO, 0),
    }
}

/// Answers a request that was kept, by the number of its slot.
fn answer_later(machine: &Worker, index: u8, error: i32) -> io::Result<()> {
    let slot = machine.slot(index).ok_or(io::ErrorKind::InvalidInput)?;
    machine.answer(slot, error, 0)
}

fn number(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// Why a thread ends that could not go on.
fn ended(error: io::Error) -> Ended {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Ended::Closed,
        _ => Ended::Failed(error),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
