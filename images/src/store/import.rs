//! New images: a layer that nobody has described, alone or on top of those of another image.

use std::fs::File;
use std::io::{self, Read, Write};

use serde_json::{Map, Value, json};

use super::load::Prepared;
use super::{Error, Progress, Source, Store, find};
use crate::archive::{self, LayerInput, Section};
use crate::change::Change;
use crate::convert::{self, Input};
use crate::document::{self, Descriptor, MEDIA_MANIFEST, Manifest};
use crate::layer;
use crate::layout::Staging;
use crate::reference::Reference;
use crate::{Digest, limits};

/// An image to be made.
#[derive(Debug, Clone)]
pub struct NewImage<'a> {
    /// ID or name of the image below; none for an image of one layer.
    pub base: Option<&'a str>,
    /// Its name.
    pub reference: Option<Reference>,
    /// Changes of the configuration, in this order.
    pub changes: Vec<Change>,
    /// When it is made (RFC 3339).
    pub created: String,
    /// Who made it.
    pub author: Option<String>,
    /// What its history says that was done.
    pub created_by: Option<String>,
    /// What its history says about that.
    pub comment: Option<String>,
}

/// The configuration and the layers of an image, lowest first.
type Base = (Map<String, Value>, Vec<(LayerInput, Digest)>);

impl Store {
    /// Makes an image whose uppermost layer is a tar stream, plain or compressed; the answer is its ID. On any error
    /// nothing of it is visible.
    ///
    /// # Errors
    /// [`Error::Make`] says what is wrong with the layer; [`Error::NotFound`] of the base.
    pub fn make(
        &self,
        new: &NewImage<'_>,
        layer: Source,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Digest, Error> {
        self.stack(new, layer, progress).map_err(|error| match error {
            Error::Load(source) => Error::Make(source),
            other => other,
        })
    }

    fn stack(
        &self,
        new: &NewImage<'_>,
        layer: Source,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Digest, Error> {
        let staging = self.staging()?;
        let (mut document, mut layers) = match new.base {
            Some(base) => self.base(base)?,
            None => (empty(), Vec::new()),
        };
        let data = open(layer, &staging, progress)?;
        let (blob, diff_id) =
            layer::identify(data.clone()).map_err(|source| convert::Error::Unknown(Box::new(source)))?;
        layers.push((LayerInput::new(data, Some(blob))?, diff_id));
        if layers.len() > limits::LAYERS {
            let count = layers.len();
            return Err(document::Error::Layers { count }.into());
        }
        let (inputs, diff_ids): (Vec<LayerInput>, Vec<Digest>) = layers.into_iter().unzip();
        let compressions: Vec<_> = inputs.iter().map(|input| input.compression).collect();
        let inputs: Vec<Input> = inputs.into_iter().map(Input::Local).collect();
        let layers = convert::convert((&self.layout, &staging), &diff_ids, &inputs, progress)?;
        let blobs: Vec<_> = layers.iter().map(|layer| layer.blob).zip(compressions).collect();
        describe(&mut document, new, &diff_ids);
        let config = staging.add_blob(&document::to_bytes(&document)?)?;
        let manifest = staging.add_blob(&document::to_bytes(&Manifest::generate(config, &blobs))?)?;
        let prepared = Prepared {
            id: config.digest,
            manifest: Descriptor::new(MEDIA_MANIFEST, manifest),
            references: new.reference.iter().cloned().collect(),
        };
        self.publish(&staging, &[prepared])?;
        Ok(config.digest)
    }

    /// The image below.
    fn base(&self, name: &str) -> Result<Base, Error> {
        let entries = self.entries()?;
        let entry = find(&entries, name)?;
        let bytes = self.layout.read_blob(entry.manifest.config.blob())?;
        let diff_ids = self.config(entry)?.diff_ids;
        let layers = self.layer_inputs(entry)?.into_iter().zip(diff_ids).collect();
        Ok((document::parse(&bytes)?, layers))
    }
}

/// A layer that can be read at any place: what can be read once is copied to a temporary file, as it is.
fn open(
    layer: Source,
    staging: &Staging,
    progress: &mut dyn FnMut(Progress),
) -> Result<Section, archive::Error> {
    let mut stream: Box<dyn Read> = match layer {
        Source::Path(path) => {
            let opening = |source| archive::Error::Open {
                path: path.clone(),
                source,
            };
            let file = File::open(&path).map_err(opening)?;
            if file.metadata().map_err(opening)?.is_file() {
                return Section::whole(file).map_err(opening);
            }
            Box::new(file)
        }
        Source::Stream(stream) => stream,
    };
    let mut file = staging.scratch()?;
    let mut chunk = vec![0; layer::BUFFER_BYTES];
    let mut bytes = 0_u64;
    loop {
        let count = match stream.read(&mut chunk) {
            Ok(0) => return Section::whole(file).map_err(archive::Error::Read),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(archive::Error::Read(error)),
        };
        file.write_all(&chunk[..count]).map_err(archive::Error::Spool)?;
        bytes = bytes.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        if bytes > limits::UNPACKED_BYTES {
            let limit = limits::UNPACKED_BYTES;
            let name = "the layer".to_owned();
            return Err(archive::Error::TooLarge { name, bytes, limit });
        }
        progress(Progress::Spooling { bytes });
    }
}

/// The configuration of an image that has none yet.
fn empty() -> Map<String, Value> {
    let mut document = Map::new();
    document.insert("architecture".to_owned(), json!("amd64"));
    document.insert("os".to_owned(), json!("linux"));
    document
}

/// Puts what is new into a configuration; everything else stays as it is.
fn describe(document: &mut Map<String, Value>, new: &NewImage<'_>, diff_ids: &[Digest]) {
    let mut config = match document.get("config") {
        Some(Value::Object(config)) => config.clone(),
        _ => Map::new(),
    };
    for change in &new.changes {
        change.apply(&mut config);
    }
    let mut entry = Map::new();
    entry.insert("created".to_owned(), json!(new.created));
    for (key, value) in [
        ("author", &new.author),
        ("created_by", &new.created_by),
        ("comment", &new.comment),
    ] {
        if let Some(value) = value {
            entry.insert(key.to_owned(), json!(value));
        }
    }
    let mut history = match document.get("history") {
        Some(Value::Array(history)) => history.clone(),
        _ => Vec::new(),
    };
    history.push(entry.into());
    if let Some(author) = &new.author {
        document.insert("author".to_owned(), json!(author));
    }
    document.insert("created".to_owned(), json!(new.created));
    document.insert("config".to_owned(), config.into());
    document.insert("history".to_owned(), history.into());
    let rootfs = json!({"type": "layers", "diff_ids": diff_ids});
    document.insert("rootfs".to_owned(), rootfs);
}
