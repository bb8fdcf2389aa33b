//! Memory of an exact size, held as long as it is wanted.

use std::io::BufRead as _;

use anyhow::{Result, bail};
use serde::Serialize;

const PAGE: usize = 4096;

/// What it holds now.
#[derive(Serialize)]
struct Holding {
    work: &'static str,
    bytes: usize,
    /// The sum of the first byte of each page.
    check: u64,
}

/// Takes `bytes`, writes to all of them, and tells so; `free` on a line gives them back, and the end of standard input is
/// the end.
pub(super) fn run(bytes: usize) -> Result<()> {
    let mut held = filled(bytes);
    tell(&held)?;
    for line in std::io::stdin().lock().lines() {
        match line?.as_str() {
            "free" => held = Vec::new(),
            "take" => held = filled(bytes),
            other => bail!("neither free nor take: {other:?}"),
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
    fn pages_differ() {
        let held = filled(3 * PAGE);
        let pages: Vec<_> = held.chunks(PAGE).collect();
        assert_ne!(pages[0], pages[1]);
        assert_ne!(pages[1], pages[2]);
        assert!(pages.iter().all(|page| page[0] == 1));
        assert!(filled(0).is_empty());
    }
}
