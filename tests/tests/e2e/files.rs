//! Files on their way out of images and containers and back: save, import, export, commit. Other tools read what rvm
//! writes, and every tree is compared entry by entry.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, Output, finish, tool};
use rvm_tests::images::{self, BUSYBOX, LAYERS};
use rvm_tests::rvm::{Isolation, Rvm, in_mode, scratch};
use rvm_tests::tree::{self, Entry};
use rvm_tests::wait::wait_until;

/// Where the runtime mounts something of its own.
const MOUNTED: [&str; 3] = ["proc", "sys", "dev"];

/// What a workload can do to the files of [`LAYERS`], one of each kind.
const CHANGES: &str = r#"
set -e
rm /kept/new; rm -r /owners/sticky /long; rm /types/blocks
rm -r /opaque; mkdir /opaque; echo fresh >/opaque/fresh
rm -r /links; ln -s types /links
echo more >>/merged/upper; chmod 4711 /owners/user; chown 70000:70001 /types/empty
touch /xattrs/user /xattrs/capable
mkdir -p /new/deep/er; echo one >/new/one; ln /new/one /new/two; ln /new/one /new/deep/three
mkfifo /new/fifo; mknod /new/null c 1 3; ln -s nowhere /new/dangling
dd if=/bin/busybox of=/new/sparse bs=4096 count=2 seek=900 2>/dev/null
truncate -s 20M /new/sparse; truncate -s 3M /new/hole; : >/new/empty
n=nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn; mkdir -p /new/$n/$n/$n; echo x >/new/$n/$n/$n/$n; ln -s $n/$n/$n /new/l
chmod 1700 /new
"#;

/// A path in a directory of this test's own, which is made empty.
fn directory(name: &str) -> Result<PathBuf> {
    let path = scratch()?.join(name);
    if path.exists() {
        fs::remove_dir_all(&path)?; // left by a test that failed
    }
    fs::create_dir(&path)?;
    Ok(path)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("not text")
}

fn load(rvm: &Rvm, archive: &Path) -> Result<Output> {
    let mut command = rvm.command(["load", "-i"])?;
    command.arg(archive);
    Ok(finish(command, LIMIT)?.ok())
}

/// The tree that a container of an image sees.
fn inside(rvm: &Rvm, image: &str) -> Result<Vec<Entry>> {
    let arguments = [&["--rm", image, "/probe", "tree", "/"], MOUNTED.as_slice()].concat();
    let output = finish(rvm.run_command(arguments)?, 5 * LIMIT)?.ok();
    let entry = |line: &str| serde_json::from_str::<Entry>(line).with_context(|| line.to_owned());
    output.text().lines().map(entry).collect()
}

fn assert_equal(what: &str, left: &[Entry], right: &[Entry]) {
    assert!(left.len() > 30, "only {} entries", left.len());
    let differences = tree::differences(left, right);
    assert!(differences.is_empty(), "{what}\n{differences}");
}

/// What umoci makes of an image of this installation.
fn unpacked(rvm: &Rvm, image: &str, directory: &Path) -> Result<Vec<Entry>> {
    let archive = directory.join("saved");
    let archive = text(&archive)?;
    rvm.call(["save", "--format", "oci-archive", "-o", archive, image])?
        .ok();
    let layout = format!("{}/layout:it", text(directory)?);
    tool(
        "skopeo",
        &[
            "copy",
            "-q",
            &format!("oci-archive:{archive}"),
            &format!("oci:{layout}"),
        ],
    )?;
    let bundle = directory.join("bundle");
    tool("umoci", &["unpack", "--image", &layout, text(&bundle)?])?;
    tree::walk(&bundle.join("rootfs"), &MOUNTED)
}

both_modes! {
    fn a_saved_image_is_the_same_image(rvm) {
        let directory = directory("saved")?;
        load(rvm, &images::archive(LAYERS, "oci-archive")?)?;
        let listing = rvm.call(["images", "--no-trunc"])?.ok().text();
        for format in ["docker-archive", "oci-archive"] {
            let archive = directory.join(format);
            rvm.call(["save", "--format", format, "-o", text(&archive)?, LAYERS])?.ok();
            // Another tool reads it.
            let copy = format!("docker-archive:{}.copy", text(&archive)?);
            tool("skopeo", &["copy", "-q", &format!("{format}:{}", text(&archive)?), &format!("{copy}:copied:test")])?;
            rvm.call(["rmi", LAYERS])?.ok();
            load(rvm, &archive)?;
            assert_eq!(rvm.call(["images", "--no-trunc"])?.ok().text(), listing, "{format}");
            let seen = rvm.run([LAYERS, "sh", "-c", "cat /merged/upper /kept/new"])?.ok();
            assert_eq!(seen.text(), "upper\nnew", "{format}");
        }
        rvm.call(["rmi", LAYERS])?.ok();
        fs::remove_dir_all(directory)?;
    }

    fn a_root_file_system_is_imported(rvm) {
        let directory = directory("imported")?;
        let root = images::unpack(LAYERS, &directory.join("bundle"))?;
        let archive = directory.join("root.tar");
        tool("tar", &["--format=posix", "--pax-option=delete=atime,delete=ctime", "--xattrs", "--xattrs-include=*",
            "--numeric-owner", "-C", text(&root)?, "-cf", text(&archive)?, "."])?;
        let expected = tree::walk(&root, &MOUNTED)?;
        tool("zstd", &["-q", text(&archive)?])?;
        for name in ["root.tar", "root.tar.zst"] {
            let file = directory.join(name);
            rvm.call(["import", "-c", "ENV PATH=/bin", "-c", r#"CMD ["sh", "-c", "echo imported"]"#, text(&file)?, "flat:1"])?.ok();
            assert_eq!(rvm.run(["flat:1"])?.ok().text(), "imported");
            assert_equal(name, &expected, &inside(rvm, "flat:1")?);
            rvm.call(["rmi", "flat:1"])?.ok();
        }
        fs::remove_dir_all(directory)?;
    }
}

#[test]
fn a_container_is_exported_and_committed() -> Result<()> {
    in_mode(Isolation::Container, |rvm: &Rvm| {
        let directory = directory("exported")?;
        load(rvm, &images::archive(LAYERS, "oci-archive")?)?;
        let arguments = ["--name", "changed", LAYERS, "sh", "-c", CHANGES];
        finish(rvm.run_command(arguments)?, LIMIT)?.ok();

        let archive = directory.join("export.tar");
        rvm.call(["export", "-o", text(&archive)?, "changed"])?.ok();
        let root = directory.join("root");
        fs::create_dir(&root)?;
        tool(
            "tar",
            &[
                "--xattrs",
                "--xattrs-include=*",
                "--numeric-owner",
                "-C",
                text(&root)?,
                "-xpf",
                text(&archive)?,
            ],
        )?;
        let exported = tree::walk(&root, &MOUNTED)?;
        let has = |path: &str| exported.iter().any(|entry| entry.path == path);
        assert!(has("opaque/fresh") && !has("opaque/newest") && !has("long"));
        let sparse = fs::metadata(&archive)?.len();
        assert!(sparse < 15 << 20, "{sparse} bytes: holes take no room");

        let config = [r#"CMD ["/probe", "env"]"#, "LABEL made=here"];
        rvm.call([
            "commit",
            "-a",
            "me",
            "-m",
            "changed",
            "-c",
            config[0],
            "-c",
            config[1],
            "changed",
            "changed:1",
        ])?
        .ok();
        rvm.call(["rm", "changed"])?.ok();
        assert_equal(
            "left: exported, right: committed",
            &exported,
            &inside(rvm, "changed:1")?,
        );
        assert_equal(
            "left: exported, right: committed, by umoci",
            &exported,
            &unpacked(rvm, "changed:1", &directory)?,
        );
        let shown = rvm
            .call([
                "inspect",
                "-f",
                "{{.Author}} {{.Comment}} {{json .Config.Labels}}",
                "changed:1",
            ])?
            .ok();
        assert_eq!(shown.text(), r#"me changed {"made":"here"}"#);

        // What was exported can be imported.
        rvm.call(["import", text(&archive)?, "flat:1"])?.ok();
        assert_equal(
            "left: exported, right: imported",
            &exported,
            &inside(rvm, "flat:1")?,
        );
        rvm.call(["rmi", "flat:1", "changed:1", LAYERS])?.ok();
        fs::remove_dir_all(directory)?;
        Ok(())
    })
}

#[test]
fn a_running_container_is_exported_and_not_committed_unasked() -> Result<()> {
    in_mode(Isolation::Container, |rvm: &Rvm| {
        let running = rvm.start(
            "live",
            &[BUSYBOX, "sh", "-c", "echo live >/live; echo up; sleep 1000"],
        )?;
        wait_until("the workload has begun", LIMIT, || {
            Ok(running.stdout_so_far().contains("up"))
        })?;
        let archive = scratch()?.join("live.tar");
        rvm.call(["export", "-o", text(&archive)?, "live"])?.ok();
        assert_eq!(tool("tar", &["-xOf", text(&archive)?, "live"])?.trim(), "live");
        rvm.call(["commit", "live"])?
            .failed(1, &["running", "--pause=false"]);
        rvm.call(["commit", "--pause=false", "live", "live:1"])?.ok();
        rvm.call(["rm", "-f", "live"])?.ok();
        running.finish(LIMIT)?;
        assert_eq!(rvm.run(["live:1", "cat", "/live"])?.ok().text(), "live");
        rvm.call(["rmi", "live:1"])?.ok();
        fs::remove_file(archive)?;
        Ok(())
    })
}

#[test]
fn the_files_of_a_machine_are_not_touched() -> Result<()> {
    in_mode(Isolation::Vm, |rvm: &Rvm| {
        finish(rvm.run_command(["--name", "guest", BUSYBOX, "true"])?, LIMIT)?.ok();
        for arguments in [&["export", "guest"][..], &["commit", "guest"]] {
            rvm.call(arguments)?.failed(1, &["virtual machine's disk"]);
        }
        rvm.call(["rm", "guest"])?.ok();
        Ok(())
    })
}

#[test]
fn a_layer_that_is_missing_is_made_again() -> Result<()> {
    in_mode(Isolation::Container, |rvm: &Rvm| {
        load(rvm, &images::archive(LAYERS, "oci-archive")?)?;
        for entry in fs::read_dir(rvm.root().join("layers/sha256"))? {
            let path = entry?.path();
            let bytes = fs::metadata(&path)?.len();
            // The others' layers stay, apart from those of one image.
            if bytes < 5 << 20 {
                fs::remove_file(path)?;
            }
        }
        assert_eq!(
            rvm.run([LAYERS, "sh", "-c", "cat /merged/upper"])?.ok().text(),
            "upper"
        );
        let report = rvm.call(["system", "check", "--repair"])?.ok().text();
        assert!(report.contains("all are sound"), "{report}");
        rvm.call(["rmi", LAYERS])?.ok();
        Ok(())
    })
}
