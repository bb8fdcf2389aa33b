//! Which file a command name means, by the rules of Docker: along `PATH` of the container's environment, unless the name
//! has a slash.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;

/// Why a command cannot be executed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0:?} is not in $PATH")]
    NotInPath(String),
    #[error("{0:?}")]
    NotFound(String, #[source] io::Error),
    #[error("{0:?}")]
    NotExecutable(String, #[source] io::Error),
    #[error("cannot execute {0:?}")]
    Other(String, #[source] io::Error),
}

impl Error {
    /// Sorts an error of `execve`, or of looking at the file.
    pub(crate) fn new(command: &str, error: io::Error) -> Error {
        let command = command.to_owned();
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG) => Error::NotFound(command, error),
            Some(libc::EACCES | libc::ENOEXEC | libc::EISDIR | libc::ELOOP | libc::EPERM | libc::ETXTBSY) => {
                Error::NotExecutable(command, error)
            }
            _ => Error::Other(command, error),
        }
    }
}

/// Finds the file for `command`, as the current user and in the current directory.
pub(crate) fn find(command: &str, environment: &[String]) -> Result<PathBuf, Error> {
    if command.contains('/') {
        let path = PathBuf::from(command);
        return check(&path)
            .map(|()| path)
            .map_err(|error| Error::new(command, error.into()));
    }
    let search = environment
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or_default();
    // A directory or a file without permission does not end the search, nor is it worth a special exit status.
    let directories = search
        .split(':')
        .filter(|directory| !directory.is_empty() && !command.is_empty());
    let mut candidates = directories.map(|directory| Path::new(directory).join(command));
    candidates
        .find(|path| check(path).is_ok())
        .ok_or_else(|| Error::NotInPath(command.into()))
}

fn check(path: &Path) -> rustix::io::Result<()> {
    if rustix::fs::FileType::from_raw_mode(rustix::fs::stat(path)?.st_mode) == rustix::fs::FileType::Directory
    {
        return Err(Errno::ISDIR);
    }
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn commands_are_found_along_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        for name in ["a", "b"] {
            fs::create_dir(place(name)).unwrap();
        }
        fs::create_dir(place("a/tool")).unwrap();
        for (name, mode) in [("b/tool", 0o755), ("a/data", 0o644)] {
            fs::write(place(name), "").unwrap();
            fs::set_permissions(place(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let path = format!("PATH=:{}:{}", place("a").display(), place("b").display());
        let environment = ["PATH=/nowhere".to_owned(), path];
        let find = |command: &str| find(command, &environment);
        assert_eq!(find("tool").unwrap(), place("b/tool"));
        assert!(matches!(find("data"), Err(Error::NotInPath(_))));
        assert!(matches!(find(""), Err(Error::NotInPath(_))));
        let absolute = |name: &str| find(place(name).to_str().unwrap());
        assert!(absolute("b/tool").is_ok());
        assert!(matches!(absolute("b/none"), Err(Error::NotFound(..))));
        assert!(matches!(absolute("b/tool/x"), Err(Error::NotFound(..))));
        assert!(matches!(absolute("a/tool"), Err(Error::NotExecutable(..))));
        assert!(matches!(absolute("a/data"), Err(Error::NotExecutable(..))));
        assert!(matches!(super::find("tool", &[]), Err(Error::NotInPath(_))));
    }
}
