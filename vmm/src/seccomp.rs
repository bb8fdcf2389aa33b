//! Which system calls each kind of thread may make, and why. Anything else kills the process.
//!
//! Filters add up and are inherited: a thread of the machine has passed [`Kind::StartUp`]'s and its own, so it may only do
//! what both allow. Installing one sets `no_new_privs` (seccomp(2)).

use std::num::TryFromIntError;
use std::sync::Arc;

use seccompiler::BpfProgram;

use crate::bpf::{self, Argument};

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Builds the machine and starts the other threads.
    StartUp,
    /// Serves the devices and the supervisor; ends the machine.
    EventLoop,
    /// Runs a virtual CPU and the registers of all devices.
    Vcpu,
    /// Reads and writes a disk by itself.
    Disk,
    /// Has a disk read and written by a ring, which it made before and which can do nothing else.
    DiskRing,
    /// Moves the frames of a pair of network queues.
    Net,
}

/// A system call that is allowed, if its arguments are as the conditions say.
pub struct Call(i64, &'static [Argument]);

/// The call of this number, with any arguments.
#[must_use]
pub const fn any(number: i64) -> Call {
    Call(number, &[])
}

const fn ioctl(request: &'static [Argument]) -> Call {
    Call(libc::SYS_ioctl, request)
}

const MMAP_PROTECTION: Argument = Argument::HasNone(2, libc::PROT_EXEC.cast_unsigned());

/// What the language's runtime needs on any thread: memory, locks, and an orderly or disorderly end.
pub const COMMON: &[Call] = &[
    any(libc::SYS_futex),   // locks, channels, joining threads
    any(libc::SYS_brk),     // memory
    any(libc::SYS_munmap),  // memory; the stack of a thread that ends
    any(libc::SYS_mremap),  // a vector that grows
    any(libc::SYS_madvise), // memory given back; the stack of a thread that ends
    Call(libc::SYS_mmap, &[MMAP_PROTECTION]),
    Call(libc::SYS_mprotect, &[MMAP_PROTECTION]),
    any(libc::SYS_sched_yield),     // spinning before a lock is waited for
    any(libc::SYS_clock_gettime),   // where the vDSO has no clock
    any(libc::SYS_getrandom),       // seeds of hash tables
    any(libc::SYS_rt_sigprocmask),  // a thread that starts or ends, and abort
    any(libc::SYS_rt_sigreturn),    // after the signal that interrupts a vCPU
    any(libc::SYS_sigaltstack),     // a thread that starts or ends
    any(libc::SYS_restart_syscall), // after the process was stopped
    any(libc::SYS_write),           // event descriptors, the console's log, the message of a panic
    any(libc::SYS_writev),          // the C library's last words
    any(libc::SYS_rt_sigaction),    // a crash, which is to end with its own signal
    any(libc::SYS_close),           // descriptors that are done with
    any(libc::SYS_gettid),          // abort
    any(libc::SYS_getpid),          // abort, and signals to vCPUs
    any(libc::SYS_tgkill),          // the same
    any(libc::SYS_exit),            // the end of a thread
    any(libc::SYS_exit_group),      // the end of the process
];

const START_UP: &[Call] = &[
    ioctl(&[]),                     // KVM: the machine, its memory, its vCPUs; lengths of block devices
    any(libc::SYS_clone3),          // threads
    any(libc::SYS_clone),           // threads, where there is no clone3
    any(libc::SYS_set_robust_list), // a thread that starts
    any(libc::SYS_rseq),            // a thread that starts
    any(libc::SYS_prctl),           // names of threads; no_new_privs before a filter
    any(libc::SYS_seccomp),         // the filters of the other kinds
    any(libc::SYS_sched_getaffinity), // the C library, for its arenas and stacks
    any(libc::SYS_eventfd2),        // interrupts, notifications, the end of the machine
    any(libc::SYS_timerfd_create),  // time limits of vsock connections
    any(libc::SYS_epoll_create1),   // the event loop
    any(libc::SYS_fcntl),           // duplicates of descriptors, flags
    any(libc::SYS_dup),             // duplicates of descriptors
    any(libc::SYS_fstat),           // sizes of kernel, ramdisk and disks
    any(libc::SYS_statx),           // the same
    any(libc::SYS_lseek),           // the kernel's segments
    any(libc::SYS_read),            // kernel and ramdisk; event descriptors later
    any(libc::SYS_readv),
    any(libc::SYS_pread64),
    any(libc::SYS_preadv), // disks
    any(libc::SYS_preadv2),
    any(libc::SYS_pwritev),
    any(libc::SYS_fallocate),
    any(libc::SYS_fdatasync),
    any(libc::SYS_io_uring_setup), // the rings of disks
    any(libc::SYS_io_uring_register),
    any(libc::SYS_io_uring_enter),
    any(libc::SYS_epoll_ctl), // the event loop
    any(libc::SYS_epoll_wait),
    any(libc::SYS_epoll_pwait),
    any(libc::SYS_timerfd_settime),
    any(libc::SYS_accept4), // vsock
    any(libc::SYS_recvfrom),
    any(libc::SYS_recvmsg),
    any(libc::SYS_sendto), // vsock, and events for the supervisor
    any(libc::SYS_sendmsg),
    any(libc::SYS_shutdown),
    any(libc::SYS_ppoll), // a pause that waits for a file system worker
];

const EVENT_LOOP: &[Call] = &[
    any(libc::SYS_epoll_wait),
    any(libc::SYS_epoll_pwait),
    any(libc::SYS_epoll_ctl), // vsock connections that come, go, and wait for room
    any(libc::SYS_read),      // event descriptors, timers, the head of a connection, file system workers
    any(libc::SYS_pread64),   // KVM's statistics
    any(libc::SYS_timerfd_settime), // time limits of vsock connections
    any(libc::SYS_accept4),   // vsock connections
    any(libc::SYS_recvfrom),
    any(libc::SYS_recvmsg),
    any(libc::SYS_sendto), // and events for the supervisor
    any(libc::SYS_sendmsg),
    any(libc::SYS_shutdown),
    any(libc::SYS_ppoll), // a pause that waits for a file system worker
];

/// `KVM_RUN` and others (include/uapi/linux/kvm.h).
const KVM_RUN: u32 = 0xae80;
const KVM_KVMCLOCK_CTRL: u32 = 0xaead;
const KVM_GET_REGS: u32 = 0x8090_ae81;
const KVM_SET_GSI_ROUTING: u32 = 0x4008_ae6a;

const VCPU: &[Call] = &[
    ioctl(&[Argument::Is(1, KVM_RUN)]),
    ioctl(&[Argument::Is(1, KVM_KVMCLOCK_CTRL)]), // a guest that was paused
    ioctl(&[Argument::Is(1, KVM_GET_REGS)]),      // where a guest was that has failed
    ioctl(&[Argument::Is(1, KVM_SET_GSI_ROUTING)]), // an interrupt line that the guest's IOAPIC driver sets up
    any(libc::SYS_epoll_ctl),                       // a device that the driver starts or stops
    any(libc::SYS_timerfd_settime),                 // a device that the driver stops
    any(libc::SYS_shutdown),                        // the same
    any(libc::SYS_sendto),                          // the doorbell's events
];

const DISK: &[Call] = &[
    any(libc::SYS_read), // the notification that it waits for
    any(libc::SYS_preadv),
    any(libc::SYS_pwritev),
    any(libc::SYS_fallocate),       // discard, write zeroes
    any(libc::SYS_fdatasync),       // flush
    any(libc::SYS_clock_nanosleep), // until there may be room on the host
];

/// What is submitted this way no filter sees; `sys/uring.rs` says how the ring itself is restricted.
const DISK_RING: &[Call] = &[
    any(libc::SYS_io_uring_enter),
    any(libc::SYS_preadv2), // what the host has in its cache
    any(libc::SYS_pwritev), // into that cache
];

/// `TUNSETOFFLOAD` and `TUNSETQUEUE` (include/uapi/linux/if_tun.h).
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
const TUNSETQUEUE: u32 = 0x4004_54d9;

const NET: &[Call] = &[
    any(libc::SYS_epoll_wait),
    any(libc::SYS_epoll_pwait),
    any(libc::SYS_readv), // frames for the guest; its own are written by writev
    ioctl(&[Argument::Is(1, TUNSETOFFLOAD)]), // what a driver that starts wants done for it
    ioctl(&[Argument::Is(1, TUNSETQUEUE)]), // the number of queues that a driver wants
];

/// Why filters cannot be made or installed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A list is not one that a filter can be made of.
    #[error("cannot compile a seccomp filter")]
    Compile(#[from] bpf::Unfit),
    /// The kernel refused it.
    #[error("cannot install a seccomp filter")]
    Install(#[source] seccompiler::Error),
}

/// A filter of lists of one's own, for another program than the machine.
#[derive(Clone, Debug)]
pub struct Filter(BpfProgram);

impl Filter {
    /// Compiles a filter that allows what the lists have together.
    ///
    /// # Errors
    /// [`Error::Compile`].
    pub fn new(lists: &[&[Call]]) -> Result<Self, Error> {
        compile(lists).map(Self)
    }

    /// Restricts the calling thread, and those it starts, for good.
    ///
    /// # Errors
    /// [`Error::Install`].
    pub fn install(&self) -> Result<(), Error> {
        seccompiler::apply_filter(&self.0).map_err(Error::Install)
    }
}

/// The filters of all kinds, or none.
#[derive(Clone, Debug, Default)]
pub struct Filters(Option<Arc<[BpfProgram; 6]>>);

impl Filters {
    /// Compiles all filters.
    ///
    /// # Errors
    /// [`Error::Compile`].
    pub fn new() -> Result<Self, Error> {
        Ok(Self(Some(Arc::new([
            compile(&[COMMON, START_UP])?,
            compile(&[COMMON, EVENT_LOOP])?,
            compile(&[COMMON, VCPU])?,
            compile(&[COMMON, DISK])?,
            compile(&[COMMON, DISK_RING])?,
            compile(&[COMMON, NET])?,
        ]))))
    }

    /// No restriction, for machines that run within another program.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Restricts the calling thread, and those it starts, for good.
    ///
    /// # Errors
    /// [`Error::Install`].
    pub fn install(&self, kind: Kind) -> Result<(), Error> {
        let Some(programs) = &self.0 else {
            return Ok(());
        };
        let [start_up, event_loop, vcpu, disk, disk_ring, net] = &**programs;
        let program = match kind {
            Kind::StartUp => start_up,
            Kind::EventLoop => event_loop,
            Kind::Vcpu => vcpu,
            Kind::Disk => disk,
            Kind::DiskRing => disk_ring,
            Kind::Net => net,
        };
        seccompiler::apply_filter(program).map_err(Error::Install)
    }
}

fn compile(lists: &[&[Call]]) -> Result<BpfProgram, Error> {
    let calls = lists.iter().flat_map(|list| list.iter());
    let allowed = calls.map(|Call(number, arguments)| Ok((u32::try_from(*number)?, *arguments)));
    let allowed = allowed.collect::<Result<Vec<_>, TryFromIntError>>();
    let allowed = allowed.map_err(|_| bpf::Unfit)?;
    Ok(bpf::compile(&allowed)?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    use super::*;

    const ALL: [Kind; 6] = [
        Kind::StartUp,
        Kind::EventLoop,
        Kind::Vcpu,
        Kind::Disk,
        Kind::DiskRing,
        Kind::Net,
    ];
    const CHILD: &str = "RVM_TEST_FILTER";

    /// Runs the test of this name in a process of its own, which is told the kind; whether it was killed by a filter.
    fn is_killed(name: &str, kind: usize) -> bool {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("seccomp::tests::{name}")])
            .env(CHILD, kind.to_string())
            .output()
            .unwrap();
        let (status, said) = (output.status, String::from_utf8_lossy(&output.stdout));
        assert!(said.contains("running 1 test"), "{said}");
        assert!(
            status.success() || status.signal() == Some(libc::SIGSYS),
            "{status}"
        );
        !status.success()
    }

    fn kind_of_this_child() -> Option<Kind> {
        let index: usize = std::env::var(CHILD).ok()?.parse().unwrap();
        Some(ALL[index])
    }

    #[test]
    fn files_cannot_be_opened() {
        if let Some(kind) = kind_of_this_child() {
            Filters::new().unwrap().install(kind).unwrap();
            drop(File::open("/"));
            return;
        }
        assert!((0..ALL.len()).all(|kind| is_killed("files_cannot_be_opened", kind)));
    }

    #[test]
    fn memory_cannot_become_executable() {
        if let Some(kind) = kind_of_this_child() {
            Filters::new().unwrap().install(kind).unwrap();
            crate::sys::map_executable();
            return;
        }
        assert!((0..ALL.len()).all(|kind| is_killed("memory_cannot_become_executable", kind)));
    }

    #[test]
    fn memory_locks_and_messages_are_allowed() {
        if let Some(kind) = kind_of_this_child() {
            Filters::new().unwrap().install(kind).unwrap();
            let (sender, receiver) = std::sync::mpsc::channel();
            sender.send(vec![7_u8; 64 << 20]).unwrap();
            assert_eq!(receiver.recv().unwrap().len(), 64 << 20);
            eprintln!("{kind:?}");
            return;
        }
        assert!((0..ALL.len()).all(|kind| !is_killed("memory_locks_and_messages_are_allowed", kind)));
    }

    #[test]
    fn only_who_pauses_a_machine_can_wait_for_one_descriptor() {
        if let Some(kind) = kind_of_this_child() {
            let (writer, reader) = std::os::unix::net::UnixStream::pair().unwrap();
            Filters::new().unwrap().install(kind).unwrap();
            let now = rustix::time::Timespec::default();
            let mut descriptors = [rustix::event::PollFd::new(&reader, rustix::event::PollFlags::IN)];
            assert_eq!(rustix::event::poll(&mut descriptors, Some(&now)), Ok(0));
            // A build for tests asks first whether what it closes is open.
            std::mem::forget((writer, reader));
            return;
        }
        for (index, kind) in ALL.into_iter().enumerate() {
            let killed = is_killed("only_who_pauses_a_machine_can_wait_for_one_descriptor", index);
            assert_eq!(
                killed,
                !matches!(kind, Kind::StartUp | Kind::EventLoop),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn no_call_is_listed_both_with_and_without_conditions() {
        for list in [START_UP, EVENT_LOOP, VCPU, DISK, DISK_RING, NET] {
            let calls: Vec<&Call> = COMMON.iter().chain(list).collect();
            for Call(number, arguments) in &calls {
                let same = calls.iter().filter(|call| call.0 == *number);
                assert!(
                    same.clone().count() == 1 || same.clone().all(|call| !call.1.is_empty()),
                    "{number} {}",
                    arguments.len()
                );
            }
        }
    }
}
