//! `rvm rmi`.

use anyhow::Result;
use rvm_engine::Engine;

use crate::args::Rmi;
use crate::output;

pub(super) fn run(engine: &Engine, arguments: &Rmi) -> Result<u8> {
    let images = engine.images()?;
    super::each(&arguments.images, |wanted| {
        let users = engine.users_of_images()?;
        let in_use = |id: &rvm_images::Digest| {
            let id = id.to_string();
            users
                .iter()
                .find(|(image, _)| *image == id)
                .map(|(_, name)| format!("container {name}"))
        };
        let removed = images
            .remove(wanted, &in_use, arguments.force)
            .map_err(rvm_engine::Error::from)?;
        output::lines(
            removed
                .untagged
                .iter()
                .map(|reference| format!("Untagged: {reference}")),
        )?;
        output::lines(removed.deleted.iter().map(|id| format!("Deleted: {id}")))
    })
}
