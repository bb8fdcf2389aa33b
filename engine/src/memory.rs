//! Memory sizes: the workload's limit and the machine that holds it.

use std::fs;

/// One MiB in bytes.
pub const MIB: u64 = 1 << 20;

/// A virtual machine's workload gets this much where no limit was asked for.
pub const DEFAULT_LIMIT: u64 = 1024 * MIB;

/// [`DEFAULT_LIMIT`], or half of what a smaller host has.
#[must_use]
pub fn default_limit() -> u64 {
    host_mib().map_or(DEFAULT_LIMIT, |mib| {
        DEFAULT_LIMIT.min(mib.saturating_mul(MIB) / 2)
    })
}

/// What the guest kernel and agent need beside the workload: text and data, and their share that does not grow.
const GUEST_BASE: u64 = 64 * MIB;

/// The kernel describes each 4 KiB page with 64 bytes, and page tables, slabs and reserves grow likewise.
const GUEST_SHARE: u64 = 32;

/// Guest memory in MiB for a workload that may use `limit` bytes; `None` beyond what a virtual machine can have.
#[must_use]
pub fn machine_mib(limit: u64) -> Option<u32> {
    let bytes = limit.checked_add(limit / GUEST_SHARE)?.checked_add(GUEST_BASE)?;
    u32::try_from(bytes.div_ceil(MIB)).ok()
}

/// What of a machine's memory is for the workload, in MiB: the inverse of [`machine_mib`].
#[must_use]
pub fn workload_mib(machine_mib: u32) -> u32 {
    let bytes = (u64::from(machine_mib) * MIB).saturating_sub(GUEST_BASE);
    u32::try_from(bytes / (GUEST_SHARE + 1) * GUEST_SHARE / MIB).unwrap_or(machine_mib)
}

/// The host's memory in MiB, from `/proc/meminfo`; `None` where that cannot be read.
#[must_use]
pub fn host_mib() -> Option<u64> {
    let table = fs::read_to_string("/proc/meminfo").ok()?;
    let kib = table.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    kib.trim()
        .strip_suffix(" kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_larger_than_the_limit() {
        assert_eq!(machine_mib(DEFAULT_LIMIT), Some(1120));
        assert_eq!(machine_mib(64 * MIB), Some(130));
        assert_eq!(machine_mib(u64::MAX), None);
        for mib in [6, 64, 100, 1024, 4097] {
            let machine = machine_mib(u64::from(mib) * MIB).unwrap();
            assert!(workload_mib(machine).abs_diff(mib) <= 1, "{mib} MiB in {machine}");
        }
        assert_eq!(workload_mib(1), 0);
    }

    #[test]
    fn the_host_has_memory() {
        assert!(host_mib().unwrap() > 0);
    }
}
