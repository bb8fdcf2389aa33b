//! `rvm diff`.

use std::io::{self, BufWriter, Write as _};

use anyhow::{Context as _, Result};
use rvm_engine::Engine;

use crate::args::Diff;
use crate::output;

pub(super) fn run(engine: &Engine, arguments: &Diff) -> Result<u8> {
    let mut stdout = BufWriter::new(io::stdout().lock());
    for difference in engine.diff(&arguments.container)? {
        let difference = difference
            .with_context(|| format!("cannot see what container {} has changed", arguments.container))?;
        let written = writeln!(stdout, "{}", difference.line());
        if output::reader_is_gone(&written) {
            return Ok(0);
        }
        written.context("cannot write to standard output")?;
    }
    let written = stdout.flush();
    if !output::reader_is_gone(&written) {
        written.context("cannot write to standard output")?;
    }
    Ok(0)
}
