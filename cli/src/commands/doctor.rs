//! `rvm doctor`.

use anyhow::Result;
use rvm_engine::Engine;
use rvm_engine::doctor::{Check, Mode, examine};

use crate::args::{Doctor, Format};
use crate::output::{self, Table};

/// Exit code where a mode cannot be used.
const INCAPABLE: u8 = 1;

pub(super) fn run(engine: &Engine, arguments: &Doctor) -> Result<u8> {
    let checks = examine(engine.layout());
    match arguments.format {
        Format::Json => output::json_lines(&checks)?,
        Format::Table => table(&checks)?,
    }
    Ok(if checks.iter().all(|check| check.passed) {
        0
    } else {
        INCAPABLE
    })
}

fn table(checks: &[Check]) -> Result<()> {
    for (mode, title) in [(Mode::Vm, "VM mode"), (Mode::Container, "Container mode")] {
        let of_mode: Vec<_> = checks.iter().filter(|check| check.mode == mode).collect();
        let verdict = if of_mode.iter().all(|check| check.passed) {
            "ready"
        } else {
            "not possible"
        };
        output::lines([format!("{title}: {verdict}")])?;
        let mut table = Table::plain();
        for check in of_mode {
            table.row([
                "",
                if check.passed { "ok" } else { "MISSING" },
                check.name,
                &check.found,
            ]);
            if let Some(advice) = &check.advice {
                table.row(["", "", "", &format!("-> {advice}")]);
            }
        }
        table.print()?;
    }
    Ok(())
}
