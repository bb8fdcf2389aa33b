//! Standard input, output and error: bytes, apart, with back-pressure.

use std::fs::{self, File};
use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, Running, finish, tool};
use rvm_tests::images::BUSYBOX;
use rvm_tests::processes;
use rvm_tests::rvm::scratch;
use rvm_tests::tree::sha256;
use rvm_tests::wait::{let_pass, wait_until};

/// More than any buffer on the way.
const STREAM_MIB: usize = 256;

/// No process of rvm's may need more than this to pass a stream on.
const RESIDENT_LIMIT: u64 = 64 << 20;

both_modes! {
    fn output_and_error_are_apart(rvm) {
        let output = rvm.run([BUSYBOX, "sh", "-c", "echo out; echo err >&2"])?.ok();
        assert_eq!((output.text().as_str(), output.errors().as_str()), ("out", "err\n"));
    }

    fn a_large_stream_arrives_whole(rvm) {
        let (sent, received) = (scratch()?.join("sent"), scratch()?.join("received"));
        tool("dd", &["if=/dev/urandom", &format!("of={}", sent.display()), "bs=1M", &format!("count={STREAM_MIB}"), "status=none"])?;
        let mut command = rvm.run_command(["--rm", "-i", BUSYBOX, "cat"])?;
        command.stdin(File::open(&sent)?).stdout(File::create(&received)?).stderr(Stdio::piped());
        let running = Running::start(command)?;
        running.finish(5 * LIMIT)?.ok();
        assert_eq!(received.metadata()?.len(), sent.metadata()?.len());
        assert_eq!(sha256(File::open(&received)?)?, sha256(File::open(&sent)?)?);
        fs::remove_file(sent)?;
        fs::remove_file(received)?;
    }

    fn end_of_input_is_passed_on(rvm) {
        let mut command = rvm.run_command(["--rm", "-i", BUSYBOX, "wc", "-c"])?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = Running::start(command)?;
        let mut stdin = running.stdin().context("no pipe")?;
        stdin.write_all(b"12345")?;
        drop(stdin);
        assert_eq!(running.finish(LIMIT)?.ok().text(), "5");
    }

    /// A conversation: neither side may wait for a buffer to fill.
    fn input_and_output_interleave(rvm) {
        let mut command = rvm.run_command(["--rm", "-i", BUSYBOX, "sh", "-c", "while read line; do echo \"<$line>\"; done"])?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = Running::start(command)?;
        let mut stdin = running.stdin().context("no pipe")?;
        for word in ["one", "two", "three"] {
            writeln!(stdin, "{word}")?;
            wait_until("the answer", LIMIT, || Ok(running.stdout_so_far().contains(&format!("<{word}>"))))?;
        }
        drop(stdin);
        assert_eq!(running.finish(LIMIT)?.ok().text(), "<one>\n<two>\n<three>");
    }

    fn without_i_input_is_empty(rvm) {
        let mut command = rvm.run_command(["--rm", BUSYBOX, "wc", "-c"])?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = Running::start(command)?;
        let stdin = running.stdin();
        assert_eq!(running.finish(LIMIT)?.ok().text(), "0");
        drop(stdin);
    }

    /// The workload ends while input is still coming.
    fn input_that_nobody_reads_does_not_hang(rvm) {
        let mut command = rvm.run_command(["--rm", "-i", BUSYBOX, "sh", "-c", "exit 5"])?;
        command.stdin(File::open("/dev/zero")?);
        finish(command, LIMIT)?.code(5);
    }

    /// `rvm run ... | head -1`: who writes to nobody gets SIGPIPE, as without rvm, and the run ends.
    fn a_reader_that_leaves_ends_the_stream(rvm) {
        let mut running = Running::start_unread(rvm.run_command(["--rm", BUSYBOX, "yes"])?)?;
        wait_until("it has started", LIMIT, || Ok(rvm.containers()?.len() == 1))?;
        running.abandon_stdout();
        let output = running.finish(LIMIT)?;
        assert_ne!(output.code, 0, "{}", output.describe());
    }

    /// A flood meets back-pressure: memory and log stay bounded, and a signal still gets through.
    fn a_flood_that_nobody_reads_is_bounded(rvm) {
        let script = "trap 'exit 3' TERM; yes & wait";
        let mut running = Running::start_unread(rvm.run_command(["--name", "flood", BUSYBOX, "sh", "-c", script])?)?;
        wait_until("it has started", LIMIT, || Ok(rvm.call(["ps", "-q"])?.text().lines().count() == 1))?;
        for _ in 0..10 {
            let_pass(Duration::from_millis(300));
            for process in processes::all()?.values().filter(|process| ["rvm", "rvm-supervisor"].contains(&process.name.as_str())) {
                assert!(process.resident < RESIDENT_LIMIT, "{process:?}");
            }
        }
        let log = directory_size(&rvm.root().join("containers"))?;
        assert!(log < RESIDENT_LIMIT, "the container's directory has {log} bytes");
        running.signal(Signal::TERM)?;
        wait_until("the workload has ended", LIMIT, || Ok(rvm.call(["ps", "-q"])?.text().is_empty()))?;
        running.read_stdout();
        running.finish(LIMIT)?.code(3);
        rvm.call(["rm", "flood"])?.ok();
    }
}

/// Bytes on disk below a directory; what vanishes meanwhile counts nothing.
fn directory_size(directory: &std::path::Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in fs::read_dir(directory)?.filter_map(Result::ok) {
        let Ok(metadata) = entry.path().symlink_metadata() else {
            continue;
        };
        bytes += if metadata.is_dir() {
            directory_size(&entry.path())?
        } else {
            metadata.blocks() * 512
        };
    }
    Ok(bytes)
}
