//! What a process tries that would reach beyond its container, each in a way that changes nothing where it is allowed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::time::{ClockId, clock_gettime, clock_settime};
use serde::{Deserialize, Serialize};

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What.
    pub name: String,
    /// `None` where it was allowed, else the error's name.
    pub refused: Option<String>,
}

/// Makes all of them.
#[must_use]
pub fn all() -> Vec<Attempt> {
    let mut attempts: Vec<Attempt> = [
        ("mount a tmpfs", mount as fn() -> io::Result<()>),
        ("set the clock", set_clock),
        ("load a kernel module", load_module),
        ("open a disk by a node of its own", make_node),
        ("set the host name", set_host_name),
    ]
    .into_iter()
    .map(|(name, attempt)| Attempt::new(name, attempt()))
    .collect();
    attempts.extend(FILES.map(|(name, path)| Attempt::new(name, open_for_writing(path))));
    attempts
}

/// Opened for writing, and nothing written.
const FILES: [(&str, &str); 7] = [
    ("open /dev/kvm", "/dev/kvm"),
    ("open /dev/mem", "/dev/mem"),
    ("open /dev/kmsg", "/dev/kmsg"),
    ("open /proc/sysrq-trigger", "/proc/sysrq-trigger"),
    ("open kernel.core_pattern", "/proc/sys/kernel/core_pattern"),
    ("open vm.panic_on_oom", "/proc/sys/vm/panic_on_oom"),
    ("open memory.max of its cgroup", "/sys/fs/cgroup/memory.max"),
];

impl Attempt {
    fn new(name: &str, result: io::Result<()>) -> Self {
        let refused = result.err().map(|error| match Errno::from_io_error(&error) {
            Some(errno) => named(errno),
            None => error.to_string(),
        });
        Self {
            name: name.to_owned(),
            refused,
        }
    }
}

/// The errors that these attempts have, by the names of errno(3).
fn named(errno: Errno) -> String {
    let name = match errno {
        Errno::PERM => "EPERM",
        Errno::ACCESS => "EACCES",
        Errno::NOENT => "ENOENT",
        Errno::NOEXEC => "ENOEXEC",
        Errno::NODEV => "ENODEV",
        Errno::NXIO => "ENXIO",
        Errno::ROFS => "EROFS",
        Errno::NOSYS => "ENOSYS",
        Errno::INVAL => "EINVAL",
        other => return format!("error {}", other.raw_os_error()),
    };
    name.to_owned()
}

fn open_for_writing(path: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path).map(drop)
}

fn mount() -> io::Result<()> {
    let place = Path::new("/.rvm-probe-mount");
    fs::create_dir(place)?;
    let mounted = rustix::mount::mount("none", place, "tmpfs", MountFlags::empty(), None);
    if mounted.is_ok() {
        rustix::mount::unmount(place, rustix::mount::UnmountFlags::DETACH)?;
    }
    fs::remove_dir(place)?;
    Ok(mounted?)
}

/// To what it is.
fn set_clock() -> io::Result<()> {
    Ok(clock_settime(
        ClockId::Realtime,
        clock_gettime(ClockId::Realtime),
    )?)
}

/// This program, which is none: a kernel that would take a module says ENOEXEC.
fn load_module() -> io::Result<()> {
    let program = File::open("/proc/self/exe")?;
    Ok(rustix::system::finit_module(&program, c"", 0)?)
}

/// The first disk, as a node that is removed again and not opened.
fn make_node() -> io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode};
    let place = Path::new("/.rvm-probe-node");
    rustix::fs::mknodat(
        CWD,
        place,
        FileType::BlockDevice,
        Mode::RUSR,
        rustix::fs::makedev(8, 0),
    )?;
    let opened = File::open(place).map(drop);
    fs::remove_file(place)?;
    opened
}

/// To what it is.
fn set_host_name() -> io::Result<()> {
    Ok(rustix::system::sethostname(
        rustix::system::uname().nodename().to_bytes(),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_names() {
        let file = Attempt::new("x", open_for_writing("/nonexistent/file"));
        assert_eq!(file.refused.as_deref(), Some("ENOENT"));
        assert_eq!(Attempt::new("x", Ok(())).refused, None);
        let other = Attempt::new("x", Err(io::Error::other("strange")));
        assert_eq!(other.refused.as_deref(), Some("strange"));
    }
}
