//! Waiting for a condition: the only place in the tests that sleeps.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Looks every 10 ms until `condition` holds; fails after `limit`, naming `what`.
///
/// # Errors
/// What `condition` returns, or that the time is over.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !condition()? {
        if Instant::now() > deadline {
            bail!("after {limit:?} still not: {what}");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Lets time pass where the passing of time is what the test is about (a kill at a random moment).
pub fn let_pass(duration: Duration) {
    thread::sleep(duration);
}
