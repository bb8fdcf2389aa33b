//! Loading, listing and removing images.

use std::fs::{self, File};

use anyhow::Result;
use rvm_tests::command::{LIMIT, finish, tool};
use rvm_tests::images::{BUSYBOX, LAYERS, archive, layout};
use rvm_tests::rvm::{Isolation, Rvm, alone, in_mode, scratch};

/// Loads `path`, runs the image that appears in it, and removes it.
fn loads_and_runs(rvm: &Rvm, path: &str) -> Result<()> {
    let before = rvm.snapshot()?;
    let loaded = finish(rvm.command(["load", "-i", path])?, LIMIT)?.ok();
    let listing = rvm.call(["images"])?.ok().text();
    assert!(
        listing.lines().count() == 2,
        "{path}\n{}{listing}",
        loaded.describe()
    );
    let id = rvm.call(["images", "-q"])?.ok().text();
    let seen = rvm
        .run([id.as_str(), "sh", "-c", "cat /merged/upper /kept/new"])?
        .ok();
    assert_eq!(seen.text(), "upper\nnew", "{path}");
    rvm.call(["rmi", &id])?.ok();
    assert_eq!(rvm.call(["images", "-q"])?.ok().text(), "");
    before.nothing_new()
}

#[test]
fn every_kind_of_archive_is_the_same_image() -> Result<()> {
    let _alone = alone();
    let rvm = Rvm::empty(Isolation::Container, "archives")?;
    rvm.call(["images"])?.ok();
    let layout = layout(LAYERS)?.display().to_string();
    // The first run makes what later ones share.
    loads_and_runs(&rvm, &layout).or_else(|_| loads_and_runs(&rvm, &layout))?;
    let packed = scratch()?.join("packed").display().to_string();
    for kind in ["oci-archive", "docker-archive"] {
        let archive = archive(LAYERS, kind)?;
        loads_and_runs(&rvm, &archive.display().to_string())?;
        fs::copy(archive, &packed)?;
        tool("gzip", &["-kf", &packed])?;
        loads_and_runs(&rvm, &format!("{packed}.gz"))?;
        tool("zstd", &["-qf", &packed])?;
        loads_and_runs(&rvm, &format!("{packed}.zst"))?;
    }
    let zstd = scratch()?.join("zstd-layers").display().to_string();
    let target = format!("oci:{zstd}:latest");
    tool(
        "skopeo",
        &[
            "copy",
            "-q",
            "--dest-compress-format",
            "zstd",
            &format!("oci:{layout}:latest"),
            &target,
        ],
    )?;
    loads_and_runs(&rvm, &zstd)
}

#[test]
fn an_archive_may_come_from_standard_input() -> Result<()> {
    let _alone = alone();
    let rvm = Rvm::empty(Isolation::Container, "stdin")?;
    for arguments in [&["load"][..], &["load", "-i", "-"]] {
        let mut command = rvm.command(arguments)?;
        command.stdin(File::open(archive(LAYERS, "docker-archive")?)?);
        let output = finish(command, LIMIT)?.ok();
        assert!(output.text().contains(LAYERS), "{}", output.describe());
        rvm.call(["rmi", LAYERS])?.ok();
    }
    Ok(())
}

#[test]
fn images_are_listed_by_name_and_removed_with_their_last_tag() -> Result<()> {
    in_mode(Isolation::Container, |rvm: &Rvm| {
        let listing = rvm.call(["images"])?.ok().text();
        for text in [
            "REPOSITORY",
            "TAG",
            "IMAGE ID",
            "CREATED",
            "SIZE",
            "debian",
            "busybox",
            "test",
        ] {
            assert!(listing.contains(text), "no {text}\n{listing}");
        }
        rvm.call(["rmi", "no-such-image"])?.failed(1, &["no-such-image"]);
        Ok(())
    })
}

#[test]
fn an_image_in_use_stays() -> Result<()> {
    in_mode(Isolation::Container, |rvm: &Rvm| {
        finish(rvm.run_command(["--name", "user", BUSYBOX, "true"])?, LIMIT)?.ok();
        rvm.call(["rmi", BUSYBOX])?.failed(1, &["us"]);
        rvm.run([BUSYBOX, "true"])?.ok();
        rvm.call(["rm", "user"])?.ok();
        Ok(())
    })
}
