//! Containers in the background: made, started, stopped, signalled, waited for, started again, renamed.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, Running, finish};
use rvm_tests::images::BUSYBOX;
use rvm_tests::processes;
use rvm_tests::rvm::{Isolation, Rvm, scratch};
use rvm_tests::wait::wait_until;

/// Ends by a signal as a service should, and with a number of its own.
const SERVICE: &str =
    "trap 'exit 9' TERM; trap 'exit 8' INT; echo up; while true; do sleep 1000 & wait; done";

/// One field of what `rvm inspect` says.
fn field(rvm: &Rvm, container: &str, name: &str) -> Result<String> {
    let format = format!("{{{{{name}}}}}");
    Ok(rvm.call(["inspect", "--format", &format, container])?.ok().text())
}

fn status(rvm: &Rvm, container: &str) -> Result<String> {
    field(rvm, container, ".State.Status")
}

/// A service that has set up what it does at a signal.
fn service(rvm: &Rvm, name: &str, flags: &[&str]) -> Result<()> {
    rvm.detach(name, &[flags, &[BUSYBOX, "sh", "-c", SERVICE]].concat())?;
    wait_until("it is up", LIMIT, || {
        Ok(rvm.call(["logs", name])?.text().contains("up"))
    })
}

both_modes! {
    fn one_in_the_background_is_there_when_its_id_is(rvm) {
        let file = scratch()?.join("id");
        let arguments = ["-d", "--name", "back", "--cidfile", file.to_str().unwrap_or_default(), BUSYBOX, "sleep", "1000"];
        let id = finish(rvm.run_command(arguments)?, LIMIT)?.ok().text();
        assert_eq!(id.len(), 64, "{id}");
        assert_eq!(fs::read_to_string(&file)?, id);
        assert_eq!(rvm.call(["ps", "-q", "--no-trunc"])?.ok().text(), id);
        finish(rvm.run_command(arguments)?, LIMIT)?.failed(125, &["id"]);
        assert_eq!(rvm.containers()?.len(), 1, "nothing is made where the ID cannot be kept");
        fs::remove_file(&file)?;
        rvm.call(["rm", "-f", "back"])?.ok();
        finish(rvm.run_command(["-d", "--cidfile", file.to_str().unwrap_or_default(), "no-such-image.invalid/x", "true"])?, LIMIT)?
            .failed(125, &["no-such-image"]);
        assert!(!file.exists(), "no ID, no file");
    }

    fn a_start_that_fails_is_told(rvm) {
        let failed = finish(rvm.run_command(["-d", "--name", "bad", BUSYBOX, "no-such-command"])?, LIMIT)?;
        failed.failed(127, &["no-such-command"]);
        assert_eq!(status(rvm, "bad")?, "exited");
        rvm.call(["start", "bad"])?.failed(1, &["no-such-command"]);
        rvm.call(["rm", "bad"])?.ok();
        finish(rvm.run_command(["-d", "--rm", BUSYBOX, "/etc"])?, LIMIT)?.failed(126, &["/etc"]);
        assert_eq!(rvm.containers()?, [""; 0]);
    }

    fn a_stopped_container_starts_again_with_its_files(rvm) {
        let script = "cat /count 2>/dev/null; echo x >>/count; trap 'exit 9' TERM; echo up; while true; do sleep 1000 & wait; done";
        rvm.detach("again", &[BUSYBOX, "sh", "-c", script])?;
        let says = |text: &str| wait_until("it is up", LIMIT, || Ok(rvm.call(["logs", "again"])?.text() == text));
        says("up")?;
        assert_eq!(rvm.call(["stop", "again"])?.ok().text(), "again");
        assert_eq!((status(rvm, "again")?.as_str(), field(rvm, "again", ".State.ExitCode")?.as_str()), ("exited", "9"));
        assert_eq!(rvm.call(["stop", "again"])?.ok().text(), "again", "stopping what is stopped is fine");
        assert_eq!(rvm.call(["start", "again"])?.ok().text(), "again");
        says("up\nx\nup")?;
        assert_eq!(rvm.call(["start", "again"])?.ok().text(), "again", "starting what runs is fine");
        assert_eq!(rvm.call(["restart", "-t", "60", "again"])?.ok().text(), "again");
        says("up\nx\nup\nx\nx\nup")?;
        // What was written last is there although nobody synchronised and it was killed.
        assert_eq!(rvm.call(["kill", "again"])?.ok().text(), "again");
        assert_eq!(field(rvm, "again", ".State.ExitCode")?, "137");
        rvm.call(["start", "again"])?.ok();
        says("up\nx\nup\nx\nx\nup\nx\nx\nx\nup")?;
        rvm.call(["rm", "again"])?.failed(1, &["running"]);
        rvm.call(["rm", "-f", "again"])?.ok();
    }

    fn one_that_is_made_waits_to_be_started(rvm) {
        let create = ["create", "--isolation", rvm.isolation().name(), "--rm", "-i", "--name", "made", BUSYBOX, "cat"];
        let id = rvm.call(create)?.ok().text();
        assert_eq!((id.len(), status(rvm, "made")?.as_str()), (64, "created"));
        assert_eq!(rvm.call(["ps", "-q"])?.ok().text(), "");
        assert!(rvm.call(["ps", "-a"])?.ok().text().contains("Created"));
        rvm.call(["kill", "made"])?.failed(1, &["made", "not running"]);
        rvm.call(["attach", "made"])?.failed(1, &["made", "stopped"]);
        rvm.call(["stop", "made"])?.ok();
        assert_eq!(rvm.call(["wait", "made"])?.ok().text(), "0");
        let mut command = rvm.command(["start", "-a", "-i", "made"])?;
        command.stdin(fs::File::open("/etc/hostname")?);
        assert_eq!(finish(command, LIMIT)?.ok().text(), fs::read_to_string("/etc/hostname")?.trim_end());
        assert_eq!(rvm.containers()?, [""; 0], "--rm counts once it has ended");
    }

    fn start_attached_ends_as_the_workload(rvm) {
        let create = ["create", "--isolation", rvm.isolation().name(), "--name", "job", BUSYBOX, "sh", "-c", "echo out; echo err >&2; exit 3"];
        rvm.call(create)?.ok();
        for _ in 0..2 {
            let output = rvm.call(["start", "-a", "job"])?.code(3);
            assert_eq!((output.text().as_str(), output.errors().as_str()), ("out", "err\n"));
        }
        rvm.call(["start", "-a", "job", "job"])?.failed(1, &["multiple"]);
        rvm.call(["rm", "job"])?.ok();
    }

    fn stop_goes_by_the_container_s_signal_and_time(rvm) {
        service(rvm, "polite", &["--stop-signal", "INT", "--stop-timeout", "600"])?;
        rvm.call(["stop", "polite"])?.ok();
        assert_eq!(field(rvm, "polite", ".State.ExitCode")?, "8");
        rvm.call(["start", "polite"])?.ok();
        wait_until("it is up", LIMIT, || Ok(rvm.call(["logs", "polite"])?.text() == "up\nup"))?;
        rvm.call(["stop", "-s", "TERM", "polite"])?.ok();
        assert_eq!(field(rvm, "polite", ".State.ExitCode")?, "9");
        rvm.call(["rm", "polite"])?.ok();
        // Who does not listen is killed when the time is over, and not before.
        rvm.detach("deaf", &["--stop-timeout", "600", BUSYBOX, "sleep", "1000"])?;
        let begun = Instant::now();
        rvm.call(["stop", "-t", "2", "deaf"])?.ok();
        assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(field(rvm, "deaf", ".State.ExitCode")?, "137");
        rvm.call(["rm", "deaf"])?.ok();
        rvm.call(["stop", "nobody"])?.failed(1, &["nobody"]);
        rvm.call(["stop", "-s", "NONE", "nobody"])?.failed(125, &["NONE"]);
    }

    fn kill_sends_any_signal(rvm) {
        service(rvm, "target", &[])?;
        rvm.call(["kill", "-s", "SIGINT", "target"])?.ok();
        assert_eq!(rvm.call(["wait", "target"])?.ok().text(), "8");
        rvm.call(["kill", "target"])?.failed(1, &["not running"]);
        rvm.call(["rm", "target"])?.ok();
    }

    fn wait_tells_the_exit_code_once_it_is_there(rvm) {
        rvm.detach("first", &["--rm", BUSYBOX, "sh", "-c", "trap 'exit 5' TERM; echo up; sleep 1000 & wait"])?;
        rvm.detach("second", &[BUSYBOX, "sh", "-c", "exit 6"])?;
        wait_until("it is up", LIMIT, || Ok(rvm.call(["logs", "first"])?.text() == "up"))?;
        let mut command = rvm.command(["wait", "first", "second"])?;
        command.stdout(std::process::Stdio::piped());
        let waiting = Running::start(command)?;
        rvm.call(["kill", "-s", "TERM", "first"])?.ok();
        assert_eq!(waiting.finish(LIMIT)?.ok().text(), "5\n6");
        rvm.call(["rm", "second"])?.ok();
        wait_until("the first is gone", LIMIT, || Ok(rvm.containers()?.is_empty()))?;
    }

    fn a_container_takes_another_name(rvm) {
        service(rvm, "old", &[])?;
        rvm.call(["rename", "old", "new"])?.ok();
        assert_eq!(field(rvm, "new", ".Name")?, "/new");
        rvm.call(["logs", "old"])?.failed(1, &["old"]);
        rvm.call(["rename", "new", "new"])?.failed(1, &["new"]);
        rvm.call(["rename", "new", "not a name"])?.failed(1, &["not a name"]);
        rvm.call(["stop", "new"])?.ok();
        rvm.detach("old", &["--rm", BUSYBOX, "sleep", "1000"])?;
        rvm.call(["rename", "new", "old"])?.failed(1, &["old", "in use"]);
        rvm.call(["rename", "new", "stopped"])?.ok();
        assert_eq!(status(rvm, "stopped")?, "exited");
        rvm.call(["rm", "stopped"])?.ok();
        rvm.call(["rm", "-f", "old"])?.ok();
    }

    fn a_killed_owner_is_a_killed_container_that_starts_again(rvm) {
        service(rvm, "orphan", &[])?;
        let pid = field(rvm, "orphan", ".State.SupervisorPid")?.parse()?;
        let mut command = rvm.command(["wait", "orphan"])?;
        command.stdout(std::process::Stdio::piped());
        let waiting = Running::start(command)?;
        processes::kill(pid)?;
        assert_eq!(waiting.finish(LIMIT)?.ok().text(), "137");
        assert_eq!(status(rvm, "orphan")?, "exited");
        rvm.call(["start", "orphan"])?.ok();
        wait_until("it is up", LIMIT, || Ok(rvm.call(["logs", "orphan"])?.text() == "up\nup"))?;
        rvm.call(["stop", "orphan"])?.ok();
        rvm.call(["rm", "orphan"])?.ok();
    }

    fn listings_are_narrowed(rvm) {
        let id = rvm.detach("one", &["-l", "tier=web", "-l", "old", BUSYBOX, "sleep", "1000"])?;
        rvm.detach("two", &["-l", "tier=db", BUSYBOX, "sh", "-c", "exit 4"])?;
        rvm.call(["wait", "two"])?.ok();
        let names = |arguments: &[&str]| -> Result<String> {
            let all = [&["ps", "--format", "{{.Names}}"], arguments].concat();
            Ok(rvm.call(all)?.ok().text().replace('\n', " "))
        };
        assert_eq!(names(&[])?, "one");
        for (filter, expected) in [("status=exited", "two"), ("status=running", "one"), ("status=paused", "")] {
            assert_eq!(names(&["--filter", filter])?, expected, "{filter}");
        }
        for (filter, expected) in [
            ("label=tier", "two one"), ("label=tier=db", "two"), ("label=old", "one"), ("name=tw", "two"), ("exited=4", "two"),
            (&format!("id={}", &id[..8]), "one"), (&format!("ancestor={BUSYBOX}"), "two one"), ("ancestor=absent", ""),
            ("before=two", "one"), ("since=one", "two"),
        ] {
            assert_eq!(names(&["-a", "--filter", filter])?, expected, "{filter}");
        }
        assert_eq!(names(&["-a", "--filter", "label=tier", "--filter", "label=old"])?, "one");
        assert_eq!((names(&["-l"])?.as_str(), names(&["-n", "1"])?.as_str()), ("two", "two"));
        rvm.call(["ps", "--filter", "colour=red"])?.failed(125, &["colour"]);
        let document: serde_json::Value = serde_json::from_str(&rvm.call(["ps", "--format", "json"])?.ok().text())?;
        assert_eq!((&document["State"], &document["Labels"]), (&"running".into(), &"old=,tier=web".into()));
        rvm.call(["rm", "-f", "one", "two"])?.ok();
    }
}

/// A guest, its VMM or the supervisor that does not move any more is ended all the same.
#[test]
fn what_hangs_is_stopped() -> Result<()> {
    rvm_tests::rvm::in_mode(Isolation::Vm, |rvm: &Rvm| {
        for process in ["rvm-vmm", "rvm-supervisor"] {
            rvm.detach("hung", &[BUSYBOX, "sleep", "1000"])?;
            let all = processes::all()?;
            let victim = all.values().find(|found| found.name == process);
            let victim = victim.with_context(|| format!("there is no {process}"))?;
            rvm_tests::command::tool("kill", &["-STOP", &victim.pid.to_string()])?;
            finish(rvm.command(["stop", "-t", "1", "hung"])?, 2 * LIMIT)?.ok();
            assert_eq!(status(rvm, "hung")?, "exited", "after {process} was stopped");
            rvm.call(["start", "hung"])?.ok();
            rvm.call(["rm", "-f", "hung"])?.ok();
        }
        Ok(())
    })
}
