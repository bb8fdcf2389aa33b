//! The program `nft`, which reads the packet filter's rules and hands them to the kernel in one transaction.

use std::io::{self, Write as _};
use std::process::{Command, Stdio};

/// Where the program is looked for: first along `PATH`, which a user's does not always include the others in.
const PROGRAMS: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];

/// Why the rules could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// There is no such program.
    #[error("the program nft is not installed")]
    Missing,
    /// It could not be run.
    #[error("cannot run nft")]
    Run(#[source] io::Error),
    /// It refused.
    #[error("nft could not set the rules of the networks: {0}")]
    Refused(String),
}

/// Checks that there is the program that sets rules.
///
/// # Errors
/// [`NftError::Missing`].
pub fn require_nft() -> Result<(), NftError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let along = std::env::split_paths(&path).map(|place| place.join("nft"));
    let others = PROGRAMS
        .iter()
        .map(std::path::PathBuf::from)
        .filter(|path| path.is_absolute());
    let found = along.chain(others).any(|path| path.is_file());
    found.then_some(()).ok_or(NftError::Missing)
}

/// Gives nft a script; what it did not do as a whole it did not do at all.
///
/// # Errors
/// As [`NftError`] says.
pub fn nft(script: &str) -> Result<(), NftError> {
    let start = |program: &str| {
        Command::new(program)
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
    };
    let mut found = Err(NftError::Missing);
    for program in PROGRAMS {
        match start(program) {
            Ok(child) => {
                found = Ok(child);
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(NftError::Run(error)),
        }
    }
    let mut child = found?;
    let written = child
        .stdin
        .take()
        .map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes()));
    let output = child.wait_with_output().map_err(NftError::Run)?;
    if output.status.success() {
        // A script that was not read to its end was refused.
        return written.map_err(NftError::Run);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .take(2)
        .collect();
    Err(NftError::Refused(first.join(" ")))
}
