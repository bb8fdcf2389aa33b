//! `rvm system prune`, and what it has in common with the other prunes.

use anyhow::{Result, bail};
use rvm_engine::{Engine, Error};
use rvm_images::{Candidate, Removed};

use crate::args::{PruneFilter, SystemPrune};
use crate::output;

pub(super) fn run(engine: &Engine, arguments: &SystemPrune) -> Result<u8> {
    let filters = &arguments.filter;
    if arguments.volumes
        && filters
            .iter()
            .any(|filter| matches!(filter, PruneFilter::Until(_)))
    {
        bail!(
            "the \"until\" filter is not supported with \"--volumes\": a volume is used until its last container is removed"
        );
    }
    if !arguments.force && !super::is_confirmed(&what(arguments))? {
        return Ok(0);
    }
    let containers = engine.prune_containers(&|record| {
        PruneFilter::all_fit(filters, &record.settings.labels, Some(record.created_ms))
    })?;
    output::lines(section("Containers", containers.ids))?;
    let mut bytes = containers.freed_bytes;
    let networks = engine
        .prune_networks(|network| PruneFilter::all_fit(filters, &network.labels, Some(network.created_ms)))
        .map_err(Error::from)?;
    output::lines(section(
        "Networks",
        networks.into_iter().map(|network| network.name),
    ))?;
    if arguments.volumes {
        let volumes = engine.prune_volumes(&|volume| {
            volume.is_anonymous() && PruneFilter::all_fit(filters, &volume.labels, Some(volume.created_ms))
        })?;
        bytes = bytes.saturating_add(volumes.freed_bytes);
        output::lines(section("Volumes", volumes.names))?;
    }
    let images = engine.prune_images(arguments.all, &|image| is_chosen(filters, image))?;
    bytes = bytes.saturating_add(images.freed_bytes);
    output::lines(images_section(&images))?;
    output::lines([reclaimed(bytes)])?;
    Ok(0)
}

/// What will be removed, in Docker's words.
fn what(arguments: &SystemPrune) -> String {
    let mut text =
        String::from(":\n  - all stopped containers\n  - all networks not used by at least one container\n");
    if arguments.volumes {
        text.push_str("  - all anonymous volumes not used by at least one container\n");
    }
    text.push_str(if arguments.all {
        "  - all images without at least one container associated to them\n"
    } else {
        "  - all dangling images\n"
    });
    if !arguments.filter.is_empty() {
        text.push_str("\n  Only what fits the filters is removed\n");
    }
    text
}

/// Whether filters fit an image.
pub(super) fn is_chosen(filters: &[PruneFilter], image: &Candidate) -> bool {
    let created = image.created.as_deref().and_then(output::moment);
    PruneFilter::all_fit(filters, &image.labels, created)
}

/// What was removed of a kind; nothing where that is nothing.
pub(super) fn section(kind: &str, names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut names = names.into_iter().peekable();
    if names.peek().is_none() {
        return Vec::new();
    }
    let mut lines = vec![format!("Deleted {kind}:")];
    lines.extend(names);
    lines.push(String::new());
    lines
}

/// Names and images that were removed.
pub(super) fn images_section(removed: &Removed) -> Vec<String> {
    if removed.deleted.is_empty() {
        return Vec::new();
    }
    let untagged = removed.untagged.iter().map(|name| format!("untagged: {name}"));
    section(
        "Images",
        untagged.chain(removed.deleted.iter().map(|id| format!("deleted: {id}"))),
    )
}

/// The last line of each prune.
pub(super) fn reclaimed(bytes: u64) -> String {
    format!("Total reclaimed space: {}", output::size(bytes))
}
