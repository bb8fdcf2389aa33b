//! Limits of a container that are changed after it was made, and when it is started again: while it runs, by its supervisor,
//! else in its files.

use std::num::NonZero;
use std::thread;
use std::time::Instant;

use crate::control::{self, Connection};
use crate::engine::{Engine, Error, MAX_VCPUS, TURN};
use crate::life::{CHANGE_LIMIT, LifeError};
use crate::memory::{self, machine_mib, workload_mib};
use crate::record::{Machine, Record, State};
use crate::restart::Policy;
use crate::spec::{self, Changes};
use crate::store::Owned;
use crate::workload::has_workload;

/// Virtual CPUs where nobody asked for a number.
const DEFAULT_VCPUS: u8 = 4;

/// What a virtual machine that runs cannot have, because it was not made for it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Misfit {
    #[error(
        "the virtual machine of {name} has memory for a limit of {room_mib} MiB: more takes effect with the next start, \
         so `rvm stop {name}` first"
    )]
    Memory { name: String, room_mib: u32 },
    #[error(
        "the virtual machine of {name} has {vcpus} CPUs: more take effect with the next start, so `rvm stop {name}` first"
    )]
    Cpus { name: String, vcpus: u8 },
}

/// Whether the virtual machine of a container that runs is large enough for the changes.
pub(crate) fn fit(name: &str, machine: Machine, changes: &Changes) -> Result<(), Misfit> {
    let (name, Machine { vcpus, memory_mib }) = (name.to_owned(), machine);
    let needed = changes.memory_bytes.map(machine_mib);
    if needed.is_some_and(|needed| needed.is_none_or(|needed| needed > memory_mib)) {
        let room_mib = workload_mib(memory_mib);
        return Err(Misfit::Memory { name, room_mib });
    }
    if changes.cpus.is_some_and(|cpus| cpus.whole() > vcpus.into()) {
        return Err(Misfit::Cpus { name, vcpus });
    }
    Ok(())
}

impl Engine {
    /// Changes limits of a container, all of them or none: at once where it runs, else with its next start. Then when it is
    /// started again by itself.
    ///
    /// # Errors
    /// What makes no sense, what this machine does not have, or a virtual machine that runs: [`Error::Spec`],
    /// [`Error::TooManyCpus`], [`Error::TooMuchMemory`], [`Error::Control`]; [`Error::Store`], [`LifeError::Restarting`],
    /// [`LifeError::Busy`], [`LifeError::RemovedAtItsEnd`].
    pub fn update(&self, wanted: &str, changes: &Changes, restart: Option<Policy>) -> Result<(), Error> {
        let available = thread::available_parallelism().map_or(1, NonZero::get) as u64;
        let cpus = changes.cpus.map(spec::Cpus::whole);
        if let Some(wanted) = cpus.filter(|wanted| *wanted > available) {
            return Err(Error::TooManyCpus { wanted, available });
        }
        let record = self.store.find(wanted)?;
        if record.auto_remove && restart.is_some_and(|policy| !policy.is_default()) {
            return Err(LifeError::RemovedAtItsEnd.into());
        }
        if *changes != Changes::default() {
            self.change(record.clone(), &Change::Limits(changes))?;
        }
        restart.map_or(Ok(()), |policy| self.change(record, &Change::Restart(policy)))
    }

    fn change(&self, mut record: Record, change: &Change<'_>) -> Result<(), Error> {
        let deadline = Instant::now() + CHANGE_LIMIT;
        loop {
            if let Some(owned) = self.store.own(&record.id)? {
                change.write(&owned)?;
                self.store.journal.container(&record, "update", &[]);
                return Ok(());
            }
            if let (State::Restarting { .. }, Change::Limits(_)) = (&record.state, change) {
                return Err(LifeError::Restarting(record.name).into());
            }
            let asked = self.ask(&record);
            let error = match asked.and_then(|connection| change.ask(&connection)) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let now = self.store.find(&record.id)?;
            if has_workload(&record) && has_workload(&now) {
                return Err(error.into());
            }
            // It begins or ends.
            if Instant::now() > deadline {
                return Err(LifeError::Busy(record.name).into());
            }
            thread::sleep(TURN);
            record = now;
        }
    }
}

/// What changes together.
enum Change<'a> {
    Limits(&'a Changes),
    Restart(Policy),
}

impl Change<'_> {
    /// Changes the files of a container that does not run.
    fn write(&self, owned: &Owned) -> Result<(), Error> {
        match self {
            Self::Limits(changes) => rewrite(owned, changes),
            Self::Restart(policy) => {
                let mut record = owned.read_record()?;
                record.settings.restart = *policy;
                Ok(owned.write_record(&record)?)
            }
        }
    }

    /// Has it done by the supervisor of one that does.
    fn ask(&self, supervisor: &Connection) -> Result<(), control::Error> {
        match self {
            Self::Limits(changes) => supervisor.update((*changes).clone()),
            Self::Restart(policy) => supervisor.set_restart(*policy),
        }
    }
}

fn rewrite(owned: &Owned, changes: &Changes) -> Result<(), Error> {
    let mut record = owned.read_record()?;
    let spec = spec::changed(&owned.read_spec()?, changes)?;
    let old = record.machine;
    if let Some(machine) = &mut record.machine {
        if let Some(bytes) = changes.memory_bytes {
            machine.memory_mib = machine_memory(bytes)?;
        }
        if let Some(cpus) = changes.cpus {
            machine.vcpus = virtual_cpus(cpus.whole())?;
        }
    }
    // Whenever this is cut short, the machine is large enough for its workload's limits.
    let new = record.machine;
    if let (Some(machine), Some(old)) = (&mut record.machine, old) {
        machine.memory_mib = machine.memory_mib.max(old.memory_mib);
        machine.vcpus = machine.vcpus.max(old.vcpus);
        owned.write_record(&record)?;
    }
    owned.write_spec(&spec)?;
    if record.machine != new {
        record.machine = new;
        owned.write_record(&record)?;
    }
    Ok(())
}

/// Processors that this process may use.
pub(crate) fn available_cpus() -> u64 {
    thread::available_parallelism().map_or(1, NonZero::get) as u64
}

/// Virtual CPUs of a machine of which nobody has said how many it is to have.
pub(crate) fn default_vcpus() -> u8 {
    u8::try_from(available_cpus()).map_or(DEFAULT_VCPUS, |available| available.min(DEFAULT_VCPUS))
}

/// Virtual CPUs of a machine that is to have so many.
pub(crate) fn virtual_cpus(wanted: u64) -> Result<u8, Error> {
    let vcpus = u8::try_from(wanted).ok().filter(|vcpus| *vcpus <= MAX_VCPUS);
    vcpus.ok_or(Error::TooManyVcpus { wanted })
}

/// Memory in MiB of a machine for a workload with this limit.
pub(crate) fn machine_memory(limit: u64) -> Result<u32, Error> {
    let available_mib = memory::host_mib().unwrap_or(u64::MAX);
    match machine_mib(limit) {
        Some(wanted) if u64::from(wanted) <= available_mib => Ok(wanted),
        wanted => Err(Error::TooMuchMemory {
            wanted_mib: wanted.map_or(limit / memory::MIB, u64::from),
            available_mib,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MIB;

    #[test]
    fn a_machine_that_runs_has_what_it_was_made_with() {
        let memory_mib = machine_mib(64 * MIB).unwrap();
        let check = |mib: u64, cpus: &str, expected: Option<&str>| {
            let changes = Changes {
                memory_bytes: Some(mib * MIB),
                cpus: Some(cpus.parse().unwrap()),
                ..Changes::default()
            };
            match (fit("web", Machine { vcpus: 2, memory_mib }, &changes), expected) {
                (Ok(()), None) => {}
                (Err(error), Some(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (actual, _) => panic!("{changes:?}: {actual:?}"),
            }
        };
        check(64, "2", None);
        check(66, "2", Some("a limit of 64 MiB"));
        check(u64::MAX / MIB, "2", Some("a limit of 64 MiB"));
        check(64, "2.1", Some("2 CPUs"));
    }
}
