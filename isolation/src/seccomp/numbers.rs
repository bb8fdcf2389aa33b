//! The system call interfaces of an x86-64 kernel and their numbers.

use std::collections::HashMap;

use syscalls::{x86, x86_64};

/// Set in the number of a call through the x32 interface, `arch/x86/include/uapi/asm/unistd.h`.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// One of the three ways into an x86-64 kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Interface {
    X86_64,
    /// 64-bit registers with 32-bit pointers: the architecture of x86-64 with a bit set in the number.
    X32,
    X86,
}

impl Interface {
    /// Value of `seccomp_data.arch`: `AUDIT_ARCH_*` of `linux/audit.h`.
    pub(super) fn audit_architecture(self) -> u32 {
        match self {
            Interface::X86_64 | Interface::X32 => 0xc000_003e,
            Interface::X86 => 0x4000_0003,
        }
    }
}

/// The numbers of one interface's system calls by name. A profile asks for hundreds, so they are in a map.
pub(super) struct Numbers(HashMap<&'static str, u32>);

impl Numbers {
    pub(super) fn new(interface: Interface) -> Numbers {
        let native = || {
            let calls = (0..x86_64::Sysno::table_size()).filter_map(x86_64::Sysno::new);
            calls.filter_map(|call| Some((call.name(), u32::try_from(call.id()).ok()?)))
        };
        Numbers(match interface {
            Interface::X86_64 => native().collect(),
            Interface::X86 => {
                let calls = (0..x86::Sysno::table_size()).filter_map(x86::Sysno::new);
                calls
                    .filter_map(|call| Some((call.name(), u32::try_from(call.id()).ok()?)))
                    .collect()
            }
            Interface::X32 => native()
                .chain(X32_ONLY)
                .map(|(name, number)| (name, number | X32_BIT))
                .collect(),
        })
    }

    /// The number of the system call `name`, if the interface has it.
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        self.0.get(name).copied()
    }
}

/// Calls that have numbers of their own in the x32 interface, because they pass structures with pointers: the entries
/// marked `x32` in `arch/x86/entry/syscalls/syscall_64.tbl`.
const X32_ONLY: [(&str, u32); 36] = [
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel() {
        let cases = [
            (Interface::X86_64, "read", Some(0)),
            (Interface::X86_64, "clone3", Some(435)),
            (Interface::X86_64, "socketcall", None),
            (Interface::X86, "read", Some(3)),
            (Interface::X86, "socketcall", Some(102)),
            (Interface::X32, "read", Some(0x4000_0000)),
            (Interface::X32, "execve", Some(0x4000_0208)),
            (Interface::X32, "no_such_call", None),
        ];
        for (interface, name, expected) in cases {
            assert_eq!(
                Numbers::new(interface).number(name),
                expected,
                "{interface:?} {name}"
            );
        }
    }
}
