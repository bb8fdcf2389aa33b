//! `rvm rm`.

use anyhow::Result;
use rvm_engine::Engine;

use crate::args::Rm;
use crate::output;

pub(super) fn run(engine: &Engine, arguments: &Rm) -> Result<u8> {
    super::each(&arguments.containers, |wanted| {
        engine.remove(wanted, arguments.force, arguments.volumes)?;
        output::lines([wanted])
    })
}
