//! The program `nft`, which reads the packet filter's rules and hands them to the kernel in one transaction.

use std::env;
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::fs::{MemfdFlags, memfd_create};
use serde::Deserialize;

/// Where the program is looked for after `PATH`, which does not always have these in it.
const PLACES: [&str; 2] = ["/usr/sbin/nft", "/sbin/nft"];

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
    program().map(drop)
}

/// Where the program is.
fn program() -> Result<PathBuf, NftError> {
    let path = env::var_os("PATH").unwrap_or_default();
    let along = env::split_paths(&path).map(|place| place.join("nft"));
    let mut places = along.chain(PLACES.map(PathBuf::from));
    places.find(|place| place.is_file()).ok_or(NftError::Missing)
}

/// The chains of others that drop what is forwarded unless a rule lets it through, as `FAMILY TABLE CHAIN`: rules of rvm's do
/// not overrule them.
///
/// # Errors
/// As [`NftError`] says.
pub fn dropping() -> Result<Vec<String>, NftError> {
    let listed = run(&["-j", "list", "chains"], "", Stdio::piped())?;
    dropping_in(&listed).map_err(|error| NftError::Run(error.into()))
}

fn dropping_in(listed: &[u8]) -> Result<Vec<String>, serde_json::Error> {
    let listed: Listed = serde_json::from_slice(listed)?;
    let chains = listed.nftables.into_iter().filter_map(|item| item.chain);
    let drops = chains.filter(|chain| {
        let is_theirs = chain.table != "rvm" && !chain.table.starts_with("rvm-");
        is_theirs && chain.hook.as_deref() == Some("forward") && chain.policy.as_deref() == Some("drop")
    });
    Ok(drops
        .map(
            |Chain {
                 family, table, name, ..
             }| format!("{family} {table} {name}"),
        )
        .collect())
}

/// What nft lists (libnftables-json(5)).
#[derive(Deserialize)]
struct Listed {
    nftables: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    chain: Option<Chain>,
}

#[derive(Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    policy: Option<String>,
}

/// Gives nft a script; what it did not do as a whole it did not do at all. It has the open file `lock` as long as it runs: where
/// this process is killed meanwhile, nobody else changes rules before it is done.
///
/// # Errors
/// As [`NftError`] says.
pub(crate) fn nft(script: &str, lock: &File) -> Result<(), NftError> {
    // It writes nothing for a script, so that this is a place for a descriptor.
    let lock = lock.try_clone().map_err(NftError::Run)?;
    run(&["-f", "-"], script, lock.into()).map(drop)
}

/// A file with a script. Through a pipe it might come in part, where this process is killed, and a part may be a script as well.
fn in_memory(script: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create("rvm-nft", MemfdFlags::CLOEXEC)?);
    file.write_all(script.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// Runs it; what it wrote.
fn run(arguments: &[&str], script: &str, stdout: Stdio) -> Result<Vec<u8>, NftError> {
    let child = Command::new(program()?)
        .args(arguments)
        .stdin(in_memory(script).map_err(NftError::Run)?)
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NftError::Run)?;
    let output = child.wait_with_output().map_err(NftError::Run)?;
    if output.status.success() {
        return Ok(output.stdout);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_that_drop_what_is_forwarded_are_named() {
        let chain = |table: &str, name: &str, hook: &str, policy: &str| {
            format!(
                r#"{{"chain": {{"family": "ip", "table": "{table}", "name": "{name}", "handle": 1, "type": "filter",
                   "hook": "{hook}", "prio": 0, "policy": "{policy}"}}}}"#
            )
        };
        let chains = [
            r#"{"metainfo": {"version": "1.0.6", "json_schema_version": 1}}"#.to_owned(),
            r#"{"chain": {"family": "ip", "table": "filter", "name": "DOCKER", "handle": 1}}"#.to_owned(),
            chain("filter", "FORWARD", "forward", "drop"),
            chain("filter", "INPUT", "input", "drop"),
            chain("other", "forward", "forward", "accept"),
            chain("rvm-0badcafe", "forward", "forward", "drop"),
        ];
        let listed = format!(r#"{{"nftables": [{}]}}"#, chains.join(","));
        assert_eq!(dropping_in(listed.as_bytes()).unwrap(), ["ip filter FORWARD"]);
        assert!(dropping_in(b"").is_err());
    }
}
