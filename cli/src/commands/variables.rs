//! Names with values: environment variables and labels, from the command line and from files as Docker reads them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::args::Process;

/// Most bytes of a file. The kernel gives a process no more than 2 MiB of arguments and environment (execve(2)), unless its
/// stack's limit is raised.
const LARGEST: u64 = 2 << 20;

/// What a process finds in its environment; a name without `=` removes the variable.
pub(super) fn environment(process: &mut Process) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for path in &process.env_file {
        // One that this process does not have is none for the file, as Docker has it.
        let entries = read(path)?.into_iter().map(with_value);
        all.extend(entries.filter(|entry| entry.contains('=')));
    }
    all.extend(std::mem::take(&mut process.env).into_iter().map(with_value));
    Ok(all)
}

/// Labels; the command line's win.
pub(super) fn labels(files: &[PathBuf], given: Vec<String>) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for path in files {
        all.extend(pairs(read(path)?));
    }
    all.extend(pairs(given));
    Ok(all)
}

/// A name without a value has an empty one.
pub(super) fn pairs(given: Vec<String>) -> BTreeMap<String, String> {
    let pair = |text: String| match text.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (text, String::new()),
    };
    given.into_iter().map(pair).collect()
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

/// The lines of a file that are neither empty nor comments.
fn read(path: &Path) -> Result<Vec<String>> {
    let text = read_text(path, LARGEST)?;
    lines(&text).with_context(|| path.display().to_string())
}

/// A file of text, if it is no larger than so many bytes.
pub(super) fn read_text(path: &Path, largest: u64) -> Result<String> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(largest + 1).read_to_end(&mut content))
        .with_context(|| format!("cannot read {}", path.display()))?;
    if content.len() as u64 > largest {
        bail!("{} is larger than {largest} bytes", path.display());
    }
    String::from_utf8(content).map_err(|error| {
        let valid = error.as_bytes().get(..error.utf8_error().valid_up_to());
        let line = valid.unwrap_or_default().split(|byte| *byte == b'\n').count();
        anyhow::anyhow!("{} contains invalid utf8 bytes at line {line}", path.display())
    })
}

fn lines(text: &str) -> Result<Vec<String>> {
    let mut entries = Vec::new();
    for line in text.strip_prefix('\u{feff}').unwrap_or(text).lines() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split_once('=').map_or(line, |(name, _)| name);
        if name.is_empty() {
            bail!("no variable name on line '{line}'");
        }
        if name.contains(char::is_whitespace) {
            bail!("variable '{name}' contains whitespaces");
        }
        if line.contains('\0') {
            bail!("variable '{name}' contains a NUL byte");
        }
        entries.push(line.to_owned());
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_docker_s() {
        for (text, expected) in [
            ("", Ok(&[][..])),
            (
                "\u{feff}A=1\r\n\n# no\n  # no\n  B= two words \nC",
                Ok(&["A=1", "B= two words ", "C"]),
            ),
            ("A=b=c#d\nA=", Ok(&["A=b=c#d", "A="])),
            ("A B=1", Err("contains whitespaces")),
            ("A =1", Err("contains whitespaces")),
            ("A ", Err("contains whitespaces")),
            ("=1", Err("no variable name")),
            ("A=\0", Err("NUL")),
            ("A\0=1", Err("NUL")),
        ] {
            match (lines(text), expected) {
                (Ok(actual), Ok(expected)) => assert_eq!(actual, expected, "{text:?}"),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{text:?}: {error}"),
                (actual, _) => panic!("{text:?}: {actual:?}"),
            }
        }
    }

    #[test]
    fn files_that_cannot_be_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("env");
        std::fs::write(&path, b"A=1\nB=\xff\n").unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(error.contains("invalid utf8 bytes at line 2"), "{error}");
        for (path, expected) in [
            ("/dev/zero", "larger than"),
            ("/no/such", "cannot read"),
            ("/", "cannot read"),
        ] {
            let error = format!("{:#}", read(Path::new(path)).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_command_line_wins() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("env");
        std::fs::write(&path, "A=file\nB=file\nRVM_NOT_THERE\nPATH\n").unwrap();
        let mut process = Process {
            env: vec!["B=line".into(), "RVM_NEITHER".into()],
            env_file: vec![path.clone()],
            workdir: None,
            user: None,
        };
        let mut all = environment(&mut process).unwrap();
        assert!(all.remove(2).starts_with("PATH=/"));
        assert_eq!(all, ["A=file", "B=file", "B=line", "RVM_NEITHER"]);
        let labels = labels(&[path], vec!["B=line".into(), "C".into()]).unwrap();
        let expected = [
            ("A", "file"),
            ("B", "line"),
            ("C", ""),
            ("PATH", ""),
            ("RVM_NOT_THERE", ""),
        ];
        assert_eq!(
            labels,
            expected
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into()
        );
    }
}
