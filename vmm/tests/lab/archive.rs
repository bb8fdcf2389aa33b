//! The guests' initial root file system: this program as init, busybox, and a shell script as the job.

use std::fs::{self, File};
use std::io::{Seek as _, Write};
use std::sync::OnceLock;

use cpio::newc::{Builder, ModeFileType, trailer};

/// What all guests share. The kernel opens `/dev/console` for init, and the Rust runtime `/dev/null` where it does not.
fn base() -> &'static [u8] {
    static BASE: OnceLock<Vec<u8>> = OnceLock::new();
    BASE.get_or_init(|| {
        let mut archive = Vec::new();
        for name in ["dev", "proc", "sys", "tmp", "bin", "mnt"] {
            let directory = Builder::new(name).mode(0o755).nlink(2);
            let directory = directory.set_mode_file_type(ModeFileType::Directory);
            directory.write(&mut archive, 0).finish().unwrap();
        }
        for (name, major, minor) in [("dev/console", 5, 1), ("dev/null", 1, 3)] {
            let node = Builder::new(name).mode(0o666).nlink(1);
            let node = node.rdev_major(major).rdev_minor(minor);
            let node = node.set_mode_file_type(ModeFileType::Char);
            node.write(&mut archive, 0).finish().unwrap();
        }
        add(&mut archive, "init", &fs::read("/proc/self/exe").unwrap());
        let busybox = fs::read("/bin/busybox").expect("busybox is not installed: scripts/packages install");
        add(&mut archive, "bin/busybox", &busybox);
        trailer(&mut archive).unwrap();
        archive
    })
}

fn add(archive: &mut Vec<u8>, name: &str, content: &[u8]) {
    let file = Builder::new(name).mode(0o755).nlink(1);
    let file = file.set_mode_file_type(ModeFileType::Regular);
    let mut file = file.write(archive, u32::try_from(content.len()).unwrap());
    file.write_all(content).unwrap();
    file.finish().unwrap();
}

/// The files of a guest's initial root file system.
pub(crate) fn with_job(job: &str) -> [File; 2] {
    let mut archive = Vec::new();
    add(&mut archive, "job", job.as_bytes());
    trailer(&mut archive).unwrap();
    [base(), &archive].map(|content| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.rewind().unwrap();
        file
    })
}
