//! From an image's configuration and the user's flags to an OCI runtime specification. This is the only place that
//! decides what a container is; both kinds of isolation get the same answer.
//!
//! The defaults are Docker's. What a program can observe is meant to be equal, with two exceptions: the time
//! namespace is not made yet, and a container whose only network interface is the loopback has its image's `/etc/hosts`,
//! `/etc/hostname` and `/etc/resolv.conf`. For others these files are made as they are started (`network/files.rs`): what is in
//! them depends on where they run, so it is no part of the specification.

pub mod capabilities;
mod exec;
mod filesystem;
mod given;
mod process;
mod resources;
pub mod seccomp;
mod security;
mod sysctl;
mod tmpfs;
mod ulimit;
mod update;

use std::collections::HashMap;
use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::image::{Config, ImageConfiguration};
use oci_spec::runtime::{
    BoxBuilder, Linux, LinuxBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, Mount, Process,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};
use rvm_isolation::plan::INIT_ANNOTATION;

use rvm_protocol::TerminalSize;

pub(crate) use exec::further;
pub use given::Given;
pub(crate) use process::user_of;
pub use resources::{Cpus, CpusError, MINIMUM_MEMORY_BYTES};
use security::Security;
pub use ulimit::{Ulimit, UlimitError};
pub use update::Changes;
pub(crate) use update::{around, changed, inside, processors, within};

/// What the user asked for. The default asks for nothing beyond the image.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Arguments after the image; empty for the image's own command.
    pub arguments: Vec<String>,
    /// Replaces the image's entry point, and drops its command. Empty only resets it.
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=VALUE`, or `NAME` to remove a variable that the image sets. The last of several values counts.
    pub environment: Vec<String>,
    /// Absolute path.
    pub working_directory: Option<String>,
    /// User and optionally group, each a name or a number: `USER[:GROUP]`.
    pub user: Option<String>,
    /// Host name inside the container.
    pub hostname: String,
    /// NIS domain name inside the container.
    pub domainname: Option<String>,
    /// What it may use.
    pub limits: Changes,
    /// What it is given beyond.
    pub given: Given,
    /// Whether the root file system refuses writes.
    pub read_only: bool,
    /// Whether PID 1 is a process that runs the workload as its child and reaps what loses its parent.
    pub init: bool,
    /// Whether it has no network interfaces of its own, but the host's or another container's.
    pub shares_network: bool,
    /// What is mounted in it beside, in order. These are decided when a container is made.
    pub mounts: Vec<Mount>,
    /// Size of the terminal that the process has instead of standard streams; `None` for the streams.
    pub terminal: Option<TerminalSize>,
}

/// Why no specification can be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither the image nor the user names a command.
    #[error("no command specified")]
    NoCommand,
    /// A working directory has to start at the root.
    #[error("the working directory {0:?} is not an absolute path")]
    RelativeWorkingDirectory(String),
    /// See [`MINIMUM_MEMORY_BYTES`].
    #[error("a memory limit of {0} bytes is below the minimum of {MINIMUM_MEMORY_BYTES}")]
    MemoryTooSmall(u64),
    /// With as much swap the limit does not fit into the specification's signed 64 bits.
    #[error("a memory limit of {0} bytes is too large")]
    MemoryTooLarge(u64),
    /// Swap is counted together with memory.
    #[error("a limit of memory and swap needs one of memory")]
    SwapAlone,
    /// Likewise.
    #[error(
        "a limit of {swap} bytes of memory and swap together is less than that of memory, {limit} bytes: change both"
    )]
    SwapTooSmall {
        /// Memory and swap.
        swap: i64,
        /// Memory.
        limit: i64,
    },
    /// The kernel does not take them.
    #[error("{0} CPU shares are out of range: at least 2, at most 262144")]
    Shares(u64),
    /// No list of processors.
    #[error("{0:?} is no list of CPUs such as 0-2,4")]
    CpuList(String),
    /// The machine has no such processors.
    #[error("the CPUs {wanted} were asked for, and available are {available}")]
    CpusNotThere {
        /// As it was asked for.
        wanted: String,
        /// The machine's.
        available: String,
    },
    /// No name, or one that has a meaning of its own here.
    #[error("invalid annotation {0:?}: it needs a name, and rvm's own are set by other flags")]
    Annotation(String),
    /// A user and a group are all that can be said here.
    #[error("{0:?} is no user: it is written USER[:GROUP]")]
    User(String),
    /// No name and no number of a group.
    #[error("{0:?} is no name of a group")]
    Group(String),
    /// Beyond what the kernel takes.
    #[error("Invalid value {0}, range for oom score adj is [-1000, 1000]")]
    OomScoreAdj(i32),
    /// A kernel parameter that is not a namespace's.
    #[error("sysctl '{0}' is not allowed: it is not the container's own")]
    Sysctl(String),
    /// The network is not the container's own.
    #[error("sysctl '{0}' is not allowed: the container's network is not its own")]
    SysctlOfNetwork(String),
    /// It has to be possible to tell where it is.
    #[error("invalid mount path: {0:?} mount path must be absolute, and without \"..\"")]
    TmpfsPath(String),
    /// Nothing of the container would be left.
    #[error("invalid specification: destination can't be '/'")]
    TmpfsRoot,
    /// The kernel's file systems.
    #[error("a tmpfs on {0:?} would hide what the container gets there: choose another directory")]
    TmpfsReserved(String),
    /// The kernel knows no such right.
    #[error("invalid {list}: unknown capability: {name:?}")]
    Capability {
        /// Docker's name of the list.
        list: &'static str,
        /// With `CAP_`.
        name: String,
    },
    /// None that means something here.
    #[error(
        "invalid --security-opt: {0:?}: there are no-new-privileges[:true], seccomp=unconfined, seccomp=FILE, \
         systempaths=unconfined, label=disable and apparmor=unconfined"
    )]
    SecurityOption(String),
    /// Not in Docker's form.
    #[error("Decoding seccomp profile failed")]
    SeccompProfile(#[source] serde_json::Error),
    /// A profile that contradicts itself, or asks for what is not there.
    #[error("cannot use the seccomp profile: {0}")]
    Seccomp(String),
    /// Neither a mount's nor tmpfs' own.
    #[error("invalid tmpfs option {0:?}")]
    TmpfsOption(String),
    /// A part of the specification lacks a required field.
    #[error("cannot assemble the specification")]
    Assemble(#[from] OciSpecError),
}

/// Makes the specification.
///
/// # Errors
/// See [`Error`]; all but the last are the user's to mend.
pub fn build(image: &ImageConfiguration, options: &Options) -> Result<Spec, Error> {
    let image = image.config().clone().unwrap_or_default();
    let root = RootBuilder::default()
        .path("rootfs")
        .readonly(options.read_only)
        .build()?;
    let capabilities = capabilities::chosen(&options.given.cap_add, &options.given.cap_drop)?;
    let security = Security::new(&options.given.security)?;
    let mut process = process(&image, options)?;
    process
        .set_capabilities(Some(capabilities::process_sets(&capabilities)))
        .set_no_new_privileges(Some(security.no_new_privileges));
    let mut linux = linux(options)?;
    if security.opens_system_paths {
        linux.set_masked_paths(None).set_readonly_paths(None);
    }
    linux.set_seccomp(security.filter(&capabilities)?);
    let mut specification = SpecBuilder::default()
        .version("1.2.0")
        .root(root)
        .mounts(filesystem::mounts(&options.given, &options.mounts)?)
        .process(process)
        .hostname(options.hostname.as_str())
        .annotations(annotations(options)?)
        .linux(linux)
        .build()?;
    specification.set_domainname(options.domainname.clone());
    Ok(specification)
}

/// Whether this specification asks for a first process of rvm's.
pub(crate) fn has_init(spec: &Spec) -> bool {
    let annotations = spec.annotations().as_ref();
    annotations.is_some_and(|annotations| annotations.contains_key(INIT_ANNOTATION))
}

fn annotations(options: &Options) -> Result<HashMap<String, String>, Error> {
    let given = &options.given.annotations;
    if let Some(name) = given
        .keys()
        .find(|name| name.is_empty() || *name == INIT_ANNOTATION)
    {
        return Err(Error::Annotation(name.clone()));
    }
    let init = options
        .init
        .then(|| (INIT_ANNOTATION.to_owned(), "true".to_owned()));
    Ok(given.clone().into_iter().chain(init).collect())
}

fn process(image: &Config, options: &Options) -> Result<Process, Error> {
    let user = options
        .user
        .as_deref()
        .or(image.user().as_deref())
        .unwrap_or_default();
    let mut process = ProcessBuilder::default()
        .terminal(options.terminal.is_some())
        .user(
            UserBuilder::default()
                .username(process::user(user, &options.given.groups)?)
                .build()?,
        )
        .args(process::arguments(image, options)?)
        .env(process::environment(image, options))
        .cwd(process::working_directory(image, options)?)
        .rlimits(ulimit::process_limits(&options.given.ulimits)?)
        .oom_score_adj(options.given.oom_score_adj()?)
        .build()?;
    if let Some(size) = options.terminal {
        process.set_console_size(Some(console_size(size)?));
    }
    Ok(process)
}

fn console_size(size: TerminalSize) -> Result<oci_spec::runtime::Box, OciSpecError> {
    BoxBuilder::default()
        .height(u64::from(size.rows))
        .width(u64::from(size.columns))
        .build()
}

fn linux(options: &Options) -> Result<Linux, Error> {
    let namespaces = [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Cgroup,
    ]
    .into_iter()
    .filter(|kind| *kind != LinuxNamespaceType::Network || !options.shares_network)
    .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
    .collect::<Result<Vec<_>, _>>()?;
    let linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .sysctl(sysctl::parameters(
            &options.given.sysctls,
            options.shares_network,
        )?)
        .resources(resources::resources(&options.limits)?)
        .masked_paths(filesystem::masked_paths(Path::new("/sys/devices/system/cpu")))
        .readonly_paths(filesystem::read_only_paths())
        .build()?;
    Ok(linux)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(user: Option<&str>) -> ImageConfiguration {
        let mut config = Config::default();
        config
            .set_cmd(Some(vec!["sh".into()]))
            .set_user(user.map(str::to_owned));
        let mut image = ImageConfiguration::default();
        image.set_config(Some(config));
        image
    }

    #[test]
    fn the_specification_is_dockers() {
        let options = Options {
            hostname: "box".into(),
            read_only: true,
            terminal: Some(TerminalSize {
                rows: 24,
                columns: 80,
            }),
            ..Options::default()
        };
        let spec = serde_json::to_value(build(&image(None), &options).unwrap()).unwrap();
        let expected = [
            ("/hostname", serde_json::json!("box")),
            ("/root/readonly", serde_json::json!(true)),
            ("/process/args", serde_json::json!(["sh"])),
            ("/process/cwd", serde_json::json!("/")),
            ("/process/terminal", serde_json::json!(true)),
            (
                "/process/consoleSize",
                serde_json::json!({"height": 24, "width": 80}),
            ),
            ("/process/env/2", serde_json::json!("TERM=xterm")),
            ("/process/noNewPrivileges", serde_json::json!(false)),
            ("/process/oomScoreAdj", serde_json::json!(0)),
            ("/process/user/username", serde_json::json!("")),
            (
                "/linux/seccomp/defaultAction",
                serde_json::json!("SCMP_ACT_ERRNO"),
            ),
            (
                "/linux/sysctl/net.ipv4.ip_unprivileged_port_start",
                serde_json::json!("0"),
            ),
            ("/linux/resources/devices/0/allow", serde_json::json!(false)),
        ];
        for (pointer, value) in expected {
            assert_eq!(spec.pointer(pointer), Some(&value), "{pointer}");
        }
        let kinds: Vec<&str> = spec["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|namespace| namespace["type"].as_str().unwrap())
            .collect();
        assert_eq!(kinds, ["pid", "mount", "uts", "ipc", "network", "cgroup"]);
    }

    #[test]
    fn the_users_user_wins_over_the_images() {
        let cases = [
            (None, None, ""),
            (Some("www"), None, "www"),
            (Some("www"), Some("1:2"), "1:2"),
            (Some("www"), Some(""), ""),
        ];
        for (of_image, given, expected) in cases {
            let options = Options {
                user: given.map(str::to_owned),
                ..Options::default()
            };
            let spec = build(&image(of_image), &options).unwrap();
            let process = spec.process().clone().unwrap();
            assert_eq!(process.user().username().as_deref(), Some(expected));
        }
    }

    #[test]
    fn it_survives_the_wire() {
        let spec = build(&image(None), &Options::default()).unwrap();
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&json).unwrap(), spec);
        assert!(json.len() < 32 << 10, "{} bytes", json.len());
    }

    #[test]
    fn an_image_without_a_command_needs_one() {
        let error = build(&ImageConfiguration::default(), &Options::default()).unwrap_err();
        assert!(matches!(error, Error::NoCommand));
    }
}
