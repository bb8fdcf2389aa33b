//! `rvm pause` and `unpause`.

use anyhow::Result;
use rvm_engine::Engine;

use crate::args::Pause;
use crate::output;

pub(super) fn pause(engine: &Engine, arguments: &Pause) -> Result<u8> {
    super::each(&arguments.containers, |wanted| {
        engine.pause(wanted)?;
        output::lines([wanted])
    })
}

pub(super) fn unpause(engine: &Engine, arguments: &Pause) -> Result<u8> {
    super::each(&arguments.containers, |wanted| {
        engine.unpause(wanted)?;
        output::lines([wanted])
    })
}
