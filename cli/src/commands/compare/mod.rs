//! `rvm compare`: an image in both modes, side by side, and what each difference is about.

mod pages;

use std::io::IsTerminal as _;

use anyhow::{Result, bail};
use comfy_table::{ContentArrangement, presets};
use rvm_engine::compare::{CompareError, Comparison, ROWS, Subject};
use rvm_engine::probe::SessionError;
use rvm_engine::{Engine, Error};
use serde::Serialize;

use super::pull;
use crate::args::{Compare, TableFormat};
use crate::output;
use pages::Pages;

/// Starts of each mode; the middle one is told.
const STARTS: usize = 5;

/// Instances of which the first one's memory and the last one's are told.
const INSTANCES: usize = 10;

/// Width of a table where standard output is no terminal.
const WIDTH: u16 = 120;

pub(super) fn run(engine: &Engine, arguments: Compare) -> Result<u8> {
    let pages = Pages::read(arguments.lang)?;
    if let Some(row) = &arguments.explain {
        output::lines([pages.page(row)?])?;
        return Ok(0);
    }
    let Some(image) = arguments.image else {
        bail!(
            "an image to compare is missing, or --explain with one of {}",
            ROWS.join(", ")
        );
    };
    let subject = Subject {
        image,
        limits: arguments.limits.into(),
        command: arguments.command,
        instances: INSTANCES,
        starts: STARTS,
    };
    match engine.images()?.resolve(&subject.image) {
        Err(rvm_images::Error::NotFound(_)) => pull::for_run(
            engine,
            &rvm_engine::Pull {
                image: subject.image.clone(),
                platform: None,
                verifies_tls: true,
            },
        )?,
        found => drop(found.map_err(Error::from)?),
    }
    let comparison = engine.compare(&subject, &mut |isolation, what| {
        if std::io::stderr().is_terminal() {
            output::note(&format!("{isolation}: {what}"));
        }
    });
    show(&comparison.map_err(explained)?, &pages, arguments.format)?;
    Ok(0)
}

/// With the engine's own error in the chain, which may have a hint.
fn explained(error: CompareError) -> anyhow::Error {
    match error {
        CompareError::Look {
            isolation,
            source: SessionError::Engine(source),
        } => anyhow::Error::from(*source).context(format!("cannot look at the image in a {isolation}")),
        other => other.into(),
    }
}

/// A row with its claim in words.
#[derive(Serialize)]
struct Told<'a> {
    id: &'a str,
    claim: &'a str,
    vm: &'a str,
    container: &'a str,
    evidence: &'a str,
}

#[derive(Serialize)]
struct Document<'a> {
    image: &'a str,
    host: &'a str,
    rows: Vec<Told<'a>>,
}

fn show(comparison: &Comparison, pages: &Pages, format: TableFormat) -> Result<()> {
    let rows = comparison
        .rows
        .iter()
        .map(|row| {
            Ok(Told {
                id: row.id,
                claim: pages.claim(row.id)?,
                vm: &row.vm,
                container: &row.container,
                evidence: row.evidence,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    match format {
        TableFormat::Json => output::lines([output::json_line(&Document {
            image: &comparison.image,
            host: &comparison.host,
            rows,
        })?]),
        TableFormat::Table => output::lines([table(&rows, pages)]),
    }
}

/// As wide as the terminal, with a line between rows, since their cells have several.
fn table(rows: &[Told<'_>], pages: &Pages) -> String {
    let mut table = comfy_table::Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(pages.titles());
    let size = console::Term::stdout().size_checked();
    table.set_width(size.map_or(WIDTH, |(_, columns)| columns));
    for row in rows {
        let claim = format!("{}\n{}", row.id, row.claim);
        let cells = [claim.as_str(), row.vm, row.container, row.evidence];
        table.add_row(cells.map(rvm_engine::printable));
    }
    format!("{table}\n{}", pages.footer())
}
