//! `rvm images`.

use anyhow::Result;
use rvm_engine::Engine;
use rvm_images::Summary;
use serde::Serialize;

use crate::args::Images;
use crate::output::{self, Table};

/// A line of `--format json`.
#[derive(Serialize)]
struct Line {
    repository: Option<String>,
    tag: Option<String>,
    id: String,
    created: Option<String>,
    bytes: u64,
}

pub(super) fn run(engine: &Engine, arguments: &Images) -> Result<u8> {
    let images = engine.images()?.list().map_err(rvm_engine::Error::from)?;
    if arguments.quiet {
        output::lines(images.iter().map(|image| id(image, arguments.no_trunc)))?;
    } else {
        let rows: Vec<Line> = images.iter().map(line).collect();
        output::listing(&arguments.format, &rows, || table(&images, arguments.no_trunc))?;
    }
    Ok(0)
}

fn line(image: &Summary) -> Line {
    Line {
        repository: image.repository.clone(),
        tag: image.tag.clone(),
        id: image.id.to_string(),
        created: image.created.clone(),
        bytes: image.bytes,
    }
}

fn table(images: &[Summary], no_trunc: bool) -> Table {
    let mut table = Table::new(&["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]);
    for image in images {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "<none>".to_owned());
        table.row([
            or_none(&image.repository),
            or_none(&image.tag),
            id(image, no_trunc),
            image
                .created
                .as_deref()
                .map_or_else(|| "N/A".to_owned(), output::ago_rfc3339),
            output::size(image.bytes),
        ]);
    }
    table
}

fn id(image: &Summary, no_trunc: bool) -> String {
    if no_trunc {
        image.id.to_string()
    } else {
        image.id.short()
    }
}
