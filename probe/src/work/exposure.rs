//! A mixture of system calls, on demand, so that they can be counted from outside; and what is within reach.

use std::fs;
use std::io::BufRead as _;
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::calls;

/// How often each kind is called.
const TIMES: u64 = 1000;

/// How often where a call takes long.
const FEW: u64 = 10;

/// What is within reach from inside. Nothing of it is tried but opening for reading.
#[derive(Debug, Serialize)]
struct Reach {
    /// Capabilities that are in effect, as a mask.
    capabilities: String,
    /// Nodes in `/dev` that are devices.
    devices: u64,
    /// Files below `/proc`, but for those of processes, that can be opened.
    proc_files: u64,
    /// Likewise below `/sys`.
    sys_files: u64,
}

#[derive(Debug, Serialize)]
struct Done {
    work: &'static str,
    /// Calls of `getpid`, and one more.
    getpid: u64,
    check: u64,
}

/// Tells what is within reach; after a line of input makes the calls and tells so; ends with standard input.
pub(super) fn run() -> Result<()> {
    crate::print(&reach()?)?;
    for line in std::io::stdin().lock().lines() {
        line?;
        crate::print(&Done {
            work: "exposure",
            getpid: TIMES,
            check: mixture()?,
        })?;
    }
    Ok(())
}

fn mixture() -> Result<u64> {
    let mut done = calls::getpid(TIMES);
    done += calls::open_close(TIMES)?;
    done += calls::read(TIMES)?;
    done += calls::write(TIMES)?;
    done += calls::spawn(FEW)?;
    done += calls::futex_turns(FEW)?;
    done += calls::pipe_turns(FEW)?;
    done += calls::touch(1 << 20);
    done += files(FEW)?;
    done += connections(FEW)?;
    Ok(done)
}

fn files(times: u64) -> Result<u64> {
    let directory = Path::new("/.rvm-exposure");
    fs::create_dir(directory)?;
    let mut right = 0;
    for number in 0..times {
        let path = directory.join(number.to_string());
        fs::write(&path, b"text")?;
        right += u64::from(fs::read(&path)? == b"text" && fs::metadata(&path)?.len() == 4);
        fs::remove_file(&path)?;
    }
    fs::remove_dir(directory)?;
    Ok(right)
}

/// Over the loopback interface, which every container has.
fn connections(times: u64) -> Result<u64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    for _ in 0..times {
        let near = TcpStream::connect(address)?;
        let (far, _) = listener.accept()?;
        drop((near, far));
    }
    Ok(times)
}

fn reach() -> Result<Reach> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let capabilities = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .context("no capabilities in /proc/self/status")?;
    Ok(Reach {
        capabilities: capabilities.trim().to_owned(),
        devices: count(Path::new("/dev"), &mut |path| is_device(path)),
        proc_files: count_readable("/proc"),
        sys_files: count_readable("/sys"),
    })
}

fn is_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    fs::symlink_metadata(path)
        .is_ok_and(|metadata| metadata.file_type().is_char_device() || metadata.file_type().is_block_device())
}

fn count_readable(top: &str) -> u64 {
    count(Path::new(top), &mut |path| {
        // Some files of the kernel's wait until there is something to read; they are opened, not read.
        rustix::fs::open(
            path,
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .is_ok()
    })
}

/// Counts what is no directory and fits, without following links and without the directories of processes.
fn count(directory: &Path, fits: &mut dyn FnMut(&Path) -> bool) -> u64 {
    // What cannot be listed is not within reach.
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    let mut found = 0;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let of_process = name.to_string_lossy().bytes().all(|byte| byte.is_ascii_digit())
            || name == "self"
            || name == "thread-self";
        match entry.file_type() {
            Ok(kind) if kind.is_symlink() => {}
            Ok(kind) if kind.is_dir() => {
                if !(of_process && directory == Path::new("/proc")) {
                    found += count(&entry.path(), fits);
                }
            }
            Ok(_) => found += u64::from(fits(&entry.path())),
            Err(_) => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_and_devices_are_counted() {
        assert_eq!(connections(3).unwrap(), 3);
        let reach = reach().unwrap();
        assert!(reach.devices >= 5 && reach.proc_files > 10, "{reach:?}");
        assert_eq!(reach.capabilities.len(), 16);
    }
}
