//! From an OCI Spec to a [`Plan`]: everything a container needs, checked once, so that nothing later has to ask whether
//! a field makes sense. A Spec that asks for what this crate cannot do is refused here, with the field's name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hooks, Linux, PosixRlimit, PosixRlimitType, Process, Spec};
use serde::{Deserialize, Serialize};

use crate::capabilities;
use crate::cgroup::{DeviceRule, Limits};
use crate::environment::{Environment, Interface, Layer, PrivateFile, Rootfs};
use crate::mounts::Mount;
use crate::namespaces::{self, Namespace, Namespaces};
use crate::nodes::Node;
use crate::root;
use crate::rootfs;
use crate::seccomp::Filter;
use crate::terminal::Size;
use crate::user::User;
use crate::{files, network};

/// Why a Spec cannot be turned into a [`Plan`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The Spec asks for something that this crate does not do.
    #[error("{field}: {what} is not supported")]
    Unsupported {
        /// Path of the field in the OCI runtime specification, for example `process.scheduler`.
        field: String,
        /// What was asked for.
        what: String,
    },
    /// The Spec contradicts itself or the OCI runtime specification, or the environment is not usable.
    #[error("{field}: {reason}")]
    Invalid {
        /// Path of the field in the OCI runtime specification, or in [`Environment`].
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A container, ready to be created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub(crate) cgroup: CgroupPlan,
    pub(crate) namespaces: Namespaces,
    pub(crate) root: RootPlan,
    pub(crate) process: ProcessPlan,
    /// Whether PID 1 is a process of ours, and the workload its child.
    pub(crate) init: bool,
    /// What the parent brings into the network namespace.
    pub(crate) interfaces: Vec<Interface>,
}

/// What the parent does: it makes the cgroup before there is a child.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CgroupPlan {
    pub(crate) path: PathBuf,
    pub(crate) limits: Limits,
    pub(crate) devices: Vec<DeviceRule>,
}

/// What the workload finds as its root directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RootPlan {
    pub(crate) rootfs: Rootfs,
    pub(crate) read_only: bool,
    /// In order of mounting.
    pub(crate) mounts: Vec<Mount>,
    pub(crate) nodes: Vec<Node>,
    /// Put over what the image has there, but not over a mount.
    pub(crate) files: Vec<PrivateFile>,
    /// Paths below `/proc/sys` and their values.
    pub(crate) sysctls: BTreeMap<String, String>,
    pub(crate) masked: Vec<PathBuf>,
    pub(crate) read_only_paths: Vec<PathBuf>,
}

/// The process itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessPlan {
    /// Of its terminal, if it is to have one.
    pub(crate) terminal: Option<Size>,
    /// At least one.
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<String>,
    pub(crate) working_directory: PathBuf,
    pub(crate) user: User,
    pub(crate) umask: u32,
    pub(crate) limits: Vec<PosixRlimit>,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) capabilities: capabilities::Sets,
    pub(crate) no_new_privileges: bool,
    pub(crate) seccomp: Option<Filter>,
}

/// A further process in a container, ready to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntryPlan {
    pub(crate) namespaces: Namespaces,
    pub(crate) process: ProcessPlan,
}

impl EntryPlan {
    /// Checks `process`, which is to run in the container that was made of `spec`, under its seccomp filter.
    pub fn new(spec: &Spec, process: &Process) -> Result<EntryPlan, Error> {
        let linux = spec
            .linux()
            .as_ref()
            .ok_or_else(|| invalid("linux", "is missing"))?;
        Ok(EntryPlan {
            namespaces: Namespaces::new(spec, linux)?,
            process: ProcessPlan::new(process, linux)?,
        })
    }
}

/// The specification has no word for it: an annotation with the value `true` asks for a PID 1 that runs the workload as its
/// child, hands it signals and reaps processes.
pub const INIT_ANNOTATION: &str = "dev.rvm.init";

fn has_init(spec: &Spec) -> bool {
    let annotations = spec.annotations().as_ref();
    annotations
        .and_then(|annotations| annotations.get(INIT_ANNOTATION))
        .is_some_and(|value| value == "true")
}

impl Plan {
    /// Checks `spec` (OCI runtime specification 1.x) and joins it with the place it will run in.
    ///
    /// `root.path` and `linux.cgroupsPath` are the environment's to say and therefore not looked at; annotations are the
    /// caller's, but for [`INIT_ANNOTATION`].
    pub fn new(spec: &Spec, environment: &Environment) -> Result<Plan, Error> {
        if !spec.version().starts_with("1.") {
            return Err(unsupported("ociVersion", format!("version {:?}", spec.version())));
        }
        check_environment(environment)?;
        check_hooks(spec.hooks().as_ref())?;
        let linux = spec
            .linux()
            .as_ref()
            .ok_or_else(|| invalid("linux", "is missing"))?;
        let process = spec
            .process()
            .as_ref()
            .ok_or_else(|| invalid("process", "is missing"))?;
        check_unsupported(linux)?;
        let namespaces = Namespaces::new(spec, linux)?;
        network::check(&environment.interfaces, namespaces.has(Namespace::Network))?;
        files::check(&environment.files)?;
        Ok(Plan {
            cgroup: cgroup(linux, environment)?,
            root: root(spec, linux, &namespaces, environment)?,
            process: ProcessPlan::new(process, linux)?,
            init: has_init(spec),
            interfaces: environment.interfaces.clone(),
            namespaces,
        })
    }
}

fn unsupported(field: &str, what: impl Into<String>) -> Error {
    Error::Unsupported {
        field: field.into(),
        what: what.into(),
    }
}

fn invalid(field: &str, reason: impl Into<String>) -> Error {
    Error::Invalid {
        field: field.into(),
        reason: reason.into(),
    }
}

fn check_environment(environment: &Environment) -> Result<(), Error> {
    let rootfs = &environment.rootfs;
    let paths = [
        ("environment.cgroup", &environment.cgroup),
        ("environment.rootfs.upper", &rootfs.upper),
        ("environment.rootfs.work", &rootfs.work),
        ("environment.rootfs.staging", &rootfs.staging),
    ];
    let layers = rootfs.layers.iter().map(|layer| match layer {
        Layer::File(path) | Layer::Device(path) => ("environment.rootfs.layers", path),
    });
    for (field, path) in paths.into_iter().chain(layers) {
        // The plan travels as JSON, which has no bytes that are not text.
        if !rootfs::is_plain(path) || path.to_str().is_none() {
            return Err(invalid(
                field,
                format!("{path:?} is not an absolute path in UTF-8"),
            ));
        }
    }
    Ok(())
}

fn check_hooks(hooks: Option<&Hooks>) -> Result<(), Error> {
    let Some(hooks) = hooks else { return Ok(()) };
    let all = [
        ("hooks.createRuntime", hooks.create_runtime()),
        ("hooks.createContainer", hooks.create_container()),
        ("hooks.startContainer", hooks.start_container()),
        ("hooks.poststart", hooks.poststart()),
        ("hooks.poststop", hooks.poststop()),
    ];
    match all
        .iter()
        .find(|(_, hooks)| hooks.as_ref().is_some_and(|hooks| !hooks.is_empty()))
    {
        Some((field, _)) => Err(unsupported(field, "a hook")),
        None => Ok(()),
    }
}

/// Refuses the parts of `linux` that nothing below reads.
fn check_unsupported(linux: &Linux) -> Result<(), Error> {
    let filled = |list: Option<bool>| list.unwrap_or(false);
    let propagation = linux.rootfs_propagation().as_deref().unwrap_or("private");
    let asked = [
        (
            "linux.uidMappings",
            filled(linux.uid_mappings().as_ref().map(|list| !list.is_empty())),
        ),
        (
            "linux.gidMappings",
            filled(linux.gid_mappings().as_ref().map(|list| !list.is_empty())),
        ),
        (
            "linux.timeOffsets",
            filled(linux.time_offsets().as_ref().map(|map| !map.is_empty())),
        ),
        (
            "linux.netDevices",
            filled(linux.net_devices().as_ref().map(|map| !map.is_empty())),
        ),
        (
            "linux.mountLabel",
            filled(linux.mount_label().as_ref().map(|label| !label.is_empty())),
        ),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.personality", linux.personality().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        (
            "linux.rootfsPropagation",
            !matches!(propagation, "" | "private" | "rprivate"),
        ),
    ];
    asked
        .into_iter()
        .find(|(_, asked)| *asked)
        .map_or(Ok(()), |(field, _)| Err(unsupported(field, "this setting")))
}

fn cgroup(linux: &Linux, environment: &Environment) -> Result<CgroupPlan, Error> {
    let resources = linux.resources().clone().unwrap_or_default();
    let devices = resources.devices().as_deref().unwrap_or_default();
    Ok(CgroupPlan {
        path: environment.cgroup.clone(),
        limits: Limits::new(&resources)?,
        devices: DeviceRule::all(devices)?,
    })
}

fn root(
    spec: &Spec,
    linux: &Linux,
    namespaces: &Namespaces,
    environment: &Environment,
) -> Result<RootPlan, Error> {
    let mounts = spec
        .mounts()
        .iter()
        .flatten()
        .enumerate()
        .map(|(index, mount)| Mount::new(index, mount));
    let mounts = mounts.collect::<Result<Vec<_>, _>>()?;
    let sysctls = namespaces::sysctls(linux, namespaces)?;
    let at = |path: &str| {
        mounts
            .iter()
            .rfind(|mount| mount.destination() == Path::new(path))
    };
    if !sysctls.is_empty() && at("/proc").is_none_or(Mount::is_bind) {
        return Err(invalid(
            "linux.sysctl",
            "needs a proc file system mounted on /proc",
        ));
    }
    // The host's /dev, bound into the container, has its devices and must not be added to.
    let nodes = match at("/dev") {
        Some(mount) if mount.is_bind() => Vec::new(),
        _ => Node::all(linux.devices().as_deref().unwrap_or_default())?,
    };
    // What a user mounts there is meant to be there.
    let is_mounted = |file: &&PrivateFile| mounts.iter().any(|mount| mount.destination() == file.path);
    let files = environment
        .files
        .iter()
        .filter(|file| !is_mounted(file))
        .cloned()
        .collect();
    Ok(RootPlan {
        files,
        rootfs: environment.rootfs.clone(),
        read_only: spec
            .root()
            .as_ref()
            .and_then(|root| root.readonly())
            .unwrap_or(false),
        nodes,
        sysctls,
        masked: paths("linux.maskedPaths", linux.masked_paths().as_deref())?,
        read_only_paths: paths("linux.readonlyPaths", linux.readonly_paths().as_deref())?,
        mounts,
    })
}

fn paths(field: &str, paths: Option<&[String]>) -> Result<Vec<PathBuf>, Error> {
    let checked = paths.unwrap_or_default().iter().enumerate().map(|(index, path)| {
        let inside = root::inside(Path::new(path)).filter(|path| path.as_os_str() != "/");
        inside.ok_or_else(|| {
            invalid(
                &format!("{field}[{index}]"),
                "not an absolute path below the root",
            )
        })
    });
    checked.collect()
}

impl ProcessPlan {
    fn new(process: &Process, linux: &Linux) -> Result<ProcessPlan, Error> {
        let some = |list: &Option<String>| list.as_ref().is_some_and(|text| !text.is_empty());
        let asked = [
            ("process.apparmorProfile", some(process.apparmor_profile())),
            ("process.selinuxLabel", some(process.selinux_label())),
            ("process.ioPriority", process.io_priority().is_some()),
            ("process.scheduler", process.scheduler().is_some()),
            ("process.execCPUAffinity", process.exec_cpu_affinity().is_some()),
        ];
        if let Some((field, _)) = asked.into_iter().find(|(_, asked)| *asked) {
            return Err(unsupported(field, "this setting"));
        }
        let arguments = process.args().clone().unwrap_or_default();
        if arguments.is_empty() {
            return Err(invalid("process.args", "is empty"));
        }
        let environment = process.env().clone().unwrap_or_default();
        for (field, strings) in [("process.args", &arguments), ("process.env", &environment)] {
            if let Some(index) = strings.iter().position(|string| string.contains('\0')) {
                return Err(invalid(&format!("{field}[{index}]"), "contains a NUL byte"));
            }
        }
        let oom_score_adj = process.oom_score_adj();
        if oom_score_adj.is_some_and(|score| !(-1000..=1000).contains(&score)) {
            return Err(invalid("process.oomScoreAdj", "is not between -1000 and 1000"));
        }
        Ok(ProcessPlan {
            terminal: terminal(process)?,
            arguments,
            environment,
            working_directory: root::inside(process.cwd())
                .ok_or_else(|| invalid("process.cwd", "not an absolute path without \"..\""))?,
            user: user(process),
            // Docker's and runc's.
            umask: process.user().umask().unwrap_or(0o022) & 0o777,
            limits: limits(process.rlimits().as_deref().unwrap_or_default())?,
            oom_score_adj,
            capabilities: capabilities::Sets::new(process.capabilities().as_ref())?,
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            seccomp: linux.seccomp().as_ref().map(Filter::new).transpose()?,
        })
    }
}

/// The size counts only for a process with a terminal.
fn terminal(process: &Process) -> Result<Option<Size>, Error> {
    if process.terminal() != Some(true) {
        return Ok(None);
    }
    let console = process.console_size();
    let part = |name: &str, length: Option<u64>| {
        let field = format!("process.consoleSize.{name}");
        u16::try_from(length.unwrap_or(0)).map_err(|_| invalid(&field, "is above 65535"))
    };
    Ok(Some(Size {
        rows: part("height", console.map(|console| console.height()))?,
        columns: part("width", console.map(|console| console.width()))?,
    }))
}

/// The specification has `username` for Windows only. Here it carries what was given as `name`, `uid`, `name:group` or
/// `uid:gid`, to be resolved inside the image; the numbers beside it then do not count.
fn user(process: &Process) -> User {
    let user = process.user();
    let additional = user.additional_gids().clone().unwrap_or_default();
    match user.username() {
        Some(text) => User::Text {
            text: text.clone(),
            additional,
        },
        None => User::Numbers {
            uid: user.uid(),
            gid: user.gid(),
            additional,
        },
    }
}

fn limits(limits: &[PosixRlimit]) -> Result<Vec<PosixRlimit>, Error> {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for (index, limit) in limits.iter().enumerate() {
        let reason = if limit.soft() > limit.hard() {
            "the soft limit is above the hard limit"
        } else if !seen.insert(limit.typ().to_string()) {
            "is listed twice"
        } else {
            continue;
        };
        return Err(invalid(&format!("process.rlimits[{index}]"), reason));
    }
    Ok(limits.to_vec())
}

/// The kernel's resource for a limit of the specification.
pub(crate) fn resource(limit: PosixRlimitType) -> rustix::process::Resource {
    use rustix::process::Resource;
    match limit {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn environment() -> Environment {
        Environment {
            interfaces: Vec::new(),
            files: Vec::new(),
            cgroup: "/sys/fs/cgroup/test".into(),
            rootfs: Rootfs {
                layers: vec![Layer::File("/layers/one".into())],
                upper: "/upper".into(),
                work: "/work".into(),
                staging: "/staging".into(),
            },
        }
    }

    fn minimal() -> Value {
        json!({
            "ociVersion": "1.2.0",
            "process": {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}]},
        })
    }

    fn plan(spec: Value) -> Result<Plan, Error> {
        Plan::new(&serde_json::from_value(spec).unwrap(), &environment())
    }

    #[test]
    fn a_plan_survives_the_wire() {
        let plan = plan(minimal()).unwrap();
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_the_fields_name() {
        let cases = [
            (
                "/ociVersion",
                json!("2.0.0"),
                "ociVersion: version \"2.0.0\" is not supported",
            ),
            ("/process/args", json!([]), "process.args: is empty"),
            (
                "/process/args",
                json!(["a\0b"]),
                "process.args[0]: contains a NUL byte",
            ),
            (
                "/process/cwd",
                json!("tmp"),
                "process.cwd: not an absolute path without \"..\"",
            ),
            (
                "/process/oomScoreAdj",
                json!(1001),
                "process.oomScoreAdj: is not between -1000 and 1000",
            ),
            (
                "/process/apparmorProfile",
                json!("x"),
                "process.apparmorProfile: this setting is not supported",
            ),
            (
                "/process/rlimits",
                json!([{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}]),
                "process.rlimits[0]: the soft limit is above the hard limit",
            ),
            (
                "/process/rlimits",
                json!([{"type": "RLIMIT_CORE", "soft": 1, "hard": 1}, {"type": "RLIMIT_CORE", "soft": 1, "hard": 1}]),
                "process.rlimits[1]: is listed twice",
            ),
            (
                "/hooks",
                json!({"poststart": [{"path": "/x"}]}),
                "hooks.poststart: a hook is not supported",
            ),
            (
                "/linux/uidMappings",
                json!([{"hostID": 0, "containerID": 0, "size": 1}]),
                "linux.uidMappings: this setting is not supported",
            ),
            (
                "/linux/rootfsPropagation",
                json!("shared"),
                "linux.rootfsPropagation: this setting is not supported",
            ),
            (
                "/linux/maskedPaths",
                json!(["/proc/kcore", "../x"]),
                "linux.maskedPaths[1]: not an absolute path below the root",
            ),
            (
                "/linux/sysctl",
                json!({"kernel.shmmax": "1"}),
                "linux.sysctl: needs a proc file system mounted on /proc",
            ),
        ];
        for (pointer, value, expected) in cases {
            let mut spec = minimal();
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            spec.pointer_mut(parent).unwrap()[name] = value;
            assert_eq!(plan(spec).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn the_environment_is_checked() {
        let mut relative = environment();
        relative.rootfs.layers = vec![Layer::Device("vda1".into())];
        let spec = serde_json::from_value(minimal()).unwrap();
        let message = Plan::new(&spec, &relative).unwrap_err().to_string();
        assert_eq!(
            message,
            "environment.rootfs.layers: \"vda1\" is not an absolute path in UTF-8"
        );
    }

    #[test]
    fn the_user_is_text_or_numbers() {
        let user = |user: Value| {
            let mut spec = minimal();
            spec["process"]["user"] = user;
            plan(spec).unwrap().process.user
        };
        let additional = vec![5];
        assert_eq!(
            user(json!({"uid": 1, "gid": 2, "additionalGids": [5]})),
            User::Numbers {
                uid: 1,
                gid: 2,
                additional: additional.clone()
            }
        );
        assert_eq!(
            user(json!({"uid": 0, "gid": 0, "username": "www:ssl", "additionalGids": [5]})),
            User::Text {
                text: "www:ssl".into(),
                additional
            }
        );
    }

    #[test]
    fn a_terminal_has_a_size() {
        let terminal = |terminal: bool, size: Value| {
            let mut spec = minimal();
            spec["process"]["terminal"] = json!(terminal);
            spec["process"]["consoleSize"] = size;
            plan(spec).map(|plan| plan.process.terminal)
        };
        let size = |rows, columns| Ok(Some(Size { rows, columns }));
        let given = json!({"height": 24, "width": 80});
        assert_eq!(terminal(true, given.clone()), size(24, 80));
        assert_eq!(terminal(true, Value::Null), size(0, 0));
        assert_eq!(terminal(false, given), Ok(None));
        let error = terminal(true, json!({"height": 1, "width": 65536})).unwrap_err();
        assert_eq!(error.to_string(), "process.consoleSize.width: is above 65535");
    }

    #[test]
    fn a_bound_dev_is_left_alone() {
        let mut spec = minimal();
        spec["mounts"] = json!([{"destination": "/dev", "type": "bind", "source": "/dev"}]);
        assert_eq!(plan(spec).unwrap().root.nodes, []);
        assert!(!plan(minimal()).unwrap().root.nodes.is_empty());
    }
}
