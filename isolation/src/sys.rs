//! System calls that no safe wrapper exists for. This is the only module of the crate with `unsafe`; each function
//! takes and returns owned or borrowed descriptors and plain data, and reports the kernel's error unchanged.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_void};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

unsafe extern "C" {
    /// glibc's `nss.h`: the services of a name database of this process, instead of those in `nsswitch.conf`.
    fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
}

/// Makes this process resolve host names by `/etc/hosts` and DNS alone, whatever `nsswitch.conf` says.
///
/// The other services are shared libraries, which would bring their own C library into this static program and crash
/// it. The two are part of the C library itself since glibc 2.34. To be called before other threads resolve names.
pub fn resolve_by_files_and_dns() {
    // SAFETY: both arguments are constant strings that end with NUL, and are only read. A service that is not known would be
    // refused by the returned value; these two are in every glibc.
    unsafe {
        __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr());
    }
}

/// Processor time that this process' children took which it has waited for, with those that they have waited for: in programs,
/// in the kernel and in guests. getrusage(2), `RUSAGE_CHILDREN`.
///
/// # Errors
/// The kernel's.
pub fn children_processor_time() -> io::Result<Duration> {
    // SAFETY: rusage is a C structure of integers, for which all zeros is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: getrusage writes a rusage, which `usage` is, and keeps no pointer to it.
    check(unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) }.into())?;
    let time = |time: libc::timeval| {
        let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or_default());
        seconds + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or_default())
    };
    Ok(time(usage.ru_utime) + time(usage.ru_stime))
}

/// Gives back the pages of this program's code and constants that are mapped in it, for a process that has started and will
/// from now on need little of them. What is needed again is mapped again, from the page cache. madvise(2), `MADV_DONTNEED`.
///
/// # Errors
/// The kernel's; the pages are then still there.
pub fn release_program_pages() -> io::Result<()> {
    /// # Safety
    /// As dl_iterate_phdr(3) calls it: `object` is one loaded object with its `dlpi_phnum` program headers, `outcome` what was
    /// given with this function.
    unsafe extern "C" fn release(
        object: *mut libc::dl_phdr_info,
        _size: libc::size_t,
        outcome: *mut c_void,
    ) -> c_int {
        // SAFETY: both are valid for the call, see above, and nobody else has them; the headers are never written.
        let (outcome, base, headers) = unsafe {
            let object = &*object;
            let headers = std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into());
            (&mut *outcome.cast::<io::Result<()>>(), object.dlpi_addr, headers)
        };
        // SAFETY: sysconf(3) reads a constant of the system.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let address = |offset: u64| usize::try_from(base + offset).ok();
        for header in headers {
            if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
                continue;
            }
            let start = address(header.p_vaddr).map(|start| start.next_multiple_of(page));
            let end = address(header.p_vaddr + header.p_filesz).map(|end| end / page * page);
            let (Some(start), Some(end)) = (start, end) else {
                continue;
            };
            let length = end.saturating_sub(start);
            // SAFETY: these whole pages are of a segment that is mapped from the program's file and that nothing may write
            // to, neither the program nor, since it has no text relocations, its loader: read again, they are the same.
            let released = unsafe { libc::madvise(start as *mut c_void, length, libc::MADV_DONTNEED) };
            if let Err(error) = check(released.into()) {
                *outcome = Err(error);
            }
        }
        0
    }
    let mut outcome = Ok(());
    // SAFETY: `release` is what dl_iterate_phdr(3) wants, and `outcome` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(release), (&raw mut outcome).cast()) };
    outcome
}

/// Gives the calling thread mounts, a root directory and a working directory of its own.
pub(crate) fn leave_mounts() -> io::Result<()> {
    // SAFETY: unshare(2) takes flags alone. These two change nothing that other threads see or that memory or descriptors
    // depend on.
    let result = unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes the working directory the root directory of the calling thread, whose directories are its own.
pub(crate) fn enter_directory() -> io::Result<()> {
    rustix::process::chroot(".")?;
    Ok(rustix::process::chdir("/")?)
}

/// Gives the calling thread a root directory and a working directory of its own.
pub(crate) fn leave_directories() -> io::Result<()> {
    // SAFETY: as in `leave_mounts`.
    check(unsafe { libc::unshare(libc::CLONE_FS) }.into())
}

/// Descriptor of the synchronisation socket in the child, after the three standard streams.
pub(crate) const SYNC_FD: RawFd = 3;

/// The child reports a failure before its `execveat` as this word, the step's number and the error number, each 32 bits
/// in host order. It cannot be mistaken for the length of a frame.
pub(crate) const EARLY_FAILURE: u32 = u32::MAX;

/// What [`clone_and_exec`] needs. All descriptors are numbered above [`SYNC_FD`], so that none is overwritten while
/// they are moved to their places.
pub(crate) struct Child<'a> {
    /// `CLONE_NEW*` flags of `linux/sched.h`.
    pub(crate) namespaces: u64,
    /// The cgroup directory the child starts in.
    pub(crate) cgroup: BorrowedFd<'a>,
    /// The program, executed with the single argument `name` and no environment.
    pub(crate) executable: BorrowedFd<'a>,
    pub(crate) name: &'a CStr,
    /// Descriptors 0 to 3 of the child.
    pub(crate) descriptors: [BorrowedFd<'a>; 4],
}

/// A step of the child between `clone3` and `execveat`.
#[derive(Clone, Copy)]
#[repr(u32)]
enum EarlyStep {
    DeathSignal,
    MoveDescriptors,
    CloseDescriptors,
    Execute,
}

/// The name of the step a child reported with [`EARLY_FAILURE`].
pub(crate) fn early_step_name(number: u32) -> &'static str {
    const NAMES: [(EarlyStep, &str); 4] = [
        (EarlyStep::DeathSignal, "prctl(PR_SET_PDEATHSIG)"),
        (EarlyStep::MoveDescriptors, "dup3"),
        (EarlyStep::CloseDescriptors, "close_range"),
        (EarlyStep::Execute, "execveat"),
    ];
    let known = NAMES.iter().find(|(step, _)| *step as u32 == number);
    known.map_or("an unknown step", |(_, name)| name)
}

/// Starts `child` in new namespaces and inside its cgroup; returns its PID and pidfd.
///
/// The child is killed when the calling thread ends (`PR_SET_PDEATHSIG` is bound to the thread, not to the process).
/// It inherits the calling thread's signal mask.
pub(crate) fn clone_and_exec(child: &Child<'_>) -> io::Result<(i32, OwnedFd)> {
    let mut pidfd: RawFd = -1;
    let arguments = [child.name.as_ptr(), ptr::null()];
    let environment: [*const c_char; 1] = [ptr::null()];
    // SAFETY: clone_args is plain integers, for which zero is valid.
    let mut clone: libc::clone_args = unsafe { std::mem::zeroed() };
    clone.flags = child.namespaces | CLONE_INTO_CGROUP | flag(libc::CLONE_PIDFD);
    clone.pidfd = ptr::from_mut(&mut pidfd).addr() as u64;
    clone.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    clone.cgroup = u64::from(child.cgroup.as_raw_fd().unsigned_abs());
    // SAFETY: without CLONE_VM and with no new stack this is a fork: the child goes on with a copy of this address space.
    // The process may have other threads, which the copy lacks, so the child makes only system calls that need no lock
    // and no memory from the allocator: see `run_child`. `clone` and `pidfd` outlive the call.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            ptr::from_mut(&mut clone),
            size_of::<libc::clone_args>(),
        )
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: this is the child of the clone above; the arrays end with null pointers.
        0 => unsafe { run_child(child, arguments.as_ptr(), environment.as_ptr()) },
        // SAFETY: the kernel stored a new descriptor that nothing else owns.
        _ => Ok((i32::try_from(pid).map_err(io::Error::other)?, unsafe {
            OwnedFd::from_raw_fd(pidfd)
        })),
    }
}

/// `CLONE_INTO_CGROUP` of `linux/sched.h`; libc has it as a 32-bit integer, which it does not fit.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A C flag constant as the 64 bits that clone3 takes.
pub(crate) fn flag(constant: c_int) -> u64 {
    u64::from(constant.cast_unsigned())
}

/// The child between `clone3` and `execveat`: system calls only.
///
/// # Safety
/// To be called in a freshly cloned process only. `arguments` and `environment` are null-terminated arrays of C strings.
unsafe fn run_child(
    child: &Child<'_>,
    arguments: *const *const c_char,
    environment: *const *const c_char,
) -> ! {
    // SAFETY: plain system calls on integers and on memory that this process owns a copy of.
    unsafe {
        if libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) != 0 {
            fail_early(child, EarlyStep::DeathSignal);
        }
        for (target, source) in (0..).zip(&child.descriptors) {
            let target: c_int = target;
            if libc::syscall(libc::SYS_dup3, source.as_raw_fd(), target, 0) < 0 {
                fail_early(child, EarlyStep::MoveDescriptors);
            }
        }
        if libc::syscall(
            libc::SYS_close_range,
            SYNC_FD + 1,
            c_int::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        ) != 0
        {
            fail_early(child, EarlyStep::CloseDescriptors);
        }
        let executable = child.executable.as_raw_fd();
        libc::syscall(
            libc::SYS_execveat,
            executable,
            c"".as_ptr(),
            arguments,
            environment,
            libc::AT_EMPTY_PATH,
        );
        fail_early(child, EarlyStep::Execute)
    }
}

/// Reports the last error of `step` and ends the child.
///
/// # Safety
/// As for [`run_child`].
unsafe fn fail_early(child: &Child<'_>, step: EarlyStep) -> ! {
    // SAFETY: errno is thread-local; the record lives on the stack; the descriptor is open in this process.
    unsafe {
        let record = [
            EARLY_FAILURE,
            step as u32,
            (*libc::__errno_location()).cast_unsigned(),
        ];
        libc::syscall(
            libc::SYS_write,
            child.descriptors[3].as_raw_fd(),
            record.as_ptr(),
            size_of_val(&record),
        );
        libc::syscall(libc::SYS_exit_group, 1);
    }
    loop {
        // exit_group does not return; this tells the compiler so without a panic.
        std::hint::spin_loop();
    }
}

/// Blocks every signal in the calling thread, for good.
pub(crate) fn block_all_signals() -> io::Result<()> {
    // SAFETY: sigset_t is plain data that sigfillset initialises; the old mask is not asked for.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        match libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut()) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Gives every signal its default disposition and unblocks all of them, as a new program expects.
pub(crate) fn reset_signals() -> io::Result<()> {
    // SAFETY: a zeroed sigaction is SIG_DFL with an empty mask; the loop ignores the signals that cannot be changed, and
    // those that the C library keeps to itself, whose dispositions it never changes in a process without threads.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        for signal in 1..=libc::SIGRTMAX() {
            libc::sigaction(signal, &raw const default, ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()).into())
    }
}

/// Takes possession of [`SYNC_FD`] in the re-executed child; closed by the next `execve`.
pub(crate) fn take_sync_descriptor() -> io::Result<OwnedFd> {
    // SAFETY: fcntl on an integer; it fails if the descriptor is not open. Nothing else in this process owns it, because
    // this is called once, before anything was opened.
    unsafe {
        check(libc::fcntl(SYNC_FD, libc::F_SETFD, libc::FD_CLOEXEC).into())?;
        Ok(OwnedFd::from_raw_fd(SYNC_FD))
    }
}

/// Leaves the current cgroup namespace for a new one whose root is the process's own cgroup.
pub(crate) fn unshare_cgroup_namespace() -> io::Result<()> {
    // SAFETY: unshare of the cgroup namespace touches no memory of this process.
    check(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) }.into())
}

/// Joins a new, anonymous session keyring, so that the caller's keys are out of reach. See keyctl(2).
pub(crate) fn join_new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring; no memory is passed.
    let keyring = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            ptr::null::<c_char>(),
        )
    };
    check(keyring.min(0))
}

/// Adds and removes `MOUNT_ATTR_*` flags of the mount that `mount` refers to, and of those below it if `recursive`.
pub(crate) fn mount_setattr(mount: impl AsFd, recursive: bool, set: u64, clear: u64) -> io::Result<()> {
    change_mount(mount, recursive, (set, clear, 0))
}

/// Says what the mount that `mount` refers to, and those below it if `recursive`, tell others of what is mounted below them:
/// one of `MS_PRIVATE`, `MS_SLAVE` and `MS_SHARED`.
pub(crate) fn set_propagation(mount: impl AsFd, recursive: bool, propagation: u64) -> io::Result<()> {
    change_mount(mount, recursive, (0, 0, propagation))
}

fn change_mount(
    mount: impl AsFd,
    recursive: bool,
    (set, clear, propagation): (u64, u64, u64),
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string and the attributes live until the call returns.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })
}

/// Asks `/dev/loop-control` for the number of an unused loop device.
pub(crate) fn loop_unused(control: impl AsFd) -> io::Result<u32> {
    const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
    // SAFETY: the request takes no argument.
    let number = unsafe { libc::ioctl(control.as_fd().as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Attaches `file` to `device`, read-only; the last user's departure detaches it. `linux/loop.h`.
pub(crate) fn loop_attach(device: impl AsFd, file: impl AsFd) -> io::Result<()> {
    const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
    const LO_FLAGS_READ_ONLY: u32 = 1;
    const LO_FLAGS_AUTOCLEAR: u32 = 4;
    /// `struct loop_info64`.
    #[repr(C)]
    struct LoopInfo {
        identifiers: [u64; 5],
        numbers: [u32; 3],
        flags: u32,
        names: [u8; 160],
        initialisation: [u64; 2],
    }
    /// `struct loop_config`.
    #[repr(C)]
    struct LoopConfig {
        file: u32,
        block_size: u32,
        info: LoopInfo,
        reserved: [u64; 8],
    }
    // SAFETY: both are plain integers, for which zero is valid.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.file = file.as_fd().as_raw_fd().unsigned_abs();
    config.info.flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR;
    // SAFETY: the request reads a loop_config, which lives until the call returns.
    check(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_CONFIGURE, &raw const config) }.into())
}

/// Sets the network interface `name` up. netdevice(7).
pub(crate) fn interface_up(name: &CStr) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is plain data, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero, as a terminator.
    let limit = request.ifr_name.len() - 1;
    for (target, source) in request.ifr_name[..limit].iter_mut().zip(name.to_bytes()) {
        *target = source.cast_signed();
    }
    // SAFETY: both requests take an ifreq, of which SIOCGIFFLAGS initialises ifru_flags.
    unsafe {
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request).into())?;
        let up = i16::try_from(libc::IFF_UP).map_err(io::Error::other)?;
        request.ifr_ifru.ifru_flags |= up;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request).into())
    }
}

/// Installs a classic BPF program as seccomp filter of this thread. seccomp(2).
pub(crate) fn install_seccomp_filter(program: &[libc::sock_filter], flags: u64) -> io::Result<()> {
    let header = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut(),
    };
    let operation = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the header describes the slice exactly; the kernel copies and only reads it.
    check(unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const header) }.min(0))
}

/// A thread of another process that stands still, by ptrace(2), and goes on when this is gone.
#[derive(Debug)]
pub(crate) struct StoppedThread(libc::pid_t);

impl StoppedThread {
    /// # Errors
    /// `ESRCH` where there is none, `EPERM` where it may not be traced or is by somebody else.
    pub(crate) fn stop(thread: i32) -> io::Result<Self> {
        // `PTRACE_SEIZE` takes options, of which there are none here.
        ptrace(libc::PTRACE_SEIZE, thread, 0, 0)?;
        let stopped = Self(thread);
        ptrace(libc::PTRACE_INTERRUPT, thread, 0, 0)?;
        let mut status = 0;
        loop {
            // SAFETY: waitpid writes the status, a c_int, and keeps no pointer to it.
            let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
            match check(waited.min(0).into()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(()) if status >> 16 == libc::PTRACE_EVENT_STOP => return Ok(stopped),
                // A signal came first, and is the thread's to have.
                Ok(()) if libc::WIFSTOPPED(status) => {
                    let signal = usize::try_from(libc::WSTOPSIG(status)).map_err(io::Error::other)?;
                    ptrace(libc::PTRACE_CONT, thread, 0, signal)?;
                }
                // It has ended.
                Ok(()) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            }
        }
    }

    /// Its seccomp filters as they were installed, the first one first; none of a thread without.
    ///
    /// # Errors
    /// `EACCES` without `CAP_SYS_ADMIN`, `Unsupported` of a kernel without `CONFIG_CHECKPOINT_RESTORE`.
    pub(crate) fn seccomp_filters(&self) -> io::Result<Vec<Vec<libc::sock_filter>>> {
        let mut filters = Vec::new();
        for index in 0.. {
            let Some(count) = self.seccomp_filter(index, None)? else {
                break;
            };
            let nothing = libc::sock_filter {
                code: 0,
                jt: 0,
                jf: 0,
                k: 0,
            };
            let mut filter = vec![nothing; count];
            if self.seccomp_filter(index, Some(&mut filter))? != Some(count) {
                return Err(io::Error::other("a seccomp filter has changed its length"));
            }
            filters.push(filter);
        }
        if filters.is_empty() && self.is_filtered()? {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(filters)
    }

    /// The number of instructions of a filter, which are written to `into`, as many as it has room for exactly; `None` where there is
    /// no filter of that index.
    fn seccomp_filter(
        &self,
        index: usize,
        into: Option<&mut [libc::sock_filter]>,
    ) -> io::Result<Option<usize>> {
        let data = into.map_or(ptr::null_mut(), <[_]>::as_mut_ptr);
        // SAFETY: without `data` the kernel only counts. Else it writes as many instructions as it has counted, which is how many
        // there is room for: filters are numbered from the first one on, and one that is installed never changes.
        let count = unsafe { libc::ptrace(PTRACE_SECCOMP_GET_FILTER, self.0, index, data) };
        match check(count.min(0)).map(|()| count) {
            Ok(count) => Ok(Some(usize::try_from(count).map_err(io::Error::other)?)),
            // There are no more, or it has none at all, or the kernel cannot tell.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether there are filters, as proc(5) tells.
    fn is_filtered(&self) -> io::Result<bool> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0))?;
        Ok(status.lines().any(|line| line == "Seccomp:\t2"))
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        // Fails only where it has ended, or has not stopped, and then the end of this thread lets go of it.
        let _ = ptrace(libc::PTRACE_DETACH, self.0, 0, 0);
    }
}

/// `linux/ptrace.h`.
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;

/// Requests of ptrace(2) that take two numbers and write nothing.
fn ptrace(request: libc::c_uint, thread: libc::pid_t, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: of the requests made here (attach, interrupt, go on, let go) none takes a pointer.
    check(unsafe { libc::ptrace(request, thread, address, data) })
}

/// Loads an eBPF program of type `BPF_PROG_TYPE_CGROUP_DEVICE`. bpf(2).
pub(crate) fn load_device_program(instructions: &[u64]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: c_int = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    /// The part of `union bpf_attr` that loading a program needs.
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    let license = c"Apache-2.0";
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr().addr() as u64,
        license: license.as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads `load`, the instructions and the licence, all of which outlive the call; a positive result
    // is a new descriptor that nothing else owns.
    unsafe {
        let descriptor = libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>());
        check(descriptor.min(0))?;
        Ok(OwnedFd::from_raw_fd(
            RawFd::try_from(descriptor).map_err(io::Error::other)?,
        ))
    }
}

/// Attaches a device program to the cgroup whose directory is `cgroup`; it goes when the cgroup goes. bpf(2).
pub(crate) fn attach_device_program(cgroup: impl AsFd, program: impl AsFd) -> io::Result<()> {
    const BPF_PROG_ATTACH: c_int = 8;
    const BPF_CGROUP_DEVICE: u32 = 6;
    /// Programs of ancestors and other parties stay in force.
    const BPF_F_ALLOW_MULTI: u32 = 2;
    /// The part of `union bpf_attr` that attaching needs.
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    let attach = Attach {
        target: cgroup.as_fd().as_raw_fd().unsigned_abs(),
        program: program.as_fd().as_raw_fd().unsigned_abs(),
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the kernel reads `attach`, which outlives the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attach,
            size_of::<Attach>(),
        )
    })
}

/// Sends `signal`, any number the kernel knows, to the process behind `pidfd`. pidfd_send_signal(2).
///
/// # Errors
/// The kernel's: there is no such signal, the process has ended.
pub fn signal(pidfd: impl AsFd, signal: c_int) -> io::Result<()> {
    let pidfd = pidfd.as_fd().as_raw_fd();
    // SAFETY: a null siginfo asks for what kill(2) would send.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd,
            signal,
            ptr::null::<c_void>(),
            0,
        )
    })
}

/// Replaces this program; returns only if that fails.
pub(crate) fn execute(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: all strings are NUL-terminated and outlive the call, both arrays end with a null pointer.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// The same with the program that `file` is.
pub(crate) fn execute_descriptor(
    file: BorrowedFd<'_>,
    arguments: &[CString],
    environment: &[CString],
) -> io::Error {
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: all strings are NUL-terminated and outlive the call, both arrays end with a null pointer, and the descriptor
    // is open.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Pointers to strings, and a null pointer; they are good as long as the strings are.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([ptr::null()])
        .collect()
}

fn check(result: c_long) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::release_program_pages;

    /// Pages of files that are mapped in this process and present, in kB. proc_pid_status(5).
    fn resident_file_pages() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix("RssFile:"));
        value.unwrap().trim_end_matches("kB").trim().parse().unwrap()
    }

    #[test]
    fn a_program_goes_on_without_the_pages_of_its_start() {
        let before = resident_file_pages();
        release_program_pages().unwrap();
        let after = resident_file_pages();
        assert!(after < before, "{before} kB before, {after} kB after");
    }
}
