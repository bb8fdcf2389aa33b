//! rvm's own program inside a container: [`PATH`] of one that is made with [`crate::Request::probe`].
//!
//! It comes as one more layer, below the image's, so it is there in both modes alike, read-only, and hides nothing.

pub(crate) mod outside;
mod session;
pub(crate) mod strace;

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};
use rvm_images::{Image, ProgramError, has_in_root, program_layer};

use crate::layout::{self, Asset, Layout};
use crate::names;
use crate::record::Layer;

pub use session::SessionError;
pub(crate) use session::{Finished, Probed, Session};

/// Where the program is.
pub const PATH: &str = "/.rvm-probe";

/// Why it cannot be put there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// rvm was installed without it.
    #[error(transparent)]
    Asset(#[from] layout::Error),
    /// Its layer could not be made.
    #[error("cannot make a layer of the probe")]
    Layer(#[from] ProgramError),
    /// The image has something there.
    #[error(
        "the image has a file of its own at {PATH}, where rvm's probe has to be: what it says could not be believed"
    )]
    Taken,
    /// A layer of the image could not be looked at.
    #[error("cannot look at the layer {0}")]
    Look(PathBuf, #[source] io::Error),
    /// Its layer could not be kept.
    #[error("cannot write {0}")]
    Cache(PathBuf, #[source] io::Error),
}

/// Checks that an image has nothing of its own where the probe has to be: its layers lie above, and what it has there would
/// be believed.
pub(crate) fn require_place(image: &Image) -> Result<(), Error> {
    for layer in &image.layers {
        let failed = |source| Error::Look(layer.path.clone(), source);
        if has_in_root(&layer.path, PATH.trim_start_matches('/')).map_err(failed)? {
            return Err(Error::Taken);
        }
    }
    Ok(())
}

/// The layer with the program that is installed, made where it is not there yet.
pub(crate) fn layer(layout: &Layout) -> Result<Layer, Error> {
    let program = Asset::Probe.find()?;
    let cache = layout.cache();
    let failed = |source| Error::Cache(cache.clone(), source);
    let digest = File::open(&program)
        .and_then(rvm_images::Digest::of)
        .map_err(failed)?;
    let path = cache.join(format!("probe-{}.erofs", digest.short()));
    if !path.exists() {
        let directory = File::open(&cache).map_err(failed)?;
        flock(&directory, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        // With the ending of those that the next who makes something here removes.
        let partial = cache.join(format!("probe-{}.new", names::new_id()));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&partial)
            .map_err(failed)?;
        program_layer(&program, PATH.trim_start_matches('/'), file)?;
        fs::rename(&partial, &path).map_err(failed)?;
    }
    let bytes = fs::metadata(&path).map_err(failed)?.len();
    Ok(Layer { path, bytes })
}
