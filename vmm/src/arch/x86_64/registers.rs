//! Register state at the first instruction: long mode with the first GiB mapped one to one.
//!
//! Documentation/arch/x86/boot.rst asks for 64-bit mode with paging, a flat code segment at selector 0x10 and data at
//! 0x18, interrupts off, and `%rsi` holding the address of `struct boot_params`.

use kvm_bindings::{Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::layout::{
    BOOT_STACK, GDT, IDT, PAGE_DIRECTORY, PAGE_DIRECTORY_POINTERS, PAGE_MAP_LEVEL_4, ZERO_PAGE,
};
use crate::memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

/// Descriptors of the GDT (Intel SDM volume 3, section 3.4.5): none, none, 64-bit code, data.
const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
/// Bit 1 of RFLAGS always reads as one.
const RFLAGS_RESERVED: u64 = 2;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
/// Memory type range registers enabled, write-back by default.
const MTRR_ENABLED_WRITE_BACK: u64 = (1 << 11) | 6;

/// Why a virtual CPU could not be given its first state.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// `KVM_GET_SREGS` or `KVM_SET_SREGS`.
    #[error("cannot set the segment and control registers")]
    SpecialRegisters(#[source] kvm_ioctls::Error),
    /// `KVM_SET_REGS`.
    #[error("cannot set the general registers")]
    Registers(#[source] kvm_ioctls::Error),
    /// `KVM_SET_MSRS`.
    #[error("cannot set the model-specific registers")]
    ModelSpecific(#[source] kvm_ioctls::Error),
    /// KVM did not accept a register that every x86-64 processor has.
    #[error("KVM refuses model-specific register {0:#x}")]
    Refused(u32),
}

/// Writes the GDT, an empty IDT and the page tables that [`set_long_mode`] points to.
///
/// # Errors
/// If guest memory does not reach that far.
pub fn write_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    memory.write_slice(&little_endian(&DESCRIPTORS), GuestAddress(GDT))?;
    memory.write_obj(0_u64, GuestAddress(IDT))?;
    let present_writable = 3;
    memory.write_obj(
        PAGE_DIRECTORY_POINTERS | present_writable,
        GuestAddress(PAGE_MAP_LEVEL_4),
    )?;
    memory.write_obj(
        PAGE_DIRECTORY | present_writable,
        GuestAddress(PAGE_DIRECTORY_POINTERS),
    )?;
    let large = 1 << 7;
    let pages: Vec<u64> = (0..512)
        .map(|index| (index << 21) | large | present_writable)
        .collect();
    memory.write_slice(&little_endian(&pages), GuestAddress(PAGE_DIRECTORY))
}

fn little_endian(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Puts the vCPU into long mode.
///
/// # Errors
/// [`RegisterError::SpecialRegisters`].
pub fn set_long_mode(vcpu: &VcpuFd) -> Result<(), RegisterError> {
    let mut sregs = vcpu.get_sregs().map_err(RegisterError::SpecialRegisters)?;
    let code = kvm_segment {
        limit: 0xffff_ffff,
        selector: CODE_SELECTOR,
        type_: 0xb, // execute, read, accessed
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        selector: DATA_SELECTOR,
        type_: 3,
        l: 0,
        db: 1,
        ..code
    };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt = kvm_dtable {
        base: GDT,
        limit: 31,
        ..Default::default()
    };
    sregs.idt = kvm_dtable {
        base: IDT,
        limit: 7,
        ..Default::default()
    };
    sregs.cr0 |= CR0_PROTECTED | CR0_EXTENSION_TYPE | CR0_PAGING;
    sregs.cr3 = PAGE_MAP_LEVEL_4;
    sregs.cr4 |= CR4_PHYSICAL_ADDRESS_EXTENSION;
    sregs.efer |= EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE;
    vcpu.set_sregs(&sregs).map_err(RegisterError::SpecialRegisters)
}

/// Sets the general registers for a start at `entry`.
///
/// # Errors
/// [`RegisterError::Registers`].
pub fn set_entry(vcpu: &VcpuFd, entry: u64) -> Result<(), RegisterError> {
    let registers = kvm_regs {
        rip: entry,
        rsp: BOOT_STACK,
        rbp: BOOT_STACK,
        rsi: ZERO_PAGE,
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    vcpu.set_regs(&registers).map_err(RegisterError::Registers)
}

/// Sets the model-specific registers that firmware would have set; KVM's own reset values serve for the rest.
///
/// # Errors
/// [`RegisterError::ModelSpecific`] or [`RegisterError::Refused`].
pub fn set_model_specific(vcpu: &VcpuFd) -> Result<(), RegisterError> {
    let wanted = [
        (MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        // Without it Linux takes the range registers for unusable and prints a warning.
        (MSR_MTRR_DEFAULT_TYPE, MTRR_ENABLED_WRITE_BACK),
    ];
    let entries = wanted.map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let msrs = Msrs::from_entries(&entries)
        .map_err(|_| RegisterError::ModelSpecific(kvm_ioctls::Error::new(libc::EINVAL)))?;
    let set = vcpu.set_msrs(&msrs).map_err(RegisterError::ModelSpecific)?;
    match wanted.get(set) {
        Some((refused, _)) => Err(RegisterError::Refused(*refused)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_gib_is_mapped_one_to_one() {
        let memory = crate::memory::allocate(2).unwrap();
        write_tables(&memory).unwrap();
        for address in [0, 0x10_0000, 0x3fe0_0000_u64] {
            let entry = |table: u64, index: u64| -> u64 {
                memory
                    .read_obj(GuestAddress((table & !0xfff) + index * 8))
                    .unwrap()
            };
            let pointers = entry(PAGE_MAP_LEVEL_4, address >> 39);
            let directory = entry(pointers, (address >> 30) & 511);
            let page = entry(directory, (address >> 21) & 511);
            assert_eq!(page & !0x1f_ffff, address & !0x1f_ffff);
            assert_eq!(page & 0x83, 0x83);
        }
    }
}
