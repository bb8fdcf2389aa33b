//! What is mounted in a container, under Docker's field names.

use serde::Serialize;

use crate::mounts::{Asked, Kind, MountPoint};
use crate::record::Record;

/// Something that is mounted.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct MountReport {
    /// `bind`, `volume` or `tmpfs`.
    pub r#type: &'static str,
    /// The volume's; only of volumes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Where it is on the host.
    pub source: String,
    /// Where it is mounted.
    pub destination: String,
    /// `local`; only of volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<&'static str>,
    /// As it was written with `-v`.
    pub mode: String,
    /// Whether it can be written to.
    #[serde(rename = "RW")]
    pub rw: bool,
    /// What it tells and is told of later mounts; only of bind mounts.
    pub propagation: &'static str,
}

/// What was asked for with `--mount`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AskedReport {
    /// `bind`, `volume` or `tmpfs`.
    pub r#type: &'static str,
    /// A path or a volume's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Where it is mounted.
    pub target: String,
    /// Whether writes are refused.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

pub(super) fn reports(record: &Record) -> Vec<MountReport> {
    record.mounts.points.iter().map(report).collect()
}

fn report(point: &MountPoint) -> MountReport {
    let is_volume = point.kind == Kind::Volume;
    MountReport {
        r#type: point.kind.name(),
        name: point.name.clone(),
        source: point.source.display().to_string(),
        destination: point.destination.display().to_string(),
        driver: is_volume.then_some("local"),
        mode: point.mode.clone(),
        rw: !point.read_only,
        propagation: match point.kind {
            Kind::Bind => point.propagation.name(),
            Kind::Volume | Kind::Tmpfs => "",
        },
    }
}

pub(super) fn asked(record: &Record) -> Vec<AskedReport> {
    let report = |asked: &Asked| AskedReport {
        r#type: asked.kind.name(),
        source: asked.source.clone(),
        target: asked.target.clone(),
        read_only: asked.read_only,
    };
    record.mounts.wishes.mounts.iter().map(report).collect()
}
