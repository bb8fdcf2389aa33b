//! What runs inside a container when a shell cannot tell.

use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::time::{ClockId, clock_gettime};

/// Runs the probe named by the first argument.
pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let names: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match names.as_slice() {
        ["descriptors"] => descriptors(),
        ["hog"] => hog(),
        ["overwrite"] => overwrite(),
        ["spin"] => spin(Duration::from_secs(2)),
        _ => return ExitCode::from(99),
    }
    ExitCode::SUCCESS
}

/// Prints the numbers of all open descriptors.
fn descriptors() {
    let open = |number: &i32| std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok();
    println!("{:?}", (0..4096).filter(open).collect::<Vec<i32>>());
}

/// Opens the file that this process runs and lets a shell write to it, as in CVE-2019-5736.
fn overwrite() {
    let executable = rustix::fs::open("/proc/self/exe", OFlags::PATH, Mode::empty()).unwrap();
    let script = format!("echo overwritten >/proc/self/fd/{}", executable.as_raw_fd());
    // The descriptor stays open.
    let error = Command::new("/bin/sh").args(["-c", &script]).exec();
    println!("cannot execute the shell: {error}");
}

/// Uses memory without end, a mebibyte at a time.
fn hog() {
    let mut held = Vec::new();
    for step in 1.. {
        held.push(vec![1u8; 1 << 20]);
        println!("{step}");
    }
}

/// Prints the share, in percent, of one processor that a loop got.
fn spin(duration: Duration) {
    let start = Instant::now();
    while start.elapsed() < duration {
        std::hint::spin_loop();
    }
    let used = Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap();
    println!("{}", used.as_millis() * 100 / start.elapsed().as_millis());
}
