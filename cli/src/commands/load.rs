//! `rvm load`.

use std::io;

use anyhow::Result;
use rvm_engine::Engine;
use rvm_images::Source;

use crate::args::Load;
use crate::output::{self, LoadProgress};

pub(super) fn run(engine: &Engine, arguments: Load) -> Result<u8> {
    let source = match arguments.input {
        Some(path) if path.as_os_str() != "-" => Source::Path(path),
        _ => Source::Stream(Box::new(io::stdin())),
    };
    let mut progress = LoadProgress::new(!arguments.quiet);
    let loaded = engine.load(source, &mut |event| progress.update(event))?;
    progress.finish();
    for image in loaded {
        if image.references.is_empty() {
            output::lines([format!("Loaded image ID: {}", image.id)])?;
        }
        output::lines(
            image
                .references
                .iter()
                .map(|reference| format!("Loaded image: {}", familiar(reference))),
        )?;
    }
    Ok(0)
}

/// `debian:bookworm` for `docker.io/library/debian:bookworm`.
fn familiar(reference: &str) -> &str {
    let short = reference.strip_prefix("docker.io/").unwrap_or(reference);
    short.strip_prefix("library/").unwrap_or(short)
}
