//! Memory, processor time and disk: what a workload may take.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, finish};
use rvm_tests::images::BUSYBOX;
use rvm_tests::processes;
use rvm_tests::rvm::{Isolation, Rvm, in_mode};
use rvm_tests::wait::wait_until;

/// Percent of one processor that a loop of three seconds had.
fn spin(rvm: &Rvm, flags: &[&str]) -> Result<f64> {
    let arguments = [flags, &[BUSYBOX, "/probe", "spin", "3000"]].concat();
    Ok(rvm.run(arguments)?.ok().text().trim().parse()?)
}

both_modes! {
    /// Memory that is taken in small steps: the limit is met in the middle of one, and the workload is killed.
    fn a_hog_is_killed_and_told_so(rvm) {
        let output = rvm.run(["--name", "hog", "-m", "64m", BUSYBOX, "/probe", "hog", "512"])?;
        output.failed(137, &["out of memory"]);
        let text = output.text();
        assert!(text.contains("32 MiB") && !text.contains("64 MiB"), "{}", output.describe());
        assert_eq!(rvm.actions("hog")?, ["create", "attach", "start", "oom", "die", "destroy"]);
    }

    fn within_the_limit_nothing_happens(rvm) {
        let output = rvm.run(["-m", "64m", BUSYBOX, "/probe", "hog", "48"])?.ok();
        assert!(output.text().ends_with("all 48 MiB"));
    }

    /// In processor time, which the kernel grants: what work is done in it depends on what else the machine does.
    fn half_a_cpu_halves_a_loop(rvm) {
        let half = spin(rvm, &["--cpus", "0.5"])?;
        assert!((35.0..=65.0).contains(&half), "with --cpus 0.5 the loop had {half} % of a processor");
        let full = spin(rvm, &[])?;
        assert!(full > 75.0, "without a limit the loop had {full} % of a processor");
    }

    fn less_memory_than_anything_needs_is_refused(rvm) {
        rvm.run(["-m", "1m", BUSYBOX, "true"])?.failed(125, &["memory"]);
        rvm.run(["-m", "0", BUSYBOX, "true"])?.failed(125, &["memory"]);
    }
}

/// A guest that has taken its kernel over is not bound by the limits in it: the machine has one of its own outside, and it
/// can be changed while the machine runs.
#[test]
fn a_machine_is_held_to_its_processor_time_from_outside() -> Result<()> {
    in_mode(Isolation::Vm, |rvm: &Rvm| {
        let script = "echo up; while :; do :; done";
        let running = rvm.start("quota", &["--cpus", "0.5", BUSYBOX, "sh", "-c", script])?;
        wait_until("it runs", LIMIT, || Ok(running.stdout_so_far().contains("up")))?;
        let vmm = processes::all()?
            .into_values()
            .find(|process| process.name == "rvm-vmm")
            .context("no VMM")?;
        let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", vmm.pid))?;
        let own = cgroups
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .context("no cgroup")?;
        let directory = Path::new("/sys/fs/cgroup").join(own);
        let quota = || Ok::<_, anyhow::Error>(fs::read_to_string(directory.join("cpu.max"))?);
        wait_until("the limit is set", LIMIT, || Ok(quota()?.starts_with("70000 ")))?;
        let throttled = || -> Result<u64> {
            let statistics = fs::read_to_string(directory.join("cpu.stat"))?;
            let line = statistics
                .lines()
                .find_map(|line| line.strip_prefix("nr_throttled "));
            Ok(line.context("no nr_throttled")?.trim().parse()?)
        };
        let before = throttled()?;
        fs::write(directory.join("cpu.max"), "10000 100000")?;
        wait_until("the new limit is felt", LIMIT, || Ok(throttled()? >= before + 5))?;
        fs::write(directory.join("cpu.max"), "max 100000")?;
        rvm.call(["rm", "-f", "quota"])?.ok();
        running.finish(LIMIT)?.code(137);
        Ok(())
    })
}

/// The VMM's resident memory in MiB; no other test's VMM is there.
fn resident() -> Result<u64> {
    let vmm = processes::all()?
        .into_values()
        .find(|process| process.name == "rvm-vmm");
    Ok(vmm.context("no VMM")?.resident >> 20)
}

/// What the guest has freed is the host's again, without anybody asking for it.
#[test]
fn memory_that_a_guest_frees_returns_to_the_host() -> Result<()> {
    in_mode(Isolation::Vm, |rvm: &Rvm| {
        let script = "/probe hog 400; sleep 1000";
        let running = rvm.start("balloon", &["-m", "600m", BUSYBOX, "sh", "-c", script])?;
        wait_until("the memory was taken", LIMIT, || {
            Ok(running.stdout_so_far().contains("all 400 MiB"))
        })?;
        let most = resident()?;
        assert!(most > 400, "{most} MiB");
        wait_until("350 MiB are back", Duration::from_secs(10), || {
            Ok(resident()? + 350 <= most)
        })?;
        rvm.call(["rm", "-f", "balloon"])?.ok();
        running.finish(LIMIT)?.code(137);
        Ok(())
    })
}

/// The writable layer of a VM is a disk with an end. The workload sees ENOSPC, and nothing else sees anything.
#[test]
fn a_full_disk_is_the_guests_own_problem() -> Result<()> {
    in_mode(Isolation::Vm, |rvm: &Rvm| {
        let output = finish(
            rvm.run_command(["--rm", BUSYBOX, "/probe", "fill", "/"])?,
            5 * LIMIT,
        )?
        .ok();
        assert!(
            output.text().starts_with("no storage space"),
            "{}",
            output.describe()
        );
        rvm.run([BUSYBOX, "sh", "-c", "echo x >/x"])?.ok();
        Ok(())
    })
}
