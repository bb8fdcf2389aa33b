//! The system call interfaces of an x86-64 kernel and their numbers.

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

/// The numbers of all interfaces by name. A profile asks for hundreds of names, so the tables are sorted.
pub(super) struct Numbers {
    x86_64: Vec<(&'static str, u32)>,
    x86: Vec<(&'static str, u32)>,
}

impl Numbers {
    pub(super) fn new() -> Numbers {
        let x86_64 = (0..x86_64::Sysno::table_size()).filter_map(x86_64::Sysno::new);
        let x86 = (0..x86::Sysno::table_size()).filter_map(x86::Sysno::new);
        Numbers {
            x86_64: sorted(x86_64.map(|call| (call.name(), call.id()))),
            x86: sorted(x86.map(|call| (call.name(), call.id()))),
        }
    }

    /// The number of the system call `name`, if the interface has it.
    pub(super) fn number(&self, interface: Interface, name: &str) -> Option<u32> {
        match interface {
            Interface::X86_64 => look_up(&self.x86_64, name),
            Interface::X86 => look_up(&self.x86, name),
            Interface::X32 => {
                let number = look_up(&X32_ONLY, name).or_else(|| look_up(&self.x86_64, name));
                number.map(|number| number | X32_BIT)
            }
        }
    }
}

fn sorted(calls: impl Iterator<Item = (&'static str, i32)>) -> Vec<(&'static str, u32)> {
    let mut table: Vec<_> = calls
        .map(|(name, number)| (name, number.unsigned_abs()))
        .collect();
    table.sort_unstable();
    table
}

fn look_up(table: &[(&str, u32)], name: &str) -> Option<u32> {
    let index = table.binary_search_by(|&(known, _)| known.cmp(name)).ok()?;
    table.get(index).map(|&(_, number)| number)
}

/// Calls that have numbers of their own in the x32 interface, because they pass structures with pointers: the entries
/// marked `x32` in `arch/x86/entry/syscalls/syscall_64.tbl`. Sorted by name.
const X32_ONLY: [(&str, u32); 36] = [
    ("execve", 520),
    ("execveat", 545),
    ("get_robust_list", 531),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("ioctl", 514),
    ("kexec_load", 528),
    ("move_pages", 533),
    ("mq_notify", 527),
    ("preadv", 534),
    ("preadv2", 546),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("ptrace", 521),
    ("pwritev", 535),
    ("pwritev2", 547),
    ("readv", 515),
    ("recvfrom", 517),
    ("recvmmsg", 537),
    ("recvmsg", 519),
    ("rt_sigaction", 512),
    ("rt_sigpending", 522),
    ("rt_sigqueueinfo", 524),
    ("rt_sigreturn", 513),
    ("rt_sigtimedwait", 523),
    ("rt_tgsigqueueinfo", 536),
    ("sendmmsg", 538),
    ("sendmsg", 518),
    ("set_robust_list", 530),
    ("setsockopt", 541),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("vmsplice", 532),
    ("waitid", 529),
    ("writev", 516),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_x32_table_is_sorted() {
        assert!(X32_ONLY.is_sorted());
    }

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
        let numbers = Numbers::new();
        for (interface, name, expected) in cases {
            assert_eq!(numbers.number(interface, name), expected, "{interface:?} {name}");
        }
    }
}
