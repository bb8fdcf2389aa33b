//! Further commands in a container that runs.

use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, Output, Running, finish};
use rvm_tests::images::BUSYBOX;
use rvm_tests::rvm::Rvm;
use rvm_tests::wait::wait_until;

/// A container to run commands in.
fn started(rvm: &Rvm) -> Result<()> {
    rvm.detach(
        "host",
        &[
            "-m",
            "64m",
            "-e",
            "OWN=1",
            "-w",
            "/tmp",
            "--hostname",
            "box",
            BUSYBOX,
            "sleep",
            "1000",
        ],
    )?;
    Ok(())
}

fn exec(rvm: &Rvm, flags: &[&str], command: &[&str]) -> Result<Output> {
    rvm.call([&["exec"], flags, &["host"], command].concat())
}

fn shell(rvm: &Rvm, script: &str) -> Result<Output> {
    exec(rvm, &[], &["sh", "-c", script])
}

fn removed(rvm: &Rvm) -> Result<()> {
    rvm.call(["rm", "-f", "host"])?.ok();
    Ok(())
}

both_modes! {
    fn a_command_runs_beside_the_workload(rvm) {
        let rvm = &rvm.connected();
        started(rvm)?;
        let output = shell(rvm, "echo out; echo err >&2; exit 7")?.code(7);
        assert_eq!((output.text().as_str(), output.errors().as_str()), ("out", "err\n"));
        // In its namespaces: the same processes, host name, files, cgroup.
        let seen = shell(rvm, "cat /proc/1/comm; hostname; pwd; echo $OWN $$; cat /proc/self/cgroup; ls /sys/class/net")?.ok().text();
        let lines: Vec<_> = seen.lines().collect();
        assert_eq!((lines[0], lines[1], lines[2], lines[4], lines[5], lines[6]), ("sleep", "box", "/tmp", "0::/", "eth0", "lo"), "{seen}");
        assert_ne!(lines[3], "1 1", "{seen}");
        let links = "cd /proc/$P/ns; for n in cgroup ipc mnt net pid uts; do readlink $n; done";
        let of = |process: &str| -> Result<String> { Ok(shell(rvm, &links.replace("$P", process))?.ok().text()) };
        assert_eq!(of("1")?, of("self")?);
        exec(rvm, &[], &["touch", "/made"])?.ok();
        exec(rvm, &[], &["cat", "/made"])?.ok();
        removed(rvm)?;
    }

    fn rights_are_the_container_s(rvm) {
        started(rvm)?;
        let status = exec(rvm, &[], &["cat", "/proc/self/status"])?.ok().text();
        for line in ["CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "CapInh:\t0000000000000000", "Seccomp:\t2", "Uid:\t0\t0\t0\t0"] {
            assert!(status.contains(line), "no {line}\n{status}");
        }
        for command in ["mount -t tmpfs none /tmp", "mknod /tmp/sda b 8 0 && cat /tmp/sda", "echo b >/proc/sysrq-trigger", "hostname other"] {
            assert_ne!(shell(rvm, command)?.code, 0, "{command} was allowed");
        }
        // No descriptor but the three streams, and no way to what runs it.
        let open = "for n in 3 4 5 6 7 8 9 10 11 12; do [ -e /proc/$$/fd/$n ] && echo $n; done; true";
        assert_eq!(shell(rvm, open)?.ok().text(), "");
        // It counts against the container's limits.
        shell(rvm, "x=a; while true; do x=$x$x; done")?.code(137);
        let user = exec(rvm, &["-u", "www"], &["sh", "-c", "id; echo $HOME; grep CapEff /proc/self/status"])?.ok().text();
        assert_eq!(user, "uid=33(www) gid=33(www) groups=33(www),44(extra)\n/tmp\nCapEff:\t0000000000000000");
        exec(rvm, &["-u", "nobody-knows"], &["true"])?.failed(126, &["nobody-knows"]);
        removed(rvm)?;
    }

    fn environment_and_directory_can_be_changed(rvm) {
        started(rvm)?;
        let mut command = rvm.command(["exec", "-e", "OWN=2", "-e", "NEW=3", "-e", "TAKEN", "-w", "/etc", "host", "sh", "-c", "echo $OWN $NEW $TAKEN; pwd"])?;
        command.env("TAKEN", "4");
        assert_eq!(finish(command, LIMIT)?.ok().text(), "2 3 4\n/etc");
        exec(rvm, &["-w", "/no/such"], &["pwd"])?.failed(127, &["/no/such"]);
        exec(rvm, &["-w", "/etc/passwd"], &["pwd"])?.failed(126, &["/etc/passwd"]);
        exec(rvm, &["-w", "etc"], &["pwd"])?.failed(126, &["etc"]);
        removed(rvm)?;
    }

    fn exit_codes_are_dockers(rvm) {
        started(rvm)?;
        for code in [0, 1, 255] {
            shell(rvm, &format!("exit {code}"))?.code(code);
        }
        shell(rvm, "kill -9 $$")?.code(137);
        shell(rvm, "f() { f; }; f")?.code(139);
        exec(rvm, &[], &["no-such-command"])?.failed(127, &["no-such-command"]);
        exec(rvm, &[], &["/no/such/path"])?.failed(127, &["/no/such/path"]);
        exec(rvm, &[], &["/etc/passwd"])?.failed(126, &["/etc/passwd"]);
        rvm.call(["exec", "nobody", "true"])?.failed(1, &["nobody"]);
        rvm.call(["stop", "-t", "0", "host"])?.ok();
        exec(rvm, &[], &["true"])?.failed(1, &["host", "not running"]);
        removed(rvm)?;
    }

    fn input_goes_to_it_and_ends(rvm) {
        started(rvm)?;
        let mut command = rvm.command(["exec", "-i", "host", "wc", "-c"])?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = Running::start(command)?;
        let mut stdin = running.stdin().context("no pipe")?;
        stdin.write_all(&[b'x'; 300_000])?;
        drop(stdin);
        assert_eq!(running.finish(LIMIT)?.ok().text(), "300000");
        let mut command = rvm.command(["exec", "host", "wc", "-c"])?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        assert_eq!(Running::start(command)?.finish(LIMIT)?.ok().text(), "0", "without -i there is none");
        // A reader that leaves ends it, as without rvm.
        let mut flood = Running::start_unread(rvm.command(["exec", "host", "yes"])?)?;
        flood.abandon_stdout();
        assert_ne!(flood.finish(LIMIT)?.code, 0);
        wait_until("yes is gone", LIMIT, || Ok(!exec(rvm, &[], &["ps"])?.text().contains("yes")))?;
        removed(rvm)?;
    }

    fn several_run_at_once_and_end_with_the_container(rvm) {
        started(rvm)?;
        let start = |script: &str| {
            let mut command = rvm.command(["exec", "host", "sh", "-c", script])?;
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            Running::start(command)
        };
        let (first, second) = (start("echo one; sleep 1000")?, start("echo two; sleep 1000")?);
        for (running, word) in [(&first, "one"), (&second, "two")] {
            wait_until("it runs", LIMIT, || Ok(running.stdout_so_far().contains(word)))?;
        }
        rvm.call(["kill", "host"])?.ok();
        first.finish(LIMIT)?.code(137);
        second.finish(LIMIT)?.code(137);
        rvm.call(["rm", "host"])?.ok();
    }

    fn one_in_the_background_stays(rvm) {
        started(rvm)?;
        exec(rvm, &["-d"], &["sh", "-c", "echo lost; sleep 1; echo kept >/made; sleep 1000"])?.ok();
        wait_until("it has run", LIMIT, || Ok(exec(rvm, &[], &["cat", "/made"])?.text() == "kept"))?;
        exec(rvm, &["-d"], &["no-such-command"])?.failed(127, &["no-such-command"]);
        // What a command leaves in the background does not hold it up, and its command's end is not its own.
        assert_eq!(shell(rvm, "sleep 1000 & echo left")?.ok().text(), "left");
        let mut command = rvm.command(["exec", "host", "sh", "-c", "echo up; sleep 1; echo on >/on; sleep 1000"])?;
        command.stdout(Stdio::piped());
        let running = Running::start(command)?;
        wait_until("it is up", LIMIT, || Ok(running.stdout_so_far().contains("up")))?;
        drop(running);
        wait_until("it goes on", LIMIT, || Ok(exec(rvm, &[], &["cat", "/on"])?.text() == "on"))?;
        removed(rvm)?;
    }
}
