//! What the host has of a container, beside its processes: its cgroup's numbers, and the space that its writes take.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::cgroup;
use crate::probe::outside;

/// What a container takes of the host's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    /// Proportional set of all of its processes.
    pub(super) proportional: u64,
    /// What the kernel charges to its cgroup, where it does: pages, and what it needs itself.
    pub(super) charged: Option<u64>,
    /// What of that is the kernel's.
    pub(super) kernel: Option<u64>,
}

/// What a container takes.
pub(super) fn memory(id: &str) -> Result<Memory, cgroup::Error> {
    let stat = file(id, "memory.stat");
    Ok(Memory {
        proportional: outside::memory(&outside::processes(id)?).pss,
        charged: file(id, "memory.current").and_then(|text| text.parse().ok()),
        kernel: stat.and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("kernel ")?.parse().ok())
        }),
    })
}

/// A file of one of a container's cgroups.
pub(super) fn file(id: &str, name: &str) -> Option<String> {
    let path = cgroup::directory(id).ok()?.join(name);
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// Bytes that a directory takes on its disk, with everything in it.
pub(super) fn written(directory: &Path) -> u64 {
    let mut pending = vec![PathBuf::from(directory)];
    let mut blocks = 0;
    while let Some(path) = pending.pop() {
        // What is gone meanwhile takes nothing.
        let Ok(metadata) = path.symlink_metadata() else {
            continue;
        };
        // stat(2): blocks of 512 bytes.
        blocks += metadata.blocks();
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            pending.extend(entries.map(|entry| entry.path()));
        }
    }
    blocks * 512
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let before = written(directory.path());
        fs::create_dir(directory.path().join("deep")).unwrap();
        fs::write(directory.path().join("deep/file"), vec![1; 10_000]).unwrap();
        assert!(written(directory.path()) >= before + 10_000);
        assert_eq!(written(Path::new("/nonexistent")), 0);
    }
}
