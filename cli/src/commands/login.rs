//! `rvm login` and `rvm logout`.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use anyhow::{Context as _, Result, bail};
use console::Term;
use rvm_images::Kept;

use crate::args::{Login, Logout};
use crate::output;

/// Bytes of a name or password; tokens that serve as passwords have some kilobytes.
const MOST_BYTES: u64 = 64 << 10;

pub(super) fn log_in(arguments: Login) -> Result<u8> {
    let user = match arguments.username {
        Some(user) => user,
        None => ask_user()?,
    };
    let password = if arguments.password_stdin {
        read_password()?
    } else if let Some(password) = arguments.password {
        output::note("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
        password
    } else {
        ask_password()?
    };
    if user.is_empty() || password.is_empty() {
        bail!("a name and a password are needed");
    }
    match rvm_engine::log_in(&arguments.registry, arguments.tls_verify, &user, &password)? {
        Kept::File(path) => output::note(&format!(
            "WARNING! Your password is stored unencrypted in {}.\nConfigure a credential helper (credsStore) to have it kept by another program.",
            path.display()
        )),
        Kept::Helper(_) => {}
    }
    output::lines(["Login Succeeded"])?;
    Ok(0)
}

pub(super) fn log_out(arguments: &Logout) -> Result<u8> {
    let registry = arguments.registry.domain();
    let text = if rvm_engine::log_out(&arguments.registry)? {
        format!("Removing login credentials for {registry}")
    } else {
        format!("Not logged in to {registry}")
    };
    output::lines([text])?;
    Ok(0)
}

fn ask_user() -> Result<String> {
    on_terminal()?;
    prompt("Username: ")?;
    let mut line = String::new();
    let mut stdin = io::stdin().lock().take(MOST_BYTES);
    stdin.read_line(&mut line).context("cannot read the name")?;
    Ok(line.trim().to_owned())
}

fn ask_password() -> Result<String> {
    on_terminal()?;
    prompt("Password: ")?;
    Term::stderr()
        .read_secure_line()
        .context("cannot read the password")
}

fn prompt(text: &str) -> Result<()> {
    let mut stderr = io::stderr();
    write!(stderr, "{text}")
        .and_then(|()| stderr.flush())
        .context("cannot write to standard error")
}

fn on_terminal() -> Result<()> {
    if io::stdin().is_terminal() {
        return Ok(());
    }
    bail!("nobody can be asked, because standard input is no terminal: use -u and --password-stdin")
}

/// All of standard input but the end of its last line, as Docker takes it.
fn read_password() -> Result<String> {
    let mut password = String::new();
    io::stdin()
        .lock()
        .take(MOST_BYTES)
        .read_to_string(&mut password)
        .context("cannot read the password")?;
    let password = password.strip_suffix('\n').unwrap_or(&password);
    Ok(password.strip_suffix('\r').unwrap_or(password).to_owned())
}
