//! When a container that has ended is started again, and after how long.

use std::fmt;
use std::num::NonZero;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What decides whether a container that has ended is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Policy {
    /// It is not.
    #[default]
    No,
    /// It is where its exit code was not 0.
    OnFailure {
        /// So many times at most, in a row.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        most: Option<NonZero<u32>>,
    },
    /// It is, unless it was stopped; and after the machine was started even then.
    Always,
    /// It is, unless it was stopped.
    UnlessStopped,
}

impl Policy {
    /// Docker's word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnFailure { .. } => "on-failure",
            Self::Always => "always",
            Self::UnlessStopped => "unless-stopped",
        }
    }

    /// Whether a container that has ended with `code`, after having been started again `count` times, is to run again.
    fn wants(self, code: u8, count: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure { most } => code != 0 && most.is_none_or(|most| count < most.get()),
            Self::Always | Self::UnlessStopped => true,
        }
    }

    pub(crate) fn is_default(&self) -> bool {
        *self == Self::No
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnFailure { most: Some(most) } => write!(formatter, "{}:{most}", self.name()),
            _ => formatter.pad(self.name()),
        }
    }
}

impl FromStr for Policy {
    type Err = String;

    /// As Docker writes them.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, number) = match text.split_once(':') {
            Some((name, number)) => (name, Some(number)),
            None => (text, None),
        };
        match (name, number) {
            ("no" | "", None) => Ok(Self::No),
            ("always", None) => Ok(Self::Always),
            ("unless-stopped", None) => Ok(Self::UnlessStopped),
            ("on-failure", None) => Ok(Self::OnFailure { most: None }),
            ("on-failure", Some(number)) => match number.parse() {
                // As with Docker, 0 is no limit.
                Ok(most) => Ok(Self::OnFailure {
                    most: NonZero::new(most),
                }),
                Err(_) => Err("the number of tries in on-failure:NUMBER is a whole number".to_owned()),
            },
            ("no" | "always" | "unless-stopped", Some(_)) => {
                Err(format!("only on-failure takes a number of tries, not {name}"))
            }
            _ => Err("it is no, always, unless-stopped or on-failure[:NUMBER]".to_owned()),
        }
    }
}

/// The wait before the first time.
const FIRST_MS: u64 = 100;

/// Each wait is twice the one before, up to this.
const LONGEST_MS: u64 = 60_000;

/// A container that has run so long is well again.
const HEALTHY_MS: u64 = 10_000;

/// The times that a container was started again since somebody started it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restarts {
    /// How many.
    pub count: u32,
    /// The last wait before one, in milliseconds.
    pub wait_ms: u64,
}

impl Restarts {
    /// What comes after an end with `code` of a workload that has run for `ran_ms`; `None` where it stays as it is.
    #[must_use]
    pub fn next(self, policy: Policy, code: u8, ran_ms: u64) -> Option<Self> {
        if !policy.wants(code, self.count) {
            return None;
        }
        let wait_ms = if ran_ms >= HEALTHY_MS || self.wait_ms == 0 {
            FIRST_MS
        } else {
            (self.wait_ms * 2).min(LONGEST_MS)
        };
        Some(Self {
            count: self.count.saturating_add(1),
            wait_ms,
        })
    }

    /// Whether a container that has ended like this is started with the machine: somebody may have `stopped` it before.
    #[must_use]
    pub fn at_boot(self, policy: Policy, code: u8, stopped: bool) -> bool {
        (policy == Policy::Always || !stopped) && policy.wants(code, self.count)
    }

    /// The wait before the next start, whatever stands on record.
    pub(crate) fn wait(self) -> Duration {
        Duration::from_millis(self.wait_ms.min(LONGEST_MS))
    }

    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_written_as_docker_s() {
        let three = Policy::OnFailure {
            most: NonZero::new(3),
        };
        for (text, policy) in [
            ("no", Policy::No),
            ("always", Policy::Always),
            ("unless-stopped", Policy::UnlessStopped),
            ("on-failure", Policy::OnFailure { most: None }),
            ("on-failure:3", three),
        ] {
            assert_eq!(text.parse(), Ok(policy));
            assert_eq!(policy.to_string(), text);
        }
        assert_eq!("on-failure:0".parse(), Ok(Policy::OnFailure { most: None }));
        for text in [
            "sometimes",
            "always:3",
            "on-failure:",
            "on-failure:-1",
            "on-failure:x",
        ] {
            assert!(text.parse::<Policy>().is_err(), "{text}");
        }
    }

    #[test]
    fn waits_double_until_it_has_run_for_a_while() {
        let mut restarts = Restarts::default();
        let mut waits = Vec::new();
        for _ in 0..12 {
            restarts = restarts.next(Policy::Always, 0, 10).unwrap();
            waits.push(restarts.wait_ms);
        }
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[10..], [60_000, 60_000]);
        let well = restarts.next(Policy::Always, 0, HEALTHY_MS).unwrap();
        assert_eq!((well.wait_ms, well.count), (100, 13));
    }

    #[test]
    fn failures_are_counted() {
        let policy: Policy = "on-failure:2".parse().unwrap();
        let one = Restarts::default().next(policy, 1, 0).unwrap();
        assert_eq!(one.next(policy, 0, 0), None);
        let two = one.next(policy, 1, 0).unwrap();
        assert_eq!(two.next(policy, 1, 0), None);
        assert_eq!(Restarts::default().next(Policy::No, 1, 0), None);
        let boots = |policy: &str, code, stopped| one.at_boot(policy.parse().unwrap(), code, stopped);
        assert!(
            boots("always", 0, true)
                && boots("unless-stopped", 0, false)
                && boots("on-failure:2", 137, false)
        );
        assert!(
            !boots("unless-stopped", 0, true) && !boots("on-failure", 0, false) && !boots("no", 137, false)
        );
        assert!(!boots("on-failure:1", 137, false));
    }
}
