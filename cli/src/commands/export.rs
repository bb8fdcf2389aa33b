//! `rvm export`.

use std::io;

use anyhow::{Context as _, Result};
use rvm_engine::Engine;

use super::save::to_file;
use crate::args::Export;

pub(super) fn run(engine: &Engine, arguments: &Export) -> Result<u8> {
    to_file(arguments.output.as_deref(), |output| {
        let mut archive = engine.export(&arguments.container)?;
        io::copy(&mut archive, output)
            .and_then(|_| output.flush())
            .with_context(|| format!("cannot export container {}", arguments.container))
    })?;
    Ok(0)
}
