//! Requests, well-formed and not, with both back ends.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use vmm_sys_util::eventfd::EventFd;

use super::backend::{Backend, BackendKind};
use super::disk::Disk;
use super::queue::{Context, ServeError, Server};
use super::request::{MAX_RANGE_SECTORS, UNMAP};
use crate::devices::virtio::hostile::{Random, attack_with_requests, attack_with_rings};
use crate::devices::virtio::ring::{Ring, RingError};
use crate::devices::virtio::test_driver::Driver;
use crate::memory::GuestMemory;
use crate::resources;
use crate::sys::uring::MAX_OPERATIONS;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

type Make = fn(Arc<Disk>, EventFd) -> Backend;
const BOTH: [Make; 2] = [ring, calls];

pub(super) fn ring(disk: Arc<Disk>, notification: EventFd) -> Backend {
    let backend = Backend::new(disk, notification);
    assert_eq!(backend.kind(), BackendKind::Asynchronous);
    backend
}

pub(super) fn calls(disk: Arc<Disk>, notification: EventFd) -> Backend {
    Backend::calls(disk, notification, "a test".into())
}

fn file(contents: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(contents, 0).unwrap();
    file
}

/// A disk with its back end.
struct Served {
    disk: Arc<Disk>,
    backend: Backend,
    signals: Cell<u32>,
}

fn served(make: Make, files: &[(&File, u64)], read_only: bool) -> Served {
    let parts = files
        .iter()
        .map(|(file, bytes)| resources::Part {
            file: file.try_clone().unwrap(),
            bytes: *bytes,
        })
        .collect();
    let disk = Arc::new(Disk::new(resources::Disk { parts, read_only }).unwrap());
    let backend = make(disk.clone(), EventFd::new(0).unwrap());
    Served {
        disk,
        backend,
        signals: Cell::new(0),
    }
}

impl Served {
    /// Serves `rings` until there is nothing more to do.
    fn serve(&mut self, rings: &mut [Ring], memory: &GuestMemory) -> Result<(), ServeError> {
        let context = Context {
            memory,
            disk: &self.disk,
            stop: &AtomicBool::new(false),
            signal: &|| self.signals.set(self.signals.get() + 1),
        };
        let mut server = Server::new(context, rings, &mut self.backend);
        loop {
            server.turn()?;
            if server.under_way() == 0 {
                return Ok(());
            }
            server.drain()?;
        }
    }
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
fn request(disk: &mut Served, header: &[u8], output: &[u8], input: u32) -> (u8, u32, Vec<u8>) {
    let driver = Driver::new(8);
    let readable: &[&[u8]] = if output.is_empty() {
        &[header]
    } else {
        &[header, output]
    };
    let writable: &[u32] = if input == 0 { &[1] } else { &[input, 1] };
    let data = driver.request(readable, writable);
    disk.signals.set(0);
    disk.serve(&mut [driver.ring()], &driver.memory).unwrap();
    assert_eq!(disk.signals.get(), 1);
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
    for make in BOTH {
        let (first, second) = (file(&[1; 1024]), file(&[2; 600]));
        let mut disk = served(make, &[(&first, 1024), (&second, 1024)], true);
        let (status, written, data) = request(&mut disk, &header(VIRTIO_BLK_T_IN, 1), &[], 1536);
        assert_eq!((status, written), (OK, 1537));
        assert_eq!(data, [vec![1; 512], vec![2; 600], vec![0; 424]].concat());
        for (sector, bytes) in [(4, 512), (3, 1024), (u64::MAX, 512), (1 << 55, 512), (0, 100)] {
            let (status, written, _) = request(&mut disk, &header(VIRTIO_BLK_T_IN, sector), &[], bytes);
            assert_eq!((status, written), (IO_ERROR, 1), "{bytes} at {sector}");
        }
    }
}

#[test]
fn a_file_that_shrinks_is_an_error_and_not_zeros() {
    for make in BOTH {
        let backing = file(&[1; 16384]);
        let mut disk = served(make, &[(&backing, 16384)], true);
        backing.set_len(4096).unwrap();
        assert_eq!(
            request(&mut disk, &header(VIRTIO_BLK_T_IN, 0), &[], 16384).0,
            IO_ERROR
        );
        assert_eq!(request(&mut disk, &header(VIRTIO_BLK_T_IN, 0), &[], 4096).0, OK);
    }
}

#[test]
fn read_only_disks_refuse_every_change() {
    for make in BOTH {
        let backing = file(&[1; 4096]);
        let mut disk = served(make, &[(&backing, 4096)], true);
        assert_eq!(
            request(&mut disk, &header(VIRTIO_BLK_T_OUT, 0), &[9; 512], 0).0,
            IO_ERROR
        );
        for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            assert_eq!(
                request(&mut disk, &header(kind, 0), &range(0, 8, 0), 0).0,
                IO_ERROR
            );
        }
        assert_eq!(request(&mut disk, &header(VIRTIO_BLK_T_FLUSH, 0), &[], 0).0, OK);
        let mut contents = [0; 4096];
        backing.read_exact_at(&mut contents, 0).unwrap();
        assert_eq!(contents, [1; 4096]);
    }
}

#[test]
fn writes_reach_the_file() {
    for make in BOTH {
        let backing = file(&[0; 4096]);
        let mut disk = served(make, &[(&backing, 4096)], false);
        let (status, written, _) = request(&mut disk, &header(VIRTIO_BLK_T_OUT, 2), &[7; 1024], 0);
        assert_eq!((status, written), (OK, 1));
        assert_eq!(request(&mut disk, &header(VIRTIO_BLK_T_FLUSH, 0), &[], 0).0, OK);
        let mut contents = [0; 4096];
        backing.read_exact_at(&mut contents, 0).unwrap();
        assert_eq!(contents[..1024], [0; 1024]);
        assert_eq!(contents[1024..2048], [7; 1024]);
        assert_eq!(contents[2048..], [0; 2048]);
        for (sector, bytes) in [(7, 1024), (8, 512), (0, 511)] {
            let data = vec![7; bytes];
            assert_eq!(
                request(&mut disk, &header(VIRTIO_BLK_T_OUT, sector), &data, 0).0,
                IO_ERROR
            );
        }
        assert_eq!(backing.metadata().unwrap().len(), 4096);
    }
}

#[test]
fn discarded_space_goes_back_and_reads_as_zeros() {
    for make in BOTH {
        let backing = file(&[5; 1 << 16]);
        let mut disk = served(make, &[(&backing, 1 << 16)], false);
        let before = backing.metadata().unwrap().blocks();
        let ranges = [range(0, 64, 0), range(96, 16, 0)].concat();
        assert_eq!(
            request(&mut disk, &header(VIRTIO_BLK_T_DISCARD, 0), &ranges, 0).0,
            OK
        );
        assert!(backing.metadata().unwrap().blocks() < before);
        assert_eq!(
            request(
                &mut disk,
                &header(VIRTIO_BLK_T_WRITE_ZEROES, 0),
                &range(64, 8, 0),
                0
            )
            .0,
            OK
        );
        assert_eq!(
            request(
                &mut disk,
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
}

#[test]
fn ranges_are_all_checked_before_the_first_is_touched() {
    for make in BOTH {
        let backing = file(&[5; 4096]);
        let mut disk = served(make, &[(&backing, 4096)], false);
        let mut check = |ranges: &[u8], expected| {
            assert_eq!(
                request(&mut disk, &header(VIRTIO_BLK_T_DISCARD, 0), ranges, 0).0,
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
}

#[test]
fn a_full_host_disk_is_an_error_for_the_guest() {
    for make in BOTH {
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
        let mut disk = served(make, &[(&read_only_file, 4096)], false);
        assert_eq!(
            request(&mut disk, &header(VIRTIO_BLK_T_OUT, 0), &[1; 512], 0).0,
            IO_ERROR
        );
    }
}

#[test]
fn other_requests() {
    for make in BOTH {
        let backing = file(&[0; 512]);
        let mut disk = served(make, &[(&backing, 512)], false);
        let (status, written, data) = request(&mut disk, &header(VIRTIO_BLK_T_GET_ID, 0), &[], 20);
        assert_eq!((status, written, &data[..9]), (OK, 21, &b"rvm-disk\0"[..]));
        assert_eq!(request(&mut disk, &header(VIRTIO_BLK_T_GET_ID, 0), &[], 4).1, 5);
        assert_eq!(request(&mut disk, &header(99, 0), &[], 0).0, UNSUPPORTED);
    }
}

#[test]
fn a_request_without_header_or_status_breaks_the_queue() {
    for make in BOTH {
        let backing = file(&[0; 512]);
        let mut disk = served(make, &[(&backing, 512)], false);
        let mut check = |readable: &[&[u8]], writable: &[u32]| {
            let driver = Driver::new(8);
            driver.request(readable, writable);
            let result = disk.serve(&mut [driver.ring()], &driver.memory);
            assert!(matches!(result, Err(ServeError::Ring(RingError::Malformed))));
            assert!(driver.used().is_empty());
        };
        check(&[&header(VIRTIO_BLK_T_IN, 0)[..15]], &[1]);
        check(&[&header(VIRTIO_BLK_T_OUT, 0), &[0; 512]], &[]);
        check(&[], &[512, 1]);
    }
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
fn what_ends_together_is_one_interrupt() {
    let backing = file(&[1; 4096]);
    for (make, signals) in [(ring as Make, 1), (calls, 3)] {
        let mut disk = served(make, &[(&backing, 4096)], true);
        let memory = crate::memory::allocate(4).unwrap();
        let drivers = [0, 1].map(|index| Driver::in_memory(memory.clone(), 8, index));
        for driver in [&drivers[0], &drivers[1], &drivers[1]] {
            driver.request(&[&header(VIRTIO_BLK_T_GET_ID, 0)], &[20, 1]);
        }
        disk.serve(&mut [drivers[0].ring(), drivers[1].ring()], &memory)
            .unwrap();
        assert_eq!(disk.signals.get(), signals);
        assert_eq!(drivers.map(|driver| driver.used().len()), [1, 2]);
    }
}

#[test]
fn more_requests_than_there_is_room_for_are_served() {
    let count = MAX_OPERATIONS + 100;
    let backing = file(&[1; 4096]);
    for make in BOTH {
        let mut disk = served(make, &[(&backing, 4096)], true);
        let driver = Driver::new(256);
        let data = driver.request(&[&header(VIRTIO_BLK_T_IN, 0)], &[4096, 1]);
        for _ in 1..count {
            driver.offer(0);
        }
        disk.serve(&mut [driver.ring()], &driver.memory).unwrap();
        assert_eq!(driver.used(), vec![(0, 4097); usize::from(count)]);
        assert_eq!(driver.read(data, 4096), [1; 4096]);
    }
}

#[test]
fn a_broken_queue_waits_for_what_is_under_way() {
    let backing = file(&[1; 4096]);
    for make in BOTH {
        let mut disk = served(make, &[(&backing, 4096)], true);
        let driver = Driver::new(8);
        let data = driver.request(&[&header(VIRTIO_BLK_T_IN, 0)], &[4096, 1]);
        driver.request(&[&[0; 3]], &[1]);
        let result = disk.serve(&mut [driver.ring()], &driver.memory);
        assert!(matches!(result, Err(ServeError::Ring(RingError::Malformed))));
        assert_eq!(driver.read(data, 4096), [1; 4096]);
    }
}

/// The file is longer than the disk: what lies behind is not the driver's.
const DISK_BYTES: usize = 32 << 10;

/// Lets `attack` have a go at a disk, and says how many of its bytes were changed.
fn attacked(make: Make, attack: impl Fn(&Driver, &mut Served)) -> usize {
    let contents = vec![7; 2 * DISK_BYTES];
    let file = file(&contents);
    let driver = Driver::new(8);
    let mut disk = served(make, &[(&file, DISK_BYTES as u64)], false);
    attack(&driver, &mut disk);
    let mut after = vec![0; contents.len()];
    file.read_exact_at(&mut after, 0).unwrap();
    assert!(after[DISK_BYTES..] == contents[DISK_BYTES..]);
    assert_eq!(file.metadata().unwrap().len(), contents.len() as u64);
    after.iter().filter(|byte| **byte != 7).count()
}

fn any_header(random: &mut Random) -> Vec<u8> {
    let kinds = [
        VIRTIO_BLK_T_IN,
        VIRTIO_BLK_T_OUT,
        VIRTIO_BLK_T_FLUSH,
        VIRTIO_BLK_T_DISCARD,
        VIRTIO_BLK_T_WRITE_ZEROES,
        VIRTIO_BLK_T_GET_ID,
        99,
    ];
    let sector = random.one_of(&[0, 1, 62, 63, 64, u64::MAX]);
    header(random.one_of(&kinds), sector)
}

#[test]
fn hostile_rings_do_no_harm() {
    for make in BOTH {
        attacked(make, |driver, disk| {
            attack_with_rings(driver, any_header, |ring, _| {
                // Nonsense is an error, sense is served, and neither reaches what is not the driver's.
                let _ = disk.serve(&mut [ring], &driver.memory);
            });
        });
    }
}

#[test]
fn requests_that_are_nearly_right_do_no_harm() {
    let parts = |random: &mut Random| {
        let data = random.one_of(&[512, 1024, 4096]);
        let header = any_header(random);
        match random.below(3) {
            0 => (vec![header], vec![u32::try_from(data).unwrap(), 1]),
            1 => (vec![header, range(random.below(66), 2, 0)], vec![1]),
            _ => (vec![header, vec![9; data]], vec![1]),
        }
    };
    for make in BOTH {
        let (served, broken) = (Cell::new(0), Cell::new(0));
        let changed = attacked(make, |driver, disk| {
            attack_with_requests(driver, parts, |ring, _| {
                let result = disk.serve(&mut [ring], &driver.memory);
                let count = if result.is_ok() { &served } else { &broken };
                count.set(count.get() + 1);
            });
        });
        // They get as far as the file, and as far as the checks.
        assert!(changed > DISK_BYTES / 2, "{changed} bytes were changed");
        let (served, broken) = (served.get(), broken.get());
        assert!(served > 1000 && broken > 1000, "{served} {broken}");
    }
}
