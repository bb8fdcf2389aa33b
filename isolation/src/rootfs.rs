//! The root file system: EROFS layers below, one writable directory on top, joined by overlayfs; then the move into it.
//!
//! All of it happens in the container's own mount namespace. When its last process ends, the kernel unmounts everything,
//! and the loop devices, which are set to free themselves, go too: after a `kill -9` there is nothing to clean up.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::environment::{Layer, Rootfs};
use crate::sys;

/// How often a loop device that another process took first is replaced by the next.
const LOOP_ATTEMPTS: u32 = 64;

/// Largest size in bytes of the list of a file's extended attributes and of one's value: `XATTR_LIST_MAX` and
/// `XATTR_SIZE_MAX` of `linux/limits.h`.
const XATTRS_SIZE: usize = 64 << 10;

/// Why there is no root file system.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot make the mounts of the host private to this namespace")]
    Propagation(#[source] io::Error),
    #[error("cannot prepare {}", path.display())]
    Stage { path: PathBuf, source: io::Error },
    #[error("cannot open {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot attach a loop device to {}", path.display())]
    Loop { path: PathBuf, source: io::Error },
    #[error("cannot mount the layer {}", path.display())]
    Layer { path: PathBuf, source: io::Error },
    #[error("cannot give {} the attributes of the image's root directory", path.display())]
    Upper { path: PathBuf, source: io::Error },
    #[error("cannot mount an overlay of {layers} layers with the upper directory {}", upper.display())]
    Overlay {
        layers: usize,
        upper: PathBuf,
        source: io::Error,
    },
    #[error("cannot make {} the root directory", path.display())]
    Pivot { path: PathBuf, source: io::Error },
}

/// Mounts the layers and the overlay on them, and makes the overlay the working directory.
pub(crate) fn mount(rootfs: &Rootfs) -> Result<(), Error> {
    // Opened first: `staging` may hide them once it is mounted on.
    let upper = open_directory(&rootfs.upper)?;
    let work = open_directory(&rootfs.work)?;
    mount_layers(rootfs)?;
    mount_overlay(rootfs, &overlay_options(rootfs.layers.len(), &upper, &work))
}

/// The same for who only reads; a workload may be writing meanwhile.
pub(crate) fn mount_read_only(rootfs: &Rootfs) -> Result<(), Error> {
    let upper = open_directory(&rootfs.upper)?;
    mount_layers(rootfs)?;
    let (upper, lower) = (upper.as_raw_fd(), lower_directories(rootfs.layers.len()));
    let options = format!("lowerdir=/proc/self/fd/{upper}:{lower},index=off,metacopy=off,redirect_dir=off");
    mount_overlay(rootfs, &options)
}

/// Mounts what lies below the upper directory, and makes that the working directory.
pub(crate) fn mount_layers_alone(rootfs: &Rootfs) -> Result<(), Error> {
    mount_layers(rootfs)?;
    // overlayfs wants two directories at least.
    let lower = lower_directories(rootfs.layers.len());
    mount_overlay(
        rootfs,
        &format!("lowerdir={lower}:none,index=off,metacopy=off,redirect_dir=off"),
    )
}

/// Gives the upper directory the attributes that the first mount will give it, for who reads it alone.
pub(crate) fn prepare_upper(rootfs: &Rootfs) -> Result<(), Error> {
    if was_mounted(rootfs)? {
        return Ok(());
    }
    mount_layers(rootfs)
}

/// Mounts each layer, gives the upper directory the attributes of the image's root directory where it has none of its own
/// yet, and makes the directory that has the layers the working directory.
fn mount_layers(rootfs: &Rootfs) -> Result<(), Error> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(|error| Error::Propagation(error.into()))?;
    let staging = &rootfs.staging;
    let staged = |source: io::Error| Error::Stage {
        path: staging.clone(),
        source,
    };
    let tmpfs_flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount("staging", staging, "tmpfs", tmpfs_flags, c"mode=700")
        .map_err(|error| staged(error.into()))?;
    let mut files = FileMounts::new();
    for (index, layer) in rootfs.layers.iter().enumerate() {
        let target = staging.join(index.to_string());
        fs::create_dir(&target).map_err(staged)?;
        match layer {
            Layer::Device(path) => mount_erofs(path, &target).map_err(|error| layer_error(path, error))?,
            Layer::File(path) => files.mount(path, &target)?,
        }
    }
    for name in ["empty", "none", "root"] {
        fs::create_dir(staging.join(name)).map_err(staged)?;
    }
    if let Some(top) = rootfs.layers.len().checked_sub(1) {
        copy_root_attributes(&staging.join(top.to_string()), rootfs)?;
    }
    // Names relative to the working directory, because the options of 127 layers have to fit one page.
    rustix::process::chdir(staging).map_err(|error| staged(error.into()))
}

/// Mounts the overlay, and makes it the working directory.
fn mount_overlay(rootfs: &Rootfs, options: &str) -> Result<(), Error> {
    let staged = |source: io::Error| Error::Stage {
        path: rootfs.staging.clone(),
        source,
    };
    let options = CString::new(options).map_err(|error| staged(error.into()))?;
    let overlay = rustix::mount::mount(
        "overlay",
        "root",
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    );
    overlay.map_err(|error| Error::Overlay {
        layers: rootfs.layers.len(),
        upper: rootfs.upper.clone(),
        source: error.into(),
    })?;
    rustix::process::chdir("root").map_err(|error| staged(error.into()))
}

/// The root directory of an overlay looks like its upper directory, but has to look like the image's. Only the first time:
/// later it is as the workload left it.
fn copy_root_attributes(top: &Path, rootfs: &Rootfs) -> Result<(), Error> {
    if was_mounted(rootfs)? {
        return Ok(());
    }
    let upper = &rootfs.upper;
    fs::metadata(top)
        .and_then(|metadata| {
            std::os::unix::fs::chown(upper, Some(metadata.uid()), Some(metadata.gid()))?;
            fs::set_permissions(upper, metadata.permissions())?;
            copy_xattrs(fs::File::open(top)?, fs::File::open(upper)?)
        })
        .map_err(|source| Error::Upper {
            path: upper.clone(),
            source,
        })
}

/// Whether there has been an overlay for a workload: overlayfs makes a directory in `work` then.
fn was_mounted(rootfs: &Rootfs) -> Result<bool, Error> {
    let mut entries = fs::read_dir(&rootfs.work).map_err(|source| Error::Open {
        path: rootfs.work.clone(),
        source,
    })?;
    Ok(entries.next().is_some())
}

/// Copies extended attributes, apart from overlayfs's own, which mean something in their layer only. As when overlayfs copies
/// a file up, what a file system has no place for is lost, unless it decides who may do what.
pub(crate) fn copy_xattrs(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let mut names = vec![0; XATTRS_SIZE];
    let length = match rustix::fs::flistxattr(&from, &mut *names) {
        Err(Errno::NOTSUP) => return Ok(()),
        other => other?,
    };
    let mut value = vec![0; XATTRS_SIZE];
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        if name.starts_with(b"trusted.overlay.") {
            continue;
        }
        let length = rustix::fs::fgetxattr(&from, name, &mut *value)?;
        let decides = name.starts_with(b"security.") || name.starts_with(b"system.posix_acl_");
        match rustix::fs::fsetxattr(&to, name, &value[..length], XattrFlags::empty()) {
            Err(Errno::NOTSUP) if !decides => {}
            other => other?,
        }
    }
    Ok(())
}

fn open_directory(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| Error::Open {
        path: path.into(),
        source: error.into(),
    })
}

/// The options of overlayfs, highest layer first. The writable directories are named by descriptor: their paths may hold
/// commas and colons, which would need escapes, and are nothing the container should read in its list of mounts. The
/// features that are switched off would make the upper directory mean something only together with these very layers.
fn overlay_options(layers: usize, upper: &OwnedFd, work: &OwnedFd) -> String {
    let lower = lower_directories(layers);
    let (upper, work) = (upper.as_raw_fd(), work.as_raw_fd());
    format!(
        "lowerdir={lower},upperdir=/proc/self/fd/{upper},workdir=/proc/self/fd/{work},\
         index=off,metacopy=off,redirect_dir=off"
    )
}

/// The layers' directories, the highest first.
fn lower_directories(layers: usize) -> String {
    match layers {
        0 => "empty".into(),
        _ => (0..layers)
            .rev()
            .map(|index| index.to_string())
            .collect::<Vec<_>>()
            .join(":"),
    }
}

/// How EROFS images in files are mounted: directly since Linux 6.12, if `CONFIG_EROFS_FS_BACKED_BY_FILE` is set, else
/// through loop devices. A kernel that cannot do it complains in its log each time it is asked, so it is asked once, and an
/// older one not at all.
struct FileMounts {
    direct: bool,
}

impl FileMounts {
    fn new() -> FileMounts {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        FileMounts {
            direct: is_at_least(&release, (6, 12)),
        }
    }

    fn mount(&mut self, path: &Path, target: &Path) -> Result<(), Error> {
        if self.direct {
            match mount_erofs(path, target) {
                Err(Errno::NOTBLK) => self.direct = false,
                other => return other.map_err(|error| layer_error(path, error)),
            }
        }
        // The device stays as long as this descriptor or the mount.
        let (device, _open) = attach_loop(path)?;
        mount_erofs(&device, target).map_err(|error| layer_error(path, error))
    }
}

fn layer_error(path: &Path, error: Errno) -> Error {
    Error::Layer {
        path: path.into(),
        source: error.into(),
    }
}

/// Whether a kernel release such as `6.1.0-56-cloud-amd64` is of this version or a later one.
fn is_at_least(release: &str, version: (u32, u32)) -> bool {
    let mut numbers = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map(str::parse);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return false;
    };
    (major, minor) >= version
}

fn mount_erofs(source: &Path, target: &Path) -> rustix::io::Result<()> {
    let flags = MountFlags::RDONLY | MountFlags::NOATIME | MountFlags::NODEV | MountFlags::NOSUID;
    rustix::mount::mount(source, target, "erofs", flags, None)
}

/// Attaches a loop device; it lasts as long as the returned descriptor or a mount of it.
fn attach_loop(path: &Path) -> Result<(PathBuf, OwnedFd), Error> {
    let open = |path: &Path| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).map_err(|error| Error::Open {
            path: path.into(),
            source: error.into(),
        })
    };
    let failed = |source| Error::Loop {
        path: path.into(),
        source,
    };
    let file = open(path)?;
    let control = open(Path::new("/dev/loop-control"))?;
    for _ in 0..LOOP_ATTEMPTS {
        let number = sys::loop_unused(&control).map_err(failed)?;
        let device_path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open(&device_path)?;
        match sys::loop_attach(&device, &file) {
            Ok(()) => return Ok((device_path, device)),
            // Another process was faster.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Err(failed(io::Error::other(format!(
        "{LOOP_ATTEMPTS} devices in a row were taken by others"
    ))))
}

/// Makes the working directory the root of this mount namespace and lets go of everything outside of it.
pub(crate) fn pivot(rootfs: &Rootfs) -> Result<(), Error> {
    let path = rootfs.staging.join("root");
    let failed = |error: Errno| Error::Pivot {
        path: path.clone(),
        source: error.into(),
    };
    // The old root comes to lie on top of the new one, so that no directory for it is needed.
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => {}
        // pivot_root(2): the initial RAM file system cannot be moved away.
        Err(Errno::INVAL) => leave_initial_root(&path).map_err(failed)?,
        Err(error) => return Err(failed(error)),
    }
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed)?;
    rustix::process::chdir("/").map_err(failed)
}

/// Pivots where the current root is the initial RAM file system: a bind mount of it, stacked on it, can be moved. The path
/// `/..` leads to that mount, where `/` would still mean what lies below it. What stays mounted below is out of reach.
fn leave_initial_root(new_root: &Path) -> rustix::io::Result<()> {
    rustix::mount::mount_bind_recursive("/", "/")?;
    rustix::process::chdir("/..")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir(new_root)?;
    rustix::process::pivot_root(".", ".")
}

/// Whether overlayfs and the kernel can take this path at all.
pub(crate) fn is_plain(path: &Path) -> bool {
    path.is_absolute() && !path.as_os_str().as_bytes().contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_options_fit_a_page() {
        let directory = open_directory(Path::new("/")).unwrap();
        let options = overlay_options(127, &directory, &directory);
        assert!(options.len() < 4096, "{}", options.len());
        assert!(options.starts_with("lowerdir=126:125:"), "{options}");
        assert!(overlay_options(0, &directory, &directory).starts_with("lowerdir=empty,"));
    }

    #[test]
    fn kernel_releases_compare_as_numbers() {
        let cases = [
            ("6.1.0-56-cloud-amd64", false),
            ("6.12.117", true),
            ("7.0-rc1", true),
            ("5.14", false),
            ("x", false),
        ];
        for (release, expected) in cases {
            assert_eq!(is_at_least(release, (6, 12)), expected, "{release}");
        }
    }

    #[test]
    fn paths_are_absolute() {
        let cases = [("/a/b", true), ("a", false), ("", false), ("/a\0b", false)];
        for (path, expected) in cases {
            assert_eq!(is_plain(Path::new(path)), expected, "{path:?}");
        }
    }
}
