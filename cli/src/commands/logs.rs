//! `rvm logs`.

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rvm_engine::log::{self, Entry, Reader};
use rvm_engine::record::{Isolation, now_ms};
use rvm_engine::{Engine, News};
use rvm_protocol::Stream;

use crate::args::{Logs, Tail};
use crate::output;

pub(super) fn run(engine: &Engine, arguments: &Logs) -> Result<u8> {
    let (record, directory) = engine.directory(&arguments.container)?;
    if arguments.boot {
        if record.isolation == Isolation::Container {
            bail!(
                "container {} has no guest kernel: it runs on this machine's",
                record.name
            );
        }
        let console = log::console(&directory).context("cannot read the guest's console")?;
        return output::bytes(&console).map(|()| 0);
    }
    // Before the log is read, so that nothing is missed in between.
    let mut follower = arguments.follow.then(|| engine.follow(&record)).transpose()?;
    let mut reader = Reader::open(&directory).context("cannot read the log")?;
    let skipped = match arguments.tail {
        Tail::All => 0,
        Tail::Lines(wanted) => count(&mut reader)?.saturating_sub(wanted),
    };
    let mut printer = Printer::new(arguments, skipped);
    let deadline = arguments
        .until
        .map(|until| Instant::now() + Duration::from_millis(until.saturating_sub(now_ms())));
    loop {
        while let Some(entry) = reader.next_entry().context("cannot read the log")? {
            let written = printer.print(&entry);
            if output::reader_is_gone(&written) {
                return Ok(0);
            }
            written.context("cannot write the log")?;
        }
        let Some(follower) = &mut follower else {
            return Ok(0);
        };
        let more = match follower.wait(deadline).map_err(rvm_engine::Error::from)? {
            News::More => true,
            News::Ended => engine.follow_on(&record, follower)?,
            News::Late => false,
        };
        if !more {
            return Ok(0);
        }
    }
}

/// The number of lines that there are, and back to the beginning.
fn count(reader: &mut Reader) -> Result<u64> {
    let mut lines = Lines::default();
    while let Some(entry) = reader.next_known().context("cannot read the log")? {
        lines.split(&entry, |_| {});
    }
    reader.rewind();
    Ok(lines.begun)
}

/// Where lines begin: in each stream for itself, and counted over both.
#[derive(Default)]
struct Lines {
    /// Whether output and error are within a line.
    within: [bool; 2],
    begun: u64,
}

/// A line, or a part of one.
struct Part<'a> {
    bytes: &'a [u8],
    /// The line's number from 0, if it begins here.
    begins: Option<u64>,
}

impl Lines {
    fn split<'a>(&mut self, entry: &'a Entry, mut act: impl FnMut(&Part<'a>)) {
        let within = &mut self.within[index(entry.stream)];
        for bytes in entry.bytes.split_inclusive(|byte| *byte == b'\n') {
            let begins = (!*within).then_some(self.begun);
            self.begun += u64::from(!*within);
            *within = !bytes.ends_with(b"\n");
            act(&Part { bytes, begins });
        }
    }
}

fn index(stream: Stream) -> usize {
    usize::from(stream == Stream::Stderr)
}

/// Prints the lines that are wanted, each to the stream that it came from.
struct Printer {
    lines: Lines,
    /// Lines from the beginning that are not wanted.
    skipped: u64,
    since: u64,
    until: u64,
    timestamps: bool,
    /// Whether the line that each stream is in is wanted.
    wanted: [bool; 2],
}

impl Printer {
    fn new(arguments: &Logs, skipped: u64) -> Self {
        Self {
            lines: Lines::default(),
            skipped,
            since: arguments.since.unwrap_or(0),
            until: arguments.until.unwrap_or(u64::MAX),
            timestamps: arguments.timestamps,
            wanted: [false; 2],
        }
    }

    fn print(&mut self, entry: &Entry) -> io::Result<()> {
        let text = self.select(entry);
        match entry.stream {
            Stream::Stderr => io::stderr().write_all(&text),
            Stream::Stdout | Stream::Stdin => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(&text)?;
                // Whoever follows sees it now.
                stdout.flush()
            }
        }
    }

    /// What of an entry is to be printed.
    fn select(&mut self, entry: &Entry) -> Vec<u8> {
        let mut text = Vec::new();
        let wanted = &mut self.wanted[index(entry.stream)];
        let in_time = (self.since..=self.until).contains(&entry.time_ms);
        let (skipped, timestamps) = (self.skipped, self.timestamps);
        self.lines.split(entry, |part| {
            if let Some(number) = part.begins {
                *wanted = in_time && number >= skipped;
                if *wanted && timestamps {
                    text.extend(output::nanoseconds(entry.time_ms).bytes());
                    text.push(b' ');
                }
            }
            if *wanted {
                text.extend(part.bytes);
            }
        });
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(stream: Stream, time_ms: u64, text: &str) -> Entry {
        Entry {
            stream,
            time_ms,
            bytes: text.as_bytes().to_vec(),
        }
    }

    fn printed(printer: &mut Printer, entries: &[Entry]) -> String {
        let all = entries.iter().flat_map(|entry| printer.select(entry));
        String::from_utf8(all.collect()).unwrap()
    }

    fn printer(skipped: u64) -> Printer {
        Printer {
            lines: Lines::default(),
            skipped,
            since: 0,
            until: u64::MAX,
            timestamps: false,
            wanted: [false; 2],
        }
    }

    /// Four lines: a line of errors in the middle of one of output, which comes in two parts.
    fn entries() -> [Entry; 4] {
        [
            entry(Stream::Stdout, 1000, "one\ntw"),
            entry(Stream::Stderr, 2000, "error\n"),
            entry(Stream::Stdout, 3000, "o\nthree"),
            entry(Stream::Stdout, 4000, "!\n"),
        ]
    }

    #[test]
    fn lines_are_counted_where_they_begin() {
        let cases = [
            (0, "one\ntwerror\no\nthree!\n"),
            (1, "twerror\no\nthree!\n"),
            (2, "error\nthree!\n"),
            (3, "three!\n"),
            (4, ""),
        ];
        for (skipped, expected) in cases {
            assert_eq!(printed(&mut printer(skipped), &entries()), expected, "{skipped}");
        }
    }

    #[test]
    fn a_line_is_as_old_as_its_beginning() {
        let mut late = printer(0);
        late.since = 1500;
        assert_eq!(printed(&mut late, &entries()), "error\nthree!\n");
        let mut early = printer(0);
        early.until = 1500;
        assert_eq!(printed(&mut early, &entries()), "one\ntwo\n");
    }

    #[test]
    fn times_stand_before_lines() {
        let mut printer = printer(2);
        printer.timestamps = true;
        assert_eq!(
            printed(&mut printer, &entries()),
            "1970-01-01T00:00:02.000000000Z error\n1970-01-01T00:00:03.000000000Z three!\n"
        );
    }
}
