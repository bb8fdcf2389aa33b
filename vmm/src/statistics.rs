//! KVM's own statistics of a machine: what it handled without leaving to this process.
//!
//! They come from the binary statistics descriptors of Linux 5.14 and later (Documentation/virt/kvm/api.rst, section
//! 4.133). The descriptors are opened while the machine is built: asking a vCPU for its own waits until it leaves the
//! guest. Reading them takes three `pread`s when somebody asks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::status::Counters;
use crate::sys::{GuestVcpu, GuestVm};

/// Most bytes of one descriptor's descriptions, and of its data. Linux 6.12 has about 4 KiB.
const MAX_BYTES: usize = 64 << 10;

/// Length of `struct kvm_stats_header`: flags, name size, number of descriptions, and the offsets of identifier,
/// descriptions and data, 32 bits each.
const HEADER_BYTES: usize = 24;

/// Length of `struct kvm_stats_desc` without the name: flags, exponent and size (16 bits each), offset, bucket size.
const DESCRIPTION_BYTES: usize = 16;

/// Statistics of a machine and of each of its vCPUs, where the kernel has them.
#[derive(Debug, Default)]
pub(crate) struct Statistics {
    vm: Option<File>,
    vcpus: Vec<Option<File>>,
}

impl Statistics {
    /// Opens them, before the vCPUs run.
    pub(crate) fn open(vm: &GuestVm, vcpus: &[GuestVcpu]) -> Self {
        // Without them the status says so, and the machine's own counters remain.
        Self {
            vm: vm.open_statistics().ok(),
            vcpus: vcpus.iter().map(|vcpu| vcpu.open_statistics().ok()).collect(),
        }
    }

    /// Those of the machine.
    pub(crate) fn of_vm(&self) -> Option<Counters> {
        read(self.vm.as_ref()?).ok()
    }

    /// Those of vCPU `index`.
    pub(crate) fn of_vcpu(&self, index: usize) -> Option<Counters> {
        read(self.vcpus.get(index)?.as_ref()?).ok()
    }
}

fn read(file: &File) -> io::Result<Counters> {
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    let layout = Layout::parse(&header).ok_or(io::ErrorKind::InvalidData)?;
    let mut descriptions = vec![0; layout.description_bytes * layout.descriptions];
    file.read_exact_at(&mut descriptions, layout.descriptions_at)?;
    let scalars = layout.scalars(&descriptions).ok_or(io::ErrorKind::InvalidData)?;
    let last = scalars.iter().map(|(_, offset)| offset + 8).max().unwrap_or(0);
    let mut data = vec![0; last.min(MAX_BYTES)];
    file.read_exact_at(&mut data, layout.data_at)?;
    let value = |offset: usize| {
        let bytes = data.get(offset..)?.first_chunk()?;
        Some(u64::from_ne_bytes(*bytes))
    };
    let counters = scalars
        .into_iter()
        .filter_map(|(name, offset)| Some((name, value(offset)?)));
    Ok(counters.filter(|(_, value)| *value != 0).collect())
}

/// `struct kvm_stats_header`, as far as it is needed.
struct Layout {
    name_bytes: usize,
    descriptions: usize,
    /// Of one of them.
    description_bytes: usize,
    descriptions_at: u64,
    data_at: u64,
}

impl Layout {
    fn parse(header: &[u8; HEADER_BYTES]) -> Option<Self> {
        let name_bytes = usize::try_from(word(header, 4)?).ok()?;
        let descriptions = usize::try_from(word(header, 8)?).ok()?;
        let description_bytes = name_bytes.checked_add(DESCRIPTION_BYTES)?;
        let all = descriptions.checked_mul(description_bytes)?;
        (all <= MAX_BYTES).then_some(Self {
            name_bytes,
            descriptions,
            description_bytes,
            descriptions_at: word(header, 16)?.into(),
            data_at: word(header, 20)?.into(),
        })
    }

    /// Name and offset of each statistic that is a single number; histograms are passed over.
    fn scalars(&self, descriptions: &[u8]) -> Option<Vec<(String, usize)>> {
        let mut scalars = Vec::new();
        for description in descriptions.chunks_exact(self.description_bytes) {
            let numbers = u16::from_ne_bytes(*description.get(6..)?.first_chunk()?);
            let offset = usize::try_from(word(description, 8)?).ok()?;
            let name = description.get(DESCRIPTION_BYTES..DESCRIPTION_BYTES + self.name_bytes)?;
            let name = name.split(|byte| *byte == 0).next()?;
            if numbers == 1 && offset < MAX_BYTES {
                scalars.push((String::from_utf8_lossy(name).into_owned(), offset));
            }
        }
        Some(scalars)
    }
}

/// The native 32-bit number at an offset.
fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A descriptor's content as the kernel lays it out: three statistics, the second one a histogram of two.
    fn content(numbers: u32) -> Vec<u8> {
        let words = |words: &[u32]| {
            words
                .iter()
                .flat_map(|word| word.to_ne_bytes())
                .collect::<Vec<_>>()
        };
        let mut content = words(&[0, 8, numbers, 24, 32, 32 + 3 * 24]);
        content.extend(b"kvm-1\0\0\0");
        for (size, offset, name) in [
            (1_u16, 0, b"exits\0\0\0"),
            (2, 8, b"histo\0\0\0"),
            (1, 24, b"halts\0\0\0"),
        ] {
            content.extend(words(&[0]));
            content.extend(0_u16.to_ne_bytes());
            content.extend(size.to_ne_bytes());
            content.extend(words(&[offset, 0]));
            content.extend(name);
        }
        content.extend([7_u64, 1, 2, 9].iter().flat_map(|value| value.to_ne_bytes()));
        content
    }

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn single_numbers_are_read_by_name() {
        let counters = read(&file(&content(3))).unwrap();
        let expected = [("exits".to_owned(), 7), ("halts".to_owned(), 9)];
        assert_eq!(counters, Counters::from(expected));
    }

    #[test]
    fn a_content_that_makes_no_sense_is_refused() {
        for content in [&content(3)[..60], &content(5), &content(u32::MAX), &[0; 23]] {
            assert!(read(&file(content)).is_err(), "{}", content.len());
        }
    }
}
