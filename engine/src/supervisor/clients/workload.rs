//! What commands ask about the workload as a whole, and whether it stands still.
//!
//! It does as long as a person has paused it or a connected command holds it. To everybody else the two are one, as in
//! Docker: the record says "paused", and who unpauses the container unpauses it for all.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use oci_spec::runtime::{LinuxResources, Spec};

use super::{Clients, Phase};
use crate::control::{Act, Event};
use crate::record::{Isolation, Record, State, VERSION};
use crate::runtime::{self, Access};
use crate::spec::{self, Changes};
use crate::{cgroup, limits, network, store};

/// On whose account the workload stands still.
#[derive(Default)]
pub(super) struct Standstill {
    /// A person's.
    paused: bool,
    /// That of connected commands, by number.
    holders: BTreeSet<u64>,
}

impl Standstill {
    fn is_there(&self) -> bool {
        self.paused || !self.holders.is_empty()
    }
}

/// Why the workload is not treated as asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("container {0} is not running")]
    NotRunning(String),
    #[error("container {0} is already paused")]
    Paused(String),
    #[error("container {0} is not paused")]
    NotPaused(String),
    #[error("container {0} is paused, unpause the container before exec")]
    ExecPaused(String),
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Fit(#[from] limits::Misfit),
    #[error(transparent)]
    Spec(#[from] spec::Error),
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    #[error(transparent)]
    Network(#[from] network::Error),
}

impl Clients {
    /// Does what command `number` asks.
    pub(super) fn act(&self, number: u64, act: Act) -> Event {
        let done = |()| Event::Done;
        let answer = match act {
            Act::Pause => self.pause().map(done),
            Act::Unpause => self.unpause().map(done),
            Act::Hold => self.hold(number).map(done),
            Act::Processes => self.processes().inspect(|_| self.book.tell("top", &[])),
            Act::Usage => self.usage(),
            Act::Update(changes) => self
                .update(&changes)
                .map(|()| self.book.tell("update", &[]))
                .map(done),
            Act::Restart(policy) => self
                .book
                .update(|record| record.settings.restart = policy)
                .map(|()| self.book.tell("update", &[]))
                .map(done)
                .map_err(Refusal::from),
        };
        answer.unwrap_or_else(|refusal| refused(&refusal))
    }

    fn pause(&self) -> Result<(), Refusal> {
        let access = self.workload()?;
        let mut standstill = self.standstill.write().unwrap_or_else(PoisonError::into_inner);
        if standstill.is_there() {
            return Err(Refusal::Paused(self.name()));
        }
        self.freeze(&access)?;
        standstill.paused = true;
        Ok(())
    }

    pub(super) fn unpause(&self) -> Result<(), Refusal> {
        let access = self.workload()?;
        let mut standstill = self.standstill.write().unwrap_or_else(PoisonError::into_inner);
        if !standstill.is_there() {
            return Err(Refusal::NotPaused(self.name()));
        }
        self.thaw(&access)?;
        *standstill = Standstill::default();
        Ok(())
    }

    fn hold(&self, number: u64) -> Result<(), Refusal> {
        let access = self.workload()?;
        let mut standstill = self.standstill.write().unwrap_or_else(PoisonError::into_inner);
        if !standstill.is_there() {
            self.freeze(&access)?;
        }
        standstill.holders.insert(number);
        Ok(())
    }

    fn processes(&self) -> Result<Event, Refusal> {
        Ok(Event::Processes(Box::new(self.workload()?.processes()?)))
    }

    fn usage(&self) -> Result<Event, Refusal> {
        Ok(Event::Usage(Box::new(self.workload()?.usage()?)))
    }

    /// Changes limits: all of them, or none.
    fn update(&self, changes: &Changes) -> Result<(), Refusal> {
        let access = self.workload()?;
        let _one_at_a_time = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let record = self.book.record();
        let old = self.book.spec()?;
        let new = spec::changed(&old, changes)?;
        if let Some(machine) = record.machine {
            limits::fit(&record.name, machine, changes)?;
        }
        let changed = limit(&access, &record, &new, changes)
            .and_then(|()| self.book.write_spec(&new).map_err(Refusal::from));
        if changed.is_err() {
            // What went wrong first is what the person needs to know.
            let _ = limit(&access, &record, &old, changes);
        }
        changed
    }

    /// Command `number` is gone, and holds nothing any more.
    pub(super) fn release(&self, number: u64) {
        let holds = |standstill: &Standstill| standstill.holders.contains(&number);
        // Most hold nothing, and need not wait for those who only look.
        if !holds(&self.standstill.read().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        let mut standstill = self.standstill.write().unwrap_or_else(PoisonError::into_inner);
        let held = standstill.holders.remove(&number);
        if held && !standstill.is_there() {
            let released = self.workload().and_then(|access| self.thaw(&access));
            // Nobody is there to be told. What cannot be let go on stays paused, so that it can be tried again; what has
            // ended does not mind.
            standstill.paused = released.is_err();
        }
    }

    /// Does what may not be while the workload stands still, as making a process in it, and keeps it from that meanwhile;
    /// `None` where it does.
    pub(in crate::supervisor) fn while_it_moves<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        let standstill = self.standstill.read().unwrap_or_else(PoisonError::into_inner);
        (!standstill.is_there()).then(act)
    }

    /// What a command is told that wants a process in a workload that stands still.
    pub(super) fn refuse_exec(&self) -> Event {
        refused(&Refusal::ExecPaused(self.name()))
    }

    fn freeze(&self, access: &Access) -> Result<(), Refusal> {
        if let Err(error) = access.freeze() {
            // It may be done all the same, after the answer was waited for.
            let _ = access.thaw();
            return Err(error.into());
        }
        let recorded = self.record_pause(true);
        if recorded.is_err() {
            // What went wrong first is what the person needs to know.
            let _ = access.thaw();
        }
        recorded
    }

    fn thaw(&self, access: &Access) -> Result<(), Refusal> {
        access.thaw()?;
        self.record_pause(false)
    }

    fn record_pause(&self, now: bool) -> Result<(), Refusal> {
        self.book.update(|record| {
            if let State::Running { paused, .. } = &mut record.state {
                *paused = now;
                // A container of an older rvm was started again by this one.
                record.version = VERSION;
            }
        })?;
        self.book.tell(if now { "pause" } else { "unpause" }, &[]);
        Ok(())
    }

    /// The workload, as long as it runs.
    pub(super) fn workload(&self) -> Result<Access, Refusal> {
        let running = self.lock().and_then(|shared| match &shared.phase {
            Phase::Running(access) if shared.exit.is_none() => Some(access.clone()),
            _ => None,
        });
        running.ok_or_else(|| Refusal::NotRunning(self.name()))
    }

    fn name(&self) -> String {
        self.book.record().name
    }
}

/// Sets what of the changes a specification has: inside, and on the host.
fn limit(access: &Access, record: &Record, spec: &Spec, changes: &Changes) -> Result<(), Refusal> {
    let within = spec::within(spec, changes)?;
    if within != LinuxResources::default() {
        access.limit(within)?;
    }
    let around = spec::around(spec, changes);
    if around != LinuxResources::default() {
        cgroup::limit(&record.id, &around)?;
    }
    if record.isolation == Isolation::Vm && changes.cpus.is_some() && cgroup::exists(&record.id) {
        cgroup::limit_machine(&record.id, spec)?;
    }
    Ok(())
}

pub(super) fn refused(refusal: &Refusal) -> Event {
    Event::Refused {
        reason: crate::supervisor::chain(refusal),
    }
}
