//! Opening for use what was found with `O_PATH`. Merely to open a device can act on hardware, and to open a FIFO can block,
//! so what the image chose is looked at first and opened second; in between nothing is resolved again.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

/// This process's descriptors as a directory of the caller's proc file system. It still works when the root directory is
/// another, whose `/proc` is the image's or the Spec's business.
#[derive(Debug)]
pub(crate) struct Reopener(OwnedFd);

impl Reopener {
    /// To be called while `/proc` is still the caller's.
    pub(crate) fn new() -> io::Result<Reopener> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Reopener(rustix::fs::open("/proc/self/fd", flags, Mode::empty())?))
    }

    /// By a proc file system of this process' own, which nobody else has: for a process whose `/proc` is not the caller's.
    pub(crate) fn detached() -> io::Result<Reopener> {
        use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
        let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(&context)?;
        let proc = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Reopener(rustix::fs::openat(
            &proc,
            "self/fd",
            flags,
            Mode::empty(),
        )?))
    }

    /// Opens what `found` stands for once more, with these flags, closed at `execve`.
    pub(crate) fn open(&self, found: impl AsFd, flags: OFlags) -> io::Result<OwnedFd> {
        let name = found.as_fd().as_raw_fd().to_string();
        let flags = flags | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.0, name, flags, Mode::empty())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;

    #[test]
    fn what_was_found_is_opened_even_if_its_name_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "content").unwrap();
        let found = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        std::fs::rename(&path, directory.path().join("moved")).unwrap();
        let mut content = String::new();
        let opened = Reopener::new().unwrap().open(&found, OFlags::RDONLY).unwrap();
        File::from(opened).read_to_string(&mut content).unwrap();
        assert_eq!(content, "content");
    }
}
