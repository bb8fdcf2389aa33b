//! Layers under attack: what is converted must be an image that can be read back whole, and no larger than what it was
//! made from accounts for.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use super::lower::{Found, Lower};
use super::{OPAQUE_ATTRIBUTE, read_layer};
use crate::erofs::{FileType, Inode, Nid, Reader};
use crate::fuzz::{scratch_file, with_checksums};
use crate::limits;
use rvm_tar::{self as tar, BLOCK};

/// Bytes on the disk for each byte of a layer: a long name is some two thousand directories, each of which costs an inode and
/// its two entries.
const GROWTH: u64 = 64;
/// Bytes on the disk whatever a layer has.
const BASE: u64 = 256 << 10;

/// A single layer: any bytes as a tar stream.
pub(crate) fn layer(data: &[u8]) {
    let stream = with_checksums(data);
    let nothing_below = Lower::default();
    let Some(file) = convert(stream.as_slice(), &nothing_below) else {
        return;
    };
    let bytes = u64::try_from(stream.len()).unwrap();
    assert!(file.metadata().unwrap().blocks() * 512 <= BASE + bytes * GROWTH);
    let reader = Reader::new(file.try_clone().unwrap()).unwrap();
    examine(&reader);
    // The same stream in other pieces is the same image.
    let again = convert(Pieces(&stream), &nothing_below).unwrap();
    assert!(equal(&file, &again));
}

/// Layers on top of each other, drawn from few names so that they collide.
pub(crate) fn stack(data: &[u8]) {
    let mut layers: Vec<Arc<Reader>> = Vec::new();
    for records in data.split(|byte| *byte == 0xff).take(4) {
        let mut stream = Vec::new();
        for record in records.chunks(RECORD) {
            let mut whole = [0; RECORD];
            whole[..record.len()].copy_from_slice(record);
            entry(&mut stream, whole);
        }
        let below = Lower::new(layers.clone());
        let Some(file) = convert(with_checksums(&stream).as_slice(), &below) else {
            break;
        };
        let reader = Reader::new(file).unwrap();
        examine(&reader);
        layers.push(Arc::new(reader));
        walk(&Lower::new(layers.clone()));
    }
}

/// The image, unless the stream is refused.
fn convert(stream: impl Read, below: &Lower) -> Option<File> {
    let mut reader = tar::Reader::new(tar::Forward(stream));
    let unfinished = read_layer(&mut reader, scratch_file()).ok()?;
    unfinished.finish(below).ok()
}

/// Gives what it has in small pieces.
struct Pieces<'a>(&'a [u8]);

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(333);
        self.0.read(&mut buffer[..count])
    }
}

/// Whether two images have the same bytes; of large ones, which are nearly all holes, the beginning.
fn equal(one: &File, other: &File) -> bool {
    let length = one.metadata().unwrap().len();
    let content = |file: &File| {
        let mut bytes = vec![0; usize::try_from(length.min(128 << 10)).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    length == other.metadata().unwrap().len() && content(one) == content(other)
}

/// Reads all of an image, and checks what every image keeps to.
fn examine(reader: &Reader) {
    let mut links: HashMap<Nid, u32> = HashMap::new();
    let mut others: HashMap<Nid, Inode> = HashMap::new();
    let mut directories = HashSet::new();
    let mut pending = vec![reader.root().unwrap()];
    let mut entries = 0_u64;
    while let Some(directory) = pending.pop() {
        assert!(directories.insert(directory.nid), "a directory has two names");
        attributes(reader, &directory);
        let mut subdirectories = 2;
        let mut last: Option<Vec<u8>> = None;
        for entry in reader.entries(&directory) {
            let entry = entry.unwrap();
            entries += 1;
            let name = entry.name.as_slice();
            assert!(!name.is_empty() && name.len() <= limits::NAME_BYTES);
            assert!(!name.contains(&0) && !name.contains(&b'/') && name != b"." && name != b"..");
            assert!(
                last.is_none_or(|last| last.as_slice() < name),
                "names out of order"
            );
            last = Some(name.to_vec());
            assert_eq!(reader.lookup(&directory, name).unwrap().as_ref(), Some(&entry));
            let inode = reader.inode(entry.nid).unwrap();
            assert_eq!(inode.kind, entry.kind);
            if inode.kind == FileType::Directory {
                subdirectories += 1;
                pending.push(inode);
            } else {
                *links.entry(inode.nid).or_default() += 1;
                others.insert(inode.nid, inode);
            }
        }
        assert_eq!(directory.links(), subdirectories);
    }
    let mut bytes = 0_u64;
    for (nid, inode) in others {
        assert_eq!(Some(&inode.links()), links.get(&nid));
        attributes(reader, &inode);
        content(reader, &inode);
        bytes += inode.size();
    }
    assert!(bytes <= limits::UNPACKED_BYTES && entries <= limits::LAYER_ENTRIES);
}

fn attributes(reader: &Reader, inode: &Inode) {
    let metadata = reader.metadata(inode).unwrap();
    let steers = |name: &[u8]| name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    for (name, value) in &metadata.xattrs {
        let may_be_opaque = inode.kind == FileType::Directory && name == OPAQUE_ATTRIBUTE && value == b"y";
        assert!(may_be_opaque || !steers(name));
    }
}

/// Both ends of what a file has can be read, and nothing behind them.
fn content(reader: &Reader, inode: &Inode) {
    match inode.kind {
        FileType::Symlink => assert!(!reader.symlink(inode).unwrap().is_empty()),
        FileType::File => {
            let mut buffer = [0; 6000];
            let length = u64::try_from(buffer.len()).unwrap();
            for position in [0, inode.size().saturating_sub(length), inode.size()] {
                let expected = (inode.size() - position).min(length);
                let count = reader.read(inode, position, &mut buffer).unwrap();
                assert_eq!(u64::try_from(count).unwrap(), expected);
            }
        }
        FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo => {}
        FileType::Directory => unreachable!("directories are looked at elsewhere"),
    }
}

/// Sees the merged tree to its end.
fn walk(layers: &Lower) {
    let mut pending = vec![layers.root().unwrap()];
    while let Some(directory) = pending.pop() {
        layers.metadata(&directory).unwrap().unwrap();
        for name in layers.list(&directory).unwrap() {
            match layers.child(&directory, &name).unwrap() {
                Found::Missing => panic!("a name that is listed is not there"),
                Found::Directory(child) => pending.push(child),
                Found::Other { inode, .. } => assert!(!inode.is_whiteout()),
            }
        }
    }
}

/// Bytes that say what one entry is.
const RECORD: usize = 6;

/// What paths are made of; nothing ends one.
const NAMES: [&[u8]; 16] = [
    b"",
    b"a",
    b"b",
    b"c",
    b"d",
    b"a",
    b"b",
    b".wh.a",
    b".wh.b",
    b".wh.c",
    b".wh..wh..opq",
    b".wh..wh.x",
    b"..",
    b".",
    b"\n\xff",
    &[b'n'; 120],
];

/// Four names from the halves of two bytes.
fn path(bytes: [u8; 2]) -> Vec<u8> {
    let halves = bytes.into_iter().flat_map(|byte| [byte & 15, byte >> 4]);
    let names = halves.map(|half| NAMES[usize::from(half)]);
    names
        .take_while(|name| !name.is_empty())
        .collect::<Vec<_>>()
        .join(&b'/')
}

/// Appends an entry: a byte for its type and size, two each for its path and what it links to, and one for the rest.
fn entry(stream: &mut Vec<u8>, record: [u8; RECORD]) {
    let [kind, a, b, c, d, rest] = record;
    let (name, link) = (path([a, b]), path([c, d]));
    let link = if rest & 1 != 0 {
        [b"/", link.as_slice()].concat()
    } else {
        link
    };
    let flag = b"0001122555346LKx"[usize::from(kind & 15)];
    let (name, link) = (name.as_slice(), link.as_slice());
    if name.len() > 99 {
        member(stream, b'L', b"long", b"", name, rest);
    }
    if link.len() > 99 {
        member(stream, b'K', b"long", b"", link, rest);
    }
    let data = match flag {
        b'L' | b'K' => name.to_vec(),
        b'x' => record_of("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        b'0' => vec![rest; [0, 1, 100, 4096, 5000][usize::from(kind >> 4) % 5]],
        _ => Vec::new(),
    };
    member(stream, flag, name, link, &data, rest);
}

fn member(stream: &mut Vec<u8>, flag: u8, name: &[u8], link: &[u8], data: &[u8], rest: u8) {
    let mut header = [0; BLOCK];
    let mut put = |offset: usize, limit: usize, bytes: &[u8]| {
        let bytes = &bytes[..bytes.len().min(limit)];
        header[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0, 99, name);
    put(100, 8, format!("{:07o}", 0o700 | u32::from(rest)).as_bytes());
    put(124, 12, format!("{:011o}", data.len()).as_bytes());
    put(156, 1, &[flag]);
    put(157, 99, link);
    put(257, 8, b"ustar\x0000");
    put(329, 8, format!("{:07o}", rest >> 4).as_bytes());
    stream.extend_from_slice(&header);
    stream.extend_from_slice(data);
    stream.resize(stream.len().next_multiple_of(BLOCK), 0);
}

/// A PAX record of less than a hundred bytes.
fn record_of(key: &str, value: &[u8]) -> Vec<u8> {
    let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    [(body.len() + 2).to_string().as_bytes(), &body].concat()
}
