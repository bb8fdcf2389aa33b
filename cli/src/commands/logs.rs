//! `rvm logs`.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result, bail};
use rvm_engine::record::Isolation;
use rvm_engine::{Engine, log};
use rvm_protocol::Stream;

use crate::args::Logs;
use crate::output;

pub(super) fn run(engine: &Engine, arguments: &Logs) -> Result<u8> {
    let (record, directory) = engine.directory(&arguments.container)?;
    if arguments.boot {
        if record.isolation == Isolation::Container {
            bail!(
                "container {} has no guest kernel: it runs on this machine's",
                record.name
            );
        }
        let console = log::console(&directory).context("cannot read the guest's console")?;
        return output::bytes(&console).map(|()| 0);
    }
    let (mut stdout, mut stderr) = (io::stdout().lock(), io::stderr().lock());
    for entry in log::read(&directory).context("cannot read the log")? {
        let entry = entry.context("cannot read the log")?;
        let written = match entry.stream {
            Stream::Stderr => stderr.write_all(&entry.bytes),
            Stream::Stdout | Stream::Stdin => stdout.write_all(&entry.bytes),
        };
        if output::reader_is_gone(&written) {
            return Ok(0);
        }
        written.context("cannot write the log")?;
    }
    stdout.flush().context("cannot write the log")?;
    Ok(0)
}
