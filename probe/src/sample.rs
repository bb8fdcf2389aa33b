//! A workload that is the same everywhere: what a small service does with files, memory, threads and processes. It is there for
//! others to count what it costs them.

use std::fs::{self, File};
use std::io::{BufRead as _, Read as _, Write as _};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, ensure};

/// Files that are made, read and removed.
const FILES: usize = 10;

/// Bytes of each.
const BYTES: usize = 64 << 10;

/// Says that it is ready, waits for a line of input, works, and says that it is done.
///
/// # Errors
/// Whatever cannot be done, or comes out wrong.
pub fn run() -> Result<()> {
    crate::print(&"ready")?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let directory = std::env::temp_dir().join(".rvm-probe-sample");
    fs::create_dir_all(&directory).context("cannot make a directory")?;
    let mut sum = 0_u64;
    for number in 0..FILES {
        let path = directory.join(number.to_string());
        let mut file = File::create(&path)?;
        file.write_all(&vec![1; BYTES])?;
        file.sync_data()?;
        let mut content = Vec::new();
        File::open(&path)?.read_to_end(&mut content)?;
        sum += content.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        fs::remove_file(path)?;
    }
    fs::remove_dir(directory)?;
    let expected = u64::try_from(FILES * BYTES)?;
    ensure!(sum == expected, "read {sum} and not {expected}");
    let counted = thread::spawn(|| (0..1_000_000_u64).sum::<u64>()).join();
    ensure!(
        counted.is_ok_and(|sum| sum == 499_999_500_000),
        "a thread counts otherwise"
    );
    let child = Command::new("/proc/self/exe")
        .arg("nothing")
        .stdout(Stdio::piped())
        .output()
        .context("cannot run another process")?;
    ensure!(child.status.success(), "another process has failed");
    crate::print(&"done")
}
