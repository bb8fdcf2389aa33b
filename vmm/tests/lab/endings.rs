//! Machines that do not end by themselves.

use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rvm_vmm::event::StopReason;

use crate::machine::{Machine, Setup, wait_until};

/// A machine that was told to end has done so within this, emulated or not.
const BOUND: Duration = Duration::from_secs(5);

/// Ends a machine by closing its socket, or by a signal, and looks whether it says so in time.
fn is_ended(machine: Machine, by_signal: bool) {
    let start = Instant::now();
    if by_signal {
        machine.signal(Signal::TERM);
    } else {
        machine.hang_up();
    }
    let (stopped, status) = machine.end();
    assert_eq!(stopped.reason, StopReason::Terminated, "{stopped:?}");
    assert!(status.success(), "{status}");
    assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
}

pub(crate) fn while_paused() {
    for by_signal in [false, true] {
        let mut setup = Setup::new("/init guest ring 7; while :; do :; done");
        setup.vcpus = 2;
        let mut machine = Machine::start(&setup);
        machine.wait_for_doorbell(7);
        machine.pause();
        is_ended(machine, by_signal);
    }
}

/// A guest whose init never returns, and one whose kernel has panicked and stays.
pub(crate) fn hanging() {
    for by_signal in [false, true] {
        let mut machine = Machine::start(&Setup::new("/init guest ring 7; while :; do :; done"));
        machine.wait_for_doorbell(7);
        is_ended(machine, by_signal);

        // Without arguments busybox ends at once.
        let mut setup = Setup::new("");
        setup.cmdline = "panic=0 rdinit=/bin/busybox";
        let machine = Machine::start(&setup);
        wait_until("the kernel has panicked", || {
            machine.console().contains("Kernel panic")
        });
        is_ended(machine, by_signal);
    }
}

/// SIGSYS from outside is what a filter sends; the process ends by it and has no last word.
pub(crate) fn by_filter() {
    let mut machine = Machine::start(&Setup::new("/init guest ring 7; sleep 1000"));
    machine.wait_for_doorbell(7);
    machine.signal(Signal::SYS);
    assert_eq!(machine.exit_status().signal(), Some(Signal::SYS.as_raw()));
}
