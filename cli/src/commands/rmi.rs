//! `rvm rmi`.

use anyhow::Result;
use rvm_engine::Engine;

use crate::args::Rmi;
use crate::output;

pub(super) fn run(engine: &Engine, arguments: &Rmi) -> Result<u8> {
    super::each(&arguments.images, |wanted| {
        let removed = engine.remove_image(wanted, arguments.force)?;
        output::lines(
            removed
                .untagged
                .iter()
                .map(|reference| format!("Untagged: {reference}")),
        )?;
        output::lines(removed.deleted.iter().map(|id| format!("Deleted: {id}")))
    })
}
