//! What comes before the first instruction: any file as a kernel, any text as a command line.

use std::cell::OnceCell;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::boot::{load_ramdisk, write_parameters};
use super::cmdline::CommandLine;
use super::kernel::Kernel;
use super::layout::{COMMAND_LINE, COMMAND_LINE_BYTES, KERNEL_START};
use crate::fuzz::{Input, scratch_file};
use crate::memory::{Bytes, GuestAddress, GuestMemory};

/// Room for a kernel of several blocks of 2 MiB, after what a kernel needs to work.
const MEMORY_BYTES: usize = 24 << 20;
const PAGE_BYTES: usize = 4096;

struct Machine {
    memory: GuestMemory,
    file: File,
}

/// A machine with empty memory: a kernel may be mapped into it, so that no other input can have the same. The file can, and
/// is empty.
fn with_machine(run: impl FnOnce(&Machine)) {
    thread_local! {
        static FILE: OnceCell<File> = const { OnceCell::new() };
    }
    FILE.with(|file| {
        let file = file.get_or_init(scratch_file);
        run(&Machine {
            memory: GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap(),
            file: file.try_clone().unwrap(),
        });
        file.set_len(0).unwrap();
    });
}

fn assert_untouched(memory: &GuestMemory, address: u64, bytes: usize) {
    let mut page = [0; PAGE_BYTES];
    let page = &mut page[..bytes];
    memory.read_slice(page, GuestAddress(address)).unwrap();
    assert!(*page == [0; PAGE_BYTES][..bytes], "{address:#x} was written to");
}

/// The file is the input; its last bytes say how large the ramdisk is.
pub(crate) fn kernel_loader(data: &[u8]) {
    with_machine(|Machine { memory, file }| {
        let ramdisk = Input::new(data.rchunks(3).next().unwrap_or_default()).number();
        file.write_all_at(data, 0).unwrap();
        if let Ok(kernel) = Kernel::load(memory, file, u64::from(ramdisk)) {
            assert!((KERNEL_START..kernel.end).contains(&kernel.entry));
            assert!(kernel.end + u64::from(ramdisk) + (16 << 20) <= MEMORY_BYTES as u64);
            assert_untouched(memory, kernel.end, PAGE_BYTES);
        }
        assert_untouched(memory, KERNEL_START - PAGE_BYTES as u64, PAGE_BYTES);
    });
}

/// A command line, what the machine adds to it, and a ramdisk.
pub(crate) fn boot_parameters(data: &[u8]) {
    let mut input = Input::new(data);
    let (ramdisk, additions, repeated) = (input.number(), input.byte(), input.byte());
    let text = input.take(usize::MAX).repeat(usize::from(repeated % 32) + 1);
    let text = String::from_utf8_lossy(&text);
    let Ok(mut line) = CommandLine::new(&text) else {
        assert!(text.chars().any(|character| !matches!(character, ' '..='~')));
        return;
    };
    for _ in 0..additions % 16 {
        line.add("virtio_mmio.device=4K@0xd0000000:5");
        line.add_default("quiet", &["loglevel", "debug"]);
        line.add_default("panic=-1", &[]);
    }
    with_machine(|Machine { memory, file }| {
        // Of any length, but little of it is read.
        let bytes = if ramdisk < 1 << 16 {
            ramdisk
        } else {
            ramdisk | (1 << 28)
        };
        file.set_len(u64::from(bytes)).unwrap();
        let ramdisk = load_ramdisk(memory, &mut [file.try_clone().unwrap()]);
        assert_eq!(ramdisk.is_ok(), u64::from(bytes) <= MEMORY_BYTES as u64);
        if write_parameters(memory, &line, ramdisk.unwrap_or_default(), KERNEL_START).is_err() {
            assert!(line.to_bytes().is_err());
            return;
        }
        let expected = line.to_bytes().unwrap();
        let end = expected.iter().position(|byte| *byte == 0);
        assert_eq!(end, Some(expected.len() - 1));
        let mut bytes = [0; COMMAND_LINE_BYTES];
        memory.read_slice(&mut bytes, GuestAddress(COMMAND_LINE)).unwrap();
        assert!(bytes.starts_with(&expected));
        let behind = COMMAND_LINE + COMMAND_LINE_BYTES as u64;
        assert_untouched(memory, behind, PAGE_BYTES);
    });
}
