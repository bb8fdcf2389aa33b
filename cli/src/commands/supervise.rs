//! `rvm supervise`: the process that owns one container.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, Result};
use rvm_engine::timeline::Timeline;
use rvm_engine::{Engine, supervisor};

use crate::args::Supervise;

pub(super) fn run(engine: &Engine, arguments: &Supervise) -> Result<u8> {
    // The command that starts a supervisor gives it a socket as standard input.
    let channel = io::stdin().as_fd().try_clone_to_owned().context("no channel")?;
    let timeline = Timeline::new(arguments.timing);
    supervisor::run(
        engine.layout(),
        &arguments.id,
        UnixStream::from(channel),
        timeline,
    )?;
    Ok(0)
}
