//! `rvm system`.

use anyhow::{Context as _, Result};
use rvm_engine::names::SHORT_ID;
use rvm_engine::record::State;
use rvm_engine::{ASSETS_VARIABLE, DiskUsage, Engine};
use rvm_images::Space;
use serde::Serialize;

use super::{FAILED, events, life, prune, ps};
use crate::args::{Check, Df, System};
use crate::output::{self, LoadProgress, Table};

pub(super) fn run(engine: &Engine, command: &System) -> Result<u8> {
    match command {
        System::Df(arguments) => df(engine, arguments),
        System::Prune(arguments) => prune::run(engine, arguments),
        System::Check(arguments) => check(engine, arguments),
        System::Events(arguments) => events::run(engine, arguments),
        System::Resume => resume(engine),
        System::Suspend => suspend(engine),
        System::Unit => unit(engine),
    }
}

fn resume(engine: &Engine) -> Result<u8> {
    let records = engine.started_at_boot()?;
    let names: Vec<_> = records.into_iter().map(|record| record.name).collect();
    super::each(&names, |name| {
        life::start_one(engine, name)?;
        output::lines([name])
    })
}

/// Asks all of them first, so that they end at the same time.
fn suspend(engine: &Engine) -> Result<u8> {
    let records = engine.containers()?.into_iter();
    let names: Vec<_> = records
        .filter(|record| record.state.is_active())
        .map(|record| record.name)
        .collect();
    for name in &names {
        if let Err(error) = engine.shut_down(name) {
            output::complaint(&format!("{name}: {error}"));
        }
    }
    super::each(&names, |name| {
        engine.wait(name)?;
        output::lines([name])
    })
}

fn unit(engine: &Engine) -> Result<u8> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let layout = engine.layout();
    let mut variables = vec![
        ("RVM_ROOT", layout.root().to_owned()),
        ("RVM_RUN", layout.run().to_owned()),
    ];
    if let Some(assets) = std::env::var_os(ASSETS_VARIABLE) {
        variables.push((ASSETS_VARIABLE, std::path::absolute(assets)?));
    }
    let environment: Vec<_> = variables
        .iter()
        .map(|(name, path)| quoted(&format!("{name}={}", path.display())))
        .collect();
    let environment = environment.join(" ");
    // Of the two only the command line has variables.
    let program = quoted(&program.display().to_string()).replace('$', "$$");
    output::lines([format!(
        "[Unit]
Description=Containers of rvm that are started with the machine
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
Environment={environment}
ExecStart={program} system resume
ExecStop={program} system suspend
# Each container has a time-out of its own.
TimeoutStartSec=infinity
TimeoutStopSec=infinity
# A container that runs out of memory takes no other with it.
OOMPolicy=continue

[Install]
WantedBy=multi-user.target"
    )])?;
    Ok(0)
}

/// A word as systemd.syntax(7) and systemd.unit(5) have it.
fn quoted(word: &str) -> String {
    let escaped = word.replace('\\', r"\\").replace('"', "\\\"").replace('%', "%%");
    format!("\"{escaped}\"")
}

/// A line of `rvm system df`, under Docker's field names.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    r#type: &'static str,
    total_count: String,
    active: String,
    size: String,
    reclaimable: String,
}

fn df(engine: &Engine, arguments: &Df) -> Result<u8> {
    let usage = engine.disk_usage()?;
    if arguments.verbose {
        output::lines(["Images space usage:\n"])?;
        images(&usage).print()?;
        output::lines(["\nContainers space usage:\n"])?;
        containers(&usage).print()?;
        output::lines(["\nLocal Volumes space usage:\n"])?;
        volumes(&usage).print()?;
        return Ok(0);
    }
    let rows = rows(&usage);
    output::listing(&arguments.format, &rows, || {
        let mut table = Table::new(&["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]);
        for row in &rows {
            table.row([
                row.r#type,
                &row.total_count,
                &row.active,
                &row.size,
                &row.reclaimable,
            ]);
        }
        table
    })?;
    Ok(0)
}

fn rows(usage: &DiskUsage) -> Vec<Row> {
    let images = &usage.images;
    let is_active = State::is_active;
    let mut space = Space::default();
    let mut active = 0;
    for container in &usage.containers {
        space.bytes += container.bytes;
        if is_active(&container.record.state) {
            active += 1;
        } else {
            space.reclaimable += container.bytes;
        }
    }
    let mut rows = vec![
        row("Images", (images.count, images.used), images.blobs),
        row("Layer Cache", (images.cached, images.cached_used), images.cache),
        row("Containers", (usage.containers.len(), active), space),
        volumes_row(usage),
    ];
    if images.partial_bytes > 0 {
        let partial = Space {
            bytes: images.partial_bytes,
            reclaimable: images.partial_bytes,
        };
        rows.push(row("Unfinished Pulls", (images.partial, 0), partial));
    }
    rows
}

fn row(r#type: &'static str, (total, active): (usize, usize), space: Space) -> Row {
    Row {
        r#type,
        total_count: total.to_string(),
        active: active.to_string(),
        size: output::size(space.bytes),
        reclaimable: reclaimable(space),
    }
}

fn volumes_row(usage: &DiskUsage) -> Row {
    let mut space = Space::default();
    let mut used = 0;
    for volume in &usage.volumes {
        let bytes = volume.bytes();
        space.bytes += bytes;
        if volume.users.is_empty() {
            space.reclaimable += bytes;
        } else {
            used += 1;
        }
    }
    row("Local Volumes", (usage.volumes.len(), used), space)
}

fn reclaimable(space: Space) -> String {
    let size = output::size(space.reclaimable);
    match (u128::from(space.reclaimable) * 100).checked_div(u128::from(space.bytes)) {
        Some(percent) => format!("{size} ({percent}%)"),
        None => size,
    }
}

fn images(usage: &DiskUsage) -> Table {
    let mut table = Table::new(&[
        "REPOSITORY",
        "TAG",
        "IMAGE ID",
        "CREATED",
        "SIZE",
        "SHARED SIZE",
        "UNIQUE SIZE",
        "CONTAINERS",
    ]);
    for image in &usage.images.images {
        let summary = &image.summary;
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "<none>".to_owned());
        let id = summary.id.to_string();
        let users = usage
            .containers
            .iter()
            .filter(|container| container.record.image.id == id);
        table.row([
            or_none(&summary.repository),
            or_none(&summary.tag),
            summary.id.short(),
            summary
                .created
                .as_deref()
                .map_or_else(|| "N/A".to_owned(), output::ago_rfc3339),
            output::size(image.bytes),
            output::size(image.bytes.saturating_sub(image.unique)),
            output::size(image.unique),
            users.count().to_string(),
        ]);
    }
    table
}

fn containers(usage: &DiskUsage) -> Table {
    let mut table = Table::new(&["CONTAINER ID", "IMAGE", "SIZE", "CREATED", "STATUS", "NAMES"]);
    for container in &usage.containers {
        let record = &container.record;
        table.row([
            record.id.chars().take(SHORT_ID).collect(),
            record.image.name.clone(),
            output::size(container.bytes),
            output::ago(record.created_ms),
            ps::status(&record.state),
            record.name.clone(),
        ]);
    }
    table
}

fn volumes(usage: &DiskUsage) -> Table {
    let mut table = Table::new(&["VOLUME NAME", "LINKS", "SIZE"]);
    for volume in &usage.volumes {
        table.row([
            volume.volume.name.clone(),
            volume.users.len().to_string(),
            output::size(volume.bytes()),
        ]);
    }
    table
}

fn check(engine: &Engine, arguments: &Check) -> Result<u8> {
    let mut progress = LoadProgress::new(true);
    let checked = engine
        .images()?
        .check(arguments.repair, &mut |event| progress.update(event));
    progress.finish();
    let checked = checked.map_err(rvm_engine::Error::from)?;
    for fault in &checked.faults {
        let text = format!("{}: {}; {}", fault.what, fault.reason, fault.remedy);
        output::lines([rvm_engine::printable(&text)])?;
    }
    let (blobs, layers) = (checked.blobs, checked.layers);
    let count = checked.faults.len();
    let verdict = match (count, arguments.repair) {
        (0, _) => "all are sound".to_owned(),
        (1, true) => "1 fault was dealt with".to_owned(),
        (_, true) => format!("{count} faults were dealt with"),
        (1, false) => "1 fault; `rvm system check --repair` deals with it".to_owned(),
        (_, false) => format!("{count} faults; `rvm system check --repair` deals with them"),
    };
    output::lines([format!("{blobs} blobs and {layers} layers were read: {verdict}")])?;
    Ok(if count == 0 || arguments.repair { 0 } else { FAILED })
}
