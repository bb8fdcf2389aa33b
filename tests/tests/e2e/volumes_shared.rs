//! Volumes that several use at once, and what is left of them when something is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, Running};
use rvm_tests::images::{BUSYBOX, DEBIAN};
use rvm_tests::processes;
use rvm_tests::rvm::{Isolation, Rvm};
use rvm_tests::wait::{let_pass, wait_until};

use crate::crash::moment;

/// What is in a volume.
fn data(rvm: &Rvm, volume: &str) -> PathBuf {
    rvm.root().join("volumes").join(volume).join("_data")
}

fn remove(rvm: &Rvm, volume: &str) -> Result<()> {
    rvm.call(["volume", "rm", volume])?.ok();
    Ok(())
}

/// Kills every process of one kind.
fn kill(kind: &str) -> Result<usize> {
    let mut killed = 0;
    for process in processes::all()?.into_values() {
        let is_supervisor = || {
            processes::arguments(process.pid)
                .iter()
                .any(|word| word == "supervise")
        };
        if process.name == kind || (kind == "supervisor" && is_supervisor()) {
            processes::kill(process.pid)?;
            killed += 1;
        }
    }
    Ok(killed)
}

fn count(directory: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        count += 1;
        if entry.file_type()?.is_dir() {
            count += self::count(&entry.path())?;
        }
    }
    Ok(count)
}

both_modes! {
    fn locks_hold_between_both_kinds(rvm) {
        let other = rvm.in_the_other_mode();
        for kind in ["flock", "fcntl"] {
            let holder = rvm.start("holder", &["-v", "locks:/data", BUSYBOX, "/probe", "lock", kind, "/data/file", "hold"])?;
            wait_until("it is locked", LIMIT, || Ok(rvm.call(["logs", "holder"])?.text() == "locked"))?;
            let attempt = |rvm: &Rvm| rvm.run(["-v", "locks:/data", BUSYBOX, "/probe", "lock", kind, "/data/file", "try"]);
            assert_eq!(attempt(&other)?.ok().text(), "busy", "{kind}");
            assert_eq!(attempt(rvm)?.ok().text(), "busy", "{kind}");
            // Another file is another matter.
            let beside = other.run(["-v", "locks:/data", BUSYBOX, "/probe", "lock", kind, "/data/other", "try"])?;
            assert_eq!(beside.ok().text(), "locked");
            let waiter = other.start("waiter", &["-v", "locks:/data", BUSYBOX, "/probe", "lock", kind, "/data/file", "wait"])?;
            wait_until("it waits", LIMIT, || Ok(rvm.call(["exec", "waiter", "true"])?.code == 0))?;
            assert_eq!(rvm.call(["logs", "waiter"])?.text(), "");
            fs::write(data(rvm, "locks").join("file.done"), "")?;
            holder.finish(LIMIT)?.ok();
            assert_eq!(waiter.finish(LIMIT)?.ok().text(), "locked", "{kind}");
            assert_eq!(attempt(&other)?.ok().text(), "locked", "{kind}");
            fs::remove_file(data(rvm, "locks").join("file.done"))?;
        }
        remove(rvm, "locks")?;
    }

    fn a_lock_goes_with_its_holder(rvm) {
        let other = rvm.in_the_other_mode();
        for kind in ["flock", "fcntl"] {
            rvm.detach("holder", &["-v", "locks:/data", BUSYBOX, "sh", "-c", &format!("/probe lock {kind} /data/file hold & echo $! > /pid; wait; sleep 1000")])?;
            wait_until("it is locked", LIMIT, || Ok(rvm.call(["logs", "holder"])?.text() == "locked"))?;
            let attempt = || other.run(["-v", "locks:/data", BUSYBOX, "/probe", "lock", kind, "/data/file", "try"]);
            assert_eq!(attempt()?.ok().text(), "busy", "{kind}");
            rvm.call(["exec", "holder", "sh", "-c", "kill -9 $(cat /pid)"])?.ok();
            wait_until("it is free", LIMIT, || Ok(attempt()?.ok().text() == "locked"))?;
            rvm.call(["rm", "-f", "holder"])?.ok();
        }
        remove(rvm, "locks")?;
    }

    fn what_was_acknowledged_survives_a_kill(rvm) {
        let mut command = rvm.run_command(["--rm", "--name", "writer", "-v", "journal:/data", BUSYBOX, "/probe", "journal", "/data/log"])?;
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let running = Running::start(command)?;
        let log = data(rvm, "journal").join("log");
        wait_until("it writes", LIMIT, || Ok(fs::metadata(&log).is_ok_and(|metadata| metadata.len() > 9 * 20)))?;
        let_pass(Duration::from_millis(moment(500)));
        let victim = match rvm.isolation() {
            Isolation::Vm => "rvm-vmm",
            Isolation::Container => "probe",
        };
        ensure!(kill(victim)? > 0, "nothing to kill");
        let output = running.finish(LIMIT)?;
        let said = output.text();
        let acknowledged = said.lines().filter_map(|line| line.parse::<usize>().ok()).max().context("nothing said")?;
        let written = fs::read_to_string(&log)?;
        let whole: Vec<_> = written.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
        ensure!(whole.len() > acknowledged, "{} of {acknowledged}", whole.len());
        for (number, line) in whole.iter().enumerate() {
            assert_eq!(*line, format!("{number:08}\n"));
        }
        rvm.remove_containers()?;
        remove(rvm, "journal")?;
    }

    fn whatever_is_killed_nothing_stays(rvm) {
        let before = rvm.snapshot()?;
        let kinds: &[&str] = match rvm.isolation() {
            Isolation::Vm => &["rvm-vmm", "rvm-fs", "supervisor"],
            Isolation::Container => &["supervisor"],
        };
        for kind in kinds {
            rvm.detach("victim", &["-v", "killed:/data", "-v", "/etc/hostname:/x:ro", BUSYBOX, "sh", "-c", "echo 1 > /data/file; sleep 1000"])?;
            wait_until("it has written", LIMIT, || Ok(fs::read(data(rvm, "killed").join("file")).is_ok_and(|found| found == b"1\n")))?;
            ensure!(kill(kind)? > 0, "no {kind} to kill");
            if *kind == "rvm-fs" {
                // Only what it has served is lost.
                let read = rvm.call(["exec", "victim", "cat", "/data/file"])?;
                ensure!(read.code == 1 && read.errors().contains("Input/output error"), "{}", read.describe());
                assert_eq!(rvm.call(["exec", "victim", "echo", "alive"])?.ok().text(), "alive");
            } else {
                wait_until("it has ended", LIMIT, || Ok(rvm.call(["ps", "-q"])?.ok().text().is_empty()))?;
            }
            rvm.call(["rm", "-f", "victim"])?.ok();
            assert_eq!(fs::read_to_string(data(rvm, "killed").join("file"))?, "1\n");
            remove(rvm, "killed")?;
            before.nothing_new()?;
        }
    }

    fn a_volume_is_filled_once_and_whole(rvm) {
        let other = rvm.in_the_other_mode();
        let look = "find /etc -xdev | wc -l";
        let expected = rvm.run(["--tmpfs", "/none", DEBIAN, "sh", "-c", "find /etc -xdev | wc -l"])?.ok().text();
        // Both at once.
        let one = rvm.start("one", &["-v", "twice:/etc", DEBIAN, "sh", "-c", look])?;
        let two = other.start("two", &["-v", "twice:/etc", DEBIAN, "sh", "-c", look])?;
        assert_eq!(one.finish(LIMIT)?.ok().text(), expected);
        assert_eq!(two.finish(LIMIT)?.ok().text(), expected);
        remove(rvm, "twice")?;
        // Cut short, and made whole by the next.
        for _ in 0..3 {
            let mut command = rvm.run_command(["-d", "--name", "cut", "-v", "cut:/etc", DEBIAN, "sleep", "1000"])?;
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut running = Running::start(command)?;
            let path = data(rvm, "cut");
            wait_until("it is being filled", LIMIT, || Ok(path.exists() && count(&path).unwrap_or(0) > 2 || !running.is_running()?))?;
            kill("supervisor")?;
            running.finish(LIMIT)?;
            rvm.remove_containers()?;
            assert_eq!(other.run(["-v", "cut:/etc", DEBIAN, "sh", "-c", look])?.ok().text(), expected);
            assert!(!rvm.root().join("volumes/cut/filling").exists());
            remove(rvm, "cut")?;
        }
    }
}
