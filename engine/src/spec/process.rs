//! Which command runs and what it is told: arguments, environment, directory.

use oci_spec::image::Config;

use super::{Error, Options};

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
    let name = |entry: &str| entry.split_once('=').map_or(entry, |(name, _)| name).to_owned();
    let image = image.env().as_deref().unwrap_or_default();
    let image = image.iter().filter(|entry| {
        let by_user = |given: &String| name(given) == name(entry);
        !options.environment.iter().any(by_user)
    });
    let mut environment = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", options.hostname)];
    for entry in options.environment.iter().chain(image) {
        let place = environment.iter().position(|known| name(known) == name(entry));
        match (place, entry.contains('=')) {
            (Some(place), true) => environment[place].clone_from(entry),
            (Some(place), false) => drop(environment.remove(place)),
            (None, true) => environment.push(entry.clone()),
            (None, false) => {}
        }
    }
    environment
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
