//! Whether this machine's KVM can be opened.

use std::io;

use crate::Layout;
use crate::runtime::open_kvm;

/// Why a virtual machine cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such device.
    #[error("/dev/kvm does not exist")]
    Absent,
    /// This user may not use it.
    #[error("no permission to use /dev/kvm")]
    Forbidden,
    /// It cannot be opened for another reason.
    #[error("cannot open /dev/kvm")]
    Open(#[source] io::Error),
}

impl Error {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        "`--isolation container` runs without KVM"
    }
}

/// Checks that a virtual machine can be made.
///
/// # Errors
/// As [`Error`] says.
pub fn require(_layout: &Layout) -> Result<(), Error> {
    open_kvm().map(drop).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::Absent,
        io::ErrorKind::PermissionDenied => Error::Forbidden,
        _ => Error::Open(error),
    })
}
