//! Entry points for fuzzing: each takes any bytes, makes a driver, a client or a file of them, and panics if something is
//! broken that must hold whatever they are.
//!
//! The harnesses stand beside what they attack, because they need what is private there. They are compiled for tests and
//! with the feature `fuzzing` only: `tests/fuzz` runs them under libFuzzer, and a unit test here runs them on the
//! committed inputs. They start no thread and keep memory, files and sockets from one input to the next, so that an input
//! costs some microseconds.

mod guest;
mod input;
mod ioapic;

pub(crate) use guest::{BUFFERS, END, Permit, fill, memory, put, queue, scene, scratch_file};
pub(crate) use input::Input;

use crate::arch::x86_64::fuzz as boot;
use crate::config::VmConfig;
use crate::devices::virtio::{self, balloon, block, fs, net, rng, vsock};

/// A name and what takes the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets, named as the programs in `tests/fuzz` and their directories of inputs.
pub const TARGETS: [Target; 15] = [
    ("transport", virtio::fuzz::transport),
    ("transport_device", virtio::fuzz::transport_device),
    ("block_queue", block::fuzz::queue),
    ("rng_queue", rng::fuzz::queue),
    ("balloon_queue", balloon::fuzz::queue),
    ("fs_queue", fs::fuzz::queue),
    ("net_queue", net::fuzz::queue),
    ("net_control", net::fuzz::control),
    ("vsock_queue", vsock::fuzz::queue),
    ("vsock_connection", vsock::fuzz::connection),
    ("ioapic", ioapic::ioapic),
    ("kernel_loader", boot::kernel_loader),
    ("boot_parameters", boot::boot_parameters),
    ("config", config),
    ("saved_state", virtio::fuzz::saved_state),
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

/// A machine's configuration: what is accepted is written and read back as the same.
fn config(data: &[u8]) {
    if let Ok(config) = VmConfig::parse(data) {
        let json = serde_json::to_vec(&config).unwrap();
        assert_eq!(VmConfig::parse(&json).unwrap(), config);
        assert!(!config.disks.iter().any(|disk| disk.parts.is_empty()));
    }
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
            for byte in [0, 1, 0x40, 0x7f, 0xff] {
                target(&[byte; 200]);
            }
        }
    }
}
