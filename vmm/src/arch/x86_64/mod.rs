//! x86-64: what the guest's processors and firmware tables look like before its first instruction.
//!
//! The kernel is entered by the 64-bit Linux boot protocol (Documentation/arch/x86/boot.rst, "64-bit boot protocol"):
//! every x86-64 `vmlinux` has that entry, and it starts in long mode, so that nothing of the slower 32-bit start is run.
//! There is no firmware. Processors and interrupt lines are described by an MP table, which costs our kernel 4,000 instructions
//! of 23 million, and no exit; ACPI would be more tables, and an interpreter in the kernel, for the same words.

pub mod boot;
pub mod cmdline;
pub mod cpuid;
#[cfg(any(test, feature = "fuzzing"))]
#[expect(
    clippy::unwrap_used,
    reason = "a harness whose scene cannot be set up has to stop"
)]
pub(crate) mod fuzz;
pub mod kernel;
pub mod layout;
pub mod mptable;
pub mod registers;
