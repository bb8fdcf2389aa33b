//! `rvm volume`.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use rvm_engine::volumes::{self, VolumeUsage};
use rvm_engine::{Engine, Error};
use serde::Serialize;

use super::{is_confirmed, prune, variables};
use crate::args::{
    Volume, VolumeCreate, VolumeFilter, VolumeInspect, VolumeLs, VolumePrune, VolumePruneFilter, VolumeRm,
};
use crate::output::{self, Table};

/// The one driver.
const DRIVER: &str = "local";

pub(super) fn run(engine: &Engine, command: Volume) -> Result<u8> {
    match command {
        Volume::Create(arguments) => create(engine, arguments),
        Volume::Ls(arguments) => list(engine, &arguments),
        Volume::Inspect(arguments) => inspect(engine, &arguments),
        Volume::Rm(arguments) => remove(engine, &arguments),
        Volume::Prune(arguments) => remove_unused(engine, &arguments),
    }
}

fn create(engine: &Engine, arguments: VolumeCreate) -> Result<u8> {
    let name = arguments.name.as_deref();
    if arguments.driver != DRIVER {
        let (name, driver) = (name.unwrap_or_default(), arguments.driver);
        bail!(
            "create {name}: error looking up volume plugin {driver}: plugin \"{driver}\" not found: there is only {DRIVER}"
        );
    }
    if let Some(option) = arguments.opt.first() {
        bail!(
            "the driver {DRIVER} takes no option {option:?}: a volume is a directory on this machine; --tmpfs gives a \
             container memory, and -v /DIR:/DIR any directory, whatever is mounted there"
        );
    }
    let labels = variables::labels(&[], arguments.label)?;
    let volume = engine.create_volume(name, labels)?;
    output::lines([volume.name])?;
    Ok(0)
}

/// A volume in a listing, under Docker's field names.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    driver: &'static str,
    labels: String,
    links: String,
    mountpoint: String,
    name: String,
    scope: &'static str,
    size: String,
}

fn list(engine: &Engine, arguments: &VolumeLs) -> Result<u8> {
    let all = engine.list_volumes()?;
    let shown = all.iter().filter(|usage| {
        // Of one kind any has to hold, of labels all.
        let any = |fits: &dyn Fn(&VolumeFilter) -> Option<bool>| {
            let mut answers = arguments.filter.iter().filter_map(fits).peekable();
            answers.peek().is_none() || answers.any(|answer| answer)
        };
        let volume = &usage.volume;
        any(&|filter| match filter {
            VolumeFilter::Name(part) => Some(volume.name.contains(part.as_str())),
            _ => None,
        }) && any(&|filter| match filter {
            VolumeFilter::Driver(driver) => Some(driver == DRIVER),
            _ => None,
        }) && any(&|filter| match filter {
            VolumeFilter::Dangling(dangling) => Some(usage.users.is_empty() == *dangling),
            _ => None,
        }) && arguments.filter.iter().all(|filter| match filter {
            VolumeFilter::Label(label) => label.fits(&volume.labels),
            _ => true,
        })
    });
    if arguments.quiet {
        output::lines(shown.map(|usage| &usage.volume.name))?;
    } else {
        // To know sizes, all files of all volumes are looked at.
        let with_size = arguments.format.shows("Size");
        let rows: Vec<Row> = shown.map(|usage| row(usage, with_size)).collect();
        output::listing(&arguments.format, &rows, || table(&rows))?;
    }
    Ok(0)
}

fn row(usage: &VolumeUsage, with_size: bool) -> Row {
    let labels: Vec<_> = usage
        .volume
        .labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    Row {
        driver: DRIVER,
        labels: labels.join(","),
        links: usage.users.len().to_string(),
        mountpoint: usage.mountpoint.display().to_string(),
        name: usage.volume.name.clone(),
        scope: DRIVER,
        size: if with_size {
            output::size(usage.bytes())
        } else {
            String::new()
        },
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(&["DRIVER", "VOLUME NAME"]);
    for row in rows {
        table.row([row.driver, row.name.as_str()]);
    }
    table
}

/// A volume in full, under Docker's field names.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct VolumeDocument {
    created_at: String,
    driver: &'static str,
    labels: BTreeMap<String, String>,
    mountpoint: String,
    name: String,
    options: BTreeMap<String, String>,
    scope: &'static str,
}

fn inspect(engine: &Engine, arguments: &VolumeInspect) -> Result<u8> {
    let mut documents = Vec::new();
    let code = super::each(&arguments.volumes, |wanted| {
        let usage = engine.volume(wanted)?;
        documents.push(VolumeDocument {
            created_at: rvm_engine::inspect::moment(Some(usage.volume.created_ms)),
            driver: DRIVER,
            labels: usage.volume.labels,
            mountpoint: usage.mountpoint.display().to_string(),
            name: usage.volume.name,
            options: BTreeMap::new(),
            scope: DRIVER,
        });
        Ok(())
    })?;
    output::documents(arguments.format.as_ref(), &documents)?;
    Ok(code)
}

fn remove(engine: &Engine, arguments: &VolumeRm) -> Result<u8> {
    super::each(&arguments.volumes, |wanted| {
        match engine.remove_volume(wanted) {
            Err(Error::Volume(volumes::Error::NotFound(_))) if arguments.force => {}
            removed => removed?,
        }
        output::lines([wanted])
    })
}

fn remove_unused(engine: &Engine, arguments: &VolumePrune) -> Result<u8> {
    let asks_for_all = |filter: &VolumePruneFilter| *filter == VolumePruneFilter::All(true);
    let all = arguments.all || arguments.filter.iter().any(asks_for_all);
    let what = if all {
        "all local volumes not used by at least one container"
    } else {
        "anonymous local volumes not used by at least one container"
    };
    if !arguments.force && !is_confirmed(what)? {
        return Ok(0);
    }
    let pruned = engine.prune_volumes(&|volume| {
        (all || volume.is_anonymous())
            && arguments.filter.iter().all(|filter| match filter {
                VolumePruneFilter::All(_) => true,
                VolumePruneFilter::Label(label) => label.fits(&volume.labels),
                VolumePruneFilter::NotLabel(label) => !label.fits(&volume.labels),
            })
    })?;
    let mut lines = prune::section("Volumes", pruned.names);
    lines.push(prune::reclaimed(pruned.freed_bytes));
    output::lines(lines)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::args::ListFormat;

    #[test]
    fn sizes_are_found_out_where_they_are_shown() {
        for (format, expected) in [
            ("table", false),
            ("table {{.Name}}\\t{{.Links}}", false),
            ("{{.Name}} Size", false),
            ("table {{.Name}}\\t{{.Size}}", true),
            ("{{.Size}}", true),
            ("{{json .Size}}", true),
            ("{{json .}}", true),
            ("json", true),
        ] {
            let format: ListFormat = format.parse().unwrap();
            assert_eq!(format.shows("Size"), expected, "{format:?}");
        }
        let usage = VolumeUsage {
            volume: serde_json::from_str(r#"{"version":1,"name":"db","created_ms":1}"#).unwrap(),
            mountpoint: Path::new("/none").to_owned(),
            users: Vec::new(),
        };
        assert_eq!(
            [true, false].map(|with_size| row(&usage, with_size).size),
            ["0B", ""]
        );
    }
}
