//! Entry points for fuzzing: what members and servers send to a resolver, and what the kernel answers over netlink. Each takes
//! any bytes and panics if something is broken that must hold whatever they are.
//!
//! The harnesses stand beside what they attack. They are compiled for tests and with the feature `fuzzing` only: `tests/fuzz`
//! runs them under libFuzzer, and a unit test here runs them on the committed inputs.

use crate::resolver;

/// A name and what takes the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets, named as the programs in `tests/fuzz` and their directories of inputs.
pub const TARGETS: [Target; 2] = [
    ("resolver_message", resolver::fuzz::message),
    ("netlink_answer", resolver::fuzz::answer_of_the_kernel),
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
