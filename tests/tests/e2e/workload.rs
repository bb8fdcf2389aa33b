//! A running container looked at from outside: its processes, what it uses.

use anyhow::{Context as _, Result};
use rvm_tests::both_modes;
use rvm_tests::command::LIMIT;
use rvm_tests::images::BUSYBOX;
use rvm_tests::rvm::{Isolation, Rvm};
use rvm_tests::wait::wait_until;
use serde_json::Value;

/// A command line that a terminal would obey.
const HOSTILE: &str = "sleep 1000; : \x1b]2;evil\x07\nnext";

fn stats(rvm: &Rvm, arguments: &[&str]) -> Result<Value> {
    let all = [&["stats", "--no-stream", "--format", "json"], arguments].concat();
    let text = rvm.call(all)?.ok().text();
    serde_json::from_str(&text).with_context(|| text)
}

both_modes! {
    fn processes_and_their_use_are_shown(rvm) {
        let id = rvm.detach("seen", &["-m", "64m", BUSYBOX, "sh", "-c", HOSTILE])?;
        wait_until("both run", LIMIT, || Ok(rvm.call(["top", "seen", "-o", "pid="])?.text().lines().count() == 2))?;
        // What stands still can be looked at as well.
        rvm.call(["pause", "seen"])?.ok();
        let shown = rvm.call(["top", "seen"])?.ok();
        let text = shown.text();
        let lines: Vec<&str> = text.lines().collect();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(lines[0]), ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
        assert_eq!((lines.len(), words(lines[1])[0].as_str(), words(lines[1])[5].as_str()), (3, "root", "?"), "{text}");
        assert!(lines[1].ends_with("sh -c sleep 1000; : ?]2;evil??next"), "{text}");
        assert_eq!(words(lines[2])[2], words(lines[1])[1], "the shell is its parent");
        let chosen = rvm.call(["top", "seen", "-eo", "comm=,rss="])?.ok().text();
        assert!(chosen.lines().zip(["sh ", "sleep "]).all(|(line, name)| line.starts_with(name)), "{chosen}");
        rvm.call(["top", "seen", "-l"])?.failed(1, &["\"-l\"", "-eo"]);

        let row = stats(rvm, &["seen"])?;
        let field = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        assert_eq!((field("ID"), field("Name")), (id[..12].to_owned(), "seen".to_owned()));
        assert_eq!((field("PIDs"), field("CPUPerc")), ("2".to_owned(), "0.00%".to_owned()));
        assert!(field("NetIO").contains("B / ") && field("NetIO").ends_with('B'), "{row}");
        assert!(field("MemUsage").ends_with("B / 64MiB") && !field("MemUsage").starts_with("0B"), "{row}");
        assert!(field("MemPerc").ends_with('%') && field("BlockIO").contains("B / "), "{row}");
        for name in ["HostCPUPerc", "HostMemUsage", "HostPIDs"] {
            assert!(!["", "--", "0", "0B"].contains(&field(name).as_str()), "{name} of {row}");
        }
        rvm.call(["kill", "seen"])?.ok();
        rvm.call(["top", "seen"])?.failed(1, &["seen is not running"]);
        rvm.call(["stats", "--no-stream", "nobody"])?.failed(1, &["nobody"]);
        assert_eq!(rvm.call(["stats", "--no-stream"])?.ok().text().lines().count(), 1, "nothing runs");
        assert_eq!(stats(rvm, &["-a"])?["MemUsage"], "-- / --");
        rvm.call(["rm", "seen"])?.ok();
    }

    fn limits_change_while_a_container_runs(rvm) {
        // What the kernel below the container says; the hierarchy's root is the workload's own cgroup.
        let script = "cat memory.max cpu.max pids.max; echo";
        let shown = |name: &str| -> Result<String> {
            Ok(rvm.call(["exec", "-w", "/sys/fs/cgroup", name, "sh", "-c", script])?.ok().text().replace('\n', " "))
        };
        let limits = || -> Result<String> {
            let format = "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}} \
                          {{.HostConfig.CpuShares}} {{.HostConfig.CpusetCpus}}";
            Ok(rvm.call(["inspect", "--format", format, "tuned"])?.ok().text())
        };
        rvm.detach("tuned", &["-m", "64m", "--cpus", "1", BUSYBOX, "sleep", "1000"])?;
        let all = ["--cpus", "0.5", "--pids-limit", "50", "--cpu-shares", "512", "--cpuset-cpus", "0"];
        let update = |arguments: &[&str]| rvm.call([&["update"], arguments, &["tuned"]].concat());
        assert_eq!(update(&[&["-m", "48m"], &all[..]].concat())?.ok().text(), "tuned");
        assert_eq!(shown("tuned")?, "50331648 50000 100000 50");
        assert_eq!(limits()?, "50331648 100663296 500000000 50 512 0");
        let id = rvm.call(["inspect", "--format", "{{.Id}}", "tuned"])?.ok().text();
        let cgroup = std::path::Path::new("/sys/fs/cgroup/rvm").join(&id);
        let host = |file: &str| -> Result<String> { Ok(std::fs::read_to_string(cgroup.join(file))?.trim().to_owned()) };
        assert_eq!((host("cpu.weight")?.as_str(), host("cpuset.cpus")?.as_str()), ("20", "0"));
        // What cannot be is refused before anything is changed.
        for (arguments, expected) in [
            (&["-m", "96m", "--memory-swap", "64m"][..], "less than"),
            (&["--pids-limit", "7", "--cpu-shares", "1"], "out of range"),
            (&["--pids-limit", "7", "--cpuset-cpus", "4000"], "available"),
            (&["--pids-limit", "7", "--cpus", "5000"], "this machine has"),
            (&["--pids-limit", "7", "-m", "1m"], "minimum"),
        ] {
            update(arguments)?.failed(1, &[expected]);
        }
        update(&[])?.failed(125, &["--memory"]);
        if rvm.isolation() == Isolation::Vm {
            assert_eq!(host("supervisor/cpu.max")?, "70000 100000");
            update(&["--pids-limit", "7", "-m", "1g"])?.failed(1, &["64 MiB", "next start"]);
        }
        assert_eq!(shown("tuned")?, "50331648 50000 100000 50");
        rvm.call(["kill", "tuned"])?.ok();
        // With the next start, also what a machine that runs cannot have.
        update(&["-m", "128m", "--cpuset-cpus", "", "--pids-limit", "-1"])?.ok();
        rvm.call(["start", "tuned"])?.ok();
        assert_eq!(shown("tuned")?, "134217728 50000 100000 max");
        assert_eq!(limits()?, "134217728 268435456 500000000 0 512 ");
        assert_eq!((host("cpu.weight")?.as_str(), host("cpuset.cpus")?.as_str()), ("20", ""));
        rvm.call(["rm", "-f", "tuned"])?.ok();
        rvm.call(["update", "-m", "64m", "nobody"])?.failed(1, &["nobody"]);
    }
}
