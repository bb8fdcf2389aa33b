//! Who this person is at a registry: `~/.docker/config.json` and the helpers that it names.
//!
//! The order is Docker's: a helper for this registry, the entry in `auths`, the store for all registries. A helper is a
//! program `docker-credential-NAME` that gets the registry on standard input and answers in JSON.

use std::collections::HashMap;
use std::env;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::layout::{self, read_capped};
use crate::limits;

/// The user name of an answer that is a refresh token and no password.
const TOKEN_USER: &str = "<token>";

/// What helpers say where they know nothing of a registry; they share no better sign.
const NOTHING: &str = "credentials not found";

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

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Docker's configuration file of this user.
pub(crate) fn default_path() -> Option<PathBuf> {
    let directory = env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let directory = directory.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".docker")))?;
    Some(directory.join("config.json"))
}

/// The credentials for a registry, if there are any.
pub(crate) fn find(path: &Path, registry: &str) -> Result<Option<Credentials>, Error> {
    let bytes = match read_capped(path, limits::CREDENTIALS_BYTES) {
        Err(layout::Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes?,
    };
    let configuration: Configuration = serde_json::from_slice(&bytes)?;
    if let Some(helper) = lookup(&configuration.cred_helpers, registry) {
        return ask_helper(helper, registry);
    }
    if let Some(found) = lookup(&configuration.auths, registry) {
        let found = found.credentials(registry)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    match configuration.creds_store.filter(|store| !store.is_empty()) {
        Some(store) => ask_helper(&store, registry),
        None => Ok(None),
    }
}

/// By the exact key, or by the host within a key that older programs wrote as an address.
fn lookup<'a, T>(table: &'a HashMap<String, T>, registry: &str) -> Option<&'a T> {
    let host = |key: &str| {
        let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
        rest.split('/').next().unwrap_or_default().to_owned()
    };
    table.get(registry).or_else(|| {
        table
            .iter()
            .find(|(key, _)| host(key) == host(registry))
            .map(|(_, value)| value)
    })
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

fn ask_helper(name: &str, registry: &str) -> Result<Option<Credentials>, Error> {
    if name.contains('/') {
        return Err(Error::HelperName(name.to_owned()));
    }
    let program = format!("docker-credential-{name}");
    let run = |source| Error::Run {
        program: program.clone(),
        source,
    };
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(run)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read says so by how it ends.
        let _ = stdin.write_all(registry.as_bytes());
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout
            .take(limits::CREDENTIALS_BYTES)
            .read_to_end(&mut answer)
            .map_err(run)?;
    }
    let status = child.wait().map_err(run)?;
    if !status.success() {
        let message = String::from_utf8_lossy(&answer).trim().to_owned();
        if message.contains(NOTHING) {
            return Ok(None);
        }
        return Err(Error::Failed { program, message });
    }
    let answer: HelperAnswer = serde_json::from_slice(&answer).map_err(|_| Error::Answer { program })?;
    Ok(match answer.username.as_str() {
        "" => None,
        TOKEN_USER => Some(Credentials::Token(answer.secret)),
        _ => Some(Credentials::Password {
            user: answer.username,
            password: answer.secret,
        }),
    })
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
    fn a_helper_has_a_name_and_no_path() {
        assert!(matches!(
            ask_helper("../../tmp/evil", "r"),
            Err(Error::HelperName(_))
        ));
        assert!(matches!(
            ask_helper("is-not-installed-here", "r"),
            Err(Error::Run { .. })
        ));
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
