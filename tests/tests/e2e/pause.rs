//! Containers that stand still: paused by a person, or while they are committed.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, Running};
use rvm_tests::images::BUSYBOX;
use rvm_tests::processes;
use rvm_tests::rvm::Rvm;
use rvm_tests::wait::{let_pass, wait_until};

/// Counts for ever, and ends by a signal as a service should.
const COUNTER: &str = "trap 'exit 9' TERM; i=0; while sleep 0.1; do echo $((i += 1)); done";

/// Lines that a container has written.
fn lines(rvm: &Rvm, container: &str) -> Result<usize> {
    Ok(rvm.call(["logs", container])?.ok().text().lines().count())
}

fn goes_on(rvm: &Rvm, container: &str) -> Result<()> {
    let seen = lines(rvm, container)?;
    wait_until("it goes on", LIMIT, || Ok(lines(rvm, container)? > seen + 2))
}

fn stands_still(rvm: &Rvm, container: &str) -> Result<()> {
    // What it had written before is on its way.
    let_pass(Duration::from_millis(500));
    let seen = lines(rvm, container)?;
    let_pass(Duration::from_secs(1));
    assert_eq!(lines(rvm, container)?, seen, "it goes on");
    Ok(())
}

fn status(rvm: &Rvm, container: &str) -> Result<String> {
    let format = "{{.State.Status}} {{.State.Paused}} {{.State.Running}} {{.State.ExitCode}}";
    Ok(rvm.call(["inspect", "--format", format, container])?.ok().text())
}

fn counter(rvm: &Rvm, name: &str, before: &str) -> Result<()> {
    rvm.detach(
        name,
        &[
            "--stop-timeout",
            "600",
            BUSYBOX,
            "sh",
            "-c",
            &format!("{before}{COUNTER}"),
        ],
    )?;
    wait_until("it counts", LIMIT, || Ok(lines(rvm, name)? > 1))
}

both_modes! {
    fn a_paused_container_stands_still_and_can_be_ended(rvm) {
        counter(rvm, "still", "")?;
        rvm.call(["unpause", "still"])?.failed(1, &["still is not paused"]);
        assert_eq!(rvm.call(["pause", "still"])?.ok().text(), "still");
        stands_still(rvm, "still")?;
        for (arguments, expected) in [
            (&["pause", "still"][..], "container still is already paused"),
            (&["exec", "still", "true"], "container still is paused, unpause the container before exec"),
            (&["start", "still"], "cannot start a paused container"),
            (&["attach", "still"], "cannot attach to a paused container"),
            (&["rm", "still"], "is paused and must be unpaused first"),
        ] {
            rvm.call(arguments)?.failed(1, &[expected]);
        }
        assert_eq!(status(rvm, "still")?, "paused true true 0");
        let listed = rvm.call(["ps", "--filter", "status=paused", "--format", "{{.Names}} {{.State}} {{.Status}}"])?.ok().text();
        assert!(listed.starts_with("still paused Up ") && listed.ends_with(" (Paused)"), "{listed}");
        assert_eq!(rvm.call(["unpause", "still"])?.ok().text(), "still");
        goes_on(rvm, "still")?;
        assert_eq!(status(rvm, "still")?, "running false true 0");
        rvm.call(["exec", "still", "true"])?.ok();
        // Asked to end, it goes on and does so by itself.
        rvm.call(["pause", "still"])?.ok();
        rvm.call(["stop", "still"])?.ok();
        assert_eq!(status(rvm, "still")?, "exited false false 9");
        rvm.call(["pause", "still"])?.failed(1, &["still is not running"]);
        rvm.call(["start", "still"])?.ok();
        goes_on(rvm, "still")?;
        rvm.call(["pause", "still"])?.ok();
        let supervisor = rvm.call(["inspect", "--format", "{{.State.SupervisorPid}}", "still"])?.ok().text().parse()?;
        processes::kill(supervisor)?;
        wait_until("the truth is told", LIMIT, || Ok(status(rvm, "still")? == "exited false false 137"))?;
        rvm.call(["rm", "still"])?.ok();
        let told = rvm.actions("still")?;
        let expected = [
            "create", "start", "pause", "unpause", "exec_create: true", "exec_start: true", "exec_die", "pause", "unpause", "kill",
            "die", "stop", "start", "pause", "die", "destroy",
        ];
        assert_eq!(told, expected);
    }

    fn a_container_stands_still_while_it_is_committed(rvm) {
        counter(rvm, "live", "dd if=/dev/zero of=/big bs=1M count=64 2>/dev/null; ")?;
        let mut command = rvm.command(["commit", "live", "live:0"])?;
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let commit = Running::start(command)?;
        let paused = || anyhow::Ok(rvm.call(["ps", "-q", "--filter", "status=paused"])?.ok().text());
        wait_until("it stands still", LIMIT, || Ok(!paused()?.is_empty()))?;
        commit.signal(Signal::KILL)?;
        commit.finish(LIMIT)?;
        wait_until("whoever commits is gone", LIMIT, || Ok(paused()?.is_empty()))?;
        goes_on(rvm, "live")?;
        rvm.call(["commit", "-m", "one", "live", "live:1"])?.ok();
        assert_eq!(status(rvm, "live")?, "running false true 0");
        rvm.call(["pause", "live"])?.ok();
        rvm.call(["commit", "live", "live:2"])?.ok();
        assert_eq!(status(rvm, "live")?, "paused true true 0", "it is not the commit that paused it");
        // Killed as it stands.
        rvm.call(["kill", "live"])?.ok();
        assert_eq!(status(rvm, "live")?, "exited false false 137");
        rvm.call(["rm", "live"])?.ok();
        rvm.call(["rmi", "live:1", "live:2"])?.ok();
    }
}
