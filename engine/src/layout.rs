//! Where rvm keeps things, and where it finds what it was installed with.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// Names a directory with [`Assets`], before any other place is looked at.
pub const ASSETS_VARIABLE: &str = "RVM_ASSETS";

/// The directories of one installation.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
    run: PathBuf,
}

/// Why the directories cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory could not be made.
    #[error("cannot create the directory {path}")]
    Create {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A relative directory could not be made absolute.
    #[error("cannot find the current directory")]
    CurrentDirectory(#[source] io::Error),
    /// None of the places has the file.
    #[error("{name} was not found in {places}")]
    AssetMissing {
        /// The file's name.
        name: &'static str,
        /// Where it was looked for.
        places: String,
    },
    /// The file is there but cannot be opened.
    #[error("cannot open {path}")]
    AssetUnreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl Layout {
    /// Uses `root` for what lasts and `run` for what ends with the machine, or the defaults of the calling user. The
    /// directories are made if absent, readable by their owner alone: layers hold set-user-ID programs.
    ///
    /// # Errors
    /// [`Error::Create`] where a directory cannot be made.
    pub fn new(root: Option<PathBuf>, run: Option<PathBuf>) -> Result<Self, Error> {
        let is_root = rustix::process::geteuid().is_root();
        let root = root
            .unwrap_or_else(|| user_directory(is_root, "/var/lib/rvm", "XDG_DATA_HOME", ".local/share/rvm"));
        let run =
            run.unwrap_or_else(|| user_directory(is_root, "/run/rvm", "XDG_RUNTIME_DIR", ".cache/rvm-run"));
        let layout = Self {
            root: std::path::absolute(root).map_err(Error::CurrentDirectory)?,
            run: std::path::absolute(run).map_err(Error::CurrentDirectory)?,
        };
        for directory in [
            &layout.root,
            &layout.run,
            &layout.containers(),
            &layout.names(),
            &layout.cache(),
        ] {
            create_private(directory).map_err(|source| Error::Create {
                path: directory.clone(),
                source,
            })?;
        }
        Ok(layout)
    }

    /// What lasts: images, layers, containers.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What ends with the machine: sockets.
    #[must_use]
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// One directory per container, each an OCI bundle.
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// A symbolic link per container, from its name to its ID.
    #[must_use]
    pub fn names(&self) -> PathBuf {
        self.root.join("names")
    }

    /// One directory per volume.
    #[must_use]
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// What can be made again at any time.
    #[must_use]
    pub fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }
}

/// `mkdir -p` with mode 0700.
pub(crate) fn create_private(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
}

fn user_directory(is_root: bool, system: &str, variable: &str, below_home: &str) -> PathBuf {
    if is_root {
        return PathBuf::from(system);
    }
    match env::var_os(variable).filter(|value| !value.is_empty()) {
        Some(base) => PathBuf::from(base).join("rvm"),
        None => PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/tmp".into())).join(below_home),
    }
}

/// The files that are needed beside the `rvm` binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asset {
    /// The VMM, a static executable.
    Vmm,
    /// The guest kernel, an ELF image.
    Kernel,
    /// The guest agent, packed as an initial root file system.
    Initramfs,
    /// The server of a directory, a static executable.
    FileServer,
    /// The program that looks and measures inside of containers, which only that needs.
    Probe,
    /// The resolver of a network, a static executable.
    Resolver,
}

impl Asset {
    /// Those that a virtual machine needs.
    pub const OF_MACHINES: [Self; 4] = [Self::Vmm, Self::Kernel, Self::Initramfs, Self::FileServer];

    /// The file's name in any of the places.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Vmm => "rvm-vmm",
            Self::Kernel => "vmlinux",
            Self::Initramfs => "initramfs",
            Self::FileServer => "rvm-fs",
            Self::Probe => "rvm-probe",
            Self::Resolver => "rvm-resolver",
        }
    }

    /// Finds the file: in `$RVM_ASSETS` if that is set and nowhere else, otherwise beside the running executable, in
    /// `assets` beside it, or in `/usr/local/lib/rvm` and `/usr/lib/rvm`.
    ///
    /// # Errors
    /// [`Error::AssetMissing`], naming the places.
    pub fn find(self) -> Result<PathBuf, Error> {
        let mut places = Vec::new();
        if let Some(directory) = env::var_os(ASSETS_VARIABLE) {
            places.push(PathBuf::from(directory));
        } else {
            if let Some(beside) = env::current_exe()
                .ok()
                .and_then(|path| path.parent().map(Path::to_owned))
            {
                places.push(beside.clone());
                places.push(beside.join("assets"));
            }
            places.extend(["/usr/local/lib/rvm", "/usr/lib/rvm"].map(PathBuf::from));
        }
        let name = self.file_name();
        places
            .iter()
            .map(|place| place.join(name))
            .find(|path| path.is_file())
            .ok_or_else(|| {
                let places = places
                    .iter()
                    .map(|place| place.display().to_string())
                    .collect::<Vec<_>>();
                Error::AssetMissing {
                    name,
                    places: places.join(", "),
                }
            })
    }

    /// [`Asset::find`], opened for reading.
    ///
    /// # Errors
    /// As [`Asset::find`], and [`Error::AssetUnreadable`].
    pub fn open(self) -> Result<File, Error> {
        let path = self.find()?;
        File::open(&path).map_err(|source| Error::AssetUnreadable { path, source })
    }
}
