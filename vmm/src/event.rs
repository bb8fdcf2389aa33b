//! What a machine tells its supervisor: one JSON object per line, on a Unix stream socket. On the same socket the supervisor
//! may send [`crate::command::Command`]s.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::status::Status;

/// One message from the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The machine is built; the first `KVM_RUN` is about to happen.
    Running {
        /// Microseconds from the machine's start to this moment.
        setup_us: u64,
        /// This moment in microseconds of `CLOCK_MONOTONIC`.
        monotonic_us: u64,
    },
    /// The guest wrote a byte to the doorbell port.
    Doorbell {
        /// The byte.
        value: u8,
        /// Microseconds from the machine's start to the write.
        us: u64,
    },
    /// An answer: the machine is paused. Neither guest code nor a device runs, and guest memory does not change.
    Paused {
        /// Microseconds from the machine's start to this moment.
        us: u64,
    },
    /// An answer: the machine runs.
    Resumed {
        /// Microseconds from the machine's start to this moment.
        us: u64,
    },
    /// An answer: what the machine is and does.
    Status(Box<Status>),
    /// An answer: a command made no sense, or could not be carried out and has changed nothing.
    CommandFailed {
        /// One sentence for a person.
        detail: String,
    },
    /// The machine has ended. Nothing follows.
    Stopped(Stopped),
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// What ended it.
    pub reason: StopReason,
    /// One sentence for a person.
    pub detail: String,
    /// The last lines of the guest's console, at most about 8 KiB.
    pub console_tail: String,
    /// VM exits that reached the machine's process, by kind, summed over all virtual CPUs.
    pub exits: BTreeMap<String, u64>,
    /// Microseconds from the machine's start to its end.
    pub us: u64,
}

/// What ended a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The guest reset itself. After the power-off doorbell that is a clean shutdown.
    Reset,
    /// The guest's kernel panicked: it reset itself, and the console ends in a panic.
    Panic,
    /// The guest's CPU shut down because of a triple fault.
    TripleFault,
    /// KVM could not go on with the guest (`KVM_EXIT_INTERNAL_ERROR` or `KVM_EXIT_FAIL_ENTRY`).
    InternalError,
    /// A KVM system call failed.
    KvmFailure,
    /// A device of the machine failed in a way that the guest cannot be told about.
    DeviceFailure,
    /// The machine could not be built: the kernel, the memory size or a descriptor is wrong.
    Setup,
    /// The machine was asked to end (`SIGTERM`).
    Terminated,
}

impl StopReason {
    /// Whether the guest ended by itself, cleanly or not; everything else is a failure of the machine.
    #[must_use]
    pub fn is_guest_made(self) -> bool {
        matches!(
            self,
            Self::Reset | Self::Panic | Self::TripleFault | Self::Terminated
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{DeviceStatus, DriverStatus, MemoryStatus, QueueStatus, VcpuStatus};

    const STATUS: &str = concat!(
        r#"{"event":"status","paused":true,"us":6,"#,
        r#""memory":[{"guest_address":0,"process_address":4096,"bytes":8192}],"#,
        r#""vcpus":[{"exits":{"io_out":2},"kvm":{"halt_exits":3}}],"kvm":null,"#,
        r#""devices":[{"kind":"block","backend":"b","address":1,"interrupt":5,"features_offered":3,"features":2,"#,
        r#""driver":"needs_reset","queues":[{"size":8,"ready":true}]}]}"#
    );

    fn status() -> Status {
        Status {
            paused: true,
            us: 6,
            memory: vec![MemoryStatus {
                guest_address: 0,
                process_address: 4096,
                bytes: 8192,
            }],
            vcpus: vec![VcpuStatus {
                exits: BTreeMap::from([("io_out".into(), 2)]),
                kvm: Some(BTreeMap::from([("halt_exits".into(), 3)])),
            }],
            kvm: None,
            devices: vec![DeviceStatus {
                kind: "block".into(),
                backend: "b".into(),
                address: 1,
                interrupt: 5,
                features_offered: 3,
                features: 2,
                driver: DriverStatus::NeedsReset,
                queues: vec![QueueStatus { size: 8, ready: true }],
            }],
        }
    }

    #[test]
    fn the_wire_form_is_frozen() {
        let check = |event: Event, json: &str| {
            assert_eq!(serde_json::to_string(&event).unwrap(), json);
            assert_eq!(serde_json::from_str::<Event>(json).unwrap(), event);
        };
        check(
            Event::Running {
                setup_us: 5,
                monotonic_us: 9,
            },
            r#"{"event":"running","setup_us":5,"monotonic_us":9}"#,
        );
        check(
            Event::Doorbell { value: 1, us: 7 },
            r#"{"event":"doorbell","value":1,"us":7}"#,
        );
        check(Event::Paused { us: 3 }, r#"{"event":"paused","us":3}"#);
        check(Event::Resumed { us: 4 }, r#"{"event":"resumed","us":4}"#);
        let detail = "no".to_owned();
        check(
            Event::CommandFailed { detail },
            r#"{"event":"command_failed","detail":"no"}"#,
        );
        check(Event::Status(Box::new(status())), STATUS);
        check(
            Event::Stopped(Stopped {
                reason: StopReason::TripleFault,
                detail: "d".into(),
                console_tail: "c".into(),
                exits: BTreeMap::from([("io_out".into(), 2)]),
                us: 9,
            }),
            r#"{"event":"stopped","reason":"triple_fault","detail":"d","console_tail":"c","exits":{"io_out":2},"us":9}"#,
        );
    }
}
