//! Real containers, made by this crate with root privileges. Needs root, Linux 5.14 or later, cgroup v2 with the cpu, memory
//! and pids controllers, overlayfs, EROFS, loop devices, `mkfs.erofs` and a static busybox; missing ones make tests fail,
//! not pass. `scripts/test` runs this inside the lab.
//!
//! There is no libtest here: this executable is also the containers' init, which has to come before any thread, and the
//! probe that runs inside them.

#![expect(clippy::unwrap_used, reason = "a test; clippy knows only libtest's by itself")]

mod endings;
mod entering;
mod fixture;
mod probe;
mod tests;
mod whole;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    rvm_isolation::init_if_requested();
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mode, rest @ ..] = arguments.as_slice() {
        match mode.as_str() {
            "probe" => return probe::main(rest),
            "parent" => return endings::parent(),
            _ => {}
        }
    }
    // As with libtest, an argument selects the tests whose names contain it.
    let filter = arguments
        .iter()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let selected = tests::ALL
        .iter()
        .filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter.as_str())));
    let (mut run, mut failed) = (0, Vec::new());
    for (name, test) in selected {
        run += 1;
        let start = Instant::now();
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!(
            "test {name} ... {} ({:?})",
            if passed { "ok" } else { "FAILED" },
            start.elapsed()
        );
        if !passed {
            failed.push(name);
        }
    }
    println!("failed: {failed:?}");
    let (result, failures) = (if failed.is_empty() { "ok" } else { "FAILED" }, failed.len());
    println!(
        "test result: {result}. {} passed; {failures} failed;",
        run - failures
    );
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
