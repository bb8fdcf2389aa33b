//! A guest whose memory and queues are made of an input, and the rules for what a device may change in it.

use std::cell::OnceCell;
use std::fs::File;
use std::ops::Range;

use rustix::fs::MemfdFlags;

use super::Input;
use crate::devices::virtio::ring::{Ring, RingState};
use crate::memory::{Bytes, GuestAddress, GuestMemory};

/// Start and bytes of the regions: two that touch, and one behind a hole. Little memory, so that it is quickly compared.
const REGIONS: [(u64, usize); 3] = [(0, 0x2000), (0x2000, 0x2000), (0x5000, 0x1000)];
const MEMORY_BYTES: usize = 0x5000;
const HOLE: u64 = 0x4000;
const HOLE_BYTES: u64 = 0x1000;
pub(crate) const END: u64 = 0x6000;
/// Each queue has a kilobyte of its own at first; behind them are buffers.
const QUEUE_BYTES: u64 = 0x400;
pub(crate) const BUFFERS: u64 = 0x1000;
/// Where indirect tables are.
const TABLES: u64 = 0x3000;
/// What buffers are filled with: a write that should not have happened shows.
const PATTERN: u8 = 0xa5;

/// The buffer continues in another descriptor.
const NEXT: u16 = 1;
/// The device writes the buffer.
pub(crate) const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
const INDIRECT: u16 = 4;

/// Memory of the guest, as it is before an input is looked at. There is one for each thread.
pub(crate) fn memory() -> GuestMemory {
    thread_local! {
        static MEMORY: OnceCell<GuestMemory> = const { OnceCell::new() };
    }
    let memory = MEMORY.with(|cell| {
        cell.get_or_init(|| {
            let ranges = REGIONS.map(|(start, bytes)| (GuestAddress(start), bytes));
            GuestMemory::from_ranges(&ranges).unwrap()
        })
        .clone()
    });
    static QUEUES: [u8; 0x1000] = [0; 0x1000];
    static PATTERNS: [u8; 0x3000] = [PATTERN; 0x3000];
    memory.write_slice(&QUEUES, GuestAddress(0)).unwrap();
    memory.write_slice(&PATTERNS, GuestAddress(BUFFERS)).unwrap();
    let (last, bytes) = REGIONS[2];
    memory
        .write_slice(&PATTERNS[..bytes], GuestAddress(last))
        .unwrap();
    memory
}

/// All of it, without the hole.
fn image(memory: &GuestMemory) -> Vec<u8> {
    let mut image = vec![0; MEMORY_BYTES];
    let mut rest = image.as_mut_slice();
    for (start, bytes) in REGIONS {
        let (here, after) = rest.split_at_mut(bytes);
        memory.read_slice(here, GuestAddress(start)).unwrap();
        rest = after;
    }
    image
}

/// Where `bytes` at `address` are in an image; `None` unless all of them are memory.
fn place(address: u64, bytes: u64) -> Option<Range<usize>> {
    let end = address.checked_add(bytes)?;
    let shift = match address {
        0..=HOLE if end <= HOLE => 0,
        _ if address >= HOLE + HOLE_BYTES && end <= END => HOLE_BYTES,
        _ => return None,
    };
    let position = |address: u64| usize::try_from(address - shift).unwrap();
    Some(position(address)..position(end))
}

/// An empty file in memory.
pub(crate) fn scratch_file() -> File {
    rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC)
        .unwrap()
        .into()
}

/// A queue that a hostile driver has filled.
pub(crate) struct Scene {
    /// Before the device has looked at it.
    pub(crate) state: RingState,
    pub(crate) ring: Ring,
}

/// Fills queue number `index` as `input` says; `None` if the queue cannot even be taken into use. `content` makes what is
/// found in a buffer, so that requests get beyond a device's first check.
pub(crate) fn scene(
    input: &mut Input<'_>,
    memory: &GuestMemory,
    index: u64,
    content: impl FnMut(&mut Input<'_>) -> Vec<u8>,
) -> Option<Scene> {
    let options = input.byte();
    let mut state = queue(index, 2 << ((options >> 1) & 3));
    if options & 8 != 0 {
        state.descriptors = (u64::from(input.half()) % END) & !15;
        state.available = (u64::from(input.half()) % END) & !1;
        state.used = (u64::from(input.half()) % END) & !3;
    }
    if options & 16 != 0 {
        state.next_available = input.half();
        state.next_used = input.half();
    }
    let ring = Ring::new(state, 16, options & 1 != 0, memory).ok()?;
    // A queue that was in use before.
    put(memory, state.used, &[0, 0]);
    put(memory, state.used + 2, &state.next_used.to_le_bytes());
    fill(input, memory, &state, content);
    Some(Scene { state, ring })
}

/// Queue number `index`, where it is usually.
pub(crate) fn queue(index: u64, size: u16) -> RingState {
    let base = index * QUEUE_BYTES;
    RingState {
        size,
        ready: true,
        descriptors: base,
        available: base + 0x200,
        used: base + 0x300,
        ..Default::default()
    }
}

/// Writes descriptors and makes some of them available, in a queue that was used as far as `state` says.
pub(crate) fn fill(
    input: &mut Input<'_>,
    memory: &GuestMemory,
    state: &RingState,
    mut content: impl FnMut(&mut Input<'_>) -> Vec<u8>,
) {
    for _ in 0..input.below(20) {
        write_descriptor(input, memory, state, &mut content);
    }
    offer(input, memory, state);
}

/// One descriptor, in the queue's table or an indirect one: number, place, length, flags and next.
fn write_descriptor(
    input: &mut Input<'_>,
    memory: &GuestMemory,
    state: &RingState,
    content: &mut impl FnMut(&mut Input<'_>) -> Vec<u8>,
) {
    let number = u64::from(input.byte());
    let address = address(input);
    let length = length(input);
    let (flags, next) = (input.byte(), input.byte());
    let table = if flags & 0x40 != 0 {
        TABLES
    } else {
        state.descriptors
    };
    let high = if flags & 0x38 == 0x38 { !7 } else { 0 };
    let entry = [
        &address.to_le_bytes()[..],
        &length.to_le_bytes(),
        &(u16::from(flags & 7) | high).to_le_bytes(),
        &if next == u8::MAX {
            u16::MAX
        } else {
            u16::from(next)
        }
        .to_le_bytes(),
    ];
    put(memory, table + 16 * (number % 32), &entry.concat());
    if flags & 0x80 != 0 {
        put(memory, address, &content(input));
    }
}

/// Makes heads available, and says how many there are, or something else.
fn offer(input: &mut Input<'_>, memory: &GuestMemory, state: &RingState) {
    let count = input.below(24);
    let mut index = state.next_available;
    for _ in 0..count {
        let head = input.byte();
        let head = if head == u8::MAX {
            u16::MAX
        } else {
            u16::from(head)
        };
        let slot = u64::from(index % state.size);
        put(memory, state.available + 4 + 2 * slot, &head.to_le_bytes());
        index = index.wrapping_add(1);
    }
    if input.byte() & 0xf0 == 0xf0 {
        index = input.half();
    }
    put(memory, state.available, &[input.byte() & 1, 0]);
    put(memory, state.available + 2, &index.to_le_bytes());
    // The event index behind the ring; only looked at if that feature is in use.
    let event = state.available + 4 + 2 * u64::from(state.size);
    put(memory, event, &input.half().to_le_bytes());
}

fn address(input: &mut Input<'_>) -> u64 {
    let (kind, value) = (input.byte(), u64::from(input.half()));
    match kind % 16 {
        0..=5 => BUFFERS + value % 0x3000,
        6 => BUFFERS + (value % 6) * 0x800,
        7 => REGIONS[1].0 - value % 64,
        8 => REGIONS[2].0 + value % 0x1000,
        9 => HOLE - value % 64,
        10 => END - value % 64,
        11 => value % BUFFERS,
        12 => TABLES + 16 * (value % 32),
        13 => u64::MAX - value % 64,
        14 => value << 32,
        _ => TABLES,
    }
}

fn length(input: &mut Input<'_>) -> u32 {
    let (kind, value) = (input.byte(), u32::from(input.half()));
    match kind % 16 {
        0..=3 => value % 64,
        4 => 16,
        5 => 16 * (value % 32),
        6 => 512 * (value % 32),
        7 => value % 0x1000,
        8 => value,
        9 => u32::MAX - value,
        10 => value << 16,
        11 => 512,
        12 => 1,
        13 => 44,
        14 => 44 + value % 0x400,
        _ => 0,
    }
}

/// Writes what fits, as a driver would that does not care.
pub(crate) fn put(memory: &GuestMemory, address: u64, bytes: &[u8]) {
    // What is outside of memory is no memory.
    let _ = memory.write_slice(bytes, GuestAddress(address));
}

/// What a device may write: the used rings, and the writable buffers of what is available.
///
/// Nothing can be said where a driver lets the device write over descriptors or rings that the device reads later; then
/// all is permitted.
pub(crate) struct Permit {
    before: Vec<u8>,
    /// Where the device may write.
    writable: Vec<Range<usize>>,
    /// Where used rings are.
    used: Vec<Range<usize>>,
    /// What tells the device what to do.
    fixed: Vec<Range<usize>>,
    /// The queues, and the heads that are available in them, where the used ring's index is what it should be.
    offered: Vec<(RingState, Vec<u16>)>,
}

impl Permit {
    /// Nothing may be written to `memory`.
    pub(crate) fn none(memory: &GuestMemory) -> Self {
        Self {
            before: image(memory),
            writable: Vec::new(),
            used: Vec::new(),
            fixed: Vec::new(),
            offered: Vec::new(),
        }
    }

    /// What the queue `state` permits, as memory was when `self` was made.
    pub(crate) fn and(mut self, state: &RingState) -> Self {
        let size = u64::from(state.size);
        self.used.extend(place(state.used, 6 + 8 * size));
        self.fixed.extend(place(state.descriptors, 16 * size));
        self.fixed.extend(place(state.available, 6 + 2 * size));
        let heads = self.heads(state);
        for head in &heads {
            self.walk(state, *head);
        }
        if self.half(state.used + 2) == Some(state.next_used) {
            self.offered.push((*state, heads));
        }
        self
    }

    fn heads(&self, state: &RingState) -> Vec<u16> {
        let index = self.half(state.available + 2).unwrap_or(state.next_available);
        let count = index.wrapping_sub(state.next_available);
        if count > state.size {
            return Vec::new();
        }
        (0..count)
            .filter_map(|position| {
                let slot = state.next_available.wrapping_add(position) % state.size;
                self.half(state.available + 4 + 2 * u64::from(slot))
            })
            .collect()
    }

    /// Permits the writable buffers of one chain.
    fn walk(&mut self, state: &RingState, head: u16) {
        let (mut table, mut entries, mut index) = (state.descriptors, u64::from(state.size), head);
        // Each table has an end, and there are two of them at most.
        for _ in 0..2 * u32::from(state.size) + 2 {
            if u64::from(index) >= entries {
                return;
            }
            let entry = table.saturating_add(16 * u64::from(index));
            let Some(bytes) = place(entry, 16).and_then(|place| self.before.get(place)) else {
                return;
            };
            let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
            let wide = |at: usize| u64::from(field(at)) | u64::from(field(at + 2)) << 16;
            let (address, length) = (wide(0) | wide(4) << 32, wide(8));
            let (flags, next) = (field(12), field(14));
            if flags & INDIRECT != 0 {
                if table != state.descriptors || length % 16 != 0 {
                    return;
                }
                (table, entries, index) = (address, length / 16, 0);
                self.fixed.extend(place(address, length));
                continue;
            }
            if flags & WRITE != 0 {
                self.writable.extend(place(address, length));
            }
            if flags & NEXT == 0 {
                return;
            }
            index = next;
        }
    }

    fn half(&self, address: u64) -> Option<u16> {
        let bytes = self.before.get(place(address, 2)?)?;
        Some(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    /// Permits the device to empty whole pages anywhere.
    pub(crate) fn and_empty_pages(mut self, memory: &GuestMemory) -> Self {
        let mut after = image(memory);
        // The device may have gone on in a page that it has emptied.
        for range in &self.used {
            after[range.clone()].fill(0);
        }
        let pages = after.chunks(4096).enumerate();
        let emptied = pages.filter(|(_, page)| page.iter().all(|byte| *byte == 0));
        self.writable
            .extend(emptied.map(|(number, _)| number * 4096..(number + 1) * 4096));
        // A page of a ring may be among them, and then anything follows.
        self
    }

    /// Whether what the device was told cannot have changed under it.
    fn is_exact(&self) -> bool {
        let apart = |one: &Range<usize>, other: &Range<usize>| {
            one.end <= other.start || other.end <= one.start || one.is_empty() || other.is_empty()
        };
        let writable_apart = self.writable.iter().all(|range| {
            self.fixed
                .iter()
                .chain(&self.used)
                .all(|other| apart(range, other))
        });
        let used_apart = self.used.iter().enumerate().all(|(index, range)| {
            let others = self.used.iter().skip(index + 1);
            self.fixed.iter().chain(others).all(|other| apart(range, other))
        });
        writable_apart && used_apart
    }

    /// Checks memory after the device has worked.
    ///
    /// # Panics
    /// If the device has written what it may not, or has given back what it was not given.
    pub(crate) fn check(mut self, memory: &GuestMemory) {
        if !self.is_exact() {
            return;
        }
        let after = image(memory);
        for range in self.writable.iter().chain(&self.used) {
            self.before[range.clone()].copy_from_slice(&after[range.clone()]);
        }
        if self.before != after {
            let changed = self.before.iter().zip(&after).position(|(old, new)| old != new);
            panic!("memory that is not the device's was changed at {changed:x?}");
        }
        // Used rings are the same in `before` now.
        for (state, heads) in &self.offered {
            self.check_used(state, heads.clone());
        }
    }

    fn check_used(&self, state: &RingState, mut heads: Vec<u16>) {
        let index = self.half(state.used + 2).unwrap();
        let count = index.wrapping_sub(state.next_used);
        assert!(usize::from(count) <= heads.len(), "{count} given back");
        for position in 0..count {
            let slot = u64::from(state.next_used.wrapping_add(position) % state.size);
            let entry = state.used + 4 + 8 * slot;
            let head = self.half(entry).unwrap();
            assert_eq!(self.half(entry + 2), Some(0));
            let found = heads.iter().position(|offered| *offered == head);
            heads.swap_remove(found.unwrap_or_else(|| panic!("{head} was not available")));
        }
    }
}
