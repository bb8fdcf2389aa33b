//! What happens to containers, images and volumes, told by whoever does it: a JSON object under Docker's names on each line of
//! `events` in the run directory and, once that is full, `events.1`.
//!
//! There is no daemon that could keep them. A line is one write at the file's end, under a lock on the file, so that lines do
//! not mix and none goes to a file that readers have left. One that cannot be written, as on a full disk, is lost: nothing
//! waits or fails for an event. A line that a killed writer left unfinished is ended by the next one, and skipped by readers.

mod filter;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::Layout;
use crate::record::{Exited, Record};
use crate::rotated::{self, Files, Watch};
pub use filter::{Condition, Filters};

/// The file that grows.
const NAME: &str = "events";

/// A file is full at this many bytes. It is in memory on most machines. Docker remembers 256 events; these are thousands.
const FULL: u64 = 1 << 20;

/// Longest line with labels: an image's can be as long as its maker likes.
const MOST_LINE: usize = 64 << 10;

/// Longest value beside labels in bytes, such as the command of an `exec`.
const MOST_VALUE: usize = 1 << 10;

/// Writers hold the lock for microseconds. One that was stopped or hangs holds up the others for no longer than this.
const LOCK_LIMIT: Duration = Duration::from_millis(200);

/// Time between two tries.
const LOCK_TURN: Duration = Duration::from_micros(100);

/// Something that has happened, under Docker's names (`events.Message` of its API).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What has happened, as in `Action`: Docker's name before API 1.22.
    #[serde(default)]
    pub status: String,
    /// To whom, as in `Actor`: Docker's name before API 1.22.
    #[serde(default)]
    pub id: String,
    /// A container's image: Docker's name before API 1.22.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// `container`, `image` or `network`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// What has happened: `start`, `exec_create: ps`, `health_status: healthy`.
    #[serde(rename = "Action")]
    pub action: String,
    /// To whom.
    #[serde(rename = "Actor")]
    pub actor: Actor,
    /// Docker's word for what concerns one machine: `local`.
    #[serde(default)]
    pub scope: String,
    /// Seconds since the epoch.
    #[serde(default)]
    pub time: i64,
    /// Nanoseconds since the epoch.
    #[serde(rename = "timeNano")]
    pub time_nano: i64,
}

/// To whom something has happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Actor {
    /// A container's or an image's ID, or the name of an image that was pulled or pushed.
    #[serde(rename = "ID")]
    pub id: String,
    /// What goes with it: labels, `image`, `name`, and what the action adds, such as `exitCode`.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

/// Where events are told.
#[derive(Debug, Clone)]
pub struct Journal {
    directory: PathBuf,
}

impl Journal {
    /// Events of an installation.
    #[must_use]
    pub fn new(layout: &Layout) -> Self {
        Self {
            directory: layout.run().to_owned(),
        }
    }

    /// Tells what has happened to a container, in Docker's word for it; `more` is what Docker tells with it.
    pub(crate) fn container(&self, record: &Record, action: &str, more: &[(&str, &str)]) {
        let own = [("image", record.image.name.as_str()), ("name", &record.name)];
        let own = own.iter().chain(more).copied();
        let labels = &record.settings.labels;
        self.tell(Event::new("container", &record.id, action), labels, own);
    }

    /// Tells of a container's end.
    pub(crate) fn died(&self, record: &Record, exited: &Exited) {
        if exited.out_of_memory {
            self.container(record, "oom", &[]);
        }
        self.container(record, "die", &[("exitCode", &exited.code.to_string())]);
    }

    /// Tells what has happened to an image with these labels.
    pub(crate) fn image(&self, id: &str, name: &str, action: &str, labels: &BTreeMap<String, String>) {
        self.tell(Event::new("image", id, action), labels, [("name", name)]);
    }

    /// Tells what has happened to a network, and to which container there.
    pub(crate) fn network(&self, id: &str, name: &str, action: &str, container: Option<&str>) {
        let own = [("name", name), ("type", "bridge")];
        let own = own
            .into_iter()
            .chain(container.map(|container| ("container", container)));
        self.tell(Event::new("network", id, action), &BTreeMap::new(), own);
    }

    /// Tells what has happened to a volume.
    pub(crate) fn volume(&self, name: &str, action: &str) {
        let event = Event::new("volume", name, action);
        self.tell(event, &BTreeMap::new(), [("driver", "local")]);
    }

    /// Tells that a container's volumes have been mounted in it.
    pub(crate) fn mounted(&self, record: &Record) {
        for point in record.mounts.volumes() {
            let destination = point.destination.display().to_string();
            let own = [
                ("driver", "local"),
                ("container", record.id.as_str()),
                ("destination", &destination),
                ("propagation", point.propagation.name()),
                ("read/write", if point.read_only { "false" } else { "true" }),
            ];
            self.tell(Event::new("volume", &point.name, "mount"), &BTreeMap::new(), own);
        }
    }

    /// Tells that they are not any more.
    pub(crate) fn unmounted(&self, record: &Record) {
        for point in record.mounts.volumes() {
            let own = [("driver", "local"), ("container", record.id.as_str())];
            self.tell(
                Event::new("volume", &point.name, "unmount"),
                &BTreeMap::new(),
                own,
            );
        }
    }

    fn tell<'a>(
        &self,
        mut event: Event,
        labels: &BTreeMap<String, String>,
        own: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) {
        let own = own.into_iter().map(|(name, value)| (name.to_owned(), cut(value)));
        let own: BTreeMap<String, String> = own.collect();
        event.from = (event.kind == "container").then(|| own.get("image").cloned().unwrap_or_default());
        let length: usize = labels.iter().map(|(name, value)| name.len() + value.len()).sum();
        if length < MOST_LINE {
            event.actor.attributes = labels.clone();
        }
        event.actor.attributes.extend(own);
        // What it tells of has happened, whether or not anybody can be told.
        let _ = self.append(event);
    }

    fn append(&self, mut event: Event) -> io::Result<()> {
        let (file, length) = self.open()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // With the lock, so that lines are in the order of their times. It has room for three centuries.
        event.time = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        event.time_nano = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
        let mut line = Vec::with_capacity(512);
        if !ends_with_line(&file, length)? {
            line.push(b'\n');
        }
        serde_json::to_writer(&mut line, &event)?;
        line.push(b'\n');
        let written = (&file).write(&line);
        if !matches!(written, Ok(count) if count == line.len()) {
            // The disk is full. What was written of it is no line, and its room is somebody else's.
            file.set_len(length)?;
        }
        // Closing it would not do where another thread has just made a process, which has it open until it executes something.
        flock(&file, FlockOperation::Unlock)?;
        written.map(drop)
    }

    /// The file that grows, locked, and its length.
    fn open(&self) -> io::Result<(File, u64)> {
        let path = |number| rotated::path(&self.directory, NAME, number);
        loop {
            let mut options = OpenOptions::new();
            options.read(true).append(true).create(true).mode(0o600);
            let file = options.open(path(0))?;
            lock(&file)?;
            let metadata = file.metadata()?;
            if metadata.len() < FULL {
                return Ok((file, metadata.len()));
            }
            // A full one alone gets another name, which may have happened before this process had the lock.
            match fs::metadata(path(0)) {
                Ok(now) if rotated::is_same(&now, &metadata) => fs::rename(path(0), path(1))?,
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
}

impl Event {
    fn new(kind: &str, id: &str, action: &str) -> Self {
        let action = cut(action);
        Self {
            status: action.clone(),
            id: id.to_owned(),
            kind: kind.to_owned(),
            action,
            actor: Actor {
                id: id.to_owned(),
                attributes: BTreeMap::new(),
            },
            scope: "local".to_owned(),
            ..Self::default()
        }
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub fn time_ms(&self) -> u64 {
        u64::try_from(self.time_nano / 1_000_000).unwrap_or(0)
    }
}

/// The beginning of a value that is longer than is told.
fn cut(value: &str) -> String {
    value[..value.floor_char_boundary(MOST_VALUE)].to_owned()
}

fn lock(file: &File) -> io::Result<()> {
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(LOCK_TURN),
            locked => return Ok(locked?),
        }
    }
}

/// Whether a file has no line that was begun and not ended.
fn ends_with_line(file: &File, length: u64) -> io::Result<bool> {
    let mut last = [b'\n'];
    if let Some(position) = length.checked_sub(1) {
        file.read_exact_at(&mut last, position)?;
    }
    Ok(last == [b'\n'])
}

/// Hears of events, oldest first, and waits for more.
#[derive(Debug)]
pub struct Listener {
    changes: Watch,
    files: Files,
    /// Whether what there was when this was made has been read.
    is_live: bool,
}

impl Listener {
    /// Hears of all events that are kept and of those that come.
    ///
    /// # Errors
    /// The file system's, and inotify's.
    pub fn new(layout: &Layout) -> io::Result<Self> {
        Self::at(layout.run())
    }

    fn at(directory: &Path) -> io::Result<Self> {
        Ok(Self {
            // Before the files are opened, so that nothing is missed in between.
            changes: Watch::new(directory)?,
            files: Files::open(directory, NAME)?,
            is_live: false,
        })
    }

    /// The next event that there was before this was made; `None` where there are no more.
    ///
    /// # Errors
    /// The file system's.
    pub fn next_past(&mut self) -> io::Result<Option<Event>> {
        while !self.is_live {
            match self.files.next_known(next_line)? {
                Some(Some(event)) => return Ok(Some(event)),
                Some(None) => {}
                None => self.is_live = true,
            }
        }
        Ok(None)
    }

    /// The next event, whenever it was; `None` where there is none before `deadline`.
    ///
    /// # Errors
    /// The file system's.
    pub fn next(&mut self, deadline: Option<Instant>) -> io::Result<Option<Event>> {
        loop {
            match self.files.next(next_line)? {
                Some(Some(event)) => return Ok(Some(event)),
                Some(None) => continue,
                None => {}
            }
            if !rotated::wait(&mut [PollFd::new(&self.changes, PollFlags::IN)], deadline)? {
                return Ok(None);
            }
            self.changes.clear()?;
        }
    }
}

/// The next line: an event, or `None` for one that is none, because its writer was killed or is of another rvm.
fn next_line(file: &File) -> rotated::Read<Option<Event>> {
    let mut line = Vec::new();
    let length = BufReader::new(file).read_until(b'\n', &mut line)?;
    if !line.ends_with(b"\n") {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&line).ok(), length as u64)))
}

#[cfg(test)]
mod tests;
