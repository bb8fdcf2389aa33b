//! Locks of files, `flock` and `fcntl`, taken on the host for a guest: so they hold between guests, and between a guest and
//! what runs on the host.
//!
//! The guest's kernel names who holds a lock by a number: the processes that share descriptors, or an open file. Each of
//! them has an open file description of its own here for each file that it locks. Its locks are those of the description
//! (`F_OFD_SETLK`, fcntl(2)), so that two of them are in each other's way as two programs are, and that all of one's go when the
//! description is closed.
//!
//! A request that waits for a lock is kept, and tried again by a thread of its own until it succeeds: the threads that serve
//! others must not wait for them. Who waits for whom is not looked at, so there is no `EDEADLK`.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::sys::{self, Range};

/// Requests that wait for locks. Each takes room of the driver's queue, of which others must have enough: one that reads 32
/// pages has 35 descriptors of 128.
const MOST_WAITING: usize = 16;

/// Time between two tries.
const TURN: Duration = Duration::from_millis(20);

/// The whole file is locked, not a range of it (`FUSE_LK_FLOCK`).
const WHOLE: u32 = 1;

/// A file's last byte, as far as locks go.
const END: u64 = i64::MAX.cast_unsigned();

/// Who holds locks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Holder {
    node: u64,
    owner: u64,
    whole: bool,
}

/// A request about a lock (`struct fuse_lk_in`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    holder: Holder,
    handle: u64,
    range: Range,
}

impl Asked {
    /// Reads the body of a request about a file; `None` for a range that there is not.
    pub(crate) fn parse(node: u64, body: &[u8]) -> Option<Self> {
        let long = |at: usize| Some(u64::from_le_bytes(*body.get(at..)?.first_chunk()?));
        let word = |at: usize| Some(u32::from_le_bytes(*body.get(at..)?.first_chunk()?));
        let (start, end) = (long(16)?, long(24)?.min(END));
        let kind = i16::try_from(word(32)?).ok()?;
        if start > end || ![libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK].contains(&libc::c_int::from(kind)) {
            return None;
        }
        let length = if end == END { 0 } else { end - start + 1 };
        Some(Self {
            holder: Holder {
                node,
                owner: long(8)?,
                whole: word(40)? & WHOLE != 0,
            },
            handle: long(0)?,
            range: Range {
                kind,
                start: i64::try_from(start).ok()?,
                length: i64::try_from(length).ok()?,
            },
        })
    }

    fn is_release(&self) -> bool {
        libc::c_int::from(self.range.kind) == libc::F_UNLCK
    }

    /// Whether it succeeds now.
    fn take(&self, file: &File) -> io::Result<bool> {
        let taken = if self.holder.whole {
            let operation = match libc::c_int::from(self.range.kind) {
                libc::F_RDLCK => FlockOperation::NonBlockingLockShared,
                libc::F_WRLCK => FlockOperation::NonBlockingLockExclusive,
                _ => FlockOperation::NonBlockingUnlock,
            };
            flock(file, operation).map_err(io::Error::from)
        } else {
            sys::lock_range(file.as_fd(), &self.range)
        };
        match taken {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The locks of one driver.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Table {
    holders: HashMap<Holder, Held>,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Held {
    file: Arc<File>,
    /// The driver's open file by which it was locked last.
    handle: u64,
}

#[derive(Debug)]
struct Waiting {
    /// The slot of the request.
    slot: u8,
    asked: Asked,
    file: Arc<File>,
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is to be answered with this error number, or 0.
    Answer(i32),
    /// It is answered later.
    Later,
}

impl Locks {
    /// Takes or gives back a lock. `open` opens the file; with `waits` the request is kept where somebody else has the lock.
    pub(crate) fn set(
        &self,
        (slot, asked): (u8, Asked),
        waits: bool,
        open: impl FnOnce() -> io::Result<File>,
    ) -> Outcome {
        let known = self
            .table()
            .holders
            .get(&asked.holder)
            .map(|held| held.file.clone());
        let file = match known {
            Some(file) => file,
            None if asked.is_release() => return Outcome::Answer(0),
            None => match open() {
                Ok(file) => Arc::new(file),
                Err(error) => return Outcome::Answer(number(&error)),
            },
        };
        let mut table = self.table();
        let file = table
            .holders
            .get(&asked.holder)
            .map_or(file, |held| held.file.clone());
        match asked.take(&file) {
            Ok(true) => {
                table.hold(&asked, file);
                self.tell(&table);
                Outcome::Answer(0)
            }
            Ok(false) if !waits => Outcome::Answer(libc::EAGAIN),
            Ok(false) if table.waiting.len() >= MOST_WAITING => Outcome::Answer(libc::ENOLCK),
            Ok(false) => {
                table.waiting.push(Waiting { slot, asked, file });
                self.tell(&table);
                Outcome::Later
            }
            Err(error) => Outcome::Answer(number(&error)),
        }
    }

    /// Finds out who has a lock that is in the way of one; the body of the answer (`struct fuse_lk_out`).
    pub(crate) fn test(
        &self,
        asked: &Asked,
        open: impl FnOnce() -> io::Result<File>,
    ) -> Result<[u8; 24], i32> {
        let known = self
            .table()
            .holders
            .get(&asked.holder)
            .map(|held| held.file.clone());
        let file = match known {
            Some(file) => file,
            None => Arc::new(open().map_err(|error| number(&error))?),
        };
        let (found, pid) = sys::test_range(file.as_fd(), &asked.range).map_err(|error| number(&error))?;
        let start = found.start.cast_unsigned();
        let end = match found.length {
            0 => END,
            length => start.saturating_add(length.cast_unsigned()).saturating_sub(1),
        };
        let mut body = [0; 24];
        let kind = u32::from(found.kind.cast_unsigned());
        // Processes of the host, and those of other guests, have no number here.
        let pid = u32::try_from(pid).unwrap_or_default();
        let fields = [
            start.to_le_bytes(),
            end.to_le_bytes(),
            (u64::from(pid) << 32 | u64::from(kind)).to_le_bytes(),
        ];
        for (space, field) in body.chunks_exact_mut(8).zip(fields) {
            space.copy_from_slice(&field);
        }
        Ok(body)
    }

    /// Somebody has closed a file: all ranges that they have locked of it are free (fcntl(2)).
    pub(crate) fn close(&self, node: u64, owner: u64) {
        let whole = false;
        let mut table = self.table();
        table.holders.remove(&Holder { node, owner, whole });
        self.tell(&table);
    }

    /// Nobody has this open file any more: what was locked by it is free.
    pub(crate) fn release(&self, node: u64, handle: u64) {
        let mut table = self.table();
        table
            .holders
            .retain(|holder, held| holder.node != node || held.handle != handle);
        self.tell(&table);
    }

    /// Forgets everything; the answer is the slots of requests that have waited.
    pub(crate) fn clear(&self) -> Vec<u8> {
        let Table { waiting, .. } = std::mem::take(&mut *self.table());
        waiting.into_iter().map(|waiting| waiting.slot).collect()
    }

    /// Serves requests that wait, and has them answered, as long as that works.
    pub(crate) fn serve<E>(&self, answer: impl Fn(u8, i32) -> Result<(), E>) -> E {
        let mut table = self.table();
        loop {
            while table.waiting.is_empty() {
                table = self.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
            }
            let done = table.try_all();
            drop(table);
            for (slot, error) in done {
                if let Err(error) = answer(slot, error) {
                    return error;
                }
            }
            let waited = self.changed.wait_timeout(self.table(), TURN);
            table = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Has requests that wait tried again. Files are closed far more often than locks are waited for, and then nobody is woken.
    fn tell(&self, table: &Table) {
        if !table.waiting.is_empty() {
            self.changed.notify_all();
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // A panic ends the process.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn hold(&mut self, asked: &Asked, file: Arc<File>) {
        let handle = asked.handle;
        self.holders.insert(asked.holder, Held { file, handle });
    }

    /// Tries everything that waits, in the order in which it came.
    fn try_all(&mut self) -> Vec<(u8, i32)> {
        let mut done = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            // It may have got another lock of this file meanwhile.
            let held = self.holders.get(&waiting.asked.holder);
            let file = held.map_or_else(|| waiting.file.clone(), |held| held.file.clone());
            match waiting.asked.take(&file) {
                Ok(true) => {
                    self.hold(&waiting.asked, file);
                    done.push((waiting.slot, 0));
                }
                Ok(false) => self.waiting.push(waiting),
                Err(error) => done.push((waiting.slot, number(&error))),
            }
        }
        done
    }
}

fn number(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn asked(owner: u64, kind: i32, range: (u64, u64), whole: bool) -> Asked {
        let mut body = Vec::new();
        for long in [owner + 100, owner, range.0, range.1] {
            body.extend(long.to_le_bytes());
        }
        for word in [kind.cast_unsigned(), 0, u32::from(whole), 0] {
            body.extend(word.to_le_bytes());
        }
        Asked::parse(7, &body).unwrap()
    }

    fn check(locks: &Locks, file: &std::path::Path, asked: Asked, expected: i32) {
        let open = || File::options().read(true).write(true).open(file);
        assert_eq!(
            locks.set((1, asked), false, open),
            Outcome::Answer(expected),
            "{asked:?}"
        );
    }

    #[test]
    fn guests_are_in_each_other_s_way() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (one, two) = (Locks::default(), Locks::default());
        let (read, write, free) = (libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK);
        for whole in [false, true] {
            let all = (0, END);
            check(&one, file.path(), asked(1, read, all, whole), 0);
            check(&one, file.path(), asked(2, read, all, whole), 0);
            check(&two, file.path(), asked(1, write, all, whole), libc::EAGAIN);
            check(&one, file.path(), asked(1, free, all, whole), 0);
            check(&one, file.path(), asked(2, free, all, whole), 0);
            check(&two, file.path(), asked(1, write, all, whole), 0);
            check(&one, file.path(), asked(2, read, all, whole), libc::EAGAIN);
            two.release(7, 101);
            check(&one, file.path(), asked(2, write, all, whole), 0);
            one.release(7, 102);
        }
        // Ranges beside each other are not, and all of them go with a closed file.
        check(&one, file.path(), asked(1, write, (0, 9), false), 0);
        check(&two, file.path(), asked(1, write, (10, 19), false), 0);
        check(&two, file.path(), asked(1, write, (9, 9), false), libc::EAGAIN);
        let open = || File::open(file.path());
        let found = two.test(&asked(1, read, (0, END), false), open).unwrap();
        assert_eq!(found[..8], 0_u64.to_le_bytes());
        assert_eq!(found[8..16], 9_u64.to_le_bytes());
        assert_eq!(found[16..20], write.to_le_bytes());
        one.close(7, 1);
        check(&two, file.path(), asked(1, write, (0, END), false), 0);
        assert_eq!(two.clear(), [0; 0]);
        check(&one, file.path(), asked(1, write, (0, END), false), 0);
    }

    #[test]
    fn a_lock_is_waited_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let locks = Locks::default();
        let open = || File::options().read(true).write(true).open(file.path());
        let take = |slot: u8, owner: u8| {
            let asked = asked(owner.into(), libc::F_WRLCK, (0, END), false);
            locks.set((slot, asked), true, open)
        };
        assert_eq!(take(1, 1), Outcome::Answer(0));
        for slot in 2..2 + u8::try_from(MOST_WAITING).unwrap() {
            assert_eq!(take(slot, slot), Outcome::Later);
        }
        assert_eq!(take(100, 100), Outcome::Answer(libc::ENOLCK));
        let (sender, answers) = mpsc::sync_channel(0);
        std::thread::scope(|scope| {
            let locks = &locks;
            scope.spawn(move || locks.serve(|slot, error| sender.send((slot, error)).map_err(drop)));
            locks.close(7, 1);
            assert_eq!(answers.recv(), Ok((2, 0)));
            locks.close(7, 2);
            assert_eq!(answers.recv(), Ok((3, 0)));
            drop(answers);
            locks.close(7, 3);
        });
    }

    #[test]
    fn nonsense_is_no_lock() {
        let body = |start: u64, end: u64, kind: u32| {
            let mut body = vec![0; 16];
            body.extend(start.to_le_bytes());
            body.extend(end.to_le_bytes());
            body.extend(kind.to_le_bytes());
            body.extend([0; 12]);
            body
        };
        assert!(Asked::parse(1, &body(0, u64::MAX, 0)).is_some());
        for body in [
            body(1, 0, 0),
            body(u64::MAX, u64::MAX, 0),
            body(0, 1, 3),
            body(0, 1, 1 << 16),
        ] {
            assert!(Asked::parse(1, &body).is_none(), "{body:?}");
        }
    }
}
