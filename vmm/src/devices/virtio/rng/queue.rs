//! Requests for random bytes: the driver's buffers are filled, within a budget.

use serde::{Deserialize, Serialize};

use crate::devices::virtio::chain::Buffers;
use crate::devices::virtio::ring::{Ring, RingError};
use crate::memory::GuestMemory;

/// Most bytes that one request gets; a driver that wants more asks again. Linux asks for 64.
const MAX_REQUEST_BYTES: usize = 4096;

/// Looks at the queue in one turn. A driver that offers something and takes it back each time waits for the refill.
const MAX_LOOKS: u32 = 64;

/// Bytes per refill. With a refill each 100 ms that is 640 KiB/s, far more than a guest needs and far less than would
/// show on the host's processors.
pub(super) const BUDGET_BYTES: u32 = 64 << 10;

/// What a guest may still take before the next refill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Budget(pub(super) u32);

impl Default for Budget {
    fn default() -> Self {
        Self(BUDGET_BYTES)
    }
}

impl Budget {
    /// Not more than a refill gives.
    pub(super) fn bounded(self) -> Self {
        Self(self.0.min(BUDGET_BYTES))
    }
}

/// How far the queue was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The driver wants an interrupt.
    pub(super) signal: bool,
    /// The budget is used up, or the driver keeps the device too long, and requests may be waiting.
    pub(super) exhausted: bool,
}

/// Serves requests as long as there are any and the budget lasts.
///
/// # Errors
/// [`RingError`] if the driver broke the queue.
pub(super) fn process(
    ring: &mut Ring,
    memory: &GuestMemory,
    budget: &mut Budget,
) -> Result<Outcome, RingError> {
    let (mut used, mut looks) = (false, 0);
    let exhausted = loop {
        ring.disable_notifications(memory)?;
        while budget.0 > 0
            && let Some(chain) = ring.pop(memory)?
        {
            let written = fill(&chain.writable, budget);
            ring.complete(chain.head, written)?;
            used = true;
        }
        looks += 1;
        if budget.0 == 0 || looks == MAX_LOOKS {
            break true;
        }
        if !ring.enable_notifications(memory)? {
            break false;
        }
    };
    let signal = used && ring.needs_interrupt()?;
    Ok(Outcome { signal, exhausted })
}

/// Fills the buffers as far as allowed. A request that gets nothing is charged a byte, so that empty ones end, too.
fn fill(buffers: &Buffers<'_>, budget: &mut Budget) -> u32 {
    let mut bytes = [0_u8; MAX_REQUEST_BYTES];
    let left = usize::try_from(budget.0).unwrap_or(usize::MAX);
    let wanted = buffers.len().min(MAX_REQUEST_BYTES).min(left);
    let random = bytes.get_mut(..wanted).unwrap_or_default();
    // The kernel's generator is initialised on a machine that runs guests; should it fail, the driver gets nothing.
    let count =
        rustix::rand::getrandom(&mut *random, rustix::rand::GetRandomFlags::NONBLOCK).unwrap_or_default();
    let written = buffers.copy_from(random.get(..count).unwrap_or_default());
    let written = u32::try_from(written).unwrap_or(u32::MAX);
    budget.0 = budget.0.saturating_sub(written.max(1));
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::hostile::attack_with_rings;
    use crate::devices::virtio::test_driver::Driver;

    #[test]
    fn requests_are_filled_and_bounded() {
        let driver = Driver::new(8);
        let small = driver.request(&[], &[64]);
        driver.request(&[], &[16, 100_000]);
        driver.request(&[b"nothing to write"], &[]);
        let mut budget = Budget::default();
        let outcome = process(&mut driver.ring(), &driver.memory, &mut budget).unwrap();
        assert_eq!(
            outcome,
            Outcome {
                signal: true,
                exhausted: false
            }
        );
        assert_eq!(
            driver
                .used()
                .iter()
                .map(|(_, written)| *written)
                .collect::<Vec<_>>(),
            [64, 4096, 0]
        );
        assert!(driver.read(small, 64).iter().any(|byte| *byte != 0));
        assert_eq!(budget.0, BUDGET_BYTES - 64 - 4096 - 1);
    }

    #[test]
    fn the_budget_ends_and_the_rest_waits() {
        let driver = Driver::new(8);
        for _ in 0..3 {
            driver.request(&[], &[64]);
        }
        let (mut ring, mut budget) = (driver.ring(), Budget(100));
        let outcome = process(&mut ring, &driver.memory, &mut budget).unwrap();
        assert_eq!(
            outcome,
            Outcome {
                signal: true,
                exhausted: true
            }
        );
        assert_eq!(driver.used(), [(0, 64), (1, 36)]);
        let outcome = process(&mut ring, &driver.memory, &mut Budget::default()).unwrap();
        assert_eq!(
            outcome,
            Outcome {
                signal: true,
                exhausted: false
            }
        );
        assert_eq!(driver.used().len(), 3);
    }

    #[test]
    fn hostile_rings_do_no_harm() {
        let driver = Driver::new(8);
        attack_with_rings(
            &driver,
            |_| vec![0; 64],
            |mut ring, _| {
                let mut budget = Budget::default();
                // Nonsense is an error, sense is served within the budget.
                let _ = process(&mut ring, &driver.memory, &mut budget);
                assert!(budget.0 <= BUDGET_BYTES);
            },
        );
    }
}
