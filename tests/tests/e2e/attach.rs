//! Commands that connect to a container that runs.

use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, Running};
use rvm_tests::images::BUSYBOX;
use rvm_tests::rvm::Rvm;
use rvm_tests::wait::wait_until;

/// Answers each line with a word in front of it.
const ECHO: &str = "while read line; do echo \"<$line>\"; done; echo over";

fn attached(rvm: &Rvm, flags: &[&str], name: &str) -> Result<Running> {
    let mut command = rvm.command([&["attach"], flags, &[name]].concat())?;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Running::start(command)
}

fn hears(running: &Running, text: &str) -> Result<()> {
    wait_until("it is heard", LIMIT, || {
        Ok(running.stdout_so_far().contains(text))
    })
}

both_modes! {
    fn several_see_and_say_the_same(rvm) {
        rvm.detach("talk", &["-i", BUSYBOX, "sh", "-c", ECHO])?;
        let (mut first, mut second) = (attached(rvm, &[], "talk")?, attached(rvm, &[], "talk")?);
        let (mut one, mut two) = (first.stdin().context("no pipe")?, second.stdin().context("no pipe")?);
        writeln!(one, "hello")?;
        hears(&first, "<hello>")?;
        writeln!(two, "world")?;
        for running in [&first, &second] {
            hears(running, "<world>")?;
        }
        // Without -d it would be the end of input.
        drop(one);
        writeln!(two, "still")?;
        for running in [&first, &second] {
            hears(running, "<still>")?;
        }
        rvm.call(["kill", "talk"])?.ok();
        first.finish(LIMIT)?.code(137);
        second.finish(LIMIT)?.code(137);
        assert!(rvm.call(["logs", "talk"])?.ok().text().ends_with("<hello>\n<world>\n<still>"));
        rvm.call(["rm", "talk"])?.ok();
    }

    fn one_that_leaves_takes_nothing_with_it(rvm) {
        rvm.detach("talk", &["-i", BUSYBOX, "sh", "-c", ECHO])?;
        let (gone, mut stays) = (attached(rvm, &["--no-stdin"], "talk")?, attached(rvm, &[], "talk")?);
        let mut stdin = stays.stdin().context("no pipe")?;
        // Whoever is connected later has not heard what was said before.
        wait_until("both are connected", LIMIT, || {
            writeln!(stdin, "one")?;
            Ok(gone.stdout_so_far().contains("<one>"))
        })?;
        drop(gone);
        for word in ["two", "three"] {
            writeln!(stdin, "{word}")?;
            hears(&stays, &format!("<{word}>"))?;
        }
        let mut unread = Running::start_unread(rvm.command(["attach", "--no-stdin", "talk"])?)?;
        unread.abandon_stdout();
        for word in ["four", "five"] {
            writeln!(stdin, "{word}")?;
            hears(&stays, &format!("<{word}>"))?;
        }
        drop(unread);
        rvm.call(["rm", "-f", "talk"])?.ok();
        stays.finish(LIMIT)?.code(137);
    }

    fn signals_are_forwarded_if_they_are_to_be(rvm) {
        let script = "trap 'exit 7' TERM; echo up; while true; do sleep 1000 & wait; done";
        rvm.detach("target", &[BUSYBOX, "sh", "-c", script])?;
        wait_until("it is up", LIMIT, || Ok(rvm.call(["logs", "target"])?.text() == "up"))?;
        let watcher = attached(rvm, &["--sig-proxy=false"], "target")?;
        let proxy = attached(rvm, &[], "target")?;
        // The watcher is caught by the signal before it has set up what to do, or after: it ends alone either way.
        watcher.signal(Signal::TERM)?;
        assert_eq!(watcher.finish(LIMIT)?.code, 143);
        assert_eq!(rvm.call(["ps", "-q"])?.ok().text().lines().count(), 1);
        let mut proxy = proxy;
        wait_until("the signal is caught", LIMIT, || {
            let caught = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid()?.as_raw_nonzero()))?;
            let mask = caught.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim().to_owned();
            Ok(u64::from_str_radix(&mask, 16)? & (1 << (Signal::TERM.as_raw() - 1)) != 0 && proxy.is_running()?)
        })?;
        proxy.signal(Signal::TERM)?;
        proxy.finish(LIMIT)?.code(7);
        rvm.call(["attach", "target"])?.failed(1, &["stopped"]);
        rvm.call(["rm", "target"])?.ok();
    }

    /// An attached command that does not read: stop does not wait for it, and the container starts again.
    fn a_sleeper_does_not_keep_a_container_from_ending(rvm) {
        rvm.detach("flood", &[BUSYBOX, "sh", "-c", "trap 'exit 3' TERM; echo up; yes & wait"])?;
        let sleeper = Running::start_unread(rvm.command(["attach", "--no-stdin", "flood"])?)?;
        wait_until("it is up", LIMIT, || Ok(rvm.call(["logs", "--tail", "1", "flood"])?.text() == "y"))?;
        rvm.call(["stop", "flood"])?.ok();
        assert_eq!(rvm.call(["wait", "flood"])?.ok().text(), "3");
        rvm.call(["start", "flood"])?.ok();
        rvm.call(["rm", "-f", "flood"])?.ok();
        drop(sleeper);
    }
}
