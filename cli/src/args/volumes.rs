//! What can be typed about volumes.

use std::str::FromStr;

use clap::{ArgAction, Args as ClapArgs, Subcommand};
use rvm_engine::condition;

use super::InspectFormat;
use super::images::ListFormat;

const CREATE_EXAMPLES: &str = "\
Examples:
  rvm volume create db
  rvm volume create --label tier=data db
  rvm run -d -v db:/var/lib/postgresql/data postgres    makes it as well, if it is not there";

const LS_EXAMPLES: &str = "\
Examples:
  rvm volume ls
  rvm volume ls -q -f dangling=true                     those that no container refers to
  rvm volume ls --format '{{.Name}} {{.Links}} {{.Size}}'";

const PRUNE_EXAMPLES: &str = "\
Examples:
  rvm volume prune                          those without a name
  rvm volume prune -af --filter label=tmp   all with this label that no container refers to";

#[derive(Debug, Subcommand)]
pub(crate) enum Volume {
    /// Make a volume
    #[command(after_help = CREATE_EXAMPLES)]
    Create(VolumeCreate),
    /// List volumes
    #[command(visible_alias = "list", after_help = LS_EXAMPLES)]
    Ls(VolumeLs),
    /// Show everything about volumes
    #[command(
        after_help = "Examples:\n  rvm volume inspect db\n  rvm volume inspect -f '{{.Mountpoint}}' db"
    )]
    Inspect(VolumeInspect),
    /// Remove volumes that no container refers to
    #[command(visible_alias = "remove", after_help = "Examples:\n  rvm volume rm db")]
    Rm(VolumeRm),
    /// Remove all volumes that no container refers to
    #[command(after_help = PRUNE_EXAMPLES)]
    Prune(VolumePrune),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct VolumeCreate {
    /// Driver; there is only local
    #[arg(short, long, default_value = "local", value_name = "NAME")]
    pub(crate) driver: String,
    /// Add a label
    #[arg(long, value_name = "NAME[=VALUE]", action = ArgAction::Append)]
    pub(crate) label: Vec<String>,
    /// Options of the driver; local takes none here
    #[arg(short, long, value_name = "NAME=VALUE", action = ArgAction::Append)]
    pub(crate) opt: Vec<String>,
    /// Name [default: a generated one]
    #[arg(value_name = "VOLUME")]
    pub(crate) name: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct VolumeLs {
    /// Show names only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Show only those that fit: name=PART, label=NAME[=VALUE], driver=NAME, dangling=BOOL
    #[arg(short, long, value_name = "NAME=VALUE", action = ArgAction::Append)]
    pub(crate) filter: Vec<VolumeFilter>,
    /// `table [COLUMN...]`, `json`, or text with the fields Name, Driver, Scope, Mountpoint, Labels, Links and Size
    #[arg(long, default_value = "table")]
    pub(crate) format: ListFormat,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct VolumeInspect {
    /// `json` for one object per line, or text with fields such as {{.Mountpoint}} in it [default: one list]
    #[arg(short, long)]
    pub(crate) format: Option<InspectFormat>,
    /// Names
    #[arg(required = true, value_name = "VOLUME")]
    pub(crate) volumes: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct VolumeRm {
    /// A volume that is not there is no error
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Names
    #[arg(required = true, value_name = "VOLUME")]
    pub(crate) volumes: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct VolumePrune {
    /// Remove volumes with names too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only those with a label (label=NAME[=VALUE]) or without it (label!=NAME[=VALUE]); all=true is as -a
    #[arg(long, value_name = "NAME=VALUE", action = ArgAction::Append)]
    pub(crate) filter: Vec<VolumePruneFilter>,
}

/// A condition on volumes that are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VolumeFilter {
    /// A part of the name.
    Name(String),
    /// A label.
    Label(condition::Label),
    /// Whose driver this is.
    Driver(String),
    /// Whether no container refers to it.
    Dangling(bool),
}

impl FromStr for VolumeFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match condition::split(text)? {
            ("name", part) => Ok(Self::Name(part.to_owned())),
            ("label", label) => Ok(Self::Label(label.into())),
            ("driver", driver) => Ok(Self::Driver(driver.to_owned())),
            ("dangling", value) => Ok(Self::Dangling(truth(value)?)),
            (name, _) => Err(format!(
                "invalid filter '{name}': there are name, label, driver and dangling"
            )),
        }
    }
}

/// A condition on volumes that are removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VolumePruneFilter {
    /// As `-a`.
    All(bool),
    /// A label that it is to have.
    Label(condition::Label),
    /// One that it is not to have.
    NotLabel(condition::Label),
}

impl FromStr for VolumePruneFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match condition::split(text)? {
            ("all", value) => Ok(Self::All(truth(value)?)),
            ("label", label) => Ok(Self::Label(label.into())),
            ("label!", label) => Ok(Self::NotLabel(label.into())),
            (name, _) => Err(format!(
                "invalid filter '{name}': there are label, label! and all"
            )),
        }
    }
}

fn truth(text: &str) -> Result<bool, String> {
    match text {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}
