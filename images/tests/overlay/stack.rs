//! An image under construction, and the two ways to look at it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use rvm_images::{Source, Store};
use tempfile::TempDir;

use crate::tree;

/// Name of the image in its OCI layout.
const TAG: &str = "image:latest";

pub(crate) struct Stack {
    directory: TempDir,
}

impl Stack {
    /// An image without layers, made by umoci.
    pub(crate) fn new() -> Result<Self> {
        let given = std::env::var_os("RVM_TEST_SCRATCH").map(PathBuf::from);
        let lab = Some(PathBuf::from("/scratch")).filter(|path| path.is_dir());
        let scratch = given.or(lab).unwrap_or_else(std::env::temp_dir);
        let stack = Self {
            directory: tempfile::tempdir_in(scratch)?,
        };
        run(stack.directory(), "umoci", &["init", "--layout", "image"])?;
        run(stack.directory(), "umoci", &["new", "--image", TAG])?;
        Ok(stack)
    }

    /// An image from an archive, brought into a layout by skopeo.
    pub(crate) fn of_archive(archive: &Path) -> Result<Self> {
        let stack = Self::new()?;
        let archive = archive.to_str().context("the archive's path is not text")?;
        let source = format!("docker-archive:{archive}");
        run(
            stack.directory(),
            "skopeo",
            &["copy", "-q", "--insecure-policy", &source, &format!("oci:{TAG}")],
        )?;
        Ok(stack)
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn push(&mut self, layer: &Path) -> Result<()> {
        let layer = layer.to_str().context("the layer's path is not text")?;
        run(
            self.directory(),
            "umoci",
            &["raw", "add-layer", "--image", TAG, layer],
        )
    }

    /// Whether rvm refuses to load the image, or umoci to unpack it.
    pub(crate) fn is_refused(&self) -> Result<bool> {
        let directory = tempfile::tempdir_in(self.directory())?;
        let store = Store::open(directory.path())?;
        let image = Source::Path(self.directory().join("image"));
        let refused = store.load(image, &mut |_| {}).is_err();
        Ok(refused || self.unpack().is_err())
    }

    /// What umoci unpacks.
    fn unpack(&self) -> Result<PathBuf> {
        let target = self.directory().join("unpacked");
        if !target.exists() {
            run(
                self.directory(),
                "umoci",
                &["raw", "unpack", "--image", TAG, "unpacked"],
            )?;
        }
        Ok(target)
    }

    /// Compares with what umoci unpacks; what differs, a line each.
    pub(crate) fn compare(&self) -> Result<String> {
        self.compare_to(&self.unpack()?)
    }

    /// Loads, mounts and compares.
    pub(crate) fn compare_to(&self, expected: &Path) -> Result<String> {
        let root = self.directory().join("root");
        let store = Store::open(&root)?;
        store.load(Source::Path(self.directory().join("image")), &mut |_| {})?;
        let summary = store.list()?.into_iter().next().context("nothing was loaded")?;
        let image = store.resolve(&summary.id.to_string())?;
        let mut mounts = Mounts(Vec::new());
        let mut lower = vec![self.mount_point("bottom")?];
        for (index, layer) in image.layers.iter().enumerate() {
            run(self.directory(), "fsck.erofs", &[path(&layer.path)?])?;
            let point = self.mount_point(&format!("layer-{index}"))?;
            mounts.mount(&["-t", "erofs", "-o", "ro,loop", path(&layer.path)?], &point)?;
            lower.push(point);
        }
        let names: Vec<&str> = lower
            .iter()
            .rev()
            .map(|point| path(point))
            .collect::<Result<_>>()?;
        let merged = self.mount_point("merged")?;
        mounts.mount(
            &[
                "-t",
                "overlay",
                "-o",
                &format!("ro,lowerdir={}", names.join(":")),
                "overlay",
            ],
            &merged,
        )?;
        let (ours, theirs) = (tree::list(&merged)?, tree::list(expected)?);
        let mut differences = String::new();
        for name in ours
            .keys()
            .chain(theirs.keys().filter(|name| !ours.contains_key(*name)))
        {
            let side = |tree: &tree::Tree| tree.get(name).map_or_else(|| "-".to_owned(), Clone::clone);
            let (ours, theirs) = (side(&ours), side(&theirs));
            if ours != theirs {
                writeln!(differences, "{name}\n    rvm      {ours}\n    expected {theirs}")?;
            }
        }
        Ok(differences)
    }

    fn mount_point(&self, name: &str) -> Result<PathBuf> {
        let point = self.directory().join(name);
        std::fs::create_dir(&point)?;
        Ok(point)
    }
}

/// Unmounted in reverse order when dropped.
struct Mounts(Vec<PathBuf>);

impl Mounts {
    fn mount(&mut self, arguments: &[&str], point: &Path) -> Result<()> {
        run(Path::new("/"), "mount", &[arguments, &[path(point)?]].concat())?;
        self.0.push(point.to_owned());
        Ok(())
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for point in self.0.iter().rev() {
            let _ = Command::new("umount").arg(point).status();
        }
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path is not text")
}

/// Runs a program and fails with what it said.
pub(crate) fn run(directory: &Path, program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
