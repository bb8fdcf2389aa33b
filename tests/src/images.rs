//! The test images: made by tests/images/build with tools that share nothing with rvm, and given the probe as a top
//! layer by tests/images/add-probe.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::command::tool;

/// One static program and its links; /etc/passwd knows root and www (33, also in the group extra).
pub const BUSYBOX: &str = "busybox:test";
/// A distribution's base.
pub const DEBIAN: &str = "debian:test";
/// Three layers that play every trick on each other.
pub const LAYERS: &str = "layers:test";

/// Where tests/images/add-probe put them.
fn directory() -> Result<PathBuf> {
    env::var_os("RVM_TEST_IMAGES")
        .map(PathBuf::from)
        .context("RVM_TEST_IMAGES is not set: run scripts/test")
}

fn file(image: &str, extension: &str) -> Result<PathBuf> {
    let name = image.split(':').next().unwrap_or(image);
    Ok(directory()?.join(format!("{name}.{extension}")))
}

/// An image as an archive of the kind that skopeo calls `kind`: `oci-archive` or `docker-archive`.
///
/// # Errors
/// If scripts/test did not say where images are.
pub fn archive(image: &str, kind: &str) -> Result<PathBuf> {
    file(image, &format!("{kind}.tar"))
}

/// An image as an OCI layout directory; its only image has the tag `latest`.
///
/// # Errors
/// If scripts/test did not say where images are.
pub fn layout(image: &str) -> Result<PathBuf> {
    file(image, "layout")
}

/// Unpacks an image with umoci into the new directory `bundle`; returns the root of the tree.
///
/// # Errors
/// If umoci fails.
pub fn unpack(image: &str, bundle: &Path) -> Result<PathBuf> {
    let image = format!("{}:latest", layout(image)?.display());
    tool(
        "umoci",
        &["unpack", "--image", &image, bundle.to_str().context("not text")?],
    )?;
    Ok(bundle.join("rootfs"))
}
