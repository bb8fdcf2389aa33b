//! Memory, processor time and disk: what a workload may take.

use anyhow::Result;
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, finish};
use rvm_tests::images::BUSYBOX;
use rvm_tests::rvm::{Isolation, Rvm, in_mode};

/// Percent of one processor that a loop of three seconds had.
fn spin(rvm: &Rvm, flags: &[&str]) -> Result<f64> {
    let arguments = [flags, &[BUSYBOX, "/probe", "spin", "3000"]].concat();
    Ok(rvm.run(arguments)?.ok().text().trim().parse()?)
}

both_modes! {
    /// Memory that is taken in small steps: the limit is met in the middle of one, and the workload is killed.
    fn a_hog_is_killed_and_told_so(rvm) {
        let output = rvm.run(["-m", "64m", BUSYBOX, "/probe", "hog", "512"])?;
        output.failed(137, &["out of memory"]);
        let text = output.text();
        assert!(text.contains("32 MiB") && !text.contains("64 MiB"), "{}", output.describe());
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
