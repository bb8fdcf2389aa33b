//! Pages that the driver gives up: by number in the inflate queue, as buffers in the reporting queue.

use crate::devices::virtio::chain::Buffers;
use crate::devices::virtio::ring::{Outcome, Ring, RingError};
use crate::memory::{GuestAddress, GuestMemory, GuestMemoryBackend as _};
use crate::sys;

/// Unit of page numbers (section 5.5.6), whatever pages the guest uses.
const PAGE_BYTES: usize = 4096;
/// Most pages of one inflate request; Linux sends 256.
const MAX_PAGES: usize = 1024;
/// Requests before the event loop looks at other things; each may be some hundred calls of the host's kernel.
const MAX_REQUESTS: usize = 8;

/// What a queue's requests mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Numbers of pages that go into the balloon.
    Inflate,
    /// Numbers of pages that come out of it: they are used again when they are touched, nothing has to be done.
    Deflate,
    /// Free pages, as buffers that the device may write. The guest does not touch them before it has them back.
    Report,
}

/// Serves requests of one queue, up to a limit.
///
/// # Errors
/// [`RingError`] if the driver broke the queue.
pub(super) fn process(ring: &mut Ring, memory: &GuestMemory, purpose: Purpose) -> Result<Outcome, RingError> {
    ring.serve(
        memory,
        MAX_REQUESTS,
        &mut (),
        |()| true,
        |(), chain| {
            match purpose {
                Purpose::Inflate => discard_pages(memory, &chain.readable)?,
                Purpose::Deflate => {}
                // Pages that the host does not take back stay where they are, which costs nothing but memory.
                Purpose::Report => chain.writable.slices().iter().for_each(sys::discard),
            }
            Ok(Some(0))
        },
    )
}

/// Gives back the pages with these 32-bit numbers.
fn discard_pages(memory: &GuestMemory, numbers: &Buffers<'_>) -> Result<(), RingError> {
    let mut bytes = [0; MAX_PAGES * 4];
    if numbers.len() > bytes.len() || !numbers.len().is_multiple_of(4) {
        return Err(RingError::Malformed);
    }
    let copied = numbers.copy_to(&mut bytes);
    let (numbers, _) = bytes.get(..copied).unwrap_or_default().as_chunks::<4>();
    for number in numbers {
        let address = u64::from(u32::from_le_bytes(*number)) << 12;
        for slice in memory.get_slices(GuestAddress(address), PAGE_BYTES) {
            sys::discard(&slice.map_err(|_| RingError::Malformed)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::hostile::{Random, attack_with_rings};
    use crate::devices::virtio::test_driver::{Driver, WRITE};

    fn fill(driver: &Driver, address: u64, pages: usize) {
        driver.write(address, &vec![7; pages * PAGE_BYTES]);
    }

    fn is_zero(driver: &Driver, address: u64, bytes: usize) -> bool {
        driver.read(address, bytes).iter().all(|byte| *byte == 0)
    }

    #[test]
    fn reported_pages_are_given_back() {
        let driver = Driver::new(8);
        fill(&driver, 0x20_0000, 4);
        // Not quite aligned: only whole pages within the buffer go.
        driver.write_descriptor(0, (0x20_0800, 0x2800, WRITE, 0));
        driver.offer(0);
        let outcome = process(&mut driver.ring(), &driver.memory, Purpose::Report).unwrap();
        assert_eq!(
            outcome,
            Outcome {
                signal: true,
                more: false
            }
        );
        assert_eq!(driver.used(), [(0, 0)]);
        assert!(is_zero(&driver, 0x20_1000, 0x2000));
        assert_eq!(driver.read(0x20_0fff, 1), [7]);
        assert_eq!(driver.read(0x20_3000, 1), [7]);
    }

    #[test]
    fn inflated_pages_are_given_back_and_deflated_ones_left() {
        let driver = Driver::new(8);
        fill(&driver, 0x20_0000, 3);
        let numbers = [0x201_u32.to_le_bytes(), 0x200_u32.to_le_bytes()].concat();
        driver.request(&[&numbers[..6], &numbers[6..]], &[]);
        process(&mut driver.ring(), &driver.memory, Purpose::Deflate).unwrap();
        assert_eq!(driver.read(0x20_0000, 1), [7]);
        process(&mut driver.ring(), &driver.memory, Purpose::Inflate).unwrap();
        assert!(is_zero(&driver, 0x20_0000, 0x2000));
        assert_eq!(driver.read(0x20_2000, 1), [7]);
    }

    #[test]
    fn malformed_requests_break_the_queue() {
        let check = |bytes: &[u8]| {
            let driver = Driver::new(8);
            driver.request(&[bytes], &[]);
            let result = process(&mut driver.ring(), &driver.memory, Purpose::Inflate);
            assert!(
                matches!(result, Err(RingError::Malformed)),
                "{} bytes",
                bytes.len()
            );
        };
        check(&[0; 3]);
        check(&u32::MAX.to_le_bytes());
        check(&[0; MAX_PAGES * 4 + 4]);
    }

    #[test]
    fn many_requests_are_interrupted() {
        let driver = Driver::new(256);
        for _ in 0..=MAX_REQUESTS {
            driver.request(&[&[]], &[]);
        }
        let mut ring = driver.ring();
        let mut serve = || process(&mut ring, &driver.memory, Purpose::Deflate).unwrap().more;
        assert_eq!((serve(), serve()), (true, false));
        assert_eq!(driver.used().len(), MAX_REQUESTS + 1);
    }

    #[test]
    fn hostile_rings_do_no_harm() {
        let driver = Driver::new(8);
        let numbers = |random: &mut Random| {
            let any = [0x200, 0x3ff, 0x400, u32::MAX];
            (0..4).flat_map(|_| random.one_of(&any).to_le_bytes()).collect()
        };
        attack_with_rings(&driver, numbers, |mut ring, random| {
            let purpose = random.one_of(&[Purpose::Inflate, Purpose::Deflate, Purpose::Report]);
            // Nonsense is an error; what is given up was the guest's own.
            let _ = process(&mut ring, &driver.memory, purpose);
        });
    }
}
