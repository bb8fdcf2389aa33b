//! `rvm-vmm`: runs one machine from descriptors that were passed in.
//!
//! `rvm-vmm --config FD` reads a [`VmConfig`] from descriptor FD to its end, closes every descriptor that it does not
//! name, and runs the machine. It exits with 0 if the guest ended by itself, however, and with 1 if the machine failed;
//! the last event says which, and a failure is also told on standard error, in one line.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Signal, set_parent_process_death_signal};
use rvm_vmm::config::VmConfig;
use rvm_vmm::confine::Namespaces;
use rvm_vmm::event::{Event, Stopped};
use rvm_vmm::machine::{self, Machine};
use rvm_vmm::reporter::{Reporter, Start};
use rvm_vmm::resources::Resources;
use rvm_vmm::seccomp::{Filters, Kind};
use rvm_vmm::sys::{Inherited, share_heap, termination_descriptor};

/// A configuration names at most a few thousand descriptors.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

fn main() -> ExitCode {
    let start = Start::now();
    share_heap();
    match run(start) {
        Ok(stopped) if stopped.reason.is_guest_made() => ExitCode::SUCCESS,
        Ok(stopped) => {
            eprintln!("rvm-vmm: {}", stopped.detail);
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("rvm-vmm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the machine and reports its end. An error is one that came before there was anybody to report to.
fn run(start: Start) -> Result<Stopped> {
    let mut inherited = Inherited::once().context("the descriptors were taken over before")?;
    // A machine without its supervisor is nobody's: it ends with it, even if it is stuck.
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot bind to the supervisor's life")?;
    let config = read_config(&mut inherited)?;
    inherited
        .close_others(&config.descriptors())
        .context("cannot close the other descriptors")?;
    let events = inherited
        .take(config.events_fd)
        .context("cannot use the events socket")?;
    let termination = termination_descriptor().context("cannot watch for SIGTERM")?;

    let reporter = Arc::new(Reporter::new(events, start));
    let built = confine(&config, &mut inherited)
        .and_then(|filters| build(config, &mut inherited, &reporter, filters));
    let stopped = match built {
        Ok(machine) => machine.run(Some(termination)),
        Err(error) => machine::setup_failure(error.as_ref(), &reporter),
    };
    reporter.send_reliably(&Event::Stopped(stopped.clone()));
    Ok(stopped)
}

/// Gives up what a machine does not need, before anything that came from elsewhere is looked at.
fn confine(config: &VmConfig, inherited: &mut Inherited) -> Result<Filters> {
    let namespaces = match config.namespaces {
        Some(given) => Some(Namespaces {
            network: inherited
                .take(given.network_fd)
                .context("cannot use the network namespace")?,
            mounts: inherited
                .take(given.mounts_fd)
                .context("cannot use the mount namespace")?,
        }),
        None => None,
    };
    rvm_vmm::confine::confine(config.user, namespaces).context("cannot give up privileges")?;
    // A change of user has undone it; if the supervisor died in between, its socket is closed, which ends the machine.
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot bind to the supervisor's life")?;
    let filters = Filters::new()?;
    filters.install(Kind::StartUp)?;
    Ok(filters)
}

fn build(
    config: VmConfig,
    inherited: &mut Inherited,
    reporter: &Arc<Reporter>,
    filters: Filters,
) -> Result<Machine> {
    let resources = Resources::claim(config, inherited)?;
    Ok(rvm_vmm::builder::build(resources, reporter.clone(), filters)?)
}

fn read_config(inherited: &mut Inherited) -> Result<VmConfig> {
    let mut arguments = std::env::args().skip(1);
    let (Some("--config"), Some(fd), None) =
        (arguments.next().as_deref(), arguments.next(), arguments.next())
    else {
        bail!("usage: rvm-vmm --config FD (it is started by rvm)");
    };
    let fd = fd
        .parse()
        .with_context(|| format!("{fd:?} is not a descriptor"))?;
    let file = File::from(
        inherited
            .take(fd)
            .context("cannot use the configuration's descriptor")?,
    );
    let mut json = Vec::new();
    file.take(MAX_CONFIG_BYTES + 1)
        .read_to_end(&mut json)
        .context("cannot read the configuration")?;
    ensure!(
        json.len() as u64 <= MAX_CONFIG_BYTES,
        "the configuration is too long"
    );
    Ok(VmConfig::parse(&json)?)
}
