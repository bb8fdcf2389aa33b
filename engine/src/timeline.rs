//! When a run got how far: moments of one run, taken by the processes that take part in it.
//!
//! All of them are on one machine and read `CLOCK_MONOTONIC`, so their stamps compare. A guest's moments are bytes on the
//! doorbell port that it writes anyway, stamped by the VMM. Nothing is kept unless somebody asked.

use std::sync::{Arc, Mutex, PoisonError};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment of a run. In the order of a run that goes well; a kind of isolation may not have all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The command has parsed its arguments.
    Command,
    /// The image is resolved and the container's directory made.
    Created,
    /// The supervisor owns the container.
    Supervised,
    /// The VMM's process exists.
    VmmStarted,
    /// The machine is built: the guest kernel's first instruction comes next.
    FirstEntry,
    /// The guest kernel has handed over to the agent.
    AgentStarted,
    /// The agent accepts connections.
    AgentReady,
    /// The workload is isolated and waits to be executed.
    Isolated,
    /// `execve` has succeeded.
    Executed,
    /// The workload's first byte of output has come.
    FirstByte,
    /// The workload has ended.
    Exited,
    /// Container or machine, cgroups and sockets are gone.
    TornDown,
    /// The command ends.
    Done,
}

impl Phase {
    /// What has been reached, in a few words.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Command => "rvm started",
            Self::Created => "image resolved, container made",
            Self::Supervised => "supervisor started",
            Self::VmmStarted => "VMM started",
            Self::FirstEntry => "VMM ready, first KVM_RUN",
            Self::AgentStarted => "guest kernel booted",
            Self::AgentReady => "agent ready",
            Self::Isolated => "workload isolated",
            Self::Executed => "workload executed",
            Self::FirstByte => "first byte of output",
            Self::Exited => "workload ended",
            Self::TornDown => "torn down",
            Self::Done => "rvm ends",
        }
    }
}

/// A moment and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// What was reached.
    pub phase: Phase,
    /// When, in microseconds of `CLOCK_MONOTONIC`.
    pub us: u64,
}

impl Stamp {
    /// Now.
    #[must_use]
    pub fn now(phase: Phase) -> Self {
        Self { phase, us: now_us() }
    }
}

/// Microseconds of `CLOCK_MONOTONIC`.
fn now_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1000
}

/// Collects stamps from several threads, or none. Clones collect into the same.
#[derive(Debug, Clone, Default)]
pub struct Timeline(Option<Arc<Mutex<Vec<Stamp>>>>);

impl Timeline {
    /// Collects if `wanted`.
    #[must_use]
    pub fn new(wanted: bool) -> Self {
        Self(wanted.then(Arc::default))
    }

    /// Marks a moment; the first time counts.
    pub(crate) fn mark(&self, phase: Phase) {
        if self.0.is_some() {
            self.mark_at(Stamp::now(phase));
        }
    }

    /// The same, for a moment in the past.
    pub(crate) fn mark_at(&self, stamp: Stamp) {
        if let Some(stamps) = &self.0 {
            let mut stamps = stamps.lock().unwrap_or_else(PoisonError::into_inner);
            if stamps.iter().all(|other| other.phase != stamp.phase) {
                stamps.push(stamp);
            }
        }
    }

    /// What was collected so far.
    #[must_use]
    pub fn stamps(&self) -> Vec<Stamp> {
        match &self.0 {
            Some(stamps) => stamps.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            None => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_mark_of_a_phase_counts() {
        let timeline = Timeline::new(true);
        let stamp = |us| Stamp {
            phase: Phase::FirstByte,
            us,
        };
        timeline.clone().mark_at(stamp(5));
        timeline.mark_at(stamp(6));
        timeline.mark(Phase::Exited);
        let stamps = timeline.stamps();
        assert_eq!((stamps.len(), stamps[0].us), (2, 5));
        assert!(stamps[1].us > 5);
    }

    #[test]
    fn nothing_is_kept_unasked() {
        let timeline = Timeline::new(false);
        timeline.mark(Phase::Exited);
        assert!(timeline.stamps().is_empty());
    }
}
