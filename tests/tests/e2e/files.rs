//! Files on their way out of images and containers and back: save, import, export, commit. Other tools read what rvm
//! writes, and every tree is compared entry by entry.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, Output, Running, finish, tool};
use rvm_tests::images::{self, BUSYBOX, LAYERS};
use rvm_tests::processes;
use rvm_tests::rvm::{Isolation, Rvm, in_mode, scratch};
use rvm_tests::tree::{self, Entry};
use rvm_tests::wait::{let_pass, wait_until};

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

/// Writes as long as it lives.
const WRITER: &str = "echo live >/live; echo up; while sleep 0.1; do echo tick; date >>/ticks; done";

/// Makes a file of 100 MiB and says what its hash is.
const BIG: &str = "dd if=/dev/urandom of=/big bs=1M count=100 2>/dev/null; sha256sum </big";

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
        let images = ["images", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}} {{.Size}}"];
        let listing = rvm.call(images)?.ok().text();
        for format in ["docker-archive", "oci-archive"] {
            let archive = directory.join(format);
            rvm.call(["save", "--format", format, "-o", text(&archive)?, LAYERS])?.ok();
            // Another tool reads it.
            let copy = format!("docker-archive:{}.copy", text(&archive)?);
            tool("skopeo", &["copy", "-q", &format!("{format}:{}", text(&archive)?), &format!("{copy}:copied:test")])?;
            rvm.call(["rmi", LAYERS])?.ok();
            load(rvm, &archive)?;
            assert_eq!(rvm.call(images)?.ok().text(), listing, "{format}");
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

both_modes! {
    fn a_container_is_exported_and_committed(rvm) {
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
        for (what, rvm) in [("here", rvm), ("in the other mode", &rvm.in_the_other_mode())] {
            let what = format!("left: exported, right: committed, run {what}");
            assert_equal(&what, &exported, &inside(rvm, "changed:1")?);
        }
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
    }

    fn a_container_that_never_ran_has_its_image_s_root_directory(rvm) {
        let archive = scratch()?.join("never-ran.tar");
        let archive = text(&archive)?;
        let create = || Ok::<_, anyhow::Error>(rvm.call(["create", "--isolation", rvm.isolation().name(), "--name", "fresh", "odd:1"])?.ok());
        finish(rvm.run_command(["--name", "odd", BUSYBOX, "sh", "-c", "chown 7:8 /; chmod 1711 /"])?, LIMIT)?.ok();
        rvm.call(["commit", "odd", "odd:1"])?.ok();
        // By the first that looks: neither may depend on the other.
        create()?;
        rvm.call(["commit", "fresh", "fresh:1"])?.ok();
        rvm.call(["rm", "odd", "fresh"])?.ok();
        create()?;
        rvm.call(["export", "-o", archive, "fresh"])?.ok();
        rvm.call(["rm", "fresh"])?.ok();
        rvm.call(["import", archive, "fresh:2"])?.ok();
        for image in ["odd:1", "fresh:1", "fresh:2"] {
            assert_eq!(rvm.run([image, "stat", "-c", "%a %u:%g", "/"])?.ok().text(), "1711 7:8", "{image}");
        }
        rvm.call(["rmi", "fresh:1", "fresh:2", "odd:1"])?.ok();
        fs::remove_file(archive)?;
    }

    fn a_running_container_is_exported_and_committed(rvm) {
        let running = rvm.start("live", &[BUSYBOX, "sh", "-c", WRITER])?;
        wait_until("the workload has begun", LIMIT, || Ok(running.stdout_so_far().contains("up")))?;
        let archive = scratch()?.join("live.tar");
        rvm.call(["export", "-o", text(&archive)?, "live"])?.ok();
        assert_eq!(tool("tar", &["-xOf", text(&archive)?, "live"])?.trim(), "live");
        // What the runtime and the workload have mounted is not the container's.
        let names = tool("tar", &["-tf", text(&archive)?])?;
        let mounted = names.lines().find(|name| MOUNTED.iter().any(|top| name.starts_with(&format!("{top}/")) && name.len() > top.len() + 1));
        assert_eq!(mounted, None);
        rvm.call(["commit", "--pause=false", "live", "live:1"])?.ok();
        rvm.call(["rm", "-f", "live"])?.ok();
        running.finish(LIMIT)?;
        for rvm in [rvm, &rvm.in_the_other_mode()] {
            assert_eq!(rvm.run(["live:1", "cat", "/live"])?.ok().text(), "live");
        }
        rvm.call(["rmi", "live:1"])?.ok();
        fs::remove_file(archive)?;
    }

    fn whoever_reads_slowly_or_goes_away_holds_up_nobody(rvm) {
        let running = rvm.start("live", &[BUSYBOX, "sh", "-c", &format!("{BIG}; {WRITER}")])?;
        let counted = |word| running.stdout_so_far().matches(word).count();
        wait_until("the workload has begun", LIMIT, || Ok(counted("up") > 0))?;
        let mut readers = Vec::new();
        for _ in 0..3 {
            readers.push(Running::start_unread(rvm.command(["export", "live"])?)?);
        }
        let seen = counted("tick");
        wait_until("the workload goes on", LIMIT, || Ok(counted("tick") > seen + 3))?;
        rvm.call(["inspect", "live"])?.ok();
        let archive = scratch()?.join("live.tar");
        rvm.call(["export", "-o", text(&archive)?, "live"])?.ok();
        for reader in readers {
            reader.signal(Signal::KILL)?;
            reader.finish(LIMIT)?;
        }
        rvm.call(["export", "-o", text(&archive)?, "live"])?.ok();
        rvm.call(["rm", "-f", "live"])?.ok();
        running.finish(LIMIT)?;
        fs::remove_file(archive)?;
    }

    fn a_container_that_was_killed_is_exported(rvm) {
        let mut command = rvm.run_command(["--name", "killed", BUSYBOX, "sh", "-c", &format!("{BIG}; sync; {WRITER}")])?;
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let running = Running::start(command)?;
        wait_until("the workload has begun", LIMIT, || Ok(running.stdout_so_far().contains("up")))?;
        let sum = running.stdout_so_far().lines().next().unwrap_or_default().to_owned();
        for process in processes::all()?.into_values() {
            if processes::arguments(process.pid).iter().any(|word| word == "supervise") {
                processes::kill(process.pid)?;
            }
        }
        running.finish(LIMIT)?;
        let archive = scratch()?.join("killed.tar");
        rvm.call(["export", "-o", text(&archive)?, "killed"])?.ok();
        let piped = format!("tar -xOf {} big | sha256sum", archive.display());
        assert_eq!(tool("sh", &["-c", &piped])?.trim(), sum);
        rvm.call(["commit", "killed", "killed:1"])?.ok();
        rvm.call(["rm", "killed"])?.ok();
        let sums = rvm.in_the_other_mode().run(["killed:1", "sh", "-c", "sha256sum </big"])?.ok();
        assert_eq!(sums.text().trim(), sum);
        rvm.call(["rmi", "killed:1"])?.ok();
        fs::remove_file(archive)?;
    }

    fn an_export_that_is_killed_leaves_nothing(rvm) {
        let script = format!("{BIG}; echo text >/text");
        finish(rvm.run_command(["--name", "ended", BUSYBOX, "sh", "-c", &script])?, LIMIT)?.ok();
        let before = rvm.snapshot()?;
        for round in 0..4 {
            let reader = Running::start_unread(rvm.command(["export", "ended"])?)?;
            let_pass(Duration::from_millis(round * 700));
            reader.signal(Signal::KILL)?;
            reader.finish(LIMIT)?;
            assert!(rvm.call(["ps", "-a"])?.ok().text().contains("ended"));
            before.nothing_new()?;
        }
        // Who reads has the container: it is not removed meanwhile.
        let mut reader = rvm.command(["export", "ended"])?.stdout(Stdio::piped()).spawn()?;
        let mut archive = reader.stdout.take().context("no pipe")?;
        archive.read_exact(&mut [0; 512])?;
        rvm.call(["rm", "ended"])?.failed(1, &["read by another command"]);
        let rest = std::io::copy(&mut archive, &mut std::io::sink())?;
        assert!(rest > 100 << 20 && reader.wait()?.success(), "{rest} bytes");
        rvm.call(["rm", "ended"])?.ok();
    }
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
