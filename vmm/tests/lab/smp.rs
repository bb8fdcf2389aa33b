//! Guests of several processors do their work on all of them, and do it right.

use std::fmt::Write as _;

use crate::machine::{Machine, Setup};

/// `sha256sum` of 4 MiB of zeros.
const DIGEST: &str = "bb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8";

/// Each processor computes a digest, pinned to it; then each hands numbers to the next one over pipes, which wakes
/// processors from one another. The processors' times are shown before and after.
fn job(vcpus: u8) -> String {
    let mut job = format!("test $(nproc) = {vcpus}\n{STATISTICS}");
    for cpu in 0..vcpus {
        let mask = 1_u64 << cpu;
        let _ = writeln!(
            job,
            "taskset {mask:x} sh -c 'head -c 4194304 /dev/zero | sha256sum' >/tmp/{cpu} &"
        );
    }
    job.push_str("wait\ncat /tmp/?\nseq 1 20000");
    for cpu in 0..vcpus {
        let _ = write!(job, " | taskset {:x} cat", 1_u64 << cpu);
    }
    let _ = write!(job, " | md5sum\nseq 1 20000 | md5sum\n{STATISTICS}");
    job
}

const STATISTICS: &str = "grep '^cpu[0-9]' /proc/stat\n";

/// Processor number, and its time in user and system mode, of each line that `grep` found.
fn times(console: &str) -> Vec<(String, u64)> {
    let line = |line: &str| {
        let mut words = line.strip_prefix("cpu")?.split_whitespace();
        let (cpu, numbers) = (words.next()?.to_owned(), words.collect::<Vec<_>>());
        let time = |index: usize| numbers.get(index)?.parse::<u64>().ok();
        Some((cpu, time(0)? + time(2)?))
    };
    console.lines().filter_map(line).collect()
}

fn check(vcpus: u8) {
    let mut setup = Setup::new(job(vcpus));
    setup.vcpus = vcpus;
    let console = Machine::start(&setup).success();
    let digests = console.lines().filter(|line| line.starts_with(DIGEST)).count();
    assert_eq!(digests, usize::from(vcpus), "{console}");
    let mut piped = console
        .lines()
        .filter(|line| line.trim_end().ends_with("  -") && line.len() < 45);
    let (first, second) = (piped.next().unwrap(), piped.next().unwrap());
    assert_eq!(first, second, "{console}");
    let times = times(&console);
    let (before, after) = times.split_at(usize::from(vcpus));
    assert_eq!(before.len(), after.len(), "{console}");
    for ((cpu, before), (same, after)) in before.iter().zip(after) {
        assert!(cpu == same && before < after, "CPU {cpu} did nothing: {console}");
    }
}

pub(crate) fn one() {
    check(1);
}

pub(crate) fn two() {
    check(2);
}

pub(crate) fn four() {
    check(4);
}
