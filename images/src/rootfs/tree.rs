//! The names of one layer while its tar stream is read.
//!
//! Tar's rule holds: a later entry replaces an earlier one of the same name, a directory entry for a directory that is
//! there only changes its metadata. Whiteouts are kept apart from names, because they speak of lower layers only.
//! Directories live in a list and refer to each other by index, so that no depth of nesting can exhaust the stack.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::path;
use crate::erofs::{FileType, Metadata, Nid};
use crate::limits;

/// Position of a directory in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct DirectoryId(usize);

impl DirectoryId {
    pub(super) const ROOT: Self = Self(0);
}

pub(super) type Name = Box<[u8]>;

#[derive(Debug, Default)]
pub(super) struct Directory {
    /// None as long as the directory is only implied by names below it.
    pub(super) metadata: Option<Metadata>,
    /// Hides what lower layers have in it.
    pub(super) opaque: bool,
    /// Has to stay even if the layer has no entry for it and nothing in it: it empties a directory of the lower layers.
    pub(super) needed: bool,
    /// Whether the layer has anything in it; whiteouts are nothing.
    touched: bool,
    /// First touched after this layer had removed what lower layers have there: if it is only implied it is a new one,
    /// not the lower one seen again. This is where the order of entries matters beyond replacement.
    pub(super) fresh: bool,
    /// Its own entry came after entries in it.
    pub(super) late: bool,
    pub(super) children: BTreeMap<Name, Child>,
    /// Names of lower layers that are removed.
    pub(super) whiteouts: BTreeSet<Name>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Child {
    Directory(DirectoryId),
    /// Anything else, already in the image.
    Leaf {
        nid: Nid,
        kind: FileType,
    },
    /// A hard link to a file of a lower layer: position in [`Tree::lower_links`].
    LowerLink(usize),
}

/// Why an entry has no place in the tree.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum TreeError {
    #[error("it lies beneath {0:?}, which is a symbolic link of the same layer")]
    BeneathSymlink(String),
    #[error("it lies beneath {0:?}, which is not a directory")]
    BeneathFile(String),
    #[error("it would replace the root directory")]
    Root,
    #[error("it is a hard link to a directory")]
    LinkToDirectory,
    #[error("it is a hard link to itself")]
    LinkToItself,
    #[error("it comes after names beneath it, which lie behind a symbolic link of the layers below")]
    Late,
    #[error("it is a whiteout of no name")]
    Whiteout,
    #[error("the layer has too many entries or too long names")]
    TooLarge,
}

/// The names of one layer.
#[derive(Debug)]
pub(super) struct Tree {
    directories: Vec<Directory>,
    /// Target paths of hard links that this layer does not have.
    pub(super) lower_links: Vec<Vec<u8>>,
    /// Paths of directories, once implied, that something else took the place of.
    pub(super) replaced: Vec<Vec<u8>>,
    /// Inodes that may have more than one name.
    pub(super) linked: HashSet<Nid>,
    has_whiteouts: bool,
    entries: u64,
    name_bytes: u64,
}

impl Tree {
    pub(super) fn new() -> Self {
        Self {
            directories: vec![Directory::default()],
            lower_links: Vec::new(),
            replaced: Vec::new(),
            linked: HashSet::new(),
            has_whiteouts: false,
            entries: 0,
            name_bytes: 0,
        }
    }

    pub(super) fn directory(&self, id: DirectoryId) -> &Directory {
        &self.directories[id.0]
    }

    pub(super) fn directory_mut(&mut self, id: DirectoryId) -> &mut Directory {
        &mut self.directories[id.0]
    }

    pub(super) fn directories_mut(&mut self) -> impl Iterator<Item = &mut Directory> {
        self.directories.iter_mut()
    }

    /// Number of directories ever made; ids are below it.
    pub(super) fn directory_count(&self) -> usize {
        self.directories.len()
    }

    pub(super) fn index(id: DirectoryId) -> usize {
        id.0
    }

    /// Whether the layer means the same on top of any others: no implied directory (the root excepted), no whiteout,
    /// no hard link to a file that it does not have. Opaque directories need nothing from below, the root excepted.
    pub(super) fn stands_alone(&self) -> bool {
        let implied = self
            .directories
            .iter()
            .skip(1)
            .any(|directory| directory.metadata.is_none());
        let removes = self.has_whiteouts || self.directory(DirectoryId::ROOT).opaque;
        !implied && !removes && self.lower_links.is_empty()
    }

    pub(super) fn insert_directory(&mut self, path: &[&[u8]], metadata: Metadata) -> Result<(), TreeError> {
        let attributes = metadata.xattrs.iter();
        self.count(0, attributes.map(|(name, value)| name.len() + value.len()).sum())?;
        let Some((name, parents)) = path.split_last() else {
            self.directory_mut(DirectoryId::ROOT).metadata = Some(metadata);
            return Ok(());
        };
        let parent = self.parent(parents)?;
        // A directory that takes the place of a file of this layer hides what lower layers have there, because the file
        // already did.
        let (mut replaces, mut late) = (false, false);
        match self.directory(parent).children.get(*name).copied() {
            None => {}
            Some(Child::Directory(id)) => late = self.directory(id).touched,
            Some(_) => {
                replaces = true;
                self.directory_mut(parent).children.remove(*name);
            }
        }
        let id = self.parent(path)?;
        let directory = self.directory_mut(id);
        directory.late |= late && directory.metadata.is_none();
        directory.metadata = Some(metadata);
        directory.needed = true;
        directory.opaque |= replaces;
        Ok(())
    }

    pub(super) fn insert_leaf(&mut self, path: &[&[u8]], nid: Nid, kind: FileType) -> Result<(), TreeError> {
        self.insert(path, Child::Leaf { nid, kind })
    }

    /// A hard link: another name of a leaf of this layer, or a reference to a lower one.
    pub(super) fn insert_link(&mut self, path: &[&[u8]], target: &[&[u8]]) -> Result<(), TreeError> {
        if path == target {
            return Err(TreeError::LinkToItself);
        }
        let child = match self.find(target)? {
            Some(Child::Directory(_)) => return Err(TreeError::LinkToDirectory),
            Some(Child::Leaf { nid, kind }) => {
                self.linked.insert(nid);
                Child::Leaf { nid, kind }
            }
            Some(Child::LowerLink(index)) => Child::LowerLink(index),
            None => {
                self.count(target.len(), target.iter().map(|name| name.len()).sum())?;
                self.lower_links.push(target.join(&b'/'));
                Child::LowerLink(self.lower_links.len() - 1)
            }
        };
        self.insert(path, child)
    }

    /// Removes a name of the lower layers.
    pub(super) fn whiteout(&mut self, parents: &[&[u8]], name: &[u8]) -> Result<(), TreeError> {
        if matches!(name, b"" | b"." | b"..") {
            return Err(TreeError::Whiteout);
        }
        self.count(1, name.len())?;
        self.has_whiteouts = true;
        let parent = self.walk(parents, false)?;
        self.directory_mut(parent).whiteouts.insert(name.into());
        Ok(())
    }

    /// Removes all names of the lower layers in a directory.
    pub(super) fn opaque(&mut self, path: &[&[u8]]) -> Result<(), TreeError> {
        let id = self.walk(path, false)?;
        self.directory_mut(id).opaque = true;
        Ok(())
    }

    /// What this layer has at a path; the way there must not lead through links or files of this layer.
    pub(super) fn find(&self, path: &[&[u8]]) -> Result<Option<Child>, TreeError> {
        let mut child = Child::Directory(DirectoryId::ROOT);
        for (depth, name) in path.iter().enumerate() {
            let Child::Directory(id) = child else {
                return Err(beneath(child, &path[..depth]));
            };
            match self.directory(id).children.get(*name) {
                Some(next) => child = *next,
                None => return Ok(None),
            }
        }
        Ok(Some(child))
    }

    /// The directory at a path, made with everything above it if it is not there, for an entry in it.
    pub(super) fn parent(&mut self, path: &[&[u8]]) -> Result<DirectoryId, TreeError> {
        self.walk(path, true)
    }

    fn walk(&mut self, path: &[&[u8]], touch: bool) -> Result<DirectoryId, TreeError> {
        let mut id = DirectoryId::ROOT;
        let mut removed = false;
        for (depth, name) in path.iter().enumerate() {
            let directory = self.directory(id);
            removed |= directory.opaque || directory.whiteouts.contains(*name);
            id = match directory.children.get(*name) {
                Some(Child::Directory(next)) => *next,
                Some(other) => return Err(beneath(*other, &path[..=depth])),
                None => self.new_directory(id, name)?,
            };
            let directory = self.directory_mut(id);
            if touch && !directory.touched {
                directory.touched = true;
                directory.fresh = removed;
            }
        }
        Ok(id)
    }

    /// Whether this layer removes what lower layers have at a path, or has something else in the way.
    pub(super) fn hides(&self, path: &[Vec<u8>]) -> bool {
        let mut id = DirectoryId::ROOT;
        for name in path {
            let directory = self.directory(id);
            if directory.opaque || directory.whiteouts.contains(name.as_slice()) {
                return true;
            }
            match directory.children.get(name.as_slice()) {
                Some(Child::Directory(next)) => id = *next,
                other => return other.is_some(),
            }
        }
        false
    }

    fn insert(&mut self, path: &[&[u8]], child: Child) -> Result<(), TreeError> {
        let (name, parents) = path.split_last().ok_or(TreeError::Root)?;
        self.count(1, name.len())?;
        let parent = self.parent(parents)?;
        let replaced = self.directory_mut(parent).children.insert((*name).into(), child);
        if let Some(Child::Directory(id)) = replaced
            && (self.directory(id).metadata.is_none() || self.directory(id).late)
        {
            self.count(path.len(), path.iter().map(|name| name.len()).sum())?;
            self.replaced.push(path.join(&b'/'));
        }
        Ok(())
    }

    fn new_directory(&mut self, parent: DirectoryId, name: &[u8]) -> Result<DirectoryId, TreeError> {
        self.count(limits::DIRECTORY_ENTRIES, name.len())?;
        let id = DirectoryId(self.directories.len());
        self.directories.push(Directory::default());
        self.directory_mut(parent)
            .children
            .insert(name.into(), Child::Directory(id));
        Ok(id)
    }

    fn count(&mut self, entries: usize, name_bytes: usize) -> Result<(), TreeError> {
        self.entries += u64::try_from(entries).unwrap_or(u64::MAX);
        self.name_bytes += u64::try_from(name_bytes).unwrap_or(u64::MAX);
        if self.entries > limits::LAYER_ENTRIES || self.name_bytes > limits::LAYER_NAME_BYTES {
            return Err(TreeError::TooLarge);
        }
        Ok(())
    }
}

fn beneath(child: Child, path: &[&[u8]]) -> TreeError {
    let path = path::display(&path.join(&b'/'));
    match child {
        Child::Leaf {
            kind: FileType::Symlink,
            ..
        } => TreeError::BeneathSymlink(path),
        _ => TreeError::BeneathFile(path),
    }
}
