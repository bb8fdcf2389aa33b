//! The startup suite: a command from the moment that it is executed to its end, whatever it is a command of.
//!
//! Every subject is started alike, as a process of its own whose standard output is a pipe; the same two moments are taken
//! of all of them. rvm's own commands tell their phases besides (`rvm run --timing=json`).

use super::catalogue;
use super::command::{Timed, time};
use super::family::{Family, LINGER};
use super::plan::Subject;
use super::report::Waterfall;
use super::{Bench, Error, Sample};
use crate::timeline::{self, Stamp};

/// What the workload prints.
pub(super) const OUTPUT: &str = "hello from rvm-probe\n";

/// The probe's words for it.
pub const WORDS: [&str; 2] = ["work", "hello"];

/// One run.
pub(super) fn measure(bench: &mut Bench, subject: Subject) -> Result<Vec<Sample>, Error> {
    let command = bench.command(subject)?;
    let family = Family::adopt().map_err(Error::Family)?;
    let timed = time(command, &subject.on_its_output(OUTPUT))?;
    let processor = family.processor_time().map_err(Error::Family)?;
    let mut samples = vec![
        Sample::new("total", milliseconds(timed.total_us)),
        Sample::new("output", milliseconds(timed.output_us)),
    ];
    match processor {
        Some(time) => samples.push(Sample::new("processor", time.as_secs_f64() * 1000.0)),
        None => bench.note(format!(
            "startup, {subject}: a process of it went on for {} s, so its processor time is not known",
            LINGER.as_secs()
        )),
    }
    if subject.isolation().is_some() {
        let stamps = stamps(&timed)?;
        samples.extend(
            timeline::durations(timed.began_us, &stamps)
                .into_iter()
                .map(|(phase, us)| Sample::new(catalogue::phase(phase).id, milliseconds(us))),
        );
        let since = |stamp: Stamp| Stamp {
            us: stamp.us.saturating_sub(timed.began_us),
            ..stamp
        };
        let stamps = stamps.into_iter().map(since).collect();
        bench.starts.push((timed.total_us, Waterfall { subject, stamps }));
    }
    Ok(samples)
}

/// The phases that one of rvm's own commands has told: the last line of its complaints.
fn stamps(timed: &Timed) -> Result<Vec<Stamp>, Error> {
    let line = timed.errors.lines().next_back().unwrap_or_default();
    serde_json::from_str(line).map_err(|error| {
        Error::Wrong(format!(
            "it told no phases but {:?} ({error})",
            crate::printable(line)
        ))
    })
}

pub(super) fn milliseconds(us: u64) -> f64 {
    super::number(us) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_the_last_line() {
        let timed = |errors: &str| Timed {
            began_us: 0,
            output_us: 1,
            total_us: 2,
            errors: errors.to_owned(),
        };
        assert_eq!(stamps(&timed("complaint\n[]\n")).unwrap(), []);
        let error = stamps(&timed("complaint\n")).unwrap_err().to_string();
        assert!(error.contains("no phases but \"complaint\""), "{error}");
    }
}
