//! Limits of each process, as `--ulimit NAME=SOFT[:HARD]` gives them.

use std::str::FromStr;

use oci_spec::OciSpecError;
use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType};
use serde::{Deserialize, Serialize};

/// Docker's names.
const KINDS: [(&str, PosixRlimitType); 15] = [
    ("core", PosixRlimitType::RlimitCore),
    ("cpu", PosixRlimitType::RlimitCpu),
    ("data", PosixRlimitType::RlimitData),
    ("fsize", PosixRlimitType::RlimitFsize),
    ("locks", PosixRlimitType::RlimitLocks),
    ("memlock", PosixRlimitType::RlimitMemlock),
    ("msgqueue", PosixRlimitType::RlimitMsgqueue),
    ("nice", PosixRlimitType::RlimitNice),
    ("nofile", PosixRlimitType::RlimitNofile),
    ("nproc", PosixRlimitType::RlimitNproc),
    ("rss", PosixRlimitType::RlimitRss),
    ("rtprio", PosixRlimitType::RlimitRtprio),
    ("rttime", PosixRlimitType::RlimitRttime),
    ("sigpending", PosixRlimitType::RlimitSigpending),
    ("stack", PosixRlimitType::RlimitStack),
];

/// `RLIM_INFINITY` of `asm-generic/resource.h`.
const UNLIMITED: u64 = u64::MAX;

/// A limit of each process. Amounts are getrlimit(2)'s; -1 is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(serialize = "PascalCase"), deny_unknown_fields)]
pub struct Ulimit {
    /// Docker's, such as `nofile`.
    #[serde(alias = "Name")]
    pub name: String,
    /// What no process can go beyond.
    #[serde(alias = "Hard")]
    pub hard: i64,
    /// What a process begins with.
    #[serde(alias = "Soft")]
    pub soft: i64,
}

/// Why text is no limit. The wording is Docker's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UlimitError {
    /// Not `NAME=SOFT[:HARD]`.
    #[error("invalid ulimit argument: {0}")]
    Syntax(String),
    /// There is no such limit.
    #[error("invalid ulimit type: {0}")]
    Kind(String),
    /// The kernel would refuse it.
    #[error("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")]
    Order {
        /// What a process begins with.
        soft: i64,
        /// What it cannot go beyond.
        hard: i64,
    },
}

impl FromStr for Ulimit {
    type Err = UlimitError;

    fn from_str(text: &str) -> Result<Self, UlimitError> {
        let syntax = || UlimitError::Syntax(text.to_owned());
        let (name, bounds) = text.split_once('=').ok_or_else(syntax)?;
        if kind(name).is_none() {
            return Err(UlimitError::Kind(name.to_owned()));
        }
        let (soft, hard) = bounds.split_once(':').unwrap_or((bounds, bounds));
        let bound = |text: &str| text.parse().ok().filter(|bound: &i64| *bound >= -1);
        let (soft, hard) = (bound(soft).ok_or_else(syntax)?, bound(hard).ok_or_else(syntax)?);
        if number(soft) > number(hard) {
            return Err(UlimitError::Order { soft, hard });
        }
        Ok(Self {
            name: name.to_owned(),
            hard,
            soft,
        })
    }
}

fn kind(name: &str) -> Option<PosixRlimitType> {
    KINDS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, kind)| *kind)
}

fn number(bound: i64) -> u64 {
    u64::try_from(bound).unwrap_or(UNLIMITED)
}

/// All limits. A daemon would pass on its own, which an init system sets; without a daemon they are named here, or a
/// container would depend on the shell that started it. These are what systemd gives Docker's, in whose place those stand
/// that were asked for. The last of several counts.
pub(super) fn process_limits(given: &[Ulimit]) -> Result<Vec<PosixRlimit>, OciSpecError> {
    let mut all = vec![
        (PosixRlimitType::RlimitNofile, 1024, 524_288),
        (PosixRlimitType::RlimitNproc, UNLIMITED, UNLIMITED),
        (PosixRlimitType::RlimitCore, UNLIMITED, UNLIMITED),
    ];
    for limit in given {
        if let Some(kind) = kind(&limit.name) {
            all.retain(|(known, ..)| *known != kind);
            all.push((kind, number(limit.soft), number(limit.hard)));
        }
    }
    all.into_iter()
        .map(|(kind, soft, hard)| {
            PosixRlimitBuilder::default()
                .typ(kind)
                .soft(soft)
                .hard(hard)
                .build()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_docker_s() {
        let cases = [
            ("nofile=1024", Ok((1024, 1024))),
            ("nofile=1024:2048", Ok((1024, 2048))),
            ("core=0:-1", Ok((0, -1))),
            ("memlock=-1:-1", Ok((-1, -1))),
            ("stack=9223372036854775807", Ok((i64::MAX, i64::MAX))),
            ("nofile=2:1", Err("must be less than or equal")),
            ("nofile=-1:5", Err("must be less than or equal")),
            ("nofile=-2", Err("invalid ulimit argument")),
            ("nofile=18446744073709551616", Err("invalid ulimit argument")),
            ("nofile=1:2:3", Err("invalid ulimit argument")),
            ("nofile=", Err("invalid ulimit argument")),
            ("nofile", Err("invalid ulimit argument")),
            ("files=1", Err("invalid ulimit type: files")),
            ("=1", Err("invalid ulimit type")),
        ];
        for (text, expected) in cases {
            match (text.parse::<Ulimit>(), expected) {
                (Ok(limit), Ok(bounds)) => assert_eq!((limit.soft, limit.hard), bounds, "{text}"),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{text}: {error}"),
                (actual, _) => panic!("{text}: {actual:?}"),
            }
        }
    }

    #[test]
    fn what_is_asked_for_takes_the_default_s_place() {
        let given = ["nofile=1:2", "core=0", "core=5:-1"].map(|text| text.parse().unwrap());
        let limits = process_limits(&given).unwrap();
        let of = |kind| {
            let all: Vec<_> = limits.iter().filter(|limit| limit.typ() == kind).collect();
            assert_eq!(all.len(), 1, "{kind}");
            (all[0].soft(), all[0].hard())
        };
        assert_eq!(of(PosixRlimitType::RlimitNofile), (1, 2));
        assert_eq!(of(PosixRlimitType::RlimitCore), (5, UNLIMITED));
        assert_eq!(of(PosixRlimitType::RlimitNproc), (UNLIMITED, UNLIMITED));
    }
}
