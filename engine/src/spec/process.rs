//! Which command runs and what it is told: arguments, environment, directory.

use oci_spec::image::Config;

use super::{Error, Options};

/// Docker's for every process with a terminal.
pub(super) const TERM: &str = "TERM=xterm";

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The argument vector. An entry point given by the user makes the image's command meaningless, so that one is
/// dropped with it, even when the entry point is only reset.
pub(super) fn arguments(image: &Config, options: &Options) -> Result<Vec<String>, Error> {
    let (entrypoint, image_command) = match &options.entrypoint {
        Some(entrypoint) => (entrypoint.as_slice(), [].as_slice()),
        None => (
            image.entrypoint().as_deref().unwrap_or_default(),
            image.cmd().as_deref().unwrap_or_default(),
        ),
    };
    let command = if options.arguments.is_empty() {
        image_command
    } else {
        options.arguments.as_slice()
    };
    let arguments: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    if arguments.is_empty() {
        return Err(Error::NoCommand);
    }
    Ok(arguments)
}

/// The environment in Docker's order: defaults, the user's, then what the image adds. One value per name; the
/// user's wins over the image's, and either over the defaults, in whose place it then stands. A name without `=`
/// removes the variable.
pub(super) fn environment(image: &Config, options: &Options) -> Vec<String> {
    let image = image.env().as_deref().unwrap_or_default();
    let image = image.iter().filter(|entry| {
        let by_user = |given: &String| name(given) == name(entry);
        !options.environment.iter().any(by_user)
    });
    let mut environment = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", options.hostname)];
    environment.extend(options.terminal.map(|_| TERM.to_owned()));
    put(&mut environment, options.environment.iter().chain(image));
    environment
}

/// Puts variables into an environment: in the place of one of the same name, or at the end; or removes the one with the name.
pub(super) fn put<'a>(environment: &mut Vec<String>, entries: impl IntoIterator<Item = &'a String>) {
    for entry in entries {
        let place = environment.iter().position(|known| name(known) == name(entry));
        match (place, entry.contains('=')) {
            (Some(place), true) => environment[place].clone_from(entry),
            (Some(place), false) => drop(environment.remove(place)),
            (None, true) => environment.push(entry.clone()),
            (None, false) => {}
        }
    }
}

pub(super) fn name(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name)
}

/// The user as isolation takes it, who resolves it in the image: `USER[:GROUP]`, and where there are further groups,
/// `USER:[GROUP]:NAME,...`.
pub(super) fn user(user: &str, groups: &[String]) -> Result<String, Error> {
    let (name, group) = user.split_once(':').unwrap_or((user, ""));
    if group.contains(':') {
        return Err(Error::User(user.to_owned()));
    }
    let is_name = |name: &&String| !name.is_empty() && !name.contains([':', ',', '\0']);
    if let Some(group) = groups.iter().find(|name| !is_name(name)) {
        return Err(Error::Group(group.clone()));
    }
    if groups.is_empty() {
        return Ok(user.to_owned());
    }
    Ok(format!("{name}:{group}:{}", groups.join(",")))
}

/// The further groups of what [`user`] has made.
pub(super) fn groups_of(user: &str) -> Vec<String> {
    let groups = user.splitn(3, ':').nth(2).unwrap_or_default();
    groups
        .split(',')
        .filter(|group| !group.is_empty())
        .map(str::to_owned)
        .collect()
}

/// What was said of the user, of what [`user`] has made.
pub(crate) fn user_of(user: &str) -> &str {
    let parts = user.match_indices(':').nth(1);
    parts.map_or(user, |(end, _)| user[..end].trim_end_matches(':'))
}

/// The working directory, which isolation makes if the image lacks it.
pub(super) fn working_directory(image: &Config, options: &Options) -> Result<String, Error> {
    let given = options.working_directory.as_deref();
    let directory = given
        .or(image.working_dir().as_deref())
        .filter(|directory| !directory.is_empty())
        .unwrap_or("/");
    if !directory.starts_with('/') {
        return Err(Error::RelativeWorkingDirectory(directory.to_owned()));
    }
    Ok(directory.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(items: &[&str]) -> Vec<String> {
        items.iter().map(|&item| item.to_owned()).collect()
    }

    #[test]
    fn commands_combine_as_in_docker() {
        type Case = (
            &'static [&'static str],
            &'static [&'static str],
            Option<&'static [&'static str]>,
            &'static [&'static str],
            &'static [&'static str],
        );
        // Image entry point, image command, given entry point, given arguments, result (empty: no command).
        let cases: [Case; 8] = [
            (&[], &["sh"], None, &[], &["sh"]),
            (&["entry"], &["cmd"], None, &[], &["entry", "cmd"]),
            (&["entry"], &["cmd"], None, &["a", "b"], &["entry", "a", "b"]),
            (&["entry"], &["cmd"], Some(&["mine"]), &[], &["mine"]),
            (&["entry"], &["cmd"], Some(&["mine"]), &["a"], &["mine", "a"]),
            (&["entry"], &["cmd"], Some(&[]), &["a"], &["a"]),
            (&["entry"], &["cmd"], Some(&[]), &[], &[]),
            (&[], &[], None, &[], &[]),
        ];
        for (entrypoint, command, override_entrypoint, given, expected) in cases {
            let mut image = Config::default();
            image
                .set_entrypoint(Some(strings(entrypoint)))
                .set_cmd(Some(strings(command)));
            let options = Options {
                entrypoint: override_entrypoint.map(strings),
                arguments: strings(given),
                ..Options::default()
            };
            match arguments(&image, &options) {
                Ok(actual) => assert_eq!(actual, strings(expected)),
                Err(error) => {
                    assert!(expected.is_empty());
                    assert_eq!(error.to_string(), "no command specified");
                }
            }
        }
    }

    #[test]
    fn environments_merge_as_in_docker() {
        let cases: [(&[&str], &[&str], &[&str]); 6] = [
            (&[], &[], &[DEFAULT_PATH, "HOSTNAME=h"]),
            (&["PATH=/bin", "A=1"], &[], &["PATH=/bin", "HOSTNAME=h", "A=1"]),
            (
                &["A=1", "B=2"],
                &["B=3", "C=x=y"],
                &[DEFAULT_PATH, "HOSTNAME=h", "B=3", "C=x=y", "A=1"],
            ),
            (&[], &["A=1", "A=2"], &[DEFAULT_PATH, "HOSTNAME=h", "A=2"]),
            (&["A=1"], &["A", "HOSTNAME", "Z"], &[DEFAULT_PATH]),
            (&[], &["A="], &[DEFAULT_PATH, "HOSTNAME=h", "A="]),
        ];
        for (image_environment, given, expected) in cases {
            let mut image = Config::default();
            image.set_env(Some(strings(image_environment)));
            let options = Options {
                environment: strings(given),
                hostname: "h".into(),
                ..Options::default()
            };
            assert_eq!(environment(&image, &options), strings(expected));
        }
    }

    #[test]
    fn groups_are_said_with_the_user() {
        let groups = |names: &[&str]| strings(names);
        for (given, more, expected) in [
            ("", &[][..], Some("")),
            ("www:ssl", &[], Some("www:ssl")),
            ("", &["audio", "5"], Some("::audio,5")),
            ("www", &["audio"], Some("www::audio")),
            ("www:ssl", &["audio"], Some("www:ssl:audio")),
            ("www:ssl:audio", &[], None),
            ("www", &["a,b"], None),
            ("www", &["a:b"], None),
            ("www", &[""], None),
        ] {
            let made = user(given, &groups(more)).ok();
            assert_eq!(made.as_deref(), expected, "{given} {more:?}");
            if let Some(made) = made {
                assert_eq!(user_of(&made), given);
                assert_eq!(groups_of(&made), groups(more));
            }
        }
    }

    #[test]
    fn the_working_directory_is_absolute() {
        let cases = [
            (None, None, Some("/")),
            (Some("/srv"), None, Some("/srv")),
            (Some("/srv"), Some("/tmp"), Some("/tmp")),
            (Some(""), None, Some("/")),
            (None, Some("tmp"), None),
        ];
        for (image_directory, given, expected) in cases {
            let mut image = Config::default();
            image.set_working_dir(image_directory.map(str::to_owned));
            let options = Options {
                working_directory: given.map(str::to_owned),
                ..Options::default()
            };
            let actual = working_directory(&image, &options).ok();
            assert_eq!(actual.as_deref(), expected);
        }
    }
}
