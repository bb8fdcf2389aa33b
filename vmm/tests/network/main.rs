//! `rvm-vmm`, confined as its supervisor confines it, with a guest on a TAP interface. Needs root, `/dev/kvm`,
//! `/dev/net/tun`, a static busybox and the guest kernel that `scripts/build-guest` makes; `scripts/test` runs this inside
//! the lab.
//!
//! There is no libtest here: this executable is also the guest's first program, and starts itself again in a network
//! namespace of its own.

#![expect(clippy::unwrap_used, reason = "a test; clippy knows only libtest's by itself")]

mod guest;
mod host;
mod pattern;
mod tests;

use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::time::Instant;

const IN_NAMESPACE: &str = "RVM_TEST_NAMESPACE";

fn main() -> ExitCode {
    if std::process::id() == 1 {
        guest::main();
    }
    if std::env::var_os(IN_NAMESPACE).is_none() {
        let error = Command::new("unshare")
            .arg("--net")
            .arg(std::env::current_exe().unwrap())
            .args(std::env::args_os().skip(1))
            .env(IN_NAMESPACE, "1")
            .exec();
        panic!("cannot run unshare: {error}");
    }
    // As with libtest, an argument selects the tests whose names contain it.
    let filter = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let selected = tests::ALL.iter().filter(|(name, _)| {
        filter
            .as_ref()
            .is_none_or(|filter| name.contains(filter.as_str()))
    });
    let (mut run, mut failed) = (0, 0);
    for (name, test) in selected {
        run += 1;
        let start = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(test));
        let outcome = if result.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {outcome} ({} ms)", start.elapsed().as_millis());
        failed += usize::from(result.is_err());
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {result}. {} passed; {failed} failed; 0 ignored",
        run - failed
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
