//! Random bytes.

use rustix::rand::{GetRandomFlags, getrandom};

/// `N` random bytes from the kernel.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        // Once the kernel's pool is initialised, as it is long before rvm can run, getrandom only ever fails with EINTR.
        filled += getrandom(rest, GetRandomFlags::empty()).unwrap_or_default();
    }
    bytes
}
