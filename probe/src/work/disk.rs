//! A file system: throughput, latency and names, in a directory that is removed at the end.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::OFlags;

use super::{Measure, timed};

/// Bytes of the file that is written and read, where all of the work is done.
const BYTES: u64 = 64 << 20;
const LARGE: usize = 128 << 10;
const SMALL: usize = 4 << 10;
/// Blocks that are read and written at random.
const RANDOM: u64 = 1000;
/// As many of those are on their way at once, each by a thread of its own.
const DEPTH: usize = 32;
/// Small writes, each of which is waited for.
const SYNCS: u64 = 100;
const FILES: u64 = 1000;
/// Directories in a directory, and files in each of those, of a tree with as many files.
const BRANCHES: u64 = 5;

/// What `O_DIRECT` requires of a buffer at most.
const ALIGNMENT: usize = 4096;

const CACHED: &str = "this file system takes no direct access: random blocks come from the page cache";

/// How much is done: one part in so many of everything.
#[derive(Clone, Copy)]
pub(super) struct Amounts {
    bytes: u64,
    random: u64,
    syncs: u64,
    files: u64,
}

impl Amounts {
    /// One of so many parts of all of it; as many as all amounts can be divided into.
    pub(super) fn part_of(parts: u64) -> Result<Self> {
        ensure!(
            matches!(parts, 1 | 2 | 4),
            "there are no {parts} parts of this work"
        );
        Ok(Self {
            bytes: BYTES / parts,
            random: RANDOM / parts,
            syncs: SYNCS / parts,
            files: FILES / parts,
        })
    }

    /// The same blocks in each run, without one twice: steps by a number that has no factor in common with theirs.
    fn chosen(self) -> Result<Numbers> {
        let blocks = self.bytes / small()?;
        Ok((0..self.random).map(|turn| (turn * 7919 + 13) % blocks).collect())
    }
}

/// Removed with all that is in it, whichever way the work ends.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        // The container goes as well.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The measures, and what has to be known of them.
pub(super) fn measure(directory: &str, amounts: Amounts) -> Result<(Vec<Measure>, Option<&'static str>)> {
    let directory = Directory(Path::new(directory).join(".rvm-disk"));
    fs::create_dir(&directory.0).with_context(|| format!("cannot make {}", directory.0.display()))?;
    let path = directory.0.join("file");
    let mut measures = vec![timed("write-128k", amounts.bytes, || {
        write_all(&path, amounts.bytes)
    })?];
    forget(&path)?;
    measures.push(timed("read-128k", amounts.bytes, || {
        read_all(&path, amounts.bytes)
    })?);
    let (file, note) = open_direct(&path)?;
    for (id, depth) in [("random-read-4k", 1), ("random-read-4k-32", DEPTH)] {
        measures.push(timed(id, amounts.random, || {
            at_once(amounts, depth, |turns| random_read(&file, turns))
        })?);
    }
    for (id, depth) in [("random-write-4k", 1), ("random-write-4k-32", DEPTH)] {
        measures.push(timed(id, amounts.random, || {
            at_once(amounts, depth, |turns| random_write(&file, turns))
        })?);
    }
    drop(file);
    measures.push(timed("fsync", amounts.syncs, || {
        syncs(&directory.0.join("journal"), amounts.syncs)
    })?);
    measures.extend(names(&directory.0, amounts.files)?);
    measures.push(tree(&directory.0.join("tree"), amounts.files)?);
    Ok((measures, note))
}

/// A buffer in which every 8 bytes hold the number of their block: what is read back can be told from anything else.
struct Block {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Block {
    fn new(length: usize) -> Self {
        let bytes = vec![0; length + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { bytes, start, length }
    }

    fn content(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }

    fn fill(&mut self, number: u64) -> &[u8] {
        for word in self.content().chunks_exact_mut(8) {
            word.copy_from_slice(&number.to_le_bytes());
        }
        self.content()
    }

    /// Whether all of it is of that block.
    fn holds(&mut self, number: u64) -> bool {
        self.content()
            .chunks_exact(8)
            .all(|word| word == number.to_le_bytes())
    }
}

fn small() -> Result<u64> {
    Ok(u64::try_from(SMALL)?)
}

/// In blocks of 128 KiB, numbered by the 4 KiB, and waited for at the end. The sum is of what was written.
fn write_all(path: &Path, bytes: u64) -> Result<u64> {
    let mut file = File::create(path)?;
    let (small, mut written, mut number) = (small()?, 0, 0);
    let (mut large, mut block) = (Vec::with_capacity(LARGE), Block::new(SMALL));
    while written < bytes {
        large.clear();
        while large.len() < LARGE {
            large.extend_from_slice(block.fill(number));
            number += 1;
        }
        file.write_all(&large)?;
        written += u64::try_from(large.len())?;
    }
    file.sync_all()?;
    ensure!(number == bytes / small, "{number} blocks were written");
    Ok(number)
}

/// Lets the kernel that this runs on forget the file's pages.
fn forget(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

/// The number of blocks that hold what they should.
fn read_all(path: &Path, bytes: u64) -> Result<u64> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; LARGE];
    let (mut number, mut right) = (0_u64, 0);
    for _ in 0..bytes / u64::try_from(LARGE)? {
        file.read_exact(&mut buffer)?;
        for block in buffer.chunks(SMALL) {
            let word = number.to_le_bytes();
            right += u64::from(block.starts_with(&word) && block.ends_with(&word));
            number += 1;
        }
    }
    Ok(right)
}

/// Past the page cache, where the file system does that.
fn open_direct(path: &Path) -> Result<(File, Option<&'static str>)> {
    let open = |flags: OFlags| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(i32::try_from(flags.bits()).map_err(io::Error::other)?)
            .open(path)
    };
    match open(OFlags::DIRECT) {
        Ok(file) => Ok((file, None)),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
            Ok((open(OFlags::empty())?, Some(CACHED)))
        }
        Err(error) => Err(error.into()),
    }
}

type Numbers = Vec<u64>;

/// Shares the chosen blocks out to so many threads, and sums what each comes to.
fn at_once(amounts: Amounts, depth: usize, work: impl Fn(Numbers) -> Result<u64> + Sync) -> Result<u64> {
    let all = amounts.chosen()?;
    thread::scope(|scope| {
        let share = |first: usize| all.iter().skip(first).step_by(depth).copied().collect();
        let threads: Vec<_> = (0..depth)
            .map(|first| {
                let (numbers, work): (Numbers, _) = (share(first), &work);
                thread::Builder::new().spawn_scoped(scope, move || work(numbers))
            })
            .collect::<io::Result<_>>()?;
        // A panic aborts the process, so joining cannot fail.
        threads.into_iter().filter_map(|thread| thread.join().ok()).sum()
    })
}

fn random_read(file: &File, numbers: Numbers) -> Result<u64> {
    let (small, mut block, mut right) = (small()?, Block::new(SMALL), 0);
    for number in numbers {
        file.read_exact_at(block.content(), number * small)?;
        right += u64::from(block.holds(number));
    }
    Ok(right)
}

fn random_write(file: &File, numbers: Numbers) -> Result<u64> {
    let (small, mut block) = (small()?, Block::new(SMALL));
    let count = numbers.len();
    for number in numbers {
        file.write_all_at(block.fill(number), number * small)?;
    }
    Ok(u64::try_from(count)?)
}

/// Each waits until what it has appended is on the disk.
fn syncs(path: &Path, count: u64) -> Result<u64> {
    let mut file = File::create(path)?;
    let mut block = Block::new(SMALL);
    for number in 0..count {
        file.write_all(block.fill(number))?;
        file.sync_data()?;
    }
    Ok(file.metadata()?.len() / small()?)
}

/// Small files: made, looked at, looked for in vain, and removed.
fn names(directory: &Path, files: u64) -> Result<Vec<Measure>> {
    let directory = directory.join("names");
    fs::create_dir(&directory)?;
    let path = |number: u64| directory.join(format!("file-{number}"));
    let create = timed("create", files, || {
        for number in 0..files {
            File::create_new(path(number))?;
        }
        Ok(u64::try_from(fs::read_dir(&directory)?.count())?)
    })?;
    let stat = timed("stat", files, || {
        Ok((0..files)
            .map(|number| u64::from(fs::metadata(path(number)).is_ok_and(|file| file.len() == 0)))
            .sum())
    })?;
    let absent = |number: u64| {
        let missing = directory.join(format!("absent-{number}"));
        fs::metadata(missing).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    let lookup = timed("stat-absent", files, || {
        Ok((0..files).map(|number| u64::from(absent(number))).sum())
    })?;
    let unlink = timed("unlink", files, || {
        for number in 0..files {
            fs::remove_file(path(number))?;
        }
        Ok(files - u64::try_from(fs::read_dir(&directory)?.count())?)
    })?;
    Ok(vec![create, stat, lookup, unlink])
}

/// Directories of directories of files: each is listed, and each file looked at.
fn tree(root: &Path, files: u64) -> Result<Measure> {
    for branch in 0..BRANCHES {
        for twig in 0..BRANCHES {
            let directory = root.join(branch.to_string()).join(twig.to_string());
            fs::create_dir_all(&directory)?;
            for leaf in 0..files / BRANCHES / BRANCHES {
                File::create_new(directory.join(leaf.to_string()))?;
            }
        }
    }
    timed("stat-tree", files, || files_below(root))
}

fn files_below(directory: &Path) -> Result<u64> {
    let mut files = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        files += match entry.metadata()? {
            found if found.is_dir() => files_below(&entry.path())?,
            found => u64::from(found.is_file() && found.len() == 0),
        };
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_told_apart() {
        let mut block = Block::new(SMALL);
        assert_eq!(block.fill(7).as_ptr().align_offset(ALIGNMENT), 0);
        assert!(block.holds(7) && !block.holds(8));
        block.content()[SMALL - 1] = 1;
        assert!(!block.holds(7));
    }

    #[test]
    fn blocks_are_shared_out_and_none_is_left_out() {
        let amounts = Amounts::part_of(1).unwrap();
        let counted = |depth| at_once(amounts, depth, |numbers| Ok(numbers.iter().sum()));
        let all: u64 = amounts.chosen().unwrap().iter().sum();
        assert_eq!((counted(1).unwrap(), counted(DEPTH).unwrap()), (all, all));
        assert!(at_once(amounts, DEPTH, |numbers| Ok(u64::try_from(numbers.len())?)).unwrap() == RANDOM);
        assert!(at_once(amounts, 2, |_| anyhow::bail!("no")).is_err());
    }

    #[test]
    fn every_file_of_a_tree_is_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        for parts in [1, 2, 4] {
            let files = Amounts::part_of(parts).unwrap().files;
            let measure = tree(&directory.path().join("tree"), files).unwrap();
            assert_eq!(
                (measure.operations, measure.check),
                (FILES / parts, FILES / parts)
            );
            fs::remove_dir_all(directory.path().join("tree")).unwrap();
        }
        assert!(Amounts::part_of(3).is_err());
        tree(&directory.path().join("tree"), FILES).unwrap();
        File::create(directory.path().join("tree/3/4/more")).unwrap();
        assert_eq!(files_below(directory.path()).unwrap(), FILES + 1);
    }

    #[test]
    fn no_block_is_chosen_twice() {
        for parts in [1, 2, 4] {
            let mut numbers = Amounts::part_of(parts).unwrap().chosen().unwrap();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(u64::try_from(numbers.len()).unwrap(), RANDOM / parts);
        }
    }
}
