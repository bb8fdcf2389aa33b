//! Directories in memory that a container is given.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Mount, MountBuilder};

use super::Error;

/// Docker's, before what was asked for.
const DEFAULTS: [&str; 3] = ["noexec", "nosuid", "nodev"];

/// What may be asked for: of a mount, and of tmpfs(5) itself.
const FLAGS: [&str; 18] = [
    "defaults",
    "rw",
    "ro",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "nosymfollow",
];
const PARAMETERS: [&str; 7] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"];

/// Where the kernel's own file systems and the devices are; what is below is the standard mounts' business.
const KERNELS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Of those the one that is memory anyway.
pub(super) const SHM: &str = "/dev/shm";

/// The mounts, each before those below it.
///
/// # Errors
/// [`Error::TmpfsPath`], [`Error::TmpfsRoot`], [`Error::TmpfsReserved`], [`Error::TmpfsOption`].
pub(super) fn mounts(given: &BTreeMap<String, String>) -> Result<Vec<Mount>, Error> {
    let mut mounts = BTreeMap::new();
    for (path, options) in given {
        let destination = destination(path)?;
        let mount = MountBuilder::default()
            .destination(destination.clone())
            .typ("tmpfs")
            .source("tmpfs")
            .options(all_options(options)?)
            .build()?;
        mounts.insert(destination, mount);
    }
    // Paths are sorted by their parts.
    Ok(mounts.into_values().collect())
}

/// The directory without doubled slashes.
fn destination(text: &str) -> Result<PathBuf, Error> {
    let path = Path::new(text);
    let climbs = path.components().any(|part| part == Component::ParentDir);
    if !path.is_absolute() || climbs || text.contains('\0') {
        return Err(Error::TmpfsPath(text.to_owned()));
    }
    let path: PathBuf = path.components().collect();
    if path == Path::new("/") {
        return Err(Error::TmpfsRoot);
    }
    if KERNELS.iter().any(|above| path.starts_with(above)) && !path.starts_with(SHM) {
        return Err(Error::TmpfsReserved(text.to_owned()));
    }
    Ok(path)
}

fn all_options(given: &str) -> Result<Vec<String>, Error> {
    let mut all: Vec<String> = DEFAULTS.map(str::to_owned).into();
    for option in given.split(',').filter(|option| !option.is_empty()) {
        let known = match option.split_once('=') {
            Some((name, value)) => PARAMETERS.contains(&name) && !value.is_empty(),
            None => FLAGS.contains(&option),
        };
        if !known {
            return Err(Error::TmpfsOption(option.to_owned()));
        }
        all.push(option.to_owned());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(given: &[(&str, &str)]) -> Result<Vec<(String, String)>, Error> {
        let given = given
            .iter()
            .map(|&(path, options)| (path.to_owned(), options.to_owned()))
            .collect();
        let mounts = mounts(&given)?;
        Ok(mounts
            .iter()
            .map(|mount| {
                let options = mount.options().clone().unwrap_or_default();
                (mount.destination().display().to_string(), options.join(","))
            })
            .collect())
    }

    #[test]
    fn options_come_after_the_defaults() {
        let defaults = "noexec,nosuid,nodev";
        let one = |path: &str, options: String| vec![(path.to_owned(), options)];
        assert_eq!(made(&[("/run", "")]).unwrap(), one("/run", defaults.into()));
        assert_eq!(
            made(&[("/run//x/", "size=64k,exec,mode=700")]).unwrap(),
            one("/run/x", format!("{defaults},size=64k,exec,mode=700"))
        );
        let paths: Vec<_> = made(&[("/a-b", ""), ("/a/b", ""), ("/a", ""), ("/dev/shm", "")])
            .unwrap()
            .into_iter()
            .map(|(path, _)| path)
            .collect();
        assert_eq!(paths, ["/a", "/a/b", "/a-b", "/dev/shm"]);
    }

    #[test]
    fn what_cannot_be_mounted_is_refused() {
        for (path, options, expected) in [
            ("/", "", "destination can't be '/'"),
            ("//.", "", "destination can't be '/'"),
            ("run", "", "must be absolute"),
            ("", "", "must be absolute"),
            ("/run/../proc", "", "must be absolute"),
            ("/proc", "", "\"/proc\""),
            ("/proc/sys/", "", "\"/proc/sys/\""),
            ("/sys/fs/cgroup", "", "hide"),
            ("/dev", "", "hide"),
            ("/dev/null", "", "hide"),
            ("/run", "bind", "invalid tmpfs option \"bind\""),
            ("/run", "size", "invalid tmpfs option \"size\""),
            ("/run", "size=", "invalid tmpfs option \"size=\""),
            ("/run", "source=/etc", "invalid tmpfs option \"source=/etc\""),
            ("/run", "tmpcopyup", "invalid tmpfs option"),
        ] {
            let error = made(&[(path, options)]).unwrap_err().to_string();
            assert!(error.contains(expected), "{path} {options}: {error}");
        }
    }
}
