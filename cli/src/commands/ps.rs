//! `rvm ps`.

use std::collections::BTreeMap;

use anyhow::Result;
use rvm_engine::Engine;
use rvm_engine::condition::Label;
use rvm_engine::health::{self, Report};
use rvm_engine::mounts::{self, MountPoint};
use rvm_engine::names::SHORT_ID;
use rvm_engine::ports::{Port, Published};
use rvm_engine::record::{Record, State};
use serde::Serialize;

use super::port;
use crate::args::{Filter, Ps};
use crate::output::{self, Table};

/// Characters of a command that a listing shows.
const COMMAND_WIDTH: usize = 20;

/// Characters of a mount's name that a listing shows.
const MOUNT_WIDTH: usize = 15;

pub(super) fn run(engine: &Engine, arguments: &Ps) -> Result<u8> {
    let shown = select(engine, engine.containers()?, arguments)?;
    if arguments.quiet {
        output::lines(shown.iter().map(|record| id(record, arguments.no_trunc)))?;
    } else {
        let rows: Vec<_> = shown
            .iter()
            .map(|record| {
                let published = engine.published(record)?;
                let health = engine.health(record);
                Ok(Row::new(record, health.as_ref(), &published, arguments.no_trunc))
            })
            .collect::<Result<_>>()?;
        output::listing(&arguments.format, &rows, || table(&rows))?;
    }
    Ok(0)
}

/// The containers that are to be listed, newest first.
fn select(engine: &Engine, records: Vec<Record>, arguments: &Ps) -> Result<Vec<Record>> {
    let conditions = Conditions::new(engine, &records, &arguments.filter)?;
    let limit = match (arguments.latest, usize::try_from(arguments.last)) {
        (true, _) => Some(1),
        (false, Ok(number)) => Some(number),
        (false, Err(_)) => None,
    };
    let asks_for_state = arguments
        .filter
        .iter()
        .any(|filter| matches!(filter, Filter::Status(_)));
    let every = arguments.all || limit.is_some() || asks_for_state;
    let mut shown = Vec::new();
    for record in records {
        let fits = (every || record.state.is_active())
            && conditions.fit(&record)
            && conditions.fit_health(engine, &record)
            && conditions.fit_published(engine, &record)?;
        if shown.len() < limit.unwrap_or(usize::MAX) && fits {
            shown.push(record);
        }
    }
    Ok(shown)
}

/// Conditions that have been looked up: of one kind any has to hold, of labels all, and of each kind that is there.
#[derive(Default)]
struct Conditions {
    states: Vec<String>,
    codes: Vec<u8>,
    names: Vec<String>,
    ids: Vec<String>,
    labels: Vec<Label>,
    /// ID, and layers from the lowest.
    ancestors: Vec<(String, Vec<std::path::PathBuf>)>,
    has_ancestors: bool,
    /// Milliseconds since the epoch.
    before: Option<u64>,
    since: Option<u64>,
    health: Vec<String>,
    /// Of which one is to be published, by its own number or the host's.
    published: Vec<Port>,
    /// Of which one is to be exposed.
    exposed: Vec<Port>,
    volumes: Vec<String>,
}

impl Conditions {
    fn new(engine: &Engine, records: &[Record], filters: &[Filter]) -> Result<Self> {
        let mut conditions = Self::default();
        let made = |wanted: &str| -> Result<u64> {
            let known = records.iter().find(|record| record.name == wanted);
            Ok(match known {
                Some(record) => record.created_ms,
                None => engine.directory(wanted)?.0.created_ms,
            })
        };
        for filter in filters {
            match filter {
                Filter::Status(state) => conditions.states.push(state.clone()),
                Filter::Exited(code) => conditions.codes.push(*code),
                Filter::Name(name) => conditions.names.push(name.clone()),
                Filter::Id(id) => conditions.ids.push(id.clone()),
                Filter::Label(label) => conditions.labels.push(label.clone()),
                Filter::Health(health) => conditions.health.push(health.clone()),
                Filter::Publish(ports) => conditions.published.extend(&ports.0),
                Filter::Expose(ports) => conditions.exposed.extend(&ports.0),
                Filter::Volume(volume) => conditions.volumes.push(volume.clone()),
                Filter::Before(container) => {
                    let moment = made(container)?;
                    conditions.before = Some(conditions.before.map_or(moment, |known| known.min(moment)));
                }
                Filter::Since(container) => {
                    let moment = made(container)?;
                    conditions.since = Some(conditions.since.map_or(moment, |known| known.max(moment)));
                }
                Filter::Ancestor(image) => {
                    conditions.has_ancestors = true;
                    // As with Docker, nothing descends from an image that is not there.
                    if let Ok(image) = engine.images()?.resolve(image) {
                        let layers = image.layers.into_iter().map(|layer| layer.path).collect();
                        conditions.ancestors.push((image.id.to_string(), layers));
                    }
                }
            }
        }
        Ok(conditions)
    }

    /// Apart from the others, for it has to be looked up for each container.
    fn fit_health(&self, engine: &Engine, record: &Record) -> bool {
        let health = || match engine.health(record) {
            Some(report) => report.status.name(),
            None => "none",
        };
        self.health.is_empty() || self.health.iter().any(|wanted| wanted == health())
    }

    /// Likewise.
    fn fit_published(&self, engine: &Engine, record: &Record) -> Result<bool> {
        if self.published.is_empty() {
            return Ok(true);
        }
        let leads = |published: &Published| {
            let host = Port {
                number: published.host_port,
                protocol: published.protocol,
            };
            self.published.contains(&published.port()) || self.published.contains(&host)
        };
        Ok(engine.published(record)?.iter().any(leads))
    }

    fn fit(&self, record: &Record) -> bool {
        let any = |list: &[String], fits: &dyn Fn(&String) -> bool| list.is_empty() || list.iter().any(fits);
        let descends = |(id, layers): &(String, Vec<std::path::PathBuf>)| {
            let own = record.layers.iter().map(|layer| &layer.path);
            record.image.id == *id || (!layers.is_empty() && own.take(layers.len()).eq(layers))
        };
        any(&self.states, &|state| record.state.name() == state)
            && (self.codes.is_empty()
                || matches!(&record.state, State::Exited(exited) if self.codes.contains(&exited.code)))
            && any(&self.names, &|name| record.name.contains(name.as_str()))
            && any(&self.ids, &|id| record.id.starts_with(id.as_str()))
            && self
                .labels
                .iter()
                .all(|label| label.fits(&record.settings.labels))
            && any(&self.volumes, &|volume| has_mounted(record, volume))
            && (!self.has_ancestors || self.ancestors.iter().any(descends))
            && (self.exposed.is_empty()
                || record
                    .settings
                    .ports
                    .exposed()
                    .iter()
                    .any(|port| self.exposed.contains(port)))
            && self.before.is_none_or(|moment| record.created_ms < moment)
            && self.since.is_none_or(|moment| record.created_ms > moment)
    }
}

/// Whether something is mounted by this name, or there, or from there.
fn has_mounted(record: &Record, wanted: &str) -> bool {
    let path = std::path::Path::new(wanted);
    record
        .mounts
        .points
        .iter()
        .any(|point| point.name == wanted || point.destination == path || point.source == path)
}

/// A container as a listing shows it, under Docker's names.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    names: String,
    image: String,
    command: String,
    created_at: String,
    running_for: String,
    state: &'static str,
    status: String,
    ports: String,
    isolation: String,
    labels: String,
    mounts: String,
    local_volumes: String,
}

impl Row {
    fn new(record: &Record, health: Option<&Report>, published: &[Published], no_trunc: bool) -> Self {
        // The image chose it: control characters are not for the terminal.
        let command = command(record).escape_debug().to_string().replace("\\'", "'");
        let command = if no_trunc {
            command
        } else {
            output::shorten(&command, COMMAND_WIDTH)
        };
        Self {
            id: id(record, no_trunc),
            names: record.name.clone(),
            image: record.image.name.clone(),
            command: format!("\"{command}\""),
            created_at: output::nanoseconds(record.created_ms),
            running_for: output::ago(record.created_ms),
            state: record.state.name(),
            status: status(&record.state) + &health_suffix(&record.state, health),
            ports: match record.state.is_active() {
                true => port::summary(&record.settings.ports.exposed(), published),
                false => String::new(),
            },
            isolation: record.isolation.to_string(),
            labels: labels(&record.settings.labels),
            mounts: mounts(record, no_trunc),
            local_volumes: record.mounts.volumes().count().to_string(),
        }
    }
}

/// Names of volumes and paths of the host, cut short as Docker does.
fn mounts(record: &Record, no_trunc: bool) -> String {
    let name = |point: &MountPoint| {
        let name = match point.kind {
            mounts::Kind::Volume => point.name.clone(),
            _ => point.source.display().to_string(),
        };
        if no_trunc {
            name
        } else {
            output::shorten(&name, MOUNT_WIDTH)
        }
    };
    record.mounts.shared().map(name).collect::<Vec<_>>().join(",")
}

/// The command as Docker shows it: arguments with spaces have quotes.
fn command(record: &Record) -> String {
    let quoted = |argument: &String| match argument.contains(' ') {
        true => format!("'{argument}'"),
        false => argument.clone(),
    };
    record.command.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// Docker's addition to the status of a container that runs.
fn health_suffix(state: &State, health: Option<&Report>) -> String {
    match (state, health.map(|health| health.status)) {
        (State::Running { paused: false, .. }, Some(health::Status::Starting)) => {
            " (health: starting)".to_owned()
        }
        (State::Running { paused: false, .. }, Some(status)) => format!(" ({})", status.name()),
        _ => String::new(),
    }
}

fn labels(labels: &BTreeMap<String, String>) -> String {
    let texts: Vec<_> = labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    texts.join(",")
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(&[
        "CONTAINER ID",
        "IMAGE",
        "COMMAND",
        "CREATED",
        "STATUS",
        "PORTS",
        "ISOLATION",
        "NAMES",
    ]);
    for row in rows {
        table.row([
            &row.id,
            &row.image,
            &row.command,
            &row.running_for,
            &row.status,
            &row.ports,
            &row.isolation,
            &row.names,
        ]);
    }
    table
}

pub(super) fn id(record: &Record, no_trunc: bool) -> String {
    if no_trunc {
        record.id.clone()
    } else {
        record.id.chars().take(SHORT_ID).collect()
    }
}

pub(super) fn status(state: &State) -> String {
    match state {
        State::Created => "Created".to_owned(),
        State::Running {
            started_ms, paused, ..
        } => {
            let paused = if *paused { " (Paused)" } else { "" };
            format!("Up {}{paused}", output::since(*started_ms))
        }
        State::Restarting { last, .. } => {
            format!("Restarting ({}) {}", last.code, output::ago(last.finished_ms))
        }
        State::Exited(exited) => {
            let reason = if exited.out_of_memory {
                ", out of memory"
            } else {
                ""
            };
            format!(
                "Exited ({}{reason}) {}",
                exited.code,
                output::ago(exited.finished_ms)
            )
        }
    }
}
