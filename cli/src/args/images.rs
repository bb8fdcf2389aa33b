//! What can be typed about images and about the store.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use rvm_engine::condition;
use rvm_images::{Change, Reference};

use super::containers::EVENTS_EXAMPLES;
use super::prune::{PruneFilter, SYSTEM_PRUNE_EXAMPLES, SystemPrune};
use super::{Events, Images, InspectFormat, Load, Pull, Rmi};
use crate::output::Template;

pub(super) const TAG_EXAMPLES: &str = "\
Examples:
  rvm tag debian:bookworm registry.example/base:1";

pub(super) const HISTORY_EXAMPLES: &str = "\
Examples:
  rvm history debian
  rvm history --no-trunc --format '{{.Size}} {{.CreatedBy}}' debian";

pub(super) const SAVE_EXAMPLES: &str = "\
Examples:
  rvm save -o debian.tar debian:bookworm
  rvm save -o all.tar debian                             every tag of it that is here
  rvm save debian busybox | zstd > both.tar.zst
  rvm save --format oci-archive -o debian.oci.tar debian:bookworm";

pub(super) const IMPORT_EXAMPLES: &str = "\
Examples:
  rvm import root.tar.gz base:1
  rvm export web | rvm import -c 'CMD [\"/bin/sh\"]' - web:flat";

pub(super) const EXPORT_EXAMPLES: &str = "\
Examples:
  rvm export -o web.tar web
  rvm export web | tar t

A virtual machine's files are read by its own guest, or, once it has ended, by one that is started for that.";

pub(super) const CP_EXAMPLES: &str = "\
Examples:
  rvm cp site.conf web:/etc/nginx/        into a directory, whether or not the container runs
  rvm cp site/. web:/srv/www              what is in a directory
  rvm cp web:/var/log ./logs              out of it
  rvm cp web:/etc - | tar t               as a tar
  tar c . | rvm cp - web:/srv

As with cp -a: a directory that is there gets SRC, one that is not there becomes it; a file is replaced. Paths in a container
are relative to its root. What is mounted below SRC in a container is left out, and devices are not made on this machine.";

pub(super) const COMMIT_EXAMPLES: &str = "\
Examples:
  rvm commit web web:changed
  rvm commit -m 'with tools' -c 'CMD [\"/bin/sh\"]' web web:tools";

const IMAGE_INSPECT_EXAMPLES: &str = "\
Examples:
  rvm image inspect debian
  rvm image inspect --format '{{.Architecture}} {{json .Config.Env}}' debian";

const PRUNE_EXAMPLES: &str = "\
Examples:
  rvm image prune                          those without a name
  rvm image prune -af --filter until=24h   all that no container uses and that are older than a day";

const DF_EXAMPLES: &str = "\
Examples:
  rvm system df
  rvm system df --format '{{.Type}} {{.Reclaimable}}'";

const CHECK_EXAMPLES: &str = "\
Examples:
  rvm system check            read everything, change nothing
  rvm system check --repair   and put right what can be";

const RESUME_EXAMPLES: &str = "\
Example:
  rvm system unit | sudo tee /etc/systemd/system/rvm.service
  sudo systemctl enable --now rvm       runs `rvm system resume` as the machine starts, and `rvm system suspend` as it ends";

/// Format of a listing: a table, JSON Lines, or a text for each line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListFormat {
    /// Aligned columns.
    Table,
    /// Aligned columns of one's own.
    Columns(Vec<Template>),
    /// One JSON object per line.
    Json,
    /// Text with fields in it.
    Template(Template),
}

impl FromStr for ListFormat {
    type Err = <Template as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // As in Docker's templates; a shell passes them as they are.
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        match text.strip_prefix("table ") {
            _ if text == "table" => Ok(Self::Table),
            _ if text == "json" => Ok(Self::Json),
            Some(columns) => Ok(Self::Columns(
                columns.split('\t').map(str::parse).collect::<Result<_, _>>()?,
            )),
            None => Ok(Self::Template(text.parse()?)),
        }
    }
}

impl ListFormat {
    /// Whether it shows a field that the table does not have.
    pub(crate) fn shows(&self, name: &str) -> bool {
        match self {
            Self::Table => false,
            Self::Columns(columns) => columns.iter().any(|column| column.shows(name)),
            Self::Json => true,
            Self::Template(template) => template.shows(name),
        }
    }
}

/// Names of images, with wildcards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamePattern(glob::Pattern);

impl FromStr for NamePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        glob::Pattern::new(text)
            .map(Self)
            .map_err(|error| format!("{text:?} is no pattern: {error}"))
    }
}

impl NamePattern {
    /// As with Docker, of a whole repository or of one tag.
    pub(crate) fn fits(&self, repository: &str, tag: &str) -> bool {
        let options = glob::MatchOptions {
            require_literal_separator: true,
            ..glob::MatchOptions::default()
        };
        self.0.matches_with(repository, options)
            || self.0.matches_with(&format!("{repository}:{tag}"), options)
    }
}

/// A condition of a listing of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ImageFilter {
    Reference(NamePattern),
    Dangling(bool),
    Label(condition::Label),
    Before(String),
    Since(String),
}

impl FromStr for ImageFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = condition::split(text)?;
        match name {
            "reference" => Ok(Self::Reference(value.parse()?)),
            "dangling" => value
                .parse()
                .map(Self::Dangling)
                .map_err(|_| "dangling is true or false".to_owned()),
            "label" => Ok(Self::Label(value.into())),
            "before" => Ok(Self::Before(value.to_owned())),
            "since" => Ok(Self::Since(value.to_owned())),
            _ => Err(format!("there is no filter {name:?}")),
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Tag {
    /// Name or ID
    pub(crate) source: String,
    /// The new name
    pub(crate) target: Reference,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct History {
    /// Show IDs only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Show whole IDs and commands
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Show sizes and dates as people read them
    #[arg(short = 'H', long, default_value_t = true, default_missing_value = "true", num_args = 0..=1,
          require_equals = true, action = clap::ArgAction::Set, value_name = "true|false")]
    pub(crate) human: bool,
    /// `table [COLUMN...]`, `json`, or text with the fields ID, CreatedAt, CreatedSince, CreatedBy, Size and Comment
    #[arg(long, default_value = "table")]
    pub(crate) format: ListFormat,
    /// Name or ID
    pub(crate) image: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Save {
    /// File to write to [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Form of the archive
    #[arg(long, value_enum, default_value_t = SaveFormat::DockerArchive)]
    pub(crate) format: SaveFormat,
    /// Names or IDs; a name without a tag means all its tags
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SaveFormat {
    /// As `docker save` writes it, with plain layers
    DockerArchive,
    /// An OCI image layout, with layers as they came
    OciArchive,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Import {
    /// Change the image's configuration, as a Dockerfile would: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD,
    /// STOPSIGNAL, USER, VOLUME, WORKDIR
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub(crate) change: Vec<Change>,
    /// What the image's history says [default: "Imported from FILE"]
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    /// Tar of a root file system, plain or compressed with gzip or zstd; - for standard input
    pub(crate) file: PathBuf,
    /// Name of the image
    pub(crate) reference: Option<Reference>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Export {
    /// File to write to [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Name or ID
    pub(crate) container: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Cp {
    /// Keep owners and groups, by number [default: those of root in the container, and of the user on this machine, where
    /// files then get no set-user-ID, set-group-ID and capabilities]
    #[arg(short, long)]
    pub(crate) archive: bool,
    /// Copy what a symbolic link SRC leads to
    #[arg(short = 'L', long)]
    pub(crate) follow_link: bool,
    /// Do not say what was copied
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// CONTAINER:PATH or a path on this machine; - for a tar on standard input
    #[arg(value_name = "SRC")]
    pub(crate) source: OsString,
    /// PATH on this machine or CONTAINER:PATH; - for a tar on standard output
    #[arg(value_name = "DEST")]
    pub(crate) destination: OsString,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Diff {
    /// Name or ID
    pub(crate) container: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Commit {
    /// Who made the image
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) author: Option<String>,
    /// What the image's history says
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    /// Change the image's configuration, as a Dockerfile would
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub(crate) change: Vec<Change>,
    /// Pause the container meanwhile
    #[arg(short, long, default_value_t = true, default_missing_value = "true", num_args = 0..=1,
          require_equals = true, action = clap::ArgAction::Set, value_name = "true|false")]
    pub(crate) pause: bool,
    /// Name or ID
    pub(crate) container: String,
    /// Name of the image
    pub(crate) reference: Option<Reference>,
}

/// Images
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// List images
    #[command(visible_alias = "list", after_help = "Examples:\n  rvm image ls")]
    Ls(Images),
    /// Remove images
    #[command(
        visible_alias = "remove",
        after_help = "Examples:\n  rvm image rm debian:bookworm"
    )]
    Rm(Rmi),
    /// Show everything about images
    #[command(after_help = IMAGE_INSPECT_EXAMPLES)]
    Inspect(ImageInspect),
    /// Show how an image was made
    #[command(after_help = HISTORY_EXAMPLES)]
    History(History),
    /// Give an image another name
    #[command(after_help = TAG_EXAMPLES)]
    Tag(Tag),
    /// Fetch an image from a registry
    #[command(after_help = super::PULL_EXAMPLES)]
    Pull(Pull),
    /// Load images from an archive or an OCI layout directory
    #[command(after_help = "Examples:\n  rvm image load -i debian.tar")]
    Load(Load),
    /// Write images to an archive
    #[command(after_help = SAVE_EXAMPLES)]
    Save(Save),
    /// Make an image of a root file system
    #[command(after_help = IMPORT_EXAMPLES)]
    Import(Import),
    /// Remove images that nothing uses
    #[command(after_help = PRUNE_EXAMPLES)]
    Prune(ImagePrune),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ImageInspect {
    /// `json` for one object per line, or text with fields such as {{.Os}} and {{json .Config}} in it
    /// [default: one list]
    #[arg(short, long)]
    pub(crate) format: Option<InspectFormat>,
    /// Names or IDs
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ImagePrune {
    /// Remove images with names too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only images that were made before a date (until=2026-01-31), a moment (until=2026-01-31T12:00:00Z) or so long
    /// ago (until=36h), and that have a label (label=NAME[=VALUE]) or do not (label!=NAME[=VALUE])
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) filter: Vec<PruneFilter>,
}

/// A filter: what was made before a moment, in milliseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Until(pub(crate) u64);

impl FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let time = text
            .strip_prefix("until=")
            .ok_or_else(|| format!("{text:?} is no filter here: it is written until=TIME"))?;
        let moment = crate::output::moment(time).ok_or_else(|| {
            format!("{time:?} is no time: it is a date, a moment as 2026-01-31T12:00:00Z, or a span as 36h")
        })?;
        Ok(Self(moment))
    }
}

/// The installation as a whole
#[derive(Debug, Subcommand)]
pub(crate) enum System {
    /// Show what images, containers and volumes take on the disk
    #[command(after_help = DF_EXAMPLES)]
    Df(Df),
    /// Remove what nothing uses: containers that have ended, networks, images, and volumes if that is said
    #[command(after_help = SYSTEM_PRUNE_EXAMPLES)]
    Prune(SystemPrune),
    /// Verify every blob and every layer of the image store
    #[command(after_help = CHECK_EXAMPLES)]
    Check(Check),
    /// Show what happens to containers, images and volumes
    #[command(after_help = EVENTS_EXAMPLES)]
    Events(Events),
    /// Start the containers whose restart policy asks for it after the machine was started
    #[command(after_help = RESUME_EXAMPLES)]
    Resume,
    /// Stop every container because the machine goes down, but not for good
    #[command(after_help = RESUME_EXAMPLES)]
    Suspend,
    /// Print the systemd unit that does both with the machine
    #[command(after_help = RESUME_EXAMPLES)]
    Unit,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Df {
    /// Show each image, container and volume
    #[arg(short, long, conflicts_with = "format")]
    pub(crate) verbose: bool,
    /// `table [COLUMN...]`, `json`, or text with the fields Type, TotalCount, Active, Size and Reclaimable
    #[arg(long, default_value = "table")]
    pub(crate) format: ListFormat,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Check {
    /// Make layers again that are damaged or missing, and remove what has to be fetched again
    #[arg(long)]
    pub(crate) repair: bool,
}
