//! `rvm ps`.

use anyhow::Result;
use rvm_engine::Engine;
use rvm_engine::names::SHORT_ID;
use rvm_engine::record::{Record, State};

use crate::args::{Format, Ps};
use crate::output::{self, Table};

/// Characters of a command that a listing shows.
const COMMAND_WIDTH: usize = 24;

pub(super) fn run(engine: &Engine, arguments: &Ps) -> Result<u8> {
    let records = engine.containers()?;
    let shown: Vec<_> = records
        .into_iter()
        .filter(|record| arguments.all || matches!(record.state, State::Running { .. }))
        .collect();
    match (arguments.quiet, arguments.format) {
        (true, _) => output::lines(shown.iter().map(|record| id(record, arguments.no_trunc))),
        (false, Format::Json) => output::json_lines(&shown),
        (false, Format::Table) => table(&shown, arguments.no_trunc).print(),
    }?;
    Ok(0)
}

fn table(records: &[Record], no_trunc: bool) -> Table {
    let mut table = Table::new(&[
        "CONTAINER ID",
        "IMAGE",
        "COMMAND",
        "CREATED",
        "STATUS",
        "ISOLATION",
        "NAMES",
    ]);
    for record in records {
        // The image chose it: control characters are not for the terminal.
        let command = record.command.join(" ").escape_debug().to_string();
        table.row([
            id(record, no_trunc),
            record.image.name.clone(),
            format!(
                "\"{}\"",
                if no_trunc {
                    command
                } else {
                    output::shorten(&command, COMMAND_WIDTH)
                }
            ),
            output::ago(record.created_ms),
            status(&record.state),
            record.isolation.to_string(),
            record.name.clone(),
        ]);
    }
    table
}

fn id(record: &Record, no_trunc: bool) -> String {
    if no_trunc {
        record.id.clone()
    } else {
        record.id.chars().take(SHORT_ID).collect()
    }
}

pub(super) fn status(state: &State) -> String {
    match state {
        State::Created => "Created".to_owned(),
        State::Running { started_ms, .. } => format!("Up {}", output::since(*started_ms)),
        State::Exited(exited) => {
            let reason = if exited.out_of_memory {
                ", out of memory"
            } else {
                ""
            };
            format!(
                "Exited ({}{reason}) {}",
                exited.code,
                output::ago(exited.finished_ms)
            )
        }
    }
}
