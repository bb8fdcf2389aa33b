//! `rvm commit`.

use anyhow::Result;
use rvm_engine::{Commit as Request, Engine};

use crate::args::Commit;
use crate::output::{self, LoadProgress};

pub(super) fn run(engine: &Engine, arguments: Commit) -> Result<u8> {
    let request = Request {
        container: arguments.container,
        reference: arguments.reference,
        changes: arguments.change,
        author: arguments.author,
        comment: arguments.message,
        created: output::now_rfc3339(),
        pauses: arguments.pause,
    };
    let mut progress = LoadProgress::new(true);
    let made = engine.commit(&request, &mut |event| progress.update(event));
    progress.finish();
    output::lines([made?.to_string()])?;
    Ok(0)
}
