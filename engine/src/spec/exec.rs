//! A further process in a container: what the container's own process is, changed as the user asks.

use oci_spec::runtime::Process;

use super::{Error, console_size, process};
use crate::control::Exec;

/// Makes the process of what the container's specification says of its own and of what was asked for.
///
/// # Errors
/// [`Error::NoCommand`], [`Error::RelativeWorkingDirectory`], [`Error::User`].
pub(crate) fn further(own: &Process, exec: &Exec) -> Result<Process, Error> {
    if exec.arguments.is_empty() {
        return Err(Error::NoCommand);
    }
    let mut further = own.clone();
    let mut environment = own.env().clone().unwrap_or_default();
    let has_term = environment
        .iter()
        .any(|entry| process::name(entry) == process::name(process::TERM));
    match exec.terminal {
        Some(_) if !has_term => environment.push(process::TERM.to_owned()),
        // It came with the terminal, which this process does not have.
        None if own.terminal() == Some(true) => environment.retain(|entry| entry != process::TERM),
        _ => {}
    }
    process::put(&mut environment, &exec.environment);
    further
        .set_args(Some(exec.arguments.clone()))
        .set_env(Some(environment))
        .set_terminal(Some(exec.terminal.is_some()))
        .set_console_size(exec.terminal.map(console_size).transpose()?);
    if let Some(directory) = &exec.working_directory {
        if !directory.starts_with('/') {
            return Err(Error::RelativeWorkingDirectory(directory.clone()));
        }
        further.set_cwd(directory.into());
    }
    if let Some(user) = &exec.user {
        let mut changed = own.user().clone();
        let groups = process::groups_of(own.user().username().as_deref().unwrap_or_default());
        changed.set_username(Some(process::user(user, &groups)?));
        further.set_user(changed);
    }
    Ok(further)
}

#[cfg(test)]
mod tests {
    use oci_spec::image::ImageConfiguration;
    use rvm_protocol::TerminalSize;

    use super::*;
    use crate::spec::{Options, build};

    #[test]
    fn a_terminal_is_for_who_asks_for_it() {
        let size = TerminalSize {
            rows: 24,
            columns: 80,
        };
        let seen = |container: Option<TerminalSize>, term: &[&str], terminal: Option<TerminalSize>| {
            let options = Options {
                arguments: vec!["sleep".into()],
                environment: term.iter().map(|&entry| entry.to_owned()).collect(),
                terminal: container,
                ..Options::default()
            };
            let spec = build(&ImageConfiguration::default(), &options).unwrap();
            let exec = Exec {
                arguments: vec!["ls".into()],
                environment: Vec::new(),
                working_directory: None,
                user: None,
                terminal,
            };
            let further = super::further(spec.process().as_ref().unwrap(), &exec).unwrap();
            let width = further.console_size().map(|size| size.width());
            let environment = further.env().clone().unwrap();
            let term = environment.iter().find_map(|entry| entry.strip_prefix("TERM="));
            (further.terminal(), width, term.map(str::to_owned))
        };
        let with = |term: &str| (Some(true), Some(80), Some(term.to_owned()));
        assert_eq!(seen(None, &[], Some(size)), with("xterm"));
        assert_eq!(seen(Some(size), &[], Some(size)), with("xterm"));
        assert_eq!(seen(None, &["TERM=vt100"], Some(size)), with("vt100"));
        assert_eq!(seen(Some(size), &[], None), (Some(false), None, None));
        let own = Some("vt100".to_owned());
        assert_eq!(seen(Some(size), &["TERM=vt100"], None), (Some(false), None, own));
    }

    #[test]
    fn what_is_not_asked_for_is_the_container_s() {
        let options = Options {
            arguments: vec!["sleep".into()],
            environment: vec!["A=1".into(), "B=2".into()],
            working_directory: Some("/tmp".into()),
            user: Some("www".into()),
            ..Options::default()
        };
        let spec = build(&ImageConfiguration::default(), &options).unwrap();
        let own = spec.process().as_ref().unwrap();
        let mut exec = Exec {
            arguments: vec!["ls".into(), "-l".into()],
            environment: vec!["A".into(), "B=3".into(), "C=4".into()],
            working_directory: None,
            user: None,
            terminal: None,
        };
        let further = super::further(own, &exec).unwrap();
        assert_eq!(further.args().as_deref(), Some(exec.arguments.as_slice()));
        let environment = further.env().clone().unwrap();
        assert!(environment.contains(&"B=3".into()) && environment.contains(&"C=4".into()));
        assert!(!environment.iter().any(|entry| entry.starts_with("A")));
        assert_eq!(further.cwd().to_str(), Some("/tmp"));
        assert_eq!(further.user().username().as_deref(), Some("www"));
        assert_eq!(further.capabilities(), own.capabilities());
        exec.user = Some("0:0".into());
        exec.working_directory = Some("etc".into());
        assert!(super::further(own, &exec).is_err());
        exec.working_directory = Some("/etc".into());
        let further = super::further(own, &exec).unwrap();
        assert_eq!(further.cwd().to_str(), Some("/etc"));
        assert_eq!(further.user().username().as_deref(), Some("0:0"));
        exec.arguments.clear();
        assert!(super::further(own, &exec).is_err());
    }
}
