//! `rvm run`.

use anyhow::Result;
use rvm_engine::timeline::{Phase, Stamp};
use rvm_engine::{Attachment, Engine, Wanted};
use signal_hook::iterator::Signals;

use super::create;
use super::session;
use super::terminal::{self, Console};
use crate::args::{DetachKeys, Format, Run};
use crate::output;

pub(super) fn run(engine: &Engine, arguments: Run) -> Result<u8> {
    let started = Stamp::now(Phase::Command);
    let Run {
        detach,
        detaching,
        proxy,
        timing,
        probe,
        new,
    } = arguments;
    let interactive = new.interactive && !detach;
    let tty = new.tty;
    terminal::require(interactive && tty)?;
    let (signals, created) = create::make(
        engine,
        new,
        create::Manner {
            stdin_once: interactive,
            timing: timing.is_some(),
            probe,
        },
    )?;
    if detach {
        let id = created.id.clone();
        let attachment = engine.start(created, Wanted::default())?;
        return in_background(&attachment, signals, &id);
    }
    let mut stamps = vec![started, Stamp::now(Phase::Created)];
    let wanted = Wanted {
        stdin: interactive,
        stdout: true,
        stderr: !tty,
    };
    let attachment = engine.start(created, wanted)?;
    let manner = Manner {
        tty,
        keys: detaching.detach_keys,
        redraw: false,
        sig_proxy: proxy.sig_proxy,
    };
    let (code, timeline) = attach(attachment, signals, manner)?;
    if let Some(format) = timing {
        stamps.extend(timeline);
        stamps.push(Stamp::now(Phase::Done));
        match format {
            Format::Table => output::waterfall(stamps),
            Format::Json => output::note(&output::json_line(&stamps)?),
        }
    }
    Ok(code)
}

/// Waits until the workload runs, and prints the container's ID; what keeps it from that is this command's failure.
fn in_background(attachment: &Attachment, signals: Signals, id: &str) -> Result<u8> {
    // One that ends this command ends the start.
    session::forward(signals, &attachment.control)?;
    let failed = attachment.wait_until_started()?;
    output::lines([id])?;
    let Some(end) = failed else { return Ok(0) };
    if let Some(error) = &end.error {
        output::complaint(error);
    }
    Ok(end.code)
}

/// How a command is connected to a container.
pub(super) struct Manner {
    /// Whether the container has a terminal.
    pub(super) tty: bool,
    /// The keys that leave that.
    pub(super) keys: DetachKeys,
    /// Whether it may have drawn its screen for somebody else.
    pub(super) redraw: bool,
    /// Whether signals are forwarded; the keys of a terminal are instead.
    pub(super) sig_proxy: bool,
}

/// Connects this process' streams and signals to the container, and waits for its end: exit code, and the supervisor's
/// moments.
pub(super) fn attach(
    mut attachment: Attachment,
    signals: Signals,
    manner: Manner,
) -> Result<(u8, Vec<Stamp>)> {
    let control = attachment.control.try_clone()?;
    let console = if manner.tty {
        Some(Console {
            signals,
            keys: manner.keys,
            redraw: manner.redraw,
        })
    } else if manner.sig_proxy {
        session::forward(signals, &control)?;
        None
    } else {
        session::act_by_default(signals);
        None
    };
    let streams = std::mem::take(&mut attachment.streams);
    let followed = session::follow(streams, &control, console, move || attachment.wait())?;
    if let Some(error) = followed.end.as_ref().and_then(|end| end.error.as_ref()) {
        output::complaint(error);
    }
    let code = followed.code(|end| end.code);
    Ok((code, followed.end.map(|end| end.timeline).unwrap_or_default()))
}
