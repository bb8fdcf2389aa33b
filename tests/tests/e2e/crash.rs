//! kill -9 at any moment, of any of rvm's processes: the next command shows the truth and cleans up.

use std::collections::hash_map::RandomState;
use std::env;
use std::hash::{BuildHasher as _, Hasher as _};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, Running};
use rvm_tests::images::BUSYBOX;
use rvm_tests::processes::{self, Process};
use rvm_tests::rvm::{Isolation, Rvm};
use rvm_tests::wait::{let_pass, wait_until};

/// Rounds of each kind in the ordinary test run.
const ROUNDS: u64 = 5;

/// From the start of rvm to well after the workload runs; a VM needs longer.
fn window(rvm: &Rvm) -> u64 {
    match rvm.isolation() {
        Isolation::Vm => 3000,
        Isolation::Container => 600,
    }
}

/// A moment below `limit`, another one in each round of each run of the tests; the failure message names it.
pub(crate) fn moment(limit: u64) -> u64 {
    RandomState::new().build_hasher().finish() % limit
}

/// The processes of one kind; no other test's are there.
fn victims(kind: &str, cli: i32) -> Result<Vec<Process>> {
    let is_victim = |process: &Process| match kind {
        "command" => process.pid == cli,
        "vmm" => process.name == "rvm-vmm",
        _ => processes::arguments(process.pid)
            .iter()
            .any(|word| word == "supervise"),
    };
    Ok(processes::all()?.into_values().filter(is_victim).collect())
}

/// Starts a workload, kills what `kind` names at a random moment, and asks rvm what is left.
fn round(rvm: &Rvm, kind: &str) -> Result<()> {
    let before = rvm.snapshot()?;
    let mut command = rvm.run_command(["--name", "victim", BUSYBOX, "sleep", "1000"])?;
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut running = Running::start(command)?;
    let cli = running.pid()?.as_raw_nonzero().get();
    let_pass(Duration::from_millis(moment(window(rvm))));
    if kind != "command" {
        wait_until("there is something to kill", LIMIT, || {
            Ok(!victims(kind, cli)?.is_empty())
        })?;
    }
    for victim in victims(kind, cli)? {
        processes::kill(victim.pid)?;
    }
    if kind != "command" {
        wait_until("the command has noticed", LIMIT, || Ok(!running.is_running()?))?;
    }
    // The truth: a container is listed as running if, and only if, its workload runs.
    let workload = if rvm.isolation() == Isolation::Vm {
        "rvm-vmm"
    } else {
        "sleep"
    };
    wait_until("the list tells the truth", LIMIT, || {
        let listed = rvm.call(["ps", "-q"])?.ok().text().lines().count();
        let all = processes::all()?;
        Ok(listed
            == all
                .values()
                .filter(|process| process.name == workload && process.state != 'Z')
                .count())
    })?;
    rvm.remove_containers()?;
    assert_eq!(rvm.call(["ps", "-a", "-q"])?.ok().text(), "");
    drop(running);
    before.nothing_new()
}

/// How many rounds of each kind there are to be.
pub(crate) fn rounds_wanted() -> u64 {
    let wanted = env::var("RVM_TEST_ROUNDS");
    wanted.ok().and_then(|count| count.parse().ok()).unwrap_or(ROUNDS)
}

fn rounds(rvm: &Rvm, kind: &str) -> Result<()> {
    for number in 0..rounds_wanted() {
        if let Err(error) = round(rvm, kind) {
            anyhow::bail!("round {number} of killing the {kind}: {error:#}");
        }
    }
    Ok(())
}

both_modes! {
    fn killed_command(rvm) {
        let rvm = &rvm.connected();
        rounds(rvm, "command")?;
    }

    fn killed_supervisor(rvm) {
        let rvm = &rvm.connected();
        rounds(rvm, "supervisor")?;
    }
}

#[test]
fn killed_vmm() -> Result<()> {
    rvm_tests::rvm::in_mode(Isolation::Vm, |rvm: &Rvm| rounds(rvm, "vmm"))
}
