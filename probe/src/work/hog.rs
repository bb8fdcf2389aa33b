//! Memory of an exact size, held as long as it is wanted, and files of an exact size, read.

use std::fs::File;
use std::io::{BufRead as _, Read as _, Write as _};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

const PAGE: usize = 4096;

/// What is written and read at once.
const PIECE: usize = 1 << 20;

/// In the root of the container, with which it goes.
const FILE: &str = "/.rvm-hog";

/// What it holds now.
#[derive(Serialize)]
struct Holding {
    work: &'static str,
    bytes: usize,
    /// The sum of the first byte of each page.
    check: u64,
}

/// Takes `bytes`, writes to all of them, and tells so; `free` on a line gives them back, `read BYTES` makes a file of that size, reads
/// it and tells what it has read, and the end of standard input is the end.
pub(super) fn run(bytes: usize) -> Result<()> {
    let mut held = filled(bytes);
    tell(&held)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if let Some(size) = line.strip_prefix("read ") {
            let size = size.parse().context("no number of bytes")?;
            crate::print(&read(FILE, size)?)?;
            continue;
        }
        match line.as_str() {
            "free" => held = Vec::new(),
            "take" => held = filled(bytes),
            other => bail!("neither free, take nor read: {other:?}"),
        }
        tell(&held)?;
    }
    Ok(())
}

/// No two pages are alike, so that nothing can keep them as one.
fn filled(bytes: usize) -> Vec<u8> {
    let mut held = vec![0; bytes];
    for (number, page) in held.chunks_mut(PAGE).enumerate() {
        page.fill(1);
        let mark = number.to_le_bytes();
        if let Some(place) = page.get_mut(8..16) {
            place.copy_from_slice(&mark);
        }
    }
    held
}

/// Writes a file, waits until the disk has it, and reads it, a piece at a time.
fn read(path: &str, bytes: usize) -> Result<Holding> {
    let mut file = File::create(path)?;
    let mut piece = filled(PIECE.min(bytes));
    let mut left = bytes;
    while left > 0 {
        let length = left.min(PIECE);
        file.write_all(piece.get(..length).unwrap_or_default())?;
        left -= length;
    }
    file.sync_all()?;
    let mut file = File::open(path)?;
    let (mut found, mut check) = (0, 0);
    loop {
        let length = file.read(&mut piece)?;
        if length == 0 {
            break;
        }
        let read = piece.get(..length).unwrap_or_default();
        check += read
            .iter()
            .step_by(PAGE)
            .map(|byte| u64::from(*byte))
            .sum::<u64>();
        found += length;
    }
    Ok(Holding {
        work: "hog",
        bytes: found,
        check,
    })
}

fn tell(held: &[u8]) -> Result<()> {
    crate::print(&Holding {
        work: "hog",
        bytes: held.len(),
        check: held.iter().step_by(PAGE).map(|byte| u64::from(*byte)).sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let bytes = 2 * PIECE + 3 * PAGE;
        let read = read(path.to_str().unwrap(), bytes).unwrap();
        assert_eq!((read.bytes, read.check), (bytes, 512 + 3));
    }

    #[test]
    fn pages_differ() {
        let held = filled(3 * PAGE);
        let pages: Vec<_> = held.chunks(PAGE).collect();
        assert_ne!(pages[0], pages[1]);
        assert_ne!(pages[1], pages[2]);
        assert!(pages.iter().all(|page| page[0] == 1));
        assert!(filled(0).is_empty());
    }
}
