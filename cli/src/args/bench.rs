//! What can be typed about measuring.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args as ClapArgs, Subcommand};
use rvm_engine::bench::{Subject, Suite};

use super::ProgressMode;

pub(super) const BENCH_EXAMPLES: &str = "\
Examples:
  rvm bench debian                                           every suite; prints a table
  rvm bench --suite startup,memory --runs 50 debian
  rvm bench --suite startup --also crun,qemu debian          beside other programs, if they are installed
  rvm bench --suite startup --cold debian                    what nobody has mapped is read from the disk again
  rvm bench --pin 2,3 --json a.json --html report.html debian
  rvm bench diff a.json b.json                               what has changed between two reports

Suites: startup, memory, cpu, syscall, disk, volume, network, apps, exposure, density. Modes take turns run by run; a run whose workload printed the
wrong thing does not count, and makes the exit code 1. docs/bench.md walks through what is shown.";

const DIFF_EXAMPLES: &str = "\
Examples:
  rvm bench diff before.json after.json
  rvm bench diff before.json after.json || echo something has changed

Exit code: 0 where nothing has changed that could be told from noise, 1 where something has, 2 where the reports cannot be compared.";

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Bench {
    #[command(subcommand)]
    pub(crate) command: Option<BenchCommand>,
    #[command(flatten)]
    pub(crate) measured: Measured,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Tell what has changed between two reports from what is noise
    #[command(after_help = DIFF_EXAMPLES)]
    Diff(Compared),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Compared {
    /// Report that was written with --json
    #[arg(value_name = "BEFORE")]
    pub(crate) before: PathBuf,
    /// Another one
    #[arg(value_name = "AFTER")]
    pub(crate) after: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Measured {
    /// What is measured, separated by commas [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) suite: Vec<Suite>,
    /// Runs that count; memory, exposure and density take a third of them
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = RangedU64ValueParser::<usize>::new().range(1..=100_000))]
    pub(crate) runs: usize,
    /// Runs before those, which do not count
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(0..=1000))]
    pub(crate) warm_up: usize,
    /// Programs to measure as well in the startup suite: crun, runc, podman, firecracker, qemu
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) also: Vec<Subject>,
    /// Containers at the same time in memory and density; in density 1, 10 and 50 as well where that is less
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    pub(crate) instances: usize,
    /// Drop the host's caches before each start of the startup suite (needs root, and slows everything else on the machine)
    #[arg(long)]
    pub(crate) cold: bool,
    /// Processors that everything runs on, such as 0-2,4
    #[arg(long, value_name = "CPUS")]
    pub(crate) pin: Option<String>,
    /// Write everything with all samples as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write all samples as a table, a line for each
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    /// Write a page with drawings that needs nothing but a browser
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// How progress is shown
    #[arg(long, value_enum, default_value_t = ProgressMode::Auto, value_name = "HOW")]
    pub(crate) progress: ProgressMode,
    /// Name or ID of the image
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) image: Option<String>,
}
