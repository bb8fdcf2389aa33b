//! `rvm history`.

use anyhow::Result;
use rvm_engine::Engine;
use rvm_images::Details;
use serde::Serialize;

use crate::args::History;
use crate::output::{self, Table};

/// Characters of a command that a listing shows.
const COMMAND_WIDTH: usize = 45;

/// A step of the making of an image, under Docker's field names.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Step {
    #[serde(rename = "ID")]
    id: String,
    created_at: String,
    created_since: String,
    created_by: String,
    size: String,
    comment: String,
}

pub(super) fn run(engine: &Engine, arguments: &History) -> Result<u8> {
    let details = engine
        .images()?
        .details(&arguments.image)
        .map_err(rvm_engine::Error::from)?;
    let steps = steps(&details, arguments);
    if arguments.quiet {
        output::lines(steps.iter().map(|step| &step.id))?;
    } else {
        output::listing(&arguments.format, &steps, || table(&steps, arguments))?;
    }
    Ok(0)
}

/// The newest first. Only that has an ID: images in between were never in this store.
fn steps(image: &Details, arguments: &History) -> Vec<Step> {
    let mut layers = image.layers.iter();
    let size = |bytes: Option<u64>| match (bytes, arguments.human) {
        (Some(bytes), true) => output::size(bytes),
        (Some(bytes), false) => bytes.to_string(),
        (None, _) => "N/A".to_owned(),
    };
    let mut steps: Vec<Step> = Vec::new();
    for entry in image.config.history().iter().flatten() {
        let bytes = if entry.empty_layer() == Some(true) {
            Some(0)
        } else {
            layers.next().and_then(|layer| layer.bytes)
        };
        let or_empty = |text: &Option<String>| rvm_engine::printable(text.as_deref().unwrap_or_default());
        let created_by = or_empty(entry.created_by());
        steps.push(Step {
            id: "<missing>".to_owned(),
            created_at: or_empty(entry.created()),
            created_since: entry
                .created()
                .as_deref()
                .map_or_else(|| "N/A".to_owned(), output::ago_rfc3339),
            created_by: if arguments.no_trunc {
                created_by
            } else {
                output::shorten(&created_by, COMMAND_WIDTH)
            },
            size: size(bytes),
            comment: or_empty(entry.comment()),
        });
    }
    // Layers of which the history says nothing.
    steps.extend(layers.map(|layer| Step {
        id: "<missing>".to_owned(),
        created_at: String::new(),
        created_since: "N/A".to_owned(),
        created_by: String::new(),
        size: size(layer.bytes),
        comment: String::new(),
    }));
    steps.reverse();
    if let Some(newest) = steps.first_mut() {
        newest.id = if arguments.no_trunc {
            image.id.to_string()
        } else {
            image.id.short()
        };
    }
    steps
}

fn table(steps: &[Step], arguments: &History) -> Table {
    let created = if arguments.human { "CREATED" } else { "CREATED AT" };
    let mut table = Table::new(&["IMAGE", created, "CREATED BY", "SIZE", "COMMENT"]);
    for step in steps {
        table.row([
            &step.id,
            if arguments.human {
                &step.created_since
            } else {
                &step.created_at
            },
            &step.created_by,
            &step.size,
            &step.comment,
        ]);
    }
    table
}
