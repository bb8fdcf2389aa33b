//! Other programs beside rvm in the startup suite, on the same files.
//!
//! crun and runc get the configuration that rvm makes for its own container, and its root file system, unpacked; podman gets
//! the image as rvm saves it, in a storage of its own, and the probe as a mount; other virtual machine monitors get those files as
//! a disk. What is made for them is below one directory, which is locked meanwhile and removed at the end; what a measurement
//! that was killed has left, the next removes.

mod monitors;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use oci_spec::runtime::Spec;
use rustix::fs::{FlockOperation, flock};
use rvm_images::{ArchiveKind, Digest};

use super::plan::Subject;
use super::{Error, Plan, WORDS, probed};
use crate::engine::Engine;
use crate::layout::Asset;
use crate::names;
use crate::probe;
use crate::record::Isolation;

/// The newest version of the specification that the oldest crun in use takes; nothing of rvm's configurations is newer.
const OLD_SPECIFICATION: &str = "1.0.2";

/// What podman calls the image.
const PODMAN_IMAGE: &str = "localhost/rvm-bench:latest";

/// What was made for other programs.
pub(super) struct Peers {
    directory: PathBuf,
    _lock: File,
}

impl Peers {
    /// Makes what these subjects need.
    pub(super) fn prepare(engine: &Engine, plan: &Plan, image: &Digest) -> Result<Self, Error> {
        plan.also.iter().copied().try_for_each(possible)?;
        let directory = engine.layout().cache().join("bench");
        let lock = lock(&directory)?;
        let peers = Self {
            directory,
            _lock: lock,
        };
        peers.clean_up()?;
        if plan.also.iter().any(|subject| *subject != Subject::Podman) {
            peers.take_container(engine, plan)?;
        }
        if plan.also.contains(&Subject::Podman) {
            peers.load(engine, image)?;
        }
        Ok(peers)
    }

    /// A command that runs the startup suite's workload.
    pub(super) fn command(&self, subject: Subject, plan: &Plan) -> Result<Command, Error> {
        if is_monitor(subject) {
            return monitors::command(subject, plan, &self.directory);
        }
        if is_runtime(subject) {
            let mut command = Command::new(program(subject));
            command
                .arg("--root")
                .arg(self.directory.join("state"))
                .args(["run", "--bundle"])
                .arg(self.bundle())
                .arg(format!("rvm-bench-{}", names::new_id()));
            return Ok(command);
        }
        let probe = Asset::Probe.find().map_err(crate::engine::Error::from)?;
        let mut command = self.podman();
        command
            .args([
                "run",
                "--rm",
                "--pull=never",
                "--network=none",
                "--log-driver=none",
            ])
            .args(["--user=0:0", "--workdir=/", "--no-healthcheck"])
            .arg(format!("--memory={}", plan.memory_bytes))
            .arg(format!("--volume={}:{}:ro", probe.display(), probe::PATH))
            .args(["--entrypoint", probe::PATH]);
        if let Some(cpus) = &plan.pin {
            command.arg(format!("--cpuset-cpus={cpus}"));
        }
        command.arg(PODMAN_IMAGE).args(WORDS);
        Ok(command)
    }

    fn bundle(&self) -> PathBuf {
        self.directory.join("bundle")
    }

    /// podman with a storage of its own, so that what a user has in theirs is neither used nor changed.
    fn podman(&self) -> Command {
        let mut command = Command::new("podman");
        command
            .arg("--root")
            .arg(self.directory.join("podman"))
            .arg("--runroot")
            .arg(self.directory.join("podman-run"))
            .args([
                "--storage-driver=overlay",
                "--cgroup-manager=cgroupfs",
                "--events-backend=none",
            ]);
        command
    }

    /// The files and the configuration of a container that rvm would run, as they are needed.
    fn take_container(&self, engine: &Engine, plan: &Plan) -> Result<(), Error> {
        let mut request = probed(plan, Isolation::Container).probe(&WORDS);
        (request.open_stdin, request.stdin_once, request.auto_remove) = (false, false, false);
        let created = engine.create(&request)?;
        let id = created.id.clone();
        // Its files are read by others only where nobody owns it.
        drop(created);
        let made = self.make_of(engine, &id, plan);
        let removed = engine.remove(&id, true, true);
        made?;
        removed?;
        Ok(())
    }

    /// A bundle for runtimes and a disk for monitors, of a container.
    fn make_of(&self, engine: &Engine, id: &str, plan: &Plan) -> Result<(), Error> {
        if plan.also.iter().any(|subject| is_runtime(*subject)) {
            self.bundle_of(engine, id)?;
        }
        if plan.also.iter().any(|subject| is_monitor(*subject)) {
            monitors::prepare(engine, id, plan, &self.directory)?;
        }
        Ok(())
    }

    fn bundle_of(&self, engine: &Engine, id: &str) -> Result<(), Error> {
        let root = self.bundle().join("rootfs");
        fs::create_dir_all(&root).map_err(failed(&root))?;
        let mut tar = Command::new("tar")
            .args([
                "--extract",
                "--preserve-permissions",
                "--numeric-owner",
                "--directory",
            ])
            .arg(&root)
            .stdin(Stdio::piped())
            .spawn()
            .map_err(|error| Error::Command("tar".to_owned(), error))?;
        let copied = match tar.stdin.take() {
            Some(mut input) => io::copy(&mut engine.export(id)?, &mut input),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        let status = tar
            .wait()
            .map_err(|error| Error::Command("tar".to_owned(), error))?;
        copied.map_err(failed(&root))?;
        if !status.success() {
            return Err(Error::Peer(format!("tar ended with {status}")));
        }
        let (_, directory) = engine.directory(id)?;
        let path = directory.join("config.json");
        let spec = Spec::load(&path)
            .map_err(|error| Error::Peer(format!("cannot read its configuration: {error}")))?;
        let spec = serde_json::to_value(spec)
            .ok()
            .and_then(|spec| for_others(spec, &root))
            .ok_or_else(|| Error::Peer("its configuration has no root".to_owned()))?;
        let path = self.bundle().join("config.json");
        fs::write(&path, spec.to_string()).map_err(failed(&path))
    }

    /// The image as rvm saves it.
    fn load(&self, engine: &Engine, image: &Digest) -> Result<(), Error> {
        let path = self.directory.join("image.tar");
        let file = File::create(&path).map_err(failed(&path))?;
        // By its ID: a name may stand for several tags, and podman takes an archive of one.
        engine.save(&[image.to_string()], ArchiveKind::Oci, file)?;
        let loaded = run(self.podman().args(["load", "--input"]).arg(&path))?;
        fs::remove_file(&path).map_err(failed(&path))?;
        // `Loaded image: NAME`, or `Loaded image(s): NAME` of older ones; an ID where it has no name.
        let name = loaded
            .lines()
            .next_back()
            .and_then(|line| line.rsplit_once(": "))
            .ok_or_else(|| Error::Peer(format!("podman load said {:?}", crate::printable(&loaded))))?;
        run(self.podman().args(["tag", name.1, PODMAN_IMAGE]))?;
        Ok(())
    }

    /// Removes what is there, but for the directory itself.
    fn clean_up(&self) -> Result<(), Error> {
        let storage = self.directory.join("podman");
        if storage.exists() {
            // It may have mounts left; without podman they cannot be there.
            let _ = self
                .podman()
                .args(["system", "reset", "--force"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
        for entry in fs::read_dir(&self.directory).map_err(failed(&self.directory))? {
            let path = entry.map_err(failed(&self.directory))?.path();
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.map_err(failed(&path))?;
        }
        Ok(())
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // What cannot be removed now is by the next measurement, which says why it cannot.
        if self.clean_up().is_ok() {
            let _ = fs::remove_dir(&self.directory);
        }
    }
}

/// Makes and locks the directory. One that its last user has removed meanwhile is no longer where others look.
fn lock(directory: &Path) -> Result<File, Error> {
    let failed = |error| Error::File(directory.to_owned(), error);
    loop {
        fs::create_dir_all(directory).map_err(failed)?;
        let lock = match File::open(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            lock => lock.map_err(failed)?,
        };
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| Error::Busy)?;
        let own = lock.metadata().map_err(failed)?.ino();
        if fs::metadata(directory).is_ok_and(|there| there.ino() == own) {
            return Ok(lock);
        }
    }
}

/// Whether it runs bundles.
fn is_runtime(subject: Subject) -> bool {
    matches!(subject, Subject::Crun | Subject::Runc)
}

/// Whether it is a virtual machine monitor.
fn is_monitor(subject: Subject) -> bool {
    matches!(subject, Subject::Firecracker | Subject::Qemu)
}

/// What is executed of it.
fn program(subject: Subject) -> &'static str {
    match subject {
        Subject::Qemu => "qemu-system-x86_64",
        _ => subject.name(),
    }
}

/// Whether it is installed.
fn possible(subject: Subject) -> Result<(), Error> {
    let program = program(subject);
    let found = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match found {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Subject {
            subject,
            reason: format!("{program} is not in PATH: install it, or leave it out of --also"),
        }),
        Err(error) => Err(Error::Command(program.to_owned(), error)),
    }
}

/// A configuration as older programs take it, with this root directory and a cgroup that is not one of rvm's.
fn for_others(mut spec: serde_json::Value, root: &Path) -> Option<serde_json::Value> {
    spec["ociVersion"] = OLD_SPECIFICATION.into();
    *spec.get_mut("root")?.get_mut("path")? = root.to_str()?.into();
    let linux = spec.get_mut("linux")?.as_object_mut()?;
    linux.insert("cgroupsPath".to_owned(), "/rvm-bench".into());
    // rvm's own notes to itself.
    spec.as_object_mut()?.remove("annotations");
    Some(spec)
}

/// What a command prints; what it complains of is why it failed.
fn run(command: &mut Command) -> Result<String, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::Command(program.clone(), error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Peer(format!(
        "{program} ended with {}: {}",
        output.status,
        crate::printable(&complaint)
    )))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::File(path, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_made_for_others() {
        let spec = serde_json::json!({
            "ociVersion": "1.3.0", "root": {"path": "rootfs"}, "annotations": {"a": "b"}, "linux": {},
        });
        let expected = serde_json::json!({
            "ociVersion": "1.0.2", "root": {"path": "/r"}, "linux": {"cgroupsPath": "/rvm-bench"},
        });
        assert_eq!(for_others(spec, Path::new("/r")), Some(expected));
        assert_eq!(for_others(serde_json::json!({}), Path::new("/r")), None);
    }
}
