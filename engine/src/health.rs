//! Whether a container does what it is for: what is run in it to find out, and what came of it.

use std::path::Path;
use std::time::Duration;

use rvm_images::Healthcheck;
use serde::{Deserialize, Serialize};

use crate::json;

/// File of a [`Report`] in a container's directory.
const FILE: &str = "health.json";

/// Probes that a report has, the last ones. Docker's number.
const KEPT: usize = 5;

/// Bytes of a probe's output that are kept. Docker's number.
pub(crate) const OUTPUT_BYTES: usize = 4096;

/// How it is found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// As an image has it: `CMD` and a program with its arguments, or `CMD-SHELL` and a line for the shell.
    pub test: Vec<String>,
    /// From one probe's end to the next one's start.
    pub interval_ms: u64,
    /// A probe that takes longer has failed.
    pub timeout_ms: u64,
    /// So long after the start a failure does not count, until a probe has succeeded.
    pub start_period_ms: u64,
    /// The interval as long as that goes on.
    pub start_interval_ms: u64,
    /// So many failures in a row are ill health.
    pub retries: u32,
}

/// What a user says of it. What is `None` is as the image has it, or else as Docker has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// There is to be no check, whatever the image says.
    pub disabled: bool,
    /// A line for the shell.
    pub command: Option<String>,
    /// As in [`Check`].
    pub interval: Option<Duration>,
    /// As in [`Check`].
    pub timeout: Option<Duration>,
    /// As in [`Check`].
    pub start_period: Option<Duration>,
    /// As in [`Check`].
    pub start_interval: Option<Duration>,
    /// As in [`Check`].
    pub retries: Option<u32>,
}

impl Check {
    /// What holds for a container; `None` where nothing is to be run.
    #[must_use]
    pub fn new(image: Option<&Healthcheck>, options: &Options) -> Option<Self> {
        let default = Healthcheck::default();
        let image = image.unwrap_or(&default);
        let test = match &options.command {
            Some(line) => vec!["CMD-SHELL".to_owned(), line.clone()],
            None => image.test.clone(),
        };
        // An image has nanoseconds, 0 where it does not say.
        let time = |user: Option<Duration>, image: i64, default: u64| match user {
            Some(time) => u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            None => match u64::try_from(image) {
                Ok(nanoseconds @ 1..) => (nanoseconds / 1_000_000).max(1),
                _ => default,
            },
        };
        let check = Self {
            test,
            interval_ms: time(options.interval, image.interval, 30_000),
            timeout_ms: time(options.timeout, image.timeout, 30_000),
            start_period_ms: time(options.start_period, image.start_period, 0),
            start_interval_ms: time(options.start_interval, image.start_interval, 5_000),
            retries: match options.retries {
                Some(retries) => retries,
                None => u32::try_from(image.retries)
                    .ok()
                    .filter(|retries| *retries > 0)
                    .unwrap_or(3),
            },
        };
        (!options.disabled && check.arguments().is_some()).then_some(check)
    }

    /// As an image would have it.
    pub(crate) fn as_image(&self) -> Healthcheck {
        let nanoseconds = |milliseconds: u64| {
            i64::try_from(milliseconds)
                .map_or(i64::MAX, |milliseconds| milliseconds.saturating_mul(1_000_000))
        };
        Healthcheck {
            test: self.test.clone(),
            interval: nanoseconds(self.interval_ms),
            timeout: nanoseconds(self.timeout_ms),
            start_period: nanoseconds(self.start_period_ms),
            start_interval: nanoseconds(self.start_interval_ms),
            retries: self.retries.into(),
        }
    }

    /// What is to be run.
    pub(crate) fn arguments(&self) -> Option<Vec<String>> {
        match self.test.split_first() {
            Some((kind, arguments)) if kind == "CMD" && !arguments.is_empty() => Some(arguments.to_vec()),
            Some((kind, [line])) if kind == "CMD-SHELL" => {
                Some(["/bin/sh", "-c", line].map(str::to_owned).to_vec())
            }
            _ => None,
        }
    }

    /// The wait before the next probe of a container that has run for so long.
    pub(crate) fn wait(&self, report: &Report, running: Duration) -> Duration {
        let starts =
            report.status == Status::Starting && running < Duration::from_millis(self.start_period_ms);
        Duration::from_millis(if starts {
            self.start_interval_ms
        } else {
            self.interval_ms
        })
    }
}

/// What a container's health is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// No probe has succeeded yet, and not enough have failed.
    Starting,
    /// The last one that counts has succeeded.
    Healthy,
    /// Too many have failed.
    Unhealthy,
}

impl Status {
    /// Docker's word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// What has been found out of a container since it was started last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// What it comes to.
    pub status: Status,
    /// Failures since the last success.
    pub failing_streak: u32,
    /// The last probes, oldest first.
    pub log: Vec<Probe>,
}

/// One look at a container's health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// In milliseconds since the epoch.
    pub started_ms: u64,
    /// In milliseconds since the epoch.
    pub ended_ms: u64,
    /// What it ended with; -1 where it did not.
    pub exit_code: i32,
    /// What it said, cut short.
    pub output: String,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            status: Status::Starting,
            failing_streak: 0,
            log: Vec::new(),
        }
    }
}

impl Report {
    /// Takes down a probe of a container that has run for so long.
    pub(crate) fn add(&mut self, check: &Check, probe: Probe, running: Duration) {
        if probe.exit_code == 0 {
            (self.status, self.failing_streak) = (Status::Healthy, 0);
        } else if self.status != Status::Starting || running >= Duration::from_millis(check.start_period_ms) {
            self.failing_streak += 1;
            if self.failing_streak >= check.retries {
                self.status = Status::Unhealthy;
            }
        }
        self.log.push(probe);
        let surplus = self.log.len().saturating_sub(KEPT);
        self.log.drain(..surplus);
    }

    /// Puts it into a container's directory.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), json::Error> {
        json::write(&directory.join(FILE), self)
    }

    /// Reads what is in a container's directory; `None` where there is nothing that can be read.
    #[must_use]
    pub fn read(directory: &Path) -> Option<Self> {
        json::read(&directory.join(FILE)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Healthcheck {
        Healthcheck {
            test: ["CMD", "curl", "localhost"].map(str::to_owned).to_vec(),
            interval: 1_500_000_000,
            retries: 2,
            ..Healthcheck::default()
        }
    }

    #[test]
    fn flags_go_before_the_image_and_that_before_docker_s_values() {
        let check = Check::new(Some(&image()), &Options::default()).unwrap();
        assert_eq!(check.arguments().unwrap(), ["curl", "localhost"]);
        assert_eq!(
            (
                check.interval_ms,
                check.timeout_ms,
                check.start_period_ms,
                check.retries
            ),
            (1_500, 30_000, 0, 2)
        );
        let options = Options {
            command: Some("test -e /ready".into()),
            retries: Some(7),
            interval: Some(Duration::from_millis(20)),
            ..Options::default()
        };
        let check = Check::new(Some(&image()), &options).unwrap();
        assert_eq!(check.arguments().unwrap(), ["/bin/sh", "-c", "test -e /ready"]);
        assert_eq!((check.interval_ms, check.retries), (20, 7));
        let disabled = Options {
            disabled: true,
            ..Options::default()
        };
        assert_eq!(Check::new(Some(&image()), &disabled), None);
        let none = Healthcheck {
            test: vec!["NONE".into()],
            ..Healthcheck::default()
        };
        assert_eq!(Check::new(Some(&none), &Options::default()), None);
        assert_eq!(Check::new(None, &Options::default()), None);
    }

    #[test]
    fn failures_count_once_it_has_had_time_to_start() {
        let check = Check {
            start_period_ms: 1000,
            ..Check::new(Some(&image()), &Options::default()).unwrap()
        };
        let probe = |exit_code| Probe {
            started_ms: 0,
            ended_ms: 0,
            exit_code,
            output: String::new(),
        };
        let mut report = Report::default();
        let mut after = |exit_code, milliseconds| {
            report.add(&check, probe(exit_code), Duration::from_millis(milliseconds));
            (report.status, report.failing_streak)
        };
        assert_eq!(after(1, 10), (Status::Starting, 0));
        assert_eq!(after(1, 1000), (Status::Starting, 1));
        assert_eq!(after(-1, 1100), (Status::Unhealthy, 2));
        assert_eq!(after(0, 1200), (Status::Healthy, 0));
        assert_eq!(after(1, 1300), (Status::Healthy, 1));
        assert_eq!(after(1, 1400), (Status::Unhealthy, 2));
        assert_eq!(report.log.len(), KEPT);
    }
}
