//! Who this person is at a registry: `~/.docker/config.json` and the helpers that it names.
//!
//! The order is Docker's: a helper for this registry, the entry in `auths`, the store for all registries.

use std::collections::HashMap;
use std::env;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::helper;
use crate::layout::{self, read_capped};
use crate::limits;

/// Why what is there cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Read(#[from] layout::Error),
    #[error("it is not valid")]
    Json(#[from] serde_json::Error),
    #[error("the entry for {0} is not base64 of USER:PASSWORD")]
    Entry(String),
    #[error("the credential helper {0:?} has a name that is a path")]
    HelperName(String),
    #[error("cannot run {program}")]
    Run { program: String, source: io::Error },
    #[error("{program} failed: {message}")]
    Failed { program: String, message: String },
    #[error("{program} gave no usable answer")]
    Answer { program: String },
    #[error("{program} has not answered within {seconds} seconds")]
    Silent { program: String, seconds: u64 },
    #[error("\"auths\" is no table in it")]
    Auths,
    #[error("it cannot be written")]
    Write(#[source] io::Error),
}

/// What proves who one is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    Password {
        user: String,
        password: String,
    },
    /// A refresh token, for the token server alone.
    Token(String),
}

/// Without the secret.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Password { .. } => "Password",
            Self::Token(_) => "Token",
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Configuration {
    auths: HashMap<String, Entry>,
    creds_store: Option<String>,
    cred_helpers: HashMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// Docker's configuration file of this user.
pub(crate) fn default_path() -> Option<PathBuf> {
    let directory = env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let directory = directory.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".docker")))?;
    Some(directory.join("config.json"))
}

/// The file's content, if it is there.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match read_capped(path, limits::CREDENTIALS_BYTES) {
        Err(layout::Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        bytes => Ok(Some(bytes?)),
    }
}

/// The credentials for a registry, if there are any.
pub(crate) fn find(path: &Path, registry: &str) -> Result<Option<Credentials>, Error> {
    let Some(bytes) = read(path)? else {
        return Ok(None);
    };
    let configuration: Configuration = serde_json::from_slice(&bytes)?;
    if let Some(helper) = lookup(&configuration.cred_helpers, registry) {
        return helper::get(helper, registry);
    }
    if let Some(found) = lookup(&configuration.auths, registry) {
        let found = found.credentials(registry)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    match configuration.creds_store.filter(|store| !store.is_empty()) {
        Some(store) => helper::get(&store, registry),
        None => Ok(None),
    }
}

/// By the exact key, or by the host within a key that older programs wrote as an address.
fn lookup<'a, T>(table: &'a HashMap<String, T>, registry: &str) -> Option<&'a T> {
    table.get(registry).or_else(|| {
        table
            .iter()
            .find(|(key, _)| host_of(key) == host_of(registry))
            .map(|(_, value)| value)
    })
}

/// `HOST[:PORT]` of a key, which may be an address.
pub(super) fn host_of(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

impl Entry {
    /// Nothing for the empty entry that is written beside a credential store.
    fn credentials(&self, registry: &str) -> Result<Option<Credentials>, Error> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials::Token(self.identitytoken.clone())));
        }
        if self.auth.is_empty() {
            let user = self.username.clone();
            let password = self.password.clone();
            return Ok((!user.is_empty()).then_some(Credentials::Password { user, password }));
        }
        let bad = || Error::Entry(registry.to_owned());
        let decoded = STANDARD.decode(&self.auth).map_err(|_| bad())?;
        // Docker pads with NUL what it decodes.
        let text = String::from_utf8(decoded).map_err(|_| bad())?;
        let (user, password) = text.trim_end_matches('\0').split_once(':').ok_or_else(bad)?;
        Ok(Some(Credentials::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }

    fn check(text: &str, registry: &str, expected: &Option<Credentials>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        assert_eq!(&find(&path, registry).unwrap(), expected, "{registry}: {text}");
    }

    #[test]
    fn entries() {
        // "me:pass:word"
        let entry = r#"{"auths":{"r.example:5000":{"auth":"bWU6cGFzczp3b3Jk"},"s.example":{}},"other":1}"#;
        check(entry, "r.example:5000", &password("me", "pass:word"));
        check(entry, "r.example", &None);
        check(entry, "s.example", &None);
        let token = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"bWU6cA==","identitytoken":"abc"}}}"#;
        check(
            token,
            "https://index.docker.io/v1/",
            &Some(Credentials::Token("abc".to_owned())),
        );
        check(
            r#"{"auths":{"https://r.example/v2/":{"username":"u","password":"p"}}}"#,
            "r.example",
            &password("u", "p"),
        );
        let bad = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(bad.path(), r#"{"auths":{"r":{"auth":"!"}}}"#).unwrap();
        assert!(matches!(find(bad.path(), "r"), Err(Error::Entry(_))));
        assert_eq!(find(Path::new("/does/not/exist"), "r").unwrap(), None);
    }

    #[test]
    fn secrets_are_not_printed() {
        let text = format!(
            "{:?} {:?}",
            password("me", "secret"),
            Credentials::Token("secret".to_owned())
        );
        assert!(!text.contains("secret"), "{text}");
    }
}
