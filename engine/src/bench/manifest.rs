//! The circumstances of a measurement: everything on the host that is known to move the numbers.
//!
//! What this host does not tell is `null`, which is a fact about the report, too.

use std::fs;
use std::num::NonZero;
use std::path::Path;
use std::thread;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::probe::outside;
use crate::{Layout, cgroup, kvm};

/// Flags of `/proc/cpuinfo` that say how this processor, and what is below it, runs guests and other code.
const FLAGS: [&str; 12] = [
    "hypervisor",
    "vmx",
    "svm",
    "ept",
    "npt",
    "vpid",
    "avic",
    "constant_tsc",
    "nonstop_tsc",
    "erms",
    "fsrm",
    "pti",
];

/// Where and when something was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// When it began (RFC 3339).
    pub began: String,
    /// When it had ended.
    pub ended: String,
    /// Of rvm.
    pub rvm: String,
    /// Release and version of the host's kernel.
    pub kernel: String,
    /// The processor, as it calls itself.
    pub cpu: String,
    /// Processors that the command may use.
    pub cpus: usize,
    /// Those of the processor's flags that are known to matter here.
    pub flags: Vec<String>,
    /// How guests run.
    pub kvm: Backend,
    /// What the machine says that it is.
    pub machine: Option<String>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// How the first processor's frequency is chosen.
    pub governor: Option<String>,
    /// Whether there are huge pages: `/sys/kernel/mm/transparent_hugepage/enabled`.
    pub huge_pages: Option<String>,
    /// What tells the time.
    pub clock: Option<String>,
    /// Options with which cgroup2 is mounted. Without `favordynmods`, starting a container waits for a grace period.
    pub cgroup2: Option<String>,
    /// Load of the last minute when it began. What it is at the end is the measurement's own.
    pub load: Option<f64>,
    /// Name of the image.
    pub image: String,
    /// Digest of its configuration.
    pub image_id: String,
    /// What was in caches.
    pub cache: String,
}

/// How this host runs guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "snake_case")]
pub enum Backend {
    /// On the processor's own extensions.
    Hardware,
    /// This machine is a guest itself, and its guests are guests of a guest.
    Nested,
    /// The processor of this machine is a program: times are not those of any processor.
    Emulated,
    /// It cannot run an ordinary guest.
    Unusable {
        /// Why.
        reason: String,
    },
}

impl Backend {
    /// In a few words.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Hardware => "hardware virtualisation".to_owned(),
            Self::Nested => "nested: this machine is a virtual one itself".to_owned(),
            Self::Emulated => "emulated: the processor of this machine is a program".to_owned(),
            Self::Unusable { reason } => format!("not conforming or not there: {reason}"),
        }
    }

    fn of(layout: &Layout, cpu: &str, flags: &[String]) -> Self {
        match kvm::require(layout) {
            Err(error) => Self::Unusable {
                reason: crate::supervisor::chain(&error),
            },
            Ok(()) => Self::told_by(cpu, flags),
        }
    }

    /// A processor that is a program says so in its name; every hypervisor sets a flag.
    fn told_by(cpu: &str, flags: &[String]) -> Self {
        if ["TCG", "QEMU Virtual CPU", "Bochs"]
            .iter()
            .any(|name| cpu.contains(name))
        {
            Self::Emulated
        } else if flags.iter().any(|flag| flag == "hypervisor") {
            Self::Nested
        } else {
            Self::Hardware
        }
    }
}

impl Manifest {
    /// Looks at this host.
    pub(super) fn collect(layout: &Layout, image: &str, image_id: &str) -> Self {
        let table = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = field(&table, "model name").unwrap_or_default();
        let all = field(&table, "flags").unwrap_or_default();
        let has = |flag: &&str| all.split(' ').any(|other| other == *flag);
        let flags: Vec<_> = FLAGS.into_iter().filter(has).map(str::to_owned).collect();
        let load = text("/proc/loadavg").and_then(|text| text.split(' ').next()?.parse().ok());
        Self {
            began: Timestamp::now().to_string(),
            ended: String::new(),
            rvm: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: format!(
                "{} {}",
                text("/proc/sys/kernel/osrelease").unwrap_or_default(),
                text("/proc/sys/kernel/version").unwrap_or_default()
            ),
            kvm: Backend::of(layout, &cpu, &flags),
            cpu,
            cpus: thread::available_parallelism().map_or(1, NonZero::get),
            flags,
            machine: text("/sys/class/dmi/id/product_name"),
            memory_bytes: memory("MemTotal"),
            governor: text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            huge_pages: text("/sys/kernel/mm/transparent_hugepage/enabled")
                .as_deref()
                .and_then(chosen),
            clock: text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            cgroup2: cgroup_options(),
            load,
            image: image.to_owned(),
            image_id: image_id.to_owned(),
            cache: "warm: nothing is dropped between runs, and runs before the first that counts fill it"
                .to_owned(),
        }
    }

    /// What has become of the mount of cgroup2, if other programs have changed it: containers that start afterwards wait longer,
    /// or less.
    pub(super) fn cgroup2_change(&self) -> Option<String> {
        let now = cgroup_options();
        (now != self.cgroup2).then(|| {
            let shown = |options: &Option<String>| options.clone().unwrap_or_else(|| "unknown".to_owned());
            format!(
                "cgroup2 was mounted with {} at the beginning and with {} at the end: another program has changed that \
                 meanwhile, and without favordynmods each start waits for a grace period",
                shown(&self.cgroup2),
                shown(&now)
            )
        })
    }

    /// Notes the end.
    pub(super) fn end(&mut self) {
        self.ended = Timestamp::now().to_string();
    }
}

/// Bytes that `/proc/meminfo` gives under a name.
pub(super) fn memory(name: &str) -> Option<u64> {
    let table = fs::read_to_string("/proc/meminfo").ok()?;
    outside::kib(&table, name)
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The value of the first line `NAME : VALUE`.
fn field(table: &str, name: &str) -> Option<String> {
    table.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then(|| value.trim().to_owned())
    })
}

/// The word in brackets.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

fn cgroup_options() -> Option<String> {
    let place = cgroup::mount_point().ok()?.to_str()?.to_owned();
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    table.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let is_it = before.split(' ').nth(4)? == place && after.starts_with("cgroup2 ");
        is_it.then(|| after.rsplit(' ').next().unwrap_or_default().to_owned())
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn example() -> Manifest {
        Manifest {
            began: "2026-01-01T00:00:00Z".to_owned(),
            ended: "2026-01-01T00:01:00Z".to_owned(),
            rvm: "0.1.0".to_owned(),
            kernel: "6.1".to_owned(),
            cpu: "A processor".to_owned(),
            cpus: 2,
            flags: Vec::new(),
            kvm: Backend::Hardware,
            machine: None,
            memory_bytes: None,
            governor: None,
            huge_pages: None,
            clock: None,
            cgroup2: None,
            load: Some(0.5),
            image: "debian".to_owned(),
            image_id: "sha256:00".to_owned(),
            cache: "warm".to_owned(),
        }
    }

    #[test]
    fn processors_are_told_apart() {
        let flags = |flags: &[&str]| flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>();
        let check = |cpu, all: &[&str], expected| assert_eq!(Backend::told_by(cpu, &flags(all)), expected);
        check(
            "QEMU TCG CPU version 2.5+",
            &["hypervisor", "svm"],
            Backend::Emulated,
        );
        check("AMD EPYC 9654", &["hypervisor", "svm"], Backend::Nested);
        check("AMD EPYC 9654", &["svm", "npt"], Backend::Hardware);
    }
}
