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
    /// All of them, in order.
    pub const ALL: [Self; 13] = [
        Self::Command,
        Self::Created,
        Self::Supervised,
        Self::VmmStarted,
        Self::FirstEntry,
        Self::AgentStarted,
        Self::AgentReady,
        Self::Isolated,
        Self::Executed,
        Self::FirstByte,
        Self::Exited,
        Self::TornDown,
        Self::Done,
    ];

    /// In one word, as it is in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Created => "created",
            Self::Supervised => "supervised",
            Self::VmmStarted => "vmm_started",
            Self::FirstEntry => "first_entry",
            Self::AgentStarted => "agent_started",
            Self::AgentReady => "agent_ready",
            Self::Isolated => "isolated",
            Self::Executed => "executed",
            Self::FirstByte => "first_byte",
            Self::Exited => "exited",
            Self::TornDown => "torn_down",
            Self::Done => "done",
        }
    }

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

/// How long each phase took, in microseconds: from the latest moment before it, and of the first from `start`. Those that were
/// not reached are left out. Moments that were overtaken, as an exit is by the last of its output, took no time.
#[must_use]
pub fn durations(start: u64, stamps: &[Stamp]) -> Vec<(Phase, u64)> {
    let mut stamps = stamps.to_vec();
    stamps.sort_by_key(|stamp| stamp.phase);
    let mut latest = start;
    let mut durations = Vec::with_capacity(stamps.len());
    for stamp in stamps {
        durations.push((stamp.phase, stamp.us.saturating_sub(latest)));
        latest = latest.max(stamp.us);
    }
    durations
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
    use std::thread;
    use std::time::{Duration, Instant};

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

    /// How long phases took that last at least these times, each marked by a thread of its own.
    fn delayed(delays: &[(Phase, Duration)]) -> Vec<(Phase, u64)> {
        let timeline = Timeline::new(true);
        let start = Stamp::now(Phase::Command);
        for (phase, delay) in delays {
            // Busy until the time is over: a sleep may be much longer.
            let begun = Instant::now();
            while begun.elapsed() < *delay {
                std::hint::spin_loop();
            }
            thread::scope(|scope| scope.spawn(|| timeline.mark(*phase)).join().unwrap());
        }
        let mut stamps = timeline.stamps();
        stamps.reverse();
        durations(start.us, &stamps)
    }

    /// A known delay before each moment is found, each within 5 %. A phase is never told to be shorter; it may be longer where
    /// this machine was busy with other things, so the least of several tries counts.
    #[test]
    fn known_delays_are_found() {
        let phases = Phase::ALL;
        let delays = [20_u64, 40, 30, 50, 25, 60, 20, 35, 45, 30, 20, 40, 25].map(Duration::from_millis);
        let expected: Vec<_> = phases.into_iter().zip(delays).collect();
        let mut least = [Duration::MAX; 13];
        let is_right = |least: &[Duration; 13]| {
            let mut pairs = least.iter().zip(delays);
            pairs.all(|(least, delay)| *least <= delay.mul_f64(1.05))
        };
        for _ in 0..50 {
            let found = delayed(&expected);
            assert_eq!(found.iter().map(|(phase, _)| *phase).collect::<Vec<_>>(), phases);
            for ((least, (_, us)), delay) in least.iter_mut().zip(found).zip(delays) {
                *least = Duration::from_micros(us).min(*least);
                assert!(
                    *least + Duration::from_micros(1) >= delay,
                    "{least:?} instead of {delay:?}"
                );
            }
            if is_right(&least) {
                return;
            }
        }
        panic!("{least:?} instead of {delays:?}");
    }

    /// A moment that another overtakes takes no time from it, and all together are the whole.
    #[test]
    fn durations_add_up_whatever_overtakes_what() {
        let stamp = |phase, us| Stamp { phase, us };
        let stamps = [
            stamp(Phase::Command, 110),
            stamp(Phase::Executed, 170),
            stamp(Phase::FirstByte, 150),
            stamp(Phase::Exited, 200),
        ];
        let found = durations(100, &stamps);
        let expected = [
            (Phase::Command, 10),
            (Phase::Executed, 60),
            (Phase::FirstByte, 0),
            (Phase::Exited, 30),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn phases_are_named_as_in_json() {
        assert!(Phase::ALL.is_sorted());
        for phase in Phase::ALL {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.name());
        }
    }

    #[test]
    fn nothing_is_kept_unasked() {
        let timeline = Timeline::new(false);
        timeline.mark(Phase::Exited);
        assert!(timeline.stamps().is_empty());
    }
}
