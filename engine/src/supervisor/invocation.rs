//! How a command starts a supervisor: this executable, with arguments that the engine writes and reads.

use std::env;
use std::ffi::{CStr, OsString};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::Error;
use crate::Layout;
use crate::timeline::Timeline;

/// What a supervisor is told so that its dozen threads, which do next to nothing, cost next to nothing: one heap for all, since
/// each of its own would keep 64 KiB and more (mallopt(3)), and stacks too small to be made one huge page, as those of 2 MiB
/// are where the machine's huge pages are set to `always` (std::thread).
pub(crate) const ENVIRONMENT: [(&str, &str); 2] = [("MALLOC_ARENA_MAX", "1"), ("RUST_MIN_STACK", "262144")];

/// The first argument, by which a supervisor is known in listings of processes, too.
const VERB: &str = "supervise";

/// What the kernel calls its process: 15 bytes at most.
const NAME: &CStr = c"rvm-supervisor";

const TIMING: &str = "--timing";

/// A supervisor to be started, or that this process has been started as.
#[derive(Debug, PartialEq, Eq)]
pub struct Invocation {
    root: PathBuf,
    run: PathBuf,
    id: String,
    timing: bool,
}

impl Invocation {
    pub(crate) fn new(layout: &Layout, id: &str, timing: bool) -> Self {
        Self {
            root: layout.root().to_owned(),
            run: layout.run().to_owned(),
            id: id.to_owned(),
            timing,
        }
    }

    pub(crate) fn arguments(self) -> Vec<OsString> {
        let mut arguments = vec![VERB.into(), self.root.into(), self.run.into(), self.id.into()];
        arguments.extend(self.timing.then(|| TIMING.into()));
        arguments
    }

    /// What this process has been started as; `None` where that is something else.
    #[must_use]
    pub fn requested() -> Option<Self> {
        Self::parse(env::args_os().skip(1))
    }

    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Option<Self> {
        arguments.next().filter(|verb| verb == VERB)?;
        let (root, run) = (arguments.next()?.into(), arguments.next()?.into());
        let id = arguments.next()?.into_string().ok()?;
        let timing = match arguments.next() {
            Some(option) if option == TIMING => true,
            Some(_) => return None,
            None => false,
        };
        Some(Self {
            root,
            run,
            id,
            timing,
        })
    }

    /// Runs the container to its end. The command that started this process has given it a socket as standard input.
    ///
    /// # Errors
    /// As [`Error`] says; the container is then cleaned up by the next command.
    pub fn run(self) -> Result<(), Error> {
        // Otherwise it is "exe", by the path it was started from. A name can only be refused where it is too long.
        let _ = rustix::thread::set_name(NAME);
        let layout = Layout::new(Some(self.root), Some(self.run))?;
        let channel = io::stdin().as_fd().try_clone_to_owned().map_err(Error::Handoff)?;
        super::run(
            &layout,
            &self.id,
            UnixStream::from(channel),
            Timeline::new(self.timing),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for timing in [false, true] {
            let invocation = || Invocation {
                root: "/a root".into(),
                run: "/run".into(),
                id: "1f".into(),
                timing,
            };
            let read = Invocation::parse(invocation().arguments().into_iter());
            assert_eq!(read, Some(invocation()));
        }
    }

    #[test]
    fn a_person_starts_none() {
        for words in [
            &[][..],
            &["ps"],
            &[VERB],
            &[VERB, "/a", "/b"],
            &[VERB, "/a", "/b", "1f", "-x"],
        ] {
            assert_eq!(Invocation::parse(words.iter().map(OsString::from)), None);
        }
    }
}
