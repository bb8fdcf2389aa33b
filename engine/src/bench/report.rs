//! What a series of measurements gave: raw samples, what is told of them, and the circumstances.
//!
//! It is a versioned JSON document. What was made by another version is refused rather than misread.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::catalogue::{Better, Unit};
use super::manifest::Manifest;
use super::plan::{Plan, Subject, Suite};
use super::statistics::Summary;
use crate::timeline::Stamp;

/// Of the document.
pub const VERSION: u32 = 2;

/// Longest document that is read.
const MAX_BYTES: u64 = 64 << 20;

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// Where and when.
    pub manifest: Manifest,
    /// What was asked for.
    pub plan: Plan,
    /// The rows, suite by suite.
    pub series: Vec<Series>,
    /// How one start went, for each of rvm's modes: that whose time was the median.
    pub waterfalls: Vec<Waterfall>,
    /// What of the host was reached, for each of rvm's modes.
    pub exposures: Vec<Exposure>,
    /// Runs that do not count.
    pub failures: Vec<Failure>,
    /// What has to be known to read the numbers.
    pub notes: Vec<String>,
}

/// One row for one subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Series {
    /// Where it belongs.
    pub suite: Suite,
    /// Name of the row within the suite.
    pub row: String,
    /// What was measured.
    pub subject: Subject,
    /// The row in a few words.
    pub title: String,
    /// What the samples are in.
    pub unit: Unit,
    /// Which is better.
    pub better: Better,
    /// In the order in which they were taken.
    pub samples: Vec<f64>,
    /// What is told of them.
    pub summary: Summary,
}

/// One start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waterfall {
    /// Of what.
    pub subject: Subject,
    /// Moments, in microseconds since the command was executed.
    pub stamps: Vec<Stamp>,
}

/// What of the host one workload reached. Proxies: none of it says that something is secure or is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exposure {
    /// Of what.
    pub subject: Subject,
    /// System calls that processes of the container made on the host's kernel while the workload did its work, and how often.
    pub calls: BTreeMap<String, u64>,
    /// Why they were not counted, where they were not.
    pub calls_missing: Option<String>,
    /// System calls that the filters of its workload, or of what serves its machine, let through with some arguments, whether they
    /// are made or not; empty where they could not be read.
    #[serde(default)]
    pub allowed: BTreeSet<String>,
    /// VM exits meanwhile, by reason, as KVM counts; empty where there is no machine or no statistics.
    pub exits: BTreeMap<String, u64>,
    /// Capabilities in effect inside, as a mask in hexadecimal digits. In a virtual machine they are over the guest's kernel.
    pub capabilities_inside: String,
    /// Each process of the container on the host.
    pub processes: Vec<ServingProcess>,
}

/// A process on the host that is of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServingProcess {
    /// Its program.
    pub name: String,
    /// Its user, on the host.
    pub uid: u32,
    /// Capabilities in effect, as a mask in hexadecimal digits, in the user namespace that it is in.
    pub capabilities: String,
    /// Whether that user namespace is another than that of `rvm bench`.
    pub own_user_namespace: bool,
    /// Whether it can gain no privileges by executing something.
    pub no_new_privileges: bool,
    /// `disabled`, `strict` or `filter`: system calls of its first thread.
    pub seccomp: String,
    /// System calls of the 64-bit interface that its threads' filters let through with some arguments; `None` where a thread has no
    /// filter, or they cannot be read.
    #[serde(default)]
    pub allowed: Option<usize>,
}

/// A run that does not count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// Where it belongs.
    pub suite: Suite,
    /// What was measured.
    pub subject: Subject,
    /// Its number, warm-up included.
    pub run: usize,
    /// What went wrong.
    pub reason: String,
}

/// Why a report cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be read.
    #[error("cannot read {0}")]
    File(PathBuf, #[source] io::Error),
    /// It is longer than any report.
    #[error("{0} is no report of rvm bench: it is longer than {MAX_BYTES} bytes")]
    TooLong(PathBuf),
    /// It is something else.
    #[error("{0} is no report of rvm bench")]
    Parse(PathBuf, #[source] serde_json::Error),
    /// Another rvm has written it.
    #[error("{path} is a report of version {found}, and this rvm reads version {VERSION}: measure again")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
}

impl Report {
    /// Reads what `rvm bench --json` has written.
    ///
    /// # Errors
    /// As [`ReadError`] says.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let file = |source| ReadError::File(path.to_owned(), source);
        if fs::metadata(path).map_err(file)?.len() > MAX_BYTES {
            return Err(ReadError::TooLong(path.to_owned()));
        }
        let text = fs::read(path).map_err(file)?;
        let parse = |source| ReadError::Parse(path.to_owned(), source);
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(parse)?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(found) if found != u64::from(VERSION) => Err(ReadError::Version {
                path: path.to_owned(),
                found,
            }),
            _ => serde_json::from_value(value).map_err(parse),
        }
    }

    /// One row of one subject.
    #[must_use]
    pub fn series(&self, suite: Suite, row: &str, subject: Subject) -> Option<&Series> {
        self.series
            .iter()
            .find(|series| (series.suite, series.row.as_str(), series.subject) == (suite, row, subject))
    }
}
