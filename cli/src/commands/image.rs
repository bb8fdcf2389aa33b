//! `rvm image`, and the verbs on images that are short.

use anyhow::Result;
use rvm_engine::Engine;
use rvm_images::Details;
use serde::Serialize;
use serde_json::Value;

use super::{history, images, import, load, prune, pull, rmi, save};
use crate::args::{Image, ImageInspect, ImagePrune, Tag};
use crate::output;

pub(super) fn run(engine: &Engine, command: Image) -> Result<u8> {
    match command {
        Image::Ls(arguments) => images::run(engine, &arguments),
        Image::Rm(arguments) => rmi::run(engine, &arguments),
        Image::Inspect(arguments) => inspect(engine, &arguments),
        Image::History(arguments) => history::run(engine, &arguments),
        Image::Tag(arguments) => tag(engine, &arguments),
        Image::Pull(arguments) => pull::run(engine, arguments),
        Image::Load(arguments) => load::run(engine, arguments),
        Image::Save(arguments) => save::run(engine, &arguments),
        Image::Import(arguments) => import::run(engine, arguments),
        Image::Prune(arguments) => remove_unused(engine, &arguments),
    }
}

pub(super) fn tag(engine: &Engine, arguments: &Tag) -> Result<u8> {
    engine.tag(&arguments.source, &arguments.target)?;
    Ok(0)
}

fn inspect(engine: &Engine, arguments: &ImageInspect) -> Result<u8> {
    let mut documents = Vec::new();
    let code = super::each(&arguments.images, |wanted| {
        documents.push(document(engine, wanted)?);
        Ok(())
    })?;
    output::documents(arguments.format.as_ref(), &documents)?;
    Ok(code)
}

/// An image under Docker's field names.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ImageDocument {
    id: String,
    repo_tags: Vec<String>,
    repo_digests: Vec<String>,
    comment: String,
    created: Value,
    author: Value,
    config: Value,
    architecture: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    variant: Value,
    os: Value,
    size: u64,
    #[serde(rename = "RootFS")]
    root_fs: RootFs,
    /// Digest of the manifest in the store.
    manifest_digest: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RootFs {
    r#type: &'static str,
    layers: Vec<String>,
}

/// One image.
pub(super) fn document(engine: &Engine, wanted: &str) -> Result<ImageDocument> {
    let details = engine.images()?.details(wanted);
    Ok(describe(&details.map_err(rvm_engine::Error::from)?))
}

/// The same; nothing where there is no such image.
pub(super) fn document_if_there(engine: &Engine, wanted: &str) -> Result<Option<ImageDocument>> {
    match engine.images()?.details(wanted) {
        Ok(details) => Ok(Some(describe(&details))),
        Err(rvm_images::Error::NotFound(_) | rvm_images::Error::Reference(_)) => Ok(None),
        Err(error) => Err(rvm_engine::Error::from(error).into()),
    }
}

fn describe(image: &Details) -> ImageDocument {
    let field = |name: &str| image.document.get(name).cloned().unwrap_or_default();
    let newest = image.config.history().iter().flatten().next_back();
    let layers = image.layers.iter();
    ImageDocument {
        id: image.id.to_string(),
        repo_tags: image.names.clone(),
        repo_digests: image.digests.clone(),
        comment: newest
            .and_then(|entry| entry.comment().clone())
            .unwrap_or_default(),
        created: field("created"),
        author: Value::String(image.config.author().clone().unwrap_or_default()),
        config: field("config"),
        architecture: field("architecture"),
        variant: field("variant"),
        os: field("os"),
        size: layers.clone().filter_map(|layer| layer.bytes).sum(),
        root_fs: RootFs {
            r#type: "layers",
            layers: layers.map(|layer| layer.diff_id.to_string()).collect(),
        },
        manifest_digest: image.manifest.to_string(),
    }
}

fn remove_unused(engine: &Engine, arguments: &ImagePrune) -> Result<u8> {
    if !arguments.force && !is_confirmed(arguments.all)? {
        return Ok(0);
    }
    let removed = engine.prune_images(arguments.all, &|image| prune::is_chosen(&arguments.filter, image))?;
    let mut lines = prune::images_section(&removed);
    lines.push(prune::reclaimed(removed.freed_bytes));
    output::lines(lines)?;
    Ok(0)
}

fn is_confirmed(all: bool) -> Result<bool> {
    super::is_confirmed(if all {
        "all images without at least one container associated to them"
    } else {
        "all dangling images"
    })
}
