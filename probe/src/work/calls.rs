//! System calls, one kind after the other, in nanoseconds for each.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{CpuSet, futex};

use super::{Measure, same, timed};

const GETPID: u64 = 100_000;
const OPEN: u64 = 20_000;
const READ: u64 = 50_000;
const WRITE: u64 = 50_000;
const SPAWN: u64 = 50;
const FUTEX: u64 = 5_000;
const PIPE: u64 = 5_000;
const PAGES: u64 = 16_384;
const PAGE: usize = 4096;

pub(super) fn measure() -> Result<Vec<Measure>> {
    Ok(vec![
        timed("getpid", GETPID, || Ok(getpid(GETPID)))?,
        timed("open-close", OPEN, || open_close(OPEN))?,
        timed("read", READ, || read(READ))?,
        timed("write", WRITE, || write(WRITE))?,
        timed("spawn", SPAWN, || spawn(SPAWN))?,
        timed("futex", FUTEX, || futex_turns(FUTEX))?,
        timed("pipe", PIPE, || pipe_turns(PIPE))?,
        page_faults()?,
    ])
}

/// The process' own number, asked of the kernel each time.
pub(super) fn getpid(times: u64) -> u64 {
    let own = rustix::process::getpid();
    (0..times).map(|_| same(&rustix::process::getpid(), &own)).sum()
}

/// A device that is in every container is opened and closed.
pub(super) fn open_close(times: u64) -> Result<u64> {
    let mut opened = 0;
    for _ in 0..times {
        let file: OwnedFd = rustix::fs::open("/dev/zero", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        drop(file);
        opened += 1;
    }
    Ok(opened)
}

/// One byte for each call, which is zero.
pub(super) fn read(times: u64) -> Result<u64> {
    let file = File::open("/dev/zero")?;
    let mut right = 0;
    for _ in 0..times {
        let mut byte = [1];
        right += same(&(rustix::io::read(&file, &mut byte)?, byte), &(1, [0]));
    }
    Ok(right)
}

/// One byte for each call.
pub(super) fn write(times: u64) -> Result<u64> {
    let file = File::options().write(true).open("/dev/null")?;
    let mut written = 0;
    for _ in 0..times {
        written += same(&rustix::io::write(&file, b"x")?, &1);
    }
    Ok(written)
}

/// A process is made, executes this program, and is waited for.
pub(super) fn spawn(times: u64) -> Result<u64> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut ended = 0;
    for _ in 0..times {
        let status = Command::new(&program)
            .args(["work", "end"])
            .stdin(Stdio::null())
            .status()?;
        ended += u64::from(status.success());
    }
    Ok(ended)
}

/// Two threads wake each other in turn: a turn is there and back.
pub(super) fn futex_turns(turns: u64) -> Result<u64> {
    let word = Arc::new(AtomicU32::new(0));
    let other = Arc::clone(&word);
    let partner = thread::spawn(move || -> Result<u64> {
        for _ in 0..turns {
            await_value(&other, 1)?;
            hand_over(&other, 0)?;
        }
        Ok(turns)
    });
    for _ in 0..turns {
        hand_over(&word, 1)?;
        await_value(&word, 0)?;
    }
    joined(partner.join())
}

fn hand_over(word: &AtomicU32, value: u32) -> Result<()> {
    word.store(value, Ordering::Release);
    futex::wake(word, futex::Flags::PRIVATE, 1)?;
    Ok(())
}

fn await_value(word: &AtomicU32, wanted: u32) -> Result<()> {
    loop {
        let now = word.load(Ordering::Acquire);
        if now == wanted {
            return Ok(());
        }
        match futex::wait(word, futex::Flags::PRIVATE, now, None) {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A byte goes through a pipe to another thread on the same processor, and back through another: two context switches for
/// each turn.
pub(super) fn pipe_turns(turns: u64) -> Result<u64> {
    let (mut there, mut sent) = std::io::pipe()?;
    let (mut back, mut answered) = std::io::pipe()?;
    let before = rustix::thread::sched_getaffinity(None)?;
    rustix::thread::sched_setaffinity(None, &first_of(&before)?)?;
    // Born where this thread may run.
    let partner = thread::spawn(move || -> Result<u64> {
        let mut byte = [0];
        for _ in 0..turns {
            there.read_exact(&mut byte)?;
            answered.write_all(&byte.map(|byte: u8| byte.wrapping_add(1)))?;
        }
        Ok(turns)
    });
    let mut byte = [0];
    for _ in 0..turns {
        sent.write_all(&byte)?;
        let expected = byte.map(|byte: u8| byte.wrapping_add(1));
        back.read_exact(&mut byte)?;
        ensure!(byte == expected, "a pipe gave another byte than was written");
    }
    rustix::thread::sched_setaffinity(None, &before)?;
    joined(partner.join())
}

/// The first of these processors.
fn first_of(set: &CpuSet) -> Result<CpuSet> {
    let first = (0..CpuSet::MAX_CPU).find(|cpu| set.is_set(*cpu));
    let mut only = CpuSet::new();
    only.set(first.context("there is no processor")?);
    Ok(only)
}

fn joined(result: thread::Result<Result<u64>>) -> Result<u64> {
    match result {
        Ok(result) => result,
        Err(_) => bail!("a thread has failed"),
    }
}

/// Pages that were never touched are: the allocator maps them anew for so many bytes, and nothing is behind them before.
fn page_faults() -> Result<Measure> {
    let bytes = usize::try_from(PAGES)? * PAGE;
    timed("page-fault", PAGES, || Ok(touch(bytes)))
}

pub(super) fn touch(bytes: usize) -> u64 {
    let mut pages = vec![0_u8; bytes];
    for byte in pages.iter_mut().step_by(PAGE) {
        *byte = 1;
    }
    pages.iter().step_by(PAGE).map(|byte| u64::from(*byte)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_does_what_it_says() {
        assert_eq!(getpid(10), 10);
        assert_eq!(open_close(10).unwrap(), 10);
        assert_eq!(read(10).unwrap(), 10);
        assert_eq!(write(10).unwrap(), 10);
        assert_eq!(futex_turns(100).unwrap(), 100);
        assert_eq!(pipe_turns(300).unwrap(), 300);
        assert_eq!(touch(10 * PAGE), 10);
    }
}
