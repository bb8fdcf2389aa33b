//! `rvm inspect`.

use anyhow::{Context as _, Result};
use rvm_engine::Engine;
use rvm_engine::inspect::Inspection;

use crate::args::{Inspect, InspectFormat};
use crate::output;

pub(super) fn run(engine: &Engine, arguments: &Inspect) -> Result<u8> {
    let mut inspections = Vec::new();
    let code = super::each(&arguments.containers, |wanted| {
        let inspection = engine.inspect(wanted)?;
        for missing in inspection.machine.iter().flat_map(|machine| &machine.missing) {
            output::complaint(&format!("{wanted}: not known: {missing}"));
        }
        inspections.push(inspection);
        Ok(())
    })?;
    match &arguments.format {
        None => output::lines([indented(&inspections)?])?,
        Some(InspectFormat::Json) => output::json_lines(&inspections)?,
        Some(InspectFormat::Template(template)) => {
            let fill = |inspection| anyhow::Ok(template.fill(&serde_json::to_value(inspection)?)?);
            output::lines(inspections.iter().map(fill).collect::<Result<Vec<_>>>()?)?;
        }
    }
    Ok(code)
}

/// One list with all documents, as Docker shows it: four spaces for each level.
fn indented(documents: &[Inspection]) -> Result<String> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    serde::Serialize::serialize(documents, &mut serializer).context("cannot write JSON")?;
    String::from_utf8(text).context("cannot write JSON")
}
