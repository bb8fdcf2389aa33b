//! Containers that are started again by themselves.

use std::process::Stdio;

use anyhow::Result;
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, Running, finish, tool};
use rvm_tests::images::BUSYBOX;
use rvm_tests::processes;
use rvm_tests::rvm::Rvm;
use rvm_tests::wait::wait_until;

/// Says that it is up, and fails when it is told to.
const FAILS_AT_USR1: &str = "trap 'exit 9' USR1; trap 'exit 0' TERM; echo x >>/starts; echo up $(wc -l </starts); while true; do sleep 1000 & wait; done";

fn state(rvm: &Rvm, container: &str) -> Result<String> {
    let format = "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}";
    Ok(rvm.call(["inspect", "--format", format, container])?.ok().text())
}

fn says(rvm: &Rvm, container: &str, text: &str) -> Result<()> {
    wait_until(text, LIMIT, || Ok(rvm.call(["logs", container])?.text() == text))
}

both_modes! {
    fn a_failing_container_is_started_again_as_often_as_allowed(rvm) {
        let arguments = ["--name", "fails", "--restart", "on-failure:2", BUSYBOX, "sh", "-c", "echo x; exit 3"];
        let first = finish(rvm.run_command(arguments)?, LIMIT)?;
        assert_eq!((first.code, first.text().as_str()), (3, "x"), "the command ends with the first of them: {first:?}");
        assert_eq!(rvm.call(["wait", "fails"])?.ok().text(), "3");
        assert_eq!(state(rvm, "fails")?, "exited 3 2");
        says(rvm, "fails", "x\nx\nx")?;
        rvm.call(["rm", "fails"])?.ok();
        // What cannot be started is not tried again, and what succeeds is not either.
        let unknown = ["-d", "--name", "fails", "--restart", "always", BUSYBOX, "no-such-command"];
        finish(rvm.run_command(unknown)?, LIMIT)?.failed(127, &["no-such-command"]);
        assert_eq!(state(rvm, "fails")?, "exited 127 0");
        rvm.call(["rm", "fails"])?.ok();
        finish(rvm.run_command(["--name", "fails", "--restart", "on-failure", BUSYBOX, "true"])?, LIMIT)?.ok();
        assert_eq!(state(rvm, "fails")?, "exited 0 0");
        rvm.call(["rm", "fails"])?.ok();
        finish(rvm.run_command(["--rm", "--restart", "always", BUSYBOX, "true"])?, LIMIT)?.failed(125, &["--restart", "--rm"]);
    }

    fn a_service_is_up_until_it_is_stopped(rvm) {
        rvm.detach("service", &["--restart", "unless-stopped", BUSYBOX, "sh", "-c", FAILS_AT_USR1])?;
        says(rvm, "service", "up 1")?;
        let mut follower = rvm.command(["logs", "-f", "service"])?;
        follower.stdout(Stdio::piped());
        let follower = Running::start(follower)?;
        rvm.call(["kill", "-s", "USR1", "service"])?.ok();
        // With its files, and in one log.
        says(rvm, "service", "up 1\nup 2")?;
        assert_eq!(state(rvm, "service")?, "running 0 1");
        assert_eq!(rvm.call(["exec", "service", "cat", "/starts"])?.ok().text(), "x\nx");
        // A machine that goes down has its supervisors end, and so it stops, but not for good.
        let supervisor = rvm.call(["inspect", "--format", "{{.State.SupervisorPid}}", "service"])?.ok().text();
        tool("kill", &[&supervisor])?;
        assert_eq!(rvm.call(["wait", "service"])?.ok().text(), "0");
        assert_eq!(rvm.call(["system", "resume"])?.ok().text(), "service");
        says(rvm, "service", "up 1\nup 2\nup 3")?;
        assert_eq!(rvm.call(["system", "suspend"])?.ok().text(), "service");
        assert_eq!(state(rvm, "service")?, "exited 0 0");
        assert_eq!(rvm.call(["system", "resume"])?.ok().text(), "service");
        says(rvm, "service", "up 1\nup 2\nup 3\nup 4")?;
        rvm.call(["stop", "service"])?.ok();
        assert_eq!(state(rvm, "service")?, "exited 0 0");
        assert_eq!(rvm.call(["system", "resume"])?.ok().text(), "");
        assert_eq!(follower.finish(LIMIT)?.ok().text(), "up 1\nup 2", "whoever follows sees all of it");
        rvm.call(["start", "service"])?.ok();
        says(rvm, "service", "up 1\nup 2\nup 3\nup 4\nup 5")?;
        assert_eq!(state(rvm, "service")?, "running 0 0");
        rvm.call(["kill", "service"])?.ok();
        assert_eq!(state(rvm, "service")?, "exited 137 0");
        rvm.call(["rm", "service"])?.ok();
    }

    fn the_policy_of_a_container_changes(rvm) {
        let policy = |wanted: &str| rvm.call(["update", "--restart", wanted, "changes"]);
        rvm.detach("changes", &[BUSYBOX, "sh", "-c", FAILS_AT_USR1])?;
        says(rvm, "changes", "up 1")?;
        policy("on-failure:1")?.ok();
        rvm.call(["kill", "-s", "USR1", "changes"])?.ok();
        says(rvm, "changes", "up 1\nup 2")?;
        policy("no")?.ok();
        rvm.call(["kill", "-s", "USR1", "changes"])?.ok();
        rvm.call(["wait", "changes"])?.ok();
        assert!(state(rvm, "changes")?.starts_with("exited "));
        policy("always")?.ok();
        let shown = rvm.call(["inspect", "--format", "{{.HostConfig.RestartPolicy.Name}}", "changes"])?.ok().text();
        assert_eq!(shown, "always");
        policy("sometimes")?.failed(125, &["unless-stopped"]);
        rvm.call(["rm", "changes"])?.ok();
        // One that fails again and again is left alone.
        rvm.detach("changes", &["--restart", "always", BUSYBOX, "sh", "-c", "exit 4"])?;
        wait_until("it is started again", LIMIT, || Ok(state(rvm, "changes")?.starts_with("restarting 4")))?;
        policy("no")?.ok();
        wait_until("it stays as it is", LIMIT, || Ok(state(rvm, "changes")?.starts_with("exited 4")))?;
        rvm.call(["rm", "changes"])?.ok();
        rvm.detach("changes", &["--rm", BUSYBOX, "sleep", "1000"])?;
        policy("always")?.failed(1, &["--rm"]);
        policy("no")?.ok();
        rvm.call(["rm", "-f", "changes"])?.ok();
    }

    fn one_that_waits_to_be_started_again_can_be_ended(rvm) {
        let waits = || -> Result<()> {
            rvm.detach("waits", &["--restart", "always", BUSYBOX, "sh", "-c", "exit 4"])?;
            // The waits double: soon one is long enough to be seen, and to look at.
            wait_until("it waits", LIMIT, || {
                let state = state(rvm, "waits")?;
                let count: u32 = state.rsplit(' ').next().unwrap_or_default().parse()?;
                Ok(state.starts_with("restarting 4") && count >= 6)
            })
        };
        waits()?;
        let listed = rvm.call(["ps", "--filter", "status=restarting", "--format", "{{.Names}} {{.Status}}"])?.ok().text();
        assert!(listed.starts_with("waits Restarting (4) "), "{listed}");
        rvm.call(["exec", "waits", "true"])?.failed(1, &["restarting"]);
        rvm.call(["attach", "waits"])?.failed(1, &["restarting"]);
        rvm.call(["rm", "waits"])?.failed(1, &["is running"]);
        rvm.call(["stop", "waits"])?.ok();
        assert!(state(rvm, "waits")?.starts_with("exited 4 "));
        rvm.call(["rm", "waits"])?.ok();
        waits()?;
        let supervisor = rvm.call(["inspect", "--format", "{{.State.SupervisorPid}}", "waits"])?.ok().text();
        processes::kill(supervisor.parse()?)?;
        wait_until("its death is seen", LIMIT, || Ok(state(rvm, "waits")?.starts_with("exited 4 ")))?;
        rvm.call(["start", "waits"])?.ok();
        rvm.call(["rm", "-f", "waits"])?.ok();
    }
}
