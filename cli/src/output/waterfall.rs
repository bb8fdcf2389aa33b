//! The phases of one run as a waterfall.

use std::io::{self, Write as _};

use rvm_engine::timeline::Stamp;

use super::Table;

/// Width of a bar that is as long as the run.
const BAR_CELLS: u64 = 30;

/// Prints how long each phase took, on standard error: standard output is the workload's.
pub(crate) fn waterfall(mut stamps: Vec<Stamp>) {
    stamps.sort_by_key(|stamp| (stamp.us, stamp.phase));
    let (Some(first), Some(last)) = (stamps.first().copied(), stamps.last().copied()) else {
        return;
    };
    let mut table = Table::new(&["AT", "TOOK", "", "UNTIL"]);
    let mut before = first.us;
    for stamp in &stamps {
        table.row([
            milliseconds(stamp.us - first.us),
            milliseconds(stamp.us - before),
            bar(before - first.us, stamp.us - first.us, last.us - first.us),
            stamp.phase.label().to_owned(),
        ]);
        before = stamp.us;
    }
    let text: String = table.lines().map(|line| line + "\n").collect();
    // There is nowhere to report that standard error cannot be written to.
    let _ = io::stderr().write_all(text.as_bytes());
}

fn milliseconds(us: u64) -> String {
    format!("{:>6}.{} ms", us / 1000, us % 1000 / 100)
}

/// A stretch of the whole, at its place; never shorter than one cell, unless it took no time.
fn bar(from: u64, to: u64, whole: u64) -> String {
    let cell = |at: u64| at * BAR_CELLS / whole.max(1);
    let (start, end) = (cell(from), cell(to));
    let length = if to > from { (end - start).max(1) } else { 0 };
    let start = start.min(BAR_CELLS - length);
    let cells = |count: u64, cell: &str| cell.repeat(usize::try_from(count).unwrap_or(0));
    let rest = BAR_CELLS - start - length;
    format!(
        "{}{}{}",
        cells(start, " "),
        cells(length, "\u{2588}"),
        cells(rest, " ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_follow_each_other_and_stay_within_the_width() {
        let check = |from, to, before: usize, length: usize| {
            let bar = bar(from, to, 300);
            assert_eq!(bar.chars().count(), 30);
            assert_eq!(
                bar.trim_end().chars().count() - length,
                if length == 0 { 0 } else { before },
                "{bar}"
            );
            assert_eq!(bar.trim().chars().count(), length, "{bar}");
        };
        check(0, 300, 0, 30);
        check(100, 200, 10, 10);
        check(200, 201, 20, 1);
        check(299, 300, 29, 1);
        check(300, 300, 0, 0);
    }

    #[test]
    fn times_are_in_tenths_of_a_millisecond() {
        assert_eq!(milliseconds(1_234_567), "  1234.5 ms");
        assert_eq!(milliseconds(49), "     0.0 ms");
    }
}
