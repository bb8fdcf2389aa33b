//! `rvm bench`.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use rvm_engine::bench::diff::compare;
use rvm_engine::bench::{self, Plan, Report, Suite, Surroundings};
use rvm_engine::record::Isolation;
use rvm_engine::{Engine, probe};

use super::FAILED;
use crate::args::{Bench, BenchCommand, Compared, Measured, Places};
use crate::output::{self, BenchProgress};

/// Exit code of a comparison in which something has changed.
const CHANGED: u8 = 1;

/// What each workload may use of memory: enough for the largest, and not the default of either mode.
const MEMORY_BYTES: u64 = 512 << 20;

pub(super) fn run(places: Places, arguments: Bench) -> Result<u8> {
    match arguments.command {
        Some(BenchCommand::Diff(arguments)) => diff(&arguments),
        None => measure(&super::engine(places)?, arguments.measured),
    }
}

fn measure(engine: &Engine, arguments: Measured) -> Result<u8> {
    let Measured {
        mut suite,
        runs,
        warm_up,
        mut also,
        instances,
        cold,
        pin,
        json,
        csv,
        html,
        progress,
        image,
    } = arguments;
    let image = image.context("no image was named")?;
    if suite.is_empty() {
        suite = Suite::ALL.to_vec();
    }
    suite.sort_unstable();
    suite.dedup();
    if cold && !suite.contains(&Suite::Startup) {
        bail!("--cold is about the startup suite, which is not among those that --suite names");
    }
    also.sort_unstable();
    also.dedup();
    let plan = Plan {
        image,
        suites: suite,
        runs,
        warm_up,
        also,
        pin,
        instances,
        cold,
        memory_bytes: MEMORY_BYTES,
    };
    // What could not be written at the end would have been measured in vain.
    for path in [&json, &csv, &html].into_iter().flatten() {
        let file = File::options().append(true).create(true).open(path);
        file.with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut shown = BenchProgress::new(progress);
    let run = |plan: &Plan, isolation: Isolation| command(engine, plan, isolation);
    let report = bench::measure(
        engine,
        &plan,
        Surroundings {
            run: &run,
            progress: &mut |step| shown.update(step),
        },
    );
    shown.finish();
    let report = report.map_err(|error| match error {
        // With its hint of what to do.
        bench::Error::Engine(error) => error.into(),
        error => anyhow::Error::from(error),
    })?;
    if let Some(path) = &json {
        let mut text = serde_json::to_string_pretty(&report)?;
        text.push('\n');
        write(path, &text)?;
    }
    if let Some(path) = &csv {
        write(path, &output::samples_csv(&report))?;
    }
    if let Some(path) = &html {
        write(path, &output::Page(&report).to_string())?;
    }
    output::bench_table(&report)?;
    failures(&report);
    Ok(if report.failures.is_empty() { 0 } else { FAILED })
}

/// Whether something has changed is the exit code, as with diff(1).
fn diff(arguments: &Compared) -> Result<u8> {
    let (before, after) = (Report::read(&arguments.before)?, Report::read(&arguments.after)?);
    let comparison = compare(&before, &after);
    if comparison.changes.is_empty() {
        bail!("the reports have no row in common: measure the same suites");
    }
    output::diff_table(&comparison)?;
    let has_changed = comparison.changes.iter().any(|change| change.verdict.is_change());
    Ok(if has_changed { CHANGED } else { 0 })
}

/// `rvm run` with the startup suite's workload, as a person would type it.
fn command(engine: &Engine, plan: &Plan, isolation: Isolation) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("run")
        .arg("--root")
        .arg(engine.layout().root())
        .arg("--run")
        .arg(engine.layout().run())
        .args([
            "--rm",
            "--timing=json",
            "--probe",
            "--no-healthcheck",
            "--pull",
            "never",
        ])
        // As the others have it: a network is something more.
        .args(["--network", "none", "--isolation", &isolation.to_string()])
        .args(["--memory", &plan.memory_bytes.to_string()])
        .args(["--user", "0:0", "--workdir", "/"])
        .args(["--entrypoint", probe::PATH]);
    if let Some(cpus) = &plan.pin {
        command.args(["--cpuset-cpus", cpus]);
    }
    command.arg(&plan.image).args(bench::WORDS);
    command
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn failures(report: &Report) {
    for failure in &report.failures {
        let (suite, subject, run) = (failure.suite, failure.subject, failure.run);
        output::complaint(&format!(
            "run {run} of {suite} does not count for {subject}: {}",
            failure.reason
        ));
    }
}
