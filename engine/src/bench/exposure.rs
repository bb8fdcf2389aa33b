//! The exposure suite: which system calls reach the host's kernel while a workload does a known mixture of things, how often
//! its machine is left, and what may be done by the processes that serve it.
//!
//! All of it is a proxy: a call that is made is not a hole, and one that is not made may be possible. Calls are counted by
//! strace, attached to every process of the container and following their children, so that no neighbour is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use rustix::io::Errno;
use rvm_isolation::allowed_calls;
use serde::Deserialize;

use super::plan::Subject;
use super::report::{Exposure, ServingProcess};
use super::{Bench, Error, Sample, number};
use crate::inspect::MachineReport;
use crate::probe::strace::{self, Tracer};
use crate::probe::{Session, outside};

/// What the mixture comes to, and how often the process asks for its own number in it.
const CHECK: u64 = 4306;
const GETPID: u64 = 1000;

/// What the probe says first.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reach {
    capabilities: String,
    devices: u64,
    proc_files: u64,
    sys_files: u64,
}

/// What it says when it has done its mixture.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Done {
    work: String,
    getpid: u64,
    check: u64,
}

/// One run.
pub(super) fn measure(bench: &mut Bench, subject: Subject) -> Result<Vec<Sample>, Error> {
    let mut session = bench.start(subject, &["exposure"])?;
    let reach: Reach = session.answer()?;
    let capabilities = u64::from_str_radix(&reach.capabilities, 16).map_err(|_| {
        Error::Wrong(format!(
            "its capabilities are {:?}",
            crate::printable(&reach.capabilities)
        ))
    })?;
    let mut samples = vec![
        Sample::new("capabilities", f64::from(capabilities.count_ones())),
        Sample::new("devices", number(reach.devices)),
        Sample::new("proc", number(reach.proc_files)),
        Sample::new("sys", number(reach.sys_files)),
    ];
    let before = exits(bench, &session)?;
    work(&mut session)?;
    let after = exits(bench, &session)?;
    let exits = difference(&before, &after);
    if let Some(total) = exits.get("exits") {
        samples.push(Sample::new("exits", number(*total)));
    }
    let processes = session.processes()?;
    let (serving, allowed) = match filters(&processes) {
        Ok(filters) => {
            let allowed: BTreeSet<String> = filters
                .values()
                .flatten()
                .flatten()
                .copied()
                .map(str::to_owned)
                .collect();
            // Without any filter all calls are allowed, and how many those are is not known here.
            if !allowed.is_empty() {
                samples.push(Sample::new("allowed", number(count(&allowed))));
            }
            (privileges(&processes, &filters), allowed)
        }
        Err(error) => {
            bench.note(format!("system calls that filters allow: not read: {error}"));
            (privileges(&processes, &Filters::new()), BTreeSet::new())
        }
    };
    let (calls, calls_missing) = match traced(&processes, &mut session)? {
        Ok(calls) => {
            samples.push(Sample::new("calls", number(count(calls.keys()))));
            samples.push(Sample::new("calls-total", number(calls.values().sum())));
            (calls, None)
        }
        Err(missing) => {
            bench.note(format!("system calls: {missing}"));
            (BTreeMap::new(), Some(missing))
        }
    };
    let exposure = Exposure {
        subject,
        calls,
        calls_missing,
        allowed,
        exits,
        capabilities_inside: format!("{capabilities:016x}"),
        processes: serving,
    };
    session.finish()?;
    bench.exposures.retain(|other| other.subject != subject);
    bench.exposures.push(exposure);
    Ok(samples)
}

fn count(all: impl IntoIterator) -> u64 {
    all.into_iter().fold(0, |count, _| count + 1)
}

/// Lets it do its mixture once.
fn work(session: &mut Session) -> Result<(), Error> {
    session.say("go")?;
    let done: Done = session.answer()?;
    if (done.work.as_str(), done.getpid, done.check) == ("exposure", GETPID, CHECK) {
        Ok(())
    } else {
        Err(Error::Wrong(format!(
            "its mixture came to {} instead of {CHECK}",
            done.check
        )))
    }
}

/// VM exits so far, by reason; nothing of a container.
fn exits(bench: &Bench, session: &Session) -> Result<BTreeMap<String, u64>, Error> {
    let machine = bench.engine.inspect(session.id())?.machine;
    Ok(machine.as_ref().map(exits_of).unwrap_or_default())
}

/// As KVM counts them, of all virtual CPUs; as the VMM does where KVM does not.
fn exits_of(machine: &MachineReport) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (name, count) in machine
        .vcpu
        .iter()
        .flatten()
        .filter_map(|vcpu| vcpu.kvm.as_ref())
        .flatten()
    {
        if name.ends_with("exits") {
            *sums.entry(name.clone()).or_default() += count;
        }
    }
    if sums.is_empty() {
        sums = machine.exits.clone().unwrap_or_default();
        let total = sums.values().sum();
        sums.insert("exits".to_owned(), total);
    }
    sums
}

fn difference(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let since = |name: &String, count: &u64| count.saturating_sub(before.get(name).copied().unwrap_or(0));
    after
        .iter()
        .map(|(name, count)| (name.clone(), since(name, count)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// The system calls that these processes and their children make while the workload does its mixture, or why nobody knows.
fn traced(processes: &[i32], session: &mut Session) -> Result<Result<BTreeMap<String, u64>, String>, Error> {
    let tracer = match Tracer::attach(processes) {
        Ok(tracer) => tracer,
        Err(error) => return Ok(Err(strace::why_not(&error))),
    };
    work(session)?;
    Ok(tracer.detach().map_err(|error| strace::why_not(&error)))
}

/// Of each process the system calls that the filters of its threads let through; `None` where a thread has none.
type Filters = BTreeMap<i32, Option<BTreeSet<&'static str>>>;

/// Reads the filters of processes from the kernel. Threads that end meanwhile allow nothing.
fn filters(processes: &[i32]) -> io::Result<Filters> {
    let of_process = |pid: &i32| -> io::Result<(i32, Option<BTreeSet<&'static str>>)> {
        let (mut allowed, mut unfiltered) = (None, false);
        for thread in outside::threads(*pid) {
            match allowed_calls(thread) {
                Ok(Some(calls)) => allowed.get_or_insert_with(BTreeSet::new).extend(calls),
                Ok(None) => unfiltered = true,
                Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {}
                Err(error) => return Err(error),
            }
        }
        if allowed.is_some() && unfiltered {
            return Err(io::Error::other(format!(
                "process {pid} has threads with and without a filter"
            )));
        }
        Ok((*pid, allowed))
    };
    processes.iter().map(of_process).collect()
}

/// What the processes that serve a container may do.
fn privileges(processes: &[i32], filters: &Filters) -> Vec<ServingProcess> {
    let own = outside::namespaces(std::process::id().cast_signed());
    let all = processes.iter().filter_map(|pid| outside::process(*pid));
    all.map(|process| ServingProcess {
        name: crate::printable(&process.program),
        uid: process.uid,
        own_user_namespace: process.namespaces.get("user") != own.get("user"),
        no_new_privileges: process.no_new_privileges,
        seccomp: process.seccomp.to_owned(),
        allowed: filters
            .get(&process.pid)
            .and_then(|allowed| Some(allowed.as_ref()?.len())),
        capabilities: process.effective_capabilities,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_before_does_not_count() {
        let counters = |counts: &[(&str, u64)]| -> BTreeMap<String, u64> {
            counts
                .iter()
                .map(|(name, count)| ((*name).to_owned(), *count))
                .collect()
        };
        let before = counters(&[("exits", 10), ("halt_exits", 3)]);
        let after = counters(&[("exits", 15), ("halt_exits", 3), ("io_exits", 5)]);
        assert_eq!(
            difference(&before, &after),
            counters(&[("exits", 5), ("io_exits", 5)])
        );
    }
}
