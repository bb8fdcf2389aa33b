//! What a container may use: memory, processor time, processes, and per-process limits.

use std::collections::HashMap;
use std::str::FromStr;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder,
    PosixRlimit, PosixRlimitBuilder, PosixRlimitType,
};

use super::{Error, Options, filesystem};

/// Least memory, in bytes, that a container can be limited to: below it the kernel kills the process while it is
/// still being set up.
pub const MINIMUM_MEMORY_BYTES: u64 = 6 << 20;

/// Length in microseconds of the interval in which the processor quota is given.
const CPU_PERIOD_MICROSECONDS: u64 = 100_000;

/// `RLIM_INFINITY` of `asm-generic/resource.h`.
const UNLIMITED: u64 = u64::MAX;

/// A share of processor time, at least a hundredth of one processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cpus {
    /// Microseconds of processor time in each [`CPU_PERIOD_MICROSECONDS`]. The kernel takes no less than 1000.
    quota_microseconds: u64,
}

/// Why text is not a number of processors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpusError {
    /// Not a decimal number.
    #[error("{0:?} is not a decimal number such as 1.5")]
    Syntax(String),
    /// Outside of what the kernel takes.
    #[error("{0} processors is out of range: at least 0.01, at most 8192")]
    Range(String),
}

impl FromStr for Cpus {
    type Err = CpusError;

    /// Reads a decimal number such as `0.5`. Digits beyond the fifth decimal are below the kernel's resolution and
    /// are dropped.
    fn from_str(text: &str) -> Result<Self, CpusError> {
        let syntax = || CpusError::Syntax(text.to_owned());
        let range = || CpusError::Range(text.to_owned());
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = whole.len() + fraction.len();
        if digits == 0
            || !whole
                .bytes()
                .chain(fraction.bytes())
                .all(|byte| byte.is_ascii_digit())
        {
            return Err(syntax());
        }
        let whole: u64 = if whole.is_empty() {
            0
        } else {
            whole.parse().map_err(|_| range())?
        };
        let fraction: String = fraction.chars().chain("00000".chars()).take(5).collect();
        let fraction: u64 = fraction.parse().map_err(|_| syntax())?;
        if whole > 8192 {
            return Err(range());
        }
        let quota_microseconds = whole * CPU_PERIOD_MICROSECONDS + fraction;
        if quota_microseconds < 1000 {
            return Err(range());
        }
        Ok(Self { quota_microseconds })
    }
}

impl Cpus {
    /// The least number of whole processors that can give this share.
    #[must_use]
    pub fn whole(self) -> u64 {
        self.quota_microseconds.div_ceil(CPU_PERIOD_MICROSECONDS)
    }
}

/// Limits of the container as a whole, and its device rules.
pub(super) fn resources(options: &Options) -> Result<LinuxResources, Error> {
    let mut resources = LinuxResourcesBuilder::default().devices(filesystem::device_rules()?);
    if let Some(bytes) = options.memory_bytes {
        if bytes < MINIMUM_MEMORY_BYTES {
            return Err(Error::MemoryTooSmall(bytes));
        }
        // As much swap as memory; OCI's field counts both together.
        let limit = i64::try_from(bytes).map_err(|_| Error::MemoryTooLarge(bytes))?;
        let with_swap = limit.checked_mul(2).ok_or(Error::MemoryTooLarge(bytes))?;
        resources = resources.memory(
            LinuxMemoryBuilder::default()
                .limit(limit)
                .swap(with_swap)
                .build()?,
        );
    }
    if let Some(cpus) = options.cpus {
        let quota = i64::try_from(cpus.quota_microseconds).unwrap_or(i64::MAX);
        resources = resources.cpu(
            LinuxCpuBuilder::default()
                .quota(quota)
                .period(CPU_PERIOD_MICROSECONDS)
                .build()?,
        );
    }
    if let Some(limit) = options.pids_limit {
        let limit = i64::from(limit.get());
        resources = resources.pids(LinuxPidsBuilder::default().limit(limit).build()?);
    }
    Ok(resources.build()?)
}

/// Limits of each process. A daemon would pass on its own, which an init system sets; without a daemon they are
/// named here, or a container would depend on the shell that started it. These are what systemd gives Docker's.
pub(super) fn process_limits() -> Result<Vec<PosixRlimit>, OciSpecError> {
    [
        (PosixRlimitType::RlimitNofile, 1024, 524_288),
        (PosixRlimitType::RlimitNproc, UNLIMITED, UNLIMITED),
        (PosixRlimitType::RlimitCore, UNLIMITED, UNLIMITED),
    ]
    .into_iter()
    .map(|(kind, soft, hard)| {
        PosixRlimitBuilder::default()
            .typ(kind)
            .soft(soft)
            .hard(hard)
            .build()
    })
    .collect()
}

/// Kernel parameters of the network namespace: every user may listen on low ports and send pings, because the ports
/// are the container's own.
pub(super) fn kernel_parameters() -> HashMap<String, String> {
    [
        ("net.ipv4.ip_unprivileged_port_start", "0"),
        ("net.ipv4.ping_group_range", "0 2147483647"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn processors_are_parsed_exactly() {
        let cases = [
            ("1", Ok(100_000)),
            ("0.5", Ok(50_000)),
            (".25", Ok(25_000)),
            ("2.", Ok(200_000)),
            ("1.234567", Ok(123_456)),
            ("0.01", Ok(1000)),
            ("0.009", Err("out of range")),
            ("0", Err("out of range")),
            ("9000", Err("out of range")),
            ("99999999999999999999999", Err("out of range")),
            ("", Err("not a decimal")),
            (".", Err("not a decimal")),
            ("-1", Err("not a decimal")),
            ("+1", Err("not a decimal")),
            ("1e3", Err("not a decimal")),
            ("1.2.3", Err("not a decimal")),
            ("NaN", Err("not a decimal")),
        ];
        for (text, expected) in cases {
            match (text.parse::<Cpus>(), expected) {
                (Ok(cpus), Ok(quota)) => assert_eq!(cpus.quota_microseconds, quota, "{text}"),
                (Err(error), Err(message)) => assert!(error.to_string().contains(message), "{text}: {error}"),
                (actual, _) => panic!("{text}: {actual:?}"),
            }
        }
        assert_eq!("1.5".parse::<Cpus>().unwrap().whole(), 2);
    }

    #[test]
    fn limits_are_absent_unless_asked_for() {
        let none = resources(&Options::default()).unwrap();
        assert!(none.memory().is_none() && none.cpu().is_none() && none.pids().is_none());

        let options = Options {
            memory_bytes: Some(64 << 20),
            cpus: Some("0.5".parse().unwrap()),
            pids_limit: NonZeroU32::new(10),
            ..Options::default()
        };
        let some = resources(&options).unwrap();
        let memory = some.memory().unwrap();
        assert_eq!((memory.limit(), memory.swap()), (Some(64 << 20), Some(128 << 20)));
        let cpu = some.cpu().clone().unwrap();
        assert_eq!((cpu.quota(), cpu.period()), (Some(50_000), Some(100_000)));
        assert_eq!(some.pids().unwrap().limit(), 10);
    }

    #[test]
    fn impossible_memory_is_refused() {
        for bytes in [0, MINIMUM_MEMORY_BYTES - 1, u64::MAX, 1 << 62] {
            let options = Options {
                memory_bytes: Some(bytes),
                ..Options::default()
            };
            assert!(resources(&options).is_err(), "{bytes}");
        }
    }
}
