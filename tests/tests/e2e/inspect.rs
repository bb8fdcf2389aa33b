//! `rvm inspect`: everything about a container, running or not.

use std::process::Stdio;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, Running, finish, tool};
use rvm_tests::images::BUSYBOX;
use rvm_tests::processes;
use rvm_tests::rvm::{Isolation, Rvm, in_mode};
use rvm_tests::wait::wait_until;
use serde_json::Value;

/// `rvm inspect CONTAINER`, of one container.
fn inspect(rvm: &Rvm, container: &str) -> Result<Value> {
    let list: Value = serde_json::from_str(&rvm.call(["inspect", container])?.ok().text())?;
    list.get(0).cloned().context("an empty list")
}

fn field<'a>(document: &'a Value, pointer: &str) -> &'a Value {
    document.pointer(pointer).unwrap_or(&Value::Null)
}

fn started(rvm: &Rvm, name: &str, flags: &[&str]) -> Result<Running> {
    let running = rvm.start(name, &[flags, &[BUSYBOX, "sleep", "1000"]].concat())?;
    wait_until("it is listed", LIMIT, || {
        Ok(rvm.call(["ps", "-q"])?.text().lines().count() == 1)
    })?;
    Ok(running)
}

fn removed(rvm: &Rvm, name: &str, running: Running) -> Result<()> {
    rvm.call(["rm", "-f", name])?.ok();
    running.finish(LIMIT)?.code(137);
    Ok(())
}

both_modes! {
    fn a_running_container_is_shown_in_full(rvm) {
        let running = started(rvm, "shown", &["-m", "64m", "--cpus", "0.5", "-e", "GREETING=hello"])?;
        let document = inspect(rvm, "shown")?;
        for (pointer, value) in [
            ("/Name", "/shown"),
            ("/Path", "sleep"),
            ("/State/Status", "running"),
            ("/State/FinishedAt", "0001-01-01T00:00:00Z"),
            ("/Isolation", rvm.isolation().name()),
            ("/Config/Image", BUSYBOX),
        ] {
            assert_eq!(field(&document, pointer), value, "{pointer}");
        }
        assert_eq!(field(&document, "/HostConfig/Memory"), 64 << 20);
        assert_eq!(field(&document, "/HostConfig/NanoCpus"), 500_000_000);
        let environment = field(&document, "/Config/Env").as_array().context("no environment")?;
        assert!(environment.iter().any(|variable| variable == "GREETING=hello"), "{environment:?}");
        // Its processes are those that it names.
        let name = |pointer: &str| {
            let pid = field(&document, pointer).as_i64().and_then(|pid| i32::try_from(pid).ok());
            let process = pid.and_then(|pid| processes::all().ok()?.remove(&pid));
            process.map(|process| process.name).unwrap_or_default()
        };
        assert_eq!(name("/State/Pid"), if rvm.isolation() == Isolation::Vm { "rvm-vmm" } else { "sleep" });
        assert_ne!(name("/State/SupervisorPid"), "");
        let template = "{{.State.Status}} {{.Config.Image}} {{json .Args}}";
        let text = rvm.call(["inspect", "--format", template, "shown"])?.ok().text();
        assert_eq!(text, format!("running {BUSYBOX} [\"1000\"]"));
        removed(rvm, "shown", running)?;
    }

    fn an_ended_container_is_shown_too(rvm) {
        let arguments = ["--name", "ended", BUSYBOX, "sh", "-c", "exit 7"];
        finish(rvm.run_command(arguments)?, LIMIT)?.code(7);
        let document = inspect(rvm, "ended")?;
        assert_eq!(field(&document, "/State/Status"), "exited");
        assert_eq!(field(&document, "/State/ExitCode"), 7);
        let time = |pointer: &str| field(&document, pointer).as_str().unwrap_or_default().to_owned();
        assert!(time("/State/StartedAt") >= time("/Created"), "{document:#}");
        assert!(time("/State/FinishedAt") >= time("/State/StartedAt"), "{document:#}");
        rvm.call(["inspect", "--format", "{{.No.Such}}", "ended"])?.failed(1, &["no field .No.Such"]);
        rvm.call(["inspect", "--format", "{{range .Args}}", "ended"])?.failed(125, &["range"]);
        let both = rvm.call(["inspect", "nobody", "ended"])?;
        both.failed(1, &["nobody"]);
        assert!(both.text().contains("\"exited\""), "{}", both.describe());
        rvm.call(["rm", "ended"])?.ok();
    }
}

#[test]
fn a_machine_tells_of_itself() -> Result<()> {
    in_mode(Isolation::Vm, |rvm: &Rvm| {
        let running = started(rvm, "machine", &["-m", "64m"])?;
        let document = inspect(rvm, "machine")?;
        let number = |pointer: &str| field(&document, pointer).as_u64().unwrap_or_default();
        assert_eq!(number("/Machine/Vcpus"), 1);
        assert_eq!(number("/Machine/Memory/WorkloadMiB"), 64);
        assert!(number("/Machine/MemoryMiB") > 64);
        let (guest, monitor) = (
            number("/Machine/Memory/GuestResidentBytes"),
            number("/Machine/Memory/MonitorBytes"),
        );
        assert!(
            guest > 4 << 20 && guest <= number("/Machine/MemoryMiB") << 20,
            "{guest}"
        );
        assert!(monitor > 0 && monitor < 8 << 20, "{monitor}");
        let list = |pointer: &str| field(&document, pointer).as_array().cloned().unwrap_or_default();
        let devices = list("/Machine/Devices");
        for kind in ["block", "socket", "entropy", "balloon"] {
            let device = devices.iter().find(|device| device["Kind"] == kind);
            let device = device.with_context(|| format!("no {kind} in {document:#}"))?;
            assert_eq!(device["Driver"], "ready", "{device}");
        }
        assert!(number("/Machine/Exits/io_out") > 0, "{document:#}");
        assert!(number("/Machine/Vcpu/0/Kvm/exits") > 0, "{document:#}");
        let threads = list("/Machine/Threads");
        assert!(
            threads.iter().any(|thread| thread["Name"] == "vcpu0"),
            "{threads:?}"
        );
        for thread in &threads {
            assert_eq!(thread["Seccomp"], "filter", "{thread}");
        }
        assert_eq!(field(&document, "/Machine/Missing"), &Value::Null);
        removed(rvm, "machine", running)
    })
}

/// A signal to all processes of this name.
fn signal(name: &str, signal: &str) -> Result<()> {
    for process in processes::all()?.values().filter(|process| process.name == name) {
        tool("kill", &[signal, &process.pid.to_string()])?;
    }
    Ok(())
}

/// A VMM that hangs does not answer, which is told, and is ended within the limit of `rm -f`.
#[test]
fn a_machine_that_hangs_is_looked_at_and_removed() -> Result<()> {
    in_mode(Isolation::Vm, |rvm: &Rvm| {
        let running = started(rvm, "hung", &[])?;
        signal("rvm-vmm", "-STOP")?;
        let output = rvm.call(["inspect", "hung"])?.ok();
        assert!(output.text().contains("\"running\""), "{}", output.describe());
        assert!(
            output.errors().contains("does not answer"),
            "{}",
            output.describe()
        );
        removed(rvm, "hung", running)
    })
}

/// A filter ends the VMM with SIGSYS; whoever waits is told that, and not merely that it is gone.
#[test]
fn the_end_by_a_filter_is_told() -> Result<()> {
    in_mode(Isolation::Vm, |rvm: &Rvm| {
        let running = started(rvm, "filtered", &[])?;
        signal("rvm-vmm", &format!("-{}", Signal::SYS.as_raw()))?;
        running.finish(LIMIT)?.failed(125, &["seccomp filter"]);
        Ok(())
    })
}

/// After a clean end the writable layer's journal has nothing to be replayed; after a kill it has.
#[test]
fn a_clean_end_leaves_the_writable_layer_whole() -> Result<()> {
    in_mode(Isolation::Vm, |rvm: &Rvm| {
        let state = |name: &str| -> Result<String> {
            let id = rvm.call(["inspect", "--format", "{{.Id}}", name])?.ok().text();
            let disk = rvm.root().join("containers").join(id).join("disk.ext4");
            let disk = disk.to_str().context("not UTF-8")?;
            let header = tool("dumpe2fs", &["-h", disk])?;
            if !header.contains("needs_recovery") {
                tool("e2fsck", &["-f", "-n", disk])?;
            }
            Ok(header)
        };
        let write = "for i in 1 2 3 4 5 6 7 8; do head -c 300000 /dev/zero >/file$i; done; rm /file3; sync";
        let mut clean = rvm.run_command(["--name", "clean", BUSYBOX, "sh", "-c", write])?;
        clean.stdout(Stdio::piped()).stderr(Stdio::piped());
        Running::start(clean)?.finish(LIMIT)?.ok();
        let header = state("clean")?;
        assert!(
            !header.contains("needs_recovery") && header.contains("clean"),
            "{header}"
        );

        let script = format!("{write}; echo written; sleep 1000");
        let mut killed = rvm.run_command(["--name", "killed", BUSYBOX, "sh", "-c", &script])?;
        killed.stdout(Stdio::piped()).stderr(Stdio::piped());
        let running = Running::start(killed)?;
        wait_until("it has written", LIMIT, || {
            Ok(running.stdout_so_far().contains("written"))
        })?;
        signal("rvm-vmm", "-KILL")?;
        running.finish(LIMIT)?.failed(125, &["was killed"]);
        let header = state("killed")?;
        assert!(header.contains("needs_recovery"), "{header}");
        rvm.call(["rm", "clean", "killed"])?.ok();
        Ok(())
    })
}
