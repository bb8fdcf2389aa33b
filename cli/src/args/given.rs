//! What a container or a process in it is given: everything of `run`, `create` and `exec` that outlives the command.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, Args as ClapArgs, ValueEnum};
use rvm_engine::mounts::{Asked, Kind, Wishes};
use rvm_engine::record;
use rvm_engine::restart::Policy;
use rvm_engine::spec::{Changes, Cpus, Ulimit};
use rvm_images::Platform;

use super::containers::{parse_signal, parse_timeout};
use super::network::Networking;
use super::ports::Publishing;

/// What a process in a container is to find.
#[derive(Debug, ClapArgs)]
pub(crate) struct Process {
    /// Set an environment variable; NAME alone takes this process' value
    #[arg(short, long = "env", value_name = "NAME[=VALUE]", action = ArgAction::Append)]
    pub(crate) env: Vec<String>,
    /// Set those of a file with one NAME[=VALUE] on each line; --env wins
    #[arg(long, value_name = "FILE", action = ArgAction::Append)]
    pub(crate) env_file: Vec<PathBuf>,
    /// Working directory inside [default: the image's; of exec, the container's]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// User, and optionally group, by name or number [default: the image's; of exec, the container's]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
}

/// A container to be made.
#[derive(Debug, ClapArgs)]
pub(crate) struct New {
    /// How the container is kept apart from this machine
    #[arg(long, value_enum, default_value_t = Isolation::Vm, env = "RVM_ISOLATION", hide_env_values = true)]
    pub(crate) isolation: Isolation,
    /// Remove the container once it has ended
    #[arg(long)]
    pub(crate) rm: bool,
    /// When to start the container again: no, on-failure[:TIMES], always, or unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "no")]
    pub(crate) restart: Policy,
    /// Name of the container [default: a generated one]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Connect standard input
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the workload a terminal instead of standard streams
    #[arg(short, long)]
    pub(crate) tty: bool,
    #[command(flatten)]
    pub(crate) process: Process,
    /// Replace the image's entry point; "" resets it
    #[arg(long, value_name = "COMMAND")]
    pub(crate) entrypoint: Option<String>,
    #[command(flatten)]
    pub(crate) limits: Limits,
    /// Run the command as a child of a small first process, which hands it signals and reaps processes
    #[arg(long)]
    pub(crate) init: bool,
    /// Refuse writes to the root file system
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Host name inside [default: the short ID]
    #[arg(short = 'h', long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// NIS domain name inside
    #[arg(long, value_name = "NAME")]
    pub(crate) domainname: Option<String>,
    #[command(flatten)]
    pub(crate) network: Networking,
    #[command(flatten)]
    pub(crate) surroundings: Surroundings,
    #[command(flatten)]
    pub(crate) publishing: Publishing,
    #[command(flatten)]
    pub(crate) mounts: MountFlags,
    /// Add a label
    #[arg(short, long, value_name = "NAME[=VALUE]", action = ArgAction::Append)]
    pub(crate) label: Vec<String>,
    /// Add those of a file with one NAME[=VALUE] on each line; --label wins
    #[arg(long, value_name = "FILE", action = ArgAction::Append)]
    pub(crate) label_file: Vec<PathBuf>,
    /// Signal that asks the container to end [default: the image's, or TERM]
    #[arg(long, value_name = "SIGNAL", value_parser = parse_signal)]
    pub(crate) stop_signal: Option<i32>,
    /// Seconds from that signal to KILL, -1 for ever [default: 10]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = parse_timeout())]
    pub(crate) stop_timeout: Option<i32>,
    /// How much output is kept: max-size=SIZE of a file, max-file=NUMBER of files [default: 32m, 2]
    #[arg(long, value_name = "NAME=VALUE", action = ArgAction::Append)]
    pub(crate) log_opt: Vec<LogOption>,
    #[command(flatten)]
    pub(crate) health: Health,
    /// Write the container's ID to a new file
    #[arg(long, value_name = "FILE")]
    pub(crate) cidfile: Option<PathBuf>,
    /// When to fetch the image from its registry
    #[arg(long, value_enum, default_value_t = PullPolicy::Missing, value_name = "WHEN")]
    pub(crate) pull: PullPolicy,
    /// Kind of machine that the image has to be for [default: linux/amd64]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Option<Platform>,
    /// Whether the certificate of the registry that it is fetched from has to be valid; false also allows plain HTTP
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, default_value_t = true)]
    pub(crate) tls_verify: bool,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    pub(crate) help: Option<bool>,
    /// Image to run
    pub(crate) image: String,
    /// Command and arguments [default: the image's]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// What a container's processes find around them.
#[derive(Debug, ClapArgs)]
pub(crate) struct Surroundings {
    /// Limit each process, as nofile=1024:2048; -1 is no limit
    #[arg(long, value_name = "NAME=SOFT[:HARD]", action = ArgAction::Append)]
    pub(crate) ulimit: Vec<Ulimit>,
    /// Size of /dev/shm in bytes, or with the suffix b, k, m or g [default: 64m]
    #[arg(long, value_name = "BYTES", value_parser = parse_memory)]
    pub(crate) shm_size: Option<u64>,
    /// Mount an empty directory in memory, with options as size=64m,mode=1777,exec [default: noexec,nosuid,nodev]
    #[arg(long, value_name = "DIR[:OPTIONS]", action = ArgAction::Append)]
    pub(crate) tmpfs: Vec<String>,
    /// Run in a further group, by name or number
    #[arg(long, value_name = "GROUP", action = ArgAction::Append)]
    pub(crate) group_add: Vec<String>,
    /// Set a kernel parameter of the container's own
    #[arg(long, value_name = "NAME=VALUE", action = ArgAction::Append, value_parser = parse_sysctl)]
    pub(crate) sysctl: Vec<(String, String)>,
    /// How much sooner than others to end it where memory is short, -1000 to 1000
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub(crate) oom_score_adj: Option<i32>,
    /// Give a capability, as SYS_TIME or CAP_SYS_TIME, or ALL
    #[arg(long, value_name = "CAPABILITY", action = ArgAction::Append)]
    pub(crate) cap_add: Vec<String>,
    /// Take a capability away, or ALL
    #[arg(long, value_name = "CAPABILITY", action = ArgAction::Append)]
    pub(crate) cap_drop: Vec<String>,
    /// no-new-privileges[:true], seccomp=unconfined, seccomp=FILE with a profile in Docker's form, or systempaths=unconfined,
    /// which hides nothing of /proc and /sys
    #[arg(long, value_name = "OPTION", action = ArgAction::Append)]
    pub(crate) security_opt: Vec<String>,
    /// Add an annotation to the OCI specification
    #[arg(long, value_name = "NAME[=VALUE]", action = ArgAction::Append)]
    pub(crate) annotation: Vec<String>,
}

/// What is mounted in a container.
#[derive(Debug, ClapArgs)]
pub(crate) struct MountFlags {
    /// Mount a volume (NAME:DIR, or DIR for a new one), or a directory or file of this machine (/PATH:DIR); options, after
    /// another colon, are ro, nocopy, and rprivate, rslave or rshared
    #[arg(short, long, value_name = "[SOURCE:]DIR[:OPTIONS]", action = ArgAction::Append, value_parser = parse_volume)]
    pub(crate) volume: Vec<String>,
    /// Mount something: type=bind|volume|tmpfs,source=SOURCE,target=DIR[,readonly][,bind-propagation=rslave]
    /// [,volume-subpath=DIR][,volume-nocopy][,tmpfs-size=64m]
    #[arg(long, value_name = "NAME=VALUE,...", action = ArgAction::Append, value_parser = parse_mount)]
    pub(crate) mount: Vec<Asked>,
    /// Mount what another container has mounted; :ro without writing to it
    #[arg(long, value_name = "CONTAINER[:ro]", action = ArgAction::Append)]
    pub(crate) volumes_from: Vec<String>,
}

impl From<MountFlags> for Wishes {
    fn from(flags: MountFlags) -> Self {
        Self {
            binds: flags.volume,
            mounts: flags.mount,
            volumes_from: flags.volumes_from,
        }
    }
}

/// A source that begins with a dot is below the working directory.
fn absolute(source: &str) -> Result<String, String> {
    if !source.starts_with('.') {
        return Ok(source.to_owned());
    }
    let failed = |reason: &str| format!("cannot find {source:?}: {reason}");
    let directory = std::env::current_dir().map_err(|error| failed(&error.to_string()))?;
    // Without the dots, as far as that can be told without looking.
    let mut path = directory;
    for part in std::path::Path::new(source).components() {
        match part {
            std::path::Component::ParentDir => drop(path.pop()),
            std::path::Component::CurDir => {}
            part => path.push(part),
        }
    }
    let text = path.into_os_string().into_string();
    text.map_err(|_| failed("it is not named in UTF-8"))
}

/// What it means is read again when the container is made.
fn parse_volume(text: &str) -> Result<String, String> {
    let text = match text.split_once(':') {
        Some((source, rest)) => format!("{}:{rest}", absolute(source)?),
        None => text.to_owned(),
    };
    Asked::from_volume_flag(&text).map_err(|error| error.to_string())?;
    Ok(text)
}

fn parse_mount(text: &str) -> Result<Asked, String> {
    let mut asked = Asked::from_mount_flag(text).map_err(|error| error.to_string())?;
    if asked.kind == Kind::Bind {
        asked.source = absolute(&asked.source)?;
    }
    Ok(asked)
}

/// What a container may use.
#[derive(Debug, ClapArgs)]
pub(crate) struct Limits {
    /// Memory limit in bytes, or with the suffix b, k, m or g
    #[arg(short, long, value_name = "BYTES", value_parser = parse_memory)]
    pub(crate) memory: Option<u64>,
    /// Limit of memory and swap together, -1 for none of swap [default: twice the memory]
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, value_parser = parse_swap)]
    pub(crate) memory_swap: Option<i64>,
    /// Number of CPUs, also a fraction
    #[arg(long, value_name = "NUMBER")]
    pub(crate) cpus: Option<Cpus>,
    /// Part of the CPUs where they are not enough for all, 1024 being an ordinary one; 0 for the default
    #[arg(short, long, value_name = "SHARES")]
    pub(crate) cpu_shares: Option<u64>,
    /// CPUs of this machine to run on, such as 0-2,4; "" for all
    #[arg(long, value_name = "CPUS")]
    pub(crate) cpuset_cpus: Option<String>,
    /// Most processes and threads, -1 for no limit
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub(crate) pids_limit: Option<i64>,
}

impl From<Limits> for Changes {
    fn from(limits: Limits) -> Self {
        Self {
            memory_bytes: limits.memory,
            memory_swap: limits.memory_swap,
            cpus: limits.cpus,
            cpu_shares: limits.cpu_shares,
            cpuset_cpus: limits.cpuset_cpus,
            pids_limit: limits.pids_limit,
        }
    }
}

/// How a container's health is found out.
#[derive(Debug, ClapArgs)]
pub(crate) struct Health {
    /// Shell command that finds out whether the container does what it is for: 0 is healthy [default: the image's]
    #[arg(long, value_name = "COMMAND", conflicts_with = "no_healthcheck")]
    pub(crate) health_cmd: Option<String>,
    /// Time from one such check to the next, as 30s or 1m30s [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    pub(crate) health_interval: Option<Duration>,
    /// A check that takes longer has failed [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    pub(crate) health_timeout: Option<Duration>,
    /// Failures in so long after the start do not count [default: 0s]
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    pub(crate) health_start_period: Option<Duration>,
    /// Time from one check to the next meanwhile [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    pub(crate) health_start_interval: Option<Duration>,
    /// Failures in a row that make it unhealthy [default: 3]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) health_retries: Option<u32>,
    /// Do not check the container's health, whatever the image says
    #[arg(long)]
    pub(crate) no_healthcheck: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Isolation {
    /// In a virtual machine of its own
    Vm,
    /// In namespaces and cgroups on this machine's kernel
    Container,
}

impl From<Isolation> for record::Isolation {
    fn from(isolation: Isolation) -> Self {
        match isolation {
            Isolation::Vm => Self::Vm,
            Isolation::Container => Self::Container,
        }
    }
}

/// When `run` fetches an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullPolicy {
    /// If it is not in the local store
    Missing,
    /// Every time
    Always,
    /// Not at all
    Never,
}

/// One of the limits of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogOption {
    /// Bytes of a file.
    MaxSize(u64),
    /// Number of files.
    MaxFile(u32),
}

impl FromStr for LogOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            // Docker's word for no limit.
            Some(("max-size", "-1")) => Ok(Self::MaxSize(u64::MAX)),
            Some(("max-size", size)) => match parse_memory(size)? {
                0 => Err("a file of the log has to have room for something".to_owned()),
                bytes => Ok(Self::MaxSize(bytes)),
            },
            Some(("max-file", number)) => match number.parse() {
                Ok(number @ 1..=MOST_LOG_FILES) => Ok(Self::MaxFile(number)),
                _ => Err(format!("max-file is a number from 1 to {MOST_LOG_FILES}")),
            },
            _ => Err(format!("{text:?} is neither max-size=SIZE nor max-file=NUMBER")),
        }
    }
}

/// All of them are renamed when one is full.
const MOST_LOG_FILES: u32 = 1000;

/// A time as Docker writes it, a millisecond at least, or 0.
fn parse_span(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text
        .parse()
        .map_err(|_| "it is a time as 30s, 1m30s or 500ms".to_owned())?;
    let span = Duration::try_from(span).map_err(|_| "a time cannot be negative".to_owned())?;
    if !span.is_zero() && span < Duration::from_millis(1) {
        return Err("it is a millisecond at least, or 0".to_owned());
    }
    Ok(span)
}

/// Docker's sizes: units are powers of 1024 whether or not they are written with an `i`.
pub(super) fn parse_memory(text: &str) -> Result<u64, String> {
    parse_size::Config::new()
        .with_binary()
        .parse_size(text)
        .map_err(|error| error.to_string())
}

/// Which ones there are, the engine knows.
fn parse_sysctl(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("sysctl '{text}' is not allowed: it is written NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Bytes, or -1 for no limit.
fn parse_swap(text: &str) -> Result<i64, String> {
    match text {
        "-1" => Ok(-1),
        text => i64::try_from(parse_memory(text)?).map_err(|_| "it is too large".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_docker_s() {
        for (text, bytes) in [
            ("64m", 64 << 20),
            ("64M", 64 << 20),
            ("1g", 1 << 30),
            ("512k", 512 << 10),
            ("4096", 4096),
        ] {
            assert_eq!(parse_memory(text), Ok(bytes), "{text}");
        }
        assert!(parse_memory("-1").is_err() && parse_memory("x").is_err());
    }

    #[test]
    fn limits_of_logs_are_docker_s() {
        let cases = [
            ("max-size=10m", Ok(LogOption::MaxSize(10 << 20))),
            ("max-size=-1", Ok(LogOption::MaxSize(u64::MAX))),
            ("max-file=3", Ok(LogOption::MaxFile(3))),
            ("max-size=0", Err(())),
            ("max-file=0", Err(())),
            ("compress=true", Err(())),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<LogOption>().map_err(drop), expected, "{text}");
        }
    }
}
