//! `rvm bench`: measures containers in both modes so that the numbers can be believed.
//!
//! What makes them so: each workload comes with rvm and runs in any image; a run whose workload printed the wrong thing is
//! a failed run; modes take turns run by run, and every second round goes backwards; runs before the first that counts are
//! thrown away; and a report keeps every sample and the circumstances. Nothing here knows how a report is shown.

pub mod catalogue;
mod command;
mod control;
mod density;
pub mod diff;
mod exposure;
mod family;
mod idle;
mod inside;
pub mod manifest;
mod memory;
mod network;
mod peers;
pub mod plan;
pub mod report;
mod startup;
pub mod statistics;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::thread::{CpuSet, sched_setaffinity};

use self::catalogue::Row;
use self::manifest::Manifest;
pub use self::memory::HOG_BYTES;
use self::peers::Peers;
pub use self::plan::{Plan, Subject, Suite, UnknownName};
pub use self::report::Report;
use self::report::{Exposure, Failure, Series, Waterfall};
pub use self::startup::WORDS;
use self::statistics::Summary;
use crate::engine::Engine;
use crate::mounts::Wishes;
use crate::network::Networking;
use crate::probe::{Probed, Session, SessionError};
use crate::record::Isolation;
use crate::spec::{self, Changes, Options};

/// Why nothing can be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A container could not be made or started.
    #[error(transparent)]
    Engine(#[from] crate::engine::Error),
    /// A workload did something else than it should: the run does not count.
    #[error("{0}")]
    Wrong(String),
    /// A container's streams could not be used.
    #[error("cannot use the streams of a container")]
    Streams(#[source] io::Error),
    /// A command could not be executed.
    #[error("cannot run {0}")]
    Command(String, #[source] io::Error),
    /// This process could not be put on the processors that were asked for.
    #[error("cannot run on the CPUs {0}")]
    Pin(String, #[source] io::Error),
    /// What is made for other programs could not be written.
    #[error("cannot use {0}")]
    File(PathBuf, #[source] io::Error),
    /// Something was not as another program needs it.
    #[error("cannot prepare what is measured beside rvm: {0}")]
    Peer(String),
    /// Only one measurement at a time makes things for other programs.
    #[error("another rvm bench runs")]
    Busy,
    /// There is no place to measure the host's own disk in.
    #[error("cannot make a file in {0}")]
    Control(PathBuf, #[source] io::Error),
    /// The processes of a command could not be waited for.
    #[error("cannot count the processor time of a command")]
    Family(#[source] io::Error),
    /// The host's caches could not be dropped.
    #[error("cannot drop the host's caches, which --cold does before each start and only root can")]
    Caches(#[source] io::Error),
    /// The host's memory is not told.
    #[error("/proc/meminfo does not tell how much memory is available")]
    NoMemInfo,
    /// Not one run of something counts.
    #[error("no run of {suite} counts for {subject}: {reason}")]
    NoRun {
        /// Where it belongs.
        suite: Suite,
        /// What was measured.
        subject: Subject,
        /// Why the last one does not.
        reason: String,
    },
    /// It is not one of those that can be measured.
    #[error("{subject} cannot be measured beside rvm: {reason}")]
    Subject {
        /// What was asked for.
        subject: Subject,
        /// Why not.
        reason: String,
    },
}

impl From<SessionError> for Error {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Engine(error) => Self::Engine(*error),
            SessionError::Streams(source) => Self::Streams(source),
            SessionError::Failed { said, .. } => Self::Wrong(said),
        }
    }
}

/// Something that was measured, once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    row: &'static str,
    value: f64,
}

impl Sample {
    fn new(row: &'static str, value: f64) -> Self {
        Self { row, value }
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What runs next.
    pub suite: Suite,
    /// Of this.
    pub subject: Subject,
    /// Runs that are done.
    pub done: usize,
    /// Runs in all.
    pub total: usize,
}

/// What a measurement needs from its command.
pub struct Surroundings<'a> {
    /// A command that runs the startup suite's workload ([`WORDS`]) of the plan's image as `rvm run --timing=json` does.
    pub run: &'a dyn Fn(&Plan, Isolation) -> Command,
    /// Is told of each step.
    pub progress: &'a mut dyn FnMut(Step),
}

/// A series of measurements while it goes on.
pub(crate) struct Bench<'a> {
    engine: &'a Engine,
    plan: &'a Plan,
    run: &'a dyn Fn(&Plan, Isolation) -> Command,
    /// What other programs need; only where there are any.
    peers: Option<Peers>,
    /// Every start of rvm's own that was timed, and how long it took.
    starts: Vec<(u64, Waterfall)>,
    exposures: Vec<Exposure>,
    notes: Vec<String>,
}

/// Measures.
///
/// # Errors
/// As [`Error`] says. Single runs that fail are in the report instead.
pub fn measure(engine: &Engine, plan: &Plan, surroundings: Surroundings) -> Result<Report, Error> {
    let Surroundings { run, progress } = surroundings;
    let image = engine
        .images()?
        .resolve(&plan.image)
        .map_err(crate::engine::Error::from)?;
    if let Some(cpus) = &plan.pin {
        pin(cpus)?;
    }
    let mut manifest = Manifest::collect(engine.layout(), &plan.image, &image.id.to_string());
    if plan.cold {
        "dropped before each start of the startup suite, warm elsewhere".clone_into(&mut manifest.cache);
    }
    let mut bench = Bench {
        engine,
        plan,
        run,
        peers: (!plan.also.is_empty())
            .then(|| Peers::prepare(engine, plan, &image.id))
            .transpose()?,
        starts: Vec::new(),
        exposures: Vec::new(),
        notes: Vec::new(),
    };
    let (mut series, mut failures) = (Vec::new(), Vec::new());
    let total = plan
        .suites
        .iter()
        .map(|suite| bench.rounds(*suite) * plan.subjects(*suite).len())
        .sum();
    let mut done = 0;
    for suite in &plan.suites {
        let mut told = |subject| {
            progress(Step {
                suite: *suite,
                subject,
                done,
                total,
            });
            done += 1;
        };
        series.extend(bench.suite(*suite, &mut failures, &mut told)?);
    }
    manifest.end();
    bench.exposures.sort_by_key(|exposure| exposure.subject);
    if let Some(change) = manifest.cgroup2_change() {
        bench.note(change);
    }
    Ok(Report {
        version: report::VERSION,
        manifest,
        plan: plan.clone(),
        series,
        waterfalls: bench.waterfalls(),
        exposures: bench.exposures,
        failures,
        notes: bench.notes,
    })
}

/// What every workload runs in.
fn probed(plan: &Plan, isolation: Isolation) -> Probed<'_> {
    Probed {
        image: &plan.image,
        isolation,
        network: Networking::default(),
        mounts: Wishes::default(),
        options: Options {
            // As root, whoever the image's user is: what is measured is the same in every image.
            user: Some("0:0".to_owned()),
            working_directory: Some("/".to_owned()),
            limits: Changes {
                memory_bytes: Some(plan.memory_bytes),
                cpuset_cpus: plan.pin.clone(),
                ..Changes::default()
            },
            ..Options::default()
        },
    }
}

/// Puts this process, and all that it starts, on some processors.
fn pin(list: &str) -> Result<(), Error> {
    let cpus = spec::processors(list).map_err(crate::engine::Error::from)?;
    let mut set = CpuSet::new();
    for cpu in cpus.into_iter().filter_map(|cpu| usize::try_from(cpu).ok()) {
        if cpu < CpuSet::MAX_CPU {
            set.set(cpu);
        }
    }
    sched_setaffinity(None, &set).map_err(|error| Error::Pin(list.to_owned(), error.into()))
}

/// Samples of a suite by subject and row, in the order in which rows were first seen.
#[derive(Default)]
struct Samples {
    rows: Vec<&'static str>,
    values: BTreeMap<(Subject, &'static str), Vec<f64>>,
}

impl<'a> Bench<'a> {
    /// A container with the probe in it, as a user would make it.
    fn probed(&self, subject: Subject) -> Result<Probed<'a>, Error> {
        Ok(probed(self.plan, self.isolation(subject)?))
    }

    /// Starts the probe with a workload.
    fn start(&self, subject: Subject, words: &[&str]) -> Result<Session<'a>, Error> {
        let words = [&["work"], words].concat();
        Ok(self.probed(subject)?.start(self.engine, &words)?)
    }

    fn rounds(&self, suite: Suite) -> usize {
        self.plan.warm_up + suite.runs(self.plan.runs)
    }

    /// All runs of one suite.
    fn suite(
        &mut self,
        suite: Suite,
        failures: &mut Vec<Failure>,
        told: &mut dyn FnMut(Subject),
    ) -> Result<Vec<Series>, Error> {
        let mut samples = Samples::default();
        for round in 0..self.rounds(suite) {
            for subject in self.plan.order(suite, round) {
                told(subject);
                let counts = round >= self.plan.warm_up;
                match self.once(suite, subject, counts) {
                    Ok(run) if counts => samples.add(subject, &run),
                    Ok(_) => {}
                    Err(Error::Wrong(reason)) => failures.push(Failure {
                        suite,
                        subject,
                        run: round,
                        reason,
                    }),
                    Err(error) => return Err(error),
                }
            }
        }
        for subject in self.plan.subjects(suite) {
            if samples.values.keys().all(|(other, _)| *other != subject) {
                let of_it = |failure: &&Failure| (failure.suite, failure.subject) == (suite, subject);
                let reason = failures.iter().rfind(of_it).map(|failure| failure.reason.clone());
                return Err(Error::NoRun {
                    suite,
                    subject,
                    reason: reason.unwrap_or_default(),
                });
            }
        }
        Ok(samples.series(suite, &self.plan.subjects(suite)))
    }

    /// One run of one subject.
    fn once(&mut self, suite: Suite, subject: Subject, counts: bool) -> Result<Vec<Sample>, Error> {
        if subject == Subject::Host {
            return control::measure(self, suite);
        }
        match suite {
            Suite::Startup => {
                if self.plan.cold {
                    drop_caches().map_err(Error::Caches)?;
                }
                let known = self.starts.len();
                let samples = startup::measure(self, subject)?;
                if !counts {
                    self.starts.truncate(known);
                }
                Ok(samples)
            }
            Suite::Memory => memory::measure(self, subject),
            Suite::Cpu => {
                let mut samples = inside::measure(self, suite, subject)?;
                samples.push(idle::measure(self, subject)?);
                Ok(samples)
            }
            Suite::Syscall | Suite::Disk | Suite::Volume | Suite::Apps => {
                inside::measure(self, suite, subject)
            }
            Suite::Network => network::measure(self, subject),
            Suite::Exposure => exposure::measure(self, subject),
            Suite::Density => density::measure(self, subject),
        }
    }

    /// A command that runs the startup suite's workload.
    fn command(&self, subject: Subject) -> Result<Command, Error> {
        let mut command = match &self.peers {
            Some(peers) if subject.isolation().is_none() => peers.command(subject, self.plan)?,
            _ => (self.run)(self.plan, self.isolation(subject)?),
        };
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// The mode of a subject that is one of rvm's.
    fn isolation(&self, subject: Subject) -> Result<Isolation, Error> {
        subject.isolation().ok_or_else(|| Error::Subject {
            subject,
            reason: "it is none of rvm's modes".to_owned(),
        })
    }

    /// Something to be known to read the numbers; once is enough.
    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Of each of rvm's modes the start whose time was in the middle.
    fn waterfalls(&mut self) -> Vec<Waterfall> {
        self.starts.sort_by_key(|(us, _)| *us);
        let middle = |subject| {
            let of_it: Vec<_> = self
                .starts
                .iter()
                .map(|(_, waterfall)| waterfall)
                .filter(|waterfall| waterfall.subject == subject)
                .collect();
            of_it.get(of_it.len() / 2).map(|waterfall| (*waterfall).clone())
        };
        Subject::OWN.into_iter().filter_map(middle).collect()
    }
}

impl Samples {
    fn add(&mut self, subject: Subject, run: &[Sample]) {
        for sample in run {
            if !self.rows.contains(&sample.row) {
                self.rows.push(sample.row);
            }
            self.values
                .entry((subject, sample.row))
                .or_default()
                .push(sample.value);
        }
    }

    /// Rows in the catalogue's order; within a row in that of subjects.
    fn series(mut self, suite: Suite, subjects: &[Subject]) -> Vec<Series> {
        let mut series = Vec::new();
        self.rows.sort_by_key(|row| catalogue::place(suite, row));
        for row in self.rows {
            let Some(Row {
                title, unit, better, ..
            }) = catalogue::find(suite, row)
            else {
                continue;
            };
            for subject in subjects {
                let samples = self.values.remove(&(*subject, row)).unwrap_or_default();
                let Some(summary) = Summary::of(&samples) else {
                    continue;
                };
                series.push(Series {
                    suite,
                    row: row.to_owned(),
                    subject: *subject,
                    title: title.to_owned(),
                    unit,
                    better,
                    samples,
                    summary,
                });
            }
        }
        series
    }
}

/// What the host knows of its disks goes: pages, names and files (Documentation/admin-guide/sysctl/vm.rst). What somebody has mapped
/// stays, so this program, which is the one that is started, lets go of its own.
fn drop_caches() -> io::Result<()> {
    rvm_isolation::release_program_pages()?;
    // What is not written yet would stay.
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3")
}

#[expect(
    clippy::cast_precision_loss,
    reason = "numbers beyond 2^52 are known to one part in 2^52, which is enough"
)]
fn number(number: u64) -> f64 {
    number as f64
}
