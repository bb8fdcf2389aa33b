//! What a machine tells about itself when it is asked. Plain data: the supervisor passes it on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Values by name; what is zero is left out.
pub type Counters = BTreeMap<String, u64>;

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// Whether it is paused.
    pub paused: bool,
    /// Microseconds from the machine's start to this moment.
    pub us: u64,
    /// Guest memory, lowest first.
    pub memory: Vec<MemoryStatus>,
    /// Each virtual CPU.
    pub vcpus: Vec<VcpuStatus>,
    /// KVM's own statistics of the virtual machine; `None` if this kernel does not give them (before Linux 5.14).
    pub kvm: Option<Counters>,
    /// The devices on the memory-mapped bus, in the order of their addresses.
    pub devices: Vec<DeviceStatus>,
}

/// A contiguous stretch of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryStatus {
    /// Where the guest sees it.
    pub guest_address: u64,
    /// Where it is in the machine's process, for whoever looks at what of it is resident.
    pub process_address: u64,
    /// Its length.
    pub bytes: u64,
}

/// A virtual CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuStatus {
    /// Exits that reached the machine's process, by reason.
    pub exits: Counters,
    /// KVM's own statistics of it, exits that KVM handled included; `None` as in [`Status::kvm`].
    pub kvm: Option<Counters>,
}

/// A virtio device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceStatus {
    /// What it is, as in the virtio specification, section 5.
    pub kind: String,
    /// What is behind it on the host.
    pub backend: String,
    /// Address of its registers.
    pub address: u64,
    /// Its interrupt line.
    pub interrupt: u32,
    /// Features that the device offers.
    pub features_offered: u64,
    /// Features that the driver has chosen.
    pub features: u64,
    /// How far its driver has come.
    pub driver: DriverStatus,
    /// Its queues.
    pub queues: Vec<QueueStatus>,
}

/// How far a driver has come (section 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverStatus {
    /// Nobody has touched the device since its reset.
    Absent,
    /// A driver is setting it up.
    Starting,
    /// It is in use.
    Ready,
    /// The driver has given it up.
    Failed,
    /// The device has given up its driver, which has to reset it.
    NeedsReset,
}

/// A queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueStatus {
    /// Number of descriptors.
    pub size: u16,
    /// The driver uses it.
    pub ready: bool,
}
