//! What the guest's processors say of themselves.
//!
//! The base is what KVM supports on this host. On top of it every vCPU gets its own APIC id and a topology of one
//! package with one core per vCPU; what needs host resources that the guest does not have is cleared. Leaves are named
//! as in the Intel SDM volume 2 (CPUID) and the AMD APM volume 3, appendix E.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

const LEAF1_ECX_MONITOR: u32 = 1 << 3;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_MULTI_THREADING: u32 = 1 << 28;
const LEAF6_EAX_APIC_TIMER_ALWAYS_RUNS: u32 = 1 << 2;
const LEAF7_EBX_SGX: u32 = 1 << 2;
const LEAF7_ECX_SGX_LAUNCH: u32 = 1 << 30;
const CACHE_LINE_UNITS: u32 = 8; // of 8 bytes

/// Why there is no CPUID table.
#[derive(Debug, thiserror::Error)]
pub enum CpuidError {
    /// `KVM_GET_SUPPORTED_CPUID`.
    #[error("cannot ask KVM which CPUID leaves it supports")]
    Supported(#[source] kvm_ioctls::Error),
    /// More leaves than KVM takes.
    #[error("too many CPUID leaves")]
    TooMany,
}

/// The leaves for all vCPUs of a machine; [`Template::for_vcpu`] makes those of one.
#[derive(Clone, Debug)]
pub struct Template {
    entries: Vec<kvm_cpuid_entry2>,
    vcpus: u8,
}

impl Template {
    /// Starts from what KVM supports here.
    ///
    /// # Errors
    /// [`CpuidError::Supported`].
    pub fn new(kvm: &Kvm, vcpus: u8) -> Result<Self, CpuidError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(CpuidError::Supported)?;
        Ok(Self::from_entries(supported.as_slice().to_vec(), vcpus))
    }

    fn from_entries(mut entries: Vec<kvm_cpuid_entry2>, vcpus: u8) -> Self {
        let amd = entries
            .iter()
            .any(|entry| entry.function == 0 && entry.ebx == vendor_word(b"Auth"));
        entries.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
        for entry in &mut entries {
            clear_host_only(entry);
            set_shared_topology(entry, vcpus);
        }
        let maximum = entries
            .iter()
            .find(|entry| entry.function == 0)
            .map_or(0, |entry| entry.eax);
        // Leaf 0xb is Intel's; AMD processors have it since family 17h, and KVM's x2APIC needs it on both.
        if maximum >= 0xb || !amd {
            entries.extend(topology_leaves(vcpus));
        }
        if let Some(entry) = entries.iter_mut().find(|entry| entry.function == 0) {
            entry.eax = entry.eax.max(if amd { 0 } else { 0xb });
        }
        Self { entries, vcpus }
    }

    /// The highest bit of a physical address, plus one.
    #[must_use]
    pub fn physical_address_bits(&self) -> u32 {
        let leaf = self.entries.iter().find(|entry| entry.function == 0x8000_0008);
        leaf.map_or(36, |entry| entry.eax & 0xff)
    }

    /// The table for the vCPU with this APIC id.
    ///
    /// # Errors
    /// [`CpuidError::TooMany`].
    pub fn for_vcpu(&self, id: u8) -> Result<CpuId, CpuidError> {
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            match entry.function {
                1 => entry.ebx = (entry.ebx & 0x00ff_ffff) | (u32::from(id) << 24),
                0xb | 0x1f => entry.edx = u32::from(id),
                // AMD: extended APIC id; core id, one thread per core; node 0 of 1.
                0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (u32::from(id), u32::from(id), 0),
                _ => {}
            }
        }
        CpuId::from_entries(&entries).map_err(|_| CpuidError::TooMany)
    }

    /// Number of vCPUs the topology was made for.
    #[must_use]
    pub fn vcpus(&self) -> u8 {
        self.vcpus
    }
}

/// Hides what belongs to the host: sensors, performance counters, enclaves.
fn clear_host_only(entry: &mut kvm_cpuid_entry2) {
    match entry.function {
        1 => {
            entry.ecx &= !LEAF1_ECX_MONITOR;
            // KVM leaves these two to us: it implements the deadline timer whenever its own APIC is used.
            entry.ecx |= LEAF1_ECX_TSC_DEADLINE | LEAF1_ECX_HYPERVISOR;
        }
        5 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        6 => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (LEAF6_EAX_APIC_TIMER_ALWAYS_RUNS, 0, 0, 0);
        }
        7 if entry.index == 0 => {
            entry.ebx &= !LEAF7_EBX_SGX;
            entry.ecx &= !LEAF7_ECX_SGX_LAUNCH;
        }
        // Performance counters would be the host's; SGX needs enclave memory; Processor Trace and resource director
        // are not virtualised.
        0xa | 0x12 | 0xf | 0x10 | 0x14 | 0x8000_0022 => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        _ => {}
    }
}

/// One package, one core per vCPU, one thread per core; caches are private except the last level.
fn set_shared_topology(entry: &mut kvm_cpuid_entry2, vcpus: u8) {
    let cores = u32::from(vcpus);
    match entry.function {
        1 => {
            entry.ebx = (entry.ebx & 0xff) | (CACHE_LINE_UNITS << 8) | (cores << 16);
            if cores > 1 {
                entry.edx |= LEAF1_EDX_MULTI_THREADING;
            } else {
                entry.edx &= !LEAF1_EDX_MULTI_THREADING;
            }
        }
        4 if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level >= 3 { cores - 1 } else { 0 };
            let core_ids = (cores - 1).min(63);
            entry.eax = (entry.eax & 0x3fff) | (sharing << 14) | (core_ids << 26);
        }
        0x8000_0008 => entry.ecx = (apic_id_bits(vcpus) << 12) | (cores - 1),
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level >= 3 { cores - 1 } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | (sharing << 14);
        }
        _ => {}
    }
}

/// Leaf 0xb: level 0 is the threads of a core (one), level 1 the cores of the package. EDX is filled in per vCPU.
fn topology_leaves(vcpus: u8) -> [kvm_cpuid_entry2; 3] {
    let leaf = |index, eax, ebx, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: index | (kind << 8),
        ..Default::default()
    };
    [
        leaf(0, 0, 1, 1),
        leaf(1, apic_id_bits(vcpus), u32::from(vcpus), 2),
        leaf(2, 0, 0, 0),
    ]
}

/// Bits needed to tell the APIC ids of one package apart.
fn apic_id_bits(vcpus: u8) -> u32 {
    u32::from(vcpus).next_power_of_two().trailing_zeros()
}

fn vendor_word(text: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported(vendor: &[u8; 4]) -> Vec<kvm_cpuid_entry2> {
        let entry = |function, index, eax| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        };
        let mut entries = vec![
            entry(0, 0, 0xd),
            entry(1, 0, 0),
            entry(4, 0, 0x21),
            entry(4, 3, 0x63),
            entry(7, 0, 0),
            entry(0xa, 0, 5),
            entry(0xb, 0, 0),
            entry(0x8000_0008, 0, 0x3030),
            entry(0x8000_001e, 0, 0),
        ];
        entries[0].ebx = vendor_word(vendor);
        entries
    }

    fn find(table: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *table
            .as_slice()
            .iter()
            .find(|entry| (entry.function, entry.index) == (function, index))
            .unwrap()
    }

    #[test]
    fn each_vcpu_has_its_own_id_in_one_package() {
        let template = Template::from_entries(supported(b"Genu"), 4);
        assert_eq!(template.physical_address_bits(), 0x30);
        for id in 0..4 {
            let table = template.for_vcpu(id).unwrap();
            assert_eq!(find(&table, 1, 0).ebx >> 16, (u32::from(id) << 8) | 4);
            assert_eq!(find(&table, 0xb, 0).edx, u32::from(id));
            let cores = find(&table, 0xb, 1);
            assert_eq!(
                (cores.eax, cores.ebx, cores.ecx, cores.edx),
                (2, 4, 0x201, u32::from(id))
            );
            assert_eq!(find(&table, 4, 0).eax >> 14, 3 << 12);
            assert_eq!(find(&table, 4, 3).eax >> 14, (3 << 12) | 3);
            assert_eq!(find(&table, 0x8000_001e, 0).eax, u32::from(id));
            assert_eq!(find(&table, 0x8000_0008, 0).ecx, (2 << 12) | 3);
        }
    }

    #[test]
    fn host_only_bits_are_hidden_and_the_hypervisor_shown() {
        let table = Template::from_entries(supported(b"Auth"), 1).for_vcpu(0).unwrap();
        let one = find(&table, 1, 0);
        assert_ne!(one.ecx & LEAF1_ECX_HYPERVISOR, 0);
        assert_ne!(one.ecx & LEAF1_ECX_TSC_DEADLINE, 0);
        assert_eq!(one.ecx & LEAF1_ECX_MONITOR, 0);
        assert_eq!(one.edx & LEAF1_EDX_MULTI_THREADING, 0);
        assert_eq!(find(&table, 7, 0).ebx & LEAF7_EBX_SGX, 0);
        assert_eq!(find(&table, 0xa, 0).eax, 0);
    }
}
