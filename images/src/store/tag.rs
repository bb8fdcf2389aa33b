//! Giving an image another name.

use super::load::set_name;
use super::{Error, Store, find};
use crate::reference::Reference;

impl Store {
    /// Gives an image a name, and takes it from the image that had it.
    ///
    /// # Errors
    /// [`Error::TagWithDigest`], [`Error::NotFound`], [`Error::Ambiguous`], or if the store is damaged.
    pub fn tag(&self, source: &str, target: &Reference) -> Result<(), Error> {
        if target.digest().is_some() {
            return Err(Error::TagWithDigest(target.familiar()));
        }
        let lock = self.lock()?;
        let entries = self.entries()?;
        let found = find(&entries, source)?;
        let mut named = found.descriptor.clone();
        let from = found.reference.as_ref();
        if !from.is_some_and(|reference| reference.same_repository(target)) {
            // Another repository has never been asked for it.
            named.forget_pulled_digest();
        }
        let mut index = self.layout.index()?;
        set_name(&mut index, &named, target);
        // One rename: there is nothing that a crash could leave half done.
        Ok(self.layout.write_index(&index, &lock)?)
    }
}
