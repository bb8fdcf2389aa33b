//! Entry points for fuzzing: each takes any bytes, makes an archive, a stack of layers or documents of them, and panics if
//! something is broken that must hold whatever they are.
//!
//! The harnesses stand beside what they attack, because they need what is private there. They are compiled for tests and
//! with the feature `fuzzing` only: `tests/fuzz` runs them under libFuzzer, and a unit test here runs them on the
//! committed inputs. Their files are in memory.

use std::fs::File;

use rustix::fs::MemfdFlags;

use crate::{archive, rootfs};
use rvm_tar::{BLOCK, number};

/// A name and what takes the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets, named as the programs in `tests/fuzz` and their directories of inputs.
pub const TARGETS: [Target; 4] = [
    ("image_layer", rootfs::fuzz::layer),
    ("image_stack", rootfs::fuzz::stack),
    ("image_archive", archive::fuzz::archive),
    ("image_documents", archive::fuzz::documents),
];

/// Runs the target `name`, which exists.
///
/// # Panics
/// If what is attacked is broken.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(candidate, _)| *candidate == name);
    let (_, target) = target.unwrap_or_else(|| panic!("there is no target {name}"));
    target(data);
}

/// An empty file in memory.
pub(crate) fn scratch_file() -> File {
    rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC)
        .unwrap()
        .into()
}

/// A tar stream whose headers have the right checksums, as far as they can be found by their sizes: what hits upon a
/// checksum by chance would get no further than that. Behind the end are zeros up to a whole block.
pub(crate) fn with_checksums(data: &[u8]) -> Vec<u8> {
    let mut stream = data.to_vec();
    stream.resize(data.len().next_multiple_of(BLOCK), 0);
    let mut position = 0;
    while let Some(header) = stream.get_mut(position..position + BLOCK) {
        position += BLOCK;
        if header.iter().all(|byte| *byte == 0) {
            continue;
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let has_data = !matches!(header[156], b'1'..=b'6');
        let size = number(&header[124..136]).filter(|_| has_data);
        let size = usize::try_from(size.unwrap_or(0)).unwrap_or(usize::MAX);
        position = position.saturating_add(size.checked_next_multiple_of(BLOCK).unwrap_or(usize::MAX / 2));
    }
    stream
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// What the fuzzer has found interesting, and what has once been broken, stays in order.
    #[test]
    fn the_committed_inputs_are_harmless() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        for (name, target) in TARGETS {
            let inputs: Vec<_> = fs::read_dir(corpus.join(name)).unwrap().collect();
            assert!(!inputs.is_empty(), "{name} has no inputs");
            for input in inputs {
                let path = input.unwrap().path();
                eprintln!("{}", path.display());
                target(&fs::read(path).unwrap());
            }
        }
    }

    /// Bytes without any meaning reach less, but each target takes them.
    #[test]
    fn any_bytes_are_taken() {
        for (_, target) in TARGETS {
            target(&[]);
            for byte in [0, 1, 0x30, 0x40, 0x7f, 0xff] {
                target(&[byte; 2000]);
            }
        }
    }
}
