//! `rvm cp`.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufReader, BufWriter, IsTerminal as _};
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result, bail};
use rvm_engine::{CopyOptions, Engine, Local};

use crate::args::Cp;
use crate::output;

/// Bytes read or written at once.
const BUFFER_BYTES: usize = 1 << 20;

pub(super) fn run(engine: &Engine, arguments: &Cp) -> Result<u8> {
    let options = CopyOptions {
        follow: arguments.follow_link,
        owners: arguments.archive,
    };
    let side = |text| Side::parse(text).context("neither side of a copy can be empty");
    let (copied, container) = match (side(&arguments.source)?, side(&arguments.destination)?) {
        (Side::Container(container, path), Side::Stream) => {
            if io::stdout().is_terminal() {
                bail!("an archive is not written to a terminal: redirect standard output");
            }
            let mut stdout = BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock());
            engine.copy_out(container, path, Local::Stream(&mut stdout), options)?;
            return Ok(0);
        }
        (Side::Container(container, path), Side::Local(target)) => (
            engine.copy_out(container, path, Local::Path(target), options)?,
            None,
        ),
        (Side::Stream, Side::Container(container, path)) => {
            let mut stdin = BufReader::with_capacity(BUFFER_BYTES, io::stdin().lock());
            let copied = engine.copy_in(container, Local::Stream(&mut stdin), path, options)?;
            (copied, Some(container))
        }
        (Side::Local(source), Side::Container(container, path)) => {
            let copied = engine.copy_in(container, Local::Path(source), path, options)?;
            (copied, Some(container))
        }
        (Side::Container(..), Side::Container(..)) => bail!("copying between containers is not supported"),
        _ => bail!("must specify at least one container source"),
    };
    if !arguments.quiet {
        let container = container.map_or_else(String::new, |container| format!("{container}:"));
        let size = output::size(copied.bytes);
        let target = copied.target.display();
        output::note(&format!("Successfully copied {size} to {container}{target}"));
    }
    Ok(0)
}

/// What a side of a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side<'a> {
    /// A path in a container.
    Container(&'a str, &'a OsStr),
    /// A path on this machine.
    Local(&'a OsStr),
    /// Standard input or output.
    Stream,
}

impl<'a> Side<'a> {
    /// As Docker reads it: what begins with a slash or a dot is on this machine, whatever colons it has.
    fn parse(text: &'a OsString) -> Option<Self> {
        let bytes = text.as_bytes();
        match bytes {
            b"" => return None,
            b"-" => return Some(Self::Stream),
            _ => {}
        }
        let colon = bytes.iter().position(|byte| *byte == b':');
        let split = colon.filter(|colon| *colon > 0 && !matches!(bytes, [b'/' | b'.', ..]));
        // A container's name is text; what is none is a path.
        let sides = split.and_then(|colon| {
            let container = std::str::from_utf8(bytes.get(..colon)?).ok()?;
            Some((container, OsStr::from_bytes(bytes.get(colon + 1..)?)))
        });
        Some(sides.map_or(Self::Local(text), |(container, path)| {
            Self::Container(container, path)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_told_apart_as_docker_does() {
        let inside = |container, path| Some(Side::Container(container, OsStr::new(path)));
        let local = |path| Some(Side::Local(OsStr::new(path)));
        let cases = [
            ("", None),
            ("-", Some(Side::Stream)),
            ("file", local("file")),
            ("/a:b", local("/a:b")),
            ("./a:b", local("./a:b")),
            ("../a:b", local("../a:b")),
            (":b", local(":b")),
            ("web:/etc", inside("web", "/etc")),
            ("web:etc:x", inside("web", "etc:x")),
            ("web:", inside("web", "")),
            ("a/b:c", inside("a/b", "c")),
        ];
        for (text, expected) in cases {
            assert_eq!(Side::parse(&text.into()), expected, "{text:?}");
        }
    }
}
