//! `rvm images`.

use anyhow::Result;
use rvm_engine::Engine;
use rvm_images::Summary;
use serde::Serialize;

use crate::args::{ImageFilter, Images, NamePattern};
use crate::output::{self, Table};

/// An image, under Docker's field names.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    repository: String,
    tag: String,
    #[serde(rename = "ID")]
    id: String,
    digest: String,
    created_at: String,
    created_since: String,
    size: String,
}

pub(super) fn run(engine: &Engine, arguments: &Images) -> Result<u8> {
    let images = engine.images()?.list().map_err(rvm_engine::Error::from)?;
    let conditions = Conditions::new(engine, &images, arguments)?;
    let rows: Vec<Row> = images
        .iter()
        .filter(|image| conditions.fit(image))
        .map(|image| row(image, arguments.no_trunc))
        .collect();
    if arguments.quiet {
        output::lines(rows.iter().map(|row| &row.id))?;
    } else {
        output::listing(&arguments.format, &rows, || table(&rows, arguments.digests))?;
    }
    Ok(0)
}

/// Conditions that have been looked up. Of patterns any has to hold, of the others all.
struct Conditions<'a> {
    patterns: Vec<&'a NamePattern>,
    filters: Vec<&'a ImageFilter>,
    /// The moment before which, and that since which, it has to have been made.
    before: Vec<Option<String>>,
    since: Vec<Option<String>>,
}

impl<'a> Conditions<'a> {
    fn new(engine: &Engine, images: &[Summary], arguments: &'a Images) -> Result<Self> {
        let mut conditions = Self {
            patterns: arguments.pattern.iter().collect(),
            filters: Vec::new(),
            before: Vec::new(),
            since: Vec::new(),
        };
        let made = |wanted: &str| -> Result<Option<String>> {
            let id = engine
                .images()?
                .details(wanted)
                .map_err(rvm_engine::Error::from)?
                .id;
            let known = images.iter().find(|image| image.id == id);
            Ok(known.and_then(|image| image.created.clone()))
        };
        for filter in &arguments.filter {
            match filter {
                ImageFilter::Reference(pattern) => conditions.patterns.push(pattern),
                ImageFilter::Before(image) => conditions.before.push(made(image)?),
                ImageFilter::Since(image) => conditions.since.push(made(image)?),
                ImageFilter::Dangling(_) | ImageFilter::Label(..) => conditions.filters.push(filter),
            }
        }
        Ok(conditions)
    }

    fn fit(&self, image: &Summary) -> bool {
        let name = |text: &'_ Option<String>| text.clone().unwrap_or_default();
        let (repository, tag) = (name(&image.repository), name(&image.tag));
        (self.patterns.is_empty() || self.patterns.iter().any(|pattern| pattern.fits(&repository, &tag)))
            && self.filters.iter().all(|filter| match filter {
                ImageFilter::Dangling(dangling) => image.repository.is_none() == *dangling,
                ImageFilter::Label(label) => label.fits(&image.labels),
                ImageFilter::Reference(_) | ImageFilter::Before(_) | ImageFilter::Since(_) => true,
            })
            // RFC 3339 in UTC sorts as time does.
            && self.before.iter().all(|moment| image.created < *moment)
            && self.since.iter().all(|moment| image.created > *moment)
    }
}

fn row(image: &Summary, no_trunc: bool) -> Row {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "<none>".to_owned());
    let created = image.created.as_deref();
    Row {
        repository: or_none(&image.repository),
        tag: or_none(&image.tag),
        id: if no_trunc {
            image.id.to_string()
        } else {
            image.id.short()
        },
        digest: image.manifest.to_string(),
        created_at: created.unwrap_or("N/A").to_owned(),
        created_since: created.map_or_else(|| "N/A".to_owned(), output::ago_rfc3339),
        size: output::size(image.bytes),
    }
}

fn table(rows: &[Row], digests: bool) -> Table {
    let mut titles = vec!["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
    if digests {
        titles.insert(2, "DIGEST");
    }
    let mut table = Table::new(&titles);
    for row in rows {
        let mut cells = vec![&row.repository, &row.tag, &row.id, &row.created_since, &row.size];
        if digests {
            cells.insert(2, &row.digest);
        }
        table.row(cells);
    }
    table
}
