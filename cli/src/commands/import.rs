//! `rvm import`.

use std::io;

use anyhow::{Result, bail};
use rvm_engine::Engine;
use rvm_images::{NewImage, Source};

use crate::args::Import;
use crate::output::{self, LoadProgress};

pub(super) fn run(engine: &Engine, arguments: Import) -> Result<u8> {
    let from = arguments.file.display().to_string();
    if from.starts_with("http://") || from.starts_with("https://") {
        bail!("rvm import reads files, no URLs: `curl -L {from} | rvm import -` does both");
    }
    let layer = if from == "-" {
        Source::Stream(Box::new(io::stdin()))
    } else {
        Source::Path(arguments.file)
    };
    let new = NewImage {
        base: None,
        reference: arguments.reference,
        changes: arguments.change,
        created: output::now_rfc3339(),
        author: None,
        created_by: None,
        comment: Some(
            arguments
                .message
                .unwrap_or_else(|| format!("Imported from {from}")),
        ),
    };
    let mut progress = LoadProgress::new(true);
    let made = engine.import(&new, layer, &mut |event| progress.update(event));
    progress.finish();
    output::lines([made?.to_string()])?;
    Ok(0)
}
