//! The layers below one that is being completed, looked at as overlayfs would merge them.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::path::display;
use super::{OPAQUE_ATTRIBUTE, default_directory};
use crate::erofs::{FileType, Inode, Metadata, Nid, ReadError, Reader};
use crate::limits;

/// Symbolic links followed on one path: Linux's own limit (MAXSYMLINKS).
const MAX_SYMLINKS: usize = 40;

/// Why the lower layers cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read layer {layer} below it")]
    Read { layer: usize, source: ReadError },
    #[error("its path {path:?} leads through too many symbolic links of the layers below")]
    Loop { path: String },
}

/// Layers that are complete, lowest first.
#[derive(Debug, Default)]
pub(crate) struct Lower {
    layers: Vec<Arc<Reader>>,
}

/// A directory as merged: the layers that contribute to it, uppermost first. None contributing is a directory that is
/// not there.
#[derive(Debug, Clone, Default)]
pub(super) struct Merged(Vec<(usize, Inode)>);

/// Components of a path from the root.
pub(super) type Path = Vec<Vec<u8>>;

/// What a name means.
#[derive(Debug)]
pub(super) enum Found {
    Missing,
    Directory(Merged),
    Other { layer: usize, inode: Inode },
}

impl Lower {
    pub(crate) fn new(layers: Vec<Arc<Reader>>) -> Self {
        Self { layers }
    }

    /// Metadata of the root directory: the uppermost layer's, or the default.
    pub(crate) fn root_metadata(&self) -> Result<Metadata, Error> {
        let root = self.root()?;
        Ok(self.metadata(&root)?.unwrap_or_else(default_directory))
    }

    pub(super) fn reader(&self, layer: usize) -> Option<&Reader> {
        self.layers.get(layer).map(Arc::as_ref)
    }

    /// The root directory: overlayfs merges those of all layers, opaque or not.
    pub(super) fn root(&self) -> Result<Merged, Error> {
        let mut merged = Merged::default();
        for (layer, reader) in self.layers.iter().enumerate().rev() {
            let inode = reader.root().map_err(|source| Error::Read { layer, source })?;
            merged.0.push((layer, inode));
        }
        Ok(merged)
    }

    /// All names in a directory.
    pub(super) fn list(&self, directory: &Merged) -> Result<BTreeSet<Vec<u8>>, Error> {
        let mut names = BTreeSet::new();
        for (layer, inode) in &directory.0 {
            self.with(*layer, |reader| {
                for entry in reader.entries(inode) {
                    names.insert(entry?.name);
                }
                Ok(())
            })?;
        }
        for name in names.clone() {
            if matches!(self.child(directory, &name)?, Found::Missing) {
                names.remove(&name);
            }
        }
        Ok(names)
    }

    /// Metadata that the merged directory shows; none if it is not there.
    pub(super) fn metadata(&self, merged: &Merged) -> Result<Option<Metadata>, Error> {
        let Some((layer, inode)) = merged.0.first() else {
            return Ok(None);
        };
        let metadata = self.with(*layer, |reader| reader.metadata(inode))?;
        Ok(metadata.map(|mut metadata| {
            metadata.xattrs.remove(OPAQUE_ATTRIBUTE);
            metadata
        }))
    }

    pub(super) fn child(&self, parent: &Merged, name: &[u8]) -> Result<Found, Error> {
        let mut merged = Merged::default();
        for (layer, directory) in &parent.0 {
            let layer = *layer;
            let entry = self.with(layer, |reader| match reader.lookup(directory, name)? {
                Some(entry) => reader.inode(entry.nid).map(Some),
                None => Ok(None),
            })?;
            let Some(inode) = entry.flatten() else { continue };
            if inode.kind != FileType::Directory {
                // A file or a whiteout hides whatever is below it; above it there is nothing, or a directory that
                // it ends.
                if merged.0.is_empty() && !inode.is_whiteout() {
                    return Ok(Found::Other { layer, inode });
                }
                break;
            }
            let opaque = self.is_opaque(layer, &inode)?;
            merged.0.push((layer, inode));
            if opaque {
                break;
            }
        }
        Ok(if merged.0.is_empty() {
            Found::Missing
        } else {
            Found::Directory(merged)
        })
    }

    /// What is at a path, no symbolic links followed.
    pub(super) fn lookup<N: AsRef<[u8]>>(&self, path: &[N]) -> Result<Found, Error> {
        let mut current = self.root()?;
        for (depth, name) in path.iter().enumerate() {
            match self.child(&current, name.as_ref())? {
                Found::Directory(next) => current = next,
                found if depth + 1 == path.len() => return Ok(found),
                _ => return Ok(Found::Missing),
            }
        }
        Ok(if current.0.is_empty() {
            Found::Missing
        } else {
            Found::Directory(current)
        })
    }

    /// The path with every symbolic link on it followed, within the root. Components that are not there stay as they
    /// are.
    pub(super) fn follow(&self, path: &[&[u8]]) -> Result<Path, Error> {
        let too_many = || Error::Loop {
            path: display(&path.join(&b'/')),
        };
        let mut rest: Vec<Vec<u8>> = path.iter().rev().map(|name| name.to_vec()).collect();
        let mut resolved = Path::new();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    resolved.pop();
                    continue;
                }
                _ => resolved.push(name),
            }
            let Found::Other { layer, inode } = self.lookup(&resolved)? else {
                continue;
            };
            if inode.kind != FileType::Symlink {
                continue;
            }
            links += 1;
            let target = self
                .with(layer, |reader| reader.symlink(&inode))?
                .unwrap_or_default();
            resolved.pop();
            if target.starts_with(b"/") {
                resolved.clear();
            }
            rest.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
            if links > MAX_SYMLINKS || rest.len() > limits::PATH_BYTES {
                return Err(too_many());
            }
        }
        let bytes: usize = resolved.iter().map(|name| name.len() + 1).sum();
        if bytes > limits::PATH_BYTES {
            Err(too_many())
        } else {
            Ok(resolved)
        }
    }

    /// All names within a layer, as paths, of the inodes that `wanted` accepts.
    pub(super) fn names(
        &self,
        layer: usize,
        wanted: impl Fn(Nid) -> bool,
    ) -> Result<Vec<(Path, Nid)>, Error> {
        let mut found = Vec::new();
        let names = self.with(layer, |reader| {
            let mut queue = vec![(Vec::new(), reader.root()?)];
            let mut seen = HashSet::new();
            while let Some((path, directory)) = queue.pop() {
                if !seen.insert(directory.nid) {
                    return Err(ReadError::Damaged("a directory has two names"));
                }
                for entry in reader.entries(&directory) {
                    let entry = entry?;
                    let path = || [path.as_slice(), std::slice::from_ref(&entry.name)].concat();
                    if entry.kind == FileType::Directory {
                        queue.push((path(), reader.inode(entry.nid)?));
                    } else if wanted(entry.nid) {
                        found.push((path(), entry.nid));
                    }
                }
            }
            Ok(())
        });
        names.map(|_| found)
    }

    fn is_opaque(&self, layer: usize, inode: &Inode) -> Result<bool, Error> {
        let metadata = self.with(layer, |reader| reader.metadata(inode))?;
        Ok(metadata.is_some_and(|metadata| {
            metadata
                .xattrs
                .get(OPAQUE_ATTRIBUTE)
                .is_some_and(|value| value == b"y")
        }))
    }

    /// Runs a read on a layer; nothing for a layer that does not exist.
    fn with<T>(
        &self,
        layer: usize,
        read: impl FnOnce(&Reader) -> Result<T, ReadError>,
    ) -> Result<Option<T>, Error> {
        self.reader(layer)
            .map(read)
            .transpose()
            .map_err(|source| Error::Read { layer, source })
    }
}
