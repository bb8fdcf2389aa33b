//! A real guest on real workers. Needs root, KVM and the guest kernel; missing ones make tests fail, not pass.
//! `scripts/test` runs this inside the lab.
//!
//! A test has two halves: what the host does and looks at, and what the guest does. There is no libtest here, because
//! this executable is also the guest's init.

#![forbid(unsafe_code)]

mod host;
mod inside;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        inside::init();
    }
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mode, rest @ ..] = arguments.as_slice()
        && mode == inside::PROGRAM
    {
        return inside::program(rest);
    }
    // As with libtest, an argument selects the tests whose names contain it.
    let filter = arguments
        .iter()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let selected = host::ALL
        .iter()
        .filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter.as_str())));
    let (mut run, mut failed) = (0, Vec::new());
    for (name, test) in selected {
        run += 1;
        let start = Instant::now();
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        let result = if passed { "ok" } else { "FAILED" };
        println!("test {name} ... {result} ({:?})", start.elapsed());
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
