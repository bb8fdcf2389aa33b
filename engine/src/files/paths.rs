//! Where a copy ends up: Docker's documented rules (`docker container cp`), on paths alone.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

/// Why something cannot be copied to a place. Docker's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A directory is to take the place of something else.
    #[error("cannot copy directory")]
    DirectoryOverFile,
    /// A file is to go to a directory that is not there.
    #[error("no such directory")]
    NoDirectory,
}

/// What a path ends with that means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Name,
    Slash,
    Dot,
}

/// An absolute path without `.`, `..` and doubled slashes; that it ended with a slash or `/.` is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CleanPath {
    path: PathBuf,
    end: End,
}

impl CleanPath {
    /// Reads what was typed; a relative path is one below `base`.
    pub(super) fn new(base: &Path, text: &OsStr) -> Self {
        let bytes = text.as_bytes();
        let end = if bytes == b"." || bytes.ends_with(b"/.") {
            End::Dot
        } else if bytes.ends_with(b"/") {
            End::Slash
        } else {
            End::Name
        };
        let mut path = PathBuf::from("/");
        for component in base.join(text).components() {
            match component {
                Component::Normal(name) => path.push(name),
                Component::ParentDir => drop(path.pop()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Self { path, end }
    }

    /// The same with the same end, of another path.
    pub(super) fn moved_to(&self, path: &Path) -> Self {
        Self {
            end: self.end,
            ..Self::new(Path::new("/"), path.as_os_str())
        }
    }

    /// For the kernel, which knows what a slash at the end means.
    pub(super) fn full(&self) -> PathBuf {
        let end = match self.end {
            End::Name => "",
            End::Slash => "/",
            End::Dot => "/.",
        };
        let mut text = self.path.clone().into_os_string();
        text.push(end);
        text.into()
    }

    /// The name that what it leads to has in an archive: `.` for what a directory has in it.
    pub(super) fn name(&self) -> OsString {
        match (self.end, self.path.file_name()) {
            (End::Dot, _) | (_, None) => ".".into(),
            (_, Some(name)) => name.into(),
        }
    }

    /// The directory that [`CleanPath::name`] is in.
    pub(super) fn directory(&self) -> &Path {
        match (self.end, self.path.parent()) {
            (End::Dot, _) | (_, None) => &self.path,
            (_, Some(parent)) => parent,
        }
    }

    /// Without the end.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// What is copied.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    /// As of [`CleanPath::name`].
    pub(super) name: OsString,
    pub(super) is_directory: bool,
}

/// Where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Landing {
    /// A directory, if it is there.
    pub(super) directory: PathBuf,
    /// The name that it gets there, or `.` where it is merged into the directory.
    pub(super) name: OsString,
}

/// Applies the rules. `there` is whether a directory is at the target; `None` where nothing is.
pub(super) fn land(origin: &Origin, target: &CleanPath, there: Option<bool>) -> Result<Landing, PathError> {
    let in_its_place = || Landing {
        directory: target.directory().to_owned(),
        name: target.name(),
    };
    match (there, origin.is_directory) {
        (Some(true), _) => Ok(Landing {
            directory: target.path.clone(),
            name: origin.name.clone(),
        }),
        (Some(false), true) => Err(PathError::DirectoryOverFile),
        (None, false) if target.end != End::Name => Err(PathError::NoDirectory),
        (Some(false), false) | (None, _) => Ok(in_its_place()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(text: &str) -> CleanPath {
        CleanPath::new(Path::new("/here"), OsStr::new(text))
    }

    #[test]
    fn paths_are_cleaned_and_keep_their_end() {
        // What was typed; what the kernel gets; the name; the directory of that.
        let cases = [
            ("a", "/here/a", "a", "/here"),
            ("a/", "/here/a/", "a", "/here"),
            ("a/.", "/here/a/.", ".", "/here/a"),
            (".", "/here/.", ".", "/here"),
            ("..", "/", ".", "/"),
            ("../..", "/", ".", "/"),
            ("./a//b/../c", "/here/a/c", "c", "/here/a"),
            ("/a/..", "/", ".", "/"),
            ("/", "//", ".", "/"),
            ("/a/./b/", "/a/b/", "b", "/a"),
            ("/../../etc", "/etc", "etc", "/"),
            ("a/..b", "/here/a/..b", "..b", "/here/a"),
        ];
        for (text, full, name, directory) in cases {
            let path = clean(text);
            assert_eq!(path.full(), Path::new(full), "{text}");
            assert_eq!(path.name(), name, "{text}");
            assert_eq!(path.directory(), Path::new(directory), "{text}");
        }
    }

    #[test]
    fn copies_land_where_docker_s_do() {
        const FILE: bool = false;
        const DIRECTORY: bool = true;
        // The source, what it is; the target, what is there; the directory and the name there, or what is wrong.
        let cases = [
            ("f", FILE, "t", None, Ok(("/here", "t"))),
            ("f", FILE, "t/", None, Err(PathError::NoDirectory)),
            ("f", FILE, "t/.", None, Err(PathError::NoDirectory)),
            ("f", FILE, "t", Some(FILE), Ok(("/here", "t"))),
            ("f", FILE, "t", Some(DIRECTORY), Ok(("/here/t", "f"))),
            ("f", FILE, "t/", Some(DIRECTORY), Ok(("/here/t", "f"))),
            ("f", FILE, ".", Some(DIRECTORY), Ok(("/here", "f"))),
            ("f", FILE, "/", Some(DIRECTORY), Ok(("/", "f"))),
            ("d", DIRECTORY, "t", None, Ok(("/here", "t"))),
            ("d", DIRECTORY, "t/", None, Ok(("/here", "t"))),
            ("d/.", DIRECTORY, "t", None, Ok(("/here", "t"))),
            (
                "d/",
                DIRECTORY,
                "t",
                Some(FILE),
                Err(PathError::DirectoryOverFile),
            ),
            ("d", DIRECTORY, "t", Some(DIRECTORY), Ok(("/here/t", "d"))),
            ("d/", DIRECTORY, "t", Some(DIRECTORY), Ok(("/here/t", "d"))),
            ("d/.", DIRECTORY, "t", Some(DIRECTORY), Ok(("/here/t", "."))),
            ("/", DIRECTORY, "t", Some(DIRECTORY), Ok(("/here/t", "."))),
        ];
        for (source, is_directory, target, there, expected) in cases {
            let origin = Origin {
                name: clean(source).name(),
                is_directory,
            };
            let expected = expected.map(|(directory, name)| Landing {
                directory: directory.into(),
                name: name.into(),
            });
            assert_eq!(
                land(&origin, &clean(target), there),
                expected,
                "{source} -> {target} ({there:?})"
            );
        }
    }

    #[test]
    fn a_link_s_target_keeps_the_end() {
        let moved = clean("link/.").moved_to(Path::new("/a/../b/c"));
        assert_eq!((moved.full(), moved.name()), ("/b/c/.".into(), ".".into()));
    }
}
