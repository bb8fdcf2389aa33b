//! The local APIC's state at reset, as firmware would leave it for a kernel that still uses the 8259.
//!
//! Intel SDM volume 3, section 11.5.1 (local vector table).

use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::VcpuFd;

const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVERY_MODE: u32 = 7 << 8;
const DELIVERY_NMI: u32 = 4 << 8;
const DELIVERY_EXTERNAL: u32 = 7 << 8;

/// Wires LINT0 to the 8259 and LINT1 to NMI.
///
/// # Errors
/// Those of `KVM_GET_LAPIC` and `KVM_SET_LAPIC`.
pub fn set_local_vectors(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut apic = vcpu.get_lapic()?;
    set_delivery_mode(&mut apic, LVT_LINT0, DELIVERY_EXTERNAL);
    set_delivery_mode(&mut apic, LVT_LINT1, DELIVERY_NMI);
    vcpu.set_lapic(&apic)
}

fn set_delivery_mode(apic: &mut kvm_lapic_state, register: usize, mode: u32) {
    // The page holds bytes of a signed type; a register is four of them, little-endian.
    let Some(bytes) = apic.regs.get_mut(register..register + 4) else {
        return;
    };
    let value = bytes.iter().rev().fold(0_u32, |value, byte| {
        (value << 8) | u32::from(byte.cast_unsigned())
    });
    let value = (value & !DELIVERY_MODE) | mode;
    for (byte, new) in bytes.iter_mut().zip(value.to_le_bytes()) {
        *byte = new.cast_signed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_delivery_mode_changes() {
        let mut apic = kvm_lapic_state::default();
        apic.regs[LVT_LINT0..LVT_LINT0 + 4].copy_from_slice(&[0x12, 0, 1, -128]);
        set_delivery_mode(&mut apic, LVT_LINT0, DELIVERY_EXTERNAL);
        assert_eq!(apic.regs[LVT_LINT0..LVT_LINT0 + 4], [0x12, 7, 1, -128]);
        set_delivery_mode(&mut apic, LVT_LINT0, DELIVERY_NMI);
        assert_eq!(apic.regs[LVT_LINT0..LVT_LINT0 + 4], [0x12, 4, 1, -128]);
        assert_eq!(apic.regs.iter().filter(|byte| **byte != 0).count(), 4);
    }
}
