//! The MP table: which processors there are and how interrupt lines are wired.
//!
//! Intel MultiProcessor Specification 1.4, chapter 4. Linux (arch/x86/kernel/mpparse.c) finds the floating pointer in
//! the last KiB below 640 KiB; the configuration table follows it directly.

use super::layout::{IOAPIC, LOCAL_APIC, MP_TABLE, MP_TABLE_END};
use crate::memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

const POINTER_BYTES: u64 = 16;
const SPECIFICATION_REVISION: u8 = 4;
/// Version of an integrated local APIC, as KVM's reads.
const APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
/// The FPU and APIC bits of CPUID leaf 1 EDX; Linux asks CPUID itself.
const CPU_FEATURES: u32 = 0x201;
const ISA_BUS: u8 = 0;
const INTERRUPT: u8 = 0;
const NMI: u8 = 1;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Why there is no MP table.
#[derive(Debug, thiserror::Error)]
pub enum MpTableError {
    /// It does not fit below the ROM area.
    #[error("the MP table for {0} virtual CPUs does not fit")]
    TooLarge(u8),
    /// Guest memory is smaller than the table's place.
    #[error("cannot write the MP table")]
    Write(#[from] GuestMemoryError),
}

/// Writes the table for `vcpus` processors with APIC ids from 0, and an IOAPIC with `lines` lines.
///
/// # Errors
/// [`MpTableError`].
pub fn write(memory: &GuestMemory, vcpus: u8, lines: u8) -> Result<(), MpTableError> {
    let table = configuration_table(vcpus, lines).ok_or(MpTableError::TooLarge(vcpus))?;
    let end = MP_TABLE + POINTER_BYTES + u64::try_from(table.len()).unwrap_or(u64::MAX);
    let address = u32::try_from(MP_TABLE + POINTER_BYTES).map_err(|_| MpTableError::TooLarge(vcpus))?;
    if end > MP_TABLE_END {
        return Err(MpTableError::TooLarge(vcpus));
    }
    memory.write_slice(&floating_pointer(address), GuestAddress(MP_TABLE))?;
    memory.write_slice(&table, GuestAddress(MP_TABLE + POINTER_BYTES))?;
    Ok(())
}

/// Section 4.1.
fn floating_pointer(table: u32) -> [u8; 16] {
    let mut pointer = [0; 16];
    pointer[0..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&table.to_le_bytes());
    pointer[8] = 1; // length in units of 16 bytes
    pointer[9] = SPECIFICATION_REVISION;
    pointer[10] = checksum(&pointer);
    pointer
}

/// Sections 4.2 and 4.3. `None` if a length does not fit its field.
fn configuration_table(vcpus: u8, lines: u8) -> Option<Vec<u8>> {
    // The IOAPIC's id follows those of the processors, all of which it must differ from.
    let ioapic_id = vcpus;
    let mut entries: Vec<u8> = Vec::new();
    let mut count: u16 = 0;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..vcpus {
        let mut entry = [0; 20];
        entry[1] = id;
        entry[2] = APIC_VERSION;
        entry[3] = if id == 0 { 3 } else { 1 }; // usable, and the first one is the bootstrap processor
        entry[4..8].copy_from_slice(&0x600_u32.to_le_bytes());
        entry[8..12].copy_from_slice(&CPU_FEATURES.to_le_bytes());
        add(&entry);
    }
    add(&[1, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let address = IOAPIC.to_le_bytes();
    add(&[
        2,
        ioapic_id,
        IOAPIC_VERSION,
        1,
        address[0],
        address[1],
        address[2],
        address[3],
    ]);
    // None for line 0: there is neither a timer nor an 8259 to be connected to it.
    for line in 1..lines {
        // Polarity and trigger 0: as the ISA bus has them, active high and edge-triggered, which is what an irqfd makes.
        add(&[3, INTERRUPT, 0, 0, ISA_BUS, line, ioapic_id, line]);
    }
    add(&[4, NMI, 0, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 1]);

    let mut table = vec![0; 44];
    table[0..4].copy_from_slice(b"PCMP");
    table[4..6].copy_from_slice(&u16::try_from(44 + entries.len()).ok()?.to_le_bytes());
    table[6] = SPECIFICATION_REVISION;
    table[8..16].copy_from_slice(b"RVM     ");
    table[16..28].copy_from_slice(b"MICROVM     ");
    table[34..36].copy_from_slice(&count.to_le_bytes());
    table[36..40].copy_from_slice(&LOCAL_APIC.to_le_bytes());
    table.extend_from_slice(&entries);
    table[7] = checksum(&table);
    Some(table)
}

/// The byte that makes the sum of all bytes zero, where it stands as zero so far.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn sums_are_zero_and_counts_agree() {
        for vcpus in [1, 2, 4, 254] {
            let memory = crate::memory::allocate(2).unwrap();
            write(&memory, vcpus, 7).unwrap();
            let mut pointer = [0; 16];
            memory.read_slice(&mut pointer, GuestAddress(MP_TABLE)).unwrap();
            assert_eq!((&pointer[..4], sum(&pointer)), (&b"_MP_"[..], 0));
            let start = u64::from(u32::from_le_bytes(pointer[4..8].try_into().unwrap()));
            let length = memory.read_obj::<u16>(GuestAddress(start + 4)).unwrap();
            let mut table = vec![0; usize::from(length)];
            memory.read_slice(&mut table, GuestAddress(start)).unwrap();
            assert_eq!((&table[..4], sum(&table)), (&b"PCMP"[..], 0));

            let (mut offset, mut entries, mut processors) = (44, 0_u16, 0);
            while offset < table.len() {
                processors += usize::from(table[offset] == 0);
                offset += if table[offset] == 0 { 20 } else { 8 };
                entries += 1;
            }
            assert_eq!(offset, table.len());
            assert_eq!(processors, usize::from(vcpus));
            assert_eq!(entries, u16::from_le_bytes([table[34], table[35]]));
            assert_eq!(entries, u16::from(vcpus) + 1 + 1 + 6 + 1);
        }
    }
}
