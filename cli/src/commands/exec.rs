//! `rvm exec`.

use anyhow::{Context as _, Result};
use rvm_engine::{Engine, Error, Wanted, control};
use signal_hook::iterator::Signals;

use super::session::{self, FORWARDED, Followed};
use super::terminal::{self, Console};
use super::variables;
use crate::args::Exec;
use crate::output;

pub(super) fn run(engine: &Engine, mut arguments: Exec) -> Result<u8> {
    let tty = arguments.tty;
    terminal::require(arguments.interactive && tty)?;
    let wanted = Wanted {
        stdin: arguments.interactive,
        stdout: !arguments.detach,
        stderr: !arguments.detach && !tty,
    };
    let process = control::Exec {
        arguments: arguments.command,
        environment: variables::environment(&mut arguments.process)?,
        working_directory: arguments.process.workdir,
        user: arguments.process.user,
        terminal: tty.then(|| terminal::size().unwrap_or_default()),
    };
    let mut execution = match engine.exec(&arguments.container, process, wanted) {
        Err(Error::Control(control::Error::Exec { code, reason })) => {
            output::complaint(&reason);
            return Ok(code);
        }
        execution => execution?,
    };
    if arguments.detach {
        return Ok(0);
    }
    let signals = tty.then(|| Signals::new(FORWARDED)).transpose();
    let console = signals.context("cannot catch signals")?.map(|signals| Console {
        signals,
        keys: arguments.detaching.detach_keys,
        redraw: false,
    });
    let streams = std::mem::take(&mut execution.streams);
    let control = execution.control.try_clone()?;
    let Followed { end, delivered } = session::follow(streams, &control, console, move || execution.wait())?;
    let end = end.transpose()?;
    Ok(Followed { end, delivered }.code(|code| *code))
}
