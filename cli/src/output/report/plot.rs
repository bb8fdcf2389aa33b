//! Drawings in SVG: strips of samples, and waterfalls. They are 400 units wide, which is a phone's width, so that their text can
//! be read there.

use std::fmt::{self, Display, Formatter};

use rvm_engine::bench::report::{self, Series};
use rvm_engine::timeline::durations;

use super::super::bench::value_in;
use super::Text;

const WIDTH: f64 = 400.0;

/// Room at both ends, so that what is drawn at an end is whole.
const MARGIN: f64 = 6.0;

/// Height of one subject's strip: a line of text and its dots.
const STRIP: f64 = 46.0;

/// Height of a phase: a line of text and its bar.
const PHASE: f64 = 30.0;

/// Where greatest and least differ by more than this, equal steps are equal factors.
const FACTOR_OF_LOGARITHMS: f64 = 30.0;

/// Samples of one row, a strip for each subject.
pub(super) struct Strips<'a>(pub(super) &'a [&'a Series]);

impl Display for Strips<'_> {
    fn fmt(&self, svg: &mut Formatter<'_>) -> fmt::Result {
        let Some(first) = self.0.first() else {
            return Ok(());
        };
        let scale = Scale::of(self.0);
        let strips = f64::from(u16::try_from(self.0.len()).unwrap_or(u16::MAX));
        let bottom = strips * STRIP;
        write!(
            svg,
            "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"{}: {}\">",
            bottom + 20.0,
            Text(&first.title),
            Text(spoken(self.0))
        )?;
        let mut top = 0.0;
        for series in self.0 {
            strip(svg, series, &scale, top)?;
            top += STRIP;
        }
        let shown = |value| value_in(first.unit, value);
        write!(
            svg,
            "<line class=\"axis\" x1=\"0\" x2=\"{WIDTH}\" y1=\"{bottom}\" y2=\"{bottom}\"/>\
             <text class=\"small\" x=\"0\" y=\"{y}\">{}</text>\
             <text class=\"small\" x=\"{}\" y=\"{y}\" text-anchor=\"middle\">{}</text>\
             <text class=\"small\" x=\"{WIDTH}\" y=\"{y}\" text-anchor=\"end\">{}</text></svg>",
            shown(scale.least),
            WIDTH / 2.0,
            if scale.is_logarithmic { "logarithmic" } else { "" },
            shown(scale.greatest),
            y = bottom + 15.0,
        )
    }
}

/// What is drawn, for who cannot see it.
fn spoken(row: &[&Series]) -> String {
    let median = |series: &&Series| {
        let shown = value_in(series.unit, series.summary.median);
        format!("{} {shown}", series.subject)
    };
    let medians: Vec<_> = row.iter().map(median).collect();
    format!("medians: {}", medians.join(", "))
}

fn strip(svg: &mut Formatter<'_>, series: &Series, scale: &Scale, top: f64) -> fmt::Result {
    let summary = &series.summary;
    let shown = |value| value_in(series.unit, value);
    let (name, baseline) = (series.subject, top + 14.0);
    write!(
        svg,
        "<text x=\"0\" y=\"{baseline:.1}\">{name}</text>\
         <text x=\"{WIDTH}\" y=\"{baseline:.1}\" text-anchor=\"end\">{}</text>",
        shown(summary.median)
    )?;
    let (low, high, median) = (
        scale.x(summary.low),
        scale.x(summary.high),
        scale.x(summary.median),
    );
    let (dots, height) = (top + 20.0, 20.0);
    write!(
        svg,
        "<rect class=\"span {name}\" x=\"{low:.1}\" y=\"{dots:.1}\" width=\"{:.1}\" height=\"{height}\"/>",
        (high - low).max(1.0)
    )?;
    let count = f64::from(u32::try_from(series.samples.len()).unwrap_or(u32::MAX)).max(1.0);
    let mut place = 0.5;
    for sample in &series.samples {
        write!(
            svg,
            "<circle class=\"dot {name}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\"><title>{}</title></circle>",
            scale.x(*sample),
            dots + height * place / count,
            shown(*sample)
        )?;
        place += 1.0;
    }
    write!(
        svg,
        "<rect class=\"{name}\" x=\"{:.1}\" y=\"{:.1}\" width=\"2\" height=\"{}\"/>",
        median - 1.0,
        dots - 2.0,
        height + 4.0
    )
}

/// From values to places.
struct Scale {
    least: f64,
    greatest: f64,
    is_logarithmic: bool,
}

impl Scale {
    /// On which all samples of some series have a place. It begins at zero, unless that would leave most of it empty or
    /// factors count.
    fn of(row: &[&Series]) -> Self {
        let samples = || row.iter().flat_map(|series| series.samples.iter().copied());
        let least = samples().fold(f64::INFINITY, f64::min);
        let greatest = samples().fold(f64::NEG_INFINITY, f64::max);
        let is_logarithmic = least > 0.0 && greatest / least > FACTOR_OF_LOGARITHMS;
        let from_zero = least >= 0.0 && least < greatest / 2.0 && !is_logarithmic;
        Self {
            least: if from_zero { 0.0 } else { least },
            greatest,
            is_logarithmic,
        }
    }

    fn x(&self, value: f64) -> f64 {
        let part = if self.is_logarithmic {
            (value / self.least).ln() / (self.greatest / self.least).ln()
        } else if self.greatest > self.least {
            (value - self.least) / (self.greatest - self.least)
        } else {
            0.5
        };
        (WIDTH - 2.0 * MARGIN).mul_add(part.clamp(0.0, 1.0), MARGIN)
    }
}

/// One start, phase by phase.
pub(super) struct Waterfall<'a>(pub(super) &'a report::Waterfall);

impl Display for Waterfall<'_> {
    fn fmt(&self, svg: &mut Formatter<'_>) -> fmt::Result {
        let subject = self.0.subject;
        let phases = durations(0, &self.0.stamps);
        let whole = milliseconds(phases.iter().map(|(_, us)| us).sum()).max(f64::MIN_POSITIVE);
        let height = PHASE * f64::from(u16::try_from(phases.len()).unwrap_or(u16::MAX));
        write!(
            svg,
            "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"phases of one start\">"
        )?;
        let (mut top, mut before) = (0.0, 0.0);
        for (phase, us) in phases {
            let took = milliseconds(us);
            write!(
                svg,
                "<text x=\"0\" y=\"{:.1}\">{}</text><text x=\"{WIDTH}\" y=\"{:.1}\" text-anchor=\"end\">{took:.1} ms</text>\
                 <rect class=\"{subject}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"8\"/>",
                top + 13.0,
                Text(phase.label()),
                top + 13.0,
                WIDTH * before / whole,
                top + 18.0,
                (WIDTH * took / whole).max(1.0)
            )?;
            before += took;
            top += PHASE;
        }
        svg.write_str("</svg>")
    }
}

fn milliseconds(us: u64) -> f64 {
    // Fewer than 2^32 microseconds are more than an hour.
    f64::from(u32::try_from(us).unwrap_or(u32::MAX)) / 1000.0
}
