//! `rvm bench` measures both modes, and what it says of them is true: of work and memory of known size, by counts of others.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rvm_tests::assets::Assets;
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, Output, finish};
use rvm_tests::images::BUSYBOX;
use rvm_tests::rvm::{Isolation, Rvm, beside_this_program, in_mode, scratch};
use serde_json::Value;

/// An empty directory for reports.
fn directory(name: &str) -> Result<PathBuf> {
    let directory = scratch()?.join("bench").join(name);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// `rvm bench ARGUMENTS BUSYBOX`, once each and without warming up.
fn bench(rvm: &Rvm, arguments: &[&str]) -> Result<Output> {
    bench_times(rvm, "1", arguments)
}

/// The same, so many times each.
fn bench_times(rvm: &Rvm, runs: &str, arguments: &[&str]) -> Result<Output> {
    let few = ["--runs", runs, "--warm-up", "0", "--instances", "2"];
    let all = [&["bench"], &few[..], arguments, &[BUSYBOX]].concat();
    finish(rvm.command(all)?, 5 * LIMIT)
}

/// The layers with rvm's own program that an installation has made.
fn probe_layers(rvm: &Rvm) -> Result<BTreeSet<PathBuf>> {
    let mut layers = BTreeSet::new();
    for entry in fs::read_dir(rvm.root().join("cache"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "erofs") {
            layers.insert(path);
        }
    }
    Ok(layers)
}

fn read(path: &Path) -> Result<Value> {
    serde_json::from_slice(&fs::read(path)?).with_context(|| path.display().to_string())
}

/// The rows of one subject, by name, each with its median.
fn medians(report: &Value, subject: &str) -> Result<serde_json::Map<String, Value>> {
    let series = report["series"].as_array().context("no series")?;
    let of_it = series.iter().filter(|series| series["subject"] == subject);
    Ok(of_it
        .map(|series| {
            let row = series["row"].as_str().unwrap_or_default().to_owned();
            (row, series["summary"]["median"].clone())
        })
        .collect())
}

fn number(rows: &serde_json::Map<String, Value>, row: &str) -> Result<f64> {
    let value = rows.get(row).and_then(Value::as_f64);
    value.with_context(|| format!("no row {row} in {rows:?}"))
}

#[test]
fn starts_are_measured_by_phase_and_beside_others() -> Result<()> {
    in_mode(Isolation::Vm, |rvm: &Rvm| {
        let directory = directory("startup")?;
        let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
        let files = [path("a.json"), path("a.csv"), path("a.html")];
        let [json, csv, html] = &files;
        let output = bench(
            rvm,
            &[
                "--suite",
                "startup,syscall",
                "--also",
                "crun,qemu",
                "--json",
                json,
                "--csv",
                csv,
                "--html",
                html,
            ],
        )?
        .ok();
        let text = output.text();
        assert!(
            text.contains("getpid") && text.contains("crun") && text.contains("emulated"),
            "{text}"
        );
        assert!(output.errors().contains("startup: "), "{}", output.errors());

        let report = read(Path::new(json))?;
        assert_eq!(
            (&report["version"], &report["failures"]),
            (&2.into(), &serde_json::json!([]))
        );
        assert_eq!(
            report["manifest"]["kvm"]["kind"], "emulated",
            "{}",
            report["manifest"]
        );
        for subject in ["vm", "container"] {
            let rows = medians(&report, subject)?;
            let total = number(&rows, "total")?;
            assert!(
                number(&rows, "output")? < total && number(&rows, "getpid")? > 0.0,
                "{rows:?}"
            );
            // The phases are all of it: what lies between the last one and the command's end is the end of a process.
            let phases = [
                "command",
                "created",
                "supervised",
                "vmm_started",
                "first_entry",
                "agent_started",
                "agent_ready",
                "isolated",
                "executed",
                "first_byte",
                "exited",
                "torn_down",
                "done",
            ];
            let sum: f64 = phases.iter().filter_map(|phase| rows.get(*phase)?.as_f64()).sum();
            assert!(sum > 0.8 * total && sum <= total, "{sum} of {total}: {rows:?}");
            assert_eq!(rows.contains_key("agent_ready"), subject == "vm");
            assert!(number(&rows, "processor")? > 0.0, "{rows:?}");
        }
        for other in ["crun", "qemu"] {
            let rows = medians(&report, other)?;
            let expected = ["output", "processor", "total"];
            assert_eq!(rows.keys().collect::<Vec<_>>(), expected, "{rows:?}");
        }
        let host = medians(&report, "host")?;
        assert!(number(&host, "control")? > 0.0, "{host:?}");
        assert_eq!(report["waterfalls"].as_array().map(Vec::len), Some(2));

        let csv = fs::read_to_string(csv)?;
        let samples: usize = report["series"].as_array().context("no series")?.len();
        assert_eq!(csv.lines().count(), 1 + samples, "{csv}");
        assert!(csv.contains("\nsyscall,getpid,vm,0,"), "{csv}");
        let page = fs::read_to_string(html)?;
        assert!(
            page.starts_with("<!DOCTYPE html>") && page.contains("<svg") && page.contains("One start of vm")
        );
        Ok(())
    })
}

#[test]
fn memory_of_known_size_is_seen_as_that_size() -> Result<()> {
    in_mode(Isolation::Vm, |rvm: &Rvm| {
        let json = directory("memory")?.join("a.json");
        bench(rvm, &["--suite", "memory", "--json", &json.to_string_lossy()])?.ok();
        let report = read(&json)?;
        let taken = f64::from(128 << 20);
        for subject in ["vm", "container"] {
            let rows = medians(&report, subject)?;
            for row in ["hog-inside", "hog-host"] {
                let seen = number(&rows, row)?;
                assert!((seen / taken - 1.0).abs() < 0.05, "{row} of {subject} is {seen}");
            }
            assert!(number(&rows, "hog-returned")? > 90.0, "{rows:?}");
            // A guest has a cache of its own, a container the host's.
            let (cached, file) = (number(&rows, "file-cache")?, f64::from(64 << 20));
            let expected = if subject == "vm" { 0.9..1.5 } else { 0.0..0.1 };
            assert!(expected.contains(&(cached / file)), "{cached} of {subject}");
            assert!(number(&rows, "private")? <= number(&rows, "pss")?, "{rows:?}");
        }
        let (vm, container) = (medians(&report, "vm")?, medians(&report, "container")?);
        assert!(
            number(&vm, "pss")? > number(&container, "pss")?,
            "{vm:?} {container:?}"
        );
        assert!(number(&vm, "guest-kernel")? > 0.0 && !container.contains_key("guest"));
        // As many as would fit take what is available.
        let taken = number(&vm, "would-fit")? * number(&vm, "available-each")?;
        let memory = report["manifest"]["memory_bytes"].as_f64();
        let part = taken / memory.context("no memory")?;
        assert!((0.2..1.0).contains(&part), "{part}: {vm:?}");
        Ok(())
    })
}

/// The workload asks 1000 times for its own number, and once to know what is right.
#[test]
fn system_calls_are_counted_where_they_are_made() -> Result<()> {
    in_mode(Isolation::Vm, |rvm: &Rvm| {
        let json = directory("exposure")?.join("a.json");
        bench(rvm, &["--suite", "exposure", "--json", &json.to_string_lossy()])?.ok();
        let report = read(&json)?;
        let exposure = |subject: &str| -> Result<Value> {
            let all = report["exposures"].as_array().context("no exposures")?;
            let found = all.iter().find(|exposure| exposure["subject"] == subject);
            Ok(found
                .with_context(|| format!("none of {subject}: {all:?}"))?
                .clone())
        };
        let container = exposure("container")?;
        assert_eq!(container["calls_missing"], Value::Null, "{container}");
        assert_eq!(container["calls"]["getpid"], 1001, "{container}");
        // Those of the mixture that nothing else in a container makes.
        assert_eq!(
            (&container["calls"]["connect"], &container["calls"]["mkdir"]),
            (&10.into(), &1.into())
        );
        let vm = exposure("vm")?;
        assert_eq!(vm["calls_missing"], Value::Null, "{vm}");
        assert_eq!(
            vm["calls"]["getpid"],
            Value::Null,
            "a guest's calls are its kernel's: {vm}"
        );
        // What its VMM does is to wait, and to pass on what is said; a virtual CPU may stay in the kernel throughout.
        assert!(vm["calls"]["epoll_wait"].as_u64() > Some(0), "{vm}");
        let total = |exposure: &Value| -> u64 {
            let calls = exposure["calls"].as_object().into_iter().flatten();
            calls.filter_map(|(_, count)| count.as_u64()).sum()
        };
        assert!(total(&vm) < total(&container) / 10, "{vm} {container}");
        assert!(vm["exits"]["exits"].as_u64() > Some(0), "{vm}");
        let programs = |exposure: &Value| -> Vec<String> {
            let all = exposure["processes"].as_array().into_iter().flatten();
            all.map(|process| process["name"].as_str().unwrap_or_default().to_owned())
                .collect()
        };
        let allows = |exposure: &Value, name: &str| {
            let mut allowed = exposure["allowed"].as_array().into_iter().flatten();
            allowed.any(|call| call == name)
        };
        // Calls of a workload's own, which a VMM has no use for.
        for (name, in_container, in_vm) in [
            ("ioctl", true, true),
            ("execve", true, false),
            ("connect", true, false),
            ("kexec_load", false, false),
        ] {
            assert_eq!(allows(&container, name), in_container, "{name}: {container}");
            assert_eq!(allows(&vm, name), in_vm, "{name}: {vm}");
        }
        for exposure in [&container, &vm] {
            let serving = exposure["processes"].as_array().context("no processes")?;
            let allowed: Vec<_> = serving
                .iter()
                .map(|process| process["allowed"].as_u64())
                .collect();
            let all = exposure["allowed"].as_array().map(Vec::len).unwrap_or_default();
            assert_eq!(allowed, [None, Some(u64::try_from(all)?)], "{serving:?}");
        }
        assert_eq!(programs(&vm), ["rvm", "rvm-vmm"]);
        assert_eq!(programs(&container), ["rvm", ".rvm-probe"]);
        Ok(())
    })
}

/// What both ends have counted and summed alike, and what programs inside have computed.
#[test]
fn what_programs_inside_do_is_measured() -> Result<()> {
    in_mode(Isolation::Vm, |rvm: &Rvm| {
        let json = directory("inside")?.join("a.json");
        let suites = "cpu,disk,volume,network,apps";
        bench(rvm, &["--suite", suites, "--json", &json.to_string_lossy()])?.ok();
        let report = read(&json)?;
        assert_eq!(report["failures"], serde_json::json!([]));
        for subject in ["vm", "container"] {
            let series = report["series"].as_array().context("no series")?;
            let of_it = series.iter().filter(|series| series["subject"] == subject);
            assert_eq!(of_it.count(), 4 + 12 + 12 + 8 + 4, "{series:?}");
            let rows = medians(&report, subject)?;
            for (row, median) in &rows {
                // One at rest may do nothing at all.
                let least = if row == "idle" { -1.0 } else { 0.0 };
                assert!(median.as_f64() > Some(least), "{row}: {rows:?}");
            }
            assert!(
                number(&rows, "round-trip")? <= number(&rows, "round-trip-p99")?,
                "{rows:?}"
            );
        }
        Ok(())
    })
}

/// Each start has to read its files from the disk again, and the report says so.
#[test]
fn starts_are_cold_where_that_is_asked_for() -> Result<()> {
    in_mode(Isolation::Container, |rvm: &Rvm| {
        let json = directory("cold")?.join("a.json");
        let cached = || -> Result<u64> {
            let table = fs::read_to_string("/proc/meminfo")?;
            let line = table.lines().find_map(|line| line.strip_prefix("Cached:"));
            let kib = line.and_then(|line| line.split_whitespace().next());
            Ok(kib.context("no page cache")?.parse()?)
        };
        let held = scratch()?.join("held");
        fs::write(&held, vec![1; 64 << 20])?;
        let before = cached()?;
        let measured = bench(
            rvm,
            &["--suite", "startup", "--cold", "--json", &json.to_string_lossy()],
        );
        let after = cached()?;
        fs::remove_file(held)?;
        measured?.ok();
        assert!(
            after + (32 << 10) < before,
            "{before} KiB of files were cached, and {after} after it"
        );
        let report = read(&json)?;
        let cache = report["manifest"]["cache"].as_str().unwrap_or_default();
        assert!(cache.starts_with("dropped before each start"), "{cache}");
        Ok(())
    })
}

/// Where no bridge can be made there is nothing to measure, and the suite says why.
#[test]
fn a_host_without_bridges_is_told_so() -> Result<()> {
    in_mode(Isolation::Container, |rvm: &Rvm| {
        let inner = rvm.command(["bench", "--runs", "1", "--suite", "network", BUSYBOX])?;
        let hidden = "mount --bind /dev/null \"$(command -v nft)\" && exec \"$0\" \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", hidden]);
        command.arg(inner.get_program()).args(inner.get_args());
        for (name, value) in inner.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        finish(command, LIMIT)?.failed(1, &["nft is not installed", "install the package nftables"]);
        Ok(())
    })
}

#[test]
fn a_run_that_printed_the_wrong_thing_does_not_count() -> Result<()> {
    in_mode(Isolation::Vm, |rvm: &Rvm| {
        let place = directory("wrong")?.join("assets");
        let assets = Assets::like(rvm.assets(), place)?;
        assets.replace("rvm-probe", &fs::read(beside_this_program("probe")?)?)?;
        let wrong = rvm.with_assets(assets.directory());
        let before = probe_layers(rvm)?;
        bench(&wrong, &["--suite", "syscall"])?.failed(1, &["no run of syscall counts for vm"]);
        bench(&wrong, &["--suite", "startup"])?.failed(1, &["no run of startup counts for vm"]);
        // Another program has another layer, which is kept for the next time.
        for layer in probe_layers(rvm)?.difference(&before) {
            fs::remove_file(layer)?;
        }
        Ok(())
    })
}

#[test]
fn what_has_changed_is_told_from_noise_by_the_exit_code() -> Result<()> {
    in_mode(Isolation::Container, |rvm: &Rvm| {
        let directory = directory("diff")?;
        let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
        let (before, after, broken) = (path("a.json"), path("b.json"), path("c.json"));
        bench(rvm, &["--suite", "syscall", "--json", &before])?.ok();
        // As if there had been ten runs alike.
        let mut report = read(Path::new(&before))?;
        for series in report["series"].as_array_mut().context("no series")? {
            let samples = series["samples"].as_array_mut().context("no samples")?;
            let sample = samples.first().context("no sample")?.clone();
            samples.resize(10, sample);
        }
        fs::write(&before, report.to_string())?;
        let diff = |one: &str, other: &str| rvm.call(["bench", "diff", one, other]);
        let same = diff(&before, &before)?.ok().text();
        assert!(same.contains("0 of 16 rows have changed"), "{same}");

        let series = report["series"].as_array_mut().context("no series")?;
        let slow = series
            .iter_mut()
            .find(|series| series["row"] == "getpid")
            .context("no getpid")?;
        for sample in slow["samples"].as_array_mut().context("no samples")? {
            *sample = Value::from(sample.as_f64().context("no number")? * 10.0);
        }
        report["manifest"]["kernel"] = "another".into();
        fs::write(&after, report.to_string())?;
        let changed = diff(&before, &after)?.code(1).text();
        assert!(
            changed.contains("1 of 16 rows have changed") && changed.contains("worse"),
            "{changed}"
        );
        assert!(changed.contains("another after"), "{changed}");

        fs::write(&broken, "{}")?;
        diff(&before, &broken)?.failed(2, &["is no report of rvm bench"]);
        fs::write(&broken, "{\"version\": 99}")?;
        diff(&before, &broken)?.failed(2, &["version 99", "measure again"]);
        assert!(
            changed.contains("syscall: the host's own work took 1.000 times as long"),
            "{changed}"
        );
        diff(&before, &path("none.json"))?.failed(2, &["cannot read"]);
        Ok(())
    })
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_is() -> Result<()> {
    in_mode(Isolation::Container, |rvm: &Rvm| {
        let started = |arguments: &[&str]| bench(rvm, arguments);
        started(&["--suite", "startup,nothing"])?.failed(125, &["nothing", "startup, memory"]);
        for (name, program) in [("qemu", "qemu-system-x86_64"), ("firecracker", "firecracker")] {
            let mut command = rvm.command(["bench", "--suite", "startup", "--also", name, BUSYBOX])?;
            command.env("PATH", "/nowhere");
            let expected = [
                format!("{name} cannot be measured"),
                format!("{program} is not in PATH"),
            ];
            finish(command, LIMIT)?.failed(1, &[&expected[0], &expected[1]]);
        }
        started(&["--suite", "cpu", "--cold"])?.failed(1, &["--cold is about the startup suite"]);
        started(&["--pin", "4000"])?.failed(1, &["available"]);
        started(&["--pin", "none"])?.failed(1, &["no list of CPUs"]);
        started(&["--json", "/nowhere/a.json"])?.failed(1, &["cannot write /nowhere/a.json"]);
        bench_times(rvm, "0", &[])?.failed(125, &["0 is not in 1..="]);
        rvm.call(["bench", "absent:image"])?
            .failed(1, &["absent:image", "rvm pull"]);
        rvm.call(["bench"])?.failed(125, &["IMAGE"]);
        Ok(())
    })
}

both_modes! {
    fn phases_can_be_had_by_programs(rvm) {
        let output = rvm.run(["--timing=json", BUSYBOX, "echo", "out"])?.ok();
        let errors = output.errors();
        let stamps: Vec<Value> = serde_json::from_str(errors.lines().next_back().unwrap_or_default())
            .with_context(|| errors.clone())?;
        let has = |phase: &str| stamps.iter().any(|stamp| stamp["phase"] == phase && stamp["us"].as_u64() > Some(0));
        ensure!(has("command") && has("executed") && has("done"), "{errors}");
        assert_eq!(has("agent_ready"), rvm.isolation() == Isolation::Vm);
    }
}
