//! All layers of an image: streams in parallel, completion in order.
//!
//! A worker takes the next layer, reads its stream to the end and parks what came of it. Completing a layer needs the
//! finished images of those below, so whichever worker sees that the lowest unfinished layer is parked completes it.
//! Nobody waits, and what is held in memory meanwhile are the names of parked layers, not their data.

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::Digest;
use crate::archive::{LayerInput, Section};
use crate::document::chain_ids;
use crate::erofs::{Metadata, ReadError, Reader};
use crate::layer::{self, BlobId, Compression, Taken, Task};
use crate::layout::{self, Layout, Staging, blob_name, dependent_layer, layer_name, standalone_layer};
use crate::partial::{Acquired, Partial};
use crate::registry::{self, RemoteBlob};
use crate::rootfs::{self, Lower, Unfinished, default_directory};
use crate::store::{FetchStep, Progress};

/// Threads at most: beyond this the disk is the limit, and each may hold a tree of names. As many connections at most.
const MAX_WORKERS: usize = 4;

/// Where a layer's blob comes from.
pub(crate) enum Input {
    /// A file.
    Local(LayerInput),
    /// A registry.
    Remote { remote: RemoteBlob, blob: BlobId },
}

impl Input {
    /// What is known of the blob before it is read. An uncompressed one is the layer itself.
    fn blob(&self, diff_id: Digest) -> Option<BlobId> {
        match self {
            Self::Remote { blob, .. } => Some(*blob),
            Self::Local(input) => {
                let bytes = input.data.remaining();
                let plain = BlobId {
                    digest: diff_id,
                    bytes,
                };
                input
                    .blob
                    .or((input.compression == Compression::None).then_some(plain))
            }
        }
    }

    fn total(&self) -> u64 {
        match self {
            Self::Remote { blob, .. } => blob.bytes,
            Self::Local(input) => input.data.remaining(),
        }
    }
}

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
    #[error("the new layer")]
    Unknown(#[source] Box<layer::Error>),
    #[error("stopped, because another layer failed")]
    Stopped,
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
    /// Whether anything had to be read for it.
    pub(crate) is_new: bool,
}

/// Takes in every layer that the store does not have, blob and image.
pub(crate) fn convert(
    (layout, staging): (&Layout, &Staging),
    diff_ids: &[Digest],
    inputs: &[Input],
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Converted>, Error> {
    let state = State::new(layout, staging, diff_ids, inputs, true)?;
    run(state, (layout, staging), diff_ids, inputs, progress)
}

/// Makes every layer's image again, whatever the store has.
pub(crate) fn rebuild(
    (layout, staging): (&Layout, &Staging),
    diff_ids: &[Digest],
    inputs: &[Input],
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Converted>, Error> {
    let state = State::new(layout, staging, diff_ids, inputs, false)?;
    run(state, (layout, staging), diff_ids, inputs, progress)
}

fn run(
    state: State,
    (layout, staging): (&Layout, &Staging),
    diff_ids: &[Digest],
    inputs: &[Input],
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Converted>, Error> {
    let (sender, receiver) = mpsc::channel();
    let conversion = Conversion {
        layout,
        staging,
        diff_ids,
        chain_ids: chain_ids(diff_ids),
        inputs,
        next: AtomicUsize::new(0),
        failed: AtomicBool::new(false),
        state: Mutex::new(state),
    };
    // Those that wait for a network do not need a processor each.
    let is_remote = inputs.iter().any(|input| matches!(input, Input::Remote { .. }));
    let useful = if is_remote {
        MAX_WORKERS
    } else {
        thread::available_parallelism().map_or(1, usize::from)
    };
    let workers = useful.min(MAX_WORKERS).min(inputs.len());
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
    layout: &'a Layout,
    staging: &'a Staging,
    diff_ids: &'a [Digest],
    chain_ids: Vec<Digest>,
    inputs: &'a [Input],
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
    /// Looks at what the store has already; its images count with `use_images` only.
    fn new(
        layout: &Layout,
        staging: &Staging,
        diff_ids: &[Digest],
        inputs: &[Input],
        use_images: bool,
    ) -> Result<Self, layout::Error> {
        let mut layers = Vec::with_capacity(inputs.len());
        // A layer by its diff ID is right only on top of an ordinary root directory, which is known as long as all
        // images below are there.
        let mut below_is_ordinary = true;
        let pin = |name: &str| -> Result<bool, layout::Error> {
            Ok(use_images && staging.pin(&layout.layer_path(name), &layer_name(name))?)
        };
        for ((diff_id, chain_id), input) in diff_ids.iter().zip(chain_ids(diff_ids)).zip(inputs) {
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
            let blob = input.blob(*diff_id);
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
            // A layer that was stopped says nothing of the reason.
            if let Err(error) = result
                && !matches!(error, Error::Stopped)
            {
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
        let report = |step| self.report(index, step, progress);
        let (known_blob, has_image) = {
            let state = self.lock();
            (state.layers[index].blob, state.layers[index].image.is_some())
        };
        let is_new = known_blob.is_none() || !has_image;
        let (blob, image) = match (known_blob, &self.inputs[index]) {
            (Some(blob), _) if has_image => {
                report(FetchStep::Exists);
                (blob, None)
            }
            (Some(blob), Input::Remote { .. }) => (blob, self.take_pinned(index, blob, &report)?),
            (None, Input::Remote { remote, blob }) => {
                (*blob, self.fetch(index, (remote, *blob), !has_image, &report)?)
            }
            (_, Input::Local(input)) => {
                self.take(index, input, (known_blob.is_none(), !has_image), &report)?
            }
        };
        if is_new {
            report(FetchStep::Done);
        }
        let mut state = self.lock();
        let layer = &mut state.layers[index];
        layer.result = Some(Converted { blob, is_new });
        layer.step = Step::Parked(image.map(Box::new));
        Ok(())
    }

    /// Nobody listening is no reason to stop.
    fn report(&self, index: usize, step: FetchStep, progress: &Sender<Progress>) {
        let (layers, input) = (self.inputs.len(), &self.inputs[index]);
        let total = input.total();
        let event = match (input, step) {
            (Input::Remote { blob, .. }, step) => Progress::Fetch {
                index,
                layers,
                digest: blob.digest,
                step,
            },
            (Input::Local(_), step) => Progress::Layer {
                index,
                layers,
                diff_id: self.diff_ids[index],
                done: match step {
                    FetchStep::Reading { done, .. } => done,
                    _ => total,
                },
                total,
            },
        };
        let _ = progress.send(event);
    }

    /// Takes a layer from a file, to the store as well if it wants the blob.
    fn take(
        &self,
        index: usize,
        input: &LayerInput,
        (wants_blob, wants_image): (bool, bool),
        report: &dyn Fn(FetchStep),
    ) -> Result<(BlobId, Option<Unfinished>), Error> {
        let blob_file = format!("{index}.blob");
        let blob = wants_blob.then(|| self.staging.create(&blob_file)).transpose()?;
        let promised = (input.blob, blob.as_ref());
        let taken = self
            .convert(index, input.data.clone(), promised, wants_image, report)?
            .map_err(|source| self.layer_error(index, source))?;
        if wants_blob {
            self.staging.rename(&blob_file, &blob_name(&taken.blob.digest))?;
        }
        Ok((taken.blob, taken.image))
    }

    /// Makes the image of a layer whose blob the store has.
    fn take_pinned(
        &self,
        index: usize,
        blob: BlobId,
        report: &dyn Fn(FetchStep),
    ) -> Result<Option<Unfinished>, Error> {
        let path = self.staging.path(&blob_name(&blob.digest));
        let opened = std::fs::File::open(&path).and_then(Section::whole);
        let data = opened.map_err(layout::at("open", &path))?;
        let taken = self.convert(index, data, (Some(blob), None), true, report)?;
        Ok(taken.map_err(|source| self.layer_error(index, source))?.image)
    }

    /// Takes a layer from a registry, beginning with what an earlier pull has of it.
    fn fetch(
        &self,
        index: usize,
        (remote, blob): (&RemoteBlob, BlobId),
        wants_image: bool,
        report: &dyn Fn(FetchStep),
    ) -> Result<Option<Unfinished>, Error> {
        let waiting = || report(FetchStep::Waiting);
        let mut partial = match Partial::acquire(self.layout, self.staging, blob, &waiting)? {
            Acquired::Partial(partial) => partial,
            Acquired::Present if wants_image => return self.take_pinned(index, blob, report),
            Acquired::Present => return Ok(None),
        };
        let retrying = || report(FetchStep::Retrying);
        loop {
            let network = remote.read(partial.bytes(), &self.failed, &retrying);
            let data = partial.filled_from(network);
            match self.convert(index, data, (Some(blob), None), wants_image, report)? {
                Ok(taken) => {
                    partial.complete(self.layout, self.staging)?;
                    return Ok(taken.image);
                }
                // What an earlier pull left may have been damaged when the machine went down.
                Err(layer::Error::BlobDigest { .. }) if partial.bytes() > 0 => partial.clear()?,
                Err(layer::Error::Read(error)) if registry::was_stopped(&error) => {
                    return Err(Error::Stopped);
                }
                Err(error) => {
                    if error.is_about_content() {
                        partial.clear()?;
                    }
                    return Err(self.layer_error(index, error));
                }
            }
        }
    }

    /// Reads a layer from anywhere; the outer error is the store's.
    fn convert(
        &self,
        index: usize,
        data: impl Read,
        (promised, blob_file): (Option<BlobId>, Option<&std::fs::File>),
        wants_image: bool,
        report: &dyn Fn(FetchStep),
    ) -> Result<Result<Taken, layer::Error>, layout::Error> {
        let image_file = if wants_image {
            Some(self.staging.create_anew(&format!("{index}.erofs"))?)
        } else {
            None
        };
        let total = self.inputs[index].total();
        report(FetchStep::Reading { done: 0, total });
        let reported = std::cell::Cell::new(0);
        let task = Task {
            diff_id: self.diff_ids[index],
            blob: promised,
            blob_file,
            image_file,
            progress: &|done| {
                if done >= reported.get() + PROGRESS_BYTES {
                    reported.set(done);
                    report(FetchStep::Reading { done, total });
                }
            },
        };
        Ok(layer::take(data, task))
    }

    fn layer_error(&self, index: usize, source: layer::Error) -> Error {
        Error::Layer {
            index,
            layers: self.inputs.len(),
            diff_id: self.diff_ids[index],
            source: Box::new(source),
        }
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
