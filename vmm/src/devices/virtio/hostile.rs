//! A driver that means harm, for tests: rings with every kind of nonsense, the same ones in each run.

use super::ring::{Ring, RingState};
use super::test_driver::{Driver, INDIRECT, NEXT, WRITE};
use crate::memory::{GuestAddress, GuestMemoryBackend as _};

/// Rings of one test; `RVM_TEST_ROUNDS` multiplies them.
const RINGS: u32 = 5000;
const QUEUE_SIZE: u16 = 8;

/// Numbers that look random (xorshift64*, Vigna 2016).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }

    fn index(&mut self) -> u16 {
        let near = u16::try_from(self.below(10)).unwrap();
        self.one_of(&[near, near, near, near, u16::MAX])
    }
}

/// Puts nonsense into a queue of `driver` again and again; `attack` lets a device look at it. `header` makes the first bytes
/// of buffers, so that some requests get beyond a device's first check.
pub(crate) fn attack_with_rings(
    driver: &Driver,
    header: impl Fn(&mut Random) -> Vec<u8>,
    mut attack: impl FnMut(Ring, &mut Random),
) {
    let factor = std::env::var("RVM_TEST_ROUNDS").map_or(1, |text| text.parse().unwrap());
    let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
    for _ in 0..RINGS * factor {
        attack(hostile_ring(driver, &header, &mut random), &mut random);
    }
}

/// Puts well-formed requests with one fault, or none, into a queue of `driver` again and again: most get past all checks
/// but one. `parts` makes the bytes that a request gives the device, and the lengths of what it takes.
pub(crate) fn attack_with_requests(
    driver: &Driver,
    parts: impl Fn(&mut Random) -> (Vec<Vec<u8>>, Vec<u32>),
    mut attack: impl FnMut(Ring, &mut Random),
) {
    let factor = std::env::var("RVM_TEST_ROUNDS").map_or(1, |text| text.parse().unwrap());
    let mut random = Random::new(0x6a09_e667_f3bc_c909);
    for _ in 0..RINGS * factor {
        driver.forget();
        let mut descriptors = 0;
        loop {
            let (readable, writable) = parts(&mut random);
            descriptors += readable.len() + writable.len();
            if descriptors > usize::from(QUEUE_SIZE) {
                break;
            }
            let readable: Vec<&[u8]> = readable.iter().map(Vec::as_slice).collect();
            driver.request(&readable, &writable);
        }
        one_fault(driver, &mut random);
        let event_index = random.below(2) == 0;
        let ring = Ring::new(driver.state(), QUEUE_SIZE, event_index, &driver.memory).unwrap();
        attack(ring, &mut random);
    }
}

/// Spoils one thing, or nothing, of what `driver` offers.
fn one_fault(driver: &Driver, random: &mut Random) {
    let index = u16::try_from(random.below(u64::from(QUEUE_SIZE))).unwrap();
    let (mut address, mut length, mut flags, mut next) = driver.descriptor(index);
    match random.below(8) {
        0 => (address, ..) = descriptor(driver, &|_| Vec::new(), random),
        1 => (_, length, ..) = descriptor(driver, &|_| Vec::new(), random),
        2 => length = length.wrapping_add(random.one_of(&[1, 511, 512, u32::MAX])),
        3 => flags ^= random.one_of(&[NEXT, WRITE, INDIRECT]),
        4 => next = random.index(),
        // Once more what is under way already.
        5 => driver.offer(index),
        6 => driver.set_available_index(u16::try_from(random.below(1 << 16)).unwrap()),
        _ => {}
    }
    driver.write_descriptor(index, (address, length, flags, next));
}

/// Nonsense in the queue of `driver`, as the device sees it right after activation.
pub(crate) fn hostile_ring(
    driver: &Driver,
    header: impl Fn(&mut Random) -> Vec<u8>,
    random: &mut Random,
) -> Ring {
    driver.forget();
    for index in 0..QUEUE_SIZE {
        let descriptor = descriptor(driver, &header, random);
        driver.write_descriptor(index, descriptor);
        // A table for those that are indirect.
        let inner = self::descriptor(driver, &header, random);
        driver.write_entry(TABLE, index, inner);
    }
    for _ in 0..random.below(u64::from(QUEUE_SIZE) + 1) {
        driver.offer(random.index());
    }
    if random.below(10) == 0 {
        driver.set_available_index(u16::try_from(random.below(1 << 16)).unwrap());
    }
    let state = RingState {
        size: QUEUE_SIZE,
        ..driver.state()
    };
    Ring::new(state, QUEUE_SIZE, random.below(2) == 0, &driver.memory).unwrap()
}

/// Where the indirect tables point.
const TABLE: u64 = 0x38_0000;

fn descriptor(
    driver: &Driver,
    header: &impl Fn(&mut Random) -> Vec<u8>,
    random: &mut Random,
) -> (u64, u32, u16, u16) {
    let end = driver.memory.last_addr().0 + 1;
    let inside = 0x8_0000 + random.below(0x20_0000);
    let near_end = end - random.below(64);
    let queue = driver.state();
    let address = random.one_of(&[
        inside,
        inside,
        inside,
        inside,
        near_end,
        end,
        u64::MAX - random.0 % 64,
        0,
        TABLE,
        queue.descriptors,
        queue.available,
        queue.used,
    ]);
    let bytes = header(random);
    let length = u32::try_from(bytes.len()).unwrap();
    if address == inside && driver.memory.check_range(GuestAddress(address), bytes.len()) {
        driver.write(address, &bytes);
    }
    let any = u32::try_from(random.below(1 << 32)).unwrap();
    let length = random.one_of(&[
        length,
        length,
        length,
        0,
        1,
        16,
        128,
        512,
        4096,
        u32::MAX,
        1 << 31,
        any,
    ]);
    let flags = random.one_of(&[
        0,
        NEXT,
        NEXT,
        WRITE,
        WRITE,
        NEXT | WRITE,
        INDIRECT,
        INDIRECT | NEXT,
        u16::MAX,
    ]);
    (address, length, flags, random.index())
}
