//! The calls that the compiler cannot check: the one module of this crate with unsafe code.
//!
//! Everything here is a thin function with a safe signature. What cannot have one (taking over an inherited descriptor
//! by number) is marked unsafe and says what the caller owes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::thread::JoinHandleExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::JoinHandle;

use kvm_bindings::{KVM_EXIT_INTERNAL_ERROR, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::memory::{GuestMemoryRegion, GuestRegion, VolatileSlice};

/// The descriptors that this process was started with, above standard error.
///
/// They have no owner until they are taken from here. It must be the first thing that a program makes, before anything
/// of its own opens a descriptor, and there is one per process.
#[derive(Debug)]
pub struct Inherited {
    taken: BTreeSet<RawFd>,
}

impl Inherited {
    /// The inherited descriptors; `None` the second time.
    #[must_use]
    pub fn once() -> Option<Self> {
        static MADE: AtomicBool = AtomicBool::new(false);
        (!MADE.swap(true, Ordering::SeqCst)).then(|| Self {
            taken: BTreeSet::new(),
        })
    }

    /// Takes over descriptor `fd`.
    ///
    /// # Errors
    /// `EBADF` if it is not open, one of the standard three, or taken already.
    pub fn take(&mut self, fd: RawFd) -> io::Result<OwnedFd> {
        // SAFETY: F_GETFD takes no pointer; a number that is not open is answered with EBADF.
        if fd <= 2 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 || !self.taken.insert(fd) {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        // SAFETY: the descriptor is open. It has no other owner: the process was started with it (this value exists once
        // and was made first), and `taken` says that it is handed out for the first time.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Closes every descriptor that was neither taken nor is in `keep`, those that others leaked included.
    ///
    /// # Errors
    /// Those of `close_range(2)`.
    pub fn close_others(&self, keep: &[RawFd]) -> io::Result<()> {
        let mut kept: BTreeSet<u32> = self
            .taken
            .iter()
            .chain(keep)
            .filter_map(|fd| u32::try_from(*fd).ok())
            .collect();
        kept.extend([0, 1, 2]);
        let mut first = 0;
        for fd in kept.into_iter().chain([u32::MAX]) {
            if first < fd {
                // SAFETY: close_range takes three integers. What it closes was inherited and has no owner.
                if unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) } < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            first = fd.saturating_add(1);
        }
        Ok(())
    }
}

/// Blocks `SIGTERM` for this thread and those it starts, and returns a descriptor that becomes readable when it arrives.
///
/// # Errors
/// Those of `signalfd(2)`.
pub fn termination_descriptor() -> io::Result<OwnedFd> {
    vmm_sys_util::signal::block_signal(libc::SIGTERM)
        .map_err(|error| io::Error::other(format!("{error:?}")))?;
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the whole set it is given; sigaddset and signalfd then read and write an
    // initialised set of the right type.
    let fd = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: signalfd returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the KVM interface from an opened `/dev/kvm`.
#[must_use]
pub fn kvm_from(fd: OwnedFd) -> Kvm {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor is open and its ownership moves into the new value. If it is not /dev/kvm, ioctls on it
    // fail; they cannot corrupt memory, because KVM's request numbers encode the sizes of their arguments.
    unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) }
}

/// A stretch of this process's memory that becomes guest memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemorySlot {
    pub(crate) slot: u32,
    pub(crate) guest_address: u64,
    pub(crate) bytes: u64,
    pub(crate) host_address: *mut u8,
}

impl MemorySlot {
    /// The slot for a region of guest memory.
    pub(crate) fn of(slot: u32, region: &GuestRegion) -> Self {
        Self {
            slot,
            guest_address: region.start_addr().0,
            bytes: region.len(),
            host_address: region.as_ptr(),
        }
    }
}

/// Gives `slot` to the guest.
///
/// # Safety
/// The host memory must stay mapped for as long as the VM exists, and must hold no Rust object: the guest writes it at
/// any time.
pub(crate) unsafe fn register_memory(vm: &VmFd, slot: MemorySlot) -> Result<(), kvm_ioctls::Error> {
    let region = kvm_userspace_memory_region {
        slot: slot.slot,
        flags: 0,
        guest_phys_addr: slot.guest_address,
        memory_size: slot.bytes,
        userspace_addr: slot.host_address as u64,
    };
    // SAFETY: the caller promises what KVM requires of the range.
    unsafe { vm.set_user_memory_region(region) }
}

/// Ends another thread's `KVM_RUN`, or the next one it begins.
///
/// The vCPU's `immediate_exit` byte is set first and the signal sent second, so that a thread which is about to enter
/// the guest is stopped by the byte and one that is inside by the signal: no wake-up is lost.
#[derive(Debug)]
pub(crate) struct Kicker {
    immediate_exit: NonNull<AtomicU8>,
}

// SAFETY: the pointer leads into the vCPU's shared kvm_run page, which is not bound to a thread, and is only used for
// an atomic store.
unsafe impl Send for Kicker {}

impl Kicker {
    /// A handle for `vcpu`.
    ///
    /// # Safety
    /// It must not be used after the vCPU is dropped.
    pub(crate) unsafe fn new(vcpu: &mut VcpuFd) -> Self {
        let byte = NonNull::from(&mut vcpu.get_kvm_run().immediate_exit);
        Self {
            immediate_exit: byte.cast(),
        }
    }

    /// Ends the `KVM_RUN` of `thread`, which must be the one that runs this vCPU.
    pub(crate) fn kick<T>(&self, thread: &JoinHandle<T>) {
        // SAFETY: the byte lies in the kvm_run mapping, which lives as long as the vCPU (promised at creation); an
        // AtomicU8 has the size and alignment of a byte.
        unsafe { self.immediate_exit.as_ref() }.store(1, Ordering::SeqCst);
        // SAFETY: the handle was not joined, so its pthread_t is valid; the signal has a handler that does nothing.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
    }
}

/// Installs the handler that lets [`Kicker::kick`] interrupt a system call. It does nothing else.
///
/// # Errors
/// Those of `sigaction(2)`.
pub(crate) fn install_kick_handler() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), nothing).map_err(io::Error::from)
}

/// The suberror and data words of the last `KVM_EXIT_INTERNAL_ERROR`, if that was the last exit.
pub(crate) fn internal_error(vcpu: &mut VcpuFd) -> Option<(u32, Vec<u64>)> {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return None;
    }
    // SAFETY: exit_reason says which member of the union KVM filled in; all its bit patterns are valid integers.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let words = usize::try_from(internal.ndata)
        .unwrap_or(0)
        .min(internal.data.len());
    Some((internal.suberror, internal.data[..words].to_vec()))
}

/// Reads from `file` at `offset` straight into guest memory; returns the bytes read, 0 at end of file.
///
/// # Errors
/// Those of `preadv(2)`; `EINTR` is retried.
pub(crate) fn read_at(file: &File, into: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
    let offset = file_offset(offset)?;
    vectored(into, |vector, count| {
        // SAFETY: each element is a live stretch of guest memory (the slices are borrowed for the whole call) that the
        // kernel may write; guest memory holds no Rust object.
        unsafe { libc::preadv(file.as_raw_fd(), vector, count, offset) }
    })
}

/// Writes guest memory to `file` at `offset`; returns the bytes written.
///
/// # Errors
/// Those of `pwritev(2)`; `EINTR` is retried.
pub(crate) fn write_at(file: &File, from: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
    let offset = file_offset(offset)?;
    vectored(from, |vector, count| {
        // SAFETY: each element is a live stretch of guest memory (borrowed for the whole call) that the kernel reads.
        unsafe { libc::pwritev(file.as_raw_fd(), vector, count, offset) }
    })
}

/// Receives from a stream socket straight into guest memory, without blocking; returns 0 at end of stream.
///
/// # Errors
/// Those of `recvmsg(2)`; `EINTR` is retried.
pub(crate) fn receive(socket: BorrowedFd<'_>, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
    vectored(into, |vector, count| {
        let mut message = message(vector, count);
        // SAFETY: the message names only the vector, whose elements are live guest memory that the kernel may write;
        // no address or control buffer is given.
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) }
    })
}

/// Sends guest memory to a stream socket, without blocking and without `SIGPIPE`; returns the bytes taken.
///
/// # Errors
/// Those of `sendmsg(2)`; `EINTR` is retried.
pub(crate) fn send(socket: BorrowedFd<'_>, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
    vectored(from, |vector, count| {
        let message = message(vector, count);
        // SAFETY: as in `receive`, and the kernel only reads the elements.
        unsafe {
            libc::sendmsg(
                socket.as_raw_fd(),
                &raw const message,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        }
    })
}

fn message(vector: *const libc::iovec, count: libc::c_int) -> libc::msghdr {
    // SAFETY: msghdr is a C structure of integers and pointers, for which all zeros is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vector.cast_mut();
    message.msg_iovlen = usize::try_from(count).unwrap_or(0);
    message
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Runs a vectored system call over at most `IOV_MAX` (1024) of the slices.
fn vectored(
    slices: &[VolatileSlice<'_>],
    mut call: impl FnMut(*const libc::iovec, libc::c_int) -> isize,
) -> io::Result<usize> {
    let slices = &slices[..slices.len().min(1024)];
    let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let vector: Vec<libc::iovec> = guards
        .iter()
        .map(|guard| libc::iovec {
            iov_base: guard.as_ptr().cast(),
            iov_len: guard.len(),
        })
        .collect();
    let count = libc::c_int::try_from(vector.len()).unwrap_or(0);
    loop {
        match usize::try_from(call(vector.as_ptr(), count)) {
            Ok(bytes) => return Ok(bytes),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
