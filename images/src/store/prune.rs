//! Removing every image that nobody needs.

use std::collections::BTreeMap;

use super::{Error, Removed, Store};
use crate::Digest;
use crate::reference::Reference;

/// An image that may be removed.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// When it was made (RFC 3339).
    pub created: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Store {
    /// Removes the images without a name, or with `all` those with names too, as far as nothing uses them and
    /// `is_chosen` agrees.
    ///
    /// # Errors
    /// If the store is damaged.
    pub fn prune(
        &self,
        all: bool,
        is_chosen: &dyn Fn(&Candidate) -> bool,
        is_used: &dyn Fn(&Digest) -> bool,
    ) -> Result<Removed, Error> {
        let lock = self.lock()?;
        let entries = self.entries()?;
        let mut removed = Removed::default();
        let mut goes = Vec::new();
        for entry in &entries {
            let id = entry.id();
            let has_name = || {
                entries
                    .iter()
                    .any(|other| other.id() == id && other.reference.is_some())
            };
            if is_used(&id) || (!all && has_name()) {
                continue;
            }
            let config = self.config(entry)?.image;
            let labels = config
                .config()
                .as_ref()
                .and_then(|config| config.labels().clone());
            let candidate = Candidate {
                created: config.created().clone(),
                labels: labels.unwrap_or_default().into_iter().collect(),
            };
            if !is_chosen(&candidate) {
                continue;
            }
            removed
                .untagged
                .extend(entry.reference.as_ref().map(Reference::familiar));
            if !removed.deleted.contains(&id) {
                removed.deleted.push(id);
            }
            goes.push(&entry.descriptor);
        }
        let mut index = self.layout.index()?;
        index.manifests.retain(|descriptor| !goes.contains(&descriptor));
        self.layout.begin_change(&lock)?;
        self.layout.write_index(&index, &lock)?;
        removed.freed_bytes = self.sweep(&lock)?;
        self.layout.end_change(&lock)?;
        Ok(removed)
    }
}
