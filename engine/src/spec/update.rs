//! What a container may use: when it is made, and changed afterwards.
//!
//! Its specification is the one place where limits are kept. Memory, quota and processes are limits of the workload's own
//! cgroup, inside of a virtual machine. Shares and the choice of processors say how containers get along on the host, so they
//! are those of everything that belongs to a container, its virtual machine included, in both modes.

use std::collections::{BTreeSet, HashMap};
use std::fs;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxPidsBuilder, LinuxResources, Spec};
use serde::{Deserialize, Serialize};

use super::resources::{CPU_PERIOD_MICROSECONDS, memory_limit};
use super::{Cpus, Error};

/// No limit, in the specification's signed numbers.
const NO_LIMIT: i64 = -1;

/// What the kernel takes for shares (Documentation/admin-guide/cgroup-v1/cpu.rst).
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

/// Weight of a cgroup that nobody has given one (Documentation/admin-guide/cgroup-v2.rst).
const DEFAULT_WEIGHT: &str = "100";

/// Greatest number of a processor plus one: `CONFIG_NR_CPUS` of the largest kernels.
const MOST_CPUS: u32 = 8192;

/// What is to change; of a new container, what it is to have. `None` leaves it as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Changes {
    /// Memory limit in bytes. Where swap has its default, twice this, it keeps to that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Limit of memory and swap together in bytes; -1 is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_swap: Option<i64>,
    /// Processor time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Its part where processors are not enough for all containers, 1024 being an ordinary one's; 0 is the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// Numbers of the host's processors such as `0-2,4`; an empty text is all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset_cpus: Option<String>,
    /// Most processes and threads; 0 and -1 are no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<i64>,
}

impl Changes {
    /// Those that would give a container the shares and processors that its specification has.
    pub(crate) fn of_the_host(spec: &Spec) -> Self {
        let cpu = resources_of(spec).cpu().clone().unwrap_or_default();
        Self {
            cpu_shares: cpu.shares(),
            cpuset_cpus: cpu.cpus().clone(),
            ..Self::default()
        }
    }
}

/// The specification with the changes.
///
/// # Errors
/// What cannot be had, or makes no sense together.
pub(crate) fn changed(spec: &Spec, changes: &Changes) -> Result<Spec, Error> {
    Ok(with(spec, limited(resources_of(spec), changes)?))
}

/// Likewise for its resources alone.
pub(super) fn limited(mut resources: LinuxResources, changes: &Changes) -> Result<LinuxResources, Error> {
    if changes.memory_bytes.is_some() || changes.memory_swap.is_some() {
        resources.set_memory(Some(memory(resources.memory().unwrap_or_default(), changes)?));
    }
    let mut cpu = resources.cpu().clone().unwrap_or_default();
    if let Some(cpus) = changes.cpus {
        cpu.set_quota(Some(cpus.quota()));
        cpu.set_period(Some(CPU_PERIOD_MICROSECONDS));
    }
    match changes.cpu_shares {
        None => {}
        Some(0) => drop(cpu.set_shares(None)),
        Some(shares) if SHARES.contains(&shares) => drop(cpu.set_shares(Some(shares))),
        Some(shares) => return Err(Error::Shares(shares)),
    }
    match changes.cpuset_cpus.as_deref() {
        None => {}
        Some("") => drop(cpu.set_cpus(None)),
        Some(list) => {
            processors(list)?;
            cpu.set_cpus(Some(list.to_owned()));
        }
    }
    if cpu != LinuxCpu::default() || resources.cpu().is_some() {
        resources.set_cpu(Some(cpu));
    }
    if let Some(limit) = changes.pids_limit {
        let limited = LinuxPidsBuilder::default().limit(limit.max(0)).build()?;
        resources.set_pids((limit > 0).then_some(limited));
    }
    Ok(resources)
}

fn memory(old: LinuxMemory, changes: &Changes) -> Result<LinuxMemory, Error> {
    let limited = |value: Option<i64>| value.filter(|value| *value > 0);
    let limit = match changes.memory_bytes {
        Some(bytes) => Some(memory_limit(bytes)?),
        None => limited(old.limit()),
    };
    let twice = |limit: Option<i64>| limit.and_then(|limit| limit.checked_mul(2));
    // 0 is Docker's word for nothing said.
    let swap = match changes.memory_swap.filter(|swap| *swap != 0) {
        Some(swap) => Some(swap),
        // As much swap as memory, and the specification counts both together.
        None if old.swap().is_none() || old.swap() == twice(limited(old.limit())) => {
            let too_large = || Error::MemoryTooLarge(changes.memory_bytes.unwrap_or(u64::MAX));
            limit.map(|_| twice(limit).ok_or_else(too_large)).transpose()?
        }
        None => old.swap(),
    };
    match (limit, limited(swap)) {
        (None, Some(_)) => return Err(Error::SwapAlone),
        (Some(limit), Some(swap)) if swap < limit => return Err(Error::SwapTooSmall { swap, limit }),
        _ => {}
    }
    let mut memory = old;
    memory.set_limit(limit);
    memory.set_swap(swap);
    Ok(memory)
}

/// What of the changes is the workload's own cgroup's, as the specification has it: also where that has no limit.
pub(crate) fn within(spec: &Spec, changes: &Changes) -> Result<LinuxResources, Error> {
    let (all, mut some) = (resources_of(spec), LinuxResources::default());
    if changes.memory_bytes.is_some() || changes.memory_swap.is_some() {
        let mut memory = all.memory().unwrap_or_default();
        memory.set_limit(memory.limit().or(Some(NO_LIMIT)));
        memory.set_swap(memory.swap().or(Some(NO_LIMIT)));
        some.set_memory(Some(memory));
    }
    if changes.cpus.is_some() {
        let all = all.cpu().clone().unwrap_or_default();
        let mut cpu = LinuxCpu::default();
        cpu.set_quota(all.quota().or(Some(NO_LIMIT)));
        cpu.set_period(all.period().or(Some(CPU_PERIOD_MICROSECONDS)));
        some.set_cpu(Some(cpu));
    }
    if changes.pids_limit.is_some() {
        let none = || LinuxPidsBuilder::default().limit(0_i64).build();
        some.set_pids(Some(all.pids().map_or_else(none, Ok)?));
    }
    Ok(some)
}

/// What of the changes is that of everything that belongs to the container, as [`within`].
pub(crate) fn around(spec: &Spec, changes: &Changes) -> LinuxResources {
    let all = resources_of(spec).cpu().clone().unwrap_or_default();
    let (mut cpu, mut unified) = (LinuxCpu::default(), HashMap::new());
    if changes.cpu_shares.is_some() {
        if all.shares().is_none() {
            unified.insert("cpu.weight".to_owned(), DEFAULT_WEIGHT.to_owned());
        }
        cpu.set_shares(all.shares());
    }
    if changes.cpuset_cpus.is_some() {
        if all.cpus().is_none() {
            // An empty line, for nothing written would be no change.
            unified.insert("cpuset.cpus".to_owned(), "\n".to_owned());
        }
        cpu.set_cpus(all.cpus().clone());
    }
    let mut some = LinuxResources::default();
    some.set_cpu((cpu != LinuxCpu::default()).then_some(cpu));
    some.set_unified((!unified.is_empty()).then_some(unified));
    some
}

/// The specification without [`around`]: what is to be made inside.
pub(crate) fn inside(spec: &Spec) -> Spec {
    let mut resources = resources_of(spec);
    if let Some(cpu) = resources.cpu_mut() {
        cpu.set_shares(None);
        cpu.set_cpus(None);
    }
    with(spec, resources)
}

fn resources_of(spec: &Spec) -> LinuxResources {
    let linux = spec.linux().as_ref();
    linux
        .and_then(|linux| linux.resources().clone())
        .unwrap_or_default()
}

fn with(spec: &Spec, resources: LinuxResources) -> Spec {
    let mut spec = spec.clone();
    let mut linux = spec.linux().clone().unwrap_or_default();
    linux.set_resources(Some(resources));
    spec.set_linux(Some(linux));
    spec
}

/// The numbers of a list of this machine's processors.
///
/// # Errors
/// [`Error::CpuList`], [`Error::CpusNotThere`].
pub(crate) fn processors(list: &str) -> Result<BTreeSet<u32>, Error> {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    require(list, online.trim())?;
    numbers(list).ok_or_else(|| Error::CpuList(list.to_owned()))
}

/// Checks that each processor of a list is there.
fn require(list: &str, online: &str) -> Result<(), Error> {
    let wanted = numbers(list).ok_or_else(|| Error::CpuList(list.to_owned()))?;
    let available = numbers(online).unwrap_or_default();
    if wanted.is_subset(&available) {
        return Ok(());
    }
    Err(Error::CpusNotThere {
        wanted: list.to_owned(),
        available: online.to_owned(),
    })
}

/// The numbers of a list such as `0-2,4`.
fn numbers(list: &str) -> Option<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number < MOST_CPUS);
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(first) || !is_number(last) {
            return None;
        }
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use oci_spec::image::{Config, ImageConfiguration};

    use super::*;
    use crate::spec::{Options, build};

    fn spec(memory_bytes: Option<u64>) -> Spec {
        let mut config = Config::default();
        config.set_cmd(Some(vec!["sh".into()]));
        let mut image = ImageConfiguration::default();
        image.set_config(Some(config));
        let options = Options {
            limits: Changes {
                memory_bytes,
                ..Changes::default()
            },
            ..Options::default()
        };
        build(&image, &options).unwrap()
    }

    #[test]
    fn memory_and_swap_go_together() {
        const MIB: i64 = 1 << 20;
        let check = |spec: &Spec, memory: Option<i64>, swap, expected: Result<(i64, i64), &str>| {
            let changes = Changes {
                memory_bytes: memory.map(|mib| u64::try_from(mib * MIB).unwrap()),
                memory_swap: swap,
                ..Changes::default()
            };
            match (changed(spec, &changes), expected) {
                (Ok(spec), Ok((limit, swap))) => {
                    let memory = resources_of(&spec).memory().unwrap();
                    assert_eq!(
                        (memory.limit(), memory.swap()),
                        (Some(limit * MIB), Some(swap)),
                        "{changes:?}"
                    );
                }
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (actual, _) => panic!("{changes:?}: {actual:?}"),
            }
        };
        let limited = spec(Some(64 << 20));
        check(&limited, Some(100), None, Ok((100, 200 * MIB)));
        check(&limited, Some(100), Some(150 * MIB), Ok((100, 150 * MIB)));
        check(&limited, None, Some(NO_LIMIT), Ok((64, NO_LIMIT)));
        check(&limited, None, Some(63 * MIB), Err("less than"));
        check(&limited, Some(1), None, Err("minimum"));
        let other = Changes {
            memory_swap: Some(70 * MIB),
            ..Changes::default()
        };
        let other = changed(&limited, &other).unwrap();
        check(&other, Some(65), None, Ok((65, 70 * MIB)));
        check(&other, Some(71), None, Err("less than"));
        check(&spec(None), Some(64), None, Ok((64, 128 * MIB)));
        check(&spec(None), None, Some(64 * MIB), Err("needs"));
        check(&limited, Some(100), Some(0), Ok((100, 200 * MIB)));
    }

    #[test]
    fn limits_are_told_in_full_to_where_they_belong() {
        let changes = Changes {
            memory_bytes: Some(64 << 20),
            cpus: Some("0.5".parse().unwrap()),
            cpu_shares: Some(512),
            cpuset_cpus: Some("0".into()),
            pids_limit: Some(9),
            ..Changes::default()
        };
        let (old, new) = (spec(None), changed(&spec(None), &changes).unwrap());
        let json = |resources: LinuxResources| serde_json::to_value(resources).unwrap();
        let within_new = json(within(&new, &changes).unwrap());
        assert_eq!(within_new["memory"]["limit"], 64 << 20);
        assert_eq!(
            within_new["cpu"],
            serde_json::json!({"quota": 50_000, "period": 100_000})
        );
        assert_eq!(within_new["pids"]["limit"], 9);
        let within_old = json(within(&old, &changes).unwrap());
        assert_eq!(
            (&within_old["memory"]["limit"], &within_old["memory"]["swap"]),
            (&NO_LIMIT.into(), &NO_LIMIT.into())
        );
        assert_eq!(
            (&within_old["cpu"]["quota"], &within_old["pids"]["limit"]),
            (&NO_LIMIT.into(), &0.into())
        );
        let around_new = json(around(&new, &changes));
        assert_eq!(around_new["cpu"], serde_json::json!({"shares": 512, "cpus": "0"}));
        let around_old = json(around(&old, &changes));
        assert_eq!(
            around_old["unified"],
            serde_json::json!({"cpu.weight": "100", "cpuset.cpus": "\n"})
        );
        assert_eq!(Changes::of_the_host(&new).cpu_shares, Some(512));
        assert_eq!(Changes::of_the_host(&inside(&new)), Changes::default());
        assert_eq!(Changes::of_the_host(&old), Changes::default());
        // And back to the defaults.
        let none = Changes {
            cpu_shares: Some(0),
            cpuset_cpus: Some(String::new()),
            pids_limit: Some(NO_LIMIT),
            ..Changes::default()
        };
        let back = changed(&new, &none).unwrap();
        assert_eq!(
            (Changes::of_the_host(&back), *resources_of(&back).pids()),
            (Changes::default(), None)
        );
    }

    #[test]
    fn processors_have_to_be_there() {
        for (list, expected) in [
            ("0", None),
            ("0-3", None),
            ("3,0-1", None),
            ("4", Some("0-3")),
            ("0-9999999999", Some("list")),
            ("3-1", Some("list")),
            ("", Some("list")),
            ("+1", Some("list")),
            ("0,", Some("list")),
            ("a", Some("list")),
        ] {
            match (require(list, "0-3"), expected) {
                (Ok(()), None) => {}
                (Err(error), Some(expected)) => {
                    assert!(error.to_string().contains(expected), "{list}: {error}")
                }
                (actual, _) => panic!("{list}: {actual:?}"),
            }
        }
        let changes = Changes {
            cpu_shares: Some(1),
            ..Changes::default()
        };
        assert!(matches!(changed(&spec(None), &changes), Err(Error::Shares(1))));
    }
}
