//! A report of `rvm bench` as one HTML page that needs nothing else: no file, no network, no script. Everything that is not
//! written here is escaped on its way into it.

mod plot;

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter, Write as _};

use rvm_engine::bench::manifest::{Backend, Manifest};
use rvm_engine::bench::report::{Exposure, Series};
use rvm_engine::bench::{Report, Suite};

use super::bench::value_in;

const STYLE: &str = include_str!("style.css");

/// How a page is to be read.
const READING: &str = "\
Each dot is one run, from the first to the last downwards. The line is the median, and the band around it is where the median \
of what was sampled lies with 95 % confidence (bootstrap). Where bands overlap, do not speak of a difference. Percentiles are \
linear between samples (Hyndman and Fan's definition 7). \"host\" is a fixed piece of work in no container: what the machine \
itself did meanwhile. Modes took turns run by run, so that whatever else the machine did \
met both. A run whose workload came to a wrong result does not count and is named below.";

/// Text from outside, as it can stand in a page and in an attribute.
pub(super) struct Text<T>(pub(super) T);

impl<T: Display> Display for Text<T> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        for character in self.0.to_string().chars() {
            match character {
                '&' => formatter.write_str("&amp;")?,
                '<' => formatter.write_str("&lt;")?,
                '>' => formatter.write_str("&gt;")?,
                '"' => formatter.write_str("&quot;")?,
                '\'' => formatter.write_str("&#39;")?,
                character if character.is_control() => formatter.write_str("?")?,
                character => formatter.write_char(character)?,
            }
        }
        Ok(())
    }
}

/// The page.
pub(crate) struct Page<'a>(pub(crate) &'a Report);

impl Display for Page<'_> {
    fn fmt(&self, page: &mut Formatter<'_>) -> fmt::Result {
        let report = self.0;
        let image = Text(&report.manifest.image);
        write!(
            page,
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>rvm bench: {image}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n\
             <h1>rvm bench: {image}</h1>\n"
        )?;
        head(page, &report.manifest)?;
        page.write_str("<nav>")?;
        for suite in suites(report) {
            write!(page, "<a href=\"#{suite}\">{suite}</a>")?;
        }
        page.write_str("<a href=\"#circumstances\">circumstances</a></nav>\n</header>\n<main>\n")?;
        writeln!(page, "<p class=\"quiet\">{}</p>", Text(READING))?;
        for suite in suites(report) {
            section(page, report, suite)?;
        }
        circumstances(page, report)?;
        page.write_str("</main>\n</body>\n</html>\n")
    }
}

fn suites(report: &Report) -> BTreeSet<Suite> {
    report.series.iter().map(|series| series.suite).collect()
}

/// Where it was taken, in short, and what makes its numbers no ordinary ones.
fn head(page: &mut Formatter<'_>, manifest: &Manifest) -> fmt::Result {
    writeln!(
        page,
        "<p class=\"quiet\">{}, on {} of {}, Linux {}</p>",
        Text(&manifest.began),
        Text(manifest.cpus),
        Text(&manifest.cpu),
        Text(&manifest.kernel)
    )?;
    let warning = match &manifest.kvm {
        Backend::Hardware => return Ok(()),
        Backend::Nested => "What a virtual machine costs here is more than on a machine that is none.",
        Backend::Emulated => {
            "Times, and what VM mode takes beside container mode, are not those of any processor."
        }
        Backend::Unusable { .. } => "VM mode could not be measured properly.",
    };
    writeln!(
        page,
        "<p class=\"alarm\">KVM is {}. {warning}</p>",
        Text(manifest.kvm.describe())
    )
}

/// One suite: a card for each row, what belongs to it alone, and all numbers.
fn section(page: &mut Formatter<'_>, report: &Report, suite: Suite) -> fmt::Result {
    writeln!(
        page,
        "<section id=\"{suite}\">\n<h2>{suite}</h2>\n<p>{}</p>",
        Text(suite.about())
    )?;
    if suite == Suite::Startup {
        page.write_str("<div class=\"cards\">\n")?;
        for waterfall in &report.waterfalls {
            writeln!(
                page,
                "<div class=\"waterfall\"><h3>One start of {}</h3>\n<p class=\"quiet\">That whose time was in the middle.</p>\n{}</div>",
                waterfall.subject,
                plot::Waterfall(waterfall)
            )?;
        }
        page.write_str("</div>\n")?;
    }
    let of_suite: Vec<&Series> = report
        .series
        .iter()
        .filter(|series| series.suite == suite)
        .collect();
    page.write_str("<div class=\"cards\">\n")?;
    for row in of_suite.chunk_by(|one, other| one.row == other.row) {
        let Some(first) = row.first() else { continue };
        writeln!(
            page,
            "<div class=\"card\"><h3>{}</h3>\n{}</div>",
            Text(&first.title),
            plot::Strips(row)
        )?;
    }
    page.write_str("</div>\n")?;
    if suite == Suite::Exposure {
        exposures(page, &report.exposures)?;
    }
    numbers(page, &of_suite)?;
    page.write_str("</section>\n")
}

fn numbers(page: &mut Formatter<'_>, series: &[&Series]) -> fmt::Result {
    page.write_str(
        "<details open><summary>All numbers</summary>\n<div class=\"scroll\"><table>\n<tr><th>row</th><th>of</th>\
         <th class=\"number\">median</th><th class=\"number\">95 % from</th><th class=\"number\">to</th>\
         <th class=\"number\">p90</th><th class=\"number\">p95</th><th class=\"number\">p99</th>\
         <th class=\"number\">least</th><th class=\"number\">greatest</th><th class=\"number\">n</th></tr>\n",
    )?;
    for series in series {
        let summary = &series.summary;
        write!(
            page,
            "<tr><td>{}</td><td>{}</td>",
            Text(&series.row),
            series.subject
        )?;
        let values = [
            summary.median,
            summary.low,
            summary.high,
            summary.p90,
            summary.p95,
            summary.p99,
            summary.min,
            summary.max,
        ];
        for value in values {
            write!(page, "<td class=\"number\">{}</td>", value_in(series.unit, value))?;
        }
        writeln!(page, "<td class=\"number\">{}</td></tr>", summary.n)?;
    }
    page.write_str("</table></div></details>\n")
}

/// What of the host was reached, side by side.
fn exposures(page: &mut Formatter<'_>, exposures: &[Exposure]) -> fmt::Result {
    page.write_str(
        "<p class=\"alarm\">These are proxies: a system call that is made is not a hole, and one that is not made may be \
         possible. Nothing here says that something is secure, or is not.</p>\n",
    )?;
    page.write_str(
        "<h3>Processes on the host</h3>\n<div class=\"scroll\"><table>\n<tr><th>of</th><th>program</th><th>user</th>\
         <th>capabilities</th><th>user namespace</th><th>no new privileges</th><th>seccomp</th><th>calls allowed</th></tr>\n",
    )?;
    for exposure in exposures {
        for process in &exposure.processes {
            let namespace = if process.own_user_namespace {
                "its own"
            } else {
                "the host's"
            };
            let allowed = process
                .allowed
                .map_or_else(String::new, |count| count.to_string());
            let gains = if process.no_new_privileges { "yes" } else { "no" };
            writeln!(
                page,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{namespace}</td><td>{gains}</td><td>{}</td><td class=\"number\">{allowed}</td></tr>",
                exposure.subject,
                Text(&process.name),
                process.uid,
                Text(&process.capabilities),
                Text(&process.seccomp)
            )?;
        }
    }
    page.write_str("</table></div>\n")?;
    for exposure in exposures {
        let counted = |counts: &std::collections::BTreeMap<String, u64>| {
            let mut counts: Vec<_> = counts.iter().collect();
            counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            let shown: Vec<_> = counts
                .iter()
                .map(|(name, count)| format!("{name} {count}"))
                .collect();
            shown.join(", ")
        };
        let calls = exposure
            .calls_missing
            .clone()
            .unwrap_or_else(|| counted(&exposure.calls));
        writeln!(
            page,
            "<h3>System calls on the host, {}</h3>\n<p>{}</p>",
            exposure.subject,
            Text(calls)
        )?;
        if !exposure.allowed.is_empty() {
            let allowed: Vec<&str> = exposure.allowed.iter().map(String::as_str).collect();
            writeln!(
                page,
                "<h3>System calls that may be made on the host, {}</h3>\n<p>{}</p>",
                exposure.subject,
                Text(allowed.join(" "))
            )?;
        }
        if !exposure.exits.is_empty() {
            writeln!(
                page,
                "<h3>VM exits by reason, {}</h3>\n<p>{}</p>",
                exposure.subject,
                Text(counted(&exposure.exits))
            )?;
        }
    }
    Ok(())
}

/// Everything that was not measured and yet counts.
fn circumstances(page: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    page.write_str("<section id=\"circumstances\">\n<h2>circumstances</h2>\n")?;
    for failure in &report.failures {
        writeln!(
            page,
            "<p class=\"alarm\">Run {} of {} does not count for {}: {}</p>",
            failure.run,
            failure.suite,
            failure.subject,
            Text(&failure.reason)
        )?;
    }
    for note in &report.notes {
        writeln!(page, "<p class=\"alarm\">{}</p>", Text(note))?;
    }
    page.write_str("<table>\n")?;
    for (name, value) in super::bench::facts(report) {
        writeln!(page, "<tr><th>{name}</th><td>{}</td></tr>", Text(value))?;
    }
    page.write_str("</table>\n</section>\n")
}

#[cfg(test)]
mod tests;
