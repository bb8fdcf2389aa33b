//! Certificates of one registry, in files as Docker has them: `certs.d/HOST[:PORT]/*.crt` are authorities to trust for it,
//! `NAME.cert` and `NAME.key` are what this side proves itself with.

use std::fs;
use std::path::{Path, PathBuf};

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey};

use super::error::Error;
use crate::layout::read_capped;
use crate::limits;

/// Directories with one directory for each `HOST[:PORT]`; the later one's client certificate counts.
const DIRECTORIES: [&str; 2] = ["/etc/docker/certs.d", "/etc/rvm/certs.d"];

/// Where the certificates of a registry are looked for.
pub(super) fn directories(authority: &str) -> impl Iterator<Item = PathBuf> {
    DIRECTORIES
        .map(|directory| Path::new(directory).join(authority))
        .into_iter()
}

/// The authorities that a directory has; none if it is not there.
pub(super) fn authorities_in(directory: &Path) -> Result<Vec<Certificate<'static>>, Error> {
    let mut certificates = Vec::new();
    for path in files(directory, "crt")? {
        certificates.extend(certificates_of(&path)?);
    }
    Ok(certificates)
}

/// What this side shows to a registry that asks who it is.
pub(super) fn client(authority: &str) -> Result<Option<ClientCert>, Error> {
    let mut found = None;
    for directory in directories(authority) {
        found = client_in(&directory)?.or(found);
    }
    Ok(found)
}

fn client_in(directory: &Path) -> Result<Option<ClientCert>, Error> {
    for key in files(directory, "key")? {
        if !key.with_extension("cert").exists() {
            return Err(failed(&key, "there is no .cert with its name beside it"));
        }
    }
    let paths = files(directory, "cert")?;
    let path = match paths.as_slice() {
        [] => return Ok(None),
        [path] => path,
        _ => {
            return Err(failed(
                directory,
                "it has more than one client certificate (*.cert)",
            ));
        }
    };
    let key_path = path.with_extension("key");
    if !key_path.exists() {
        return Err(failed(path, "there is no .key with its name beside it"));
    }
    let chain = certificates_of(path)?;
    let key = items(&key_path)?.into_iter().find_map(|item| match item {
        PemItem::PrivateKey(key) => Some(key),
        _ => None,
    });
    let key = key.ok_or_else(|| {
        failed(
            &key_path,
            "it has no private key in PEM form without a passphrase",
        )
    })?;
    check_pair(&chain, &key).map_err(|reason| failed(&key_path, reason))?;
    Ok(Some(ClientCert::new_with_certs(&chain, key)))
}

/// A pair that cannot be used has to be told from one before it gets to the connection.
fn check_pair(chain: &[Certificate<'static>], key: &PrivateKey<'static>) -> Result<(), String> {
    let certificates: Vec<_> = chain
        .iter()
        .map(|certificate| CertificateDer::from(certificate.der().to_vec()))
        .collect();
    let unusable = |error: &dyn std::fmt::Display| format!("it cannot be used with its certificate: {error}");
    let key = PrivateKeyDer::try_from(key.der().to_vec()).map_err(|error| unusable(&error))?;
    let provider = rustls::crypto::ring::default_provider();
    let checked = CertifiedKey::from_der(certificates, key, &provider);
    checked.map(drop).map_err(|error| unusable(&error))
}

/// The files of a directory with an extension, in the order of their names.
fn files(directory: &Path, extension: &str) -> Result<Vec<PathBuf>, Error> {
    let mut paths = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(paths);
    };
    for entry in entries {
        let path = entry
            .map_err(|error| failed(directory, error.to_string()))?
            .path();
        if path.extension().is_some_and(|actual| actual == extension) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn certificates_of(path: &Path) -> Result<Vec<Certificate<'static>>, Error> {
    let certificates: Vec<_> = items(path)?
        .into_iter()
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(failed(path, "it has no certificate in PEM form"));
    }
    Ok(certificates)
}

fn items(path: &Path) -> Result<Vec<PemItem<'static>>, Error> {
    let pem =
        read_capped(path, limits::CERTIFICATE_BYTES).map_err(|error| failed(path, error.to_string()))?;
    ureq::tls::parse_pem(&pem)
        .map(|item| item.map_err(|error| failed(path, error.to_string())))
        .collect()
}

fn failed(path: &Path, reason: impl Into<String>) -> Error {
    Error::Certificates {
        path: path.display().to_string(),
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate_and_key(directory: &Path, name: &str) {
        let status = std::process::Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=someone",
                "-newkey",
                "ec",
            ])
            .args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout"])
            .arg(directory.join(format!("{name}.key")))
            .arg("-out")
            .arg(directory.join(format!("{name}.cert")))
            .stderr(std::process::Stdio::null())
            .status()
            .expect("openssl is needed");
        assert!(status.success());
    }

    #[test]
    fn certificates_are_found_by_host() {
        let directory = tempfile::tempdir().unwrap();
        let host = directory.path().join("r.example:5000");
        fs::create_dir(&host).unwrap();
        assert!(authorities_in(&host).unwrap().is_empty());
        fs::write(host.join("ca.crt"), "nothing").unwrap();
        let error = authorities_in(&host).err().unwrap();
        assert!(error.to_string().contains("ca.crt"), "{error}");
        fs::remove_file(host.join("ca.crt")).unwrap();
        fs::write(host.join("client.key"), "nothing").unwrap();
        assert!(authorities_in(&host).unwrap().is_empty());
        let absent = directory.path().join("absent");
        assert!(authorities_in(&absent).unwrap().is_empty());
        assert!(client_in(&absent).unwrap().is_none());
    }

    #[test]
    fn a_client_certificate_needs_its_own_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let refused = |expected: &str| {
            let error = client_in(directory.path()).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        };
        certificate_and_key(directory.path(), "client");
        assert!(client_in(directory.path()).unwrap().is_some());
        certificate_and_key(directory.path(), "other");
        refused("more than one");
        fs::rename(path("other.key"), path("client.key")).unwrap();
        fs::remove_file(path("other.cert")).unwrap();
        refused("cannot be used with its certificate");
        fs::write(path("client.key"), "nothing").unwrap();
        refused("no private key");
        fs::write(
            path("client.key"),
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        )
        .unwrap();
        refused("cannot be used with its certificate");
        fs::remove_file(path("client.key")).unwrap();
        refused("no .key");
        fs::rename(path("client.cert"), path("client.key")).unwrap();
        refused("no .cert");
    }
}
