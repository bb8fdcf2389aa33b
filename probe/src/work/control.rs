//! A fixed piece of work on the host, which says what the machine itself did while something else was measured: what starting
//! and running containers is made of, in small.

use std::fs::File;
use std::hint::black_box;
use std::io::Write as _;
use std::os::fd::AsFd as _;

use anyhow::{Result, ensure};

use super::{calls, cpu};

const STEPS: u64 = 1_000_000;
const TIMES: u64 = 1000;
const PROCESSES: u64 = 5;
const BYTES: usize = 8 << 20;

const LARGE: usize = 128 << 10;
const SMALL: usize = 4 << 10;
const WRITES: u64 = 128;
const SYNCS: u64 = 100;

/// Computes, calls the kernel, starts processes and touches memory; prints the sum of what came of it.
pub(super) fn run() -> Result<()> {
    let mut sum = cpu::compute(black_box(STEPS));
    for done in [
        calls::getpid(TIMES),
        calls::open_close(2 * TIMES)?,
        calls::spawn(PROCESSES)?,
        calls::touch(BYTES),
    ] {
        sum = sum.wrapping_add(done);
    }
    println!("{sum}");
    Ok(())
}

/// Writes to the file that is its input, and waits for the disk.
pub(super) fn run_on_disk() -> Result<()> {
    let mut file = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    for _ in 0..WRITES {
        file.write_all(&vec![1; LARGE])?;
    }
    file.sync_all()?;
    for _ in 0..SYNCS {
        file.write_all(&[2; SMALL])?;
        file.sync_data()?;
    }
    let bytes = WRITES * u64::try_from(LARGE)? + SYNCS * u64::try_from(SMALL)?;
    ensure!(file.metadata()?.len() == bytes, "the file has another length");
    println!("{}", WRITES + SYNCS);
    Ok(())
}
