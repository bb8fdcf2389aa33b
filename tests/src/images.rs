//! The test images: made by tests/images/build with tools that share nothing with rvm, and given the probe as a top
//! layer here, by umoci.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::command::tool;

/// One static program and its links; /etc/passwd knows root and www (33, also in the group extra).
pub const BUSYBOX: &str = "busybox:test";
/// A distribution's base.
pub const DEBIAN: &str = "debian:test";
/// Three layers that play every trick on each other.
pub const LAYERS: &str = "layers:test";

/// Where the images are that tests/images/build made.
///
/// # Errors
/// If scripts/test did not say.
pub fn directory() -> Result<PathBuf> {
    env::var_os("RVM_TEST_IMAGES")
        .map(PathBuf::from)
        .context("RVM_TEST_IMAGES is not set: run scripts/test")
}

/// The archive of an image, and what skopeo calls it.
fn source(image: &str) -> Result<String> {
    let directory = directory()?;
    let file = |kind: &str, extension: &str| {
        let name = image.split(':').next().unwrap_or(image);
        format!("{kind}:{}/{name}.{extension}", directory.display())
    };
    Ok(match image {
        DEBIAN => format!(
            "{}:docker.io/library/{image}",
            file("docker-archive", "docker.tar")
        ),
        _ => format!("{}:{image}", file("oci-archive", "oci.tar")),
    })
}

/// An image as an OCI layout directory, with the probe as its top layer.
#[derive(Debug)]
pub struct Prepared {
    layout: PathBuf,
    name: &'static str,
}

impl Prepared {
    /// Makes it below `scratch`.
    ///
    /// # Errors
    /// If skopeo or umoci fail.
    pub fn make(image: &'static str, probe: &Path, scratch: &Path) -> Result<Self> {
        let layout = scratch.join(format!("{}.layout", image.replace(':', "-")));
        let _ = fs::remove_dir_all(&layout);
        let path = layout.display();
        tool(
            "skopeo",
            &["copy", "-q", &source(image)?, &format!("oci:{path}:latest")],
        )?;
        let probe = probe.to_str().context("the probe's path is not text")?;
        tool(
            "umoci",
            &["insert", "--image", &format!("{path}:latest"), probe, "/probe"],
        )?;
        Ok(Self { layout, name: image })
    }

    /// Writes it as an archive of the kind that skopeo calls `kind` (`oci-archive`, `docker-archive`).
    ///
    /// # Errors
    /// If skopeo fails.
    pub fn archive(&self, kind: &str) -> Result<PathBuf> {
        let file = self.layout.with_extension(format!("{kind}.tar"));
        let _ = fs::remove_file(&file);
        let target = format!("{kind}:{}:{}", file.display(), self.name);
        tool(
            "skopeo",
            &[
                "copy",
                "-q",
                &format!("oci:{}:latest", self.layout.display()),
                &target,
            ],
        )?;
        Ok(file)
    }

    /// Unpacks it with umoci; returns the root of the tree.
    ///
    /// # Errors
    /// If umoci fails.
    pub fn unpack(&self) -> Result<PathBuf> {
        let bundle = self.layout.with_extension("bundle");
        let _ = fs::remove_dir_all(&bundle);
        let image = format!("{}:latest", self.layout.display());
        tool(
            "umoci",
            &["unpack", "--image", &image, bundle.to_str().context("not text")?],
        )?;
        Ok(bundle.join("rootfs"))
    }

    /// The layout directory; its only image has the tag `latest`.
    #[must_use]
    pub fn layout(&self) -> &Path {
        &self.layout
    }
}
