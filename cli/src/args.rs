//! What can be typed. Nothing but types, their help and their defaults.

mod images;
mod registries;

use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand, ValueEnum};
use rvm_engine::record;
use rvm_engine::spec::Cpus;
use rvm_images::Platform;

pub(crate) use self::registries::{Login, Logout, Push};
use crate::output::Template;
pub(crate) use images::{
    Check, Commit, Df, Export, History, Image, ImageInspect, ImagePrune, Import, ListFormat, Save,
    SaveFormat, System, Tag,
};

const RUN_EXAMPLES: &str = "\
Examples:
  rvm run --rm debian uname -r                          in a virtual machine of its own; fetches what is not there
  rvm run --rm --isolation container debian uname -r    on this machine's kernel
  echo hello | rvm run --rm -i debian cat               with standard input
  rvm run --rm -m 256m --cpus 0.5 debian stress         with limits";

const PULL_EXAMPLES: &str = "\
Examples:
  rvm pull debian:bookworm
  rvm pull -q registry.example:5000/team/app@sha256:…    prints the image ID
  rvm pull --tls-verify=false 10.0.0.1:5000/app          from a registry without a valid certificate, or without TLS

Credentials are those of `rvm login`, or of `docker login`. Mirrors and insecure registries can be named in /etc/rvm/config.toml.";

const INSPECT_EXAMPLES: &str = "\
Examples:
  rvm inspect web
  rvm inspect --format '{{.State.Pid}} {{.Machine.Vcpus}}' web
  rvm inspect --format '{{json .Machine.Exits}}' web       why the guest left its processors";

/// Every container image in its own microVM, or as a container, under one command.
#[derive(Debug, Parser)]
#[command(
    name = "rvm",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) places: Places,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Places {
    /// Directory of images and containers [default: /var/lib/rvm as root]
    #[arg(
        long,
        global = true,
        env = "RVM_ROOT",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub(crate) root: Option<PathBuf>,
    /// Directory of sockets, emptied when the machine boots [default: /run/rvm as root]
    #[arg(
        long,
        global = true,
        env = "RVM_RUN",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub(crate) run: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command in a new container
    #[command(after_help = RUN_EXAMPLES)]
    Run(Box<Run>),
    /// List containers
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  rvm ps           those that run\n  rvm ps -a        every one\n  rvm rm $(rvm ps -aq)"
    )]
    Ps(Ps),
    /// Remove containers
    #[command(
        after_help = "Examples:\n  rvm rm web       once it has ended\n  rvm rm -f web    even while it runs"
    )]
    Rm(Rm),
    /// Show what a container has written
    #[command(after_help = "Examples:\n  rvm logs web\n  rvm logs --boot web    the guest kernel's console")]
    Logs(Logs),
    /// Show everything about containers and images
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(Inspect),
    /// Fetch an image from a registry
    #[command(after_help = PULL_EXAMPLES)]
    Pull(Pull),
    /// Send an image to a registry
    #[command(after_help = registries::PUSH_EXAMPLES)]
    Push(Push),
    /// Keep the password for a registry, once that has accepted it
    #[command(after_help = registries::LOGIN_EXAMPLES)]
    Login(Login),
    /// Forget the password for a registry
    #[command(after_help = "Examples:\n  rvm logout\n  rvm logout registry.example:5000")]
    Logout(Logout),
    /// Load images from an archive or an OCI layout directory
    #[command(
        after_help = "Examples:\n  rvm load -i debian.tar\n  skopeo copy docker://debian docker-archive:/dev/stdout | rvm load"
    )]
    Load(Load),
    /// List images
    #[command(after_help = "Examples:\n  rvm images\n  rvm images --format json")]
    Images(Images),
    /// Remove images
    #[command(
        after_help = "Examples:\n  rvm rmi debian:bookworm\n  rvm rmi -f 3f2a     by the beginning of its ID"
    )]
    Rmi(Rmi),
    /// Give an image another name
    #[command(after_help = images::TAG_EXAMPLES)]
    Tag(Tag),
    /// Show how an image was made
    #[command(after_help = images::HISTORY_EXAMPLES)]
    History(History),
    /// Write images to an archive
    #[command(after_help = images::SAVE_EXAMPLES)]
    Save(Save),
    /// Make an image of a root file system
    #[command(after_help = images::IMPORT_EXAMPLES)]
    Import(Import),
    /// Write a container's files to a tar
    #[command(after_help = images::EXPORT_EXAMPLES)]
    Export(Export),
    /// Make an image of what a container has changed
    #[command(after_help = images::COMMIT_EXAMPLES)]
    Commit(Commit),
    /// Everything about images
    #[command(subcommand, after_help = "Examples:\n  rvm image ls\n  rvm image prune")]
    Image(Image),
    /// The installation as a whole
    #[command(subcommand, after_help = "Examples:\n  rvm system df\n  rvm system check")]
    System(System),
    /// Check whether this machine can run both kinds of containers
    #[command(after_help = "Examples:\n  rvm doctor\n  rvm doctor --format json")]
    Doctor(Doctor),
    /// Print a completion script for a shell
    #[command(after_help = "Examples:\n  rvm completion bash > /etc/bash_completion.d/rvm")]
    Completion(Completion),
    /// Write manual pages
    #[command(hide = true)]
    Man(Man),
    /// Own a container (started by `run`)
    #[command(hide = true)]
    Supervise(Supervise),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Run {
    /// How the container is kept apart from this machine
    #[arg(long, value_enum, default_value_t = Isolation::Vm, env = "RVM_ISOLATION", hide_env_values = true)]
    pub(crate) isolation: Isolation,
    /// Remove the container once it has ended
    #[arg(long)]
    pub(crate) rm: bool,
    /// Name of the container [default: a generated one]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Connect standard input
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Set an environment variable; NAME alone takes this process' value
    #[arg(short, long = "env", value_name = "NAME[=VALUE]", action = ArgAction::Append)]
    pub(crate) env: Vec<String>,
    /// Working directory inside
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// User, and optionally group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Replace the image's entry point; "" resets it
    #[arg(long, value_name = "COMMAND")]
    pub(crate) entrypoint: Option<String>,
    /// Memory limit in bytes, or with the suffix b, k, m or g
    #[arg(short, long, value_name = "BYTES", value_parser = parse_memory)]
    pub(crate) memory: Option<u64>,
    /// Number of CPUs, also a fraction
    #[arg(long, value_name = "NUMBER")]
    pub(crate) cpus: Option<Cpus>,
    /// Refuse writes to the root file system
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Print on standard error how long each phase of the run took
    #[arg(long)]
    pub(crate) timing: bool,
    /// Host name inside [default: the short ID]
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// When to fetch the image from its registry
    #[arg(long, value_enum, default_value_t = PullPolicy::Missing, value_name = "WHEN")]
    pub(crate) pull: PullPolicy,
    /// Image to run
    pub(crate) image: String,
    /// Command and arguments [default: the image's]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
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

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// Bars on a terminal, else lines
    Auto,
    /// A line for each step
    Plain,
    /// Nothing
    None,
}

/// Format of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns
    Table,
    /// One JSON object per line
    Json,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Ps {
    /// Show every container, not only those that run
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Show IDs only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Show whole IDs and commands
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Format of the listing
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Rm {
    /// Kill the container if it runs
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) containers: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Logs {
    /// Show the guest kernel's console instead
    #[arg(long)]
    pub(crate) boot: bool,
    /// Name or ID
    pub(crate) container: String,
}

/// Format of what is shown of each container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum InspectFormat {
    /// One JSON object per line.
    Json,
    /// Text with fields in it.
    Template(Template),
}

impl FromStr for InspectFormat {
    type Err = <Template as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "json" => Ok(Self::Json),
            template => Ok(Self::Template(template.parse()?)),
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Inspect {
    /// `json` for one object per line, or text with fields such as {{.State.Pid}} and {{json .Config}} in it
    /// [default: one list]
    #[arg(short, long)]
    pub(crate) format: Option<InspectFormat>,
    /// What the names are of [default: containers, and images where there is no such container]
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    pub(crate) kind: Option<Kind>,
    /// Names or IDs
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// What can be inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A container
    Container,
    /// An image
    Image,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Pull {
    /// Print the image ID only, and no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Kind of machine that the image is for [default: linux/amd64]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Option<Platform>,
    /// Whether the registry's certificate has to be valid; false also allows plain HTTP
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, default_value_t = true)]
    pub(crate) tls_verify: bool,
    /// How progress is shown
    #[arg(long, value_enum, default_value_t = ProgressMode::Auto, value_name = "HOW")]
    pub(crate) progress: ProgressMode,
    /// Name of the image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Load {
    /// Archive or OCI layout directory; - or nothing for standard input
    #[arg(short, long, value_name = "PATH")]
    pub(crate) input: Option<PathBuf>,
    /// Print names only, and no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Images {
    /// Show IDs only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Show whole IDs
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// `table`, `json`, or text with the fields repository, tag, id, created and bytes
    #[arg(long, default_value = "table")]
    pub(crate) format: ListFormat,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Rmi {
    /// Remove an ID that has several names
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Names or IDs
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Doctor {
    /// Format of the listing
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Completion {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Man {
    /// Directory to write to
    pub(crate) directory: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Supervise {
    pub(crate) id: String,
    #[arg(long)]
    pub(crate) timing: bool,
}

/// Docker's sizes: units are powers of 1024 whether or not they are written with an `i`.
fn parse_memory(text: &str) -> Result<u64, String> {
    parse_size::Config::new()
        .with_binary()
        .parse_size(text)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

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
    fn flags_after_the_image_are_the_command_s() {
        let Some(Command::Run(run)) =
            Args::parse_from(["rvm", "run", "--rm", "debian", "ls", "--rm", "-l"]).command
        else {
            panic!("not run");
        };
        assert_eq!(run.command, ["ls", "--rm", "-l"]);
        assert!(run.rm);
    }
}
