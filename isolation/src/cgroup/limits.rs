//! From `linux.resources` of the OCI runtime specification, which was written for cgroup v1, to the values of cgroup v2
//! files. Where the two count differently the conversions are those that runc and crun have made customary.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};
use serde::{Deserialize, Serialize};

use crate::plan::Error;

/// One file of a cgroup and what to write to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setting {
    pub(crate) file: String,
    pub(crate) value: String,
    /// Whether a kernel without the file needs no such limit: without swap there is no swap to limit.
    pub(crate) optional: bool,
}

/// The limits of a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits(Vec<Setting>);

impl Limits {
    /// Reads everything but the device rules.
    pub(crate) fn new(resources: &LinuxResources) -> Result<Limits, Error> {
        let mut limits = Limits::default();
        if let Some(memory) = resources.memory() {
            limits.memory(memory)?;
        }
        if let Some(cpu) = resources.cpu() {
            limits.cpu(cpu)?;
        }
        if let Some(pids) = resources.pids() {
            // Zero and negative numbers mean no limit, as `--pids-limit 0` and `-1` do in Docker.
            limits.add(
                "pids.max",
                u64::try_from(pids.limit()).ok().filter(|&limit| limit > 0),
            );
        }
        if let Some(block_io) = resources.block_io() {
            limits.block_io(block_io)?;
        }
        let refused = [
            (
                "hugepageLimits",
                resources
                    .hugepage_limits()
                    .as_ref()
                    .is_some_and(|limits| !limits.is_empty()),
            ),
            (
                "network",
                resources
                    .network()
                    .as_ref()
                    .is_some_and(|n| n.class_id().is_some()),
            ),
            (
                "rdma",
                resources.rdma().as_ref().is_some_and(|limits| !limits.is_empty()),
            ),
        ];
        for (field, asked) in refused {
            refuse(&format!("linux.resources.{field}"), asked)?;
        }
        for (file, value) in resources.unified().iter().flatten().collect::<BTreeMap<_, _>>() {
            let field = format!("linux.resources.unified[{file:?}]");
            if file.contains('/') || !file.contains('.') || file.starts_with("cgroup.") {
                return Err(Error::Invalid {
                    field,
                    reason: "not the name of a controller's file".into(),
                });
            }
            limits.add(file, Some(value));
        }
        Ok(limits)
    }

    pub(crate) fn settings(&self) -> &[Setting] {
        &self.0
    }

    /// Adds a setting; no value means no limit.
    fn add(&mut self, file: &str, value: Option<impl ToString>) {
        let value = value.map_or_else(|| "max".into(), |value| value.to_string());
        self.0.push(Setting {
            file: file.into(),
            value,
            optional: false,
        });
    }

    fn memory(&mut self, memory: &LinuxMemory) -> Result<(), Error> {
        let refused = [
            ("kernel", memory.kernel().is_some()),
            ("kernelTCP", memory.kernel_tcp().is_some()),
            ("swappiness", memory.swappiness().is_some()),
            ("disableOOMKiller", memory.disable_oom_killer() == Some(true)),
        ];
        for (field, asked) in refused {
            refuse(&format!("linux.resources.memory.{field}"), asked)?;
        }
        // In the specification zero means "not set" and a negative number "no limit"; `swap` includes the memory.
        let limit = memory.limit().filter(|&limit| limit != 0);
        let swap = memory.swap().filter(|&swap| swap != 0);
        if let Some(reservation) = memory.reservation().filter(|&bytes| bytes != 0) {
            self.add("memory.low", u64::try_from(reservation).ok());
        }
        if let Some(limit) = limit {
            self.add("memory.max", u64::try_from(limit).ok());
        }
        if let Some(swap) = swap {
            let invalid = |reason: &str| Error::Invalid {
                field: "linux.resources.memory.swap".into(),
                reason: reason.into(),
            };
            let beyond = match (
                u64::try_from(swap).ok(),
                limit.and_then(|limit| u64::try_from(limit).ok()),
            ) {
                (None, _) => None,
                (Some(_), None) => return Err(invalid("needs a memory limit")),
                (Some(swap), Some(limit)) => Some(
                    swap.checked_sub(limit)
                        .ok_or_else(|| invalid("is less than the memory limit"))?,
                ),
            };
            self.add("memory.swap.max", beyond);
            if let Some(setting) = self.0.last_mut() {
                setting.optional = true;
            }
        }
        Ok(())
    }

    fn cpu(&mut self, cpu: &LinuxCpu) -> Result<(), Error> {
        refuse(
            "linux.resources.cpu.realtimeRuntime",
            cpu.realtime_runtime().is_some_and(|time| time != 0),
        )?;
        refuse(
            "linux.resources.cpu.realtimePeriod",
            cpu.realtime_period().is_some_and(|time| time != 0),
        )?;
        if let Some(idle) = cpu.idle() {
            self.add("cpu.idle", Some(idle));
        }
        if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
            self.add("cpu.weight", Some(weight_of_shares(shares)));
        }
        let quota = cpu.quota().filter(|&quota| quota != 0);
        let period = cpu.period().filter(|&period| period != 0);
        if quota.is_some() || period.is_some() {
            // The kernel keeps the old period when only a quota is written; a fresh cgroup has 100000.
            let quota = quota
                .and_then(|quota| u64::try_from(quota).ok())
                .map_or("max".into(), |q| q.to_string());
            self.add("cpu.max", Some(format!("{quota} {}", period.unwrap_or(100_000))));
        }
        if let Some(burst) = cpu.burst() {
            self.add("cpu.max.burst", Some(burst));
        }
        if let Some(cpus) = cpu.cpus().as_ref().filter(|list| !list.is_empty()) {
            self.add("cpuset.cpus", Some(cpus));
        }
        if let Some(mems) = cpu.mems().as_ref().filter(|list| !list.is_empty()) {
            self.add("cpuset.mems", Some(mems));
        }
        Ok(())
    }

    fn block_io(&mut self, block_io: &LinuxBlockIo) -> Result<(), Error> {
        refuse(
            "linux.resources.blockIO.leafWeight",
            block_io.leaf_weight().is_some_and(|weight| weight != 0),
        )?;
        refuse(
            "linux.resources.blockIO.weightDevice",
            block_io
                .weight_device()
                .as_ref()
                .is_some_and(|devices| !devices.is_empty()),
        )?;
        if let Some(weight) = block_io.weight().filter(|&weight| weight != 0) {
            let field = "linux.resources.blockIO.weight".to_owned();
            let weight = weight_of_block_io(weight).ok_or_else(|| Error::Invalid {
                field,
                reason: "not between 10 and 1000".into(),
            })?;
            self.add("io.weight", Some(weight));
        }
        let throttles = [
            ("rbps", block_io.throttle_read_bps_device()),
            ("wbps", block_io.throttle_write_bps_device()),
            ("riops", block_io.throttle_read_iops_device()),
            ("wiops", block_io.throttle_write_iops_device()),
        ];
        for (key, devices) in throttles {
            for device in devices.iter().flatten() {
                self.add("io.max", Some(throttle(key, device)));
            }
        }
        Ok(())
    }
}

fn refuse(field: &str, asked: bool) -> Result<(), Error> {
    if !asked {
        return Ok(());
    }
    Err(Error::Unsupported {
        field: field.into(),
        what: "this limit".into(),
    })
}

/// From shares (2 to 262144, default 1024) to a weight (1 to 10000, default 100), linearly.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// From 10..=1000 to 1..=10000, linearly.
fn weight_of_block_io(weight: u16) -> Option<u32> {
    (10..=1000)
        .contains(&weight)
        .then(|| 1 + (u32::from(weight) - 10) * 9999 / 990)
}

fn throttle(key: &str, device: &LinuxThrottleDevice) -> String {
    format!("{}:{} {key}={}", device.major(), device.minor(), device.rate())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(resources: serde_json::Value, expected: &[(&str, &str)]) {
        let resources: LinuxResources = serde_json::from_value(resources).unwrap();
        let limits = Limits::new(&resources).unwrap();
        let actual: Vec<_> = limits
            .0
            .iter()
            .map(|s| (s.file.as_str(), s.value.as_str()))
            .collect();
        assert_eq!(actual, expected);
    }

    fn check_refused(resources: serde_json::Value, expected: &str) {
        let resources: LinuxResources = serde_json::from_value(resources).unwrap();
        assert_eq!(Limits::new(&resources).unwrap_err().to_string(), expected);
    }

    #[test]
    fn limits_become_files() {
        use serde_json::json;
        check(json!({}), &[]);
        check(
            json!({"memory": {"limit": 64 << 20, "swap": 128 << 20}}),
            &[("memory.max", "67108864"), ("memory.swap.max", "67108864")],
        );
        check(
            json!({"memory": {"limit": 1000, "swap": -1}}),
            &[("memory.max", "1000"), ("memory.swap.max", "max")],
        );
        check(
            json!({"memory": {"limit": -1, "reservation": 5}}),
            &[("memory.low", "5"), ("memory.max", "max")],
        );
        check(json!({"memory": {"limit": 0, "swap": 0}}), &[]);
        check(
            json!({"cpu": {"quota": 50000, "period": 100000}}),
            &[("cpu.max", "50000 100000")],
        );
        check(json!({"cpu": {"quota": 20000}}), &[("cpu.max", "20000 100000")]);
        check(json!({"cpu": {"quota": -1}}), &[("cpu.max", "max 100000")]);
        check(json!({"cpu": {"shares": 1024}}), &[("cpu.weight", "39")]);
        check(json!({"cpu": {"shares": 2}}), &[("cpu.weight", "1")]);
        check(json!({"cpu": {"shares": 262_144}}), &[("cpu.weight", "10000")]);
        check(
            json!({"cpu": {"cpus": "0-1", "mems": "0"}}),
            &[("cpuset.cpus", "0-1"), ("cpuset.mems", "0")],
        );
        check(json!({"pids": {"limit": 10}}), &[("pids.max", "10")]);
        check(json!({"pids": {"limit": 0}}), &[("pids.max", "max")]);
        check(json!({"pids": {"limit": -1}}), &[("pids.max", "max")]);
        check(json!({"blockIO": {"weight": 10}}), &[("io.weight", "1")]);
        check(json!({"blockIO": {"weight": 1000}}), &[("io.weight", "10000")]);
        check(
            json!({"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1024}]}}),
            &[("io.max", "8:0 rbps=1024")],
        );
        check(
            json!({"unified": {"memory.high": "1000"}}),
            &[("memory.high", "1000")],
        );
    }

    #[test]
    fn what_cannot_be_limited_is_refused() {
        use serde_json::json;
        let cases = [
            (
                json!({"memory": {"swappiness": 10}}),
                "linux.resources.memory.swappiness: this limit is not supported",
            ),
            (
                json!({"memory": {"swap": 10}}),
                "linux.resources.memory.swap: needs a memory limit",
            ),
            (
                json!({"memory": {"limit": 20, "swap": 10}}),
                "linux.resources.memory.swap: is less than the memory limit",
            ),
            (
                json!({"blockIO": {"weight": 5}}),
                "linux.resources.blockIO.weight: not between 10 and 1000",
            ),
            (
                json!({"unified": {"../x.y": "1"}}),
                "linux.resources.unified[\"../x.y\"]: not the name of a controller's file",
            ),
            (
                json!({"unified": {"cgroup.procs": "1"}}),
                "linux.resources.unified[\"cgroup.procs\"]: not the name of a controller's file",
            ),
        ];
        for (resources, expected) in cases {
            check_refused(resources, expected);
        }
    }
}
