//! What can be typed about containers.

use std::str::FromStr;

use clap::builder::RangedI64ValueParser;
use clap::{ArgAction, Args as ClapArgs};
use rvm_engine::condition;
use rvm_engine::events::Condition;
use rvm_engine::signals;

use super::given::{New, Process};
use super::images::ListFormat;
use super::keys::Detach;
use super::ports::PortFilter;
use super::{Format, InspectFormat};

pub(super) const RUN_EXAMPLES: &str = "\
Examples:
  rvm run --rm debian uname -r                          in a virtual machine of its own; fetches what is not there
  rvm run --rm --isolation container debian uname -r    on this machine's kernel
  echo hello | rvm run --rm -i debian cat               with standard input
  rvm run --rm -it debian bash                          in a terminal; ctrl-p ctrl-q leaves it, rvm attach comes back
  rvm run --rm -m 256m --cpus 0.5 debian stress         with limits
  rvm run --rm --env-file app.env --tmpfs /run:size=16m --ulimit nofile=4096 debian env
  rvm run -d -v db:/var/lib/postgresql/data postgres    with a volume, which outlives the container
  rvm run --rm -v ./src:/src:ro -w /src debian ls       with a directory of this machine
  rvm run --rm --cap-drop ALL --cap-add CHOWN --security-opt no-new-privileges debian chown nobody /tmp
  rvm run -d --name web debian sleep 1d                 in the background; prints its ID
  rvm run -d --health-cmd 'test -e /ready' --health-interval 5s debian sleep 1d
  rvm run -d --network app --name db postgres           on a network that `rvm network create app` has made
  rvm run -d -p 8080:80 nginx                           reached by this machine's port 8080
  rvm run --rm --egress allow=deb.debian.org debian apt-get update    and nowhere else
  rvm run -d --restart on-failure:3 debian false        started again when it fails, three times at most
  rvm run --rm --platform linux/amd64/v3 debian true    the variant for newer processors, where there is one";

pub(super) const PS_EXAMPLES: &str = "\
Examples:
  rvm ps                                    those that run
  rvm ps -a                                 every one
  rvm rm $(rvm ps -aq --filter status=exited)
  rvm ps --filter label=tier=web --format '{{.ID}} {{.Names}} {{.Status}}'";

pub(super) const EVENTS_EXAMPLES: &str = "\
Examples:
  rvm events                                                 what happens from now on
  rvm events --since 1h --until 0s                           the last hour, and no more
  rvm events -f type=container -f event=die -f event=oom --format '{{.Actor.Attributes.name}} {{.Actor.Attributes.exitCode}}'
  rvm events --format json -f label=tier=front

The last few thousand are kept until the machine is restarted.";

pub(super) const LOGS_EXAMPLES: &str = "\
Examples:
  rvm logs web
  rvm logs -f --tail 10 web            the last lines, and what comes
  rvm logs --since 10m --timestamps web
  rvm logs --boot web                  the guest kernel's console";

#[derive(Debug, ClapArgs)]
pub(crate) struct Run {
    /// Leave the container in the background, and print its ID
    #[arg(short, long, conflicts_with = "timing")]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) detaching: Detach,
    #[command(flatten)]
    pub(crate) proxy: SignalProxy,
    /// Print on standard error how long each phase of the run took; json is for programs
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "table", value_name = "FORMAT")]
    pub(crate) timing: Option<Format>,
    /// Have rvm's own program in the container, as `rvm bench` does
    #[arg(long, hide = true)]
    pub(crate) probe: bool,
    #[command(flatten)]
    pub(crate) new: New,
}

/// Whether a command hands on what it is sent.
#[derive(Debug, ClapArgs)]
pub(crate) struct SignalProxy {
    /// Forward signals to the workload, if it has no terminal
    #[arg(long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, require_equals = true,
          action = ArgAction::Set, value_name = "true|false")]
    pub(crate) sig_proxy: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Start {
    /// Show the container's output until it ends, forward signals, and end with its exit code
    #[arg(short, long)]
    pub(crate) attach: bool,
    /// Connect standard input too
    #[arg(short, long)]
    pub(crate) interactive: bool,
    #[command(flatten)]
    pub(crate) detaching: Detach,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) containers: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Stop {
    /// Seconds from the signal to KILL, -1 for ever [default: the container's, or 10]
    #[arg(short, long, visible_alias = "time", value_name = "SECONDS", allow_negative_numbers = true,
          value_parser = parse_timeout())]
    pub(crate) timeout: Option<i32>,
    /// Signal that asks the container to end [default: the container's, or TERM]
    #[arg(short, long, value_name = "SIGNAL", value_parser = parse_signal)]
    pub(crate) signal: Option<i32>,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) containers: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Kill {
    /// Name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = parse_signal)]
    pub(crate) signal: i32,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) containers: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Wait {
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) containers: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Rename {
    /// Name or ID
    pub(crate) container: String,
    /// The new name
    pub(crate) name: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Attach {
    /// Do not connect standard input
    #[arg(long)]
    pub(crate) no_stdin: bool,
    #[command(flatten)]
    pub(crate) detaching: Detach,
    #[command(flatten)]
    pub(crate) proxy: SignalProxy,
    /// Name or ID
    pub(crate) container: String,
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
    /// Show the container that was made last, whatever its state
    #[arg(short, long)]
    pub(crate) latest: bool,
    /// Show as many that were made last, whatever their state; -1 for all
    #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = -1, allow_negative_numbers = true,
          hide_default_value = true)]
    pub(crate) last: i64,
    /// Show only those that fit: status=STATE, exited=CODE, name=PART, id=BEGINNING, label=NAME[=VALUE], ancestor=IMAGE,
    /// before=CONTAINER, since=CONTAINER, health=HEALTH, publish=PORT[/PROTOCOL], expose=PORT[/PROTOCOL],
    /// volume=NAME or a path
    #[arg(short, long, value_name = "NAME=VALUE", action = ArgAction::Append)]
    pub(crate) filter: Vec<Filter>,
    /// `table [COLUMN...]`, `json`, or text with the fields ID, Names, Image, Command, CreatedAt, RunningFor, State, Status, Ports,
    /// Isolation, Labels, Mounts and LocalVolumes
    #[arg(long, default_value = "table")]
    pub(crate) format: ListFormat,
}

/// A condition of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Filter {
    Status(String),
    Exited(u8),
    Name(String),
    Id(String),
    Label(condition::Label),
    Ancestor(String),
    Before(String),
    Since(String),
    Health(String),
    /// A port of the container that is published, or of this machine.
    Publish(PortFilter),
    Expose(PortFilter),
    Volume(String),
}

/// Docker's states.
const STATES: [&str; 7] = [
    "created",
    "restarting",
    "running",
    "removing",
    "paused",
    "exited",
    "dead",
];

/// Docker's words for health.
const HEALTH: [&str; 4] = ["starting", "healthy", "unhealthy", "none"];

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = condition::split(text)?;
        let value = value.to_owned();
        Ok(match name {
            "status" if STATES.contains(&value.as_str()) => Self::Status(value),
            "status" => return Err(format!("{value:?} is no state: there are {}", STATES.join(", "))),
            "exited" => Self::Exited(value.parse().map_err(|_| format!("{value:?} is no exit code"))?),
            "name" => Self::Name(value.trim_start_matches('/').to_owned()),
            "id" => Self::Id(value),
            "label" => Self::Label(value.as_str().into()),
            "ancestor" => Self::Ancestor(value),
            "health" if HEALTH.contains(&value.as_str()) => Self::Health(value),
            "health" => return Err(format!("{value:?} is no health: there are {}", HEALTH.join(", "))),
            "before" => Self::Before(value),
            "since" => Self::Since(value),
            "publish" => Self::Publish(value.parse()?),
            "expose" => Self::Expose(value.parse()?),
            "volume" => Self::Volume(value),
            _ => return Err(format!("there is no filter {name:?}")),
        })
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Rm {
    /// Kill the container if it runs
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Remove the volumes that were made for it without a name
    #[arg(short, long)]
    pub(crate) volumes: bool,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) containers: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Events {
    /// Show also what has happened since a date, a moment (2026-01-31T12:00:00Z) or so long ago (10m), as far as it is kept
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    pub(crate) since: Option<u64>,
    /// Show what has happened until then, and end
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    pub(crate) until: Option<u64>,
    /// Show only those that fit: type=container, image or volume, event=ACTION, container=CONTAINER, image=IMAGE, volume=NAME,
    /// label=NAME[=VALUE]
    #[arg(short, long, value_name = "NAME=VALUE", action = ArgAction::Append)]
    pub(crate) filter: Vec<Condition>,
    /// `json` for one object per line, or text with fields such as {{.Action}} and {{.Actor.Attributes.name}} in it
    #[arg(long)]
    pub(crate) format: Option<InspectFormat>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Logs {
    /// Go on until the container ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Begin so many lines before the end, or with `all`
    #[arg(short = 'n', long, value_name = "NUMBER", default_value = "all")]
    pub(crate) tail: Tail,
    /// Only what was written since a date, a moment (2026-01-31T12:00:00Z) or so long ago (10m)
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    pub(crate) since: Option<u64>,
    /// Only what was written until then
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    pub(crate) until: Option<u64>,
    /// Show when each line was written
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    /// Show the guest kernel's console instead
    #[arg(long, conflicts_with_all = ["follow", "since", "until", "timestamps"])]
    pub(crate) boot: bool,
    /// Name or ID
    pub(crate) container: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Exec {
    /// Leave the process in the background
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Connect standard input
    #[arg(short, long, conflicts_with = "detach")]
    pub(crate) interactive: bool,
    /// Give the process a terminal instead of standard streams
    #[arg(short, long)]
    pub(crate) tty: bool,
    #[command(flatten)]
    pub(crate) detaching: Detach,
    #[command(flatten)]
    pub(crate) process: Process,
    /// Name or ID
    pub(crate) container: String,
    /// Command and arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub(crate) command: Vec<String>,
}

/// How many lines from the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    All,
    Lines(u64),
}

impl FromStr for Tail {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        match text.parse::<i64>() {
            // Docker takes any negative number for all.
            Ok(number) => Ok(u64::try_from(number).map_or(Self::All, Self::Lines)),
            Err(_) => Err("it is a number, or all".to_owned()),
        }
    }
}

pub(super) fn parse_signal(text: &str) -> Result<i32, String> {
    signals::parse(text).ok_or_else(|| "there is no such signal".to_owned())
}

/// Seconds, or -1 for ever.
pub(super) fn parse_timeout() -> RangedI64ValueParser<i32> {
    RangedI64ValueParser::new().range(-1..=i32::MAX.into())
}

fn parse_moment(text: &str) -> Result<u64, String> {
    crate::output::moment(text)
        .ok_or_else(|| "it is a date, a moment as 2026-01-31T12:00:00Z, or a span as 36h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_names_and_values() {
        let parse = |text: &str| text.parse::<Filter>();
        assert_eq!(parse("status=exited"), Ok(Filter::Status("exited".into())));
        assert_eq!(parse("label=a=b=c"), Ok(Filter::Label("a=b=c".into())));
        assert_eq!(parse("label=a"), Ok(Filter::Label("a".into())));
        assert_eq!(parse("exited=7"), Ok(Filter::Exited(7)));
        for text in ["status=gone", "status", "colour=red", "exited=x"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn tails_are_numbers_or_all() {
        let parse = |text: &str| text.parse::<Tail>();
        assert_eq!(parse("3"), Ok(Tail::Lines(3)));
        assert_eq!((parse("all"), parse("-1")), (Ok(Tail::All), Ok(Tail::All)));
        assert!(parse("some").is_err());
    }
}
