//! From an image's configuration and the user's flags to an OCI runtime specification. This is the only place that
//! decides what a container is; both kinds of isolation get the same answer.
//!
//! The defaults are Docker's. What a program can observe is meant to be equal, with two exceptions: the time
//! namespace is not made yet, and no files are mounted over `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` as
//! long as a container's only network interface is the loopback.

pub mod capabilities;
mod filesystem;
mod process;
mod resources;
pub mod seccomp;

use std::num::NonZeroU32;
use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::image::{Config, ImageConfiguration};
use oci_spec::runtime::{
    Linux, LinuxBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, Process, ProcessBuilder, RootBuilder,
    Spec, SpecBuilder, UserBuilder,
};

pub use resources::{Cpus, CpusError, MINIMUM_MEMORY_BYTES};

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
    /// Memory limit in bytes.
    pub memory_bytes: Option<u64>,
    /// Processor time.
    pub cpus: Option<Cpus>,
    /// Most processes and threads at a time.
    pub pids_limit: Option<NonZeroU32>,
    /// Whether the root file system refuses writes.
    pub read_only: bool,
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
    let specification = SpecBuilder::default()
        .version("1.2.0")
        .root(root)
        .mounts(filesystem::mounts()?)
        .process(process(&image, options)?)
        .hostname(options.hostname.as_str())
        .linux(linux(options)?)
        .build()?;
    Ok(specification)
}

fn process(image: &Config, options: &Options) -> Result<Process, Error> {
    let user = options
        .user
        .as_deref()
        .or(image.user().as_deref())
        .unwrap_or_default();
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(UserBuilder::default().username(user).build()?)
        .args(process::arguments(image, options)?)
        .env(process::environment(image, options))
        .cwd(process::working_directory(image, options)?)
        .capabilities(capabilities::process_sets(&capabilities::default_set()))
        .rlimits(resources::process_limits()?)
        .no_new_privileges(false)
        .oom_score_adj(0)
        .build()?;
    Ok(process)
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
    .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
    .collect::<Result<Vec<_>, _>>()?;
    let linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .sysctl(resources::kernel_parameters())
        .resources(resources::resources(options)?)
        .seccomp(seccomp::default_profile(&capabilities::default_set())?)
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
            ..Options::default()
        };
        let spec = serde_json::to_value(build(&image(None), &options).unwrap()).unwrap();
        let expected = [
            ("/hostname", serde_json::json!("box")),
            ("/root/readonly", serde_json::json!(true)),
            ("/process/args", serde_json::json!(["sh"])),
            ("/process/cwd", serde_json::json!("/")),
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
