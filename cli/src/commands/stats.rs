//! `rvm stats`: what containers use, as Docker shows it.
//!
//! The columns are the workload's, as the kernel that it runs on counts. What the whole of it costs on the host, with the
//! virtual machine around it, is in further fields, whose names begin with `Host`.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rvm_engine::record::{Record, State};
use rvm_engine::{Engine, Statistics, Usage};
use serde::Serialize;

use crate::args::{ListFormat, Stats};
use crate::output::{self, Table};

/// From one measurement to the next, over which processor time is taken.
const INTERVAL: Duration = Duration::from_secs(1);

/// What is shown where there is nothing to measure.
const NOTHING: &str = "--";

/// Moves a terminal's cursor to the top, and there begins an empty screen.
const CLEAR: &str = "\x1b[2J";
const TOP: &str = "\x1b[H";
/// Clears what stood in the rest of a line, and below the last one.
const REST_OF_LINE: &str = "\x1b[K";
const REST_OF_SCREEN: &str = "\x1b[J";

/// What was measured of each container, by its ID.
type Measured = BTreeMap<String, Statistics>;

pub(super) fn run(engine: &Engine, arguments: &Stats) -> Result<u8> {
    let named = arguments
        .containers
        .iter()
        .map(|wanted| Ok(engine.directory(wanted)?.0.id))
        .collect::<Result<Vec<_>>>()?;
    let is_table = matches!(arguments.format, ListFormat::Table | ListFormat::Columns(_));
    let in_place = !arguments.no_stream && is_table && io::stdout().is_terminal();
    let mut before = Measured::new();
    for turn in 0_u64.. {
        let begun = Instant::now();
        let records = select(engine.containers()?, &named, arguments.all);
        if !named.is_empty() && records.is_empty() {
            break;
        }
        let now = measure(engine, &records, turn == 0 && !named.is_empty())?;
        if turn > 0 {
            let rows: Vec<_> = records
                .iter()
                .map(|record| {
                    Row::new(
                        record,
                        before.get(&record.id),
                        now.get(&record.id),
                        arguments.no_trunc,
                    )
                })
                .collect();
            let lines = output::listed(&arguments.format, &rows, || table(&rows))?;
            let text = if in_place {
                screen(&lines, turn == 1)
            } else {
                text(&lines)
            };
            if arguments.no_stream {
                output::bytes(text.as_bytes())?;
                break;
            }
            let mut stdout = io::stdout().lock();
            let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
            if output::reader_is_gone(&written) {
                break;
            }
            written.context("cannot write to standard output")?;
        }
        before = now;
        thread::sleep(INTERVAL.saturating_sub(begun.elapsed()));
    }
    Ok(0)
}

/// The containers that are to be shown: those that were named, else those that run, or all.
fn select(records: Vec<Record>, named: &[String], all: bool) -> Vec<Record> {
    if named.is_empty() {
        let is_shown = |record: &Record| all || matches!(record.state, State::Running { .. });
        return records.into_iter().filter(is_shown).collect();
    }
    let find = |id: &String| records.iter().find(|record| record.id == *id).cloned();
    named.iter().filter_map(find).collect()
}

/// Measures all at the same time. One that cannot be measured has ended, or its supervisor is of an older rvm, which is
/// `told` where it was asked for by name.
fn measure(engine: &Engine, records: &[Record], told: bool) -> Result<Measured> {
    let running = || {
        records
            .iter()
            .filter(|record| matches!(record.state, State::Running { .. }))
    };
    let measured: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = running()
            .map(|record| scope.spawn(|| engine.usage(record)))
            .collect();
        // A thread that panics aborts the process.
        threads
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .collect()
    });
    let mut statistics = Measured::new();
    for (record, measured) in running().zip(measured) {
        match measured {
            Ok(measured) => {
                statistics.insert(record.id.clone(), measured);
            }
            Err(error) if told => {
                let still_runs = matches!(engine.directory(&record.id)?.0.state, State::Running { .. });
                if still_runs {
                    return Err(error).with_context(|| format!("cannot measure {}", record.name));
                }
            }
            Err(_) => {}
        }
    }
    Ok(statistics)
}

/// A container as it is shown. The names are Docker's, but for those of the host.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "BlockIO")]
    block_io: String,
    #[serde(rename = "CPUPerc")]
    cpu: String,
    container: String,
    #[serde(rename = "HostCPUPerc")]
    host_cpu: String,
    host_mem_usage: String,
    #[serde(rename = "HostPIDs")]
    host_pids: String,
    #[serde(rename = "ID")]
    id: String,
    mem_perc: String,
    mem_usage: String,
    name: String,
    #[serde(rename = "NetIO")]
    net_io: String,
    #[serde(rename = "PIDs")]
    pids: String,
}

impl Row {
    fn new(record: &Record, before: Option<&Statistics>, now: Option<&Statistics>, no_trunc: bool) -> Self {
        let id = super::ps::id(record, no_trunc);
        let of = |pick: fn(&Statistics) -> Option<Usage>| (before.and_then(pick), now.and_then(pick));
        let ((workload_before, workload), (host_before, host)) = (
            of(|statistics| Some(statistics.workload)),
            of(|statistics| statistics.host),
        );
        let traffic = workload.and_then(|usage| usage.traffic);
        Self {
            block_io: pair(
                workload.and_then(|usage| usage.read_bytes).map(decimal),
                workload.and_then(|usage| usage.written_bytes).map(decimal),
            ),
            cpu: percentage(processors(workload_before, workload)),
            container: id.clone(),
            host_cpu: percentage(processors(host_before, host)),
            host_mem_usage: shown(host.and_then(|usage| usage.memory_bytes).map(binary)),
            host_pids: shown(host.and_then(|usage| usage.pids)),
            id,
            mem_perc: percentage(workload.and_then(share_of_memory)),
            mem_usage: pair(
                workload.and_then(|usage| usage.memory_bytes).map(binary),
                workload.and_then(|usage| usage.memory_limit_bytes).map(binary),
            ),
            name: record.name.clone(),
            net_io: pair(
                traffic.map(|traffic| decimal(traffic.received_bytes)),
                traffic.map(|traffic| decimal(traffic.sent_bytes)),
            ),
            pids: shown(workload.and_then(|usage| usage.pids)),
        }
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(&[
        "CONTAINER ID",
        "NAME",
        "CPU %",
        "MEM USAGE / LIMIT",
        "MEM %",
        "NET I/O",
        "BLOCK I/O",
        "PIDS",
    ]);
    for row in rows {
        table.row([
            &row.id,
            &row.name,
            &row.cpu,
            &row.mem_usage,
            &row.mem_perc,
            &row.net_io,
            &row.block_io,
            &row.pids,
        ]);
    }
    table
}

fn text(lines: &[String]) -> String {
    lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
}

/// Lines that take the place of those that a terminal shows.
fn screen(lines: &[String], first: bool) -> String {
    let mut screen = if first {
        format!("{CLEAR}{TOP}")
    } else {
        TOP.to_owned()
    };
    for line in lines {
        screen.extend([line, REST_OF_LINE, "\n"]);
    }
    screen + REST_OF_SCREEN
}

#[expect(clippy::cast_precision_loss, reason = "for two decimals")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

/// Processors that were busy between two measurements.
fn processors(before: Option<Usage>, now: Option<Usage>) -> Option<f64> {
    let (before, now) = (before?, now?);
    let used = now.processor_us.saturating_sub(before.processor_us);
    Some(ratio(used, now.at_us.saturating_sub(before.at_us)))
}

fn share_of_memory(usage: Usage) -> Option<f64> {
    Some(ratio(usage.memory_bytes?, usage.memory_limit_bytes?))
}

fn percentage(share: Option<f64>) -> String {
    share.map_or_else(|| NOTHING.to_owned(), |share| format!("{:.2}%", share * 100.0))
}

fn shown(value: Option<impl ToString>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |value| value.to_string())
}

fn pair(left: Option<String>, right: Option<String>) -> String {
    format!("{} / {}", shown(left), shown(right))
}

/// Three digits, in powers of 1000.
fn decimal(bytes: u64) -> String {
    significant(bytes, 1000, &["B", "kB", "MB", "GB", "TB", "PB", "EB"], 3)
}

/// Four digits, in powers of 1024.
fn binary(bytes: u64) -> String {
    significant(bytes, 1024, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"], 4)
}

/// A size with so many significant digits and no zeros at its end, as Docker has it.
fn significant(bytes: u64, base: u64, units: &[&str], digits: usize) -> String {
    let (mut divisor, mut units) = (1, units.iter());
    let mut unit = units.next().unwrap_or(&"");
    while bytes / divisor >= base
        && let Some(next) = units.next()
    {
        divisor *= base;
        unit = next;
    }
    let whole = (bytes / divisor).to_string();
    let decimals = digits.saturating_sub(whole.len());
    let number = format!("{:.decimals$}", ratio(bytes, divisor));
    let number = match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.'),
        false => &number,
    };
    format!("{number}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_docker_s() {
        for (bytes, expected_decimal, expected_binary) in [
            (0, "0B", "0B"),
            (788, "788B", "788B"),
            (1000, "1kB", "1000B"),
            (1024, "1.02kB", "1KiB"),
            (815_104, "815kB", "796KiB"),
            (3_568_000, "3.57MB", "3.403MiB"),
            (64 << 20, "67.1MB", "64MiB"),
            (2_083_000_000, "2.08GB", "1.94GiB"),
            (u64::MAX, "18.4EB", "16EiB"),
        ] {
            assert_eq!(
                (decimal(bytes).as_str(), binary(bytes).as_str()),
                (expected_decimal, expected_binary)
            );
        }
    }

    #[test]
    fn shares_are_of_the_time_between_two_measurements() {
        let usage = |at_us, processor_us| {
            Some(Usage {
                at_us,
                processor_us,
                ..Usage::default()
            })
        };
        let share = |before, now| percentage(processors(before, now));
        assert_eq!(share(usage(0, 0), usage(1_000_000, 1_500_000)), "150.00%");
        assert_eq!(share(usage(5, 5), usage(5, 5)), "0.00%");
        assert_eq!(
            share(usage(9, 9), usage(5, 5)),
            "0.00%",
            "the guest was started again"
        );
        assert_eq!(share(None, usage(5, 5)), "--");
    }

    #[test]
    fn a_screen_replaces_what_stood_there() {
        let lines = ["a".to_owned(), "b".to_owned()];
        assert_eq!(screen(&lines, true), "\x1b[2J\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
        assert_eq!(screen(&lines[..1], false), "\x1b[Ha\x1b[K\n\x1b[J");
        assert_eq!(text(&lines), "a\nb\n");
    }
}
