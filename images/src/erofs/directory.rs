//! Directory content: blocks with entries in front and names behind, sorted by bytes across all blocks.

use super::format::{self, BLOCK, DIRENT_BYTES, FileType};
use super::writer::Nid;

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DirectoryChild<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) nid: Nid,
    pub(crate) kind: FileType,
}

/// A name in a directory of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DirectoryEntry {
    pub(crate) name: Vec<u8>,
    pub(crate) nid: Nid,
    pub(crate) kind: FileType,
}

/// Number of full blocks, and bytes in the last one, of a directory with names of these lengths.
pub(super) fn shape(names: impl Iterator<Item = usize>) -> (u64, usize) {
    let (mut blocks, mut used) = (0, 0);
    for name in names {
        if used + DIRENT_BYTES + name > BLOCK {
            blocks += 1;
            used = 0;
        }
        used += DIRENT_BYTES + name;
    }
    (blocks, used)
}

/// Directory blocks: entries in front, names behind; every block but the last is padded.
pub(super) fn encode(children: &[DirectoryChild<'_>]) -> Vec<u8> {
    let mut content = Vec::new();
    let mut rest = children;
    while !rest.is_empty() {
        content.resize(content.len().next_multiple_of(BLOCK), 0);
        let mut used = 0;
        let fits = rest.iter().take_while(|child| {
            used += DIRENT_BYTES + child.name.len();
            used <= BLOCK
        });
        // A name has at most 255 bytes, so at least one fits.
        let (block, later) = rest.split_at(fits.count().max(1));
        let mut name_offset = block.len() * DIRENT_BYTES;
        for child in block {
            content.extend_from_slice(&child.nid.number().to_le_bytes());
            content.extend_from_slice(&u16::try_from(name_offset).unwrap_or(u16::MAX).to_le_bytes());
            content.extend_from_slice(&[child.kind.dirent(), 0]);
            name_offset += child.name.len();
        }
        for child in block {
            content.extend_from_slice(child.name);
        }
        rest = later;
    }
    content
}

/// The entries of one block, without padding behind the last; nothing if it is malformed.
pub(super) fn decode(block: &[u8]) -> Option<Vec<DirectoryEntry>> {
    let name_offset = |index: usize| format::u16_at(block, index * DIRENT_BYTES + 8).map(usize::from);
    let count = name_offset(0)? / DIRENT_BYTES;
    let mut entries = Vec::with_capacity(count);
    for index in 0..count {
        let start = name_offset(index)?;
        let name = if index + 1 < count {
            block.get(start..name_offset(index + 1)?)?
        } else {
            // The last name ends at the block's end or before its padding.
            block.get(start..)?.split(|byte| *byte == 0).next()?
        };
        entries.push(DirectoryEntry {
            name: name.to_vec(),
            nid: Nid::new(format::u64_at(block, index * DIRENT_BYTES)?),
            kind: FileType::from_dirent(*block.get(index * DIRENT_BYTES + 10)?)?,
        });
    }
    Some(entries)
}
