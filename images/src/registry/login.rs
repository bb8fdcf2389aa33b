//! Logging in and out: what proves who one is, kept where Docker keeps it.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize as _;
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::{Map, Value, json};

use super::client::{Client, Identity, Request};
use super::config::Registries;
use super::credentials::{self, Credentials, host_of};
use super::endpoint::{DOCKER_HUB, Endpoint};
use super::transport::Timing;
use super::{Error, helper};
use crate::reference::{DEFAULT_DOMAIN, LEGACY_DOMAIN, Reference};

/// A registry as people name it: `HOST[:PORT]`, or an address of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryName(String);

/// The text is no registry's name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no registry: a host with a dot or a port, or localhost")]
pub struct RegistryNameError(String);

/// Where a password is kept now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// In this file, where whoever can read it can read the password.
    File(PathBuf),
    /// By the credential helper of this name.
    Helper(String),
}

/// Why somebody was not logged in or out.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct LoginError(Box<LoginErrorKind>);

#[derive(Debug, thiserror::Error)]
enum LoginErrorKind {
    #[error(transparent)]
    Registry(#[from] Error),
    #[error("cannot keep the credentials: neither HOME nor DOCKER_CONFIG is set")]
    NoPlace,
    #[error("cannot change {}", path.display())]
    Keep {
        path: PathBuf,
        source: credentials::Error,
    },
}

impl<E: Into<LoginErrorKind>> From<E> for LoginError {
    fn from(error: E) -> Self {
        Self(Box::new(error.into()))
    }
}

impl LoginError {
    /// What a person can do about it, where that is not obvious.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match &*self.0 {
            // Who has just typed them need not be told to log in.
            LoginErrorKind::Registry(Error::Denied { .. } | Error::Rejected { .. }) => None,
            LoginErrorKind::Registry(error) => error.hint(),
            _ => None,
        }
    }
}

impl RegistryName {
    /// As references name it.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.0
    }

    fn credentials_key(&self) -> String {
        let endpoint = Endpoint::of(&self.0, &Registries::default());
        endpoint.credentials_key().to_owned()
    }
}

impl FromStr for RegistryName {
    type Err = RegistryNameError;

    fn from_str(text: &str) -> Result<Self, RegistryNameError> {
        let host = host_of(text);
        if [LEGACY_DOMAIN, DOCKER_HUB].contains(&host) {
            return Ok(Self(DEFAULT_DOMAIN.to_owned()));
        }
        // What is no domain in a reference could never be used.
        match format!("{host}/name").parse::<Reference>() {
            Ok(reference) if reference.domain() == host => Ok(Self(host.to_owned())),
            _ => Err(RegistryNameError(text.to_owned())),
        }
    }
}

/// Asks the registry whether it knows this person, and keeps the password if so.
///
/// # Errors
/// What the registry answers, or why the password cannot be kept.
pub fn log_in(
    registry: &RegistryName,
    registries: Registries,
    user: &str,
    password: &str,
) -> Result<Kept, LoginError> {
    let path = credentials::default_path().ok_or(LoginErrorKind::NoPlace)?;
    check(registry, registries, Timing::default(), user, password)?;
    keep_in(&path, &registry.credentials_key(), user, password)
        .map_err(|source| LoginErrorKind::Keep { path, source }.into())
}

/// Forgets what is kept of a registry; the answer is whether there was anything.
///
/// # Errors
/// If the file or a helper cannot be changed.
pub fn log_out(registry: &RegistryName) -> Result<bool, LoginError> {
    let path = credentials::default_path().ok_or(LoginErrorKind::NoPlace)?;
    forget_in(&path, &registry.credentials_key())
        .map_err(|source| LoginErrorKind::Keep { path, source }.into())
}

/// Asks a registry for nothing but whether it knows somebody.
pub(super) fn check(
    registry: &RegistryName,
    registries: Registries,
    timing: Timing,
    user: &str,
    password: &str,
) -> Result<(), Error> {
    let endpoint = Endpoint::of(registry.domain(), &registries);
    let credentials = Credentials::Password {
        user: user.to_owned(),
        password: password.to_owned(),
    };
    let client = Client::with(registries, timing, Identity::Given(credentials));
    let response = client.send(&endpoint, &Request::get("", ""))?;
    if response.status().is_success() && response.media_type() == Some("text/html") {
        return Err(Error::Html(response.shown()));
    }
    if response.status().is_success() {
        return Ok(());
    }
    Err(response.failure(endpoint.authority()))
}

/// Docker's order: a helper for this registry, the store for all, the file.
fn keep_in(path: &Path, registry: &str, user: &str, password: &str) -> Result<Kept, credentials::Error> {
    let mut document = read(path)?;
    let helper = helper_for(&document, registry);
    let entry = match &helper {
        Some(helper) => {
            helper::store(helper, registry, user, password)?;
            // So that it can be seen which registries there are.
            json!({})
        }
        None => json!({"auth": STANDARD.encode(format!("{user}:{password}"))}),
    };
    let auths = document.entry("auths").or_insert_with(|| json!({}));
    let Some(auths) = auths.as_object_mut() else {
        return Err(credentials::Error::Auths);
    };
    auths.insert(registry.to_owned(), entry);
    write(path, &document)?;
    Ok(match helper {
        Some(helper) => Kept::Helper(helper),
        None => Kept::File(path.to_owned()),
    })
}

fn forget_in(path: &Path, registry: &str) -> Result<bool, credentials::Error> {
    let mut document = read(path)?;
    let mut known = match helper_for(&document, registry) {
        Some(helper) => helper::erase(&helper, registry)?,
        None => false,
    };
    if let Some(auths) = document.get_mut("auths").and_then(Value::as_object_mut) {
        let before = auths.len();
        // Older programs wrote addresses, which are found as well.
        auths.retain(|key, _| host_of(key) != host_of(registry));
        if auths.len() < before {
            known = true;
            write(path, &document)?;
        }
    }
    Ok(known)
}

fn helper_for(document: &Map<String, Value>, registry: &str) -> Option<String> {
    let own = document
        .get("credHelpers")
        .and_then(|helpers| helpers.get(registry));
    let name = own.or_else(|| document.get("credsStore"))?.as_str()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// The whole file: what is not known here stays in it.
fn read(path: &Path) -> Result<Map<String, Value>, credentials::Error> {
    match credentials::read(path)? {
        Some(bytes) => Ok(serde_json::from_slice(&bytes)?),
        None => Ok(Map::new()),
    }
}

/// Replaces the file, so that nobody sees half of it, and nobody else reads it. A symbolic link stays one.
fn write(path: &Path, document: &Map<String, Value>) -> Result<(), credentials::Error> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut text = Vec::new();
    // Docker's indentation.
    document.serialize(&mut Serializer::with_formatter(
        &mut text,
        PrettyFormatter::with_indent(b"\t"),
    ))?;
    text.push(b'\n');
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(credentials::Error::Write)?;
    // Such a file is its owner's alone from the beginning.
    let mut file = tempfile::Builder::new()
        .prefix(".config-")
        .tempfile_in(directory)
        .map_err(credentials::Error::Write)?;
    file.write_all(&text)
        .and_then(|()| file.as_file().sync_all())
        .map_err(credentials::Error::Write)?;
    file.persist(&path)
        .map_err(|error| credentials::Error::Write(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::server::{Server, TIMING, reply};
    use super::*;

    #[test]
    fn registries_have_names() {
        let check = |text: &str, expected: Option<&str>| {
            let name = text.parse::<RegistryName>().ok();
            assert_eq!(name.as_ref().map(RegistryName::domain), expected, "{text}");
        };
        check("docker.io", Some("docker.io"));
        check("https://index.docker.io/v1/", Some("docker.io"));
        check("registry-1.docker.io", Some("docker.io"));
        check("https://r.example:5000/v2/", Some("r.example:5000"));
        check("localhost", Some("localhost"));
        check("[::1]:5000", Some("[::1]:5000"));
        for bad in ["", "name", "a b.example", "r.example:port", "../x", "-r.example"] {
            check(bad, None);
        }
        let hub: RegistryName = "docker.io".parse().unwrap();
        assert_eq!(hub.credentials_key(), "https://index.docker.io/v1/");
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_password_is_kept_and_forgotten_and_the_rest_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/config.json");
        let kept = keep_in(&path, "r.example", "me", "pass:word").unwrap();
        assert_eq!(kept, Kept::File(path.clone()));
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let found = credentials::find(&path, "r.example").unwrap();
        let expected = Credentials::Password {
            user: "me".to_owned(),
            password: "pass:word".to_owned(),
        };
        assert_eq!(found, Some(expected));

        fs::write(
            &path,
            r#"{"auths":{"https://r.example/v1/":{"auth":"bWU6cA=="},"s":{"auth":"x"}},"psFormat":[1]}"#,
        )
        .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let link = directory.path().join("link.json");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(forget_in(&link, "r.example").unwrap());
        assert!(!forget_in(&link, "r.example").unwrap());
        let left: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(left, json!({"auths": {"s": {"auth": "x"}}, "psFormat": [1]}));
        assert_eq!(mode(&path), 0o600);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        // Nothing is left beside it, and what is no configuration is not overwritten.
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        for bad in ["[]", "{", r#"{"auths":1}"#] {
            fs::write(&path, bad).unwrap();
            assert!(keep_in(&path, "r.example", "me", "p").is_err());
            assert_eq!(fs::read_to_string(&path).unwrap(), bad);
        }
    }

    #[test]
    fn the_registry_is_asked_first() {
        let server = Server::start(|request, stream| match request.header("authorization") {
            Some("Basic bWU6c2VjcmV0") => reply(stream, "200 OK", &[], b"{}"),
            _ => reply(
                stream,
                "401 Unauthorized",
                &["WWW-Authenticate: Basic realm=\"x\""],
                b"",
            ),
        });
        let ask = |server: &Server, password: &str| {
            let name = server.authority().parse().unwrap();
            check(&name, Registries::default(), TIMING, "me", password)
        };
        ask(&server, "secret").unwrap();
        assert!(matches!(ask(&server, "wrong"), Err(Error::Rejected { .. })));
        let page =
            Server::start(|_, stream| reply(stream, "200 OK", &["Content-Type: text/html"], b"<html>"));
        assert!(matches!(ask(&page, "secret"), Err(Error::Html(_))));
        let other = Server::start(|_, stream| reply(stream, "404 Not Found", &[], b""));
        assert!(matches!(
            ask(&other, "secret"),
            Err(Error::Status { status: 404, .. })
        ));
    }
}
