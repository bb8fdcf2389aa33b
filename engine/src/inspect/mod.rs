//! One container in full, under Docker's field names: what is on record, what its specification says, and of a running
//! one what its supervisor and the host's kernel know.
//!
//! Whatever cannot be found out is left out and named, so that a container whose supervisor is dead or of another version
//! can be looked at all the same.

mod machine;
mod process;

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use oci_spec::runtime::{LinuxResources, Spec};
use serde::Serialize;

use crate::control::Connection;
use crate::record::{Isolation, Record, State};
use crate::supervisor::chain;

pub use machine::{Device, MachineReport, MemoryReport, Queue, VcpuReport};
pub use process::Thread;

/// Docker's moment for what has not happened.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// A supervisor answers within this: it gives its VMM 10 seconds.
const LIMIT: Duration = Duration::from_secs(15);

/// A container. The names are Docker's, but for those that say so.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Inspection {
    /// 64 hexadecimal digits.
    pub id: String,
    /// When it was made.
    pub created: String,
    /// The program.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where it stands.
    pub state: StateReport,
    /// Digest of the image's configuration.
    pub image: String,
    /// With a slash in front of it, as Docker has it.
    pub name: String,
    /// Always `linux`.
    pub platform: &'static str,
    /// rvm's own: `vm` or `container`.
    pub isolation: String,
    /// Its limits.
    pub host_config: HostConfig,
    /// Volumes and directories of the host; there are none yet.
    pub mounts: Vec<()>,
    /// What runs in it.
    pub config: Config,
    /// rvm's own: the virtual machine. Only in VM mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineReport>,
}

/// Where a container stands.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
#[expect(clippy::struct_excessive_bools, reason = "the names and types are Docker's")]
pub struct StateReport {
    /// `created`, `running`, `paused` or `exited`.
    pub status: &'static str,
    /// A paused container is running.
    pub running: bool,
    /// Whether its virtual machine is paused.
    pub paused: bool,
    /// Always false: nothing is restarted.
    pub restarting: bool,
    /// Whether the memory limit ended it.
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    /// Always false: what cannot be removed is an error.
    pub dead: bool,
    /// The workload's process on the host, or the VMM's; 0 if there is none.
    pub pid: i32,
    /// rvm's own: the process that owns the container; 0 if there is none.
    pub supervisor_pid: i32,
    /// Its exit code; 0 as long as there is none.
    pub exit_code: u8,
    /// What went wrong.
    pub error: String,
    /// When the workload started.
    pub started_at: String,
    /// When it ended.
    pub finished_at: String,
}

/// Limits of a container; 0 is none.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HostConfig {
    /// Whether it is removed once it has ended.
    pub auto_remove: bool,
    /// Bytes that the workload may use.
    pub memory: i64,
    /// Bytes of memory and swap.
    pub memory_swap: i64,
    /// Processors, in billionths.
    pub nano_cpus: i64,
    /// Processes and threads; 0 is no limit.
    pub pids_limit: i64,
    /// Whether the root file system refuses writes.
    pub readonly_rootfs: bool,
    /// Only the loopback interface, as yet.
    pub network_mode: &'static str,
}

/// What runs in a container.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Config {
    /// Its host name.
    pub hostname: String,
    /// User and group as they were given.
    pub user: String,
    /// Whether standard input is connected.
    pub open_stdin: bool,
    /// Always false.
    pub tty: bool,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// The program and its arguments. The image's entry point is part of it: a record does not keep them apart.
    pub cmd: Vec<String>,
    /// What the user called the image.
    pub image: String,
    /// Where it starts.
    pub working_dir: String,
}

/// Puts together what is known of a container whose sockets are in `run_directory`.
pub(crate) fn inspect(record: &Record, spec: &Spec, run_directory: &Path) -> Inspection {
    let is_running = matches!(record.state, State::Running { .. });
    let machine = (record.isolation == Isolation::Vm).then(|| match (&record.state, record.machine) {
        (State::Running { pid, .. }, size) => MachineReport::running(size, *pid, ask(run_directory)),
        (_, size) => MachineReport::stopped(size),
    });
    let paused = machine.as_ref().is_some_and(|machine| machine.paused);
    let (path, args) = match record.command.split_first() {
        Some((path, args)) => (path.clone(), args.to_vec()),
        None => (String::new(), Vec::new()),
    };
    Inspection {
        id: record.id.clone(),
        created: moment(Some(record.created_ms)),
        path,
        args,
        state: state(&record.state, is_running && paused),
        image: record.image.id.clone(),
        name: format!("/{}", record.name),
        platform: "linux",
        isolation: record.isolation.to_string(),
        host_config: limits(record, spec),
        mounts: Vec::new(),
        config: config(record, spec),
        machine,
    }
}

/// What the supervisor says of the virtual machine, or why it says nothing.
fn ask(run_directory: &Path) -> Result<Box<rvm_vmm::status::Status>, String> {
    let connection = Connection::open(run_directory, LIMIT).map_err(|error| chain(&error))?;
    let answer = connection.inspect().map_err(|error| chain(&error))?;
    answer
        .machine
        .ok_or_else(|| answer.error.unwrap_or_else(|| "it says nothing".to_owned()))
}

fn state(state: &State, paused: bool) -> StateReport {
    let mut report = StateReport {
        status: "created",
        running: false,
        paused,
        restarting: false,
        oom_killed: false,
        dead: false,
        pid: 0,
        supervisor_pid: 0,
        exit_code: 0,
        error: String::new(),
        started_at: moment(state.started_ms()),
        finished_at: NEVER.to_owned(),
    };
    match state {
        State::Created => {}
        State::Running {
            supervisor_pid, pid, ..
        } => {
            report.status = if paused { "paused" } else { "running" };
            report.running = true;
            report.pid = *pid;
            report.supervisor_pid = *supervisor_pid;
        }
        State::Exited(exited) => {
            report.status = "exited";
            report.oom_killed = exited.out_of_memory;
            report.exit_code = exited.code;
            report.error = exited.error.clone().unwrap_or_default();
            report.finished_at = moment(Some(exited.finished_ms));
        }
    }
    report
}

fn limits(record: &Record, spec: &Spec) -> HostConfig {
    let resources: Option<&LinuxResources> =
        spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let memory = resources.and_then(|resources| resources.memory().as_ref());
    let cpu = resources.and_then(|resources| resources.cpu().as_ref());
    let share = cpu.and_then(|cpu| {
        let period = i64::try_from(cpu.period()?).ok()?;
        cpu.quota()?.checked_mul(1_000_000_000)?.checked_div(period)
    });
    let pids = resources.and_then(|resources| resources.pids().as_ref());
    HostConfig {
        auto_remove: record.auto_remove,
        memory: memory.and_then(|memory| memory.limit()).unwrap_or(0),
        memory_swap: memory.and_then(|memory| memory.swap()).unwrap_or(0),
        nano_cpus: share.unwrap_or(0),
        pids_limit: pids.map_or(0, |pids| pids.limit()),
        readonly_rootfs: spec
            .root()
            .as_ref()
            .and_then(|root| root.readonly())
            .unwrap_or(false),
        network_mode: "none",
    }
}

fn config(record: &Record, spec: &Spec) -> Config {
    let process = spec.process().as_ref();
    Config {
        hostname: spec.hostname().clone().unwrap_or_default(),
        user: process
            .and_then(|process| process.user().username().clone())
            .unwrap_or_default(),
        open_stdin: record.open_stdin,
        tty: false,
        env: process
            .and_then(|process| process.env().clone())
            .unwrap_or_default(),
        cmd: record.command.clone(),
        image: record.image.name.clone(),
        working_dir: process
            .map(|process| process.cwd().display().to_string())
            .unwrap_or_default(),
    }
}

/// A moment in milliseconds since the epoch as RFC 3339 has it, with as many digits whatever they are: so text sorts as
/// time does.
fn moment(milliseconds: Option<u64>) -> String {
    let moment = milliseconds
        .and_then(|milliseconds| i64::try_from(milliseconds).ok())
        .and_then(|milliseconds| Timestamp::from_millisecond(milliseconds).ok());
    moment.map_or_else(|| NEVER.to_owned(), |moment| format!("{moment:.3}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::record::{Exited, ImageReference, Machine, VERSION};
    use crate::spec;

    fn record(isolation: Isolation, state: State) -> Record {
        Record {
            version: VERSION,
            id: "ab".repeat(32),
            name: "web".into(),
            isolation,
            image: ImageReference {
                id: "sha256:1".into(),
                name: "debian".into(),
            },
            layers: Vec::new(),
            command: vec!["sleep".into(), "9".into()],
            created_ms: 1_700_000_000_123,
            auto_remove: true,
            open_stdin: false,
            machine: (isolation == Isolation::Vm).then_some(Machine {
                vcpus: 2,
                memory_mib: 130,
            }),
            state,
        }
    }

    fn inspected(isolation: Isolation, state: State) -> Value {
        let options = spec::Options {
            arguments: vec!["sleep".into(), "9".into()],
            hostname: "box".into(),
            memory_bytes: Some(64 << 20),
            cpus: Some("0.5".parse().unwrap()),
            read_only: true,
            user: Some("www".into()),
            ..spec::Options::default()
        };
        let spec = spec::build(&oci_spec::image::ImageConfiguration::default(), &options).unwrap();
        let nowhere = tempfile::tempdir().unwrap();
        serde_json::to_value(inspect(&record(isolation, state), &spec, nowhere.path())).unwrap()
    }

    fn check(document: &Value, expected: &[(&str, Value)]) {
        for (pointer, value) in expected {
            assert_eq!(
                document.pointer(pointer),
                Some(value),
                "{pointer} in {document:#}"
            );
        }
    }

    #[test]
    fn an_ended_container_has_docker_s_fields() {
        let exited = Exited {
            code: 137,
            out_of_memory: true,
            error: Some("out of memory".into()),
            finished_ms: 1_700_000_009_000,
            started_ms: Some(1_700_000_001_000),
        };
        let document = inspected(Isolation::Vm, State::Exited(exited));
        check(
            &document,
            &[
                ("/Name", json!("/web")),
                ("/Created", json!("2023-11-14T22:13:20.123Z")),
                ("/Path", json!("sleep")),
                ("/Args", json!(["9"])),
                ("/Image", json!("sha256:1")),
                ("/Isolation", json!("vm")),
                ("/State/Status", json!("exited")),
                ("/State/Running", json!(false)),
                ("/State/OOMKilled", json!(true)),
                ("/State/ExitCode", json!(137)),
                ("/State/Pid", json!(0)),
                ("/State/StartedAt", json!("2023-11-14T22:13:21.000Z")),
                ("/State/FinishedAt", json!("2023-11-14T22:13:29.000Z")),
                ("/HostConfig/Memory", json!(64 << 20)),
                ("/HostConfig/NanoCpus", json!(500_000_000)),
                ("/HostConfig/AutoRemove", json!(true)),
                ("/HostConfig/ReadonlyRootfs", json!(true)),
                ("/Config/Hostname", json!("box")),
                ("/Config/User", json!("www")),
                ("/Config/Image", json!("debian")),
                ("/Config/Cmd", json!(["sleep", "9"])),
                ("/Config/WorkingDir", json!("/")),
                ("/Mounts", json!([])),
                ("/Machine/Vcpus", json!(2)),
                ("/Machine/MemoryMiB", json!(130)),
                ("/Machine/Memory/WorkloadMiB", json!(64)),
                ("/Machine/Memory/GuestOverheadMiB", json!(66)),
                ("/Machine/Devices", json!(null)),
            ],
        );
        assert_eq!(document.pointer("/Machine/Missing"), None);
    }

    #[test]
    fn a_container_that_never_ran_has_no_times_and_no_machine() {
        let document = inspected(Isolation::Container, State::Created);
        check(
            &document,
            &[
                ("/State/Status", json!("created")),
                ("/State/StartedAt", json!(NEVER)),
                ("/State/FinishedAt", json!(NEVER)),
                ("/Isolation", json!("container")),
            ],
        );
        assert_eq!(document.get("Machine"), None);
    }

    #[test]
    fn what_a_supervisor_does_not_say_is_named() {
        let running = State::Running {
            supervisor_pid: 7,
            pid: i32::try_from(std::process::id()).unwrap(),
            started_ms: 1_700_000_001_000,
        };
        let document = inspected(Isolation::Vm, running);
        check(
            &document,
            &[
                ("/State/Status", json!("running")),
                ("/State/SupervisorPid", json!(7)),
                ("/State/Pid", json!(std::process::id())),
                ("/Machine/Exits", json!(null)),
            ],
        );
        let missing = document.pointer("/Machine/Missing/0").and_then(Value::as_str);
        assert!(missing.unwrap().contains("cannot reach"), "{missing:?}");
        assert!(
            !document
                .pointer("/Machine/Threads")
                .unwrap()
                .as_array()
                .unwrap()
                .is_empty()
        );
    }
}
