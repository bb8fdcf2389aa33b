//! `rvm start`, `stop`, `restart`, `kill`, `wait`, `rename` and `attach`.

use anyhow::{Context as _, Result, bail};
use rvm_engine::record::Record;
use rvm_engine::{Created, Engine, Ready, Wanted};
use signal_hook::iterator::Signals;

use super::run::{self, Manner};
use super::session::FORWARDED;
use super::terminal;
use crate::args::{Attach, Kill, Rename, Start, Stop, Wait};
use crate::output;

pub(super) fn start(engine: &Engine, arguments: Start) -> Result<u8> {
    if !arguments.attach && !arguments.interactive {
        return super::each(&arguments.containers, |wanted| {
            start_one(engine, wanted)?;
            output::lines([wanted])
        });
    }
    let [wanted] = arguments.containers.as_slice() else {
        bail!("you cannot start and attach multiple containers at once");
    };
    let signals = Signals::new(FORWARDED).context("cannot catch signals")?;
    let ready = engine.prepare(wanted)?;
    let (Ready::Running(record) | Ready::Stopped(Created { record, .. })) = &ready;
    let streams = streams(record, arguments.interactive)?;
    let manner = Manner {
        tty: record.settings.tty,
        keys: arguments.detaching.detach_keys,
        redraw: matches!(ready, Ready::Running(_)),
        sig_proxy: true,
    };
    let attachment = match ready {
        Ready::Running(record) => engine.attach(&record.id, streams)?,
        Ready::Stopped(created) => engine.start(created, streams)?,
    };
    Ok(run::attach(attachment, signals, manner)?.0)
}

/// The streams of a container that a command is to be connected to.
fn streams(record: &Record, stdin: bool) -> Result<Wanted> {
    let tty = record.settings.tty;
    let stdin = stdin && record.open_stdin;
    terminal::require(stdin && tty)?;
    Ok(Wanted {
        stdin,
        stdout: true,
        stderr: !tty,
    })
}

pub(super) fn start_one(engine: &Engine, wanted: &str) -> Result<()> {
    let Ready::Stopped(created) = engine.prepare(wanted)? else {
        return Ok(());
    };
    let attachment = engine.start(created, Wanted::default())?;
    match attachment.wait_until_started()? {
        None => Ok(()),
        Some(end) => bail!(
            "cannot start {wanted}: {}",
            end.error.unwrap_or_else(|| "it was killed".to_owned())
        ),
    }
}

pub(super) fn stop(engine: &Engine, arguments: &Stop) -> Result<u8> {
    super::each(&arguments.containers, |wanted| {
        engine.stop(wanted, &how(arguments))?;
        output::lines([wanted])
    })
}

pub(super) fn restart(engine: &Engine, arguments: &Stop) -> Result<u8> {
    super::each(&arguments.containers, |wanted| {
        engine.stop(wanted, &how(arguments))?;
        start_one(engine, wanted)?;
        engine.restarted(wanted)?;
        output::lines([wanted])
    })
}

fn how(arguments: &Stop) -> rvm_engine::Stop {
    rvm_engine::Stop {
        signal: arguments.signal,
        timeout: arguments.timeout,
    }
}

pub(super) fn kill(engine: &Engine, arguments: &Kill) -> Result<u8> {
    super::each(&arguments.containers, |wanted| {
        engine.kill(wanted, arguments.signal)?;
        output::lines([wanted])
    })
}

pub(super) fn wait(engine: &Engine, arguments: &Wait) -> Result<u8> {
    super::each(&arguments.containers, |wanted| {
        output::lines([engine.wait(wanted)?.to_string()])
    })
}

pub(super) fn rename(engine: &Engine, arguments: &Rename) -> Result<u8> {
    engine.rename(&arguments.container, &arguments.name)?;
    Ok(0)
}

pub(super) fn attach(engine: &Engine, arguments: Attach) -> Result<u8> {
    let signals = Signals::new(FORWARDED).context("cannot catch signals")?;
    let record = engine.container(&arguments.container)?;
    let streams = streams(&record, !arguments.no_stdin)?;
    let attachment = engine.attach(&record.id, streams)?;
    let manner = Manner {
        tty: record.settings.tty,
        keys: arguments.detaching.detach_keys,
        redraw: true,
        sig_proxy: arguments.proxy.sig_proxy,
    };
    Ok(run::attach(attachment, signals, manner)?.0)
}
