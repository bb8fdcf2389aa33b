//! Loading the guest's kernel, an ELF `vmlinux`.
//!
//! Blocks of 2 MiB that are full are read into memory, where huge pages back them. Those that are mostly padding (a kernel
//! aligns its parts to blocks, and some mitigations want code at a distance) are mapped: what of them is not touched is
//! neither read nor backed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::layout::KERNEL_START;
use crate::memory::{self, BLOCK_BYTES, GuestMemory, GuestMemoryError, low_end};
use crate::sys;

/// Memory that a kernel needs besides its own image and the ramdisk, in bytes. Less than this and it cannot even say so
/// on the console; with it, running out of memory is the guest's own, visible, affair.
const WORKING_MEMORY: u64 = 16 << 20;

const ELF_HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: u16 = 56;
/// `PT_LOAD`.
const LOADABLE: [u8; 4] = [1, 0, 0, 0];
const MACHINE_X86_64: u16 = 62;
const TYPE_EXECUTABLE: u16 = 2;
/// `PF_W`.
const WRITABLE: u32 = 2;
/// Page size.
const PAGE: u64 = 4096;
/// A block is looked at in so many places, this many bytes at each, to find out whether it is full.
const PROBES: u64 = 8;
const PROBE_BYTES: usize = 64;
/// With fewer places that are filled, it is mostly padding.
const FULL: usize = 4;
/// A kernel has about ten program headers.
const MAX_PROGRAM_HEADERS: u16 = 64;

/// Where the kernel lies and begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Physical address of its first instruction.
    pub entry: u64,
    /// First address of its image.
    pub start: u64,
    /// First address after its image, including what it zeroes itself.
    pub end: u64,
}

/// Why a kernel was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file cannot be read, or ends before its headers do.
    #[error("cannot read the kernel's headers")]
    Read(#[source] io::Error),
    /// The file is something else.
    #[error(
        "the kernel is not an ELF file for x86-64 ({0}); an uncompressed vmlinux is needed, not a bzImage"
    )]
    Format(&'static str),
    /// The guest's memory does not hold it.
    #[error("the kernel and ramdisk need at least {needed} MiB of memory, the machine has {given} MiB")]
    Memory {
        /// Smallest size in MiB that could work.
        needed: u64,
        /// What the machine has below the device hole, in MiB.
        given: u64,
    },
    /// The contents of a segment cannot be read: the file is truncated.
    #[error("cannot load the kernel")]
    Load(#[source] io::Error),
    /// A segment does not lie in memory.
    #[error("cannot load the kernel")]
    Place(#[from] GuestMemoryError),
}

/// A loadable segment.
#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    address: u64,
    file_bytes: u64,
    memory_bytes: u64,
    writable: bool,
}

impl Kernel {
    /// Loads `file` into memory, from its offset 0.
    ///
    /// # Errors
    /// [`KernelError`]. Nothing of a kernel that does not fit is written.
    pub fn load(memory: &GuestMemory, file: &File, ramdisk_bytes: u64) -> Result<Self, KernelError> {
        let (kernel, segments) = inspect(file)?;
        check_memory(kernel, ramdisk_bytes, low_end(memory))?;
        memory::use_small_pages(memory, 0, kernel.usable_start() & !(BLOCK_BYTES - 1))?;
        let mut block = kernel.start & !(BLOCK_BYTES - 1);
        while block < kernel.end {
            let next = block + BLOCK_BYTES;
            // A kernel of several blocks goes on behind its image with what it takes first, so that its last one fills up.
            let is_last = next >= kernel.end && kernel.end - kernel.start > BLOCK_BYTES;
            let sparse = !is_last && is_sparse(file, &segments, block)?;
            if sparse {
                memory::use_small_pages(memory, block, next)?;
            }
            for segment in &segments {
                load_part(memory, file, segment, block..next, sparse)?;
            }
            block = next;
        }
        Ok(kernel)
    }

    /// From where on, above 1 MiB, the kernel may use memory. A kernel that begins in another block than the first leaves that
    /// one to the machine's tables, which are a few pages: a MiB of addresses that the guest does without saves the host
    /// a block of 2 MiB.
    #[must_use]
    pub fn usable_start(&self) -> u64 {
        if self.start < BLOCK_BYTES {
            KERNEL_START
        } else {
            BLOCK_BYTES
        }
    }
}

/// Whether a block is mostly padding, by a few samples. A wrong answer costs time or memory, nothing else.
fn is_sparse(file: &File, segments: &[Segment], block: u64) -> Result<bool, KernelError> {
    let mut full = 0;
    for probe in 0..PROBES {
        let address = block + probe * (BLOCK_BYTES / PROBES);
        let inside = |segment: &&Segment| address.wrapping_sub(segment.address) < segment.memory_bytes;
        let Some(segment) = segments.iter().find(inside) else {
            continue;
        };
        // Variables may well be zero.
        if segment.writable {
            full += 1;
            continue;
        }
        let mut sample = [0; PROBE_BYTES];
        let offset = segment.offset.saturating_add(address - segment.address);
        let read = file.read_at(&mut sample, offset).map_err(KernelError::Read)?;
        let (first, sample) = (sample[0], sample.get(..read).unwrap_or_default());
        full += usize::from(sample.iter().any(|byte| *byte != first));
    }
    Ok(full < FULL)
}

/// Loads what of a segment lies in `block`: by mapping whole pages, where that is wanted and possible, else by reading.
fn load_part(
    memory: &GuestMemory,
    file: &File,
    segment: &Segment,
    block: std::ops::Range<u64>,
    map: bool,
) -> Result<(), KernelError> {
    let start = block.start.max(segment.address);
    // Both sums were checked when the headers were read.
    let end = block.end.min(segment.address + segment.file_bytes);
    if start >= end {
        return Ok(());
    }
    let offset = |address: u64| segment.offset.saturating_add(address - segment.address);
    let (first, last) = (start.next_multiple_of(PAGE), end & !(PAGE - 1));
    if !map || first >= last || !offset(first).is_multiple_of(PAGE) {
        return read_part(memory, file, offset(start), start..end);
    }
    read_part(memory, file, offset(start), start..first)?;
    let pages = memory::slice(memory, first, last - first)?;
    sys::map_file(&pages, file, offset(first)).map_err(KernelError::Load)?;
    read_part(memory, file, offset(last), last..end)
}

fn read_part(
    memory: &GuestMemory,
    file: &File,
    offset: u64,
    place: std::ops::Range<u64>,
) -> Result<(), KernelError> {
    let mut done = 0;
    while place.start + done < place.end {
        let rest = memory::slice(memory, place.start + done, place.end - place.start - done)?;
        let read = sys::read_at(file, &[rest], offset.saturating_add(done)).map_err(KernelError::Load)?;
        if read == 0 {
            return Err(KernelError::Load(io::ErrorKind::UnexpectedEof.into()));
        }
        done += u64::try_from(read).unwrap_or(u64::MAX);
    }
    Ok(())
}

/// Reads and checks the headers.
fn inspect(file: &File) -> Result<(Kernel, Vec<Segment>), KernelError> {
    let mut header = [0; ELF_HEADER_BYTES];
    if file.read_at(&mut header, 0).map_err(KernelError::Read)? < 4 || !header.starts_with(b"\x7fELF") {
        return Err(KernelError::Format("no ELF signature"));
    }
    file.read_exact_at(&mut header, 0).map_err(KernelError::Read)?;
    let fields = Fields(&header);
    if header[4] != 2 {
        return Err(KernelError::Format("it is 32-bit"));
    }
    if header[5] != 1 || fields.half(18) != MACHINE_X86_64 {
        return Err(KernelError::Format("it is for another processor"));
    }
    if fields.half(16) != TYPE_EXECUTABLE {
        return Err(KernelError::Format("it is not an executable"));
    }
    let (entry, table, size, count) = (fields.word(24), fields.word(32), fields.half(54), fields.half(56));
    if size != PROGRAM_HEADER_BYTES || count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(KernelError::Format("its program headers are malformed"));
    }
    let segments = segments(file, table, count)?;
    let start = segments
        .iter()
        .map(|segment| segment.address)
        .min()
        .unwrap_or_default();
    let ends = segments
        .iter()
        .map(|segment| segment.address + segment.memory_bytes);
    let end = ends.max().unwrap_or_default();
    if start < KERNEL_START || !(start..end).contains(&entry) {
        return Err(KernelError::Format("its addresses are not those of a kernel"));
    }
    Ok((Kernel { entry, start, end }, segments))
}

/// The loadable segments. Their ends in file and memory can be computed without overflow.
fn segments(file: &File, table: u64, count: u16) -> Result<Vec<Segment>, KernelError> {
    let malformed = || KernelError::Format("its program headers are malformed");
    let mut bytes = vec![0; usize::from(PROGRAM_HEADER_BYTES) * usize::from(count)];
    file.read_exact_at(&mut bytes, table).map_err(KernelError::Read)?;
    let mut segments = Vec::new();
    for header in bytes.chunks_exact(usize::from(PROGRAM_HEADER_BYTES)).map(Fields) {
        let segment = Segment {
            offset: header.word(8),
            address: header.word(24),
            file_bytes: header.word(32),
            memory_bytes: header.word(40),
            writable: u32::from(header.half(4)) & WRITABLE != 0,
        };
        if !header.0.starts_with(&LOADABLE) || segment.memory_bytes == 0 {
            continue;
        }
        if segment.file_bytes > segment.memory_bytes {
            return Err(malformed());
        }
        segment
            .address
            .checked_add(segment.memory_bytes)
            .ok_or_else(malformed)?;
        segments.push(segment);
    }
    Ok(segments)
}

fn check_memory(kernel: Kernel, ramdisk_bytes: u64, available: u64) -> Result<(), KernelError> {
    let needed = kernel
        .end
        .saturating_add(ramdisk_bytes)
        .saturating_add(WORKING_MEMORY);
    if needed <= available {
        return Ok(());
    }
    Err(KernelError::Memory {
        needed: needed.div_ceil(1 << 20),
        given: available >> 20,
    })
}

/// Little-endian fields of a header; one that lies outside reads as zero.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn half(&self, offset: usize) -> u16 {
        self.array(offset).map_or(0, u16::from_le_bytes)
    }

    fn word(&self, offset: usize) -> u64 {
        self.array(offset).map_or(0, u64::from_le_bytes)
    }

    fn array<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::memory::{Bytes, GuestAddress};

    /// A kernel of one segment at 1 MiB: 16 bytes in the file, `memory_bytes` in memory.
    fn elf(memory_bytes: u64) -> Vec<u8> {
        let mut image = vec![0; 64 + 56];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[16..18].copy_from_slice(&TYPE_EXECUTABLE.to_le_bytes());
        image[18..20].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
        image[24..32].copy_from_slice(&0x10_0000_u64.to_le_bytes());
        image[32..40].copy_from_slice(&64_u64.to_le_bytes());
        image[54..56].copy_from_slice(&PROGRAM_HEADER_BYTES.to_le_bytes());
        image[56..58].copy_from_slice(&1_u16.to_le_bytes());
        let header = &mut image[64..];
        header[0] = 1;
        header[8..16].copy_from_slice(&120_u64.to_le_bytes());
        header[24..32].copy_from_slice(&0x10_0000_u64.to_le_bytes());
        header[32..40].copy_from_slice(&16_u64.to_le_bytes());
        header[40..48].copy_from_slice(&memory_bytes.to_le_bytes());
        image.extend_from_slice(b"sixteen bytes...");
        image
    }

    fn load(image: &[u8], ramdisk_bytes: u64) -> Result<Kernel, KernelError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(image).unwrap();
        let memory = crate::memory::allocate(32).unwrap();
        let kernel = Kernel::load(&memory, &file, ramdisk_bytes)?;
        let mut loaded = [0; 16];
        memory
            .read_slice(&mut loaded, GuestAddress(KERNEL_START))
            .unwrap();
        assert_eq!(&loaded, b"sixteen bytes...");
        Ok(kernel)
    }

    #[test]
    fn a_kernel_is_loaded_where_it_wants_to_be() {
        let kernel = load(&elf(0x1000), 4096).unwrap();
        assert_eq!(
            kernel,
            Kernel {
                entry: 0x10_0000,
                start: 0x10_0000,
                end: 0x10_1000
            }
        );
    }

    #[test]
    fn what_is_not_a_kernel_is_refused() {
        let check = |change: fn(&mut Vec<u8>), expected: &str| {
            let mut image = elf(0x1000);
            change(&mut image);
            let message = load(&image, 0).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check(|image| image.clear(), "no ELF signature");
        check(|image| image.truncate(3), "no ELF signature");
        check(|image| image.truncate(40), "headers");
        check(|image| image.truncate(100), "headers");
        check(|image| image.truncate(125), "load the kernel");
        check(|image| image[0] = b'#', "no ELF signature");
        check(|image| image[4] = 1, "32-bit");
        check(|image| image[5] = 2, "another processor");
        check(|image| image[18] = 183, "another processor");
        check(|image| image[16] = 1, "not an executable");
        check(|image| image[56..58].fill(0xff), "malformed");
        check(|image| image[54] = 32, "malformed");
        check(|image| image[64 + 40..64 + 48].fill(0xff), "malformed");
        check(|image| image[64 + 32] = 0xff, "load the kernel");
        check(|image| image[64 + 26] = 0, "not those of a kernel");
        check(|image| image[26] = 0x90, "not those of a kernel");
        check(|image| image[64] = 2, "not those of a kernel");
    }

    #[test]
    fn too_little_memory_is_named_with_what_is_needed() {
        let check = |image: &[u8], ramdisk_bytes, expected: &str| {
            let message = load(image, ramdisk_bytes).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check(
            &elf(40 << 20),
            0,
            "at least 57 MiB of memory, the machine has 32 MiB",
        );
        check(&elf(0x1000), 20 << 20, "at least 38 MiB");
        check(&elf(0x1000), u64::MAX, "at least");
    }
}
