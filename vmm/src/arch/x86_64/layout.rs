//! Guest physical addresses that the boot recipe uses.
//!
//! Everything below [`KERNEL_START`] is written once, before the first instruction, and belongs to the guest's kernel
//! from then on.

/// Global descriptor table: 4 entries of 8 bytes.
pub const GDT: u64 = 0x500;
/// Interrupt descriptor table: one empty entry, because an exception before the kernel has its own is fatal.
pub const IDT: u64 = 0x520;
/// `struct boot_params`, one page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Top page table, followed by [`PAGE_DIRECTORY_POINTERS`] and [`PAGE_DIRECTORY`].
pub const PAGE_MAP_LEVEL_4: u64 = 0x9000;
/// Second page table.
pub const PAGE_DIRECTORY_POINTERS: u64 = 0xa000;
/// Third page table, 512 pages of 2 MiB: the first GiB, mapped one to one.
pub const PAGE_DIRECTORY: u64 = 0xb000;
/// Initial stack pointer; the stack grows down to the zero page.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Kernel command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Longest command line with its NUL: `COMMAND_LINE_SIZE` in arch/x86/include/asm/setup.h.
pub const COMMAND_LINE_BYTES: usize = 2048;
/// End of the memory below 1 MiB that the guest may use, and place of the MP table: Linux looks for the table in the
/// last KiB below 640 KiB first.
pub const MP_TABLE: u64 = 0x9_fc00;
/// End of what the MP table may fill: the legacy ROM area begins here.
pub const MP_TABLE_END: u64 = 0xf_0000;
/// The kernel is loaded at this address or above.
pub const KERNEL_START: u64 = 0x10_0000;

/// First device on the memory-mapped bus, in the hole below 4 GiB.
pub const MMIO_START: u64 = 0xd000_0000;
/// Address space of one memory-mapped device.
pub const MMIO_DEVICE_BYTES: u64 = 0x1000;
/// The IOAPIC (82093AA datasheet).
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APIC (Intel SDM volume 3, chapter 11).
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that Intel processors without unrestricted guests need for real mode; must lie in no guest memory.
pub const TSS: u64 = 0xfffb_d000;
/// One page for the same purpose.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;

/// Interrupt line of the first serial port, where every kernel expects it.
pub const SERIAL_INTERRUPT: u8 = 4;
/// Interrupt lines of memory-mapped devices in the order in which they are given out: the low ones first, because a kernel
/// pays for each line up to the last one, and not line 0, which kernels take for the timer's.
pub const DEVICE_INTERRUPTS: [u8; 22] = [
    1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
];

/// Interrupt lines of a machine with so many memory-mapped devices.
#[must_use]
pub fn interrupt_lines(devices: usize) -> u8 {
    let last = devices
        .checked_sub(1)
        .and_then(|index| DEVICE_INTERRUPTS.get(index));
    last.copied().unwrap_or_default().max(SERIAL_INTERRUPT) + 1
}
