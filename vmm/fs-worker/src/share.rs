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
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
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
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rvm_vmm::devices::virtio::fs::{MAX_DATA_BYTES, MAX_MESSAGE_BYTES, OUT_HEADER_BYTES, has_answer};
use vm_memory::ByteValued as _;

use crate::confine::Room;
use crate::listing;
use crate::locks::{self, Locks, Outcome};
use crate::request::{
    DESTROY, FLUSH, GETLK, INIT, INTERRUPT, READDIR, READDIRPLUS, RELEASE, Request, SETLK, SETLKW, SYNCFS,
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
    /// The machine has closed the socket.
    Closed,
    /// The directory is read-only from now on; requests are served.
    Sealed,
    /// A socket does not work.
    Failed(io::Error),
}

/// A directory that is served.
pub struct Share {
    files: Arc<PassthroughFs>,
    server: Server<Arc<PassthroughFs>>,
    /// For `syncfs`.
    root: OwnedFd,
    read_only: AtomicBool,
    creator: Creator,
    locks: Locks,
}

impl Share {
    /// Opens the directory in `room`.
    ///
    /// # Errors
    /// Those of opening it and of `/proc/self`.
    pub fn open(room: &Room, access: Access) -> io::Result<Self> {
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
            read_only: (access == Access::ReadOnly).into(),
            creator: room.creator(),
            locks: Locks::default(),
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

    /// Serves requests from `socket` as they come. Several threads may do so at once.
    pub fn serve_all(&self, socket: &OwnedFd) -> Ended {
        let mut message = vec![0; MAX_MESSAGE_BYTES];
        let mut answer = vec![0; MAX_MESSAGE_BYTES];
        loop {
            let length = match recv(socket, message.as_mut_slice(), RecvFlags::empty()) {
                // A machine sends no empty message.
                Ok((0, _)) => return Ended::Closed,
                Ok((length, _)) => length,
                Err(Errno::INTR) => continue,
                Err(error) => return Ended::Failed(error.into()),
            };
            let request = message.get_mut(..length).unwrap_or_default();
            match self.serve(socket.as_fd(), request, &mut answer) {
                Ok(()) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Ended::Closed,
                Err(error) => return Ended::Failed(error.into()),
            }
        }
    }

    /// Serves one request; sends one answer to it, if it is to have one.
    fn serve(&self, socket: BorrowedFd<'_>, message: &mut [u8], space: &mut [u8]) -> Result<(), Errno> {
        let mut request = match Request::check(message, self.access()) {
            Ok(request) => request,
            Err(refused) => {
                return match refused.error {
                    Some(error) => send_answer(socket, refused.id, error, &[]),
                    None => Ok(()),
                };
            }
        };
        let id = request.id;
        match request.opcode {
            INIT => match self.begin(request.body()) {
                Ok(agreed) => {
                    self.forget_locks(socket)?;
                    send_answer(socket, id, 0, agreed.as_slice())
                }
                Err(error) => send_answer(socket, id, error, &[]),
            },
            DESTROY => {
                self.forget_locks(socket)?;
                self.files.destroy();
                send_answer(socket, id, 0, &[])
            }
            SYNCFS => {
                let result = rustix::fs::syncfs(&self.root);
                send_answer(socket, id, result.err().map_or(0, Errno::raw_os_error), &[])
            }
            GETLK | SETLK | SETLKW => self.lock(socket, &request),
            READDIR | READDIRPLUS => self.list(socket, &request),
            // What was asked for cannot be taken back: Linux does not even say so to a virtio device.
            INTERRUPT => Ok(()),
            opcode => {
                self.give_locks_back(&request);
                if self.creator == Creator::Worker {
                    request.set_root();
                }
                let answered = self.ask_library(socket, request.message, space);
                if answered || !has_answer(opcode) {
                    return Ok(());
                }
                send_answer(socket, id, libc::EIO, &[])
            }
        }
    }

    /// Answers requests that wait for locks, as soon as they have them.
    pub fn serve_locks(&self, socket: &OwnedFd) -> Ended {
        let answer = |id, error| send_answer(socket.as_fd(), id, error, &[]);
        match self.locks.serve(answer) {
            Errno::PIPE | Errno::CONNRESET => Ended::Closed,
            error => Ended::Failed(error.into()),
        }
    }

    fn lock(&self, socket: BorrowedFd<'_>, request: &Request<'_>) -> Result<(), Errno> {
        let (id, node) = (request.id, request.node());
        let Some(asked) = locks::Asked::parse(node, request.body()) else {
            return send_answer(socket, id, libc::EINVAL, &[]);
        };
        let open = || self.open_for_locks(node);
        if request.opcode == GETLK {
            return match self.locks.test(&asked, open) {
                Ok(found) => send_answer(socket, id, 0, &found),
                Err(error) => send_answer(socket, id, error, &[]),
            };
        }
        match self.locks.set((id, asked), request.opcode == SETLKW, open) {
            Outcome::Answer(error) => send_answer(socket, id, error, &[]),
            Outcome::Later => Ok(()),
        }
    }

    fn list(&self, socket: BorrowedFd<'_>, request: &Request<'_>) -> Result<(), Errno> {
        let listed = listing::Asked::parse(request.node(), request.body())
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
            .and_then(|asked| listing::list(&self.files, asked, request.opcode == READDIRPLUS));
        match listed {
            Ok(entries) => send_answer(socket, request.id, 0, &entries),
            Err(error) => {
                let error = error.raw_os_error().unwrap_or(libc::EIO);
                send_answer(socket, request.id, error, &[])
            }
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

    fn forget_locks(&self, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        let waited = self.locks.clear();
        waited
            .into_iter()
            .try_for_each(|id| send_answer(socket, id, libc::EINTR, &[]))
    }

    /// Opens a file that the driver knows once more, by the name that it has now. One without a name cannot be locked.
    fn open_for_locks(&self, node: u64) -> io::Result<File> {
        let context = Context::default();
        let (known, _) = self.files.getattr(&context, node, None)?;
        let path = self.files.readlinkat_proc_file(node)?;
        let no_lock = || io::Error::from_raw_os_error(libc::ENOLCK);
        let file = self.open_any_way(&path).map_err(|_| no_lock())?;
        let found = rustix::fs::fstat(&file)?;
        // Somebody may have given the name to another file.
        if (found.st_dev, found.st_ino) == (known.st_dev, known.st_ino) {
            Ok(file)
        } else {
            Err(no_lock())
        }
    }

    /// For writing, if that is possible: a lock against all others needs it.
    fn open_any_way(&self, path: &Path) -> rustix::io::Result<File> {
        let open = |access| {
            let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            // Not `open`, which some C libraries make another system call of.
            rustix::fs::openat(CWD, path, flags, Mode::empty()).map(File::from)
        };
        match self.access() {
            Access::ReadOnly => open(OFlags::RDONLY),
            Access::ReadWrite => open(OFlags::RDWR).or_else(|_| open(OFlags::RDONLY)),
        }
    }

    /// Whether the library has sent an answer.
    fn ask_library(&self, socket: BorrowedFd<'_>, message: &mut [u8], space: &mut [u8]) -> bool {
        let reader = Reader::<()>::from_fuse_buffer(FuseBuf::new(message));
        let writer = FuseDevWriter::<()>::new(socket.as_raw_fd(), space);
        let (Ok(reader), Ok(writer)) = (reader, writer) else {
            return false;
        };
        // It fails where its answer does not fit or cannot be sent, and then it has sent none.
        let sent = self
            .server
            .handle_message(reader, Writer::FuseDev(writer), None, None);
        sent.is_ok_and(|bytes| bytes > 0)
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

/// A number in the body of a request.
fn field(body: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*body.get(at..)?.first_chunk()?))
}

/// Sends an answer: an error number, or 0 and a body.
fn send_answer(socket: BorrowedFd<'_>, id: u64, error: i32, body: &[u8]) -> Result<(), Errno> {
    let mut answer = Vec::with_capacity(OUT_HEADER_BYTES + body.len());
    let length = u32::try_from(OUT_HEADER_BYTES + body.len()).unwrap_or(u32::MAX);
    answer.extend(length.to_le_bytes());
    answer.extend((-error).to_le_bytes());
    answer.extend(id.to_le_bytes());
    answer.extend(body);
    send(socket, &answer, SendFlags::NOSIGNAL).map(drop)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
