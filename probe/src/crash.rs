//! Brings down the kernel that it runs on, with nothing but a setting of that kernel and memory: rvm runs it in a virtual
//! machine of its own, never in a container.

use anyhow::{Context as _, Result};

/// Panic where memory runs out, also where it is a cgroup's (Documentation/admin-guide/sysctl/vm.rst).
const ALWAYS: &str = "2";

/// Bytes that are taken at a time.
const STEP: usize = 16 << 20;

/// Does not return where it works.
///
/// # Errors
/// Where the setting is out of reach.
pub fn run() -> Result<()> {
    std::fs::write("/proc/sys/vm/panic_on_oom", ALWAYS).context("cannot set vm.panic_on_oom")?;
    let mut taken = Vec::new();
    loop {
        // Written to, so that it is there.
        taken.push(vec![
            u8::try_from(taken.len() % 255).unwrap_or_default() + 1;
            STEP
        ]);
    }
}
