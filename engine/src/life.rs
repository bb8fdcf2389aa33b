//! A container's life after it was made: started again, signalled, stopped, waited for, renamed, followed.
//!
//! All of it goes by way of the container's supervisor where there is one. Nothing here waits for another container, and a
//! supervisor, VMM or guest that hangs is ended too where the container is to end.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::attachment::Attachment;
use crate::control::{self, Connection, Exec, Request};
use crate::engine::{Created, Engine, Error, KILL_LIMIT, TURN};
use crate::record::{self, Record, State};
use crate::restart::Policy;
use crate::rotated::{self, Watch};
use crate::supervisor::{ClientStreams, Wanted};
use crate::{signals, store};

/// A workload that was sent `SIGKILL` has ended within this, or its guest hangs.
pub(crate) const DEATH_LIMIT: Duration = Duration::from_secs(10);

/// A container that has ended has given up its lock within this: a guest has 10 seconds to power off.
pub(crate) const RELEASE_LIMIT: Duration = Duration::from_secs(15);

/// A supervisor that was started or has ended is seen to be so within this.
pub(crate) const CHANGE_LIMIT: Duration = Duration::from_secs(60);

/// A supervisor answers what needs nothing but itself within this.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Why a container's life cannot go on like this.
#[derive(Debug, thiserror::Error)]
pub enum LifeError {
    /// It has to run for that.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// It has ended, or was never started.
    #[error("cannot attach to {0}: it is stopped")]
    AttachStopped(String),
    /// It has ended and is about to be started again.
    #[error("container {0} is restarting, wait until it is running")]
    Restarting(String),
    /// It is not there any more when it could be started again.
    #[error("restart policy cannot be updated because the container is removed once it has ended (--rm)")]
    RemovedAtItsEnd,
    /// Its processes stand still.
    #[error("cannot attach to a paused container, unpause {0} first")]
    AttachPaused(String),
    /// Its processes stand still.
    #[error("cannot start a paused container, try unpause instead: {0}")]
    StartPaused(String),
    /// Its processes stand still.
    #[error("cannot remove container {0}: it is paused and must be unpaused first")]
    RemovePaused(String),
    /// Somebody holds it.
    #[error(
        "container {0} is being started, removed or read by another command that does not come to an end"
    )]
    Busy(String),
    /// The log could not be watched.
    #[error("cannot watch the container's log")]
    Watch(#[source] io::Error),
}

impl LifeError {
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::AttachStopped(name) => Some(format!("`rvm start -a {name}` starts it")),
            Self::Restarting(name) => Some(format!(
                "`rvm logs {name}` shows what it says, `rvm stop {name}` stops that"
            )),
            Self::AttachPaused(name) | Self::StartPaused(name) => {
                Some(format!("`rvm unpause {name}` lets it go on"))
            }
            Self::RemovePaused(name) => Some(format!("`rvm rm -f {name}` kills it first")),
            Self::NotRunning(_) | Self::RemovedAtItsEnd | Self::Busy(_) | Self::Watch(_) => None,
        }
    }
}

/// Whether a container can be started.
#[derive(Debug)]
pub enum Ready {
    /// It runs already.
    Running(Record),
    /// It is this process' to start.
    Stopped(Created),
}

/// A further process in a container.
#[derive(Debug)]
pub struct Execution {
    /// To its supervisor.
    pub control: Connection,
    /// The command's ends of the process' streams.
    pub streams: ClientStreams,
}

impl Execution {
    /// Waits for its end: exit status, or 128 plus a signal.
    ///
    /// # Errors
    /// [`Error::Control`] where the supervisor was killed.
    pub fn wait(&self) -> Result<u8, Error> {
        loop {
            match self.control.next()? {
                control::Event::Exited { code } => return Ok(code),
                // The container has ended, and all that was in it.
                control::Event::Ended { .. } => return Ok(128 + 9),
                _ => {}
            }
        }
    }
}

/// How a container is to be stopped. `None` is what the container was made with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stop {
    /// The signal that asks it to end.
    pub signal: Option<i32>,
    /// Seconds from that signal to `SIGKILL`, -1 for ever.
    pub timeout: Option<i32>,
}

impl Engine {
    /// Takes a container that does not run, to be started.
    ///
    /// # Errors
    /// [`Error::Store`]; [`LifeError::StartPaused`], [`LifeError::Busy`].
    pub fn prepare(&self, wanted: &str) -> Result<Ready, Error> {
        let mut record = self.store.find(wanted)?;
        let begun = Instant::now();
        let mut pressed = false;
        loop {
            match record.state {
                State::Running { paused: true, .. } => return Err(LifeError::StartPaused(record.name).into()),
                State::Running { .. } | State::Restarting { .. } => return Ok(Ready::Running(record)),
                State::Created | State::Exited(_) => {}
            }
            if let Some(owned) = self.store.own(&record.id)? {
                let record = owned.read_record()?;
                let id = record.id.clone();
                let created = Created {
                    id,
                    record,
                    owned,
                    timing: false,
                };
                return Ok(Ready::Stopped(created));
            }
            if begun.elapsed() > CHANGE_LIMIT {
                return Err(LifeError::Busy(record.name).into());
            }
            // It has ended and an attached command does not read its output.
            if !pressed && begun.elapsed() > RELEASE_LIMIT && matches!(record.state, State::Exited(_)) {
                pressed = true;
                if let Ok(connection) = self.connect(&record) {
                    // A supervisor that ends by itself meanwhile has closed its end.
                    let _ = connection.send(&Request::Kill);
                }
            }
            thread::sleep(TURN);
            record = self.store.find(&record.id)?;
        }
    }

    /// The containers that are to be started with the machine, by their restart policies, oldest first.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn started_at_boot(&self) -> Result<Vec<Record>, Error> {
        let mut records = self.containers()?;
        records.retain(|record| match &record.state {
            State::Exited(exited) => {
                record
                    .restarts
                    .at_boot(record.settings.restart, exited.code, record.stopped)
            }
            _ => false,
        });
        records.reverse();
        Ok(records)
    }

    /// Asks a container to end because the machine goes down; it is not stopped for good by that. [`Engine::wait`] waits for it.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Control`].
    pub fn shut_down(&self, wanted: &str) -> Result<(), Error> {
        let record = self.store.find(wanted)?;
        Ok(self.connect(&record)?.send(&Request::ShutDown)?)
    }

    /// Connects to the streams of a running container.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Control`]; [`LifeError::AttachStopped`], [`LifeError::AttachPaused`].
    pub fn attach(&self, wanted: &str, streams: Wanted) -> Result<Attachment, Error> {
        let record = self.store.find(wanted)?;
        match record.state {
            State::Running { paused: false, .. } => {}
            State::Running { .. } => return Err(LifeError::AttachPaused(record.name).into()),
            State::Restarting { .. } => return Err(LifeError::Restarting(record.name).into()),
            State::Created | State::Exited(_) => return Err(LifeError::AttachStopped(record.name).into()),
        }
        let control = self.connect(&record)?;
        let streams = control.attach(streams)?;
        control.wait_for_ever()?;
        self.store.journal.container(&record, "attach", &[]);
        Ok(Attachment::new(control, streams))
    }

    /// Runs a further process in a container, connected to streams of this command.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Control`]; [`LifeError::NotRunning`].
    pub fn exec(&self, wanted: &str, exec: Exec, streams: Wanted) -> Result<Execution, Error> {
        let record = self.store.find(wanted)?;
        match record.state {
            State::Running { .. } => {}
            State::Restarting { .. } => return Err(LifeError::Restarting(record.name).into()),
            State::Created | State::Exited(_) => return Err(LifeError::NotRunning(record.name).into()),
        }
        let control = self.connect(&record)?;
        let streams = control.exec(exec, streams)?;
        Ok(Execution { control, streams })
    }

    /// Sends a signal to a container's first process. With `SIGKILL` the container has ended when this returns. What is
    /// paused learns of other signals once it goes on; that by which it is to be stopped lets it go on.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Control`], [`Error::Stuck`]; [`LifeError::NotRunning`].
    pub fn kill(&self, wanted: &str, signal: i32) -> Result<(), Error> {
        let record = self.store.find(wanted)?;
        if !is_running(&record) {
            return Err(LifeError::NotRunning(record.name).into());
        }
        if signal == signals::KILL || matches!(record.state, State::Restarting { .. }) {
            return self.end(&record, &[(signals::KILL, Some(DEATH_LIMIT))]);
        }
        let connection = self.connect(&record)?;
        if signal == record.settings.stop_signal() {
            settle(&connection, &record)?;
        }
        connection.send(&Request::Signal { signal })?;
        if is_paused(&record) && signal == record.settings.stop_signal() {
            go_on(&connection)?;
        }
        Ok(())
    }

    /// Asks a container to end, and kills it if it does not. One that does not run is left as it is; one that is paused goes
    /// on, for it could not end.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Stuck`].
    pub fn stop(&self, wanted: &str, stop: &Stop) -> Result<(), Error> {
        let record = self.store.find(wanted)?;
        if !is_running(&record) {
            return Ok(());
        }
        if is_paused(&record) {
            // Where this is not possible, the signal is not heard and the next one kills.
            let _ = self.connect(&record).and_then(|connection| go_on(&connection));
        }
        let settings = &record.settings;
        let signal = stop.signal.unwrap_or_else(|| settings.stop_signal());
        let patience = stop
            .timeout
            .map_or_else(|| settings.stop_patience(), record::patience);
        self.end(&record, &[(signal, patience), (signals::KILL, Some(DEATH_LIMIT))])?;
        self.store.journal.container(&record, "stop", &[]);
        Ok(())
    }

    /// Tells that a container was stopped and started again.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn restarted(&self, wanted: &str) -> Result<(), Error> {
        let record = self.store.find(wanted)?;
        self.store.journal.container(&record, "restart", &[]);
        Ok(())
    }

    /// Sends signals one after the other until the container has ended, waiting after each for so long, and then ends
    /// whatever does not answer: the machine, the supervisor.
    fn end(&self, record: &Record, signals: &[(i32, Option<Duration>)]) -> Result<(), Error> {
        let ask = || {
            let connection = self.connect(record)?;
            settle(&connection, record)?;
            insist(&connection, signals)
        };
        // Where there is no answer, its supervisor was killed, which the next look puts right, has just ended, or has just
        // begun to start the container again.
        let deadline = Instant::now() + KILL_LIMIT;
        loop {
            let ended = ask();
            if let Ok(true) = ended {
                return Ok(());
            }
            match self.store.find(&record.id) {
                Ok(now) if is_running(&now) && ended.is_err() && Instant::now() < deadline => {
                    thread::sleep(TURN)
                }
                // Its machine does not end.
                Ok(now) if is_running(&now) => break,
                Ok(_) | Err(store::Error::NotFound(_)) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        self.store.clean_up(&record.id)?;
        match self.store.find(&record.id) {
            Ok(now) if is_running(&now) => Err(Error::Stuck(now.name)),
            Ok(_) | Err(store::Error::NotFound(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until a container does not run, and tells its exit code; 0 where it was never started.
    ///
    /// # Errors
    /// [`Error::Store`], also where it was removed before its end could be told.
    pub fn wait(&self, wanted: &str) -> Result<u8, Error> {
        let mut record = self.store.find(wanted)?;
        loop {
            match &record.state {
                State::Created => return Ok(0),
                State::Exited(exited) => return Ok(exited.code),
                State::Running { .. } | State::Restarting { .. } => {}
            }
            let code = self
                .connect(&record)
                .and_then(|connection| connection.watch().and_then(|()| connection.exit_code(None)));
            if let Ok(Some(code)) = code {
                return Ok(code);
            }
            // Its supervisor was killed, which the next look puts right, has just ended, or starts it again.
            thread::sleep(TURN);
            record = self.store.find(&record.id)?;
        }
    }

    /// Gives a container another name, running or not.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Control`]; [`LifeError::Busy`].
    pub fn rename(&self, wanted: &str, name: &str) -> Result<(), Error> {
        let record = self.store.find(wanted)?;
        let deadline = Instant::now() + CHANGE_LIMIT;
        loop {
            if let Some(owned) = self.store.own(&record.id)? {
                let mut current = owned.read_record()?;
                return Ok(self.store.rename(&owned, &mut current, name)?);
            }
            match self.connect(&record) {
                Ok(connection) => return Ok(connection.rename(name)?),
                Err(_) if Instant::now() < deadline => thread::sleep(TURN),
                Err(_) => return Err(LifeError::Busy(record.name).into()),
            }
        }
    }

    /// Watches the log of a container that runs.
    ///
    /// # Errors
    /// [`LifeError::Watch`]. A container that does not run has ended for the follower.
    pub fn follow(&self, record: &Record) -> Result<Follower, Error> {
        Ok(Follower {
            changes: Watch::new(&self.store.directory(&record.id)).map_err(LifeError::Watch)?,
            supervisor: self.reach(record)?,
        })
    }

    /// Goes on with a log whose container has ended, if that is started again by itself; whether it is.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn follow_on(&self, record: &Record, follower: &mut Follower) -> Result<bool, Error> {
        if record.settings.restart != Policy::No {
            follower.supervisor = self.reach(record)?;
        }
        Ok(follower.supervisor.is_some())
    }

    /// Connects to a container's supervisor; `None` where it has none.
    fn reach(&self, record: &Record) -> Result<Option<Connection>, Error> {
        loop {
            match self.store.find(&record.id) {
                Ok(now) if is_running(&now) => {}
                Ok(_) | Err(store::Error::NotFound(_)) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            if let Ok(connection) = self.connect(record) {
                return Ok(Some(connection));
            }
            // Its supervisor was killed, which the next look puts right, has just ended, or starts it again.
            thread::sleep(TURN);
        }
    }

    pub(crate) fn connect(&self, record: &Record) -> Result<Connection, control::Error> {
        Connection::open(&self.store.run_directory(&record.id), ANSWER_LIMIT)
    }
}

fn is_running(record: &Record) -> bool {
    record.state.is_active()
}

/// Keeps a container from being started again by itself. One without a restart policy may have a supervisor that does not
/// know of such things.
fn settle(connection: &Connection, record: &Record) -> Result<(), control::Error> {
    match record.settings.restart {
        Policy::No => Ok(()),
        _ => connection.send(&Request::Settle),
    }
}

fn is_paused(record: &Record) -> bool {
    matches!(record.state, State::Running { paused: true, .. })
}

/// Lets a paused container go on. One that does so already is fine.
fn go_on(connection: &Connection) -> Result<(), control::Error> {
    match connection.unpause() {
        Err(control::Error::Refused(_)) => Ok(()),
        result => result,
    }
}

/// Sends signals until the workload's end is on record; whether it is. At last the machine itself is ended.
fn insist(connection: &Connection, signals: &[(i32, Option<Duration>)]) -> Result<bool, control::Error> {
    connection.watch()?;
    for (signal, patience) in signals {
        connection.send(&Request::Signal { signal: *signal })?;
        let deadline = patience.map(|patience| Instant::now() + patience);
        if connection.exit_code(deadline)?.is_some() {
            return Ok(true);
        }
    }
    connection.send(&Request::Kill)?;
    Ok(connection.exit_code(Some(Instant::now() + KILL_LIMIT))?.is_some())
}

/// Waits for more of a container's log.
#[derive(Debug)]
pub struct Follower {
    changes: Watch,
    /// `None` once the container has ended.
    supervisor: Option<Connection>,
}

/// What a follower has waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// The log may have grown.
    More,
    /// It does not grow any more.
    Ended,
    /// The time is over.
    Late,
}

impl Follower {
    /// Waits until the log may have grown, or `deadline`. What was written before the call has to be read before it.
    ///
    /// # Errors
    /// [`LifeError::Watch`].
    pub fn wait(&mut self, deadline: Option<Instant>) -> Result<News, LifeError> {
        loop {
            let Some(supervisor) = &self.supervisor else {
                return Ok(News::Ended);
            };
            let mut watched = [
                PollFd::new(&self.changes, PollFlags::IN),
                PollFd::new(supervisor, PollFlags::IN),
            ];
            if !rotated::wait(&mut watched, deadline).map_err(LifeError::Watch)? {
                return Ok(News::Late);
            }
            let [changed, spoken] = watched.map(|watched| !watched.revents().is_empty());
            if spoken && matches!(supervisor.next(), Err(_) | Ok(control::Event::Ended { .. })) {
                self.supervisor = None;
                return Ok(News::More);
            }
            if changed {
                self.changes.clear().map_err(LifeError::Watch)?;
                return Ok(News::More);
            }
        }
    }
}
