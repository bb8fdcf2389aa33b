//! The calls that the compiler cannot check: the one module of this crate with unsafe code, and its submodules.
//!
//! Everything here is a thin function with a safe signature. What cannot have one (taking over an inherited descriptor
//! by number) is marked unsafe and says what the caller owes.

pub(crate) mod owned_slice;
pub(crate) mod uring;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::thread::JoinHandleExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};

use kvm_bindings::{KVM_EXIT_INTERNAL_ERROR, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::bus::lock;
use crate::memory::{
    GuestMemory, GuestMemoryBackend, GuestMemoryRegion, Mapping, MappingBuilder, VolatileSlice,
};

/// Size of a small page on x86-64.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Size of a huge page on x86-64.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Maps private anonymous memory for a guest: it begins at a multiple of [`HUGE_PAGE_BYTES`], huge pages are asked for, and
/// nothing of it is there before it is touched. It stays mapped as long as the process lives, as a machine does.
///
/// # Errors
/// Those of `mmap(2)`, and `InvalidInput` for a size that overflows.
pub fn map_guest_memory(bytes: usize) -> io::Result<Mapping> {
    let length = bytes
        .checked_add(HUGE_PAGE_BYTES)
        .ok_or(io::ErrorKind::InvalidInput)?;
    let (protection, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
    );
    // SAFETY: without MAP_FIXED, no existing mapping is touched.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let slack = address.align_offset(HUGE_PAGE_BYTES).min(HUGE_PAGE_BYTES);
    // SAFETY: the mapping is HUGE_PAGE_BYTES longer than `bytes`, so that `bytes` follow `slack` within it.
    let start = unsafe { address.byte_add(slack) };
    // A host without huge pages answers EINVAL, and small ones do.
    // SAFETY: the range is within the mapping; the advice changes no content.
    let _ = unsafe { libc::madvise(start, bytes, libc::MADV_HUGEPAGE) };
    let builder = MappingBuilder::new(bytes)
        .with_mmap_prot(protection)
        .with_mmap_flags(flags);
    // SAFETY: `start` and `bytes` lie within the mapping made above, which nothing unmaps.
    unsafe { builder.with_raw_mmap_pointer(start.cast()) }
        .build()
        .map_err(io::Error::other)
}

/// Makes `bytes` of guest memory from `start` on a private view of `file` at `offset`, instead of what was there: nothing is
/// copied before the guest touches it, and what it only reads is shared with the host's page cache. What it writes stays its
/// own. All three are multiples of the page size.
///
/// # Errors
/// Those of `mmap(2)`, and `InvalidInput` for what is no whole number of pages.
pub(crate) fn map_file(memory: &VolatileSlice<'_>, file: &File, offset: u64) -> io::Result<()> {
    let guard = memory.ptr_guard_mut();
    if !guard.as_ptr().addr().is_multiple_of(PAGE_BYTES) || !memory.len().is_multiple_of(PAGE_BYTES) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (protection, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
    );
    // SAFETY: the pages that are replaced lie within guest memory, which is a private mapping that holds no Rust object, whose
    // content may change at any time, and which is readable and writable before and after. The file is the host's own; were it
    // made shorter, an access would end the process.
    let address = unsafe {
        libc::mmap(
            guard.as_ptr().cast(),
            memory.len(),
            protection,
            flags,
            file.as_raw_fd(),
            file_offset(offset)?,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Lets small pages back a stretch of guest memory, of which the whole pages count. A host that knows no others need not
/// be told.
pub(crate) fn use_small_pages(memory: &VolatileSlice<'_>) {
    let guard = memory.ptr_guard_mut();
    let start = guard.as_ptr();
    if start.addr().is_multiple_of(PAGE_BYTES) {
        // SAFETY: the range lies within guest memory; the advice changes no content.
        let _ = unsafe { libc::madvise(start.cast(), memory.len(), libc::MADV_NOHUGEPAGE) };
    }
}

/// Lets all threads share one heap: what few allocations there are do not pay for a heap for each thread. Must come before
/// there is a second thread.
pub fn share_heap() {
    // SAFETY: mallopt takes two integers. Should it refuse, there are more heaps.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

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

/// Moves the process into a mount namespace of its own. The caller has `CAP_SYS_ADMIN`.
///
/// # Errors
/// Those of `unshare(2)`.
pub fn unshare_mounts() -> io::Result<()> {
    unshare(libc::CLONE_NEWNS)
}

/// Moves the calling thread into a network namespace of its own, in which no interface is up. The caller has
/// `CAP_SYS_ADMIN`.
///
/// # Errors
/// Those of `unshare(2)`.
pub fn unshare_network() -> io::Result<()> {
    unshare(libc::CLONE_NEWNET)
}

fn unshare(namespace: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory or descriptor table is unshared: the callers name namespaces alone, which no memory access
    // depends on.
    if unsafe { libc::unshare(namespace) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Tries to make memory that is writable and executable.
#[cfg(test)]
pub(crate) fn map_executable() {
    let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping that nobody uses touches nothing.
    unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
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

/// What a guest sees as memory: its own, and pages that it can only read.
#[derive(Clone, Debug)]
struct Mapped {
    memory: GuestMemory,
    read_only: GuestMemory,
}

/// A virtual machine and the memory that it may touch.
#[derive(Debug)]
pub(crate) struct GuestVm {
    /// Before the memory, so that it is closed first.
    fd: VmFd,
    mapped: Mapped,
}

impl GuestVm {
    /// Makes a machine and gives it `memory`, and `read_only` to look at. The two do not overlap. Whoever changes the latter
    /// does so with volatile copies and atomic operations alone.
    pub(crate) fn new(
        kvm: &Kvm,
        memory: GuestMemory,
        read_only: GuestMemory,
    ) -> Result<Self, kvm_ioctls::Error> {
        let vm = Self {
            fd: kvm.create_vm()?,
            mapped: Mapped { memory, read_only },
        };
        let memory = vm.mapped.memory.iter().map(|region| (region, 0));
        let read_only = vm
            .mapped
            .read_only
            .iter()
            .map(|region| (region, KVM_MEM_READONLY));
        for (slot, (region, flags)) in (0..).zip(memory.chain(read_only)) {
            let region = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the range is one whole mapping of guest memory or of pages for the guest, which holds no Rust object and
            // is only accessed through volatile copies and atomics. It stays mapped while the guest may run: this value and
            // every vCPU hold it.
            unsafe { vm.fd.set_user_memory_region(region)? };
        }
        Ok(vm)
    }

    pub(crate) fn fd(&self) -> &VmFd {
        &self.fd
    }

    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.mapped.memory
    }

    /// Opens KVM's statistics of the machine.
    pub(crate) fn open_statistics(&self) -> io::Result<File> {
        open_statistics(&self.fd)
    }

    /// Makes the vCPU with this index.
    pub(crate) fn create_vcpu(&self, index: u8) -> Result<GuestVcpu, kvm_ioctls::Error> {
        let fd = self.fd.create_vcpu(u64::from(index))?;
        Ok(GuestVcpu {
            fd,
            _mapped: self.mapped.clone(),
        })
    }
}

/// A virtual CPU. It keeps its machine's memory mapped.
#[derive(Debug)]
pub(crate) struct GuestVcpu {
    /// Before the memory, so that it is closed first.
    fd: VcpuFd,
    _mapped: Mapped,
}

impl GuestVcpu {
    pub(crate) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Opens KVM's statistics of the vCPU. Waits while it runs.
    pub(crate) fn open_statistics(&self) -> io::Result<File> {
        open_statistics(&self.fd)
    }

    /// Makes the next [`GuestVcpu::run`] enter the guest again after [`RunningVcpu::kick`].
    pub(crate) fn clear_immediate_exit(&mut self) {
        let byte = &raw mut self.fd.get_kvm_run().immediate_exit;
        // SAFETY: the byte lies in the kvm_run mapping, which `self` keeps, and needs no alignment. Everybody but KVM
        // accesses it as an AtomicU8.
        unsafe { AtomicU8::from_ptr(byte) }.store(0, Ordering::SeqCst);
    }

    /// Lets the guest run until something has to be done for it.
    pub(crate) fn run(&mut self) -> Result<VcpuExit<'_>, kvm_ioctls::Error> {
        self.fd.run()
    }

    /// The suberror and data words of the last exit, if that was a `KVM_EXIT_INTERNAL_ERROR`.
    pub(crate) fn internal_error(&mut self) -> Option<(u32, Vec<u64>)> {
        let run = self.fd.get_kvm_run();
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
}

/// `KVM_GET_STATS_FD` (include/uapi/linux/kvm.h).
const KVM_GET_STATS_FD: libc::Ioctl = 0xaece;

fn open_statistics(fd: &impl AsRawFd) -> io::Result<File> {
    // SAFETY: the request takes no argument.
    let statistics = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_GET_STATS_FD, 0) };
    if statistics < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { File::from_raw_fd(statistics) })
}

/// Stack of a thread. The usual 2 MiB may lie so that the host backs them by one huge page, which is cleared and taken for the
/// few KiB that are used.
const STACK_BYTES: usize = 256 << 10;

/// Makes the machine's threads.
pub(crate) fn thread_builder(name: String) -> Builder {
    Builder::new().name(name).stack_size(STACK_BYTES)
}

/// A vCPU on a thread of its own.
#[derive(Debug)]
pub(crate) struct RunningVcpu {
    thread: JoinHandle<()>,
    /// Locked by the thread while it runs; here to keep what `immediate_exit` points into.
    _vcpu: Arc<Mutex<GuestVcpu>>,
    immediate_exit: NonNull<AtomicU8>,
}

impl RunningVcpu {
    /// Runs `body` with the vCPU on a new thread. The body must return when a [`GuestVcpu::run`] is interrupted and the
    /// machine is ending.
    pub(crate) fn start(
        name: String,
        mut vcpu: GuestVcpu,
        body: impl FnOnce(&mut GuestVcpu) + Send + 'static,
    ) -> io::Result<Self> {
        register_signal_handler(SIGRTMIN(), ignore_signal)?;
        let immediate_exit = NonNull::from(&mut vcpu.fd.get_kvm_run().immediate_exit).cast();
        let vcpu = Arc::new(Mutex::new(vcpu));
        let shared = vcpu.clone();
        let thread = thread_builder(name).spawn(move || body(&mut lock(&shared)))?;
        Ok(Self {
            thread,
            _vcpu: vcpu,
            immediate_exit,
        })
    }

    /// Interrupts the thread's [`GuestVcpu::run`], or the next one that it begins.
    ///
    /// The vCPU's `immediate_exit` byte is set first and the signal sent second, so that a thread which is about to enter
    /// the guest is stopped by the byte and one that is inside by the signal: no wake-up is lost.
    pub(crate) fn kick(&self) {
        // SAFETY: the byte lies in the kvm_run mapping, which `_vcpu` keeps and which does not move. An AtomicU8 has the
        // layout of a byte, and the only other accesses are KVM's.
        unsafe { self.immediate_exit.as_ref() }.store(1, Ordering::SeqCst);
        // SAFETY: the thread was not joined, so its pthread_t is valid; the signal has a handler that does nothing.
        unsafe { libc::pthread_kill(self.thread.as_pthread_t(), SIGRTMIN()) };
    }

    /// Interrupts the thread and waits for its end.
    pub(crate) fn join(self) {
        self.kick();
        // A panic on the thread ends the process in a release build; in a test it has been printed.
        let _ = self.thread.join();
    }
}

/// Lets a signal interrupt a system call, and does nothing else.
extern "C" fn ignore_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Gives the whole pages within a stretch of guest memory back to the host; they read as zeros afterwards. A host that
/// refuses keeps them.
pub(crate) fn discard(slice: &VolatileSlice<'_>) {
    let guard = slice.ptr_guard_mut();
    let skipped = guard.as_ptr().align_offset(PAGE_BYTES);
    let Some(whole) = slice.len().checked_sub(skipped) else {
        return;
    };
    let whole = whole - whole % PAGE_BYTES;
    if whole == 0 {
        return;
    }
    // SAFETY: `skipped` is within the slice.
    let start = unsafe { guard.as_ptr().add(skipped) };
    // SAFETY: the pages lie within guest memory, which is a private anonymous mapping that holds no Rust object and whose
    // content may change at any time.
    let _ = unsafe { libc::madvise(start.cast(), whole, libc::MADV_DONTNEED) };
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

/// Reads as [`read_at`] does, but only what the host has in its cache.
///
/// # Errors
/// Those of `preadv2(2)`: `EAGAIN` if nothing of it is there, `EOPNOTSUPP` if the file system cannot tell.
pub(crate) fn read_cached_at(file: &File, into: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
    let offset = file_offset(offset)?;
    vectored(into, |vector, count| {
        // SAFETY: as in `read_at`.
        unsafe { libc::preadv2(file.as_raw_fd(), vector, count, offset, libc::RWF_NOWAIT) }
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

/// Reads one frame from a TAP interface straight into guest memory.
///
/// # Errors
/// Those of `readv(2)`; `EINTR` is retried.
pub(crate) fn read_frame(tap: BorrowedFd<'_>, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
    vectored(into, |vector, count| {
        // SAFETY: each element is a live stretch of memory (borrowed for the whole call) that the kernel may write and
        // that is only accessed through volatile copies.
        unsafe { libc::readv(tap.as_raw_fd(), vector, count) }
    })
}

/// Writes guest memory to a TAP interface as one frame.
///
/// # Errors
/// Those of `writev(2)`; `EINTR` is retried.
pub(crate) fn write_frame(tap: BorrowedFd<'_>, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
    vectored(from, |vector, count| {
        // SAFETY: each element is a live stretch of memory (borrowed for the whole call) that the kernel reads.
        unsafe { libc::writev(tap.as_raw_fd(), vector, count) }
    })
}

/// Requests of `/dev/net/tun` (include/uapi/linux/if_tun.h).
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNGETIFF: libc::Ioctl = 0x8004_54d2;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;
const TUNSETQUEUE: libc::Ioctl = 0x4004_54d9;

fn interface_request(flags: libc::c_int) -> libc::ifreq {
    // SAFETY: ifreq is a C structure of integers and a union of such, for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The flags of a TAP interface fit into 16 bits, of which the uppermost is one (IFF_TUN_EXCL).
    let [low, high, ..] = flags.to_le_bytes();
    request.ifr_ifru.ifru_flags = libc::c_short::from_le_bytes([low, high]);
    request
}

/// Opens one queue of the TAP interface `name` for a network device, and makes the interface if there is none. All queues
/// of an interface are opened alike.
///
/// # Errors
/// Those of `open(2)` on `/dev/net/tun` and of `TUNSETIFF`, and `InvalidInput` for a name that is too long.
pub fn open_tap(name: &str, multi_queue: bool) -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/net/tun")?;
    let more = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    let mut request = interface_request(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | more);
    // The last byte stays zero.
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (byte, character) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *byte = libc::c_char::from_le_bytes([character]);
    }
    // SAFETY: TUNSETIFF reads and writes an ifreq, which `request` is, and keeps no pointer to it.
    if unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(device.into())
}

/// The `IFF_` flags of a TAP interface's queue.
///
/// # Errors
/// Those of `TUNGETIFF`: `EBADFD` before `TUNSETIFF`, `ENOTTY` for another file.
pub(crate) fn tap_flags(tap: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    let mut request = interface_request(0);
    // SAFETY: TUNGETIFF writes an ifreq, which `request` is, and keeps no pointer to it.
    if unsafe { libc::ioctl(tap.as_raw_fd(), TUNGETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: TUNGETIFF has filled in this member of the union; all its bit patterns are valid integers.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(libc::c_int::from(u16::from_le_bytes(flags.to_le_bytes())))
}

/// Sets the length of the header before each frame of the interface.
///
/// # Errors
/// Those of `TUNSETVNETHDRSZ`.
pub(crate) fn set_tap_header(tap: BorrowedFd<'_>, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    match unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETVNETHDRSZ, &raw const bytes) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Says what the reader of the interface's frames can do by itself: `TUN_F_` flags.
///
/// # Errors
/// Those of `TUNSETOFFLOAD`.
pub(crate) fn set_tap_offload(tap: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes an integer.
    match unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(flags)) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets a queue of a multi-queue interface take part in its traffic, or not: what waits in it is dropped then.
///
/// # Errors
/// Those of `TUNSETQUEUE`: `EINVAL` if it is so already.
pub(crate) fn attach_tap_queue(tap: BorrowedFd<'_>, attach: bool) -> io::Result<()> {
    let flags = if attach {
        libc::IFF_ATTACH_QUEUE
    } else {
        libc::IFF_DETACH_QUEUE
    };
    let request = interface_request(flags);
    // SAFETY: TUNSETQUEUE reads an ifreq, which `request` is, and keeps no pointer to it.
    match unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETQUEUE, &raw const request) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Receives from a socket straight into guest memory, without blocking; returns 0 at end of stream.
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

/// Sends guest memory to a socket, without blocking and without `SIGPIPE`; returns the bytes taken.
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

/// Runs a vectored system call over at most `IOV_MAX` (1024) of the slices. Those of an ordinary frame or request need no
/// allocation.
fn vectored(
    slices: &[VolatileSlice<'_>],
    mut call: impl FnMut(*const libc::iovec, libc::c_int) -> isize,
) -> io::Result<usize> {
    let slices = &slices[..slices.len().min(1024)];
    let none = libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    };
    let (mut few, mut many) = ([none; 64], Vec::new());
    let vector = match few.get_mut(..slices.len()) {
        Some(vector) => vector,
        None => {
            many.resize(slices.len(), none);
            &mut many
        }
    };
    for (element, slice) in vector.iter_mut().zip(slices) {
        element.iov_base = slice.ptr_guard_mut().as_ptr().cast();
        element.iov_len = slice.len();
    }
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
