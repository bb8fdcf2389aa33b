//! One file per verb.

mod bench;
mod commit;
mod compare;
mod completion;
mod cp;
mod create;
mod diff;
mod doctor;
mod events;
mod exec;
mod export;
mod history;
mod image;
mod images;
mod import;
mod inspect;
mod life;
mod load;
mod login;
mod logs;
mod network;
mod pause;
mod port;
mod prune;
mod ps;
mod pull;
mod push;
mod rm;
mod rmi;
mod run;
mod save;
mod session;
mod stats;
mod system;
mod terminal;
mod top;
mod update;
mod variables;
mod volume;

use std::io::{self, Write as _};

use anyhow::Result;
use rvm_engine::{Engine, Layout};

use crate::args::{Args, Bench, Command, Places};
use crate::output;

/// Exit code for everything that goes wrong before a workload runs, and for wrong usage, as Docker's.
pub(crate) const USAGE: u8 = 125;

/// Exit code of a verb that failed.
const FAILED: u8 = 1;

/// Exit code of a comparison that failed.
const TROUBLE: u8 = 2;

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
        Some(command @ Command::Run(_)) => dispatch(places, command).map_err(|error| {
            // Docker's code for it, although nothing has run.
            let code = if error.is::<terminal::NotATerminal>() {
                FAILED
            } else {
                USAGE
            };
            failed_with(code)(error)
        }),
        // As diff(1) has it: 1 is an answer.
        Some(command @ Command::Bench(Bench { command: Some(_), .. })) => {
            dispatch(places, command).map_err(failed_with(TROUBLE))
        }
        Some(command) => dispatch(places, command).map_err(failed_with(FAILED)),
        None => completion::help().map_err(failed_with(FAILED)),
    }
}

fn dispatch(places: Places, command: Command) -> Result<u8> {
    match command {
        Command::Run(arguments) => run::run(&engine(places)?, *arguments),
        Command::Create(arguments) => create::run(&engine(places)?, *arguments),
        Command::Start(arguments) => life::start(&engine(places)?, arguments),
        Command::Stop(arguments) => life::stop(&engine(places)?, &arguments),
        Command::Restart(arguments) => life::restart(&engine(places)?, &arguments),
        Command::Kill(arguments) => life::kill(&engine(places)?, &arguments),
        Command::Pause(arguments) => pause::pause(&engine(places)?, &arguments),
        Command::Unpause(arguments) => pause::unpause(&engine(places)?, &arguments),
        Command::Top(arguments) => top::run(&engine(places)?, &arguments),
        Command::Stats(arguments) => stats::run(&engine(places)?, &arguments),
        Command::Update(arguments) => update::run(&engine(places)?, arguments),
        Command::Wait(arguments) => life::wait(&engine(places)?, &arguments),
        Command::Rename(arguments) => life::rename(&engine(places)?, &arguments),
        Command::Attach(arguments) => life::attach(&engine(places)?, arguments),
        Command::Compare(arguments) => compare::run(&engine(places)?, arguments),
        Command::Exec(arguments) => exec::run(&engine(places)?, arguments),
        Command::Ps(arguments) => ps::run(&engine(places)?, &arguments),
        Command::Port(arguments) => port::run(&engine(places)?, &arguments),
        Command::Rm(arguments) => rm::run(&engine(places)?, &arguments),
        Command::Events(arguments) => events::run(&engine(places)?, &arguments),
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
        Command::Cp(arguments) => cp::run(&engine(places)?, &arguments),
        Command::Diff(arguments) => diff::run(&engine(places)?, &arguments),
        Command::Commit(arguments) => commit::run(&engine(places)?, arguments),
        Command::Image(command) => image::run(&engine(places)?, command),
        Command::Network(command) => network::run(&engine(places)?, command),
        Command::Volume(command) => volume::run(&engine(places)?, command),
        Command::System(command) => system::run(&engine(places)?, &command),
        Command::Doctor(arguments) => doctor::run(&engine(places)?, &arguments),
        Command::Bench(arguments) => bench::run(places, arguments),
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
            output::error(&error);
            code = FAILED;
        }
    }
    Ok(code)
}

/// Asks whether what is said is to be removed, in Docker's words: one thing, or a list after a colon.
fn is_confirmed(what: &str) -> Result<bool> {
    let what = match what.strip_prefix(':') {
        Some(list) => format!(":{list}"),
        None => format!(" {what}."),
    };
    let question = format!("WARNING! This will remove{what}\nAre you sure you want to continue? [y/N] ");
    output::bytes(question.as_bytes())?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if !answer.ends_with('\n') {
        // There was no answer, and so no end of the line either.
        let _ = writeln!(io::stdout());
    }
    Ok(matches!(answer.trim(), "y" | "Y"))
}
