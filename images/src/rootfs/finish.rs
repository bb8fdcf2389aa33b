//! Completing a layer: what its names mean on top of the layers below, then its directories.

use std::collections::{HashMap, VecDeque};
use std::fs::File;

use super::build::{Error, Unfinished};
use super::lower::{Found, Lower, Merged, Path};
use super::path::display;
use super::tree::{Child, Directory, DirectoryId, Name, Tree, TreeError};
use super::{OPAQUE_ATTRIBUTE, default_directory};
use crate::erofs::{DirectoryChild, FileType, Inode, Metadata, Nid, Writer};
use crate::limits;

/// Bytes copied at once from a lower layer.
const CHUNK_BYTES: usize = 64 << 10;

impl Unfinished {
    /// Completes the image on top of these layers. The data may not be on the disk yet.
    pub(crate) fn finish(self, lower: &Lower) -> Result<File, Error> {
        let mut finisher = Finisher {
            writer: self.writer,
            tree: self.tree,
            bytes: self.bytes,
            lower,
            visited: Vec::new(),
            queue: VecDeque::new(),
        };
        finisher.adopt_root()?;
        if !finisher.tree.stands_alone() {
            finisher.adopt_all()?;
            finisher.prune();
            finisher.link_lower_files()?;
        }
        finisher.write()
    }
}

struct Finisher<'a> {
    writer: Writer,
    tree: Tree,
    /// Sum of the sizes of all files, with those copied from below.
    bytes: u64,
    lower: &'a Lower,
    /// Directories that need no further look, by index.
    visited: Vec<bool>,
    queue: VecDeque<Visit>,
}

/// A directory to be compared with what lies below it.
struct Visit {
    id: DirectoryId,
    path: Path,
    /// The lower layers' directory of that path; without layers if they have none.
    below: Merged,
    /// Whether this layer removes that directory, so that only its metadata may still count.
    hidden: bool,
}

impl Finisher<'_> {
    fn adopt_root(&mut self) -> Result<(), Error> {
        if self.tree.directory(DirectoryId::ROOT).metadata.is_none() {
            let metadata = self.lower.root_metadata()?;
            self.tree.directory_mut(DirectoryId::ROOT).metadata = Some(metadata);
        }
        Ok(())
    }

    /// From the root down: gives implied directories the metadata they have below, moves what lies beneath a lower
    /// layer's symbolic link, and drops whiteouts of what is not there.
    fn adopt_all(&mut self) -> Result<(), Error> {
        for path in std::mem::take(&mut self.tree.replaced) {
            let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
            if let Found::Other { inode, .. } = self.lower.lookup(&parts)?
                && inode.kind == FileType::Symlink
            {
                let name = display(&path);
                let source = TreeError::Late;
                return Err(Error::Place { name, source });
            }
        }
        let below = self.lower.root()?;
        self.resolve_opaque_root(&below)?;
        self.queue.push_back(Visit {
            id: DirectoryId::ROOT,
            path: Path::new(),
            below,
            hidden: false,
        });
        while let Some(visit) = self.queue.pop_front() {
            self.visited.resize(self.tree.directory_count(), false);
            if std::mem::replace(&mut self.visited[Tree::index(visit.id)], true) {
                continue;
            }
            self.adopt(&visit)?;
        }
        Ok(())
    }

    /// overlayfs always merges the root directories of its layers, so an opaque one is spelt out as whiteouts.
    fn resolve_opaque_root(&mut self, below: &Merged) -> Result<(), Error> {
        if std::mem::take(&mut self.tree.directory_mut(DirectoryId::ROOT).opaque) {
            let names = self.lower.list(below)?;
            let root = self.tree.directory_mut(DirectoryId::ROOT);
            root.whiteouts.extend(names.into_iter().map(Name::from));
        }
        Ok(())
    }

    fn adopt(&mut self, visit: &Visit) -> Result<(), Error> {
        let hidden = visit.hidden || self.tree.directory(visit.id).opaque;
        let whiteouts = std::mem::take(&mut self.tree.directory_mut(visit.id).whiteouts);
        let children: Vec<(Name, DirectoryId)> = subdirectories(self.tree.directory(visit.id)).collect();
        for (name, id) in children {
            let path = [visit.path.as_slice(), &[name.to_vec()]].concat();
            let found = self.lower.child(&visit.below, &name)?;
            let child = self.tree.directory_mut(id);
            let adopts = child.metadata.is_none() && !child.fresh;
            let empties = child.opaque && matches!(found, Found::Directory(_));
            let removed = whiteouts.contains(&name);
            child.needed |= empties && !removed && !hidden;
            // A directory that the layer removes and has itself is a new one in the old one's place.
            child.opaque |= removed;
            let below = match found {
                Found::Other { inode, .. } if adopts && inode.kind == FileType::Symlink => {
                    self.tree.directory_mut(visit.id).children.remove(&name);
                    self.relocate(id, &path)?;
                    continue;
                }
                // Some of what is in it belongs behind the link, some not, and they are no longer told apart.
                Found::Other { inode, .. } if child.late && inode.kind == FileType::Symlink => {
                    let name = display(&path.join(&b'/'));
                    let source = TreeError::Late;
                    return Err(Error::Place { name, source });
                }
                Found::Directory(below) => below,
                Found::Missing | Found::Other { .. } => Merged::default(),
            };
            if adopts {
                self.tree.directory_mut(id).metadata = self.lower.metadata(&below)?;
            }
            self.queue.push_back(Visit {
                id,
                path,
                below,
                hidden,
            });
        }
        for name in whiteouts {
            // Kept beside a directory of the same name too, for the case that it is pruned.
            if !hidden && !matches!(self.lower.child(&visit.below, &name)?, Found::Missing) {
                self.tree.directory_mut(visit.id).whiteouts.insert(name);
            }
        }
        Ok(())
    }

    /// Moves the content of an implied directory to where the lower layers' symbolic link of that name leads.
    fn relocate(&mut self, from: DirectoryId, path: &[Vec<u8>]) -> Result<(), Error> {
        let path: Vec<&[u8]> = path.iter().map(Vec::as_slice).collect();
        let target = self.lower.follow(&path)?;
        let to = self.directory_at(&target)?;
        self.merge(from, to, &target)?;
        let below = match self.lower.lookup(&target)? {
            Found::Directory(below) => below,
            _ => Merged::default(),
        };
        let hidden = self.tree.hides(&target);
        self.queue.push_back(Visit {
            id: to,
            path: target,
            below,
            hidden,
        });
        Ok(())
    }

    fn merge(&mut self, from: DirectoryId, to: DirectoryId, path: &[Vec<u8>]) -> Result<(), Error> {
        let mut pairs = vec![(from, to)];
        while let Some((from, to)) = pairs.pop() {
            // Looked at again with what it has now: what it had before may have been visited.
            if let Some(visited) = self.visited.get_mut(Tree::index(to)) {
                *visited = false;
            }
            let source = std::mem::take(self.tree.directory_mut(from));
            let target = self.tree.directory_mut(to);
            target.whiteouts.extend(source.whiteouts);
            target.opaque |= source.opaque;
            target.needed |= source.needed;
            if source.metadata.is_some() {
                target.metadata = source.metadata;
            }
            for (name, child) in source.children {
                match (target.children.get(&name), child) {
                    (None, _) => {
                        target.children.insert(name, child);
                    }
                    (Some(Child::Directory(to)), Child::Directory(from)) => pairs.push((from, *to)),
                    _ => {
                        return Err(Error::Conflict(display(
                            &[&path.join(&b'/'), b"/".as_slice(), &name].concat(),
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    /// A directory of this layer, made if need be with the metadata that it and its parents have below.
    fn directory_at(&mut self, path: &[Vec<u8>]) -> Result<DirectoryId, Error> {
        let place = |source| Error::Place {
            name: display(&path.join(&b'/')),
            source,
        };
        let parts: Vec<&[u8]> = path.iter().map(Vec::as_slice).collect();
        for depth in 1..=parts.len() {
            let id = self.tree.parent(&parts[..depth]).map_err(place)?;
            let directory = self.tree.directory(id);
            if directory.metadata.is_none()
                && !directory.fresh
                && let Found::Directory(below) = self.lower.lookup(&path[..depth])?
            {
                self.tree.directory_mut(id).metadata = self.lower.metadata(&below)?;
            }
        }
        self.tree.parent(&parts).map_err(place)
    }

    /// Copies the targets of hard links from the layers below, and puts the copies under all their visible names.
    fn link_lower_files(&mut self) -> Result<(), Error> {
        let targets = std::mem::take(&mut self.tree.lower_links);
        let mut copies: HashMap<(usize, Nid), (Nid, FileType)> = HashMap::new();
        let mut resolved = Vec::with_capacity(targets.len());
        for target in &targets {
            let (layer, inode, path) = self.lower_file(target)?;
            let key = (layer, inode.nid);
            let copy = match copies.get(&key) {
                Some(copy) => *copy,
                None => {
                    let copy = (self.copy(layer, &inode, target)?, inode.kind);
                    self.tree.linked.insert(copy.0);
                    if inode.links() == 1 {
                        self.keep_name(&path, copy)?;
                    }
                    copies.insert(key, copy);
                    copy
                }
            };
            resolved.push(copy);
        }
        self.keep_names(&copies)?;
        for child in self
            .tree
            .directories_mut()
            .flat_map(|directory| directory.children.values_mut())
        {
            if let Child::LowerLink(link) = child
                && let Some((nid, kind)) = resolved.get(*link)
            {
                *child = Child::Leaf {
                    nid: *nid,
                    kind: *kind,
                };
            }
        }
        Ok(())
    }

    fn lower_file(&self, target: &[u8]) -> Result<(usize, Inode, Path), Error> {
        let dangling = || Error::DanglingLink {
            target: display(target),
        };
        let parts: Vec<&[u8]> = target.split(|byte| *byte == b'/').collect();
        let (name, parents) = parts.split_last().ok_or_else(dangling)?;
        let mut path = self.lower.follow(parents)?;
        path.push(name.to_vec());
        match self.lower.lookup(&path)? {
            Found::Other { layer, inode } => Ok((layer, inode, path)),
            Found::Directory(_) => Err(Error::Place {
                name: display(target),
                source: TreeError::LinkToDirectory,
            }),
            Found::Missing => Err(dangling()),
        }
    }

    /// The other names of copied files that had several.
    fn keep_names(&mut self, copies: &HashMap<(usize, Nid), (Nid, FileType)>) -> Result<(), Error> {
        let mut layers: Vec<usize> = copies.keys().map(|(layer, _)| *layer).collect();
        layers.sort_unstable();
        layers.dedup();
        for layer in layers {
            let names = self
                .lower
                .names(layer, |nid| copies.contains_key(&(layer, nid)))?;
            for (path, nid) in names {
                let visible = match self.lower.lookup(&path)? {
                    Found::Other { layer: found, inode } => found == layer && inode.nid == nid,
                    _ => false,
                };
                if let Some(copy) = copies.get(&(layer, nid)).filter(|_| visible) {
                    self.keep_name(&path, *copy)?;
                }
            }
        }
        Ok(())
    }

    /// Puts a copy under its old name, unless this layer has something else there or removes it.
    fn keep_name(&mut self, path: &[Vec<u8>], (nid, kind): (Nid, FileType)) -> Result<(), Error> {
        if !self.tree.hides(path)
            && let Some((name, parents)) = path.split_last()
        {
            let id = self.directory_at(parents)?;
            let children = &mut self.tree.directory_mut(id).children;
            children
                .entry(name.as_slice().into())
                .or_insert(Child::Leaf { nid, kind });
        }
        Ok(())
    }

    fn copy(&mut self, layer: usize, inode: &Inode, target: &[u8]) -> Result<Nid, Error> {
        let failed = |source| Error::Copy {
            target: display(target),
            source,
        };
        let Some(reader) = self.lower.reader(layer) else {
            return Err(Error::DanglingLink {
                target: display(target),
            });
        };
        let metadata = reader.metadata(inode).map_err(failed)?;
        match inode.kind {
            FileType::Symlink => {
                let link = reader.symlink(inode).map_err(failed)?;
                Ok(self.writer.symlink(&metadata, &link)?)
            }
            FileType::File => {
                self.bytes = self.bytes.saturating_add(inode.size());
                if self.bytes > limits::UNPACKED_BYTES {
                    return Err(Error::TooLarge);
                }
                let mut sink = self.writer.file(&metadata, inode.size())?;
                let mut buffer = vec![0; CHUNK_BYTES];
                let mut position = 0;
                while position < inode.size() {
                    let count = reader.read(inode, position, &mut buffer).map_err(failed)?;
                    sink.write(&buffer[..count])?;
                    position = position.saturating_add(u64::try_from(count.max(1)).unwrap_or(u64::MAX));
                }
                Ok(sink.finish()?)
            }
            kind => Ok(self.writer.special(&metadata, kind, inode.device_numbers())?),
        }
    }

    /// Removes implied directories that only held whiteouts: no tool that unpacks would have made them.
    fn prune(&mut self) {
        let order = self.order();
        for (id, parent, name) in order.iter().rev() {
            let directory = self.tree.directory(*id);
            let empty = directory.children.is_empty() && directory.whiteouts.is_empty();
            if empty && !directory.needed {
                self.tree.directory_mut(*parent).children.remove(name);
            }
        }
        for directory in self.tree.directories_mut() {
            let Directory {
                whiteouts, children, ..
            } = directory;
            whiteouts.retain(|name| !children.contains_key(name));
        }
    }

    /// All directories but the root with parent and name, parents first.
    fn order(&self) -> Vec<(DirectoryId, DirectoryId, Name)> {
        let mut order: Vec<(DirectoryId, DirectoryId, Name)> = Vec::new();
        let mut next = 0;
        let mut parent = DirectoryId::ROOT;
        loop {
            order.extend(subdirectories(self.tree.directory(parent)).map(|(name, id)| (id, parent, name)));
            let Some((id, ..)) = order.get(next) else {
                return order;
            };
            parent = *id;
            next += 1;
        }
    }

    fn write(mut self) -> Result<File, Error> {
        self.place_whiteouts()?;
        let order: Vec<(DirectoryId, DirectoryId)> = std::iter::once((DirectoryId::ROOT, DirectoryId::ROOT))
            .chain(self.order().into_iter().map(|(id, parent, _)| (id, parent)))
            .collect();
        let mut places = Vec::new();
        places.resize_with(self.tree.directory_count(), || None);
        for (id, _) in &order {
            let directory = self.tree.directory_mut(*id);
            let mut metadata = directory.metadata.take().unwrap_or_else(default_directory);
            if directory.opaque {
                metadata.xattrs.insert(OPAQUE_ATTRIBUTE.to_vec(), b"y".to_vec());
            }
            let names = entries(directory).into_iter().map(|(name, _)| name.len());
            let place = self
                .writer
                .reserve_directory(&metadata, names, *id == DirectoryId::ROOT)?;
            places[Tree::index(*id)] = Some((place, metadata));
        }
        let nid_of = |id: DirectoryId| match places.get(Tree::index(id)) {
            Some(Some((place, _))) => place.nid(),
            _ => Nid::default(),
        };
        let mut links: HashMap<Nid, u32> = HashMap::new();
        for (id, parent) in &order {
            let Some(Some((place, metadata))) = places.get(Tree::index(*id)) else {
                continue;
            };
            let listed = entries(self.tree.directory(*id));
            let mut children = Vec::with_capacity(listed.len());
            for (name, entry) in &listed {
                let (nid, kind) = match entry {
                    Listed::This => (nid_of(*id), FileType::Directory),
                    Listed::Parent => (nid_of(*parent), FileType::Directory),
                    Listed::Child(Child::Directory(child)) => (nid_of(*child), FileType::Directory),
                    Listed::Child(Child::Leaf { nid, kind }) => (*nid, *kind),
                    Listed::Child(Child::LowerLink(_)) => continue,
                };
                if kind != FileType::Directory && self.tree.linked.contains(&nid) {
                    let count = links.entry(nid).or_default();
                    *count = count.saturating_add(1);
                }
                children.push(DirectoryChild { name, nid, kind });
            }
            self.writer.directory(place, metadata, &children)?;
        }
        for (nid, count) in links.into_iter().filter(|(_, count)| *count > 1) {
            self.writer.set_links(nid, count)?;
        }
        Ok(self.writer.finish()?)
    }

    /// Turns the whiteouts that are left into names, all of one inode, as overlayfs itself does.
    fn place_whiteouts(&mut self) -> Result<(), Error> {
        if self
            .tree
            .directories_mut()
            .all(|directory| directory.whiteouts.is_empty())
        {
            return Ok(());
        }
        let nid = self
            .writer
            .special(&Metadata::default(), FileType::CharacterDevice, (0, 0))?;
        self.tree.linked.insert(nid);
        for directory in self.tree.directories_mut() {
            for name in std::mem::take(&mut directory.whiteouts) {
                directory.children.insert(
                    name,
                    Child::Leaf {
                        nid,
                        kind: FileType::CharacterDevice,
                    },
                );
            }
        }
        Ok(())
    }
}

fn subdirectories(directory: &Directory) -> impl Iterator<Item = (Name, DirectoryId)> + '_ {
    directory.children.iter().filter_map(|(name, child)| match child {
        Child::Directory(id) => Some((name.clone(), *id)),
        _ => None,
    })
}

/// What a directory lists: EROFS stores `.` and `..` among the names, in the order of bytes.
enum Listed {
    This,
    Parent,
    Child(Child),
}

fn entries(directory: &Directory) -> Vec<(&[u8], Listed)> {
    let mut entries: Vec<(&[u8], Listed)> = directory
        .children
        .iter()
        .map(|(name, child)| (name.as_ref(), Listed::Child(*child)))
        .collect();
    for (name, listed) in [(b".".as_slice(), Listed::This), (b"..", Listed::Parent)] {
        let position = entries.partition_point(|(other, _)| *other < name);
        entries.insert(position, (name, listed));
    }
    entries
}
