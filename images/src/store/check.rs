//! Checking everything that is in the store, and repairing what can be made again.
//!
//! A blob is what its name says or it is damaged. A layer image is compared with one that is made anew from its blob: that
//! finds every flipped bit, where a look at the structure finds those in inodes and directories only. The latter is done
//! for images whose blob is lost.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::{Entry, Error, Progress, Store};
use crate::convert::{self, Input};
use crate::document::Config;
use crate::erofs::{FileType, Nid, ReadError, Reader};
use crate::layout::{at, layer_name, remove_if_there, standalone_layer};
use crate::{Digest, layer};

/// What a check has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Number of blobs that were read.
    pub blobs: usize,
    /// Number of layer images that were read.
    pub layers: usize,
    /// What is wrong.
    pub faults: Vec<Fault>,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What is damaged: a file of the store, or an image's name or digest.
    pub what: String,
    /// In which way.
    pub reason: String,
    /// What a repair does, or has done, about it.
    pub remedy: &'static str,
}

/// The images whose documents can be used, and the digests of the others' manifests.
type Documents = (Vec<(Entry, Config)>, Vec<Digest>);

const REMADE: &str = "it is made again from its blob";
const REMOVED: &str = "it is removed: load or pull the image again";

impl Store {
    /// Reads everything. With `repair`, layer images that are damaged or missing are made again; damaged blobs, and
    /// images whose documents are damaged, are removed, so that they can be loaded or pulled again.
    ///
    /// # Errors
    /// If the store cannot be read at all.
    pub fn check(&self, repair: bool, progress: &mut dyn FnMut(Progress)) -> Result<Checked, Error> {
        let mut checked = Checked::default();
        let damaged = self.check_blobs(&mut checked)?;
        let (entries, unusable) = self.check_documents(&mut checked)?;
        let mut known = HashSet::new();
        for (entry, config) in &entries {
            self.check_image((entry, config), repair, (&mut known, &mut checked), progress)?;
        }
        let mut bad_layers = Vec::new();
        for path in self.layout.layer_files()? {
            if known.contains(&path) {
                continue;
            }
            checked.layers += 1;
            if let Err(error) = structure(&path) {
                let what = path.display().to_string();
                checked.fault(what, chain(&error), REMOVED);
                bad_layers.push(path);
            }
        }
        if repair {
            let lock = self.lock()?;
            let mut index = self.layout.index()?;
            index
                .manifests
                .retain(|descriptor| !unusable.contains(&descriptor.digest));
            // First nothing refers to them any more, then they go.
            self.layout.write_index(&index, &lock)?;
            for path in damaged.iter().chain(&bad_layers) {
                remove_if_there(path)?;
            }
        }
        Ok(checked)
    }

    /// The blobs that are not what their names say.
    fn check_blobs(&self, checked: &mut Checked) -> Result<Vec<PathBuf>, Error> {
        let mut damaged = Vec::new();
        for path in self.layout.blob_files()? {
            let file = match File::open(&path) {
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file,
            };
            let mut hashing = match file {
                Ok(file) => layer::Hashing::new(BufReader::with_capacity(layer::BUFFER_BYTES, file)),
                Err(source) => return Err(at("open", &path)(source).into()),
            };
            checked.blobs += 1;
            let read = io::copy(&mut hashing, &mut io::sink());
            let actual = hashing.finish();
            let name = path.file_name().and_then(|name| name.to_str());
            let reason = match read {
                Err(error) => error.to_string(),
                Ok(_) if name == Some(actual.hex().as_str()) => continue,
                Ok(_) => format!("it has the digest {actual}"),
            };
            checked.fault(path.display().to_string(), reason, REMOVED);
            damaged.push(path);
        }
        Ok(damaged)
    }

    /// Reads every manifest and configuration.
    fn check_documents(&self, checked: &mut Checked) -> Result<Documents, Error> {
        let (mut usable, mut unusable) = (Vec::new(), Vec::new());
        for descriptor in self.layout.index()?.manifests {
            let digest = descriptor.digest;
            let name = descriptor
                .name()
                .map_or_else(|| digest.to_string(), str::to_owned);
            let documents = self.entry(descriptor).and_then(|entry| {
                let config = self.config(&entry)?;
                Ok((entry, config))
            });
            match documents {
                Ok(documents) => usable.push(documents),
                Err(error) => {
                    checked.fault(format!("image {name}"), chain(&error), REMOVED);
                    unusable.push(digest);
                }
            }
        }
        Ok((usable, unusable))
    }

    /// Compares an image's layers with what their blobs give. `known` are the layer images that were compared already.
    fn check_image(
        &self,
        (entry, config): (&Entry, &Config),
        repair: bool,
        (known, checked): (&mut HashSet<PathBuf>, &mut Checked),
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Error> {
        let files = self.layer_files(config);
        let is_whole = files.len() == config.diff_ids.len();
        if is_whole && files.iter().all(|file| known.contains(&file.path)) {
            return Ok(());
        }
        let staging = self.staging()?;
        let rebuilt = self.layer_inputs(entry).and_then(|inputs| {
            let inputs: Vec<Input> = inputs.into_iter().map(Input::Local).collect();
            let place = (&self.layout, &staging);
            Ok(convert::rebuild(place, &config.diff_ids, &inputs, progress)?)
        });
        if let Err(error) = rebuilt {
            // Damaged blobs have been named; one that is missing has not.
            let missing =
                |layer: &&crate::document::Descriptor| !self.layout.blob_path(&layer.digest).exists();
            for layer in entry.manifest.layers.iter().filter(missing) {
                let what = self.layout.blob_path(&layer.digest).display().to_string();
                checked.fault(what, "it is missing".to_owned(), "load or pull the image again");
            }
            if checked.faults.is_empty() {
                return Err(error);
            }
            return Ok(());
        }
        for name in staging.layer_names()? {
            let (path, new) = (self.layout.layer_path(&name), staging.path(&layer_name(&name)));
            let stands_alone = config
                .diff_ids
                .iter()
                .any(|diff_id| standalone_layer(diff_id) == name);
            let same = is_same(&path, &new, stands_alone).map_err(at("read", &path))?;
            let is_first = known.insert(path.clone());
            match same {
                Some(true) => remove_if_there(&new)?,
                Some(false) if is_first => {
                    checked.fault(path.display().to_string(), "it is damaged".to_owned(), REMADE);
                }
                // A cache need not be whole.
                Some(false) | None => {}
            }
            checked.layers += usize::from(is_first && same.is_some());
        }
        if repair {
            let lock = self.lock()?;
            staging.publish(&self.layout, &lock)?;
        }
        Ok(())
    }
}

impl Checked {
    fn fault(&mut self, what: String, reason: String, remedy: &'static str) {
        self.faults.push(Fault { what, reason, remedy });
    }
}

/// Whether two layer images have the same content; nothing if the first is not there. One that `stands_alone` is shared by
/// images with other layers below; where its own says nothing of the root directory, that one's time is from below where it
/// was made first.
fn is_same(one: &Path, other: &Path, stands_alone: bool) -> io::Result<Option<bool>> {
    let one = match File::open(one) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let other = File::open(other)?;
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(Some(false));
    }
    // One that cannot be read as an image is compared to the last byte.
    let reader = Reader::new(one.try_clone()?).ok();
    let root_time = reader
        .and_then(|reader| reader.root_time())
        .filter(|_| stands_alone);
    let ignored = root_time.unwrap_or_default();
    let (mut one, mut other) = (
        BufReader::with_capacity(layer::BUFFER_BYTES, one),
        BufReader::with_capacity(layer::BUFFER_BYTES, other),
    );
    let (mut left, mut right) = ([0; 4096], [0; 4096]);
    for block in 0_u64.. {
        // Both are whole blocks.
        match (one.read_exact(&mut left), other.read_exact(&mut right)) {
            (Err(error), Err(_)) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            (Ok(()), Ok(())) => {}
            (left, right) => return left.and(right).map(|()| Some(false)),
        }
        let bytes = left.iter().zip(&right).zip(block * 4096..);
        let is_ignored = |position| ignored.iter().any(|range| range.contains(&position));
        if left != right
            && bytes
                .into_iter()
                .any(|((left, right), at)| left != right && !is_ignored(at))
        {
            return Ok(Some(false));
        }
    }
    Ok(Some(true))
}

/// Reads every inode and every directory, and the end of every file.
fn structure(path: &Path) -> Result<(), ReadError> {
    let reader = Reader::new(File::open(path).map_err(ReadError::Read)?)?;
    let (mut pending, mut seen): (Vec<Nid>, HashSet<Nid>) = (vec![reader.root()?.nid], HashSet::new());
    while let Some(nid) = pending.pop() {
        if !seen.insert(nid) {
            continue;
        }
        let inode = reader.inode(nid)?;
        reader.metadata(&inode)?;
        match inode.kind {
            FileType::Directory => {
                for entry in reader.entries(&inode) {
                    pending.push(entry?.nid);
                }
            }
            FileType::Symlink => drop(reader.symlink(&inode)?),
            FileType::File => {
                let last = inode.size().saturating_sub(1);
                reader.read(&inode, last, &mut [0])?;
            }
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo => {}
        }
    }
    Ok(())
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    let mut texts: Vec<String> = chain.map(ToString::to_string).collect();
    // A transparent error has its cause's text.
    texts.dedup();
    texts.join(": ")
}
