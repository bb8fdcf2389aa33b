//! `rvm completion`, the manual pages and the help of a bare `rvm`: all come from the definition of the arguments.

use std::io;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;

use crate::args::{Args, Completion, Man};

pub(super) fn help() -> Result<u8> {
    crate::output::bytes(Args::command().render_help().to_string().as_bytes())?;
    Ok(0)
}

pub(super) fn script(arguments: &Completion) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Args::command(), "rvm", &mut script);
    crate::output::bytes(&script)?;
    Ok(0)
}

pub(super) fn pages(arguments: &Man) -> Result<u8> {
    std::fs::create_dir_all(&arguments.directory)
        .and_then(|()| clap_mangen::generate_to(Args::command(), &arguments.directory))
        .map_err(io::Error::other)
        .with_context(|| format!("cannot write to {}", arguments.directory.display()))?;
    Ok(0)
}
