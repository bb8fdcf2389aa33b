//! `rvm push`.

use anyhow::{Result, bail};
use rvm_engine::{Engine, Push as Request};
use rvm_images::Reference;

use crate::args::{ProgressMode, Push};
use crate::output::{self, TransferProgress};

pub(super) fn run(engine: &Engine, arguments: &Push) -> Result<u8> {
    let reference: Reference = arguments
        .image
        .parse()
        .map_err(|error| rvm_engine::Error::from(rvm_images::Error::from(error)))?;
    if arguments.all_tags && has_tag(&arguments.image) {
        bail!("--all-tags goes with a repository, not with one tag of it");
    }
    let repository = format!("{}/{}", reference.domain(), reference.path());
    let mode = if arguments.quiet {
        ProgressMode::None
    } else {
        arguments.progress
    };
    let mut progress = TransferProgress::new(mode);
    if mode != ProgressMode::None {
        output::note(&format!("The push refers to repository [{repository}]"));
    }
    let request = Request {
        reference,
        all_tags: arguments.all_tags,
        verifies_tls: arguments.tls_verify,
    };
    let result = engine.push(&request, &mut |event| progress.update(event));
    progress.finish();
    for pushed in result? {
        let line = if arguments.quiet {
            format!("{repository}:{}", pushed.tag)
        } else {
            format!("{}: digest: {} size: {}", pushed.tag, pushed.digest, pushed.bytes)
        };
        output::lines([line])?;
    }
    Ok(0)
}

/// Whether a name has a tag or a digest that somebody has typed.
fn has_tag(name: &str) -> bool {
    name.rsplit('/')
        .next()
        .is_some_and(|last| last.contains([':', '@']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_no_tag() {
        for (name, expected) in [
            ("app", false),
            ("app:1", true),
            ("localhost:5000/app", false),
            ("localhost:5000/app:1", true),
        ] {
            assert_eq!(has_tag(name), expected, "{name}");
        }
    }
}
