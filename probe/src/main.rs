//! `rvm-probe`: runs inside a container, in either mode, and prints what it finds or measures there as one JSON object.
//!
//! It is added to an image as a layer below its own (`engine/src/probe.rs`), so that any image can be looked at, one
//! without a shell included, and changes nothing in it.

#![forbid(unsafe_code)]

mod work;

use std::process::ExitCode;

use anyhow::{Result, bail};
use rustix::system::RebootCommand;
use rvm_probe::{crash, facts, print, sample};

const USAGE: &str = "usage: rvm-probe facts|nothing|wait|write BYTES|sample|crash|work NAME|boot NAME (rvm runs it in containers that it compares and measures)";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rvm-probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["facts"] => print(&facts::collect()),
        ["nothing"] => Ok(()),
        ["write", bytes] => write(bytes.parse()?),
        ["wait"] => Ok(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).map(drop)?),
        ["sample"] => sample::run(),
        ["crash"] => crash::run(),
        ["work", words @ ..] => work::run(words),
        ["boot", words @ ..] => boot(words),
        _ => bail!(USAGE),
    }
}

/// Works as the only program of a virtual machine, which ends with it. A container may not do that.
fn boot(words: &[&str]) -> Result<()> {
    work::run(words)?;
    // What was printed may still be in the serial port's buffer.
    rustix::termios::tcdrain(std::io::stdout())?;
    Ok(rustix::system::reboot(RebootCommand::Restart)?)
}

/// Writes so many bytes to a new file, and has them reach the disk.
fn write(bytes: usize) -> Result<()> {
    let mut file = std::fs::File::create("/.rvm-probe-written")?;
    std::io::Write::write_all(&mut file, &vec![1; bytes])?;
    Ok(file.sync_all()?)
}
