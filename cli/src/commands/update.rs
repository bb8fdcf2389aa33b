//! `rvm update`.

use anyhow::Result;
use rvm_engine::Engine;
use rvm_engine::spec::Changes;

use crate::args::Update;
use crate::output;

pub(super) fn run(engine: &Engine, arguments: Update) -> Result<u8> {
    let changes = Changes::from(arguments.limits);
    super::each(&arguments.containers, |wanted| {
        engine.update(wanted, &changes, arguments.restart)?;
        output::lines([wanted])
    })
}
