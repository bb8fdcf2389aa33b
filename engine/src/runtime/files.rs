//! A machine that runs no workload: its agent reads and writes the files of a container that has ended. What a guest has
//! written is parsed by guests only.

use std::os::unix::net::UnixStream;

use rvm_protocol::Purpose;

use super::boot::Guest;
use super::microvm::Error;
use super::shares::Seals;
use super::{Context, guest};

/// A machine with a container's disks. It ends when this is dropped, and with the process that started it.
pub(crate) struct FilesMachine(Option<Guest>);

impl FilesMachine {
    /// Starts it. The caller owns the container.
    pub(crate) fn boot(context: &Context<'_>) -> Result<Self, super::Error> {
        Ok(Self(Some(Guest::boot(context)?)))
    }

    /// Volumes have been filled: those that the container only reads are read-only from now on.
    pub(crate) fn seal(&mut self) {
        if let Some(guest) = &mut self.0 {
            guest.seals = Seals::default();
        }
    }

    /// Opens a connection for the files.
    pub(crate) fn open(&mut self, purpose: Purpose) -> Result<UnixStream, super::Error> {
        let guest = self.0.as_mut().ok_or(Error::Guest(guest::Error::Refused))?;
        let opened = guest.address.files(purpose);
        opened.map_err(|error| guest.explain(error).into())
    }
}

impl std::fmt::Debug for FilesMachine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("FilesMachine").finish_non_exhaustive()
    }
}

impl Drop for FilesMachine {
    fn drop(&mut self) {
        if let Some(guest) = self.0.take() {
            guest.power_off();
        }
    }
}
