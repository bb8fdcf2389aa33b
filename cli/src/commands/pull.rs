//! `rvm pull`, and the fetching that `rvm run` does.

use std::io::{self, Write as _};

use anyhow::Result;
use rvm_engine::{Engine, Pull as Request};
use rvm_images::{Pulled, Reference};

use crate::args::{ProgressMode, Pull};
use crate::output::{self, TransferProgress};

pub(super) fn run(engine: &Engine, arguments: Pull) -> Result<u8> {
    let mode = if arguments.quiet {
        ProgressMode::None
    } else {
        arguments.progress
    };
    let request = Request {
        image: arguments.image,
        platform: arguments.platform,
        verifies_tls: arguments.tls_verify,
    };
    let (reference, pulled) = fetch(engine, &request, mode)?;
    if arguments.quiet {
        output::lines([pulled.id.to_string()])?;
    } else {
        output::lines(summary(&reference, &pulled))?;
        output::lines([reference.to_string()])?;
    }
    Ok(0)
}

/// Fetches what a run needs. All that is said goes to standard error: standard output is the workload's.
pub(super) fn for_run(engine: &Engine, request: &Request) -> Result<()> {
    let (reference, pulled) = fetch(engine, request, ProgressMode::Auto)?;
    for line in summary(&reference, &pulled) {
        // There is nowhere to report that standard error cannot be written to.
        let _ = writeln!(io::stderr(), "{line}");
    }
    Ok(())
}

fn fetch(engine: &Engine, request: &Request, mode: ProgressMode) -> Result<(Reference, Pulled)> {
    let mut progress = TransferProgress::new(mode);
    if mode != ProgressMode::None {
        output::note(&format!("Pulling {}", request.image));
    }
    let result = engine.pull(request, &mut |event| progress.update(event));
    progress.finish();
    Ok(result?)
}

/// Docker's last words.
fn summary(reference: &Reference, pulled: &Pulled) -> [String; 2] {
    let status = if pulled.is_new {
        "Downloaded newer image for"
    } else {
        "Image is up to date for"
    };
    [
        format!("Digest: {}", pulled.digest),
        format!("Status: {status} {}", reference.familiar()),
    ]
}
