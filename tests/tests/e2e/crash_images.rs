//! kill -9 at any moment of what changes the image store: the next command works, and nothing half-made is to be seen.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use rvm_tests::command::{LIMIT, Running, finish, tool};
use rvm_tests::images::{BUSYBOX, LAYERS, archive};
use rvm_tests::rvm::{Isolation, Rvm, alone, scratch};
use rvm_tests::wait::let_pass;

use crate::crash::{moment, rounds_wanted};

/// What is killed: rvm's arguments, in which FILE and ROOT stand for an archive to write and a root file system to read.
const VERBS: [&[&str]; 7] = [
    &["tag", BUSYBOX, "victim:tag"],
    &["save", "-o", "FILE", BUSYBOX, LAYERS],
    &["import", "ROOT", "victim:import"],
    &["commit", "changed", "victim:commit"],
    &["image", "prune", "-af"],
    &["load", "-i", "ARCHIVE"],
    &["rmi", LAYERS, "unused:1"],
];

/// A store with two images, and a container that has changed one of them.
struct Scene {
    rvm: Rvm,
    saved: PathBuf,
    root: PathBuf,
    archive: PathBuf,
}

impl Scene {
    fn new() -> Result<Self> {
        let rvm = Rvm::empty(Isolation::Container, "killed-images")?;
        let directory = scratch()?.join("killed-files");
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory)?;
        let root = directory.join("root.tar");
        fs::write(directory.join("file"), vec![7; 20 << 20])?;
        let (directory, packed) = (text(&directory)?, text(&root)?);
        tool("tar", &["-C", directory, "-cf", packed, "file"])?;
        Ok(Self {
            rvm,
            saved: root.with_file_name("saved.tar"),
            archive: archive(LAYERS, "oci-archive")?,
            root,
        })
    }

    /// As each round finds it.
    fn prepare(&self) -> Result<()> {
        for image in [BUSYBOX, LAYERS] {
            let path = archive(image, "oci-archive")?;
            self.rvm.call(["load", "-q", "-i", text(&path)?])?.ok();
        }
        if self.rvm.call(["ps", "-aq"])?.ok().text().is_empty() {
            let change = [
                "--name",
                "changed",
                BUSYBOX,
                "sh",
                "-c",
                "dd if=/dev/zero of=/f bs=1M count=20 2>&1",
            ];
            finish(self.rvm.run_command(change)?, LIMIT)?.ok();
        }
        // One that nothing uses, for what removes such images.
        self.rvm.call(["tag", LAYERS, "unused:1"])?.ok();
        Ok(())
    }

    fn start(&self, verb: &[&str]) -> Result<Running> {
        let argument = |word: &&str| match *word {
            "FILE" => self.saved.clone(),
            "ROOT" => self.root.clone(),
            "ARCHIVE" => self.archive.clone(),
            word => PathBuf::from(word),
        };
        if verb.contains(&"ARCHIVE") {
            self.rvm.call(["rmi", LAYERS, "unused:1"])?.ok();
        }
        let mut command = self.rvm.command(verb.iter().map(argument))?;
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Running::start(command)
    }

    /// What has to hold whatever was killed.
    fn look(&self) -> Result<()> {
        let rvm = &self.rvm;
        rvm.call(["images"])?.ok();
        let check = rvm.call(["system", "check"])?.ok();
        ensure!(check.text().contains("all are sound"), "{}", check.describe());
        self.what_was_saved_is_whole()?;
        // The next change: it removes what the killed one left, and every image that is listed is there in full.
        rvm.call(["tag", BUSYBOX, "next:1"])?.ok();
        let staged = fs::read_dir(rvm.root().join("images/staging"))?.count();
        ensure!(staged == 0, "{staged} files in the staging directory");
        for name in rvm
            .call(["images", "-q"])?
            .ok()
            .text()
            .lines()
            .collect::<BTreeSet<_>>()
        {
            rvm.call(["save", "-o", "/dev/null", name])?.ok();
        }
        Ok(())
    }

    /// An archive is complete or not there.
    fn what_was_saved_is_whole(&self) -> Result<()> {
        let directory = self.saved.parent().context("it has a parent")?;
        for entry in fs::read_dir(directory)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            ensure!(
                ["root.tar", "file", "saved.tar"].contains(&name.as_str()),
                "{name} is left"
            );
        }
        if self.saved.exists() {
            let fresh = Rvm::empty(Isolation::Container, "killed-load")?;
            fresh.call(["load", "-i", text(&self.saved)?])?.ok();
            fs::remove_file(&self.saved)?;
            fs::remove_dir_all(fresh.root())?;
        }
        Ok(())
    }

    /// Takes everything away; nothing that no image names may remain.
    fn clear(&self) -> Result<()> {
        let ids = self.rvm.call(["images", "-q"])?.ok().text();
        self.rvm.call(["rm", "changed"])?.ok();
        for id in ids.lines().collect::<BTreeSet<_>>() {
            self.rvm.call(["rmi", "-f", id])?.ok();
        }
        for directory in ["images/blobs/sha256", "layers/sha256"] {
            let left = fs::read_dir(self.rvm.root().join(directory))?.count();
            ensure!(left == 0, "{left} files in {directory}");
        }
        Ok(())
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("not text")
}

/// How long a verb takes if it is let be, in milliseconds.
fn duration(scene: &Scene, verb: &[&str]) -> Result<u64> {
    scene.prepare()?;
    let output = scene.start(verb)?.finish(LIMIT)?.ok();
    scene.look()?;
    Ok(u64::try_from(output.elapsed.as_millis())?)
}

#[test]
fn the_image_store_survives() -> Result<()> {
    let _alone = alone();
    let scene = Scene::new()?;
    let mut durations = Vec::new();
    for verb in VERBS {
        durations.push(duration(&scene, verb).with_context(|| format!("{verb:?}, not killed"))?);
    }
    let before = scene.rvm.snapshot()?;
    let kills = VERBS.iter().zip(durations).cycle();
    for (round, (verb, duration)) in (0..rounds_wanted()).zip(kills) {
        scene.prepare()?;
        let after = Duration::from_millis(moment(duration + duration / 4 + 1));
        let killed = scene.start(verb)?;
        let_pass(after);
        killed.signal(Signal::KILL)?;
        let output = killed.finish(LIMIT)?;
        let looked = scene.look().and_then(|()| scene.clear());
        looked.with_context(|| format!("round {round}, after {after:?}: {}", output.describe()))?;
    }
    before.nothing_new()?;
    fs::remove_dir_all(scene.root.parent().context("it has a parent")?)?;
    Ok(())
}
