//! What the boot protocol hands to the kernel: the ramdisk, the command line and `struct boot_params`.

use std::fs::File;
use std::io;

use linux_loader::bootparam::{boot_e820_entry, boot_params};

use super::cmdline::{CommandLine, CommandLineError};
use super::layout::{COMMAND_LINE, MP_TABLE, ZERO_PAGE};
use crate::memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, low_end,
};

/// "HdrS": there is a setup header.
const HEADER_MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// Loader type of a boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// E820 type of usable memory.
const USABLE: u32 = 1;
const PAGE: u64 = 4096;

/// Where the ramdisk lies. Without one, zero bytes at address zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ramdisk {
    address: u32,
    bytes: u32,
}

/// Why the boot data could not be written.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A part of the ramdisk cannot be read.
    #[error("cannot read part {part} of the initial ramdisk")]
    ReadRamdisk {
        /// Index of the part.
        part: usize,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A part shrank while it was read, or memory ends before it does.
    #[error("cannot load part {part} of the initial ramdisk")]
    LoadRamdisk {
        /// Index of the part.
        part: usize,
        /// What failed.
        #[source]
        source: GuestMemoryError,
    },
    /// It does not lie below 4 GiB.
    #[error("the initial ramdisk is too large")]
    RamdiskTooLarge,
    /// The command line.
    #[error(transparent)]
    CommandLine(#[from] CommandLineError),
    /// Guest memory is too small for the tables.
    #[error("cannot write the boot parameters")]
    Write(#[from] GuestMemoryError),
}

/// Bytes that the parts take in memory, each padded to 4: the alignment of a cpio header, so that archives can be
/// concatenated.
///
/// # Errors
/// [`BootError::ReadRamdisk`].
pub fn ramdisk_bytes(parts: &[File]) -> Result<u64, BootError> {
    let mut total: u64 = 0;
    for (part, file) in parts.iter().enumerate() {
        let metadata = file
            .metadata()
            .map_err(|source| BootError::ReadRamdisk { part, source })?;
        let padded = metadata
            .len()
            .checked_next_multiple_of(4)
            .ok_or(BootError::RamdiskTooLarge)?;
        total = total.checked_add(padded).ok_or(BootError::RamdiskTooLarge)?;
    }
    Ok(total)
}

/// Puts the ramdisk at the end of low memory, as far from the kernel as possible.
///
/// # Errors
/// [`BootError`]. That it fits is the caller's to check, because the kernel's size decides it.
pub fn load_ramdisk(memory: &GuestMemory, parts: &mut [File]) -> Result<Ramdisk, BootError> {
    let bytes = ramdisk_bytes(parts)?;
    if bytes == 0 {
        return Ok(Ramdisk::default());
    }
    let start = low_end(memory)
        .checked_sub(bytes)
        .ok_or(BootError::RamdiskTooLarge)?
        & !(PAGE - 1);
    let mut address = start;
    for (part, file) in parts.iter_mut().enumerate() {
        let length = file
            .metadata()
            .map_err(|source| BootError::ReadRamdisk { part, source })?
            .len();
        io::Seek::rewind(file).map_err(|source| BootError::ReadRamdisk { part, source })?;
        let count = usize::try_from(length).map_err(|_| BootError::RamdiskTooLarge)?;
        memory
            .read_exact_volatile_from(GuestAddress(address), file, count)
            .map_err(|source| BootError::LoadRamdisk { part, source })?;
        address += length.next_multiple_of(4);
    }
    let narrow = |value| u32::try_from(value).map_err(|_| BootError::RamdiskTooLarge);
    Ok(Ramdisk {
        address: narrow(start)?,
        bytes: narrow(bytes)?,
    })
}

/// Writes the command line and `struct boot_params`. Above 1 MiB, the kernel may use memory from `usable_start` on.
///
/// # Errors
/// [`BootError::CommandLine`] or [`BootError::Write`].
pub fn write_parameters(
    memory: &GuestMemory,
    command_line: &CommandLine,
    ramdisk: Ramdisk,
    usable_start: u64,
) -> Result<(), BootError> {
    let text = command_line.to_bytes()?;
    memory.write_slice(&text, GuestAddress(COMMAND_LINE))?;

    let mut parameters = boot_params::default();
    parameters.hdr.boot_flag = BOOT_FLAG;
    parameters.hdr.header = HEADER_MAGIC;
    parameters.hdr.type_of_loader = LOADER_UNDEFINED;
    parameters.hdr.cmd_line_ptr = u32::try_from(COMMAND_LINE).unwrap_or_default();
    parameters.hdr.cmdline_size = u32::try_from(text.len() - 1).unwrap_or_default();
    parameters.hdr.ramdisk_image = ramdisk.address;
    parameters.hdr.ramdisk_size = ramdisk.bytes;
    let ranges = usable_ranges(memory, usable_start);
    for (slot, (start, bytes)) in parameters.e820_table.iter_mut().zip(&ranges) {
        *slot = boot_e820_entry {
            addr: *start,
            size: *bytes,
            type_: USABLE,
        };
    }
    parameters.e820_entries = u8::try_from(ranges.len()).unwrap_or(u8::MAX);
    memory.write_obj(parameters, GuestAddress(ZERO_PAGE))?;
    Ok(())
}

/// Memory the kernel may use. The gap below 1 MiB holds the MP table and what old software expects to be ROM.
fn usable_ranges(memory: &GuestMemory, usable_start: u64) -> Vec<(u64, u64)> {
    let mut ranges = vec![(0, MP_TABLE)];
    for region in memory.iter() {
        let start = region.start_addr().0.max(usable_start);
        let end = region.start_addr().0 + region.len();
        if start < end {
            ranges.push((start, end - start));
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn part(contents: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(contents).unwrap();
        file
    }

    #[test]
    fn ramdisk_parts_follow_each_other_padded_to_four() {
        let memory = crate::memory::allocate(4).unwrap();
        let mut parts = [part(b"first"), part(b""), part(b"second")];
        assert_eq!(ramdisk_bytes(&parts).unwrap(), 16);
        let ramdisk = load_ramdisk(&memory, &mut parts).unwrap();
        assert_eq!(
            ramdisk,
            Ramdisk {
                address: (4 << 20) - 4096,
                bytes: 16
            }
        );
        let mut loaded = [0; 16];
        memory
            .read_slice(&mut loaded, GuestAddress(u64::from(ramdisk.address)))
            .unwrap();
        assert_eq!(&loaded, b"first\0\0\0second\0\0");
        assert_eq!(load_ramdisk(&memory, &mut []).unwrap(), Ramdisk::default());
    }

    #[test]
    fn a_ramdisk_larger_than_memory_is_refused() {
        let memory = crate::memory::allocate(1).unwrap();
        let file = part(b"");
        file.set_len(2 << 20).unwrap();
        assert!(matches!(
            load_ramdisk(&memory, &mut [file]),
            Err(BootError::RamdiskTooLarge)
        ));
    }

    #[test]
    fn the_zero_page_describes_memory_around_its_holes() {
        let memory = crate::memory::allocate(4096).unwrap();
        let ramdisk = Ramdisk {
            address: 0x1000_0000,
            bytes: 16,
        };
        write_parameters(&memory, &CommandLine::new("quiet").unwrap(), ramdisk, 0x20_0000).unwrap();
        let parameters: boot_params = memory.read_obj(GuestAddress(ZERO_PAGE)).unwrap();
        let (ramdisk_image, size) = (parameters.hdr.ramdisk_image, parameters.hdr.cmdline_size);
        assert_eq!((ramdisk_image, size), (0x1000_0000, 5));
        let table: Vec<_> = parameters.e820_table[..usize::from(parameters.e820_entries)]
            .iter()
            .map(|entry| (entry.addr, entry.size, entry.type_))
            .collect();
        let expected = [
            (0, 0x9_fc00, 1),
            (0x20_0000, 0xbfe0_0000, 1),
            (0x1_0000_0000, 0x4000_0000, 1),
        ];
        assert_eq!(table, expected);
        let mut line = [0; 6];
        memory.read_slice(&mut line, GuestAddress(COMMAND_LINE)).unwrap();
        assert_eq!(&line, b"quiet\0");
    }
}
