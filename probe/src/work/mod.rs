//! What is measured from inside: each workload does a fixed amount of work, takes the time of it, and gives what it has
//! computed, so that whoever asked can tell a right answer from a fast one.
//!
//! One JSON object is printed for each: `{"work": NAME, "measures": [{"id", "ns", "operations", "check"}, ...]}`. What the
//! numbers have to be stands in `engine/src/bench/catalogue.rs`; a change of amounts here is one there.

mod apps;
mod calls;
mod control;
mod cpu;
mod disk;
mod exposure;
mod hog;

use std::net::TcpListener;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

/// A workload's answer.
#[derive(Debug, Serialize)]
struct Answer {
    work: &'static str,
    measures: Vec<Measure>,
    /// What has to be known to read the numbers; absent where there is nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
}

/// One thing that was timed.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Measure {
    id: &'static str,
    /// For all operations together, in nanoseconds of a clock that only goes forward.
    ns: u64,
    /// Operations, or bytes.
    operations: u64,
    /// Computed by the work: a sum of what came out of it.
    check: u64,
}

/// Runs the workload with these words.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    match words {
        ["hello"] => {
            println!("hello from rvm-probe");
            Ok(())
        }
        ["end"] => Ok(()),
        ["cpu"] => answer("cpu", cpu::measure()?),
        ["syscall"] => answer("syscall", calls::measure()?),
        ["disk", directory, parts] => {
            let amounts = disk::Amounts::part_of(parts.parse().context("no number of parts")?)?;
            let (measures, note) = disk::measure(directory, amounts)?;
            crate::print(&Answer {
                work: "disk",
                measures,
                note,
            })
        }
        ["apps", directory] => answer("apps", apps::measure(directory)?),
        ["translate", source, object] => apps::translate(source, object),
        ["control"] => control::run(),
        ["control-disk"] => control::run_on_disk(),
        ["network"] => network(),
        ["hog", bytes] => hog::run(bytes.parse().context("no number of bytes")?),
        ["exposure"] => exposure::run(),
        _ => bail!("there is no such work: {words:?}"),
    }
}

/// Serves until the end of its input.
fn network() -> Result<()> {
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    rvm_probe::network::serve(listener, None);
    crate::print(&Ready {
        work: "network",
        port,
    })?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

/// Where it serves.
#[derive(Serialize)]
struct Ready {
    work: &'static str,
    port: u16,
}

fn answer(work: &'static str, measures: Vec<Measure>) -> Result<()> {
    crate::print(&Answer {
        work,
        measures,
        note: None,
    })
}

/// Takes the time of `work`, which does `operations` of something and returns its check.
fn timed(id: &'static str, operations: u64, work: impl FnOnce() -> Result<u64>) -> Result<Measure> {
    let begun = Instant::now();
    let check = work().with_context(|| id)?;
    let ns = u64::try_from(begun.elapsed().as_nanos()).context("the clock went too far")?;
    Ok(Measure {
        id,
        ns,
        operations,
        check,
    })
}

/// Whether two things are the same, as a number to add up.
fn same<T: PartialEq>(one: &T, other: &T) -> u64 {
    u64::from(one == other)
}
