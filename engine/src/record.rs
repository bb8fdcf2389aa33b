//! What rvm remembers of a container: `container.json` in its directory.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Version of the file. A file with a greater one was written by a newer rvm.
pub const VERSION: u32 = 1;

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
    /// Where it stands.
    pub state: State,
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
    },
    /// Ended.
    Exited(Exited),
}

impl State {
    /// When the workload started, in milliseconds since the epoch; `None` if it has not.
    #[must_use]
    pub fn started_ms(&self) -> Option<u64> {
        match self {
            Self::Created => None,
            Self::Running { started_ms, .. } => Some(*started_ms),
            Self::Exited(exited) => exited.started_ms,
        }
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
        Self {
            code: 137,
            out_of_memory: false,
            error: Some("the supervisor was killed".to_owned()),
            finished_ms: now_ms(),
            started_ms: state.started_ms(),
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
            state: State::Exited(Exited {
                code: 1,
                out_of_memory: false,
                error: None,
                finished_ms: 2,
                started_ms: None,
            }),
        };
        let json = concat!(
            r#"{"version":1,"id":"0a","name":"n","isolation":"vm","image":{"id":"sha256:1","name":"debian"},"#,
            r#""layers":[{"path":"/l","bytes":4096}],"command":["true"],"created_ms":1,"auto_remove":true,"#,
            r#""open_stdin":false,"machine":{"vcpus":1,"memory_mib":128},"state":{"status":"exited","code":1,"#,
            r#""out_of_memory":false,"error":null,"finished_ms":2}}"#
        );
        assert_eq!(serde_json::to_string(&record).unwrap(), json);
        assert_eq!(serde_json::from_str::<Record>(json).unwrap(), record);
    }
}
