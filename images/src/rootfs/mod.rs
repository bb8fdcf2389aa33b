//! From a layer's tar stream to the EROFS image that overlayfs mounts.
//!
//! [`read_layer`] passes over the stream once: file data go straight into the image, names into a [`tree::Tree`]. What
//! a layer means can depend on the layers below it, in ways that a stack of separately mounted images would otherwise
//! get wrong:
//!
//! - a directory that has no entry of its own (`usr/bin/new` alone) keeps the metadata it has below, because overlayfs
//!   shows a merged directory with the metadata of its uppermost layer;
//! - such a path may lead through a symbolic link of a lower layer (`bin -> usr/bin`);
//! - a hard link may point to a file of a lower layer: then this image holds a copy under all its visible names, as a
//!   copy-up that kept links would;
//! - a whiteout of a name that is not there below is left out: overlayfs lists it when the directory is not merged.
//!
//! So a layer is completed by [`Unfinished::finish`] with sight of the layers below. Layers for which none of this
//! matters stand alone; their image can be shared between all images that contain the layer.

mod build;
mod finish;
#[cfg(any(test, feature = "fuzzing"))]
#[expect(
    clippy::unwrap_used,
    reason = "a harness whose files cannot be made has to stop"
)]
pub(crate) mod fuzz;
mod lower;
mod path;
mod tree;

pub(crate) use build::{Error, Unfinished, read_layer};
pub(crate) use lower::Lower;

use crate::erofs::{Metadata, Xattrs};
use rvm_tar::Timestamp;

/// The attribute by which overlayfs knows a directory that hides what lies below.
const OPAQUE_ATTRIBUTE: &[u8] = b"trusted.overlay.opaque";

/// What a directory looks like that no layer describes.
pub(crate) fn default_directory() -> Metadata {
    Metadata {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        xattrs: Xattrs::new(),
    }
}

#[cfg(test)]
mod tests;
