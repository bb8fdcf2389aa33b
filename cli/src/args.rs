//! What can be typed. Nothing but types, their help and their defaults.

mod bench;
mod compare;
mod containers;
mod given;
mod images;
mod keys;
mod network;
mod ports;
mod prune;
mod registries;
mod volumes;
mod workload;

use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand, ValueEnum};
use rvm_images::Platform;

pub(crate) use self::bench::{Bench, BenchCommand, Compared, Measured};
pub(crate) use self::compare::{Compare, Language, TableFormat};
pub(crate) use self::containers::{
    Attach, Events, Exec, Filter, Kill, Logs, Ps, Rename, Rm, Run, Start, Stop, Tail, Wait,
};
pub(crate) use self::given::{Health, LogOption, New, Process, PullPolicy, Surroundings};
pub(crate) use self::keys::DetachKeys;
pub(crate) use self::network::{
    Connect, Create as CreateNetwork, Disconnect, InspectNetwork, Ls as LsNetworks, Network, NetworkChoice,
    NetworkFilter, Networking, Prefix, PruneNetworks, RemoveNetwork,
};
pub(crate) use self::ports::PortList;
pub(crate) use self::prune::{PruneFilter, SystemPrune};
pub(crate) use self::registries::{Login, Logout, Push};
pub(crate) use self::volumes::{
    Volume, VolumeCreate, VolumeFilter, VolumeInspect, VolumeLs, VolumePrune, VolumePruneFilter, VolumeRm,
};
pub(crate) use self::workload::{Pause, Stats, Top, Update};
use crate::output::Template;
pub(crate) use images::{
    Check, Commit, Cp, Df, Diff, Export, History, Image, ImageFilter, ImageInspect, ImagePrune, Import,
    ListFormat, NamePattern, Save, SaveFormat, System, Tag,
};

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
    #[command(after_help = containers::RUN_EXAMPLES, disable_help_flag = true)]
    Run(Box<Run>),
    /// Make a container without starting it
    #[command(
        disable_help_flag = true,
        after_help = "Examples:\n  rvm create --name web debian sleep 1d\n  rvm start web\n  rvm create -i --name filter debian cat\n  rvm start -ai filter\n  rvm create -it --name box debian         with a terminal"
    )]
    Create(Box<New>),
    /// Start containers that do not run
    #[command(
        after_help = "Examples:\n  rvm start web\n  rvm start -a job      show its output until it ends"
    )]
    Start(Start),
    /// Ask containers to end, and kill those that do not
    #[command(
        after_help = "Examples:\n  rvm stop web\n  rvm stop -t 60 db     it has a minute\n  rvm stop -s INT web"
    )]
    Stop(Stop),
    /// Stop containers and start them again
    #[command(after_help = "Examples:\n  rvm restart web\n  rvm restart -t 60 db")]
    Restart(Stop),
    /// Send a signal to containers
    #[command(after_help = "Examples:\n  rvm kill web\n  rvm kill -s HUP web")]
    Kill(Kill),
    /// Let all processes of containers stand still
    #[command(after_help = "Examples:\n  rvm pause web\n  rvm unpause web")]
    Pause(Pause),
    /// Let paused containers go on
    #[command(after_help = "Examples:\n  rvm unpause web\n  rvm unpause $(rvm ps -q --filter status=paused)")]
    Unpause(Pause),
    /// Show the processes of a container
    #[command(after_help = workload::TOP_EXAMPLES)]
    Top(Top),
    /// Show what containers use
    #[command(after_help = workload::STATS_EXAMPLES)]
    Stats(Stats),
    /// Change limits of containers
    #[command(after_help = workload::UPDATE_EXAMPLES)]
    Update(Update),
    /// Wait until containers have ended, and print their exit codes
    #[command(after_help = "Examples:\n  rvm wait job")]
    Wait(Wait),
    /// Give a container another name
    #[command(after_help = "Examples:\n  rvm rename web web-old")]
    Rename(Rename),
    /// Show side by side what an image finds and costs in a virtual machine and in a container
    #[command(after_help = compare::EXAMPLES)]
    Compare(Compare),
    /// Connect to a running container's streams
    #[command(
        after_help = "Examples:\n  rvm attach web                                 ctrl-p ctrl-q leaves it, if it has a terminal\n  rvm attach --no-stdin --sig-proxy=false web    only watch"
    )]
    Attach(Attach),
    /// Run a further command in a running container
    #[command(
        after_help = "Examples:\n  rvm exec web ps\n  rvm exec -it web sh                            a shell in a terminal; ctrl-p ctrl-q leaves it\n  rvm exec -u nobody -w /tmp -e MODE=fast web sh -c 'id; pwd'\n  tar c . | rvm exec -i web tar x -C /srv"
    )]
    Exec(Exec),
    /// List containers
    #[command(visible_alias = "list", after_help = containers::PS_EXAMPLES)]
    Ps(Ps),
    /// Show which ports of this machine lead to a container
    #[command(after_help = ports::PORT_EXAMPLES)]
    Port(PortList),
    /// Remove containers
    #[command(
        after_help = "Examples:\n  rvm rm web       once it has ended\n  rvm rm -f web    even while it runs\n  rvm rm -v web    with the volumes that were made for it without a name"
    )]
    Rm(Rm),
    /// Show what a container has written
    #[command(after_help = containers::LOGS_EXAMPLES)]
    Logs(Logs),
    /// Show what happens to containers, images and volumes
    #[command(after_help = containers::EVENTS_EXAMPLES)]
    Events(Events),
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
    #[command(
        after_help = "Examples:\n  rvm images\n  rvm images 'debian:*'\n  rvm images --format '{{.Repository}}:{{.Tag}} {{.Size}}'"
    )]
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
    /// Copy files into a container or out of it
    #[command(after_help = images::CP_EXAMPLES)]
    Cp(Cp),
    /// Show which files a container has added (A), changed (C) and deleted (D)
    #[command(after_help = "Examples:\n  rvm diff web\n  rvm diff web | grep ^A")]
    Diff(Diff),
    /// Make an image of what a container has changed
    #[command(after_help = images::COMMIT_EXAMPLES)]
    Commit(Commit),
    /// Everything about images
    #[command(subcommand, after_help = "Examples:\n  rvm image ls\n  rvm image prune")]
    Image(Image),
    /// Networks that containers of both kinds are on
    #[command(subcommand, after_help = network::NETWORK_EXAMPLES)]
    Network(Network),
    /// Everything about volumes
    #[command(subcommand, after_help = "Examples:\n  rvm volume create db\n  rvm volume ls")]
    Volume(Volume),
    /// The installation as a whole
    #[command(subcommand, after_help = "Examples:\n  rvm system df\n  rvm system check")]
    System(System),
    /// Check whether this machine can run both kinds of containers
    #[command(after_help = "Examples:\n  rvm doctor\n  rvm doctor --format json")]
    Doctor(Doctor),
    /// Measure containers in both modes, side by side
    #[command(after_help = bench::BENCH_EXAMPLES)]
    Bench(Bench),
    /// Print a completion script for a shell
    #[command(after_help = "Examples:\n  rvm completion bash > /etc/bash_completion.d/rvm")]
    Completion(Completion),
    /// Write manual pages
    #[command(hide = true)]
    Man(Man),
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
    /// Show the digests of manifests
    #[arg(long)]
    pub(crate) digests: bool,
    /// Show only those that fit: reference=PATTERN, dangling=BOOL, label=NAME[=VALUE], before=IMAGE, since=IMAGE
    #[arg(short, long, value_name = "NAME=VALUE", action = clap::ArgAction::Append)]
    pub(crate) filter: Vec<ImageFilter>,
    /// `table [COLUMN...]`, `json`, or text with the fields Repository, Tag, ID, Digest, CreatedAt, CreatedSince and Size
    #[arg(long, default_value = "table")]
    pub(crate) format: ListFormat,
    /// Show only these; * and ? stand for other characters, but no slash
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub(crate) pattern: Option<NamePattern>,
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn flags_after_the_image_are_the_command_s() {
        let Some(Command::Run(run)) =
            Args::parse_from(["rvm", "run", "--rm", "debian", "ls", "--rm", "-l"]).command
        else {
            panic!("not run");
        };
        assert_eq!(run.new.command, ["ls", "--rm", "-l"]);
        assert!(run.new.rm);
    }
}
