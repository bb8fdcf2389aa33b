//! The default seccomp profile: the system calls that Docker's current default allows, refuses and ties to a
//! capability, written as one table for the three ABIs of an x86-64 kernel.
//!
//! The profile is an allow list. Everything else fails with `EPERM`, which tells a program "you may not". For a call
//! that is newer than this table the honest answer is `ENOSYS`, "this kernel has no such call", because a C library
//! then falls back to an older one. The OCI format cannot say "newer than", so that part is the filter compiler's:
//! it answers `ENOSYS` above the highest number that the profile names, as runc does.
//!
//! Two limits of the profile are Docker's as well: on 32-bit x86 `socketcall` passes its arguments in memory, where
//! a filter cannot look, so the address families are closed only to the direct `socket` call; and calls that only
//! exist on other architectures are left out here, which changes nothing on x86.

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg,
    LinuxSeccompArgBuilder, LinuxSeccompOperator, LinuxSyscall,
};

/// `EPERM` and `ENOSYS` of `asm-generic/errno-base.h` and `errno.h`.
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Address families of `linux/socket.h` that a container must not open: the kernel's cryptographic interface, and
/// the channel between a virtual machine and its host. One other family lies between them.
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;

/// The `CLONE_NEW*` bits of `linux/sched.h`, apart from the time namespace, which `clone` cannot make.
const CLONE_NAMESPACES: u64 = 0x7E02_0000;

/// Execution domains of `linux/personality.h` that a process may enter: `PER_LINUX` and `PER_LINUX32`, each also
/// with `UNAME26`; the last one only asks for the current domain.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];

/// Calls that are always allowed, by subject.
const ALLOWED: [&str; 15] = [
    // Files and directories by name.
    "access chdir chmod chown chown32 creat faccessat faccessat2 fchdir fchmodat fchmodat2 fchownat fstatat64 \
     futimesat getcwd lchown lchown32 link linkat lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at \
     newfstatat open openat openat2 readlink readlinkat rename renameat renameat2 rmdir stat stat64 statfs statfs64 \
     statx symlink symlinkat truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes",
    // Files by descriptor.
    "cachestat close close_range copy_file_range dup dup2 dup3 fadvise64 fadvise64_64 fallocate fchmod fchown \
     fchown32 fcntl fcntl64 fdatasync flock fstat fstat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 getdents \
     getdents64 ioctl _llseek lseek memfd_create memfd_secret pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev \
     pwritev2 read readahead readv sendfile sendfile64 splice sync sync_file_range syncfs tee vmsplice write writev",
    // Extended attributes.
    "fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr \
     lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat",
    // Watching mounts and files.
    "fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch listmount statmount",
    // Waiting for descriptors.
    "epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd \
     eventfd2 _newselect poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4 timerfd_create \
     timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64",
    // Asynchronous input and output. io_uring is absent on purpose.
    "io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit",
    // Sockets; `socket` itself has rules of its own.
    "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 \
     recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair",
    // Memory.
    "brk madvise map_shadow_stack membarrier mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap mseal msync \
     munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease remap_file_pages",
    // System V and POSIX interprocess communication.
    "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 \
     mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget",
    // Processes and threads; `clone` and `clone3` have rules of their own.
    "arch_prctl execve execveat exit exit_group fork get_robust_list get_thread_area getcpu getpgid getpgrp getpid \
     getppid getsid gettid modify_ldt pidfd_open pidfd_send_signal prctl process_vm_readv process_vm_writev ptrace \
     rseq set_robust_list set_thread_area set_tid_address setpgid setsid uretprobe vfork wait4 waitid waitpid",
    // Futexes.
    "futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake",
    // Signals.
    "kill pause restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend \
     rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn tgkill tkill",
    // Users, groups, capabilities and confinement of oneself.
    "capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 \
     getresuid getresuid32 getuid getuid32 landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp \
     setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setregid setregid32 setresgid \
     setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32",
    // Scheduling, limits and what the system is.
    "getpriority getrandom getrlimit getrusage ioprio_get ioprio_set prlimit64 sched_get_priority_max \
     sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval \
     sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield \
     setpriority setrlimit sysinfo times ugetrlimit uname",
    // Clocks and timers. Reading the adjustment is harmless; changing it needs a capability that is not granted.
    "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 \
     clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create \
     timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64",
];

/// Calls that are allowed to a container whose bounding set holds the capability: the kernel checks the same
/// capability, so that the filter would only take away what was given on purpose.
const ALLOWED_WITH: [(Capability, &str); 14] = [
    (Capability::Bpf, "bpf"),
    (Capability::DacReadSearch, "open_by_handle_at"),
    (Capability::Perfmon, "perf_event_open"),
    (
        Capability::SysAdmin,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl \
         quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (Capability::SysModule, "delete_module finit_module init_module"),
    (
        Capability::SysNice,
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ),
    (Capability::SysPacct, "acct"),
    (Capability::SysPtrace, "kcmp pidfd_getfd process_madvise"),
    (Capability::SysRawio, "ioperm iopl"),
    (
        Capability::SysTime,
        "clock_settime clock_settime64 settimeofday stime",
    ),
    (Capability::SysTtyConfig, "vhangup"),
    (Capability::Syslog, "syslog"),
];

/// The default profile for a container with these capabilities in its bounding set.
///
/// # Errors
/// When a rule lacks a required field, which the rules below do not.
pub fn default_profile(capabilities: &Capabilities) -> Result<LinuxSeccomp, OciSpecError> {
    use LinuxSeccompOperator::{ScmpCmpEq, ScmpCmpGt, ScmpCmpLt, ScmpCmpMaskedEq};

    let mut rules = vec![allow(names(capabilities))];
    // Comparisons within one rule are all required, rules for one call are alternatives: "neither of two values"
    // takes the three ranges around them.
    rules.push(allow_if("socket", argument(ScmpCmpLt, AF_ALG)?));
    rules.push(allow_if("socket", argument(ScmpCmpEq, AF_ALG + 1)?));
    rules.push(allow_if("socket", argument(ScmpCmpGt, AF_VSOCK)?));
    for domain in PERSONALITIES {
        rules.push(allow_if("personality", argument(ScmpCmpEq, domain)?));
    }
    if !capabilities.contains(&Capability::SysAdmin) {
        // `value` is the mask; what remains of the argument under it has to be `value_two`, absent for zero.
        rules.push(allow_if("clone", argument(ScmpCmpMaskedEq, CLONE_NAMESPACES)?));
        // The flags of clone3 lie in memory. ENOSYS makes every C library use clone instead.
        rules.push(refuse("clone3", ENOSYS));
    }

    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(EPERM))
        .set_architectures(Some(vec![
            Arch::ScmpArchX86_64,
            Arch::ScmpArchX86,
            Arch::ScmpArchX32,
        ]))
        .set_syscalls(Some(rules));
    Ok(profile)
}

/// Every call that is allowed whatever its arguments, sorted, each once: two capabilities may allow the same one.
fn names(capabilities: &Capabilities) -> Vec<String> {
    let gated = ALLOWED_WITH
        .iter()
        .filter(|(capability, _)| capabilities.contains(capability))
        .map(|(_, calls)| *calls);
    let mut names: Vec<String> = ALLOWED
        .into_iter()
        .chain(gated)
        .flat_map(str::split_whitespace)
        .map(str::to_owned)
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn allow(names: Vec<String>) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names).set_action(LinuxSeccompAction::ScmpActAllow);
    rule
}

fn allow_if(name: &str, condition: LinuxSeccompArg) -> LinuxSyscall {
    let mut rule = allow(vec![name.to_owned()]);
    rule.set_args(Some(vec![condition]));
    rule
}

fn refuse(name: &str, errno: u32) -> LinuxSyscall {
    let mut rule = allow(vec![name.to_owned()]);
    rule.set_action(LinuxSeccompAction::ScmpActErrno)
        .set_errno_ret(Some(errno));
    rule
}

/// A comparison of the first argument.
fn argument(operator: LinuxSeccompOperator, value: u64) -> Result<LinuxSeccompArg, OciSpecError> {
    LinuxSeccompArgBuilder::default()
        .index(0_usize)
        .op(operator)
        .value(value)
        .build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::spec::capabilities;

    fn rules_for(profile: &LinuxSeccomp, name: &str) -> Vec<LinuxSyscall> {
        let rules = profile.syscalls().clone().unwrap_or_default();
        rules
            .into_iter()
            .filter(|rule| rule.names().iter().any(|candidate| candidate == name))
            .collect()
    }

    /// Whether `profile` lets `name` through with this first argument, by the semantics of libseccomp.
    fn allows(profile: &LinuxSeccomp, name: &str, argument: u64) -> bool {
        rules_for(profile, name).iter().any(|rule| {
            let conditions = rule.args().clone().unwrap_or_default();
            rule.action() == LinuxSeccompAction::ScmpActAllow
                && conditions.iter().all(|condition| match condition.op() {
                    LinuxSeccompOperator::ScmpCmpLt => argument < condition.value(),
                    LinuxSeccompOperator::ScmpCmpEq => argument == condition.value(),
                    LinuxSeccompOperator::ScmpCmpGt => argument > condition.value(),
                    LinuxSeccompOperator::ScmpCmpMaskedEq => {
                        argument & condition.value() == condition.value_two().unwrap_or(0)
                    }
                    other => panic!("{other} is not used"),
                })
        })
    }

    #[test]
    fn the_default_is_eperm_on_all_three_abis() {
        let profile = default_profile(&capabilities::default_set()).unwrap();
        assert_eq!(profile.default_action(), LinuxSeccompAction::ScmpActErrno);
        assert_eq!(profile.default_errno_ret(), Some(1));
        assert_eq!(
            profile.architectures().as_deref(),
            Some([Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32].as_slice())
        );
    }

    #[test]
    fn arguments_decide() {
        let profile = default_profile(&capabilities::default_set()).unwrap();
        let cases = [
            ("socket", 1, true),
            ("socket", 37, true),
            ("socket", 38, false),
            ("socket", 39, true),
            ("socket", 40, false),
            ("socket", 41, true),
            ("personality", 0, true),
            ("personality", 0x0004_0000, false),
            ("personality", 0x2_0008, true),
            ("personality", 0xFFFF_FFFF, true),
            ("clone", 0x0120_0011, true),
            ("clone", 0x1000_0000, false),
            ("clone", 0x0002_0000, false),
            ("clone3", 0, false),
            ("unshare", 0, false),
            ("io_uring_setup", 1, false),
            ("ptrace", 0, true),
            ("chroot", 0, true),
        ];
        for (name, argument, expected) in cases {
            assert_eq!(
                allows(&profile, name, argument),
                expected,
                "{name}({argument:#x})"
            );
        }
        assert_eq!(rules_for(&profile, "clone3")[0].errno_ret(), Some(ENOSYS));
    }

    #[test]
    fn capabilities_open_what_they_guard() {
        for (capability, calls) in ALLOWED_WITH {
            for call in calls.split_whitespace() {
                let name = format!("{call} with {capability}");
                assert!(
                    allows(
                        &default_profile(&Capabilities::from([capability])).unwrap(),
                        call,
                        u64::MAX
                    ),
                    "{name}"
                );
                assert!(
                    !allows(&default_profile(&Capabilities::new()).unwrap(), call, u64::MAX),
                    "{name}"
                );
            }
        }
        let profile = default_profile(&Capabilities::from([Capability::SysAdmin])).unwrap();
        assert_eq!(rules_for(&profile, "clone3").len(), 1);
    }

    #[test]
    fn no_call_is_listed_twice() {
        let mut seen = BTreeSet::new();
        for name in ALLOWED.into_iter().flat_map(str::split_whitespace) {
            assert!(seen.insert(name), "{name} is listed twice");
        }
        for (_, calls) in ALLOWED_WITH {
            for name in calls.split_whitespace() {
                assert!(!seen.contains(name), "{name} is allowed without a capability");
            }
        }
    }

    #[test]
    fn every_name_exists_on_x86() {
        // Operations of `socketcall` that libseccomp treats as calls of their own.
        let exceptions = BTreeSet::from(["recv", "send"]);
        let gated = ALLOWED_WITH.iter().map(|(_, calls)| *calls);
        for name in ALLOWED.into_iter().chain(gated).flat_map(str::split_whitespace) {
            let known = name.parse::<syscalls::x86_64::Sysno>().is_ok()
                || name.parse::<syscalls::x86::Sysno>().is_ok();
            assert_eq!(known, !exceptions.contains(name), "{name}");
        }
    }
}
