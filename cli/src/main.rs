//! `rvm`: any container image in its own microVM, or as a container, under one command.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod output;

use std::process::ExitCode;

use clap::Parser as _;
use rvm_engine::supervisor::Invocation;

fn main() -> ExitCode {
    // The child side of container mode is this same executable, started again inside the new namespaces.
    rvm_isolation::init_if_requested();
    // So is the process that owns a container. It stays, so it does without all that is for reading a person's arguments.
    if let Some(invocation) = Invocation::requested() {
        return supervise(invocation);
    }
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    match commands::run(args) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            output::error(&failure.error);
            ExitCode::from(failure.code)
        }
    }
}

/// Owns a container to its end.
fn supervise(invocation: Invocation) -> ExitCode {
    match invocation.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error.into());
            ExitCode::FAILURE
        }
    }
}

/// Prints help, the version, or what is wrong with the arguments.
fn usage(error: &clap::Error) -> ExitCode {
    // There is nowhere to report that the terminal cannot be written to.
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::from(commands::USAGE)
    } else {
        ExitCode::SUCCESS
    }
}
