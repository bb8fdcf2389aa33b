//! A built machine: running it, and telling how it ended.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};

use crate::attach::AttachedDevice;
use crate::devices::console::Console;
use crate::event::{Event, StopReason, Stopped};
use crate::event_loop::{EventLoop, EventLoopError, Subscriber};
use crate::operation::Operation;
use crate::reporter::Reporter;
use crate::seccomp::{Filters, Kind};
use crate::statistics::Statistics;
use crate::stop::Cause;
use crate::sys::{GuestVcpu, RunningVcpu};
use crate::vcpu::{self, ExitCounters, Gate, Surroundings};
use crate::vm::Vm;

/// What the kernel prints first when it panics (kernel/panic.c).
const PANIC_MESSAGE: &str = "Kernel panic - not syncing";

/// The doorbell byte by which a guest announces that it will reset on purpose. A reset after it is not a panic, whatever
/// a program has printed on the console.
pub const POWER_OFF_DOORBELL: u8 = 3;

/// A machine that is ready to run.
pub struct Machine {
    pub(crate) vcpus: Vec<GuestVcpu>,
    pub(crate) surroundings: Surroundings,
    /// Devices for the event loop.
    pub(crate) subscribers: Vec<Subscriber>,
    /// All devices on the memory-mapped bus.
    pub(crate) devices: Vec<AttachedDevice>,
    pub(crate) console: Console,
    pub(crate) reporter: Arc<Reporter>,
    /// For the threads that run the machine.
    pub(crate) filters: Filters,
    pub(crate) vm: Vm,
}

impl Machine {
    /// Runs the guest until the machine ends; `termination` is watched as in [`EventLoop::new`].
    ///
    /// The caller reports what is returned.
    #[must_use]
    pub fn run(mut self, termination: Option<OwnedFd>) -> Stopped {
        let vcpus = std::mem::take(&mut self.vcpus);
        let mut running = Vec::new();
        if let Err(cause) = self.run_threads(vcpus, &mut running, termination) {
            self.surroundings.stop.stop(cause.reason, cause.detail);
        }
        // A machine may end while it is paused.
        self.surroundings.parking.release();
        for vcpu in running {
            vcpu.join();
        }
        self.stopped()
    }

    fn run_threads(
        &self,
        vcpus: Vec<GuestVcpu>,
        running: &mut Vec<RunningVcpu>,
        termination: Option<OwnedFd>,
    ) -> Result<(), Cause> {
        let device_failure = |error: EventLoopError| Cause {
            reason: StopReason::DeviceFailure,
            detail: error.to_string(),
        };
        let kvm_failure = |error: std::io::Error| Cause {
            reason: StopReason::KvmFailure,
            detail: format!("cannot start a virtual CPU's thread: {error}"),
        };
        let mut event_loop = EventLoop::new(self.surroundings.stop.clone(), &self.reporter, termination)
            .map_err(device_failure)?;
        for subscriber in &self.subscribers {
            event_loop.add(subscriber.clone());
        }
        let statistics = Statistics::open(self.vm.guest(), &vcpus);
        let mut gates = Vec::new();
        let (confined, all_confined) = mpsc::channel();
        for (index, vcpu) in (0..).zip(vcpus) {
            let (open, waiting) = mpsc::channel();
            let gate = Gate {
                confined: confined.clone(),
                open: waiting,
            };
            let vcpu = vcpu::start(index, vcpu, self.surroundings.clone(), self.filters.clone(), gate);
            running.push(vcpu.map_err(kvm_failure)?);
            gates.push(open);
        }
        drop(confined);
        let own = self.filters.install(Kind::EventLoop);
        // No guest code runs before every thread has no rights but those that it needs now.
        for result in std::iter::once(own).chain(all_confined.iter().take(gates.len())) {
            result.map_err(|error| Cause {
                reason: StopReason::Setup,
                detail: describe(&error),
            })?;
        }
        self.reporter.send_reliably(&Event::Running {
            setup_us: self.reporter.elapsed_us(),
            monotonic_us: self.reporter.monotonic_us(),
        });
        for gate in gates {
            // A thread that is gone has told the reason to the event loop.
            let _ = gate.send(());
        }
        event_loop
            .run(&mut Operation::new(self, running, statistics))
            .map_err(device_failure)
    }

    fn stopped(&self) -> Stopped {
        self.console.finish();
        let console_tail = self.console.tail();
        let cause = self.surroundings.stop.cause().unwrap_or_else(|| Cause {
            reason: StopReason::DeviceFailure,
            detail: "the event loop ended without a cause".into(),
        });
        let cause = recognise_panic(cause, &console_tail, self.reporter.last_doorbell());
        let exits = ExitCounters::totals(&self.surroundings.exits);
        Stopped {
            reason: cause.reason,
            detail: cause.detail,
            console_tail,
            exits,
            us: self.reporter.elapsed_us(),
        }
    }

    /// The virtual machine.
    #[must_use]
    pub fn vm(&self) -> &Vm {
        &self.vm
    }
}

/// A machine that could not be built, in the form of one that has ended.
#[must_use]
pub fn setup_failure(error: &dyn std::error::Error, reporter: &Reporter) -> Stopped {
    Stopped {
        reason: StopReason::Setup,
        detail: describe(error),
        console_tail: String::new(),
        exits: BTreeMap::new(),
        us: reporter.elapsed_us(),
    }
}

/// An error and its causes on one line.
#[must_use]
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn recognise_panic(cause: Cause, console_tail: &str, last_doorbell: u8) -> Cause {
    if cause.reason != StopReason::Reset || last_doorbell == POWER_OFF_DOORBELL {
        return cause;
    }
    let line = console_tail
        .lines()
        .rev()
        .find_map(|line| line.find(PANIC_MESSAGE).and_then(|at| line.get(at..)));
    match line {
        Some(line) => Cause {
            reason: StopReason::Panic,
            detail: line.trim_end().to_owned(),
        },
        None => cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_is_a_panic_if_the_console_says_so_and_no_power_off_was_announced() {
        let tail = "[    0.5] Kernel panic - not syncing: Attempted to kill init!\r\n[    0.5] ---[ end\r\n";
        let check = |reason, tail: &str, doorbell, expected, detail: &str| {
            let cause = recognise_panic(
                Cause {
                    reason,
                    detail: "x".into(),
                },
                tail,
                doorbell,
            );
            assert_eq!((cause.reason, cause.detail.as_str()), (expected, detail));
        };
        let message = "Kernel panic - not syncing: Attempted to kill init!";
        check(StopReason::Reset, tail, 2, StopReason::Panic, message);
        check(
            StopReason::Reset,
            tail,
            POWER_OFF_DOORBELL,
            StopReason::Reset,
            "x",
        );
        check(StopReason::Reset, "all is well", 2, StopReason::Reset, "x");
        check(StopReason::TripleFault, tail, 2, StopReason::TripleFault, "x");
    }
}
