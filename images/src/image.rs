//! An image as the engine sees it: its configuration and the files of its layers.

use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::Digest;

/// One image of the store, complete: every layer file named here exists.
#[derive(Debug, Clone)]
pub struct Image {
    /// The image ID: the digest of its configuration, as Docker shows it.
    pub id: Digest,
    /// Digest of the manifest in the store.
    pub manifest: Digest,
    /// The full reference by which it was found (`docker.io/library/debian:bookworm`); none when found by ID.
    pub reference: Option<String>,
    /// The configuration document.
    pub config: ImageConfiguration,
    /// How Docker's builder says that a container's health is found out: no part of OCI's configuration.
    pub healthcheck: Option<Healthcheck>,
    /// The layers' EROFS images, lowest first.
    pub layers: Vec<LayerFile>,
    /// What the root directory of a container should look like: a new upper directory has to be given these, because
    /// overlayfs shows the root of the uppermost directory.
    pub root: RootDirectory,
}

/// How it is found out whether a container does what it is for (Docker's image specification 1.2, `Healthcheck`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `NONE`; `CMD` and a program with its arguments; or `CMD-SHELL` and a line for the shell.
    pub test: Vec<String>,
    /// Time between two probes, in nanoseconds; this and the others are 0 where nothing is said.
    pub interval: i64,
    /// A probe that takes longer has failed, in nanoseconds.
    pub timeout: i64,
    /// Time that a container has to start, in nanoseconds.
    pub start_period: i64,
    /// Time between two probes in it, in nanoseconds.
    pub start_interval: i64,
    /// Failures in a row.
    pub retries: i64,
}

/// The EROFS image of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerFile {
    /// Digest of the layer's uncompressed tar stream.
    pub diff_id: Digest,
    /// Where the EROFS image is.
    pub path: PathBuf,
    /// Its length in bytes, a multiple of 4096.
    pub bytes: u64,
}

/// Owner and mode of an image's root directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootDirectory {
    /// Permission bits (with set-user-ID, set-group-ID and sticky), no type bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}
