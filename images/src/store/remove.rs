//! Removing, by Docker's rules.

use super::{Entry, Error, Removed, Store, find, is_found_by_name};
use crate::Digest;
use crate::document::Descriptor;
use crate::reference::Reference;

impl Store {
    /// Removes a name, and the image with its last name; frees what nothing else refers to.
    ///
    /// Named by ID, an image loses all its names; `force` is needed if there are several. `in_use` names what keeps an
    /// image ("container 1234 is using it"): such an image is not deleted, forced or not, because its layers are
    /// mounted or will be when that container is started again.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`], [`Error::SeveralNames`], [`Error::InUse`], or if the store is
    /// damaged.
    pub fn remove(
        &self,
        reference: &str,
        in_use: &dyn Fn(&Digest) -> Option<String>,
        force: bool,
    ) -> Result<Removed, Error> {
        let lock = self.lock()?;
        let entries = self.entries()?;
        let found = find(&entries, reference)?;
        let id = found.id();
        let same_image: Vec<&Entry> = entries.iter().filter(|entry| entry.id() == id).collect();
        let by_name = is_found_by_name(found, reference);
        let goes: Vec<&Entry> = if by_name { vec![found] } else { same_image.clone() };
        if !by_name && !force && same_image.len() > 1 {
            let names: Vec<String> = same_image
                .iter()
                .filter_map(|entry| entry.reference.as_ref())
                .map(Reference::familiar)
                .collect();
            return Err(Error::SeveralNames {
                id: id.short(),
                names: names.join(", "),
            });
        }
        let deleted = goes.len() == same_image.len();
        if deleted && let Some(reason) = in_use(&id) {
            return Err(Error::InUse {
                image: reference.to_owned(),
                reason,
            });
        }
        let goes: Vec<&Descriptor> = goes.iter().map(|entry| &entry.descriptor).collect();
        let untagged = entries
            .iter()
            .filter(|entry| goes.contains(&&entry.descriptor))
            .filter_map(|entry| entry.reference.as_ref().map(Reference::familiar))
            .collect();
        let mut index = self.layout.index()?;
        index.manifests.retain(|descriptor| !goes.contains(&descriptor));
        self.layout.begin_change(&lock)?;
        self.layout.write_index(&index, &lock)?;
        let freed_bytes = self.sweep(&lock)?;
        self.layout.end_change(&lock)?;
        Ok(Removed {
            untagged,
            deleted: deleted.then_some(id).into_iter().collect(),
            freed_bytes,
        })
    }
}
