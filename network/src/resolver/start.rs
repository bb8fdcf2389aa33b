//! That the process runs: whoever has a member on a network sees to it.
//!
//! The process holds the lock `resolver.lock` of the network's directory: the open file that it is started with. Each
//! supervisor with a member on the network calls [`Resolver::ensure`] before that starts, and [`Resolver::keep`] then waits
//! in a thread for that lock. It gets it when the process has ended, however that was, and starts another one. Of several
//! that wake up, one does: starting is done under a second lock, `resolver.start`, and that one is held until the process
//! answers, so that who finds it running may ask it. Both files go with the directory of endpoints when the last member
//! leaves, and so does the process: one that is still there then has nothing to do with the network's next members.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use super::process::ENDPOINTS;

/// How long after a failure it is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Bytes of the process's messages that are kept.
const MOST_MESSAGES: u64 = 64 << 10;

/// What goes with the directory of endpoints.
pub const FILES: [&str; 3] = ["resolver.lock", "resolver.start", "resolver.log"];

/// Why there is no resolver.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be used.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The program could not be started.
    #[error("cannot start {program}")]
    Program {
        /// Which.
        program: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It ended.
    #[error("the network's resolver ended with {status} ({messages} has its messages)")]
    Ended {
        /// How.
        status: ExitStatus,
        /// Where it has said why.
        messages: PathBuf,
    },
}

/// A network's resolver, as whoever starts it sees it.
#[derive(Debug, Clone)]
pub struct Resolver {
    /// `rvm-resolver`.
    pub program: PathBuf,
    /// The network's definition.
    pub definition: PathBuf,
    /// The network's directory among those of what runs; it exists.
    pub directory: PathBuf,
    /// The table of the host's rules, [`crate::Plane::table`].
    pub table: String,
    /// The cgroup it is to be in, where there are some; it exists.
    pub cgroup: Option<PathBuf>,
}

impl Resolver {
    /// Starts it unless it runs. When this returns it answers.
    ///
    /// # Errors
    /// [`Error`].
    pub fn ensure(&self) -> Result<(), Error> {
        let gate = self.open("resolver.start")?;
        gate.lock().map_err(self.unusable("resolver.start"))?;
        let lock = self.open("resolver.lock")?;
        match lock.try_lock() {
            Ok(()) => self.start(lock),
            Err(TryLockError::WouldBlock) => Ok(()),
            Err(TryLockError::Error(error)) => Err(self.unusable("resolver.lock")(error)),
        }
    }

    /// Starts it again whenever it has ended, in a thread, as long as a container is on the network.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub fn keep(self, container: &str) -> io::Result<()> {
        let endpoint = self.directory.join(ENDPOINTS).join(format!("{container}.json"));
        let body = move || {
            while endpoint.exists() {
                let started = self.wait().and_then(|()| match endpoint.exists() {
                    true => self.ensure(),
                    false => Ok(()),
                });
                if let Err(error) = started {
                    eprintln!("rvm: {error}");
                    thread::sleep(PAUSE);
                }
            }
        };
        let thread = thread::Builder::new().name("resolver".into());
        thread.spawn(body).map(drop)
    }

    /// Waits until it does not run.
    fn wait(&self) -> Result<(), Error> {
        let lock = self.open("resolver.lock")?;
        lock.lock().map_err(self.unusable("resolver.lock"))
    }

    fn start(&self, lock: File) -> Result<(), Error> {
        let messages = self.open("resolver.log")?;
        if messages
            .metadata()
            .is_ok_and(|metadata| metadata.len() > MOST_MESSAGES)
        {
            messages.set_len(0).map_err(self.unusable("resolver.log"))?;
        }
        let mut command = Command::new(&self.program);
        command.arg("serve").arg("--definition").arg(&self.definition);
        command
            .arg("--directory")
            .arg(&self.directory)
            .arg("--table")
            .arg(&self.table);
        if let Some(cgroup) = &self.cgroup {
            command.arg("--cgroup").arg(cgroup);
        }
        // The lock goes to it and stays with it: the open file is one, whoever has it.
        command.stdin(lock).stdout(Stdio::piped()).stderr(messages);
        let failed = |source| Error::Program {
            program: self.program.clone(),
            source,
        };
        let mut child = command.spawn().map_err(failed)?;
        // This one's copy of the lock.
        drop(command);
        let mut said = Vec::new();
        if let Some(mut output) = child.stdout.take() {
            output.read_to_end(&mut said).map_err(failed)?;
        }
        if said != b"ready" {
            let status = child.wait().map_err(failed)?;
            let messages = self.directory.join("resolver.log");
            return Err(Error::Ended { status, messages });
        }
        let wait = move || child.wait();
        // Without the thread it is waited for when this process ends, which is as well.
        let _ = thread::Builder::new().name("resolver's end".into()).spawn(wait);
        Ok(())
    }

    fn open(&self, name: &str) -> Result<File, Error> {
        let path = self.directory.join(name);
        let file = File::options().create(true).append(true).open(path);
        file.map_err(self.unusable(name))
    }

    fn unusable(&self, name: &str) -> impl FnOnce(io::Error) -> Error {
        let path = self.directory.join(name);
        move |source| Error::File { path, source }
    }
}
