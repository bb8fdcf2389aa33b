//! Every program's files, beside what another tool unpacks of its image.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use rvm_tests::command::{LIMIT, finish, tool};
use rvm_tests::rvm::alone;
use rvm_tests::tree::{self, Entry};

use crate::{directory, programs};

/// Images there are.
const PROGRAMS: usize = 8;

fn entries(text: &str) -> Result<Vec<Entry>> {
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

#[test]
fn every_program_s_files_are_those_that_umoci_unpacks() -> Result<()> {
    let _alone = alone();
    let (directory, rvm) = (directory()?, programs()?);
    for layer in fs::read_dir(rvm.root().join("layers/sha256"))? {
        tool("fsck.erofs", &[layer?.path().to_str().context("not text")?])?;
    }
    let mut compared = 0;
    for entry in fs::read_dir(&directory)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "tree") {
            continue;
        }
        let name = path
            .file_stem()
            .and_then(|name| name.to_str())
            .context("no name")?;
        let image = format!("packages.layout:{name}");
        // What is left out was left out on the other side, too: there the runtime mounts something of its own.
        let arguments = ["--rm", &image, "/probe", "tree", "/", "proc", "sys", "dev"];
        let inside = finish(rvm.run_command(arguments)?, 5 * LIMIT)?.ok().text();
        let (unpacked, inside) = (entries(&fs::read_to_string(&path)?)?, entries(&inside)?);
        ensure!(unpacked.len() > 5000, "{name} has {} entries", unpacked.len());
        let differences = tree::differences(&unpacked, &inside);
        ensure!(
            differences.is_empty(),
            "{name}; left: umoci's tree, right: as seen inside\n{differences}"
        );
        compared += 1;
    }
    ensure!(compared == PROGRAMS, "{compared} images were compared");
    Ok(())
}
