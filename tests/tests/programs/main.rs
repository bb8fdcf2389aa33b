//! Images of programs as people run them: what rvm shows of each is, entry by entry, what umoci unpacks of it, fsck.erofs
//! accepts every layer, and services serve, keep what they acknowledged and find each other in both modes.
//!
//! Compiled with the feature `programs` only. The images have some gigabytes: `scripts/test --soak` makes them, and says in
//! RVM_TEST_PROGRAMS where tests/images/add-probe put them.
#![forbid(unsafe_code)]

mod files;
mod front;
mod kept;
mod services;
mod site;

use std::env;
use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context as _, Result};
use rvm_tests::command::{LIMIT, Output, finish};
use rvm_tests::rvm::{Isolation, Rvm, alone};
use rvm_tests::wait::wait_until;

/// Where tests/images/add-probe put the images.
fn directory() -> Result<PathBuf> {
    let directory =
        env::var_os("RVM_TEST_PROGRAMS").context("RVM_TEST_PROGRAMS is not set: run scripts/test")?;
    Ok(directory.into())
}

/// An installation with the images, in container mode.
fn programs() -> Result<&'static Rvm> {
    static LOADED: OnceLock<Rvm> = OnceLock::new();
    if let Some(rvm) = LOADED.get() {
        return Ok(rvm);
    }
    let rvm = Rvm::empty(Isolation::Container, "programs")?;
    let mut load = rvm.command(["load", "-q", "-i"])?;
    load.arg(directory()?.join("packages.layout"));
    finish(load, 15 * LIMIT)?.ok();
    Ok(LOADED.get_or_init(|| rvm))
}

/// Runs a test body once in each mode.
fn in_both_modes(body: impl Fn(&Rvm) -> Result<()>) -> Result<()> {
    let _alone = alone();
    let rvm = programs()?;
    // What a test that panicked has left is not this one's failure.
    clear(rvm)?;
    for rvm in [rvm, &rvm.in_the_other_mode()] {
        let outcome = body(rvm).with_context(|| rvm.isolation().name());
        if outcome.is_err() {
            // Do not let one failure become the next test's.
            let _ = clear(rvm);
        }
        outcome?;
        assert_eq!(rvm.containers()?, [""; 0]);
    }
    Ok(())
}

/// Removes everything but images.
fn clear(rvm: &Rvm) -> Result<()> {
    rvm.remove_containers()?;
    rvm.call(["volume", "prune", "-f", "-a"])?.ok();
    rvm.call(["network", "prune", "-f"])?.ok();
    Ok(())
}

/// Starts a container in the background. Filling its volumes may take its time.
fn background(rvm: &Rvm, name: &str, arguments: &[&str]) -> Result<()> {
    let mut command = rvm.run_command(["-d", "--name", name])?;
    command.args(arguments);
    finish(command, 5 * LIMIT)?.ok();
    Ok(())
}

/// Waits until `probe`, run in a container, says `answer`.
fn answers(rvm: &Rvm, name: &str, probe: &[&str], answer: &str) -> Result<()> {
    let mut last = None;
    wait_until(name, 2 * LIMIT, || {
        let output = exec(rvm, name, probe)?;
        let fits = output.text().contains(answer);
        last = Some(output);
        Ok(fits)
    })
    .with_context(|| {
        let said = last.map(|output| output.describe()).unwrap_or_default();
        let log = rvm.call(["logs", "--tail", "20", name]).map(|log| log.describe());
        format!("not {answer:?}: {said}\n{}", log.unwrap_or_default())
    })
}

fn exec(rvm: &Rvm, name: &str, command: &[&str]) -> Result<Output> {
    finish(rvm.command([&["exec", name][..], command].concat())?, 2 * LIMIT)
}
