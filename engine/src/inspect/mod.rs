//! One container in full, under Docker's field names: what is on record, what its specification says, and of a running
//! one what its supervisor and the host's kernel know.
//!
//! Whatever cannot be found out is left out and named, so that a container whose supervisor is dead or of another version
//! can be looked at all the same.

mod machine;
mod mounts;
mod network;
mod ports;
mod process;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use oci_spec::runtime::{LinuxResources, Process, Spec};
use rvm_images::Healthcheck;
use serde::Serialize;

use crate::control::Connection;
use crate::health::{Check, Probe, Report};
use crate::record::{Exited, Isolation, Record, State};
use crate::restart::Policy;
use crate::spec::capabilities::docker_s;
use crate::spec::{self, Ulimit};
use crate::supervisor::chain;

pub use machine::{Device, MachineReport, MemoryReport, Queue, VcpuReport};
pub use mounts::{AskedReport, MountReport};
pub(crate) use network::Known;
pub use network::{Addresses, EndpointSettings, IpamConfig, NetworkSettings};
pub use ports::HostPort;
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
    /// The times that it was started again by itself.
    pub restart_count: u32,
    /// Its limits.
    pub host_config: HostConfig,
    /// Volumes, and directories and files of the host.
    pub mounts: Vec<mounts::MountReport>,
    /// What it is connected to.
    pub network_settings: NetworkSettings,
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
    /// `created`, `running`, `paused`, `restarting` or `exited`.
    pub status: &'static str,
    /// A paused container is running.
    pub running: bool,
    /// Whether its processes stand still.
    pub paused: bool,
    /// Whether it has ended and is about to be started again; it is running, too.
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
    /// What is known of its health; only where it is looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthReport>,
}

/// A container's health.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthReport {
    /// `starting`, `healthy` or `unhealthy`.
    pub status: &'static str,
    /// Failures since the last success.
    pub failing_streak: u32,
    /// The last probes, oldest first.
    pub log: Vec<ProbeReport>,
}

/// One look at it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProbeReport {
    /// When it began.
    pub start: String,
    /// When it ended.
    pub end: String,
    /// What it ended with; -1 where it did not.
    pub exit_code: i32,
    /// What it said, cut short.
    pub output: String,
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
    /// Its part where processors are not enough for all; 0 is the default.
    pub cpu_shares: u64,
    /// The host's processors that it may use; empty for all.
    pub cpuset_cpus: String,
    /// Processes and threads; 0 is no limit.
    pub pids_limit: i64,
    /// Whether the root file system refuses writes.
    pub readonly_rootfs: bool,
    /// Limits of each process that were asked for.
    pub ulimits: Vec<Ulimit>,
    /// Bytes of `/dev/shm`.
    pub shm_size: u64,
    /// Directories in memory, and their options.
    pub tmpfs: BTreeMap<String, String>,
    /// Further groups.
    pub group_add: Vec<String>,
    /// Kernel parameters that were asked for.
    pub sysctls: BTreeMap<String, String>,
    /// How much sooner than others it is ended where memory is short.
    pub oom_score_adj: i32,
    /// Capabilities that were added.
    pub cap_add: Vec<String>,
    /// Capabilities that were dropped.
    pub cap_drop: Vec<String>,
    /// Security options; a seccomp profile in full.
    pub security_opt: Vec<String>,
    /// For other tools.
    pub annotations: BTreeMap<String, String>,
    /// Rows and columns of the terminal that it was made at.
    pub console_size: [u64; 2],
    /// What was mounted with `-v`.
    pub binds: Vec<String>,
    /// What was mounted with `--mount`; left out if nothing was.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<mounts::AskedReport>,
    /// Containers whose mounts it has.
    pub volumes_from: Vec<String>,
    /// `none`, `host`, `container:ID`, or the first of its networks.
    pub network_mode: String,
    /// Ports that are to be published.
    pub port_bindings: BTreeMap<String, Vec<HostPort>>,
    /// Whether all exposed ports are.
    pub publish_all_ports: bool,
    /// rvm's own: where it may connect to outside of its networks, as `--egress` has it; `null` for everywhere.
    pub egress: Option<String>,
    /// Servers that are asked for names of elsewhere, if others than the host's.
    pub dns: Vec<String>,
    /// Options of the resolver library, likewise.
    pub dns_options: Vec<String>,
    /// Domains in which short names are looked up, likewise.
    pub dns_search: Vec<String>,
    /// Further lines of `/etc/hosts`.
    pub extra_hosts: Vec<String>,
    /// Whether a process of rvm's is its first.
    pub init: bool,
    /// When it is started again.
    pub restart_policy: RestartPolicy,
}

/// When a container is started again.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RestartPolicy {
    /// `no`, `on-failure`, `always` or `unless-stopped`.
    pub name: &'static str,
    /// Times in a row; 0 is no limit.
    pub maximum_retry_count: u32,
}

/// What runs in a container.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Config {
    /// Its host name.
    pub hostname: String,
    /// Its NIS domain name.
    pub domainname: String,
    /// User and group as they were given.
    pub user: String,
    /// Ports that are there to be reached; only where there are some.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, BTreeMap<(), ()>>,
    /// Whether standard input is connected.
    pub open_stdin: bool,
    /// Whether the process has a terminal instead of standard streams.
    pub tty: bool,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// The program and its arguments. The image's entry point is part of it: a record does not keep them apart.
    pub cmd: Vec<String>,
    /// What the user called the image.
    pub image: String,
    /// Where it starts.
    pub working_dir: String,
    /// How its health is found out; only where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
}

/// Puts together what is known of a container whose sockets are in `run_directory`.
pub(crate) fn inspect(
    record: &Record,
    spec: &Spec,
    health: Option<Report>,
    run_directory: &Path,
    known: &Known,
) -> Inspection {
    let machine = (record.isolation == Isolation::Vm).then(|| match (&record.state, record.machine) {
        (State::Running { pid, .. }, size) => MachineReport::running(size, *pid, ask(run_directory)),
        (_, size) => MachineReport::stopped(size),
    });
    let (path, args) = match record.command.split_first() {
        Some((path, args)) => (path.clone(), args.to_vec()),
        None => (String::new(), Vec::new()),
    };
    Inspection {
        id: record.id.clone(),
        created: moment(Some(record.created_ms)),
        path,
        args,
        state: StateReport {
            health: health.map(HealthReport::from),
            ..state(&record.state)
        },
        image: record.image.id.clone(),
        name: format!("/{}", record.name),
        platform: "linux",
        isolation: record.isolation.to_string(),
        restart_count: record.restarts.count,
        host_config: limits(record, spec, known),
        mounts: mounts::reports(record),
        network_settings: network::settings(record, known),
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

fn state(state: &State) -> StateReport {
    let mut report = StateReport {
        status: state.name(),
        running: false,
        paused: false,
        restarting: false,
        oom_killed: false,
        dead: false,
        pid: 0,
        supervisor_pid: 0,
        exit_code: 0,
        error: String::new(),
        started_at: moment(state.started_ms()),
        finished_at: NEVER.to_owned(),
        health: None,
    };
    match state {
        State::Created => {}
        State::Running {
            supervisor_pid,
            pid,
            paused,
            ..
        } => {
            report.running = true;
            report.paused = *paused;
            report.pid = *pid;
            report.supervisor_pid = *supervisor_pid;
        }
        State::Restarting { supervisor_pid, last } => {
            (report.running, report.restarting) = (true, true);
            report.supervisor_pid = *supervisor_pid;
            report.end(last);
        }
        State::Exited(exited) => {
            report.end(exited);
        }
    }
    report
}

impl From<Report> for HealthReport {
    fn from(report: Report) -> Self {
        let probe = |probe: Probe| ProbeReport {
            start: moment(Some(probe.started_ms)),
            end: moment(Some(probe.ended_ms)),
            exit_code: probe.exit_code,
            output: probe.output,
        };
        Self {
            status: report.status.name(),
            failing_streak: report.failing_streak,
            log: report.log.into_iter().map(probe).collect(),
        }
    }
}

impl StateReport {
    fn end(&mut self, exited: &Exited) {
        self.oom_killed = exited.out_of_memory;
        self.exit_code = exited.code;
        self.error = exited.error.clone().unwrap_or_default();
        self.finished_at = moment(Some(exited.finished_ms));
    }
}

fn limits(record: &Record, specification: &Spec, known: &Known) -> HostConfig {
    let resources: Option<&LinuxResources> = specification
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    let memory = resources.and_then(|resources| resources.memory().as_ref());
    let cpu = resources.and_then(|resources| resources.cpu().as_ref());
    let share = cpu.and_then(|cpu| {
        let period = i64::try_from(cpu.period()?).ok()?;
        cpu.quota()?.checked_mul(1_000_000_000)?.checked_div(period)
    });
    let console = specification.process().as_ref().and_then(Process::console_size);
    let pids = resources.and_then(|resources| resources.pids().as_ref());
    let given = &record.settings.given;
    let networking = &record.settings.network;
    HostConfig {
        auto_remove: record.auto_remove,
        memory: memory.and_then(|memory| memory.limit()).unwrap_or(0),
        memory_swap: memory.and_then(|memory| memory.swap()).unwrap_or(0),
        nano_cpus: share.unwrap_or(0),
        cpu_shares: cpu.and_then(|cpu| cpu.shares()).unwrap_or(0),
        cpuset_cpus: cpu.and_then(|cpu| cpu.cpus().clone()).unwrap_or_default(),
        pids_limit: pids.map_or(0, |pids| pids.limit()),
        readonly_rootfs: specification
            .root()
            .as_ref()
            .and_then(|root| root.readonly())
            .unwrap_or(false),
        ulimits: given.ulimits.clone(),
        shm_size: given.shm_bytes(),
        tmpfs: given.tmpfs.clone(),
        group_add: given.groups.clone(),
        sysctls: given.sysctls.clone(),
        oom_score_adj: given.oom_score_adj.unwrap_or(0),
        cap_add: given.cap_add.iter().map(|name| docker_s(name)).collect(),
        cap_drop: given.cap_drop.iter().map(|name| docker_s(name)).collect(),
        security_opt: given.security.clone(),
        annotations: given.annotations.clone(),
        console_size: console.map_or([0, 0], |size| [size.height(), size.width()]),
        binds: record.mounts.wishes.binds.clone(),
        mounts: mounts::asked(record),
        volumes_from: record.mounts.wishes.volumes_from.clone(),
        network_mode: networking.mode_name(|id| known.name_of(id)),
        port_bindings: ports::bindings(&record.settings.ports),
        publish_all_ports: record.settings.ports.all,
        egress: record.settings.egress.as_ref().map(ToString::to_string),
        dns: networking.dns.iter().map(ToString::to_string).collect(),
        dns_options: networking.dns_options.clone(),
        dns_search: networking.dns_search.clone(),
        extra_hosts: network::extra_hosts(networking),
        init: spec::has_init(specification),
        restart_policy: RestartPolicy {
            name: record.settings.restart.name(),
            maximum_retry_count: match record.settings.restart {
                Policy::OnFailure { most } => most.map_or(0, NonZero::get),
                _ => 0,
            },
        },
    }
}

fn config(record: &Record, specification: &Spec) -> Config {
    let process = specification.process().as_ref();
    Config {
        hostname: specification.hostname().clone().unwrap_or_default(),
        domainname: specification.domainname().clone().unwrap_or_default(),
        user: process
            .and_then(|process| process.user().username().as_deref())
            .map(|user| spec::user_of(user).to_owned())
            .unwrap_or_default(),
        exposed_ports: ports::exposed(&record.settings.ports),
        open_stdin: record.open_stdin,
        tty: record.settings.tty,
        env: process
            .and_then(|process| process.env().clone())
            .unwrap_or_default(),
        cmd: record.command.clone(),
        image: record.image.name.clone(),
        working_dir: process
            .map(|process| process.cwd().display().to_string())
            .unwrap_or_default(),
        healthcheck: record.settings.health.as_ref().map(Check::as_image),
    }
}

/// A moment in milliseconds since the epoch as RFC 3339 has it, with as many digits whatever they are: so text sorts as
/// time does.
#[must_use]
pub fn moment(milliseconds: Option<u64>) -> String {
    let moment = milliseconds
        .and_then(|milliseconds| i64::try_from(milliseconds).ok())
        .and_then(|milliseconds| Timestamp::from_millisecond(milliseconds).ok());
    moment.map_or_else(|| NEVER.to_owned(), |moment| format!("{moment:.3}"))
}

#[cfg(test)]
mod tests {
    use rvm_network::publish::{Bindings, Exposed, Ports};
    use serde_json::{Value, json};

    use super::*;
    use crate::record::{ImageReference, Machine, Settings, VERSION};
    use crate::restart::Restarts;

    fn given() -> spec::Given {
        spec::Given {
            ulimits: vec!["nofile=1:2".parse().unwrap()],
            groups: vec!["audio".into()],
            cap_add: vec!["sys_time".into()],
            cap_drop: vec!["all".into()],
            ..spec::Given::default()
        }
    }

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
            settings: Settings {
                given: given(),
                ports: Ports {
                    bindings: "8000-8080:80".parse::<Bindings>().unwrap().0,
                    exposed: "81/udp".parse::<Exposed>().unwrap().0.into_iter().collect(),
                    all: false,
                },
                egress: Some("allow=10.0.0.0/8,example.org".parse().unwrap()),
                ..Settings::default()
            },
            mounts: crate::mounts::Mounts::default(),
            restarts: Restarts::default(),
            stopped: false,
            state,
        }
    }

    fn inspected(isolation: Isolation, state: State) -> Value {
        let options = spec::Options {
            arguments: vec!["sleep".into(), "9".into()],
            hostname: "box".into(),
            limits: spec::Changes {
                memory_bytes: Some(64 << 20),
                cpus: Some("0.5".parse().unwrap()),
                ..spec::Changes::default()
            },
            read_only: true,
            user: Some("www".into()),
            given: given(),
            ..spec::Options::default()
        };
        let spec = spec::build(&oci_spec::image::ImageConfiguration::default(), &options).unwrap();
        let nowhere = tempfile::tempdir().unwrap();
        serde_json::to_value(inspect(
            &record(isolation, state),
            &spec,
            None,
            nowhere.path(),
            &Known::default(),
        ))
        .unwrap()
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
                ("/HostConfig/ShmSize", json!(64 << 20)),
                ("/HostConfig/CapAdd", json!(["CAP_SYS_TIME"])),
                ("/HostConfig/CapDrop", json!(["ALL"])),
                ("/HostConfig/GroupAdd", json!(["audio"])),
                (
                    "/HostConfig/Ulimits",
                    json!([{"Name": "nofile", "Hard": 2, "Soft": 1}]),
                ),
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
            paused: false,
        };
        let document = inspected(Isolation::Vm, running);
        check(
            &document,
            &[
                ("/State/Status", json!("running")),
                ("/State/SupervisorPid", json!(7)),
                ("/NetworkSettings/Ports", json!({"80/tcp": null, "81/udp": null})),
                (
                    "/HostConfig/PortBindings",
                    json!({"80/tcp": [{"HostIp": "", "HostPort": "8000-8080"}]}),
                ),
                ("/HostConfig/Egress", json!("allow=10.0.0.0/8,example.org")),
                ("/Config/ExposedPorts", json!({"80/tcp": {}, "81/udp": {}})),
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
