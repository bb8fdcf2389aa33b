//! `rvm inspect`.

use anyhow::{Result, bail};
use rvm_engine::inspect::Inspection;
use rvm_engine::{Engine, store};
use serde::Serialize;

use super::image::{self, ImageDocument};
use crate::args::{Inspect, Kind};
use crate::output;

pub(super) fn run(engine: &Engine, arguments: &Inspect) -> Result<u8> {
    let mut documents = Vec::new();
    let code = super::each(&arguments.names, |wanted| {
        documents.push(document(engine, wanted, arguments.kind)?);
        Ok(())
    })?;
    output::documents(arguments.format.as_ref(), &documents)?;
    Ok(code)
}

/// What a name stands for.
#[derive(Serialize)]
#[serde(untagged)]
enum Document {
    Container(Box<Inspection>),
    Image(Box<ImageDocument>),
}

/// A container, or an image where there is no such container.
fn document(engine: &Engine, wanted: &str, kind: Option<Kind>) -> Result<Document> {
    if kind == Some(Kind::Image) {
        return Ok(Document::Image(Box::new(image::document(engine, wanted)?)));
    }
    let inspection = match engine.inspect(wanted) {
        Err(rvm_engine::Error::Store(store::Error::NotFound(_))) if kind.is_none() => {
            let Some(document) = image::document_if_there(engine, wanted)? else {
                bail!("there is no container and no image {wanted:?}");
            };
            return Ok(Document::Image(Box::new(document)));
        }
        inspection => inspection?,
    };
    for missing in inspection.machine.iter().flat_map(|machine| &machine.missing) {
        output::complaint(&format!("{wanted}: not known: {missing}"));
    }
    Ok(Document::Container(Box::new(inspection)))
}
