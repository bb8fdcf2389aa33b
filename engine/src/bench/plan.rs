//! What is to be measured, and how often.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::record::Isolation;

/// A group of rows that one workload gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Suite {
    /// From the start of a command to its end, by phase.
    Startup,
    /// What containers take of the host's memory, and give back.
    Memory,
    /// Computing, and memory bandwidth.
    Cpu,
    /// System calls, one kind after the other.
    Syscall,
    /// The root file system.
    Disk,
    /// A volume, likewise.
    Volume,
    /// Over a network of rvm's, between the host and a workload.
    Network,
    /// What people run: a database, servers, a build.
    Apps,
    /// What of the host a workload reaches.
    Exposure,
    /// Many containers at once.
    Density,
}

/// No such name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is none of {known}")]
pub struct UnknownName {
    given: String,
    known: String,
}

impl Suite {
    /// All of them, in the order in which they run.
    pub const ALL: [Self; 10] = [
        Self::Startup,
        Self::Memory,
        Self::Cpu,
        Self::Syscall,
        Self::Disk,
        Self::Volume,
        Self::Network,
        Self::Apps,
        Self::Exposure,
        Self::Density,
    ];

    /// As it is typed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Syscall => "syscall",
            Self::Disk => "disk",
            Self::Volume => "volume",
            Self::Network => "network",
            Self::Apps => "apps",
            Self::Exposure => "exposure",
            Self::Density => "density",
        }
    }

    /// What it measures, in a line.
    #[must_use]
    pub fn about(self) -> &'static str {
        match self {
            Self::Startup => "from the start of a command to its end",
            Self::Memory => "what containers take of the host's memory",
            Self::Cpu => "computing and memory bandwidth, inside",
            Self::Syscall => "system calls, inside",
            Self::Disk => "the root file system, inside",
            Self::Volume => "a volume, inside: a part of what disk does",
            Self::Network => "TCP and HTTP between the host and a workload, over a bridge network",
            Self::Apps => "a database, servers and a build, inside",
            Self::Exposure => "what of the host a workload reaches (proxies, no verdict)",
            Self::Density => "many containers at once",
        }
    }

    /// Of `runs` that were asked for, those of this suite: some take long, and vary little.
    #[must_use]
    pub fn runs(self, runs: usize) -> usize {
        match self {
            Self::Memory | Self::Density | Self::Exposure => runs.div_ceil(3),
            _ => runs,
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Suite {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        named(text, &Self::ALL, Self::name)
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// rvm, in VM mode.
    Vm,
    /// rvm, in container mode.
    Container,
    /// crun, with the configuration that rvm makes.
    Crun,
    /// runc, likewise.
    Runc,
    /// podman, with the same image.
    Podman,
    /// Firecracker, with the same files and rvm's guest kernel.
    Firecracker,
    /// QEMU, likewise.
    Qemu,
    /// The host itself, without any isolation: a fixed piece of work that tells what the machine did meanwhile.
    Host,
}

impl Subject {
    /// rvm's own.
    pub const OWN: [Self; 2] = [Self::Vm, Self::Container];

    /// The others that can be named.
    pub const OTHERS: [Self; 5] = [
        Self::Crun,
        Self::Runc,
        Self::Podman,
        Self::Firecracker,
        Self::Qemu,
    ];

    /// As it is typed and shown.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Container => "container",
            Self::Crun => "crun",
            Self::Runc => "runc",
            Self::Podman => "podman",
            Self::Firecracker => "firecracker",
            Self::Qemu => "qemu",
            Self::Host => "host",
        }
    }

    /// How a workload's text comes out: a monitor shows what was written to a terminal, whose lines end with both characters.
    pub(super) fn on_its_output(self, text: &str) -> String {
        match self {
            Self::Firecracker | Self::Qemu => text.replace('\n', "\r\n"),
            _ => text.to_owned(),
        }
    }

    /// The mode that it is, if it is one of rvm's.
    #[must_use]
    pub fn isolation(self) -> Option<Isolation> {
        match self {
            Self::Vm => Some(Isolation::Vm),
            Self::Container => Some(Isolation::Container),
            _ => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Subject {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        named(text, &Self::OTHERS, Self::name)
    }
}

fn named<T: Copy>(text: &str, all: &[T], name: fn(T) -> &'static str) -> Result<T, UnknownName> {
    let found = all.iter().copied().find(|one| name(*one) == text);
    found.ok_or_else(|| UnknownName {
        given: text.to_owned(),
        known: all.iter().map(|one| name(*one)).collect::<Vec<_>>().join(", "),
    })
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Name or ID of the image.
    pub image: String,
    /// In the order of [`Suite::ALL`].
    pub suites: Vec<Suite>,
    /// Runs that count; see [`Suite::runs`].
    pub runs: usize,
    /// Runs of each subject before those, which do not.
    pub warm_up: usize,
    /// Beside rvm's modes, in the startup suite.
    pub also: Vec<Subject>,
    /// Processors of the host on which all runs, such as `0-2,4`; all of them where `None`.
    pub pin: Option<String>,
    /// How many containers are many.
    pub instances: usize,
    /// Whether the host's caches are dropped before each start of the startup suite.
    #[serde(default)]
    pub cold: bool,
    /// What each workload may use of memory, in bytes.
    pub memory_bytes: u64,
}

impl Plan {
    /// What is measured in one suite.
    #[must_use]
    pub fn subjects(&self, suite: Suite) -> Vec<Subject> {
        let others = self.also.iter().copied().filter(|_| suite == Suite::Startup);
        let subjects = Subject::OWN.into_iter().chain(others);
        subjects.chain([Subject::Host]).collect()
    }

    /// The order in a round: subjects take turns, and every second round goes backwards, so that nobody always comes first.
    pub(super) fn order(&self, suite: Suite, round: usize) -> Vec<Subject> {
        let mut subjects = self.subjects(suite);
        if round % 2 == 1 {
            subjects.reverse();
        }
        subjects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        for suite in Suite::ALL {
            assert_eq!(suite.name().parse(), Ok(suite));
            assert_eq!(serde_json::to_value(suite).unwrap(), suite.name());
        }
        for subject in Subject::OTHERS {
            assert_eq!(subject.name().parse(), Ok(subject));
        }
        let error = "vm".parse::<Subject>().unwrap_err().to_string();
        assert_eq!(error, "\"vm\" is none of crun, runc, podman, firecracker, qemu");
    }

    #[test]
    fn subjects_take_turns_at_being_first() {
        let plan = Plan {
            image: "debian".to_owned(),
            suites: vec![Suite::Startup, Suite::Cpu],
            runs: 2,
            warm_up: 1,
            also: vec![Subject::Crun],
            pin: None,
            instances: 10,
            cold: false,
            memory_bytes: 1,
        };
        let forward = [Subject::Vm, Subject::Container, Subject::Crun, Subject::Host];
        let backward = [Subject::Host, Subject::Crun, Subject::Container, Subject::Vm];
        assert_eq!(plan.order(Suite::Startup, 0), forward);
        assert_eq!(plan.order(Suite::Startup, 1), backward);
        assert_eq!(plan.order(Suite::Startup, 2), forward);
        assert_eq!(
            plan.order(Suite::Cpu, 1),
            [Subject::Host, Subject::Container, Subject::Vm]
        );
    }
}
