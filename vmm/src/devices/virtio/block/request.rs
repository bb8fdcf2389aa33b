//! Block requests (section 5.2.6): one descriptor chain each, checked as a whole and then carried out as one operation
//! on a file after the other, until it is done.
//!
//! Data goes straight between guest memory and the host's files. The work of one request is bounded by
//! [`MAX_DATA_BYTES`] or [`MAX_RANGES`], which the configuration space tells the driver.

use std::io;

use rustix::fs::FallocateFlags;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::backend::{Operation, OperationKind};
use super::disk::{Disk, Extent, PADDING};
use crate::config::SECTOR_BYTES;
use crate::devices::virtio::chain::{Buffers, Chain};
use crate::devices::virtio::ring::RingError;

/// Most data segments of a request: a queue's descriptors without those for header and status.
pub(super) const MAX_SEGMENTS: u32 = 126;
/// Longest data segment.
pub(super) const MAX_SEGMENT_BYTES: u32 = 256 << 10;
/// Most bytes that one request moves: 31.5 MiB. More would hold up the requests behind it.
const MAX_DATA_BYTES: usize = 126 * (256 << 10);
/// Most ranges that one request discards or zeroes.
pub(super) const MAX_RANGES: u32 = 16;
/// Most sectors of such a range: 2 GiB.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 22;
/// How often an operation is repeated that the host has broken off.
const MAX_REPEATS: u8 = 8;

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;
/// Flag of a range: the space may be given back (section 5.2.6).
pub(super) const UNMAP: u32 = 1;

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// How a request failed, as the driver sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Io,
    Unsupported,
}

/// A request that is being served.
#[derive(Debug)]
pub(super) struct Request<'m> {
    /// The chain, and the queue that it came from.
    pub(super) head: u16,
    pub(super) queue: usize,
    /// The last byte that the device writes.
    status: Buffers<'m>,
    work: Work<'m>,
    /// What was written to the driver's buffers when all is done.
    written: usize,
    repeats: u8,
}

#[derive(Debug)]
enum Work<'m> {
    Read(Transfer<'m>),
    Write(Transfer<'m>),
    Synchronise,
    Allocate(Vec<Range>),
    Done,
    Failed(Failure),
}

/// Data on its way: as much as one file has of it, and what comes after.
#[derive(Debug)]
struct Transfer<'m> {
    place: usize,
    offset: u64,
    here: Buffers<'m>,
    /// With its place on the disk.
    after: Option<(u64, Buffers<'m>)>,
}

/// An extent to discard or to zero.
#[derive(Clone, Copy, Debug)]
struct Range {
    extent: Extent,
    flags: u32,
}

impl<'m> Request<'m> {
    /// Checks a chain of queue number `queue`. What is wrong with the request itself, the driver is told in its status.
    ///
    /// # Errors
    /// [`RingError::Malformed`] if it has no room for header and status.
    pub(super) fn parse(chain: &Chain<'m>, queue: usize, disk: &Disk) -> Result<Self, RingError> {
        let (header, output) = chain
            .readable
            .split_at(HEADER_BYTES)
            .ok_or(RingError::Malformed)?;
        let data_bytes = chain.writable.len().checked_sub(1).ok_or(RingError::Malformed)?;
        let (input, status) = chain.writable.split_at(data_bytes).ok_or(RingError::Malformed)?;
        let header: [u8; HEADER_BYTES] = header.read().ok_or(RingError::Malformed)?;
        let (kind, sector) = (word(&header, 0), long(&header, 8));
        let mut written = 0;
        let work = match kind {
            VIRTIO_BLK_T_IN => {
                written = input.len();
                transfer(disk, sector, input).map(|transfer| transfer.map_or(Work::Done, Work::Read))
            }
            VIRTIO_BLK_T_GET_ID => {
                let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
                id[..8].copy_from_slice(b"rvm-disk");
                written = input.copy_from(&id);
                Ok(Work::Done)
            }
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if disk.is_read_only() => {
                Err(Failure::Io)
            }
            VIRTIO_BLK_T_OUT => {
                transfer(disk, sector, output).map(|transfer| transfer.map_or(Work::Done, Work::Write))
            }
            VIRTIO_BLK_T_FLUSH if disk.is_read_only() => Ok(Work::Done),
            VIRTIO_BLK_T_FLUSH => Ok(Work::Synchronise),
            VIRTIO_BLK_T_DISCARD => ranges(disk, &output, 0).map(|mut ranges| {
                // The space goes back, whatever happens to it in between.
                ranges.iter_mut().for_each(|range| range.flags = UNMAP);
                Work::of_ranges(ranges)
            }),
            VIRTIO_BLK_T_WRITE_ZEROES => ranges(disk, &output, UNMAP).map(Work::of_ranges),
            _ => Err(Failure::Unsupported),
        };
        Ok(Self {
            head: chain.head,
            queue,
            status,
            work: work.unwrap_or_else(Work::Failed),
            written,
            repeats: 0,
        })
    }

    /// What has to be done next; `None` if the request has ended.
    pub(super) fn next(&self) -> Option<Operation<'_, 'm>> {
        let (place, kind) = match &self.work {
            Work::Read(Transfer {
                place, offset, here, ..
            }) => {
                let (offset, into) = (*offset, here.slices());
                (*place, OperationKind::Read { offset, into })
            }
            Work::Write(Transfer {
                place, offset, here, ..
            }) => {
                let (offset, from) = (*offset, here.slices());
                (*place, OperationKind::Write { offset, from })
            }
            // A disk that can be written has one file.
            Work::Synchronise => (0, OperationKind::Synchronise),
            Work::Allocate(ranges) => {
                let Range { extent, flags } = *ranges.last()?;
                let flags = if flags == UNMAP { PUNCH } else { ZERO };
                (0, OperationKind::Allocate { flags, extent })
            }
            Work::Done | Work::Failed(_) => return None,
        };
        Some(Operation { place, kind })
    }

    /// Takes in how the operation that was next has ended.
    pub(super) fn advance(&mut self, disk: &Disk, result: io::Result<usize>) {
        let work = std::mem::replace(&mut self.work, Work::Failed(Failure::Io));
        self.work = match (result, work) {
            (Err(error), work) => self.failed(&error, work),
            (Ok(bytes), Work::Read(transfer)) => go_on(disk, transfer.after_read(bytes), Work::Read),
            (Ok(0), Work::Write(_)) => Work::Failed(Failure::Io),
            (Ok(bytes), Work::Write(transfer)) => go_on(disk, transfer.after_some(bytes), Work::Write),
            (Ok(_), Work::Allocate(mut ranges)) => {
                ranges.pop();
                Work::of_ranges(ranges)
            }
            (Ok(_), Work::Synchronise) => Work::Done,
            (Ok(_), ended) => ended,
        };
    }

    fn failed(&mut self, error: &io::Error, mut work: Work<'m>) -> Work<'m> {
        match (error.raw_os_error(), &mut work) {
            (Some(libc::EINTR | libc::EAGAIN), _) if self.repeats < MAX_REPEATS => {
                self.repeats += 1;
                work
            }
            // A file system that cannot zero can often punch holes, which reads the same.
            (Some(libc::EOPNOTSUPP), Work::Allocate(ranges)) => match ranges.last_mut() {
                Some(range) if range.flags != UNMAP => {
                    range.flags = UNMAP;
                    work
                }
                _ => Work::Failed(Failure::Unsupported),
            },
            (Some(libc::EOPNOTSUPP), _) => Work::Failed(Failure::Unsupported),
            _ => Work::Failed(Failure::Io),
        }
    }

    /// Tells the driver how the request has ended, in its status byte; returns the bytes written to its buffers.
    pub(super) fn finish(&self) -> u32 {
        let (code, written) = match self.work {
            Work::Failed(Failure::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
            Work::Done => (VIRTIO_BLK_S_OK, self.written),
            _ => (VIRTIO_BLK_S_IOERR, 0),
        };
        self.status.copy_from(&[u8::try_from(code).unwrap_or(u8::MAX)]);
        // A chain is shorter than 4 GiB, so the sum fits.
        u32::try_from(written).unwrap_or(u32::MAX).saturating_add(1)
    }
}

impl Work<'_> {
    fn of_ranges(ranges: Vec<Range>) -> Self {
        if ranges.is_empty() {
            Self::Done
        } else {
            Self::Allocate(ranges)
        }
    }
}

impl<'m> Transfer<'m> {
    /// The part of `data`, which lies at `offset` of the disk, that one file has; `None` if there are no data.
    fn new(disk: &Disk, offset: u64, data: Buffers<'m>) -> Result<Option<Self>, Failure> {
        if data.is_empty() {
            return Ok(None);
        }
        let location = disk.locate(offset).ok_or(Failure::Io)?;
        let left = usize::try_from(location.left).unwrap_or(usize::MAX);
        let (here, after) = if data.len() <= left {
            (data, None)
        } else {
            let (here, after) = data.split_at(left).ok_or(Failure::Io)?;
            (here, Some((offset + location.left, after)))
        };
        Ok(Some(Self {
            place: location.place,
            offset: location.offset,
            here,
            after,
        }))
    }

    /// What is left after the first `bytes` of what is here, and what comes after if that was all.
    fn after_some(mut self, bytes: usize) -> Result<Rest<'m>, Failure> {
        if bytes == self.here.len() {
            return Ok(Rest::After(self.after));
        }
        self.here = self.here.split_at(bytes).ok_or(Failure::Io)?.1;
        self.offset += u64::try_from(bytes).map_err(|_| Failure::Io)?;
        Ok(Rest::Here(self))
    }

    /// The same for a read, which may find the file's end: up to [`PADDING`] bytes behind it are zeros.
    fn after_read(self, bytes: usize) -> Result<Rest<'m>, Failure> {
        if bytes > 0 {
            return self.after_some(bytes);
        }
        if u64::try_from(self.here.len()).map_err(|_| Failure::Io)? > PADDING {
            return Err(Failure::Io);
        }
        self.here.fill_zero();
        Ok(Rest::After(self.after))
    }
}

enum Rest<'m> {
    /// Of this file.
    Here(Transfer<'m>),
    /// Of those behind it.
    After(Option<(u64, Buffers<'m>)>),
}

fn go_on<'m>(
    disk: &Disk,
    rest: Result<Rest<'m>, Failure>,
    work: impl Fn(Transfer<'m>) -> Work<'m>,
) -> Work<'m> {
    let next = match rest {
        Ok(Rest::Here(transfer)) => return work(transfer),
        Ok(Rest::After(None)) => return Work::Done,
        Ok(Rest::After(Some((offset, data)))) => Transfer::new(disk, offset, data),
        Err(failure) => return Work::Failed(failure),
    };
    match next {
        Ok(transfer) => transfer.map_or(Work::Done, work),
        Err(failure) => Work::Failed(failure),
    }
}

fn transfer<'m>(disk: &Disk, sector: u64, data: Buffers<'m>) -> Result<Option<Transfer<'m>>, Failure> {
    if data.len() > MAX_DATA_BYTES {
        return Err(Failure::Io);
    }
    let bytes = u64::try_from(data.len()).map_err(|_| Failure::Io)?;
    let extent = disk.extent(sector, bytes).ok_or(Failure::Io)?;
    Transfer::new(disk, extent.offset, data)
}

/// The ranges of a discard or write-zeroes request, last one first, if all of them are good. Their flags may be those
/// that are set in `flags`.
fn ranges(disk: &Disk, output: &Buffers<'_>, flags: u32) -> Result<Vec<Range>, Failure> {
    const MOST: usize = MAX_RANGES as usize * RANGE_BYTES;
    let mut bytes = [0; MOST];
    if output.len() > MOST || !output.len().is_multiple_of(RANGE_BYTES) {
        return Err(Failure::Io);
    }
    let copied = output.copy_to(&mut bytes);
    let ranges = bytes
        .get(..copied)
        .unwrap_or_default()
        .chunks_exact(RANGE_BYTES)
        .rev();
    let ranges = ranges
        .map(|range| Range::parse(range, disk))
        .collect::<Result<Vec<_>, _>>()?;
    if ranges.iter().all(|range| range.flags & !flags == 0) {
        Ok(ranges)
    } else {
        Err(Failure::Unsupported)
    }
}

impl Range {
    fn parse(bytes: &[u8], disk: &Disk) -> Result<Self, Failure> {
        let sectors = word(bytes, 8);
        if sectors == 0 || sectors > MAX_RANGE_SECTORS {
            return Err(Failure::Io);
        }
        let extent = disk
            .extent(long(bytes, 0), u64::from(sectors) * SECTOR_BYTES)
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
