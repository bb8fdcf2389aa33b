//! What a container may use: memory, processor time and processes.

use std::str::FromStr;

use oci_spec::runtime::{LinuxResources, LinuxResourcesBuilder};

use serde::{Deserialize, Serialize};

use super::update::{self, Changes};
use super::{Error, filesystem};

/// Least memory, in bytes, that a container can be limited to: below it the kernel kills the process while it is
/// still being set up.
pub const MINIMUM_MEMORY_BYTES: u64 = 6 << 20;

/// Length in microseconds of the interval in which the processor quota is given.
pub(super) const CPU_PERIOD_MICROSECONDS: u64 = 100_000;

/// A share of processor time, at least a hundredth of one processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
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

    /// As the specification has it, for each [`CPU_PERIOD_MICROSECONDS`].
    pub(super) fn quota(self) -> i64 {
        i64::try_from(self.quota_microseconds).unwrap_or(i64::MAX)
    }
}

/// Limits of the container as a whole, and its device rules.
pub(super) fn resources(limits: &Changes) -> Result<LinuxResources, Error> {
    let devices = filesystem::device_rules()?;
    update::limited(LinuxResourcesBuilder::default().devices(devices).build()?, limits)
}

/// A memory limit as the specification has it.
pub(super) fn memory_limit(bytes: u64) -> Result<i64, Error> {
    if bytes < MINIMUM_MEMORY_BYTES {
        return Err(Error::MemoryTooSmall(bytes));
    }
    i64::try_from(bytes).map_err(|_| Error::MemoryTooLarge(bytes))
}

#[cfg(test)]
mod tests {
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
        let none = resources(&Changes::default()).unwrap();
        assert!(none.memory().is_none() && none.cpu().is_none() && none.pids().is_none());

        let limits = Changes {
            memory_bytes: Some(64 << 20),
            memory_swap: None,
            cpus: Some("0.5".parse().unwrap()),
            cpu_shares: Some(512),
            cpuset_cpus: Some("0".into()),
            pids_limit: Some(10),
        };
        let some = resources(&limits).unwrap();
        let memory = some.memory().unwrap();
        assert_eq!((memory.limit(), memory.swap()), (Some(64 << 20), Some(128 << 20)));
        let cpu = some.cpu().clone().unwrap();
        assert_eq!((cpu.quota(), cpu.period()), (Some(50_000), Some(100_000)));
        assert_eq!((cpu.shares(), cpu.cpus().as_deref()), (Some(512), Some("0")));
        assert_eq!(some.pids().unwrap().limit(), 10);
    }

    #[test]
    fn impossible_memory_is_refused() {
        for bytes in [0, MINIMUM_MEMORY_BYTES - 1, u64::MAX, 1 << 62] {
            let limits = Changes {
                memory_bytes: Some(bytes),
                ..Changes::default()
            };
            assert!(resources(&limits).is_err(), "{bytes}");
        }
    }
}
