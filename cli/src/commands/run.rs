//! `rvm run`.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::{Context as _, Result};
use rvm_engine::control::{Connection, Request as ControlRequest};
use rvm_engine::timeline::{Phase, Stamp};
use rvm_engine::{Attachment, Created, Engine, Error, Request, close_stdin, spec};
use rvm_protocol::Stream;
use signal_hook::consts::signal;
use signal_hook::iterator::Signals;

use super::pull;
use crate::args::{PullPolicy, Run};
use crate::output;

/// Everything that can be caught and is meant for the workload. Not SIGCHLD, SIGPIPE and SIGURG, which are about this
/// process, nor SIGTTIN and SIGTTOU, which are about its terminal.
const FORWARDED: [i32; 14] = [
    signal::SIGHUP,
    signal::SIGINT,
    signal::SIGQUIT,
    signal::SIGTERM,
    signal::SIGUSR1,
    signal::SIGUSR2,
    signal::SIGALRM,
    signal::SIGCONT,
    signal::SIGWINCH,
    signal::SIGIO,
    signal::SIGVTALRM,
    signal::SIGPROF,
    signal::SIGXCPU,
    signal::SIGXFSZ,
];

/// Bytes moved at a time; as much as a socket and a pipe hold by default.
const BUFFER_BYTES: usize = 64 << 10;

pub(super) fn run(engine: &Engine, arguments: Run) -> Result<u8> {
    let started = Stamp::now(Phase::Command);
    if arguments.pull == PullPolicy::Always {
        pull::for_run(engine, &arguments.image)?;
    }
    // Before anything is made, so that no signal finds the default action while something half-made exists.
    let signals = Signals::new(FORWARDED).context("cannot catch signals")?;
    let (interactive, timing, policy) = (arguments.interactive, arguments.timing, arguments.pull);
    let request = request(arguments);
    let (signals, created) = create(engine, &request, policy, signals)?;
    let mut stamps = vec![started, Stamp::now(Phase::Created)];
    let attachment = engine.start(created)?;
    let (code, timeline) = attach(attachment, signals, interactive)?;
    if timing {
        stamps.extend(timeline);
        stamps.push(Stamp::now(Phase::Done));
        output::waterfall(stamps);
    }
    Ok(code)
}

/// Makes the container; fetches the image first if it is missing and that is wanted.
fn create(
    engine: &Engine,
    request: &Request,
    policy: PullPolicy,
    signals: Signals,
) -> Result<(Signals, Created)> {
    match engine.create(request) {
        Err(Error::Image(rvm_images::Error::NotFound(_))) if policy == PullPolicy::Missing => {}
        result => return Ok((signals, result?)),
    }
    output::note(&format!("Unable to find image '{}' locally", request.image));
    let signals = interruptibly(signals, || pull::for_run(engine, &request.image))?;
    Ok((signals, engine.create(request)?))
}

/// Does something that a signal may end at any time, although this process catches them. Returns the signals for later.
fn interruptibly(mut signals: Signals, work: impl FnOnce() -> Result<()>) -> Result<Signals> {
    let handle = signals.handle();
    let guard = thread::spawn(move || {
        for signal in signals.forever() {
            // Ends the process, or does nothing for those that by default do nothing.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    });
    let result = work();
    // Before the others are given up, so that there is no moment without.
    let next = Signals::new(FORWARDED).context("cannot catch signals");
    handle.close();
    // A panic aborts the process, so joining cannot fail.
    let _ = guard.join();
    result.and(next)
}

fn request(arguments: Run) -> Request {
    let entrypoint = arguments.entrypoint.map(|command| {
        if command.is_empty() {
            Vec::new()
        } else {
            vec![command]
        }
    });
    Request {
        image: arguments.image,
        isolation: arguments.isolation.into(),
        name: arguments.name,
        hostname: arguments.hostname,
        auto_remove: arguments.rm,
        open_stdin: arguments.interactive,
        timing: arguments.timing,
        options: spec::Options {
            arguments: arguments.command,
            entrypoint,
            environment: arguments.env.into_iter().map(with_value).collect(),
            working_directory: arguments.workdir,
            user: arguments.user,
            memory_bytes: arguments.memory,
            cpus: arguments.cpus,
            read_only: arguments.read_only,
            ..spec::Options::default()
        },
    }
}

/// `NAME` without a value takes the value that this process has; where it has none, the name removes the variable.
fn with_value(variable: String) -> String {
    if variable.contains('=') {
        return variable;
    }
    match std::env::var(&variable) {
        Ok(value) => format!("{variable}={value}"),
        Err(_) => variable,
    }
}

/// Connects this process' streams and signals to the container, and waits for its end: exit code, and the supervisor's
/// moments.
fn attach(attachment: Attachment, mut signals: Signals, interactive: bool) -> Result<(u8, Vec<Stamp>)> {
    let forward = attachment.control.try_clone()?;
    thread::spawn(move || forward_signals(&mut signals, &forward));
    if interactive {
        let stdin = attachment
            .stdin
            .try_clone()
            .context("cannot connect standard input")?;
        // Not waited for: it may sit in a read from a terminal when the container ends.
        thread::spawn(move || send_input(&stdin));
    } else {
        // The workload has closed it where this fails.
        let _ = close_stdin(&attachment.stdin);
    }
    let control = &attachment.control;
    let stdout = receive(
        Stream::Stdout,
        &attachment.stdout,
        io::stdout().as_fd().try_clone_to_owned(),
        control,
    )?;
    let stderr = receive(
        Stream::Stderr,
        &attachment.stderr,
        io::stderr().as_fd().try_clone_to_owned(),
        control,
    )?;
    let end = attachment.wait();
    // A panic aborts the process, so joining cannot fail.
    let delivered = [stdout, stderr].map(|thread| thread.join().unwrap_or(false));
    if let Some(error) = end.error {
        output::complaint(&error);
    }
    let undelivered = end.code == 0 && delivered.contains(&false);
    let code = if undelivered { super::USAGE } else { end.code };
    Ok((code, end.timeline))
}

fn forward_signals(signals: &mut Signals, control: &Connection) {
    for signal in signals.forever() {
        if control.send(&ControlRequest::Signal { signal }).is_err() {
            // The supervisor is gone; the main thread learns so too.
            break;
        }
    }
}

/// Copies standard input until its end, or until the workload closes its own.
fn send_input(stdin: &UnixStream) {
    if let Ok(source) = io::stdin().as_fd().try_clone_to_owned() {
        // Standard input that cannot be read, and a workload that no longer reads, both end the copy.
        let _ = copy(&mut std::fs::File::from(source), &mut &*stdin);
    }
    let _ = close_stdin(stdin);
}

/// Copies one of the workload's streams until its end; the thread says whether all of it could be delivered. Where nobody reads this process' output any more, the workload
/// is to find its own closed, as at the head of a pipeline.
fn receive(
    stream: Stream,
    source: &UnixStream,
    target: io::Result<OwnedFd>,
    control: &Connection,
) -> Result<thread::JoinHandle<bool>> {
    let mut source = source.try_clone().context("cannot connect an output stream")?;
    let mut target = std::fs::File::from(target.context("cannot use an output stream")?);
    let control = control.try_clone()?;
    Ok(thread::spawn(move || {
        let copied = copy(&mut source, &mut target);
        if let Err(error) = &copied {
            if error.kind() != io::ErrorKind::BrokenPipe {
                output::complaint(&format!("cannot write the container's output: {error}"));
            }
            // Where the supervisor is gone, so is the workload.
            let _ = control.send(&ControlRequest::CloseOutput { stream });
        }
        copied.is_ok() || output::reader_is_gone(&copied)
    }))
}

fn copy(source: &mut impl Read, target: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => target.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
