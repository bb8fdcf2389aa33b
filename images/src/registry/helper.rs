//! Credential helpers: programs called `docker-credential-NAME` that get a verb as their argument, its object on standard
//! input, and answer on standard output.

use std::io::{self, Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::credentials::{Credentials, Error};
use crate::limits;

/// The user name of an answer that is a refresh token and no password.
const TOKEN_USER: &str = "<token>";

/// What helpers say where they know nothing of a registry; they share no better sign.
const NOTHING: &str = "credentials not found";

/// A helper has answered within this: some ask a person for a passphrase.
const PATIENCE: Duration = Duration::from_secs(120);

/// Credentials as helpers write and read them.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "ServerURL", default)]
    server: String,
    username: String,
    secret: String,
}

/// Asks for the credentials of a registry.
pub(super) fn get(name: &str, registry: &str) -> Result<Option<Credentials>, Error> {
    let Some(answer) = run(name, "get", registry.as_bytes(), PATIENCE)? else {
        return Ok(None);
    };
    let program = program(name);
    let entry: Entry = serde_json::from_slice(&answer).map_err(|_| Error::Answer { program })?;
    Ok(match entry.username.as_str() {
        "" => None,
        TOKEN_USER => Some(Credentials::Token(entry.secret)),
        _ => Some(Credentials::Password {
            user: entry.username,
            password: entry.secret,
        }),
    })
}

/// Gives it a password to keep.
pub(super) fn store(name: &str, registry: &str, user: &str, password: &str) -> Result<(), Error> {
    let entry = Entry {
        server: registry.to_owned(),
        username: user.to_owned(),
        secret: password.to_owned(),
    };
    run(name, "store", &serde_json::to_vec(&entry)?, PATIENCE).map(drop)
}

/// Has it forget a registry; the answer is whether it knew one.
pub(super) fn erase(name: &str, registry: &str) -> Result<bool, Error> {
    // Most erase what they do not have without a word.
    let known = run(name, "get", registry.as_bytes(), PATIENCE)?.is_some();
    let erased = run(name, "erase", registry.as_bytes(), PATIENCE)?.is_some();
    Ok(known && erased)
}

fn program(name: &str) -> String {
    format!("docker-credential-{name}")
}

/// What a helper answers; nothing if it says that it has no credentials.
fn run(name: &str, verb: &str, input: &[u8], patience: Duration) -> Result<Option<Vec<u8>>, Error> {
    if name.contains('/') {
        return Err(Error::HelperName(name.to_owned()));
    }
    let program = program(name);
    let failed = |source| Error::Run {
        program: program.clone(),
        source,
    };
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let answer = exchange(&mut child, input.to_vec(), patience);
    let ended = match &answer {
        Ok(_) => child.wait(),
        // What it has started may live on; nobody waits for that.
        Err(_) => child.kill().and_then(|()| child.wait()),
    };
    let answer = answer.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => Error::Silent {
            program: program.clone(),
            seconds: patience.as_secs(),
        },
        _ => failed(error),
    })?;
    if ended.map_err(failed)?.success() {
        return Ok(Some(answer));
    }
    let message = String::from_utf8_lossy(&answer).trim().to_owned();
    if message.contains(NOTHING) {
        return Ok(None);
    }
    Err(Error::Failed { program, message })
}

/// Writes, and reads to the end of output. The pipes have threads of their own, which end with the pipes.
fn exchange(child: &mut Child, input: Vec<u8>, patience: Duration) -> io::Result<Vec<u8>> {
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read says so by how it ends.
        thread::spawn(move || stdin.write_all(&input));
    }
    let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut answer = Vec::new();
        let read = stdout.take(limits::CREDENTIALS_BYTES).read_to_end(&mut answer);
        sender.send(read.map(|_| answer))
    });
    receiver
        .recv_timeout(patience)
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_has_a_name_and_no_path() {
        assert!(matches!(get("../../tmp/evil", "r"), Err(Error::HelperName(_))));
        assert!(matches!(
            get("is-not-installed-here", "r"),
            Err(Error::Run { .. })
        ));
    }

    #[test]
    fn a_helper_is_not_waited_for_without_end() {
        let mut child = Command::new("sleep")
            .arg("60")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let error = exchange(&mut child, vec![0; 1 << 20], Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        child.kill().and_then(|()| child.wait()).unwrap();
    }
}
