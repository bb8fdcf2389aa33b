//! What the workload is: its exit status, identity, environment and rights.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, finish, tool};
use rvm_tests::images::{BUSYBOX, DEBIAN};
use rvm_tests::rvm::{Isolation, Rvm};
use rvm_tests::wait::wait_until;

both_modes! {
    /// The one difference a person sees: whose kernel it is.
    fn kernel_is_the_modes_own(rvm) {
        let seen = rvm.run([DEBIAN, "uname", "-r"])?.ok().text();
        let host = tool("uname", &["-r"])?;
        match rvm.isolation() {
            Isolation::Container => assert_eq!(seen, host),
            Isolation::Vm => {
                assert_ne!(seen, host);
                assert!(seen.starts_with("6.12"), "{seen}");
            }
        }
    }

    fn exit_code_is_the_workloads(rvm) {
        for code in [0, 1, 7, 125, 255] {
            rvm.run([BUSYBOX, "sh", "-c", &format!("exit {code}")])?.code(code);
        }
    }

    /// A real fault: a signal that PID 1 sends to itself would be ignored.
    fn a_segmentation_fault_is_139(rvm) {
        rvm.run([BUSYBOX, "sh", "-c", "f() { f; }; f"])?.code(139);
    }

    fn a_command_that_is_not_there_is_127(rvm) {
        rvm.run([BUSYBOX, "no-such-command"])?.failed(127, &["no-such-command"]);
        rvm.run([BUSYBOX, "/no/such/path"])?.failed(127, &["/no/such/path"]);
    }

    fn a_command_that_cannot_be_run_is_126(rvm) {
        rvm.run([BUSYBOX, "/etc/passwd"])?.failed(126, &["/etc/passwd"]);
        rvm.run([BUSYBOX, "/etc"])?.failed(126, &["/etc"]);
    }

    fn a_first_process_of_ours_reaps_and_hands_on_signals(rvm) {
        // PID 1 is another, and what is left behind by the middle one of three does not stay as a zombie.
        let script = "echo $$; sh -c 'sleep 0.1 & exit'; sleep 0.5; ps -o pid,stat,comm | grep -c ' Z' ; echo x >>/proc/1/exe; exit 3";
        let output = rvm.run(["--init", BUSYBOX, "sh", "-c", script])?;
        assert_eq!((output.code, output.text().as_str()), (3, "2\n0"), "{output:?}");
        // A program without a handler ends by a signal, which PID 1 would not.
        rvm.detach("signal", &["--init", BUSYBOX, "sleep", "1000"])?;
        rvm.call(["stop", "-t", "60", "signal"])?.ok();
        let code = rvm.call(["inspect", "--format", "{{.State.ExitCode}} {{.HostConfig.Init}}", "signal"])?.ok().text();
        assert_eq!(code, "143 true");
        rvm.call(["rm", "signal"])?.ok();
        rvm.run(["--init", BUSYBOX, "no-such-command"])?.failed(127, &["no-such-command"]);
    }

    fn the_workload_is_pid_1(rvm) {
        // The shell lists /proc before it starts anything else: nobody else's processes are there.
        let output = rvm.run([BUSYBOX, "sh", "-c", "echo $$ $(cat /proc/1/comm); echo /proc/[0-9]*"])?.ok();
        assert_eq!(output.text(), "1 sh\n/proc/1");
    }

    fn rights_are_dockers(rvm) {
        let status = rvm.run([DEBIAN, "cat", "/proc/self/status"])?.ok().text();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.strip_prefix(":")).map(str::trim).unwrap_or_default().to_owned()
        };
        assert_eq!(field("CapEff"), "00000000a80425fb");
        assert_eq!(field("CapPrm"), "00000000a80425fb");
        assert_eq!(field("CapBnd"), "00000000a80425fb");
        assert_eq!(field("CapInh"), "0000000000000000");
        assert_eq!(field("CapAmb"), "0000000000000000");
        assert_eq!(field("Seccomp"), "2");
        assert_eq!(field("NoNewPrivs"), "0");
        assert_eq!(field("Uid"), "0\t0\t0\t0");
    }

    fn what_docker_forbids_is_forbidden(rvm) {
        for command in ["mount -t tmpfs none /tmp", "mknod /tmp/sda b 8 0 && cat /tmp/sda", "echo b >/proc/sysrq-trigger",
            "head -c 1 /proc/kcore | grep -q .", "echo 1 >/proc/sys/kernel/panic", "hostname other", "unshare -m true"]
        {
            let output = rvm.run([BUSYBOX, "sh", "-c", command])?;
            assert_ne!(output.code, 0, "{command} was allowed\n{}", output.describe());
        }
    }

    fn namespaces_are_its_own(rvm) {
        let rvm = &rvm.connected();
        let own = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
        let inside = rvm.run([BUSYBOX, "sh", "-c", "cd /proc/self/ns; for n in cgroup ipc mnt net pid uts; do readlink $n; done"])?.ok();
        for (name, link) in own.iter().zip(inside.text().lines()) {
            let outside = std::fs::read_link(format!("/proc/self/ns/{name}"))?;
            if rvm.isolation() == Isolation::Container {
                assert_ne!(outside.to_string_lossy(), link, "{name}");
            }
        }
        let interfaces = rvm.run([BUSYBOX, "ls", "/sys/class/net"])?.ok().text();
        assert_eq!(interfaces, "eth0\nlo");
        let interfaces = rvm.run(["--network", "none", BUSYBOX, "ls", "/sys/class/net"])?.ok().text();
        assert_eq!(interfaces, "lo");
        // A cgroup namespace shows the workload's own cgroup as the root.
        assert_eq!(rvm.run([BUSYBOX, "cat", "/proc/self/cgroup"])?.ok().text(), "0::/");
    }

    fn environment_is_images_then_ours(rvm) {
        let mut command = rvm.run_command(
            ["--rm", "--hostname", "box", "-e", "ONE=1", "-e", "TWO", "-e", "ABSENT", "-e", "GREETING=changed", BUSYBOX, "env"])?;
        command.env("TWO", "two words").env_remove("ABSENT");
        let output = finish(command, LIMIT)?.ok();
        let text = output.text();
        let mut lines = text.lines().collect::<Vec<_>>();
        lines.sort_unstable();
        assert_eq!(lines, ["GREETING=changed", "HOME=/root", "HOSTNAME=box", "ONE=1", "PATH=/bin", "TWO=two words"]);
        assert!(rvm.run([BUSYBOX, "env"])?.ok().text().contains("GREETING=from the image"));
    }

    fn working_directory(rvm) {
        assert_eq!(rvm.run([BUSYBOX, "pwd"])?.ok().text(), "/");
        assert_eq!(rvm.run(["-w", "/etc", BUSYBOX, "pwd"])?.ok().text(), "/etc");
        assert_eq!(rvm.run(["-w", "/new/one", BUSYBOX, "pwd"])?.ok().text(), "/new/one");
    }

    fn user_and_groups(rvm) {
        let id = |user: &str| -> Result<String> { Ok(rvm.run(["-u", user, BUSYBOX, "id"])?.ok().text()) };
        assert_eq!(id("www")?, "uid=33(www) gid=33(www) groups=33(www),44(extra)");
        assert_eq!(id("33")?, "uid=33(www) gid=33(www) groups=33(www),44(extra)");
        assert_eq!(id("www:extra")?, "uid=33(www) gid=44(extra) groups=44(extra)");
        assert_eq!(id("1234:5678")?, "uid=1234 gid=5678 groups=5678");
        assert_eq!(id("1234")?, "uid=1234 gid=0(root) groups=0(root)");
        assert_eq!(rvm.run(["-u", "www", BUSYBOX, "sh", "-c", "echo $HOME"])?.ok().text(), "/tmp");
        let status = rvm.run(["-u", "www", BUSYBOX, "grep", "CapEff", "/proc/self/status"])?.ok().text();
        assert_eq!(status, "CapEff:\t0000000000000000");
        let unknown = rvm.run(["-u", "nobody-here", BUSYBOX, "true"])?;
        unknown.failed(unknown.code.clamp(125, 126), &["nobody-here"]);
    }

    fn entrypoint_is_replaced(rvm) {
        assert_eq!(rvm.run(["--entrypoint", "echo", BUSYBOX, "a", "b c"])?.ok().text(), "a b c");
        assert_eq!(rvm.run(["--entrypoint", "/bin/pwd", BUSYBOX])?.ok().text(), "/");
    }

    fn read_only_root(rvm) {
        let output = rvm.run(["--read-only", BUSYBOX, "sh", "-c", "echo x >/dev/null && touch /x"])?.code(1);
        assert!(output.errors().contains("Read-only file system"), "{}", output.describe());
        assert_eq!(rvm.run([BUSYBOX, "sh", "-c", "echo kept >/x && cat /x"])?.ok().text(), "kept");
    }

    fn hostname_is_set(rvm) {
        assert_eq!(rvm.run(["--hostname", "my-box", BUSYBOX, "hostname"])?.ok().text(), "my-box");
        assert_eq!(rvm.run([BUSYBOX, "hostname"])?.ok().text().len(), 12);
    }

    /// What one run writes, the next does not see.
    fn every_run_starts_fresh(rvm) {
        let command = "test ! -e /mark && echo x >/mark && rm /etc/passwd && echo fresh";
        for _ in 0..2 {
            assert_eq!(rvm.run([BUSYBOX, "sh", "-c", command])?.ok().text(), "fresh");
        }
    }

    fn signals_are_forwarded(rvm) {
        for (signal, name) in [(Signal::TERM, "TERM"), (Signal::INT, "INT"), (Signal::HUP, "HUP"), (Signal::USR1, "USR1")] {
            let script = format!("trap 'echo got {name}; exit 3' {name}; echo ready; while :; do sleep 0.1; done");
            let running = rvm.start("signalled", &[BUSYBOX, "sh", "-c", &script])?;
            wait_until("the workload's trap is set", LIMIT, || Ok(running.stdout_so_far().contains("ready")))?;
            running.signal(signal)?;
            let output = running.finish(LIMIT)?.code(3);
            assert_eq!(output.text(), format!("ready\ngot {name}"));
        }
    }

    /// Orphans in the workload's PID namespace must not become zombies that stay, nor outlive it.
    fn background_processes_end_with_pid_1(rvm) {
        let output = rvm.run([BUSYBOX, "sh", "-c", "sleep 1000 & sleep 1000 & exit 4"])?.code(4);
        assert!(output.elapsed < Duration::from_secs(60), "{}", output.describe());
    }

    fn standard_devices_are_there(rvm) {
        let script = "for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done; \
            test -L /dev/stdin && test -L /dev/fd && test -d /dev/pts && test -d /dev/shm && echo x >/dev/shm/x && \
            head -c 4 /dev/urandom | wc -c; ls /dev/kvm /dev/vda /dev/mem 2>/dev/null";
        let output = rvm.run([BUSYBOX, "sh", "-c", script])?;
        assert_eq!(output.text().trim(), "4", "{}", output.describe());
    }
}

/// Flags that are wrong must not reach a container.
#[test]
fn wrong_flags_are_125() -> Result<()> {
    rvm_tests::rvm::in_mode(Isolation::Container, |rvm: &Rvm| {
        rvm.run(["--no-such-flag", BUSYBOX, "true"])?
            .failed(125, &["--no-such-flag"]);
        rvm.run(["--cpus", "none", BUSYBOX, "true"])?
            .failed(125, &["none"]);
        rvm.run(["-m", "12parsecs", BUSYBOX, "true"])?
            .failed(125, &["12parsecs"]);
        rvm.run(["-w", "relative", BUSYBOX, "true"])?
            .failed(125, &["relative"]);
        rvm.run(["--pull", "never", "no-such-image", "true"])?
            .failed(125, &["no-such-image"]);
        rvm.run(["127.0.0.1:1/no-such-image", "true"])?
            .failed(125, &["no-such-image", "refused"]);
        rvm.run(["UPPER/case:bad tag", "true"])?.failed(125, &["UPPER"]);
        let output = rvm.call(["run", "--isolation", "jail", BUSYBOX])?;
        output.failed(125, &["jail"]);
        Ok(())
    })
    .context("in container mode")
}
