//! `rvm-resolver`: answers the members of one network.
//!
//! `rvm-resolver serve --definition FILE --directory DIRECTORY --table NAME [--cgroup DIRECTORY]` is started by a supervisor
//! with the network's lock as standard input, and writes `ready` to standard output. `rvm-resolver sets NAME` is the process
//! beside it that changes the host's rules in the table, with the socket between the two as standard input.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use rvm_network::resolver::process::{self, Arguments};
use rvm_network::resolver::{confine, sets};

const USAGE: &str = "usage: rvm-resolver serve --definition FILE --directory DIRECTORY --table NAME \
                     [--cgroup DIRECTORY] (it is started by rvm)";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rvm-resolver: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_ref().and_then(|verb| verb.to_str()) {
        Some("serve") => serve(arguments),
        Some("sets") => change_sets(text(arguments.next())?),
        _ => bail!(USAGE),
    }
}

fn serve(mut arguments: impl Iterator<Item = OsString>) -> Result<()> {
    let (mut definition, mut directory, mut table, mut cgroup) = (None, None, None, None);
    while let Some(argument) = arguments.next() {
        let value = arguments.next();
        let path = value.clone().map(PathBuf::from);
        match argument.to_str() {
            Some("--definition") => definition = path,
            Some("--directory") => directory = path,
            Some("--table") => table = Some(text(value)?),
            Some("--cgroup") => cgroup = path,
            _ => bail!(USAGE),
        }
    }
    let arguments = Arguments {
        definition: definition.context(USAGE)?,
        directory: directory.context(USAGE)?,
        table: table.context(USAGE)?,
        cgroup,
    };
    // Whoever waits for it to be ready reads until all copies are closed, so this one's is replaced.
    let ready = io::stdout().as_fd().try_clone_to_owned()?;
    let null = File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null).context("cannot close standard output")?;
    Ok(process::run(&arguments, ready.into())?)
}

fn text(argument: Option<OsString>) -> Result<String> {
    argument.and_then(|text| text.into_string().ok()).context(USAGE)
}

fn change_sets(table: String) -> Result<()> {
    let netfilter = sets::Kernel::open(table).context("cannot reach the kernel's netfilter")?;
    confine::changing_sets()?;
    Ok(sets::serve(io::stdin().as_fd(), netfilter)?)
}
