//! Block requests (section 5.2.6): one descriptor chain each, served to the end before the next.
//!
//! Data goes straight between guest memory and the host's files. The work of one request is bounded by
//! [`MAX_DATA_BYTES`] or [`MAX_RANGES`], which the configuration space tells the driver.

use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::disk::Disk;
use crate::devices::virtio::chain::{Buffers, Chain};
use crate::devices::virtio::ring::{Ring, RingError};
use crate::memory::GuestMemory;

/// Descriptors of the queue.
pub(super) const QUEUE_SIZE: u16 = 128;
/// Most data segments of a request: the queue's descriptors without those for header and status.
pub(super) const MAX_SEGMENTS: u32 = 126;
/// Longest data segment.
pub(super) const MAX_SEGMENT_BYTES: u32 = 256 << 10;
/// Most bytes that one request moves: 31.5 MiB. More would hold up the requests behind it.
const MAX_DATA_BYTES: usize = 126 * (256 << 10);
/// Most ranges that one request discards or zeroes.
pub(super) const MAX_RANGES: u32 = 16;
/// Most sectors of such a range: 2 GiB.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 22;

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;
/// Flag of a range: the space may be given back (section 5.2.6).
const UNMAP: u32 = 1;

/// Serves everything that is available, until `stop` is set; calls `signal` whenever the driver wants an interrupt.
///
/// # Errors
/// [`RingError`] if the driver broke the queue.
pub(super) fn process(
    ring: &mut Ring,
    memory: &GuestMemory,
    disk: &Disk,
    stop: &AtomicBool,
    signal: &mut dyn FnMut(),
) -> Result<(), RingError> {
    loop {
        ring.disable_notifications(memory)?;
        while !stop.load(Ordering::Relaxed)
            && let Some(chain) = ring.pop(memory)?
        {
            let written = serve(&chain, disk)?;
            ring.complete(memory, chain.head, written)?;
            if ring.needs_interrupt(memory)? {
                signal();
            }
        }
        if stop.load(Ordering::Relaxed) || !ring.enable_notifications(memory)? {
            return Ok(());
        }
    }
}

/// How a request ended, as the driver sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Io,
    Unsupported,
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
            Self::Unsupported
        } else {
            Self::Io
        }
    }
}

/// Serves one request; returns the bytes written to the driver's buffers.
fn serve(chain: &Chain<'_>, disk: &Disk) -> Result<u32, RingError> {
    let (header, output) = chain
        .readable
        .split_at(HEADER_BYTES)
        .ok_or(RingError::Malformed)?;
    let data_bytes = chain.writable.len().checked_sub(1).ok_or(RingError::Malformed)?;
    let (input, status) = chain.writable.split_at(data_bytes).ok_or(RingError::Malformed)?;
    let header: [u8; HEADER_BYTES] = header.read().ok_or(RingError::Malformed)?;
    let request = Request {
        kind: word(&header, 0),
        sector: long(&header, 8),
        output,
        input,
    };

    let (code, written) = match request.serve(disk) {
        Ok(written) => (VIRTIO_BLK_S_OK, written),
        Err(Failure::Io) => (VIRTIO_BLK_S_IOERR, 0),
        Err(Failure::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
    };
    status.copy_from(&[u8::try_from(code).unwrap_or(u8::MAX)]);
    // A chain is shorter than 4 GiB, so the sum fits.
    Ok(u32::try_from(written).unwrap_or(u32::MAX).saturating_add(1))
}

struct Request<'m> {
    kind: u32,
    sector: u64,
    /// From the driver to the disk.
    output: Buffers<'m>,
    /// From the disk to the driver.
    input: Buffers<'m>,
}

impl Request<'_> {
    /// Returns the bytes of `input` that were written.
    fn serve(&self, disk: &Disk) -> Result<usize, Failure> {
        match self.kind {
            VIRTIO_BLK_T_IN => {
                disk.read(self.extent(disk, &self.input)?, &self.input)?;
                Ok(self.input.len())
            }
            VIRTIO_BLK_T_GET_ID => {
                let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
                id[..8].copy_from_slice(b"rvm-disk");
                Ok(self.input.copy_from(&id))
            }
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if disk.is_read_only() => {
                Err(Failure::Io)
            }
            VIRTIO_BLK_T_OUT => {
                disk.write(self.extent(disk, &self.output)?, &self.output)?;
                Ok(0)
            }
            VIRTIO_BLK_T_FLUSH => {
                disk.flush()?;
                Ok(0)
            }
            VIRTIO_BLK_T_DISCARD => self.each_range(disk, |range| match range.flags {
                0 => Ok(disk.discard(range.extent)?),
                _ => Err(Failure::Unsupported),
            }),
            VIRTIO_BLK_T_WRITE_ZEROES => self.each_range(disk, |range| match range.flags {
                0 => Ok(disk.zero(range.extent)?),
                UNMAP => Ok(disk.discard(range.extent)?),
                _ => Err(Failure::Unsupported),
            }),
            _ => Err(Failure::Unsupported),
        }
    }

    fn extent(&self, disk: &Disk, data: &Buffers<'_>) -> Result<super::disk::Extent, Failure> {
        if data.len() > MAX_DATA_BYTES {
            return Err(Failure::Io);
        }
        let bytes = u64::try_from(data.len()).map_err(|_| Failure::Io)?;
        disk.extent(self.sector, bytes).ok_or(Failure::Io)
    }

    /// Calls `act` for each range of a discard or write-zeroes request, after all of them were checked.
    fn each_range(&self, disk: &Disk, act: impl Fn(Range) -> Result<(), Failure>) -> Result<usize, Failure> {
        const MOST: usize = MAX_RANGES as usize * RANGE_BYTES;
        let mut bytes = [0; MOST];
        if self.output.len() > MOST || !self.output.len().is_multiple_of(RANGE_BYTES) {
            return Err(Failure::Io);
        }
        let copied = self.output.copy_to(&mut bytes);
        let ranges: Vec<Range> = bytes
            .get(..copied)
            .unwrap_or_default()
            .chunks_exact(RANGE_BYTES)
            .map(|range| Range::parse(range, disk))
            .collect::<Result<_, _>>()?;
        ranges.into_iter().try_for_each(act)?;
        Ok(0)
    }
}

struct Range {
    extent: super::disk::Extent,
    flags: u32,
}

impl Range {
    fn parse(bytes: &[u8], disk: &Disk) -> Result<Self, Failure> {
        let sectors = word(bytes, 8);
        if sectors == 0 || sectors > MAX_RANGE_SECTORS {
            return Err(Failure::Io);
        }
        let extent = disk
            .extent(long(bytes, 0), u64::from(sectors) * 512)
            .ok_or(Failure::Io)?;
        Ok(Self {
            extent,
            flags: word(bytes, 12),
        })
    }
}

fn word(bytes: &[u8], offset: usize) -> u32 {
    field(bytes, offset).map_or(0, u32::from_le_bytes)
}

fn long(bytes: &[u8], offset: usize) -> u64 {
    field(bytes, offset).map_or(0, u64::from_le_bytes)
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;
    use crate::devices::virtio::hostile::attack_with_rings;
    use crate::devices::virtio::test_driver::Driver;
    use crate::resources;

    const OK: u8 = 0;
    const IO_ERROR: u8 = 1;
    const UNSUPPORTED: u8 = 2;

    fn file(contents: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(contents, 0).unwrap();
        file
    }

    fn disk(files: &[(&File, u64)], read_only: bool) -> Disk {
        let parts = files
            .iter()
            .map(|(file, bytes)| resources::Part {
                file: file.try_clone().unwrap(),
                bytes: *bytes,
            })
            .collect();
        Disk::new(resources::Disk { parts, read_only }).unwrap()
    }

    fn header(kind: u32, sector: u64) -> Vec<u8> {
        [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
    }

    fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
        [
            &sector.to_le_bytes()[..],
            &sectors.to_le_bytes(),
            &flags.to_le_bytes(),
        ]
        .concat()
    }

    /// One request: returns the status, the bytes that the device says it has written, and the data.
    fn request(disk: &Disk, header: &[u8], output: &[u8], input: u32) -> (u8, u32, Vec<u8>) {
        let driver = Driver::new(8);
        let readable: &[&[u8]] = if output.is_empty() {
            &[header]
        } else {
            &[header, output]
        };
        let writable: &[u32] = if input == 0 { &[1] } else { &[input, 1] };
        let data = driver.request(readable, writable);
        let mut signals = 0;
        process(
            &mut driver.ring(),
            &driver.memory,
            disk,
            &AtomicBool::new(false),
            &mut || signals += 1,
        )
        .unwrap();
        assert_eq!(signals, 1);
        let status = if input == 0 {
            data
        } else {
            data + u64::from(input).next_multiple_of(16)
        };
        (
            driver.read(status, 1)[0],
            driver.used()[0].1,
            driver.read(data, input as usize),
        )
    }

    #[test]
    fn reads_cross_parts_and_padding_is_zero() {
        let (first, second) = (file(&[1; 1024]), file(&[2; 600]));
        let disk = disk(&[(&first, 1024), (&second, 1024)], true);
        let (status, written, data) = request(&disk, &header(VIRTIO_BLK_T_IN, 1), &[], 1536);
        assert_eq!((status, written), (OK, 1537));
        assert_eq!(data, [vec![1; 512], vec![2; 600], vec![0; 424]].concat());
        for (sector, bytes) in [(4, 512), (3, 1024), (u64::MAX, 512), (1 << 55, 512), (0, 100)] {
            let (status, written, _) = request(&disk, &header(VIRTIO_BLK_T_IN, sector), &[], bytes);
            assert_eq!((status, written), (IO_ERROR, 1), "{bytes} at {sector}");
        }
    }

    #[test]
    fn a_file_that_shrinks_is_an_error_and_not_zeros() {
        let backing = file(&[1; 16384]);
        let disk = disk(&[(&backing, 16384)], true);
        backing.set_len(4096).unwrap();
        assert_eq!(
            request(&disk, &header(VIRTIO_BLK_T_IN, 0), &[], 16384).0,
            IO_ERROR
        );
        assert_eq!(request(&disk, &header(VIRTIO_BLK_T_IN, 0), &[], 4096).0, OK);
    }

    #[test]
    fn read_only_disks_refuse_every_change() {
        let backing = file(&[1; 4096]);
        let disk = disk(&[(&backing, 4096)], true);
        assert_eq!(
            request(&disk, &header(VIRTIO_BLK_T_OUT, 0), &[9; 512], 0).0,
            IO_ERROR
        );
        for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            assert_eq!(request(&disk, &header(kind, 0), &range(0, 8, 0), 0).0, IO_ERROR);
        }
        assert_eq!(request(&disk, &header(VIRTIO_BLK_T_FLUSH, 0), &[], 0).0, OK);
        let mut contents = [0; 4096];
        backing.read_exact_at(&mut contents, 0).unwrap();
        assert_eq!(contents, [1; 4096]);
    }

    #[test]
    fn writes_reach_the_file() {
        let backing = file(&[0; 4096]);
        let disk = disk(&[(&backing, 4096)], false);
        let (status, written, _) = request(&disk, &header(VIRTIO_BLK_T_OUT, 2), &[7; 1024], 0);
        assert_eq!((status, written), (OK, 1));
        assert_eq!(request(&disk, &header(VIRTIO_BLK_T_FLUSH, 0), &[], 0).0, OK);
        let mut contents = [0; 4096];
        backing.read_exact_at(&mut contents, 0).unwrap();
        assert_eq!(contents[..1024], [0; 1024]);
        assert_eq!(contents[1024..2048], [7; 1024]);
        assert_eq!(contents[2048..], [0; 2048]);
        for (sector, bytes) in [(7, 1024), (8, 512), (0, 511)] {
            let data = vec![7; bytes];
            assert_eq!(
                request(&disk, &header(VIRTIO_BLK_T_OUT, sector), &data, 0).0,
                IO_ERROR
            );
        }
        assert_eq!(backing.metadata().unwrap().len(), 4096);
    }

    #[test]
    fn discarded_space_goes_back_and_reads_as_zeros() {
        let backing = file(&[5; 1 << 16]);
        let disk = disk(&[(&backing, 1 << 16)], false);
        let before = backing.metadata().unwrap().blocks();
        let ranges = [range(0, 64, 0), range(96, 16, 0)].concat();
        assert_eq!(request(&disk, &header(VIRTIO_BLK_T_DISCARD, 0), &ranges, 0).0, OK);
        assert!(backing.metadata().unwrap().blocks() < before);
        assert_eq!(
            request(&disk, &header(VIRTIO_BLK_T_WRITE_ZEROES, 0), &range(64, 8, 0), 0).0,
            OK
        );
        assert_eq!(
            request(
                &disk,
                &header(VIRTIO_BLK_T_WRITE_ZEROES, 0),
                &range(72, 8, UNMAP),
                0
            )
            .0,
            OK
        );
        let mut contents = vec![0; 1 << 16];
        backing.read_exact_at(&mut contents, 0).unwrap();
        let expected: Vec<u8> = (0..128_u32)
            .flat_map(|sector| [if matches!(sector, 80..96 | 112..) { 5 } else { 0 }; 512])
            .collect();
        assert_eq!(contents, expected);
        assert_eq!(backing.metadata().unwrap().len(), 1 << 16);
    }

    #[test]
    fn ranges_are_all_checked_before_the_first_is_touched() {
        let backing = file(&[5; 4096]);
        let disk = disk(&[(&backing, 4096)], false);
        let check = |ranges: &[u8], expected| {
            assert_eq!(
                request(&disk, &header(VIRTIO_BLK_T_DISCARD, 0), ranges, 0).0,
                expected
            );
        };
        check(&[range(0, 8, 0), range(8, 1, 0)].concat(), IO_ERROR);
        check(&range(0, 0, 0), IO_ERROR);
        check(&range(u64::MAX, 1, 0), IO_ERROR);
        check(&range(0, MAX_RANGE_SECTORS + 1, 0), IO_ERROR);
        check(&range(0, 8, 0)[..15], IO_ERROR);
        check(&range(0, 1, 0).repeat(17), IO_ERROR);
        check(&range(0, 8, UNMAP), UNSUPPORTED);
        let mut contents = [0; 4096];
        backing.read_exact_at(&mut contents, 0).unwrap();
        assert_eq!(contents, [5; 4096]);
    }

    #[test]
    fn a_full_host_disk_is_an_error_for_the_guest() {
        let full = File::options().read(true).write(true).open("/dev/full").unwrap();
        let part = resources::Part { file: full, bytes: 0 };
        assert!(
            Disk::new(resources::Disk {
                parts: vec![part],
                read_only: false
            })
            .is_err()
        );
        // A file-size limit and a full file system fail in the same place: the write itself.
        let read_only_file = File::open("/proc/self/exe").unwrap();
        let disk = disk(&[(&read_only_file, 4096)], false);
        assert_eq!(
            request(&disk, &header(VIRTIO_BLK_T_OUT, 0), &[1; 512], 0).0,
            IO_ERROR
        );
    }

    #[test]
    fn other_requests() {
        let backing = file(&[0; 512]);
        let disk = disk(&[(&backing, 512)], false);
        let (status, written, data) = request(&disk, &header(VIRTIO_BLK_T_GET_ID, 0), &[], 20);
        assert_eq!((status, written, &data[..9]), (OK, 21, &b"rvm-disk\0"[..]));
        assert_eq!(request(&disk, &header(VIRTIO_BLK_T_GET_ID, 0), &[], 4).1, 5);
        assert_eq!(request(&disk, &header(99, 0), &[], 0).0, UNSUPPORTED);
    }

    #[test]
    fn a_request_without_header_or_status_breaks_the_queue() {
        let backing = file(&[0; 512]);
        let disk = disk(&[(&backing, 512)], false);
        let check = |readable: &[&[u8]], writable: &[u32]| {
            let driver = Driver::new(8);
            driver.request(readable, writable);
            let stop = AtomicBool::new(false);
            let result = process(&mut driver.ring(), &driver.memory, &disk, &stop, &mut || ());
            assert!(matches!(result, Err(RingError::Malformed)));
            assert!(driver.used().is_empty());
        };
        check(&[&header(VIRTIO_BLK_T_IN, 0)[..15]], &[1]);
        check(&[&header(VIRTIO_BLK_T_OUT, 0), &[0; 512]], &[]);
        check(&[], &[512, 1]);
    }

    #[test]
    fn short_files_are_refused() {
        let backing = file(&[0; 512]);
        let check = |bytes, read_only, accepted: bool| {
            let parts = vec![resources::Part {
                file: backing.try_clone().unwrap(),
                bytes,
            }];
            let result = Disk::new(resources::Disk { parts, read_only });
            assert_eq!(result.is_ok(), accepted, "{bytes} {read_only}");
        };
        check(512, false, true);
        check(1024, false, false);
        check(4096, true, true);
        check(8192, true, false);
        check(100, true, false);
    }

    #[test]
    fn hostile_rings_do_no_harm() {
        let contents = vec![7; 64 << 10];
        let file = file(&contents);
        let driver = Driver::new(8);
        // The file is longer than the disk: what lies behind is not the driver's.
        let disk = disk(&[(&file, 32 << 10)], false);
        let stop = AtomicBool::new(false);
        let kinds = [
            VIRTIO_BLK_T_IN,
            VIRTIO_BLK_T_OUT,
            VIRTIO_BLK_T_FLUSH,
            VIRTIO_BLK_T_DISCARD,
            VIRTIO_BLK_T_WRITE_ZEROES,
            VIRTIO_BLK_T_GET_ID,
            99,
        ];
        attack_with_rings(
            &driver,
            |random| {
                header(
                    random.one_of(&kinds),
                    random.one_of(&[0, 1, 62, 63, 64, u64::MAX]),
                )
            },
            |mut ring, _| {
                // Nonsense is an error, sense is served, and neither reaches what is not the driver's.
                let _ = process(&mut ring, &driver.memory, &disk, &stop, &mut || ());
            },
        );
        let mut after = vec![0; contents.len()];
        file.read_exact_at(&mut after, 0).unwrap();
        assert!(after[32 << 10..] == contents[32 << 10..]);
        assert_eq!(file.metadata().unwrap().len(), 64 << 10);
    }
}
