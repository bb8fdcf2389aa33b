//! Suites whose workload takes its own time: the processor, system calls, the disk, a volume, applications.

use serde::Deserialize;

use super::catalogue::{self, Expected, Unit};
use super::plan::{Subject, Suite};
use super::{Bench, Error, Sample};
use crate::mounts::Wishes;

/// Where the volume is.
const VOLUME: &str = "/.rvm-volume";

/// What the probe prints.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    work: String,
    measures: Vec<Measure>,
    note: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Measure {
    id: String,
    ns: u64,
    operations: u64,
    check: u64,
}

/// One run of one of these suites.
pub(super) fn measure(bench: &mut Bench, suite: Suite, subject: Subject) -> Result<Vec<Sample>, Error> {
    let (words, expected): (&[&str], &[Expected]) = match suite {
        Suite::Cpu => (&["cpu"], &catalogue::CPU),
        Suite::Disk => (&["disk", "/", "1"], &catalogue::DISK),
        Suite::Volume => (&["disk", VOLUME, "4"], &catalogue::VOLUME),
        Suite::Apps => (&["apps", "/"], &catalogue::APPS),
        _ => (&["syscall"], &catalogue::SYSCALL),
    };
    let mut probed = bench.probed(subject)?;
    if suite == Suite::Volume {
        // One without a name, which goes with the container.
        probed.mounts = Wishes {
            binds: vec![VOLUME.to_owned()],
            ..Wishes::default()
        };
    }
    let mut session = probed.start(bench.engine, &[&["work"], words].concat())?;
    let answer: Answer = session.answer()?;
    session.finish()?;
    if let Some(note) = &answer.note {
        bench.note(format!("{suite}, {subject}: {}", crate::printable(note)));
    }
    let work = words.first().copied().unwrap_or_default();
    samples(suite, work, &answer, expected)
}

/// The answer as samples, if it is the right one.
fn samples(suite: Suite, work: &str, answer: &Answer, expected: &[Expected]) -> Result<Vec<Sample>, Error> {
    let wrong = |what: String| Error::Wrong(crate::printable(&what));
    if answer.work != work || answer.measures.len() != expected.len() {
        return Err(wrong(format!("it did {:?} and not {work}", answer.work)));
    }
    let mut samples = Vec::with_capacity(expected.len());
    for (measure, expected) in answer.measures.iter().zip(expected) {
        if measure.id != expected.id || measure.operations != expected.operations {
            return Err(wrong(format!(
                "it did {} of {:?}",
                measure.operations, measure.id
            )));
        }
        if measure.check != expected.check {
            return Err(wrong(format!(
                "{} came to {} instead of {}",
                expected.id, measure.check, expected.check
            )));
        }
        samples.push(Sample::new(expected.id, value(suite, measure)?));
    }
    Ok(samples)
}

/// In the row's unit.
fn value(suite: Suite, measure: &Measure) -> Result<f64, Error> {
    let (ns, operations) = (super::number(measure.ns), super::number(measure.operations));
    if measure.ns == 0 {
        return Err(Error::Wrong(format!("{} took no time", measure.id)));
    }
    Ok(match catalogue::find(suite, &measure.id).map(|row| row.unit) {
        Some(Unit::BytesPerSecond) => operations * 1e9 / ns,
        _ => ns / operations,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(change: impl FnOnce(&mut Answer)) -> Result<Vec<Sample>, Error> {
        let measure = |expected: &Expected| Measure {
            id: expected.id.to_owned(),
            ns: 2_000_000_000,
            operations: expected.operations,
            check: expected.check,
        };
        let mut answer = Answer {
            work: "cpu".to_owned(),
            measures: catalogue::CPU.iter().map(measure).collect(),
            note: None,
        };
        change(&mut answer);
        samples(Suite::Cpu, "cpu", &answer, &catalogue::CPU)
    }

    #[test]
    fn a_right_answer_counts() {
        let samples = answer(|_| {}).unwrap();
        assert_eq!(samples[0], Sample::new("compute", 100.0));
        assert_eq!(samples[1], Sample::new("memory-copy", 134_217_728.0));
    }

    #[test]
    fn a_wrong_answer_is_a_failed_run() {
        let check = |change: &dyn Fn(&mut Answer), expected: &str| {
            let error = answer(change).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(
            &|answer| answer.measures[0].check += 1,
            "instead of 12208143122505495461",
        );
        check(&|answer| answer.measures[0].operations -= 1, "it did 19999999 of");
        check(&|answer| answer.measures[2].ns = 0, "took no time");
        check(&|answer| answer.work = "disk".to_owned(), "not cpu");
        check(&|answer| answer.measures.truncate(1), "not cpu");
        check(&|answer| answer.measures.swap(0, 1), "memory-copy");
    }
}
