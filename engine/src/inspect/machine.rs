//! A virtual machine, put together from its record, what it says of itself, and what the host's kernel says of its process.

use std::collections::BTreeMap;

use rvm_vmm::status::{Counters, DeviceStatus, DriverStatus, Status};
use serde::Serialize;

use super::process::{self, Thread};
use crate::memory::workload_mib;
use crate::record::Machine;

/// A virtual machine. What is not known because it does not run, or does not say, is `null`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct MachineReport {
    /// Number of virtual CPUs.
    pub vcpus: u8,
    /// Guest memory: what the workload may have, and what the guest needs besides.
    #[serde(rename = "MemoryMiB")]
    pub memory_mib: u32,
    /// Where memory is.
    pub memory: MemoryReport,
    /// Whether it is paused.
    pub paused: bool,
    /// Its virtio devices.
    pub devices: Option<Vec<Device>>,
    /// VM exits that reached the VMM, by reason, of all virtual CPUs.
    pub exits: Option<Counters>,
    /// Each virtual CPU.
    pub vcpu: Option<Vec<VcpuReport>>,
    /// KVM's statistics of the machine; `null` where the host's kernel does not give them (before Linux 5.14).
    pub kvm: Option<Counters>,
    /// Threads of the VMM.
    pub threads: Option<Vec<Thread>>,
    /// What could not be found out, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

/// Memory of a virtual machine.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct MemoryReport {
    /// What the workload may have.
    #[serde(rename = "WorkloadMiB")]
    pub workload_mib: u32,
    /// What is added for the guest's kernel and agent.
    #[serde(rename = "GuestOverheadMiB")]
    pub guest_overhead_mib: u32,
    /// What of the guest's memory the host has given it.
    pub guest_resident_bytes: Option<u64>,
    /// What the VMM itself takes: its proportional set without the guest's memory.
    pub monitor_bytes: Option<u64>,
}

/// A virtual CPU.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VcpuReport {
    /// VM exits that reached the VMM, by reason.
    pub exits: Counters,
    /// KVM's statistics of it, with the exits that KVM handled.
    pub kvm: Option<Counters>,
}

/// A virtio device.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Device {
    /// What it is.
    pub kind: String,
    /// What is behind it on the host.
    pub backend: String,
    /// Address of its registers in the guest.
    pub address: String,
    /// Its interrupt line.
    pub interrupt: u32,
    /// Features that it offers, as bits (virtio 1.2, sections 5 and 6).
    pub features_offered: String,
    /// Features that the guest's driver has chosen.
    pub features: String,
    /// `absent`, `starting`, `ready`, `failed` or `needs_reset`.
    pub driver: &'static str,
    /// Its queues.
    pub queues: Vec<Queue>,
}

/// A queue of a device.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Queue {
    /// Number of descriptors.
    pub size: u16,
    /// Whether the guest uses it.
    pub ready: bool,
}

impl MachineReport {
    /// A machine that does not run.
    pub(super) fn stopped(size: Option<Machine>) -> Self {
        let Machine { vcpus, memory_mib } = size.unwrap_or(Machine {
            vcpus: 0,
            memory_mib: 0,
        });
        let workload_mib = workload_mib(memory_mib);
        Self {
            vcpus,
            memory_mib,
            memory: MemoryReport {
                workload_mib,
                guest_overhead_mib: memory_mib - workload_mib,
                guest_resident_bytes: None,
                monitor_bytes: None,
            },
            paused: false,
            devices: None,
            exits: None,
            vcpu: None,
            kvm: None,
            threads: None,
            missing: Vec::new(),
        }
    }

    /// A machine that runs as process `pid` and says this of itself.
    pub(super) fn running(size: Option<Machine>, pid: i32, said: Result<Box<Status>, String>) -> Self {
        let mut report = Self::stopped(size);
        match process::threads(pid) {
            Ok(threads) => report.threads = Some(threads),
            Err(error) => report.missing.push(format!("Threads: {error}")),
        }
        match said {
            Ok(status) => report.add(&status, pid),
            Err(reason) => report
                .missing
                .push(format!("Devices, Exits, Vcpu, Kvm, Memory: {reason}")),
        }
        report
    }

    fn add(&mut self, status: &Status, pid: i32) {
        let range = |part: &rvm_vmm::status::MemoryStatus| {
            part.process_address..part.process_address.saturating_add(part.bytes)
        };
        let ranges: Vec<_> = status.memory.iter().map(range).collect();
        match process::memory(pid, &ranges) {
            Ok(memory) => {
                self.memory.guest_resident_bytes = Some(memory.within);
                self.memory.monitor_bytes = Some(memory.elsewhere);
            }
            Err(error) => self.missing.push(format!("Memory: {error}")),
        }
        self.paused = status.paused;
        self.devices = Some(status.devices.iter().map(device).collect());
        let mut exits: Counters = BTreeMap::new();
        for (reason, count) in status.vcpus.iter().flat_map(|vcpu| &vcpu.exits) {
            let sum = exits.entry(reason.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
        self.exits = Some(exits);
        let vcpu = |vcpu: &rvm_vmm::status::VcpuStatus| VcpuReport {
            exits: vcpu.exits.clone(),
            kvm: vcpu.kvm.clone(),
        };
        self.vcpu = Some(status.vcpus.iter().map(vcpu).collect());
        self.kvm.clone_from(&status.kvm);
        if self.kvm.is_none() {
            self.missing
                .push("Kvm: this kernel does not give statistics, Linux 5.14 does".to_owned());
        }
    }
}

fn device(status: &DeviceStatus) -> Device {
    let queue = |queue: &rvm_vmm::status::QueueStatus| Queue {
        size: queue.size,
        ready: queue.ready,
    };
    Device {
        kind: status.kind.clone(),
        backend: status.backend.clone(),
        address: format!("{:#x}", status.address),
        interrupt: status.interrupt,
        features_offered: format!("{:#x}", status.features_offered),
        features: format!("{:#x}", status.features),
        driver: match status.driver {
            DriverStatus::Absent => "absent",
            DriverStatus::Starting => "starting",
            DriverStatus::Ready => "ready",
            DriverStatus::Failed => "failed",
            DriverStatus::NeedsReset => "needs_reset",
        },
        queues: status.queues.iter().map(queue).collect(),
    }
}
