//! One look at an image in one mode.

use std::collections::BTreeMap;

use rvm_probe::facts::Facts;

use super::calls::{self, Calls};
use super::{CompareError, Subject, host};
use crate::engine::Engine;
use crate::inspect::Inspection;
use crate::mounts::Wishes;
use crate::network::Networking;
use crate::probe::{self, Finished, Probed, Session, SessionError, outside};
use crate::record::Isolation;
use crate::spec::Options;
use crate::timeline::{Phase, Stamp};

/// What was seen.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) isolation: Isolation,
    /// From inside.
    pub(super) facts: Facts,
    /// The process on the host that serves the workload: itself, or its VMM.
    pub(super) serving: Option<outside::Process>,
    /// Everything on the host that belongs to the container.
    pub(super) processes: Vec<outside::Process>,
    /// The namespaces of the command that looks.
    pub(super) own_namespaces: BTreeMap<String, String>,
    pub(super) inspection: Inspection,
    /// What the host limits: `memory.max`, `cpu.max`, `pids.max` of what the workload is served by.
    pub(super) host_limits: [Option<String>; 3],
    pub(super) start: Start,
    pub(super) memory: MemoryOf,
    /// Bytes that the writable layer takes on the host, before and after one MiB was written.
    pub(super) written: (u64, u64),
    /// Whether anything of it was left after it was removed.
    pub(super) left: bool,
    pub(super) calls: Calls,
    pub(super) crash: Crash,
    /// The command's end, if there is one: exit code, bytes of output, microseconds.
    pub(super) command: Option<(u8, usize, u64)>,
}

/// The middle one of several starts, in microseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) starts: usize,
    /// From rvm's first step to the workload's `execve`.
    pub(super) executed: u64,
    /// From there to the end of everything.
    pub(super) whole: u64,
    /// Parts of the former.
    pub(super) phases: Vec<(Phase, u64)>,
}

/// Of the first and of the last of several instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemoryOf {
    pub(super) first: host::Memory,
    pub(super) last: host::Memory,
    pub(super) instances: usize,
    /// By how much `MemAvailable` fell for each after the first, in bytes.
    pub(super) fall: Option<i64>,
}

/// What the end of a kernel took down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Crash {
    /// It was provoked: what rvm said, and whether a neighbour answered afterwards.
    Provoked { said: String, neighbour_answers: bool },
    /// It was not, because the kernel is the host's: how the setting is reached by default, and with all of /proc open.
    Withheld { by_default: String, opened: String },
}

/// The setting by which a kernel is brought down.
const TRIGGER: &str = "open vm.panic_on_oom";

/// Looks.
pub(super) fn observe(
    engine: &Engine,
    subject: &Subject,
    isolation: Isolation,
    progress: &mut dyn FnMut(Isolation, &str),
) -> Result<Look, CompareError> {
    let at = |source| CompareError::Look { isolation, source };
    let probed = Probed {
        image: &subject.image,
        isolation,
        network: Networking::on_default(),
        mounts: Wishes::default(),
        options: Options {
            limits: subject.limits.clone(),
            ..Options::default()
        },
    };
    progress(isolation, "starting it several times");
    let start = start(engine, &probed, subject.starts).map_err(at)?;
    progress(isolation, "looking at it from inside and outside");
    let session = probed.start(engine, &["wait"]).map_err(at)?;
    let facts = session.exec(&[probe::PATH, "facts"], None).map_err(at)?;
    let facts: Facts = serde_json::from_str(&facts).map_err(|error| CompareError::Facts(isolation, error))?;
    let inspection = session.inspect().map_err(at)?;
    let serving = outside::process(inspection.state.pid);
    let processes = outside::processes(session.id())
        .map_err(SessionError::from)
        .map_err(at)?;
    let processes = processes.into_iter().filter_map(outside::process).collect();
    let host_limits = host_limits(&session, isolation);
    let written = written(engine, &session).map_err(at)?;
    progress(isolation, "measuring the memory of several");
    let memory = memory(engine, &probed, &session, subject.instances).map_err(at)?;
    progress(isolation, "counting system calls");
    let calls = calls::trace(engine, &probed).map_err(at)?;
    progress(isolation, "seeing what a crash takes down");
    let crash = crash(engine, &probed, &session).map_err(at)?;
    let directory = engine.store().directory(session.id());
    drop(session);
    let command = match subject.command.as_slice() {
        [] => None,
        words => {
            progress(isolation, "running the command");
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            Some(command(&probed.run_command(engine, &words).map_err(at)?))
        }
    };
    Ok(Look {
        isolation,
        facts,
        serving,
        processes,
        own_namespaces: outside::namespaces(std::process::id().cast_signed()),
        inspection,
        host_limits,
        start,
        memory,
        written,
        left: directory.exists(),
        calls,
        crash,
        command,
    })
}

fn command(finished: &Finished) -> (u8, usize, u64) {
    let end = |phase| {
        let stamp = finished.stamps.iter().find(|stamp| stamp.phase == phase);
        stamp.map_or(0, |stamp| stamp.us)
    };
    let lasted = end(Phase::Exited).saturating_sub(end(Phase::Executed));
    (finished.code, finished.stdout.len(), lasted)
}

/// Starts the probe to do nothing, several times.
fn start(engine: &Engine, probed: &Probed<'_>, starts: usize) -> Result<Start, SessionError> {
    let mut runs = Vec::new();
    // The first one finds caches empty, and does not count.
    for number in 0..=starts {
        let finished = probed.run(engine, &["nothing"])?;
        let stamps = finished.stamps.clone();
        finished.output("the probe", probed.isolation)?;
        if number > 0 {
            runs.push(phases(&stamps));
        }
    }
    runs.sort_by_key(|run| run.executed);
    let middle = runs.len() / 2;
    Ok(Start {
        starts,
        ..runs.swap_remove(middle)
    })
}

/// The parts of one run.
fn phases(stamps: &[Stamp]) -> Start {
    let first = stamps.first().map_or(0, |stamp| stamp.us);
    let last = stamps.last().map_or(first, |stamp| stamp.us);
    let executed = stamps
        .iter()
        .find(|stamp| stamp.phase == Phase::Executed)
        .map_or(last, |stamp| stamp.us);
    let parts = stamps
        .windows(2)
        .filter_map(|pair| match pair {
            [before, after] if after.us <= executed => Some((after.phase, after.us - before.us)),
            _ => None,
        })
        .collect();
    Start {
        starts: 1,
        executed: executed - first,
        whole: last - first,
        phases: parts,
    }
}

fn host_limits(session: &Session<'_>, isolation: Isolation) -> [Option<String>; 3] {
    let cgroup = match isolation {
        Isolation::Vm => "",
        Isolation::Container => "payload/",
    };
    ["memory.max", "cpu.max", "pids.max"].map(|file| host::file(session.id(), &format!("{cgroup}{file}")))
}

/// Lets the probe write, and looks where that went.
fn written(engine: &Engine, session: &Session<'_>) -> Result<(u64, u64), SessionError> {
    let directory = engine.store().directory(session.id());
    let before = host::written(&directory);
    session.exec(&[probe::PATH, "write", "1048576"], Some("0"))?;
    Ok((before, host::written(&directory)))
}

/// Starts more of them, until there are as many as wanted, the first one included.
fn memory(
    engine: &Engine,
    probed: &Probed<'_>,
    session: &Session<'_>,
    instances: usize,
) -> Result<MemoryOf, SessionError> {
    let first = host::memory(session.id())?;
    let before = available();
    let others = (1..instances)
        .map(|_| probed.start(engine, &["wait"]))
        .collect::<Result<Vec<_>, _>>()?;
    let last = others.last().map_or(Ok(first), |last| host::memory(last.id()))?;
    let count = i64::try_from(others.len()).unwrap_or(0);
    let fall = before
        .zip(available())
        .and_then(|(before, after)| (before - after).checked_div(count));
    Ok(MemoryOf {
        first,
        last,
        instances,
        fall,
    })
}

/// `MemAvailable` of the host, in bytes.
fn available() -> Option<i64> {
    let table = std::fs::read_to_string("/proc/meminfo").ok()?;
    i64::try_from(outside::kib(&table, "MemAvailable")?).ok()
}

/// In a virtual machine the kernel is brought down for real; elsewhere it is the host's, and only looked at how far that is
/// within reach.
fn crash(engine: &Engine, probed: &Probed<'_>, neighbour: &Session<'_>) -> Result<Crash, SessionError> {
    let mut as_root = probed.clone();
    as_root.options.user = Some("0".to_owned());
    let mut opened = as_root.clone();
    opened.options.given.security = vec!["systempaths=unconfined".to_owned()];
    match probed.isolation {
        Isolation::Vm => {
            let finished = opened.run(engine, &["crash"])?;
            let said = finished.error.unwrap_or_else(|| {
                format!(
                    "nothing: the probe ended with {}, {}",
                    finished.code,
                    String::from_utf8_lossy(&finished.stderr).trim()
                )
            });
            Ok(Crash::Provoked {
                said: said.lines().next().unwrap_or_default().to_owned(),
                neighbour_answers: neighbour.exec(&[probe::PATH, "nothing"], None).is_ok(),
            })
        }
        Isolation::Container => {
            let reach = |probed: &Probed<'_>| -> Result<String, SessionError> {
                let facts = probed
                    .run(engine, &["facts"])?
                    .output("the probe", probed.isolation)?;
                let facts: Option<Facts> = serde_json::from_str(&facts).ok();
                let tries = facts.map(|facts| facts.attempts).unwrap_or_default();
                let attempt = tries.into_iter().find(|attempt| attempt.name == TRIGGER);
                Ok(match attempt.map(|attempt| attempt.refused) {
                    Some(Some(error)) => format!("refused ({error})"),
                    Some(None) => "within reach".to_owned(),
                    None => "not known".to_owned(),
                })
            };
            Ok(Crash::Withheld {
                by_default: reach(&as_root)?,
                opened: reach(&opened)?,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up_to_the_start() {
        let stamps = [
            (Phase::Command, 100),
            (Phase::Created, 150),
            (Phase::Supervised, 300),
            (Phase::Executed, 1000),
            (Phase::Exited, 1500),
            (Phase::Done, 2000),
        ]
        .map(|(phase, us)| Stamp { phase, us });
        let start = phases(&stamps);
        assert_eq!((start.executed, start.whole), (900, 1900));
        assert_eq!(
            start.phases,
            [
                (Phase::Created, 50),
                (Phase::Supervised, 150),
                (Phase::Executed, 700)
            ]
        );
        assert_eq!(start.phases.iter().map(|(_, us)| us).sum::<u64>(), start.executed);
    }
}
