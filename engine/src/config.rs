//! The configuration file: what a person decides once for every command.
//!
//! The user's own file counts, or where there is none the machine's; they are not mixed, so that one file says everything.

use std::env;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rvm_images::Registries;
use serde::Deserialize;

/// The machine's file.
const SYSTEM: &str = "/etc/rvm/config.toml";

/// Bytes of a file that people write by hand.
const MOST_BYTES: u64 = 1 << 20;

/// What can be configured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[registries."HOST[:PORT]"]`: mirrors and insecure registries.
    pub registries: Registries,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("cannot use {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause, with the line.
        source: Box<toml::de::Error>,
    },
}

impl Config {
    /// Reads `$XDG_CONFIG_HOME/rvm/config.toml` (`~/.config` by default), or `/etc/rvm/config.toml`, or takes the defaults.
    ///
    /// # Errors
    /// [`Error`] where a file is there and cannot be used.
    pub fn read() -> Result<Self, Error> {
        let set = |name| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let directory = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
        let user = directory.map(|directory| directory.join("rvm/config.toml"));
        for path in user.iter().map(PathBuf::as_path).chain([Path::new(SYSTEM)]) {
            if let Some(config) = Self::read_file(path)? {
                return Ok(config);
            }
        }
        Ok(Self::default())
    }

    fn read_file(path: &Path) -> Result<Option<Self>, Error> {
        let failed = |source| Error::Read {
            path: path.to_owned(),
            source,
        };
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed)?,
        };
        let mut text = String::new();
        file.take(MOST_BYTES).read_to_string(&mut text).map_err(failed)?;
        let config = toml::from_str(&text).map_err(|source| Error::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        Ok(Some(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Config>, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::read_file(file.path())
    }

    #[test]
    fn what_is_configured_is_read_and_else_refused() {
        assert_eq!(read("").unwrap(), Some(Config::default()));
        let text = "[registries.\"docker.io\"]\nmirrors = [\"https://mirror.example\"]\n\n\
                    [registries.\"10.0.0.1:5000\"]\ninsecure = true\n";
        assert_ne!(read(text).unwrap(), Some(Config::default()));
        for text in [
            "x = 1",
            "[registries.\"a\"]\nunsafe = true",
            "[registries",
            "registries = 1",
        ] {
            assert!(matches!(read(text), Err(Error::Parse { .. })), "{text}");
        }
        assert!(Config::read_file(Path::new("/does/not/exist")).unwrap().is_none());
    }
}
