//! A container with a workload of the probe's in it, spoken to in lines.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{Error, Plan};
use crate::attachment::Attachment;
use crate::engine::{Engine, Request};
use crate::probe::{self, outside};
use crate::record::Isolation;
use crate::spec::{Changes, Options};
use crate::supervisor::Wanted;

/// A workload has said something within this: the longest takes seconds, and an emulated processor is slow.
const PATIENCE: Duration = Duration::from_secs(180);

/// Longest line of an answer.
const LONGEST_LINE: u64 = 1 << 20;

/// Most of what is shown of its complaints.
const LONGEST_COMPLAINT: u64 = 4096;

/// A container that runs. It is removed with this value, whatever it does.
pub(super) struct Session<'a> {
    engine: &'a Engine,
    id: String,
    attachment: Option<Attachment>,
    input: Option<UnixStream>,
    output: BufReader<UnixStream>,
    errors: UnixStream,
}

/// The container in which the probe is to do something, made as a user would make it.
pub(super) fn request(plan: &Plan, isolation: Isolation, words: &[&str]) -> Request {
    let entrypoint = [probe::PATH, "work"].into_iter().chain(words.iter().copied());
    let mut request = probe::unattended(&plan.image, isolation);
    request.probe = true;
    request.options = Options {
        entrypoint: Some(entrypoint.map(str::to_owned).collect()),
        // As root, whoever the image's user is: what is measured is the same in every image.
        user: Some("0:0".to_owned()),
        working_directory: Some("/".to_owned()),
        limits: Changes {
            memory_bytes: Some(plan.memory_bytes),
            cpuset_cpus: plan.pin.clone(),
            ..Changes::default()
        },
        ..Options::default()
    };
    request
}

impl<'a> Session<'a> {
    /// Starts it.
    pub(super) fn start(engine: &'a Engine, request: &Request) -> Result<Self, Error> {
        let created = engine.create(request)?;
        let id = created.id.clone();
        let wanted = Wanted {
            stdin: true,
            stdout: true,
            stderr: true,
        };
        let mut attachment = engine.start(created, wanted)?;
        let streams = std::mem::take(&mut attachment.streams);
        let missing = || Error::Streams(io::ErrorKind::NotConnected.into());
        let output = streams.stdout.ok_or_else(missing)?;
        let errors = streams.stderr.ok_or_else(missing)?;
        for stream in [&output, &errors] {
            stream.set_read_timeout(Some(PATIENCE)).map_err(Error::Streams)?;
        }
        Ok(Self {
            engine,
            id,
            attachment: Some(attachment),
            input: streams.stdin,
            output: BufReader::new(output),
            errors,
        })
    }

    /// Its ID.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Its processes on the host.
    pub(super) fn processes(&self) -> Result<Vec<i32>, Error> {
        let processes = outside::processes(&self.id).map_err(crate::engine::Error::from)?;
        if processes.is_empty() {
            return Err(Error::Wrong("it has no process on the host".to_owned()));
        }
        Ok(processes)
    }

    /// The next line of its output, which is a document.
    pub(super) fn answer<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        let mut line = String::new();
        let read = self.output.by_ref().take(LONGEST_LINE).read_line(&mut line);
        match read {
            Ok(0) => Err(Error::Wrong(format!("it said nothing{}", self.complaint()))),
            Ok(_) => serde_json::from_str(&line).map_err(|error| {
                Error::Wrong(format!(
                    "it printed {:?} ({error})",
                    crate::printable(line.trim())
                ))
            }),
            Err(error) => Err(Error::Wrong(format!("nothing could be heard of it: {error}"))),
        }
    }

    /// Says a line to it.
    pub(super) fn say(&mut self, line: &str) -> Result<(), Error> {
        let input = self
            .input
            .as_mut()
            .ok_or_else(|| Error::Streams(io::ErrorKind::BrokenPipe.into()))?;
        writeln!(input, "{line}").map_err(Error::Streams)
    }

    /// Lets it end, and checks that it ended well and had said all.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        self.input = None;
        let mut rest = Vec::new();
        let more = self.output.by_ref().take(LONGEST_LINE).read_to_end(&mut rest);
        more.map_err(Error::Streams)?;
        let complaint = self.complaint();
        let Some(attachment) = self.attachment.take() else {
            return Ok(());
        };
        let end = attachment.wait();
        match end.error {
            Some(error) => Err(Error::Wrong(error)),
            None if end.code != 0 => Err(Error::Wrong(format!(
                "it ended with exit code {}{complaint}",
                end.code
            ))),
            None if !rest.is_empty() => Err(Error::Wrong("it printed more than it should".to_owned())),
            None => Ok(()),
        }
    }

    /// What it wrote on standard error, once that has an end.
    fn complaint(&mut self) -> String {
        let mut text = Vec::new();
        // What cannot be read is not said.
        let _ = (&self.errors).take(LONGEST_COMPLAINT).read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text);
        if text.trim().is_empty() {
            String::new()
        } else {
            format!(": {}", crate::printable(text.trim()))
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if self.attachment.is_some() {
            // It may be gone already; where it is not, `rvm ps` shows it.
            let _ = self.engine.remove(&self.id, true, true);
        }
    }
}
