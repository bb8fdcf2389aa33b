//! One virtual CPU: its thread, and what happens at each of its exits.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use kvm_ioctls::VcpuExit;

use crate::bus::Bus;
use crate::event::StopReason;
use crate::parking::{Parking, Place};
use crate::seccomp::{self, Filters, Kind};
use crate::status::Counters;
use crate::stop::StopSignal;
use crate::sys::{GuestVcpu, RunningVcpu};

/// What a vCPU's thread works with besides the vCPU.
#[derive(Clone)]
pub struct Surroundings {
    /// I/O ports.
    pub ports: Arc<Bus>,
    /// Device memory.
    pub mmio: Arc<Bus>,
    /// Ends the machine.
    pub stop: Arc<StopSignal>,
    /// Where all vCPUs wait while the machine is paused.
    pub parking: Arc<Parking>,
    /// Counts the exits of each vCPU.
    pub exits: Arc<[ExitCounters]>,
}

/// Exits of one vCPU to this process, by kind. What KVM handles itself (CPUID, most MSRs, HLT, nested page faults) is not among them.
///
/// Only its thread counts, and on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ExitCounters([AtomicU64; ExitKind::NAMES.len()]);

#[derive(Clone, Copy)]
enum ExitKind {
    PortRead,
    PortWrite,
    MmioRead,
    MmioWrite,
    Interrupted,
    Other,
}

impl ExitKind {
    const NAMES: [&str; 6] = [
        "io_in",
        "io_out",
        "mmio_read",
        "mmio_write",
        "interrupted",
        "other",
    ];
}

impl ExitCounters {
    fn count(&self, kind: ExitKind) {
        if let Some(counter) = self.0.get(kind as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The counts by name, without those that are zero.
    #[must_use]
    pub fn by_name(&self) -> Counters {
        let counts = self.0.iter().map(|counter| counter.load(Ordering::Relaxed));
        let named = ExitKind::NAMES.into_iter().map(str::to_owned).zip(counts);
        named.filter(|(_, count)| *count > 0).collect()
    }

    /// The sums over all vCPUs.
    #[must_use]
    pub fn totals(vcpus: &[Self]) -> Counters {
        let mut totals = Counters::new();
        for (name, count) in vcpus.iter().flat_map(Self::by_name) {
            *totals.entry(name).or_default() += count;
        }
        totals
    }
}

/// Keeps a vCPU's thread from entering the guest too early.
pub(crate) struct Gate {
    /// The thread says whether its filter is in force.
    pub(crate) confined: Sender<Result<(), seccomp::Error>>,
    /// It may enter the guest; not at all if the other end is dropped.
    pub(crate) open: Receiver<()>,
}

/// Starts the thread of vCPU `index`, under its filter. It enters the guest once `gate` opens, and runs until the machine is
/// told to stop.
pub(crate) fn start(
    index: u8,
    vcpu: GuestVcpu,
    surroundings: Surroundings,
    filters: Filters,
    gate: Gate,
) -> io::Result<RunningVcpu> {
    RunningVcpu::start(format!("vcpu{index}"), vcpu, move |vcpu| {
        let parking = surroundings.parking.clone();
        let place = parking.place();
        let told = gate.confined.send(filters.install(Kind::Vcpu));
        // After a failure nobody opens the gate.
        if told.is_ok() && gate.open.recv().is_ok() {
            run(index, vcpu, &surroundings, &place);
        }
    })
}

fn run(index: u8, vcpu: &mut GuestVcpu, surroundings: &Surroundings, place: &Place<'_>) {
    let Some(exits) = surroundings.exits.get(usize::from(index)) else {
        return;
    };
    while !surroundings.stop.is_set() {
        match run_once(vcpu, surroundings, exits) {
            Ok(Turn::Handled) => {}
            Ok(Turn::Interrupted) => {
                // Before anybody's wish is looked at: who wishes says so first and interrupts then, so that a wish which
                // is overlooked here interrupts the next turn.
                vcpu.clear_immediate_exit();
                if place.park_if_asked() {
                    // Keeps the guest's watchdogs from taking the pause for a processor that is stuck. A guest without
                    // kvm-clock, which KVM refuses, has nothing to be told by.
                    let _ = vcpu.fd().kvmclock_ctrl();
                }
            }
            Err((reason, detail)) => surroundings.stop.stop(reason, detail),
        }
    }
}

/// Why a vCPU is out of its guest.
enum Turn {
    /// It wanted something, and has it.
    Handled,
    /// Somebody interrupted it; KVM has completed what it wanted before.
    Interrupted,
}

fn run_once(
    vcpu: &mut GuestVcpu,
    surroundings: &Surroundings,
    exits: &ExitCounters,
) -> Result<Turn, (StopReason, String)> {
    let count = |kind| exits.count(kind);
    match vcpu.run() {
        Ok(VcpuExit::IoOut(port, data)) => {
            count(ExitKind::PortWrite);
            surroundings.ports.write(u64::from(port), data);
        }
        Ok(VcpuExit::IoIn(port, data)) => {
            count(ExitKind::PortRead);
            surroundings.ports.read(u64::from(port), data);
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            count(ExitKind::MmioRead);
            surroundings.mmio.read(address, data);
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            count(ExitKind::MmioWrite);
            surroundings.mmio.write(address, data);
        }
        Ok(VcpuExit::Intr) => {
            count(ExitKind::Interrupted);
            return Ok(Turn::Interrupted);
        }
        // EAGAIN: a processor that waits for its start-up interrupt was woken for another reason.
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
            count(ExitKind::Interrupted);
            return Ok(Turn::Interrupted);
        }
        Err(error) => return Err((StopReason::KvmFailure, format!("KVM_RUN failed: {error}"))),
        Ok(VcpuExit::Shutdown) => {
            count(ExitKind::Other);
            let place = place(vcpu);
            return Err((
                StopReason::TripleFault,
                format!("the guest's processor shut down{place}"),
            ));
        }
        Ok(VcpuExit::FailEntry(code, cpu)) => {
            let detail = format!("the processor refused to enter the guest (reason {code:#x}, CPU {cpu})");
            return Err((StopReason::InternalError, detail));
        }
        Ok(VcpuExit::InternalError) => return Err((StopReason::InternalError, internal_error(vcpu))),
        Ok(VcpuExit::SystemEvent(kind, _)) => {
            return Err((
                StopReason::Reset,
                format!("the guest asked for system event {kind}"),
            ));
        }
        Ok(other) => {
            let detail = format!("unexpected exit {other:?}");
            return Err((StopReason::InternalError, detail));
        }
    }
    Ok(Turn::Handled)
}

/// `KVM_EXIT_INTERNAL_ERROR`: suberrors are listed in include/uapi/linux/kvm.h.
fn internal_error(vcpu: &mut GuestVcpu) -> String {
    let (suberror, data) = vcpu.internal_error().unwrap_or_default();
    let meaning = match suberror {
        1 => "KVM cannot emulate an instruction of the guest",
        2 => "an exception came while KVM delivered another",
        3 => "KVM could not deliver an event to the guest",
        4 => "KVM met an exit that it does not know",
        _ => "KVM gave up",
    };
    let data: Vec<String> = data.iter().map(|word| format!("{word:#x}")).collect();
    format!(
        "{meaning} (suberror {suberror}, data [{}]){}",
        data.join(", "),
        place(vcpu)
    )
}

fn place(vcpu: &GuestVcpu) -> String {
    match vcpu.fd().get_regs() {
        Ok(registers) => format!(" at RIP {:#x}, RSP {:#x}", registers.rip, registers.rsp),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn counters_have_names() {
        let counters = [ExitCounters::default(), ExitCounters::default()];
        counters[0].count(ExitKind::Other);
        counters[0].count(ExitKind::PortRead);
        counters[1].count(ExitKind::PortRead);
        let expected = [("io_in".to_owned(), 2), ("other".to_owned(), 1)];
        assert_eq!(ExitCounters::totals(&counters), BTreeMap::from(expected));
    }
}
