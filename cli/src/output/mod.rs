//! What people and programs see: errors, tables, sizes, times, progress.

mod bench;
mod progress;
mod report;
mod template;
mod time;
mod waterfall;

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::{Context as _, Result};
use comfy_table::{ContentArrangement, presets};
use serde::Serialize;

use crate::args::{InspectFormat, ListFormat};
pub(crate) use bench::{BenchProgress, bench_table, diff_table, samples_csv};
pub(crate) use progress::{LoadProgress, TransferProgress};
pub(crate) use report::Page;
pub(crate) use template::Template;
pub(crate) use time::{ago, ago_rfc3339, moment, moment_of_nanoseconds, nanoseconds, now_rfc3339, since};
pub(crate) use waterfall::waterfall;

/// Prints an error with its causes on one line, and on the next what to do about it where that is known.
pub(crate) fn error(error: &anyhow::Error) {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // A transparent error shows its cause's text already.
        if text.ends_with(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    complaint(&text);
    let hint = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<rvm_engine::Error>()?.hint());
    if let Some(hint) = hint {
        let _ = writeln!(io::stderr(), "hint: {hint}");
    }
}

/// Prints one complaint. It may quote an image or a guest, whose control characters are not for the terminal. There is
/// nowhere to report that standard error cannot be written to.
pub(crate) fn complaint(text: &str) {
    let text = rvm_engine::printable(text);
    let _ = writeln!(io::stderr(), "rvm: {text}");
}

/// Says on standard error what is being done. As with [`complaint`], some of it may come from outside.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{}", rvm_engine::printable(text));
}

/// Prints lines.
pub(crate) fn lines(lines: impl IntoIterator<Item = impl AsRef<str>>) -> Result<()> {
    let mut text = String::new();
    for line in lines {
        text.push_str(line.as_ref());
        text.push('\n');
    }
    bytes(text.as_bytes())
}

/// Prints one JSON document per line.
pub(crate) fn json_lines(documents: &[impl Serialize]) -> Result<()> {
    lines(json_texts(documents)?)
}

fn json_texts(documents: &[impl Serialize]) -> Result<Vec<String>> {
    documents.iter().map(json_line).collect()
}

/// A document on one line.
pub(crate) fn json_line(document: &impl Serialize) -> Result<String> {
    Ok(escaped(&serde_json::to_string(document)?))
}

/// JSON without control characters: those that it has on its line are in strings, and not for the terminal.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_control() {
            text.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            text.push(character);
        }
    }
    text
}

/// Prints a listing as it was asked for; `table` and `rows` show the same.
pub(crate) fn listing(
    format: &ListFormat,
    rows: &[impl Serialize],
    table: impl FnOnce() -> Table,
) -> Result<()> {
    lines(listed(format, rows, table)?)
}

/// The lines of a listing as it was asked for.
pub(crate) fn listed(
    format: &ListFormat,
    rows: &[impl Serialize],
    table: impl FnOnce() -> Table,
) -> Result<Vec<String>> {
    match format {
        ListFormat::Table => Ok(table().lines().collect()),
        ListFormat::Columns(columns) => Ok(chosen(columns, rows, &table())?.lines().collect()),
        ListFormat::Json => json_texts(rows),
        ListFormat::Template(template) => filled(template, rows),
    }
}

/// A table with columns of one's own; `whole` is the one with all.
fn chosen(columns: &[Template], rows: &[impl Serialize], whole: &Table) -> Result<Table> {
    let titles: Vec<_> = columns
        .iter()
        .map(|column| column.with_names(|name| whole.title(name)))
        .collect();
    let mut table = Table::plain();
    table.0.set_header(titles);
    for row in rows {
        let row = serde_json::to_value(row)?;
        table.row(
            columns
                .iter()
                .map(|column| column.fill(&row))
                .collect::<Result<Vec<_>, _>>()?,
        );
    }
    Ok(table)
}

/// Prints whole documents: one list of all where no format was asked for.
pub(crate) fn documents(format: Option<&InspectFormat>, documents: &[impl Serialize]) -> Result<()> {
    match format {
        None => lines([indented(documents)?]),
        Some(InspectFormat::Json) => json_lines(documents),
        Some(InspectFormat::Template(template)) => lines(filled(template, documents)?),
    }
}

fn filled(template: &Template, documents: &[impl Serialize]) -> Result<Vec<String>> {
    let fill = |document| Ok(template.fill(&serde_json::to_value(document)?)?);
    documents.iter().map(fill).collect()
}

/// One list with all documents, as Docker shows it: four spaces for each level.
fn indented(documents: &[impl Serialize]) -> Result<String> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    documents
        .serialize(&mut serializer)
        .context("cannot write JSON")?;
    String::from_utf8(text).context("cannot write JSON")
}

/// Prints bytes as they are. A reader that has seen enough is not an error.
pub(crate) fn bytes(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    if reader_is_gone(&written) {
        Ok(())
    } else {
        written.context("cannot write to standard output")
    }
}

/// Whether output failed because nobody reads it any more.
pub(crate) fn reader_is_gone(written: &io::Result<()>) -> bool {
    written
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Aligned columns, three spaces apart.
pub(crate) struct Table(comfy_table::Table);

impl Table {
    /// With a line of titles.
    pub(crate) fn new(titles: &[&str]) -> Self {
        let mut table = Self::plain();
        table.0.set_header(titles);
        table
    }

    /// Without titles.
    pub(crate) fn plain() -> Self {
        let mut table = comfy_table::Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled);
        Self(table)
    }

    pub(crate) fn row<T: Into<comfy_table::Cell>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.0.add_row(
            cells
                .into_iter()
                .map(Into::into)
                .collect::<Vec<comfy_table::Cell>>(),
        );
    }

    /// What a column with this field is called: as Docker calls it.
    fn title(&self, field: &str) -> String {
        let own = self.0.header().into_iter().flat_map(comfy_table::Row::cell_iter);
        match field {
            "RunningFor" | "CreatedSince" => "CREATED".to_owned(),
            // CONTAINER ID, IMAGE ID.
            "ID" => own
                .map(comfy_table::Cell::content)
                .find(|title| title.ends_with(" ID"))
                .unwrap_or_else(|| "ID".to_owned()),
            _ => in_words(field),
        }
    }

    /// Prints it; an empty table without titles prints nothing.
    pub(crate) fn print(self) -> Result<()> {
        lines(self.lines())
    }

    fn lines(mut self) -> impl Iterator<Item = String> {
        let last = self.0.column_count().saturating_sub(1);
        for (index, column) in self.0.column_iter_mut().enumerate() {
            column.set_padding((0, if index == last { 0 } else { 3 }));
        }
        let lines: Vec<String> = self.0.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.into_iter()
    }
}

/// `CreatedAt` as `CREATED AT`.
fn in_words(field: &str) -> String {
    let mut words = String::new();
    let mut before = 'A';
    for character in field.chars() {
        if character.is_uppercase() && before.is_lowercase() {
            words.push(' ');
        }
        words.extend(character.to_uppercase());
        before = character;
    }
    words
}

/// Text from a container, in which every character that does more than be seen is a question mark, as `ps` has it.
pub(crate) fn single_line(text: &str) -> String {
    // What Rust would not print as it is, but for quotes and backslashes: control characters, and those that join others or
    // change their direction.
    let is_plain = |character: char| "'\"\\".contains(character) || character.escape_debug().count() == 1;
    text.chars()
        .map(|character| if is_plain(character) { character } else { '?' })
        .collect()
}

/// The first `width` characters, the last of them an ellipsis where more follow.
pub(crate) fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// A size as Docker shows it: powers of 1000 and three or four digits.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::DecimalBytes(bytes).to_string().replace(' ', "")
}

/// Whether a person watches standard error.
fn is_watched() -> bool {
    io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_at_characters() {
        assert_eq!(shorten("short", 5), "short");
        assert_eq!(shorten("a longer text", 5), "a lo…");
        assert_eq!(shorten("ääääää", 3), "ää…");
    }

    #[test]
    fn columns_of_one_s_own_have_docker_s_titles() {
        let ListFormat::Columns(columns) = r"table {{.ID}}\t{{.Names}}: {{.CreatedAt}}\t{{.RunningFor}}"
            .parse()
            .unwrap()
        else {
            panic!("no columns");
        };
        let row = serde_json::json!({"ID": "ab", "Names": "web", "CreatedAt": "now", "RunningFor": "1 day"});
        let table = chosen(&columns, &[row], &Table::new(&["CONTAINER ID", "NAMES"])).unwrap();
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(
            lines,
            [
                "CONTAINER ID   NAMES: CREATED AT   CREATED",
                "ab             web: now            1 day"
            ]
        );
    }

    #[test]
    fn what_a_container_says_stays_on_its_line() {
        let text = single_line("a\u{1b}[2J\n\t\u{202e}\u{301}'\"\\ \u{e4}\u{0}");
        assert_eq!(text, "a?[2J????'\"\\ \u{e4}?");
    }

    #[test]
    fn sizes_are_decimal() {
        assert_eq!(size(1_500_000), "1.50MB");
    }
}
