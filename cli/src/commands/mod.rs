//! One file per verb.

mod commit;
mod completion;
mod doctor;
mod export;
mod history;
mod image;
mod images;
mod import;
mod inspect;
mod load;
mod login;
mod logs;
mod ps;
mod pull;
mod push;
mod rm;
mod rmi;
mod run;
mod save;
mod supervise;
mod system;

use anyhow::Result;
use rvm_engine::{Engine, Layout};

use crate::args::{Args, Command, Places};

/// Exit code for everything that goes wrong before a workload runs, and for wrong usage, as Docker's.
pub(crate) const USAGE: u8 = 125;

/// Exit code of a verb that failed.
const FAILED: u8 = 1;

/// An error, and the exit code that goes with it.
pub(crate) struct Failure {
    pub(crate) error: anyhow::Error,
    pub(crate) code: u8,
}

/// Runs one command; the result is the exit code.
pub(crate) fn run(args: Args) -> Result<u8, Failure> {
    let failed_with = |code| move |error| Failure { error, code };
    let Args { places, command } = args;
    match command {
        Some(command @ Command::Run(_)) => dispatch(places, command).map_err(failed_with(USAGE)),
        Some(command) => dispatch(places, command).map_err(failed_with(FAILED)),
        None => completion::help().map_err(failed_with(FAILED)),
    }
}

fn dispatch(places: Places, command: Command) -> Result<u8> {
    match command {
        Command::Run(arguments) => run::run(&engine(places)?, *arguments),
        Command::Ps(arguments) => ps::run(&engine(places)?, &arguments),
        Command::Rm(arguments) => rm::run(&engine(places)?, &arguments),
        Command::Logs(arguments) => logs::run(&engine(places)?, &arguments),
        Command::Inspect(arguments) => inspect::run(&engine(places)?, &arguments),
        Command::Pull(arguments) => pull::run(&engine(places)?, arguments),
        Command::Push(arguments) => push::run(&engine(places)?, &arguments),
        Command::Login(arguments) => login::log_in(arguments),
        Command::Logout(arguments) => login::log_out(&arguments),
        Command::Load(arguments) => load::run(&engine(places)?, arguments),
        Command::Images(arguments) => images::run(&engine(places)?, &arguments),
        Command::Rmi(arguments) => rmi::run(&engine(places)?, &arguments),
        Command::Tag(arguments) => image::tag(&engine(places)?, &arguments),
        Command::History(arguments) => history::run(&engine(places)?, &arguments),
        Command::Save(arguments) => save::run(&engine(places)?, &arguments),
        Command::Import(arguments) => import::run(&engine(places)?, arguments),
        Command::Export(arguments) => export::run(&engine(places)?, &arguments),
        Command::Commit(arguments) => commit::run(&engine(places)?, arguments),
        Command::Image(command) => image::run(&engine(places)?, command),
        Command::System(command) => system::run(&engine(places)?, &command),
        Command::Doctor(arguments) => doctor::run(&engine(places)?, &arguments),
        Command::Supervise(arguments) => supervise::run(&engine(places)?, &arguments),
        Command::Completion(arguments) => completion::script(&arguments),
        Command::Man(arguments) => completion::pages(&arguments),
    }
}

fn engine(places: Places) -> Result<Engine> {
    Ok(Engine::new(
        Layout::new(places.root, places.run).map_err(rvm_engine::Error::from)?,
    ))
}

/// Applies a verb to each of several things and goes on after a failure, as Docker does.
fn each(names: &[String], mut verb: impl FnMut(&str) -> Result<()>) -> Result<u8> {
    let mut code = 0;
    for name in names {
        if let Err(error) = verb(name) {
            crate::output::error(&error);
            code = FAILED;
        }
    }
    Ok(code)
}
