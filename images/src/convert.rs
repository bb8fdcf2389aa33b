//! All layers of an image: streams in parallel, completion in order.
//!
//! A worker takes the next layer, reads its stream to the end and parks what came of it. Completing a layer needs the
//! finished images of those below, so whichever worker sees that the lowest unfinished layer is parked completes it.
//! Nobody waits, and what is held in memory meanwhile are the names of parked layers, not their data.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::Digest;
use crate::archive::LayerInput;
use crate::document::chain_ids;
use crate::erofs::{Metadata, ReadError, Reader};
use crate::layer::{self, BlobId, Compression, Task};
use crate::layout::{self, Layout, Staging, blob_name, dependent_layer, layer_name, standalone_layer};
use crate::rootfs::{self, Lower, Unfinished, default_directory};
use crate::store::Progress;

/// Threads at most: beyond this the disk is the limit, and each may hold a tree of names.
const MAX_WORKERS: usize = 4;

/// Bytes between two progress reports of a layer.
const PROGRESS_BYTES: u64 = 1 << 20;

/// Why a layer could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("layer {} of {layers} ({diff_id})", index + 1)]
    Layer {
        index: usize,
        layers: usize,
        diff_id: Digest,
        source: Box<layer::Error>,
    },
    #[error("layer {} of {layers} ({diff_id}) cannot be completed", index + 1)]
    Finish {
        index: usize,
        layers: usize,
        diff_id: Digest,
        source: Box<FinishError>,
    },
    #[error(transparent)]
    Store(#[from] layout::Error),
}

/// Why a layer could not be completed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FinishError {
    #[error(transparent)]
    Convert(#[from] rootfs::Error),
    #[error("cannot read the finished image")]
    Read(#[from] ReadError),
    #[error("cannot write the finished image")]
    Write(#[source] std::io::Error),
    #[error(transparent)]
    Store(#[from] layout::Error),
}

/// A layer that is complete, in the staging directory.
#[derive(Debug, Clone)]
pub(crate) struct Converted {
    pub(crate) blob: BlobId,
    pub(crate) compression: Compression,
}

/// Takes in every layer that the store does not have, blob and image.
pub(crate) fn convert(
    (layout, staging): (&Layout, &Staging),
    diff_ids: &[Digest],
    inputs: &[LayerInput],
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Converted>, Error> {
    let (sender, receiver) = mpsc::channel();
    let conversion = Conversion {
        staging,
        diff_ids,
        chain_ids: chain_ids(diff_ids),
        inputs,
        next: AtomicUsize::new(0),
        failed: AtomicBool::new(false),
        state: Mutex::new(State::new(layout, staging, diff_ids, inputs)?),
    };
    let workers = thread::available_parallelism()
        .map_or(1, usize::from)
        .min(MAX_WORKERS)
        .min(inputs.len());
    thread::scope(|scope| {
        for _ in 0..workers {
            let sender = sender.clone();
            let conversion = &conversion;
            scope.spawn(move || conversion.work(&sender));
        }
        // The channel ends with the last worker.
        drop(sender);
        for event in receiver {
            progress(event);
        }
    });
    let state = conversion
        .state
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    match state.error {
        Some((_, error)) => Err(error),
        None => Ok(state
            .layers
            .into_iter()
            .filter_map(|layer| layer.result)
            .collect()),
    }
}

struct Conversion<'a> {
    staging: &'a Staging,
    diff_ids: &'a [Digest],
    chain_ids: Vec<Digest>,
    inputs: &'a [LayerInput],
    /// The next layer that no worker has taken.
    next: AtomicUsize,
    failed: AtomicBool,
    state: Mutex<State>,
}

struct State {
    layers: Vec<LayerState>,
    /// Images of the layers that are complete: always the lowest ones.
    readers: Vec<Arc<Reader>>,
    /// The error of the lowest layer that has one.
    error: Option<(usize, Error)>,
}

struct LayerState {
    /// The blob in the store; none if it has to be copied there.
    blob: Option<BlobId>,
    /// The name of its image, once there is one.
    image: Option<String>,
    step: Step,
    result: Option<Converted>,
}

enum Step {
    Waiting,
    /// The stream has been read; what is left to complete, unless the image was there before.
    Parked(Option<Box<Unfinished>>),
    /// Taken out to be completed.
    Finishing,
}

impl State {
    /// Looks at what the store has already.
    fn new(
        layout: &Layout,
        staging: &Staging,
        diff_ids: &[Digest],
        inputs: &[LayerInput],
    ) -> Result<Self, layout::Error> {
        let mut layers = Vec::with_capacity(inputs.len());
        // A layer by its diff ID is right only on top of an ordinary root directory, which is known as long as all
        // images below are there.
        let mut below_is_ordinary = true;
        for ((diff_id, chain_id), input) in diff_ids.iter().zip(chain_ids(diff_ids)).zip(inputs) {
            let pin = |name: &str| staging.pin(&layout.layer_path(name), &layer_name(name));
            let (dependent, standalone) = (dependent_layer(&chain_id), standalone_layer(diff_id));
            let image = if pin(&dependent)? {
                Some(dependent)
            } else if below_is_ordinary && pin(&standalone)? {
                Some(standalone)
            } else {
                None
            };
            let root = image.as_ref().and_then(|name| root_metadata(staging, name));
            below_is_ordinary = root.as_ref().is_some_and(is_ordinary);
            let image = image.filter(|_| root.is_some());
            // An uncompressed blob is the layer itself.
            let plain = BlobId {
                digest: *diff_id,
                bytes: input.data.remaining(),
            };
            let blob = input
                .blob
                .or((input.compression == Compression::None).then_some(plain));
            let blob = match blob {
                Some(blob) if staging.pin(&layout.blob_path(&blob.digest), &blob_name(&blob.digest))? => {
                    Some(blob)
                }
                _ => None,
            };
            layers.push(LayerState {
                blob,
                image,
                step: Step::Waiting,
                result: None,
            });
        }
        Ok(Self {
            layers,
            readers: Vec::new(),
            error: None,
        })
    }
}

impl Conversion<'_> {
    fn work(&self, progress: &Sender<Progress>) {
        while !self.failed.load(Ordering::Relaxed) {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.inputs.len() {
                return;
            }
            let result = self.stream(index, progress).and_then(|()| self.complete());
            if let Err(error) = result {
                self.failed.store(true, Ordering::Relaxed);
                let mut state = self.lock();
                if state.error.as_ref().is_none_or(|(first, _)| index < *first) {
                    state.error = Some((index, error));
                }
            }
        }
    }

    /// Reads a layer's blob, unless the store has everything of it.
    fn stream(&self, index: usize, progress: &Sender<Progress>) -> Result<(), Error> {
        let input = &self.inputs[index];
        let total = input.data.remaining();
        // Nobody listening is no reason to stop.
        let report = |done| {
            let _ = progress.send(Progress::Layer {
                index,
                layers: self.inputs.len(),
                diff_id: self.diff_ids[index],
                done,
                total,
            });
        };
        let (known_blob, has_image) = {
            let state = self.lock();
            (state.layers[index].blob, state.layers[index].image.is_some())
        };
        let (blob, image) = match known_blob {
            Some(blob) if has_image => (blob, None),
            _ => self.take(index, known_blob.is_none(), !has_image, &report)?,
        };
        report(total);
        let mut state = self.lock();
        let layer = &mut state.layers[index];
        layer.result = Some(Converted {
            blob,
            compression: input.compression,
        });
        layer.step = Step::Parked(image.map(Box::new));
        Ok(())
    }

    fn take(
        &self,
        index: usize,
        wants_blob: bool,
        wants_image: bool,
        report: &dyn Fn(u64),
    ) -> Result<(BlobId, Option<Unfinished>), Error> {
        let input = &self.inputs[index];
        let blob_file = format!("{index}.blob");
        let blob = wants_blob.then(|| self.staging.create(&blob_file)).transpose()?;
        let image = wants_image
            .then(|| self.staging.create(&format!("{index}.erofs")))
            .transpose()?;
        let reported = std::cell::Cell::new(0);
        let taken = layer::take(
            input.data.clone(),
            Task {
                diff_id: self.diff_ids[index],
                blob: input.blob,
                blob_file: blob.as_ref(),
                image_file: image,
                progress: &|done| {
                    if done >= reported.get() + PROGRESS_BYTES {
                        reported.set(done);
                        report(done);
                    }
                },
            },
        )
        .map_err(|source| Error::Layer {
            index,
            layers: self.inputs.len(),
            diff_id: self.diff_ids[index],
            source: Box::new(source),
        })?;
        if wants_blob {
            self.staging.rename(&blob_file, &blob_name(&taken.blob.digest))?;
        }
        Ok((taken.blob, taken.image))
    }

    /// Completes parked layers from the lowest unfinished one upwards.
    fn complete(&self) -> Result<(), Error> {
        loop {
            let mut state = self.lock();
            let index = state.readers.len();
            let readers = state.readers.clone();
            let Some(layer) = state.layers.get_mut(index) else {
                return Ok(());
            };
            let Step::Parked(unfinished) = std::mem::replace(&mut layer.step, Step::Waiting) else {
                return Ok(());
            };
            layer.step = Step::Finishing;
            let existing = layer.image.clone();
            drop(state);
            let finished = self.finish(index, unfinished, existing, readers);
            let reader = finished.map_err(|source| Error::Finish {
                index,
                layers: self.inputs.len(),
                diff_id: self.diff_ids[index],
                source: Box::new(source),
            })?;
            self.lock().readers.push(Arc::new(reader));
        }
    }

    fn finish(
        &self,
        index: usize,
        unfinished: Option<Box<Unfinished>>,
        existing: Option<String>,
        below: Vec<Arc<Reader>>,
    ) -> Result<Reader, FinishError> {
        let file = match (unfinished, existing) {
            (Some(unfinished), _) => {
                let lower = Lower::new(below);
                let root = lower.root_metadata().map_err(rootfs::Error::from)?;
                let name = if unfinished.stands_alone() && is_ordinary(&root) {
                    standalone_layer(&self.diff_ids[index])
                } else {
                    dependent_layer(&self.chain_ids[index])
                };
                let file = unfinished.finish(&lower)?;
                file.sync_data().map_err(FinishError::Write)?;
                self.staging
                    .rename(&format!("{index}.erofs"), &layer_name(&name))?;
                file
            }
            (None, existing) => {
                let path = self.staging.path(&layer_name(&existing.unwrap_or_default()));
                std::fs::File::open(&path).map_err(layout::at("open", &path))?
            }
        };
        Ok(Reader::new(file)?)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Metadata of the root directory of a complete image; nothing if the image is damaged, so that it is made anew.
fn root_metadata(staging: &Staging, name: &str) -> Option<Metadata> {
    let file = std::fs::File::open(staging.path(&layer_name(name))).ok()?;
    let reader = Reader::new(file).ok()?;
    reader.metadata(&reader.root().ok()?).ok()
}

/// Whether an implied root directory above would look the same by default; time does not count.
fn is_ordinary(root: &Metadata) -> bool {
    *root
        == Metadata {
            mtime: root.mtime,
            ..default_directory()
        }
}
