//! What rvm remembers of a container: `container.json` in its directory.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rvm_network::endpoint::Egress;
use rvm_network::publish::Ports;
use serde::{Deserialize, Serialize};

use crate::mounts::Mounts;
use crate::network::Networking;
use crate::restart::{Policy, Restarts};
use crate::spec::Given;
use crate::{health, signals};

/// Version of the file. A file with a greater one was written by a newer rvm. 2 has [`Settings`], 3 restarts, 4 terminals and
/// that a container that runs is paused, 5 what it was given, 6 networks and what is mounted in it.
pub const VERSION: u32 = 6;

/// How a container is kept apart from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// In a virtual machine of its own.
    Vm,
    /// In namespaces and cgroups of the host's kernel.
    Container,
}

impl std::fmt::Display for Isolation {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(match self {
            Self::Vm => "vm",
            Self::Container => "container",
        })
    }
}

/// Everything about a container but its OCI runtime specification, which lies beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// 64 hexadecimal digits.
    pub id: String,
    /// Unique among the containers of one root directory.
    pub name: String,
    /// How it is kept apart.
    pub isolation: Isolation,
    /// The image it was made from.
    pub image: ImageReference,
    /// The image's layers as EROFS files, lowest first.
    pub layers: Vec<Layer>,
    /// The process and its arguments, for listings.
    pub command: Vec<String>,
    /// When it was made, in milliseconds since the epoch.
    pub created_ms: u64,
    /// Whether it is removed once it has ended.
    pub auto_remove: bool,
    /// Whether standard input is connected; otherwise it is `/dev/null`.
    pub open_stdin: bool,
    /// The virtual machine's size; `None` in container mode.
    pub machine: Option<Machine>,
    /// What its life goes by.
    #[serde(default, skip_serializing_if = "Settings::is_default")]
    pub settings: Settings,
    /// What is mounted in it from outside its image.
    #[serde(default, skip_serializing_if = "Mounts::is_default")]
    pub mounts: Mounts,
    /// The times that it was started again by itself.
    #[serde(default, skip_serializing_if = "Restarts::is_default")]
    pub restarts: Restarts,
    /// Whether somebody has stopped it since somebody started it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// Where it stands.
    pub state: State,
}

/// What a container's life goes by, beside what its specification says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Whether standard input ends for the workload when the first attached command's does.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stdin_once: bool,
    /// Whether the workload has a terminal instead of standard streams.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
    /// The signal that asks it to end; `SIGTERM` where `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<i32>,
    /// Seconds from that signal to `SIGKILL`, -1 for ever; 10 where `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i32>,
    /// The image's labels and the user's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How much of its output is kept.
    #[serde(skip_serializing_if = "LogLimits::is_default")]
    pub log: LogLimits,
    /// When it is started again.
    #[serde(skip_serializing_if = "Policy::is_default")]
    pub restart: Policy,
    /// How its health is found out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<health::Check>,
    /// What it was given beyond its image and its limits.
    #[serde(skip_serializing_if = "Given::is_default")]
    pub given: Given,
    /// What it is connected to; nothing where an older rvm made it.
    #[serde(skip_serializing_if = "Networking::is_default")]
    pub network: Networking,
    /// Its ports.
    #[serde(skip_serializing_if = "Ports::is_default")]
    pub ports: Ports,
    /// Where it may connect to outside of its networks; everywhere where `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
}

/// Seconds from the stop signal to `SIGKILL`, where nobody said otherwise.
const STOP_TIMEOUT: i32 = 10;

impl Settings {
    /// The signal that asks the container to end.
    #[must_use]
    pub fn stop_signal(&self) -> i32 {
        self.stop_signal.unwrap_or(signals::TERM)
    }

    /// The time from that signal to `SIGKILL`; `None` is for ever.
    #[must_use]
    pub fn stop_patience(&self) -> Option<Duration> {
        patience(self.stop_timeout.unwrap_or(STOP_TIMEOUT))
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A time-out as people give it, in seconds; `None` is for ever.
#[must_use]
pub fn patience(seconds: i32) -> Option<Duration> {
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

/// How much of a container's output is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLimits {
    /// A file is closed when it has grown beyond this many bytes, and the next one begun.
    pub max_bytes: u64,
    /// Files that are kept, the one that grows included; at least 1.
    pub max_files: u32,
}

impl Default for LogLimits {
    /// Enough for a day of a chatty service, little beside its image.
    fn default() -> Self {
        Self {
            max_bytes: 32 << 20,
            max_files: 2,
        }
    }
}

impl LogLimits {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The image of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageReference {
    /// Digest of the image's configuration.
    pub id: String,
    /// What the user called it.
    pub name: String,
}

/// One layer of a container's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// An EROFS image.
    pub path: PathBuf,
    /// Its length, a multiple of 4096.
    pub bytes: u64,
}

/// Size of a virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Guest memory in MiB: the workload's limit and what the guest itself needs.
    pub memory_mib: u32,
}

/// Where a container stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case", deny_unknown_fields)]
pub enum State {
    /// Made, never started.
    Created,
    /// Owned by a supervisor.
    Running {
        /// The process that owns the container.
        supervisor_pid: i32,
        /// The workload's process on the host, or the VMM's.
        pid: i32,
        /// When the workload started, in milliseconds since the epoch.
        started_ms: u64,
        /// Whether its processes stand still.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        paused: bool,
    },
    /// Ended, to be started again by the supervisor that owns it.
    Restarting {
        /// The process that owns the container.
        supervisor_pid: i32,
        /// How it has ended.
        last: Exited,
    },
    /// Ended.
    Exited(Exited),
}

impl State {
    /// Docker's word for it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running { paused: true, .. } => "paused",
            Self::Running { .. } => "running",
            Self::Restarting { .. } => "restarting",
            Self::Exited(_) => "exited",
        }
    }

    /// When the workload started, in milliseconds since the epoch; `None` if it has not.
    #[must_use]
    pub fn started_ms(&self) -> Option<u64> {
        match self {
            Self::Created => None,
            Self::Running { started_ms, .. } => Some(*started_ms),
            Self::Restarting { last, .. } => last.started_ms,
            Self::Exited(exited) => exited.started_ms,
        }
    }

    /// Whether a supervisor owns the container.
    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(self, Self::Running { .. } | Self::Restarting { .. })
    }
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exited {
    /// Exit code of the workload, 128 plus the signal that killed it, or 125 to 127 where it never ran.
    pub code: u8,
    /// Whether the kernel killed a process of it because the memory limit was reached.
    pub out_of_memory: bool,
    /// What went wrong, where the end was not the workload's own.
    pub error: Option<String>,
    /// When, in milliseconds since the epoch.
    pub finished_ms: u64,
    /// When the workload had started, in milliseconds since the epoch; `None` if it never ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<u64>,
}

impl Exited {
    /// The end of a container whose supervisor was killed, and the workload with it; `state` is what that left.
    #[must_use]
    pub fn killed(state: &State) -> Self {
        let error = Some("the supervisor was killed".to_owned());
        match state {
            State::Restarting { last, .. } => Self {
                error,
                ..last.clone()
            },
            _ => Self {
                code: 137,
                out_of_memory: false,
                error,
                finished_ms: now_ms(),
                started_ms: state.started_ms(),
            },
        }
    }
}

/// Milliseconds since the epoch; 0 on a machine whose clock stands before it.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::num::NonZero;

    use super::*;

    #[test]
    fn the_format_is_frozen() {
        let record = Record {
            version: VERSION,
            id: "0a".into(),
            name: "n".into(),
            isolation: Isolation::Vm,
            image: ImageReference {
                id: "sha256:1".into(),
                name: "debian".into(),
            },
            layers: vec![Layer {
                path: "/l".into(),
                bytes: 4096,
            }],
            command: vec!["true".into()],
            created_ms: 1,
            auto_remove: true,
            open_stdin: false,
            machine: Some(Machine {
                vcpus: 1,
                memory_mib: 128,
            }),
            settings: Settings::default(),
            mounts: Mounts::default(),
            restarts: Restarts::default(),
            stopped: false,
            state: State::Exited(Exited {
                code: 1,
                out_of_memory: false,
                error: None,
                finished_ms: 2,
                started_ms: None,
            }),
        };
        let json = concat!(
            r#"{"version":6,"id":"0a","name":"n","isolation":"vm","image":{"id":"sha256:1","name":"debian"},"#,
            r#""layers":[{"path":"/l","bytes":4096}],"command":["true"],"created_ms":1,"auto_remove":true,"#,
            r#""open_stdin":false,"machine":{"vcpus":1,"memory_mib":128},"state":{"status":"exited","code":1,"#,
            r#""out_of_memory":false,"error":null,"finished_ms":2}}"#
        );
        assert_eq!(serde_json::to_string(&record).unwrap(), json);
        assert_eq!(serde_json::from_str::<Record>(json).unwrap(), record);
        // The first version had no settings, the second no restarts, the third nothing paused, the fifth no mounts.
        for version in 1..VERSION {
            let old = json.replacen(r#""version":6"#, &format!(r#""version":{version}"#), 1);
            let expected = Record {
                version,
                ..record.clone()
            };
            assert_eq!(serde_json::from_str::<Record>(&old).unwrap(), expected);
        }
    }

    #[test]
    fn a_container_that_runs_may_be_paused() {
        let state = |paused| State::Running {
            supervisor_pid: 1,
            pid: 2,
            started_ms: 3,
            paused,
        };
        let json = r#"{"status":"running","supervisor_pid":1,"pid":2,"started_ms":3}"#;
        assert_eq!(serde_json::to_string(&state(false)).unwrap(), json);
        assert_eq!(serde_json::from_str::<State>(json).unwrap(), state(false));
        let json = json.replace('}', r#","paused":true}"#);
        assert_eq!(serde_json::to_string(&state(true)).unwrap(), json);
        assert_eq!(serde_json::from_str::<State>(&json).unwrap(), state(true));
        assert_eq!((state(true).name(), state(false).name()), ("paused", "running"));
    }

    #[test]
    fn settings_that_are_not_the_default_are_kept() {
        let settings = Settings {
            stdin_once: true,
            tty: true,
            stop_signal: Some(2),
            stop_timeout: Some(-1),
            labels: BTreeMap::from([("a".into(), "b".into())]),
            log: LogLimits {
                max_bytes: 10,
                max_files: 3,
            },
            restart: Policy::OnFailure {
                most: NonZero::new(4),
            },
            health: None,
            given: Given::default(),
            network: Networking::default(),
            ports: Ports::default(),
            egress: None,
        };
        let json = concat!(
            r#"{"stdin_once":true,"tty":true,"stop_signal":2,"stop_timeout":-1,"labels":{"a":"b"},"#,
            r#""log":{"max_bytes":10,"max_files":3},"restart":{"on_failure":{"most":4}}}"#
        );
        assert_eq!(serde_json::to_string(&settings).unwrap(), json);
        assert_eq!(serde_json::from_str::<Settings>(json).unwrap(), settings);
        assert_eq!(
            serde_json::from_str::<Settings>("{}").unwrap(),
            Settings::default()
        );
    }
}
