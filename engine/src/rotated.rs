//! Files that are read while others write and rename them: `NAME` grows; once it is full it becomes `NAME.1`, what had that
//! name `NAME.2`, and so on, the greatest number the oldest.

use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::event::{PollFd, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;

/// The path of one of the files: 0 is the one that grows, a greater number an older one.
pub(crate) fn path(directory: &Path, name: &str, number: u32) -> PathBuf {
    directory.join(match number {
        0 => name.to_owned(),
        number => format!("{name}.{number}"),
    })
}

/// Whether two files are one.
pub(crate) fn is_same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// All files of one name, read one after the other.
#[derive(Debug)]
pub(crate) struct Files {
    directory: PathBuf,
    name: &'static str,
    /// Oldest first; a file stays readable when it has lost its name.
    files: Vec<File>,
    /// The file that is read; beyond the last where there is none yet.
    current: usize,
    /// Where the next record of it begins.
    position: u64,
}

impl Files {
    /// Opens those that there are, at their beginning.
    ///
    /// # Errors
    /// Any of the file system's but the absence of files.
    pub(crate) fn open(directory: &Path, name: &'static str) -> io::Result<Self> {
        let mut files = Self {
            directory: directory.to_owned(),
            name,
            files: Vec::new(),
            current: 0,
            position: 0,
        };
        while let Some(file) = files.successor()? {
            files.files.push(file);
        }
        Ok(files)
    }

    /// Goes back to the beginning of what [`Files::next_known`] reads.
    pub(crate) fn rewind(&mut self) {
        (self.current, self.position) = (0, 0);
    }

    /// The next record, oldest first, of the files that were there when this was opened. `read` is given a file at the
    /// beginning of a record and returns it with its length, or `None` where the file has no whole one.
    ///
    /// # Errors
    /// Any of the file system's.
    pub(crate) fn next_known<T>(&mut self, read: impl Fn(&File) -> Read<T>) -> io::Result<Option<T>> {
        loop {
            let record = self.read_current(&read)?;
            if record.is_some() || self.current + 1 >= self.files.len() {
                return Ok(record);
            }
            self.current += 1;
            self.position = 0;
        }
    }

    /// The next record, oldest first; `None` where there is none yet. `read` is as for [`Files::next_known`].
    ///
    /// # Errors
    /// Any of the file system's.
    pub(crate) fn next<T>(&mut self, read: impl Fn(&File) -> Read<T>) -> io::Result<Option<T>> {
        loop {
            if let Some(record) = self.next_known(&read)? {
                return Ok(Some(record));
            }
            let Some(file) = self.successor()? else {
                return Ok(None);
            };
            // The next turn begins with the last file again: it may have got a record since, before it had a successor.
            self.files.drain(..self.current);
            self.current = 0;
            self.files.push(file);
        }
    }

    fn read_current<T>(&mut self, read: impl Fn(&File) -> Read<T>) -> io::Result<Option<T>> {
        let Some(mut file) = self.files.get(self.current) else {
            return Ok(None);
        };
        file.seek(SeekFrom::Start(self.position))?;
        Ok(read(file)?.map(|(record, length)| {
            self.position += length;
            record
        }))
    }

    fn path(&self, number: u32) -> PathBuf {
        path(&self.directory, self.name, number)
    }

    /// The file after the last one that is open, or the oldest where none is or it is gone.
    fn successor(&self) -> io::Result<Option<File>> {
        let last = self.files.last().map(File::metadata).transpose()?;
        loop {
            let (mut oldest, mut found) = (None, None);
            for number in 0.. {
                match fs::metadata(self.path(number)) {
                    Ok(metadata) => {
                        oldest = Some(number);
                        if last.as_ref().is_some_and(|last| is_same(last, &metadata)) {
                            found = Some(number);
                        }
                    }
                    // While files are renamed, a number may be free for a moment.
                    Err(error) if error.kind() == io::ErrorKind::NotFound && number > 0 => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            let next = match (found, oldest) {
                (Some(0), _) | (None, None) => return Ok(None),
                (Some(number), _) => number - 1,
                (None, Some(oldest)) => oldest,
            };
            match File::open(self.path(next)) {
                // The names may have moved on since they were looked at.
                Ok(file) if self.is_still(last.as_ref(), found)? => return Ok(Some(file)),
                // The one that grows is about to be made, unless its writer was killed.
                Err(error) if error.kind() == io::ErrorKind::NotFound && next == 0 => return Ok(None),
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }

    /// Whether a file has the number that it had.
    fn is_still(&self, file: Option<&fs::Metadata>, number: Option<u32>) -> io::Result<bool> {
        let (Some(file), Some(number)) = (file, number) else {
            return Ok(true);
        };
        match fs::metadata(self.path(number)) {
            Ok(now) => Ok(is_same(&now, file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A record and its length in the file.
pub(crate) type Read<T> = io::Result<Option<(T, u64)>>;

/// Notices that files of a directory grow or are renamed.
#[derive(Debug)]
pub(crate) struct Watch(OwnedFd);

impl Watch {
    /// Notices what happens from now on.
    ///
    /// # Errors
    /// The kernel's: it has a limit for each user.
    pub(crate) fn new(directory: &Path) -> io::Result<Self> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let changes =
            inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&watch, directory, changes)?;
        Ok(Self(watch))
    }

    /// Forgets what has been noticed. That there was something is all that counts.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn clear(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.0, &mut buffer);
        loop {
            match reader.next() {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Watch {
    /// Readable when there is something to be noticed.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of several descriptors is ready; `false` where none is before `deadline`.
///
/// # Errors
/// The kernel's.
pub(crate) fn wait(watched: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(Timespec::try_from).transpose().ok().flatten();
        match poll(watched, timeout.as_ref()) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
