//! Real guests in `rvm-vmm` as it is shipped: confined, under its seccomp filters, at the other end of a socket. Needs root,
//! `/dev/kvm`, a static busybox, and in `RVM_TEST_ASSETS` the guest kernel; what is missing makes tests fail, not pass.
//! `scripts/test` runs this inside the lab.
//!
//! There is no libtest here: this executable is also the guests' init ([`guest`]), so that both halves of a test are built
//! together. A test that needs more of a machine adds a field to [`machine::Setup`].

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test; clippy knows only libtest's by itself"
)]

mod archive;
mod boots;
mod devices;
mod endings;
mod guest;
mod machine;
mod pause;
mod smp;
mod sys;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

const ALL: [(&str, fn()); 16] = [
    ("one_processor_works", smp::one),
    ("two_processors_work_in_parallel", smp::two),
    ("four_processors_work_in_parallel", smp::four),
    ("every_device_works_under_the_filters", devices::all),
    ("memory_may_exceed_the_host_s", devices::large_memory),
    ("freed_memory_goes_back_to_the_host", devices::balloon),
    (
        "busy_and_idle_processors_pause_and_go_on",
        pause::spinning_and_halted,
    ),
    ("a_processor_that_was_not_started_pauses", pause::not_started),
    ("a_disk_in_use_pauses_and_goes_on", pause::disk_in_use),
    ("time_goes_on_while_a_machine_is_paused", pause::time),
    ("nonsense_is_answered", pause::nonsense),
    ("the_status_tells_of_the_machine", pause::status),
    ("a_paused_machine_can_be_ended", endings::while_paused),
    ("a_machine_that_hangs_can_be_ended", endings::hanging),
    ("a_forbidden_system_call_ends_the_machine", endings::by_filter),
    ("boots_in_a_row_leave_nothing", boots::in_a_row),
];

fn main() -> ExitCode {
    if std::process::id() == 1 {
        guest::init();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, rest @ ..] = arguments.as_slice()
        && first == "guest"
    {
        return guest::helper(rest);
    }
    // As with libtest, an argument selects the tests whose names contain it.
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let selected = ALL
        .iter()
        .filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter.as_str())));
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in selected {
        let start = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(test));
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {verdict} ({:?})", start.elapsed());
        match result {
            Ok(()) => passed += 1,
            Err(_) => failed += 1,
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {verdict}. {passed} passed; {failed} failed;");
    ExitCode::from(u8::from(failed > 0))
}
