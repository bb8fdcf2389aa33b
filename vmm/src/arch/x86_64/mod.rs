//! x86-64: what the guest's processors and firmware tables look like before its first instruction.
//!
//! The kernel is entered by the 64-bit Linux boot protocol (Documentation/arch/x86/boot.rst, "64-bit boot protocol"):
//! every x86-64 `vmlinux` has that entry, and it starts in long mode, so that nothing of the slower 32-bit start is run.
//! There is no firmware; processors and interrupt lines are described by an MP table.

pub mod boot;
pub mod cmdline;
pub mod cpuid;
pub mod interrupts;
pub mod kernel;
pub mod layout;
pub mod mptable;
pub mod registers;
