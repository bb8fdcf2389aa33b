//! `rvm events`.

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rvm_engine::Engine;
use rvm_engine::events::{Event, Filters, Listener};
use rvm_engine::record::now_ms;
use serde_json::{Value, json};

use crate::args::{Events, InspectFormat};
use crate::output::{self, Template};

/// What Go's templates show for an attribute that is not there.
const NO_VALUE: &str = "<no value>";

pub(super) fn run(engine: &Engine, arguments: &Events) -> Result<u8> {
    let failed = || "cannot read the events";
    let mut listener = Listener::new(engine.layout()).with_context(failed)?;
    let printer = Printer {
        filters: Filters::new(arguments.filter.clone()),
        format: arguments.format.as_ref(),
    };
    let until = arguments.until.unwrap_or(u64::MAX);
    let is_asked_for = |event: &Event| match (arguments.since, arguments.until) {
        (None, None) => false,
        (since, _) => (since.unwrap_or(0)..=until).contains(&event.time_ms()),
    };
    while let Some(event) = listener.next_past().with_context(failed)? {
        if is_asked_for(&event) && !printer.print(&event)? {
            return Ok(0);
        }
    }
    let left = |until: u64| Instant::now() + Duration::from_millis(until.saturating_sub(now_ms()));
    let deadline = arguments.until.map(left);
    while let Some(event) = listener.next(deadline).with_context(failed)? {
        if event.time_ms() > until || !printer.print(&event)? {
            break;
        }
    }
    Ok(0)
}

struct Printer<'a> {
    filters: Filters,
    format: Option<&'a InspectFormat>,
}

impl Printer<'_> {
    /// Prints an event if it is wanted; whether there is somebody who reads.
    fn print(&self, event: &Event) -> Result<bool> {
        if !self.filters.fit(event) {
            return Ok(true);
        }
        let mut line = match self.format {
            None => text(event),
            Some(InspectFormat::Json) => output::json_line(event)?,
            Some(InspectFormat::Template(template)) => fill(template, event)?,
        };
        line.push('\n');
        let mut stdout = io::stdout().lock();
        // Whoever follows sees it now.
        let written = stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush());
        if output::reader_is_gone(&written) {
            return Ok(false);
        }
        written.context("cannot write to standard output")?;
        Ok(true)
    }
}

/// An event as Docker shows it: `2026-01-31T12:00:00.123456789Z container start ID (image=debian, name=web)`.
fn text(event: &Event) -> String {
    let attributes = event.actor.attributes.iter();
    let attributes: Vec<_> = attributes
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let mut text = format!(
        "{} {} {} {}",
        output::moment_of_nanoseconds(event.time_nano),
        event.kind,
        event.action,
        event.actor.id
    );
    if !attributes.is_empty() {
        text.push_str(&format!(" ({})", attributes.join(", ")));
    }
    // An image has chosen some of it: a line of it must not be taken for an event.
    rvm_engine::printable(&text).replace('\n', "\u{fffd}")
}

/// Fills in a template. Its fields have the names of Docker's structure, its JSON those of its API.
fn fill(template: &Template, event: &Event) -> Result<String> {
    let mut attributes = serde_json::to_value(&event.actor.attributes)?;
    if let Value::Object(attributes) = &mut attributes {
        for name in template.names_in(&["Actor", "Attributes"]) {
            // Which there are depends on the action.
            attributes.entry(name).or_insert_with(|| NO_VALUE.into());
        }
    }
    let fields = json!({
        "Status": event.status,
        "ID": event.id,
        "From": event.from.as_deref().unwrap_or_default(),
        "Type": event.kind,
        "Action": event.action,
        "Actor": {"ID": event.actor.id, "Attributes": attributes},
        "Scope": event.scope,
        "Time": event.time,
        "TimeNano": event.time_nano,
    });
    Ok(template.fill_from(&fields, &serde_json::to_value(event)?)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rvm_engine::events::Actor;

    use super::*;

    fn event() -> Event {
        let attributes = [
            ("image", "debian"),
            ("name", "web"),
            ("note", "a\n\u{1b}[31m\u{9b}b"),
        ];
        let attributes = attributes.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Event {
            status: "start".into(),
            id: "abc".into(),
            from: Some("debian".into()),
            kind: "container".into(),
            action: "start".into(),
            actor: Actor {
                id: "abc".into(),
                attributes: BTreeMap::from(attributes),
            },
            scope: "local".into(),
            time: 1,
            time_nano: 1_123_456_789,
        }
    }

    #[test]
    fn a_line_is_docker_s_and_only_one() {
        assert_eq!(
            text(&event()),
            "1970-01-01T00:00:01.123456789Z container start abc (image=debian, name=web, note=a\u{fffd}\u{fffd}[31m\u{fffd}b)"
        );
        let mut bare = event();
        bare.actor.attributes.clear();
        assert_eq!(text(&bare), "1970-01-01T00:00:01.123456789Z container start abc");
    }

    #[test]
    fn fields_have_the_names_of_docker_s_structure() {
        let filled = |template: &str| fill(&template.parse().unwrap(), &event());
        let check = |template: &str, expected: &str| assert_eq!(filled(template).unwrap(), expected);
        check(
            "{{.Type}} {{.Action}} {{.ID}} {{.Actor.Attributes.name}}",
            "container start abc web",
        );
        check(
            "{{.Status}} {{.From}} {{.Actor.ID}} {{.Scope}} {{.Time}}",
            "start debian abc local 1",
        );
        check("{{.Actor.Attributes.exitCode}}", NO_VALUE);
        check("{{json .Actor.Attributes.name}}", "\"web\"");
        let json = filled("{{json .}}").unwrap();
        assert!(
            json.starts_with(r#"{"#) && json.contains(r#""timeNano":1123456789"#),
            "{json}"
        );
        assert!(json.contains(r"a\n\u001b[31m\u009bb"), "{json}");
        assert!(filled("{{.Actions}}").is_err());
    }
}
