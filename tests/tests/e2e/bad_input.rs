//! Archives that are broken or hostile: a clear error, and nothing of them in the store.

use std::fs;

use anyhow::{Context as _, Result};
use rvm_tests::archive::{Layout, Tar};
use rvm_tests::command::{LIMIT, Output, finish};
use rvm_tests::rvm::{Isolation, Rvm, alone, scratch};
use serde_json::json;

/// Loads an archive that must be refused with an error that says `fragment`.
fn refused(label: &str, archive: &[u8], fragment: &str) -> Result<()> {
    let _alone = alone();
    let rvm = Rvm::empty(Isolation::Container, "hostile")?;
    let file = scratch()?.join("hostile.tar");
    fs::write(&file, archive)?;
    rvm.call(["images"])?.ok();
    let before = rvm.snapshot()?;
    let output = load(&rvm, file.to_str().context("not text")?)?;
    output.failed(1, &[fragment]);
    assert_eq!(rvm.call(["images", "-q"])?.ok().text(), "", "{label}");
    before
        .nothing_new()
        .with_context(|| format!("{label}\n{}", output.describe()))
}

fn load(rvm: &Rvm, path: &str) -> Result<Output> {
    finish(rvm.command(["load", "-i", path])?, LIMIT)
}

fn good_layer() -> Vec<u8> {
    Tar::new().directory("d/").file("d/file", &[7; 3000]).finish()
}

/// A single layer, whatever it holds, in a correct archive.
fn image(layer: Tar) -> Result<Vec<u8>> {
    Ok(Layout::new("hostile:test", &[layer.finish()])?.pack())
}

/// The other tests here prove something only if the same archive without its fault is accepted.
#[test]
fn the_archive_without_fault_is_accepted() -> Result<()> {
    let _alone = alone();
    let rvm = Rvm::empty(Isolation::Container, "faultless")?;
    let file = scratch()?.join("faultless.tar");
    fs::write(&file, Layout::new("hostile:test", &[good_layer()])?.pack())?;
    load(&rvm, file.to_str().context("not text")?)?.ok();
    assert!(rvm.call(["images"])?.ok().text().contains("hostile"));
    Ok(())
}

#[test]
fn no_archive_at_all() -> Result<()> {
    let _alone = alone();
    let rvm = Rvm::empty(Isolation::Container, "none")?;
    load(&rvm, "/no/such/file.tar")?.failed(1, &["/no/such/file.tar"]);
    load(&rvm, "/dev/null")?.failed(1, &[""]);
    load(&rvm, "/etc")?.failed(1, &[""]);
    Ok(())
}

#[test]
fn garbage() -> Result<()> {
    refused("zeros", &[0; 10240], "")?;
    refused("text", "this is no archive. ".repeat(1000).as_bytes(), "")?;
    refused("gzip of nothing", &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3], "")?;
    refused("zstd that ends", &[0x28, 0xb5, 0x2f, 0xfd, 0x24], "")
}

#[test]
fn truncated_anywhere() -> Result<()> {
    let whole = Layout::new("hostile:test", &[good_layer()])?.pack();
    // Without its end mark (the last two blocks) a tar stream is still whole.
    for length in [1, 511, 512, 700, 1024, whole.len() / 2, whole.len() - 1024 - 600] {
        refused(&format!("{length} of {}", whole.len()), &whole[..length], "")?;
    }
    Ok(())
}

#[test]
fn a_changed_byte_in_any_blob_is_noticed() -> Result<()> {
    let layout = Layout::new("hostile:test", &[good_layer()])?;
    for path in layout.files.keys().filter(|path| path.starts_with("blobs/")) {
        let mut changed = Layout::new("hostile:test", &[good_layer()])?;
        let content = changed.files.get_mut(path).context("no such blob")?;
        let middle = content.len() / 2;
        content[middle] ^= 1;
        refused(path, &changed.pack(), "digest")?;
    }
    Ok(())
}

#[test]
fn a_missing_blob() -> Result<()> {
    let mut layout = Layout::new("hostile:test", &[good_layer()])?;
    let layer = layout.layers[0].clone();
    layout.files.remove(&layer);
    refused("without its layer", &layout.pack(), "")
}

#[test]
fn a_blob_of_another_size_than_claimed() -> Result<()> {
    for size in [0_u64, 100, 1 << 20, u64::MAX] {
        let layout = Layout::with("hostile:test", &[good_layer()], |manifest| {
            manifest["layers"][0]["size"] = json!(size);
        })?;
        refused(&format!("claims {size} bytes"), &layout.pack(), "bytes")?;
    }
    Ok(())
}

#[test]
fn a_layer_larger_than_its_stream() -> Result<()> {
    let layer = Tar::new().claiming("file", b"little", 1 << 30);
    refused("entry beyond the end", &image(layer)?, "")
}

#[test]
fn names_that_lead_outside() -> Result<()> {
    for name in ["../evil", "a/../../evil", "..", "/../evil"] {
        refused(name, &image(Tar::new().file(name, b"x"))?, "..")?;
        refused(name, &image(Tar::new().directory(name))?, "..")?;
        refused(name, &image(Tar::new().symlink(name, "x"))?, "..")?;
    }
    refused(
        "absolute",
        &image(Tar::new().file("/absolute", b"x"))?,
        "absolute",
    )
}

#[test]
fn links_that_lead_outside() -> Result<()> {
    let through = Tar::new().symlink("way", "/etc").file("way/evil", b"x");
    refused("a file through a symbolic link", &image(through)?, "way")?;
    let parent = Tar::new()
        .file("file", b"x")
        .hard_link("link", "../../etc/passwd");
    refused("a hard link to outside", &image(parent)?, "..")?;
    let missing = Tar::new().hard_link("link", "no-such-file");
    refused("a hard link to nothing", &image(missing)?, "no-such-file")
}

#[test]
fn whiteouts_that_name_nothing_sensible() -> Result<()> {
    for name in ["d/.wh.", "d/.wh...", "d/.wh.."] {
        refused(name, &image(Tar::new().directory("d/").file(name, b""))?, ".wh.")?;
    }
    Ok(())
}

#[test]
fn an_outer_archive_that_leads_outside() -> Result<()> {
    let manifest = |layer: &str| {
        json!([{"Config": "config.json", "RepoTags": ["hostile:test"], "Layers": [layer]}]).to_string()
    };
    let config = json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", "0".repeat(64))]}})
    .to_string();
    let archive = |layer: &str| {
        Tar::new()
            .file("manifest.json", manifest(layer).as_bytes())
            .file("config.json", config.as_bytes())
    };
    refused("a layer outside", &archive("../../../etc/passwd").finish(), "")?;
    refused("an absolute layer", &archive("/etc/passwd").finish(), "")?;
    let link = archive("layer.tar").symlink("layer.tar", "/etc/passwd");
    refused("a layer that is a link", &link.finish(), "")
}

#[test]
fn an_image_for_another_machine_is_refused_by_name() -> Result<()> {
    let no_manifest = Tar::new()
        .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", b"{}");
    refused("an index without manifests", &no_manifest.finish(), "")?;
    let deep = "[".repeat(200_000);
    let nested = Tar::new()
        .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", deep.as_bytes());
    refused("JSON without end", &nested.finish(), "")
}
