//! What a run may leave behind, counted before and after.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::command::tool;
use crate::processes;
use crate::wait::wait_until;

/// The kernel takes things away a little after the last process that held them: a mount, a cgroup, a loop device.
const SETTLE: Duration = Duration::from_secs(10);

/// What has happened is kept, and may begin a new file at any time.
const KEPT: [&str; 2] = ["run/events", "run/events.1"];

/// The layer of rvm's own program is made when it is first needed, and stays.
fn is_probe(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("probe-") && path.parent().is_some_and(|parent| parent.ends_with("root/cache"))
}

/// Everything of the kinds that leak, on the whole machine: processes, mounts, loop devices, cgroups, unix sockets,
/// network interfaces, tables of the packet filter, and the files in some directories.
#[derive(Debug, Clone)]
pub struct Snapshot {
    directories: Vec<PathBuf>,
    things: BTreeSet<String>,
}

impl Snapshot {
    /// Takes one, with the files below `directories`.
    ///
    /// # Errors
    /// If the kernel's tables cannot be read.
    pub fn take(directories: &[&Path]) -> Result<Self> {
        let directories = directories
            .iter()
            .map(|path| path.to_path_buf())
            .collect::<Vec<_>>();
        let things = collect(&directories)?;
        Ok(Self { directories, things })
    }

    /// Waits until nothing is there that was not there when this snapshot was taken.
    ///
    /// # Errors
    /// If something stays; the message lists it.
    pub fn nothing_new(&self) -> Result<()> {
        let mut new = Vec::new();
        let waited = wait_until("nothing left behind", SETTLE, || {
            new = collect(&self.directories)?
                .difference(&self.things)
                .cloned()
                .collect();
            Ok(new.is_empty())
        });
        if !new.is_empty() {
            bail!(
                "left behind:\n{}",
                new.iter().fold(String::new(), |mut text, thing| {
                    let _ = writeln!(text, "  {thing}");
                    text
                })
            );
        }
        waited
    }
}

fn collect(directories: &[PathBuf]) -> Result<BTreeSet<String>> {
    let mut things = BTreeSet::new();
    for process in processes::all()?.values() {
        things.insert(format!(
            "process {} ({}), started at {}",
            process.pid, process.name, process.started
        ));
    }
    for line in read("/proc/self/mountinfo")?.lines() {
        // Made by the first `ip netns add` of a test, and kept.
        if line.contains(" /run/netns ") {
            continue;
        }
        things.insert(format!("mount {line}"));
    }
    for line in read("/proc/net/unix")?.lines() {
        // Only sockets with a path have an eighth column; the kernel's address of a socket is no identity.
        if let Some(path) = line.split_whitespace().nth(7) {
            things.insert(format!("socket {path}"));
        }
    }
    for device in list(Path::new("/sys/block"))? {
        if let Ok(file) = fs::read_to_string(device.join("loop/backing_file")) {
            things.insert(format!("loop device {} of {}", device.display(), file.trim()));
        }
    }
    for interface in list(Path::new("/sys/class/net"))? {
        things.insert(format!("network interface {}", interface.display()));
    }
    // Whoever may not list them cannot have made any.
    for table in tool("nft", &["list", "tables"]).unwrap_or_default().lines() {
        things.insert(format!("packet filter: {table}"));
    }
    walk(Path::new("/sys/fs/cgroup"), true, "cgroup", &mut things)?;
    for directory in directories {
        walk(directory, false, "file", &mut things)?;
    }
    Ok(things)
}

fn walk(top: &Path, only_directories: bool, label: &str, things: &mut BTreeSet<String>) -> Result<()> {
    for path in list(top)? {
        if KEPT.iter().any(|name| path.ends_with(name)) || is_probe(&path) {
            continue;
        }
        let is_directory = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
        if is_directory || !only_directories {
            things.insert(format!("{label} {}", path.display()));
        }
        if is_directory {
            walk(&path, only_directories, label, things)?;
        }
    }
    Ok(())
}

/// What a directory holds; nothing if it is not there (any more).
fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries.filter_map(Result::ok).map(|entry| entry.path()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot list {}", directory.display())),
    }
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_is_noticed_and_an_old_one_is_not() {
        let directory = std::env::temp_dir().join(format!("rvm-leaks-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("old"), "").unwrap();
        let files = |path: &Path| {
            let mut things = BTreeSet::new();
            walk(path, false, "file", &mut things).unwrap();
            things
        };
        let before = files(&directory);
        fs::write(directory.join("new"), "").unwrap();
        let new = files(&directory).difference(&before).cloned().collect::<Vec<_>>();
        assert_eq!(new, [format!("file {}", directory.join("new").display())]);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn the_machine_can_be_read() {
        let snapshot = Snapshot::take(&[]).unwrap();
        let own = format!("process {} ", std::process::id());
        assert!(snapshot.things.iter().any(|thing| thing.starts_with(&own)));
    }
}
