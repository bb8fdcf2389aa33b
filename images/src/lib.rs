//! Container images: references, archives, the store, and layers in the form that both isolation modes mount.
//!
//! What comes in (an archive, or what a registry sends) is verified against its digests and kept unchanged in a store that
//! is an OCI image layout. Beside it every layer is converted, straight from its tar stream, into one read-only EROFS
//! image: what the kernel mounts as a lower layer of an overlay, on the host or in a guest.
//!
//! Everything that arrives here is hostile until proven otherwise: sizes are capped, digests checked, names refused
//! when they could point elsewhere, and nothing is visible in the store before it is complete.
#![forbid(unsafe_code)]

mod archive;
mod change;
mod convert;
mod digest;
mod document;
mod erofs;
#[cfg(any(test, feature = "fuzzing"))]
#[expect(
    clippy::unwrap_used,
    reason = "a harness whose files cannot be made has to stop"
)]
pub mod fuzz;
mod image;
mod layer;
mod layout;
mod limits;
mod partial;
mod platform;
mod program;
mod reference;
mod registry;
mod rootfs;
mod store;

pub use change::{Change, ChangeError};
pub use digest::{Digest, DigestError};
pub use image::{Healthcheck, Image, LayerFile, RootDirectory};
pub use platform::{Platform, PlatformError};
pub use program::{ProgramError, archive_layer, has_in_root, program_layer};
pub use reference::{Reference, ReferenceError};
pub use registry::{Kept, LoginError, Registries, RegistryName, RegistryNameError, log_in, log_out};
pub use store::{
    ArchiveKind, Candidate, Checked, Details, Error, Fault, FetchStep, ImageUsage, LayerSize, LoadError,
    Loaded, NewImage, Progress, PullError, PullRequest, Pulled, PushError, PushRequest, Pushed, Removed,
    SaveError, SendStep, Source, Space, Store, StoreError, Summary, Usage,
};
