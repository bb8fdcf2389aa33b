//! `rvm system`.

use anyhow::Result;
use rvm_engine::names::SHORT_ID;
use rvm_engine::record::State;
use rvm_engine::{DiskUsage, Engine};
use rvm_images::Space;
use serde::Serialize;

use super::{FAILED, ps};
use crate::args::{Check, Df, System};
use crate::output::{self, LoadProgress, Table};

pub(super) fn run(engine: &Engine, command: &System) -> Result<u8> {
    match command {
        System::Df(arguments) => df(engine, arguments),
        System::Check(arguments) => check(engine, arguments),
    }
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
    let row = |r#type, (total, active): (usize, usize), space: Space| Row {
        r#type,
        total_count: total.to_string(),
        active: active.to_string(),
        size: output::size(space.bytes),
        reclaimable: reclaimable(space),
    };
    let images = &usage.images;
    let is_active = |state: &State| matches!(state, State::Running { .. });
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
