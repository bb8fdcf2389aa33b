//! What images take on the disk.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use super::load::blobs;
use super::{Error, Store, Summary};
use crate::Digest;
use crate::document::chain_ids;
use crate::layout::{allocated, dependent_layer, standalone_layer};

/// The store's share of the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// An entry per line of `rvm images`.
    pub images: Vec<ImageUsage>,
    /// Number of images, whatever names they have.
    pub count: usize,
    /// Number of those that a container uses.
    pub used: usize,
    /// The OCI image layout: compressed layers, configurations, manifests.
    pub blobs: Space,
    /// The EROFS images that were made from it, and can be made again.
    pub cache: Space,
    /// Number of files in the cache.
    pub cached: usize,
    /// Number of those that a container uses.
    pub cached_used: usize,
    /// Number of blobs that no pull has finished.
    pub partial: usize,
    /// Bytes of what there is of them.
    pub partial_bytes: u64,
}

/// Bytes on the disk, each file counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// All of them.
    pub bytes: u64,
    /// Those of files that no image needs which a container uses.
    pub reclaimable: u64,
}

/// One image's share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUsage {
    /// Which one.
    pub summary: Summary,
    /// Bytes of its blobs and of its part of the cache.
    pub bytes: u64,
    /// Those that no other image has.
    pub unique: u64,
}

impl Store {
    /// Measures.
    ///
    /// # Errors
    /// If the store is damaged.
    pub fn usage(&self, is_used: &dyn Fn(&Digest) -> bool) -> Result<Usage, Error> {
        let entries = self.entries()?;
        let mut files: HashMap<Digest, HashSet<PathBuf>> = HashMap::new();
        for entry in &entries {
            let diff_ids = self.config(entry)?.diff_ids;
            let names = diff_ids.iter().map(standalone_layer);
            let dependent = chain_ids(&diff_ids).into_iter().map(|id| dependent_layer(&id));
            let paths = files.entry(entry.id()).or_default();
            paths.extend(blobs(entry).map(|blob| self.layout.blob_path(&blob.digest)));
            paths.extend(names.chain(dependent).map(|name| self.layout.layer_path(&name)));
        }
        let mut owners: HashMap<&PathBuf, usize> = HashMap::new();
        for path in files.values().flatten() {
            *owners.entry(path).or_default() += 1;
        }
        let used: HashSet<&PathBuf> = files
            .iter()
            .filter(|(id, _)| is_used(id))
            .flat_map(|(_, paths)| paths)
            .collect();
        let partial = self.layout.partial_files()?;
        let mut usage = Usage {
            count: files.len(),
            used: files.keys().filter(|id| is_used(id)).count(),
            partial: partial.len(),
            partial_bytes: partial.iter().map(|path| allocated(path)).sum(),
            ..Usage::default()
        };
        for path in self.layout.blob_files()? {
            usage.blobs.add(allocated(&path), used.contains(&path));
        }
        for path in self.layout.layer_files()? {
            usage.cached += 1;
            usage.cached_used += usize::from(used.contains(&path));
            usage.cache.add(allocated(&path), used.contains(&path));
        }
        for summary in self.list()? {
            let paths = files.get(&summary.id).into_iter().flatten();
            let is_own = |path: &&PathBuf| owners.get(path).is_some_and(|count| *count == 1);
            usage.images.push(ImageUsage {
                bytes: paths.clone().map(|path| allocated(path)).sum(),
                unique: paths.filter(is_own).map(|path| allocated(path)).sum(),
                summary,
            });
        }
        Ok(usage)
    }
}

impl Space {
    fn add(&mut self, bytes: u64, is_used: bool) {
        self.bytes += bytes;
        if !is_used {
            self.reclaimable += bytes;
        }
    }
}
