//! Files that go into containers and out of them one by one, and what a container has changed.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, Output, Running, tool};
use rvm_tests::images::BUSYBOX;
use rvm_tests::rvm::{Isolation, Rvm, scratch};
use rvm_tests::wait::let_pass;

/// A directory with something of each kind, made anew.
fn source(name: &str) -> Result<PathBuf> {
    let base = scratch()?.join(name);
    if base.exists() {
        fs::remove_dir_all(&base)?; // left by a test that failed
    }
    let tree = base.join("in");
    fs::create_dir_all(tree.join("deep/er"))?;
    fs::create_dir(tree.join("open"))?;
    fs::set_permissions(tree.join("open"), fs::Permissions::from_mode(0o1777))?;
    fs::write(tree.join("deep/file"), "text")?;
    fs::set_permissions(tree.join("deep/file"), fs::Permissions::from_mode(0o4751))?;
    chown(tree.join("deep/file"), Some(1234), Some(1235))?;
    // A new owner takes the bit away.
    fs::set_permissions(tree.join("deep/file"), fs::Permissions::from_mode(0o4751))?;
    fs::hard_link(tree.join("deep/file"), tree.join("deep/er/again"))?;
    symlink("deep/file", tree.join("link"))?;
    let sparse = fs::File::create(tree.join("sparse"))?;
    sparse.set_len(64 << 20)?;
    Ok(base)
}

fn cp(rvm: &Rvm, arguments: &[&str]) -> Result<Output> {
    rvm.call([&["cp"], arguments].concat())
}

fn fed(rvm: &Rvm, arguments: &[&str], input: &[u8]) -> Result<Output> {
    let mut command = rvm.command(arguments)?;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut running = Running::start(command)?;
    let mut stdin = running.stdin().context("no pipe")?;
    // It may have seen enough.
    let _ = stdin.write_all(input);
    drop(stdin);
    running.finish(LIMIT)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("not text")
}

/// What `ls` in the container says of the copied tree, whether it runs or not.
const SEEN: &str = "cd $T && stat -c '%n %a %u:%g %h' . deep deep/file deep/er/again open && cat deep/file && readlink link \
    && stat -c %s sparse && [ $(du -k sparse | cut -f1) -lt 100 ]";

fn seen(tree: &str, owner: &str) -> String {
    format!(
        "{tree} 755 0:0\ndeep 755 0:0\ndeep/file 4751 {owner} 2\ndeep/er/again 4751 {owner} 2\nopen 1777 0:0\n\
         textdeep/file\n67108864"
    )
}

fn in_container(rvm: &Rvm, tree: &str) -> Result<String> {
    let script = SEEN.replace("$T", tree);
    let output = rvm.call(["exec", "box", "sh", "-c", &script])?.ok().text();
    // How many names a directory has is the file system's business.
    let lines = output.lines().map(|line| match line.rsplit_once(' ') {
        Some((rest, _)) if line.ends_with(|end: char| end.is_ascii_digit()) && !line.starts_with("deep/") => {
            rest
        }
        _ => line,
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// What the copied tree is like on this machine.
fn assert_copied(tree: &Path, mode: u32, owner: (u32, u32)) -> Result<()> {
    let file = fs::metadata(tree.join("deep/file"))?;
    assert_eq!(
        (file.mode() & 0o7777, file.uid(), file.gid(), file.nlink()),
        (mode, owner.0, owner.1, 2)
    );
    assert_eq!(fs::read_to_string(tree.join("deep/er/again"))?, "text");
    assert_eq!(fs::metadata(tree.join("open"))?.mode() & 0o7777, 0o1777);
    assert_eq!(fs::read_link(tree.join("link"))?, Path::new("deep/file"));
    let sparse = fs::metadata(tree.join("sparse"))?;
    assert!(sparse.len() == 64 << 20 && sparse.blocks() < 100, "{sparse:?}");
    Ok(())
}

fn refusals(rvm: &Rvm, base: &Path) -> Result<()> {
    let file = base.join("in/deep/file");
    let (file, tree) = (text(&file)?, base.join("in"));
    let tree = text(&tree)?;
    let null = "/dev/null";
    let cases: [(&[&str], &str); 14] = [
        (&[file, "box:/nowhere/"], "no such directory"),
        (
            &[file, "box:/no/such/x"],
            "Could not find the file /no/such in container box",
        ),
        (&[tree, "box:/t/deep/file"], "cannot copy directory"),
        (&[file, "box:/t/in/../er/"], "no such directory"),
        (&[file, "box:/t/deep/file/"], "no such directory"),
        (&["/no/such/file", "box:/"], "/no/such/file"),
        (
            &["box:/no/such", tree],
            "Could not find the file /no/such in container box",
        ),
        (&["box:/t", file], "cannot copy directory"),
        (
            &["box:/t/deep/file", "/no/such/x"],
            "directory \"/no/such\" does not exist",
        ),
        (
            &["box:/t/deep/file", null],
            "must be a directory or a regular file",
        ),
        (
            &["box:/t", "box:/u"],
            "copying between containers is not supported",
        ),
        (&[file, tree], "must specify at least one container source"),
        (&["", "box:/"], "empty"),
        (&[file, "nobody:/"], "nobody"),
    ];
    for (arguments, expected) in cases {
        cp(rvm, arguments)?.failed(1, &[expected]);
    }
    fed(rvm, &["cp", "-", "box:/t/deep/file"], b"")?.failed(1, &["must be a directory"]);
    fed(rvm, &["cp", "-", "box:/t"], &[b'x'; 3 << 20])?.failed(1, &["not a tar"]);
    fed(rvm, &["cp", "-", "box:/t"], &tar_of(&[("../outside", "x")]))?.failed(1, &["../outside"]);
    Ok(())
}

/// A tar of small files.
fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in files {
        let mut header = [0; 512];
        let fields = [
            (0, *name),
            (100, "0000644"),
            (108, "0000017"),
            (116, "0000017"),
            (124, &format!("{:011o}", content.len())),
            (136, "00000000007"),
            (148, "        0"),
            (257, "ustar"),
            (263, "00"),
        ];
        for (offset, field) in fields {
            header[offset..offset + field.len()].copy_from_slice(field.as_bytes());
        }
        let sum: u32 = header.iter().map(|byte: &u8| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.extend(header);
        bytes.extend(content.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend([0; 1024]);
    bytes
}

both_modes! {
    fn files_go_into_a_running_container_and_out(rvm) {
        let base = source("copied")?;
        let tree = base.join("in");
        let (tree, file) = (text(&tree)?, base.join("in/deep/file"));
        let file = text(&file)?;
        rvm.detach("box", &[BUSYBOX, "sleep", "1000"])?;
        let said = cp(rvm, &[tree, "box:/t"])?.ok().errors();
        assert!(said.starts_with("Successfully copied ") && said.ends_with("kB to box:/t\n"), "{said}");
        assert_eq!(in_container(rvm, "/t")?, seen(".", "0:0"));
        // What is there gets it; what is in it is merged; owners are kept on request.
        assert_eq!(cp(rvm, &["-q", "-a", tree, "box:t"])?.ok().errors(), "");
        assert_eq!(in_container(rvm, "/t/in")?, seen(".", "1234:1235"));
        cp(rvm, &["-a", &format!("{tree}/."), "box:/t"])?.ok();
        assert_eq!(in_container(rvm, "/t")?, seen(".", "1234:1235"));
        cp(rvm, &[file, "box:/t/renamed"])?.ok();
        cp(rvm, &["-L", &format!("{tree}/link"), "box:/t/"])?.ok();
        let tar = tar_of(&[("from/tar", "tarred")]);
        fed(rvm, &["cp", "-", "box:/t"], &tar)?.ok();
        let script = "cd /t; cat renamed link from/tar; stat -c %u link from/tar; [ ! -L link ]";
        let listed = rvm.call(["exec", "box", "sh", "-c", script])?.ok();
        assert_eq!(listed.text(), "texttexttarred0\n0");
        refusals(rvm, &base)?;

        let out = base.join("out");
        fs::create_dir(&out)?;
        let out = text(&out)?;
        cp(rvm, &["box:/t/in", out])?.ok();
        assert_copied(&base.join("out/in"), 0o751, (0, 0))?;
        let said = cp(rvm, &["-a", "box:/t/in/.", &format!("{out}/new")])?.ok().errors();
        assert!(said.ends_with(&format!("to {out}/new\n")), "{said}");
        assert_copied(&base.join("out/new"), 0o4751, (1234, 1235))?;
        cp(rvm, &["box:/t/in/link", &format!("{out}/link")])?.ok();
        cp(rvm, &["-L", "box:/t/in/link", &format!("{out}/followed")])?.ok();
        assert!(fs::read_link(base.join("out/link"))? == Path::new("deep/file"));
        assert_eq!(fs::read_to_string(base.join("out/followed"))?, "text");
        let archive = base.join("out.tar");
        let mut command = rvm.command(["cp", "box:/t/in", "-"])?;
        command.stdout(fs::File::create(&archive)?);
        assert!(command.status()?.success());
        let names = tool("tar", &["-tf", text(&archive)?])?;
        assert!(names.starts_with("in/\nin/deep/\nin/deep/er/\n"), "{names}");
        // What is mounted is not copied along, and devices are not made here.
        cp(rvm, &["box:/", &format!("{out}/all")])?.ok();
        assert_eq!(fs::read_dir(base.join("out/all/dev"))?.count(), 0);
        cp(rvm, &["box:/dev/null", out])?.failed(1, &["is a device"]);
        rvm.call(["rm", "-f", "box"])?.ok();
        fs::remove_dir_all(base)?;
    }

    fn links_in_a_container_lead_nowhere_else(rvm) {
        let base = source("links")?;
        let file = base.join("in/deep/file");
        let file = text(&file)?;
        fs::write(base.join("secret"), "of this machine")?;
        let mark = format!("/etc/rvm-{}", std::process::id());
        let name = mark.trim_start_matches("/etc/");
        let swap = format!(
            "ln -s /etc /evil; ln -s / /top; ln -s {} /away; mkdir /w; echo ready; \
             while :; do ln -s /etc /w/d; rm /w/d; mkdir /w/d; rmdir /w/d; done",
            base.display()
        );
        let running = rvm.start("box", &[BUSYBOX, "sh", "-c", &swap])?;
        rvm_tests::wait::wait_until("links are there", LIMIT, || Ok(running.stdout_so_far().contains("ready")))?;
        cp(rvm, &[file, &format!("box:/evil/{name}")])?.ok();
        cp(rvm, &[file, &format!("box:/top/top/../../top/etc/{name}2")])?.ok();
        cp(rvm, &[file, "box:/away/secret"])?.failed(1, &["Could not find the file"]);
        cp(rvm, &["box:/away/secret", text(&base)?])?.failed(1, &["Could not find the file"]);
        cp(rvm, &["box:/proc/1/root/etc/passwd", &format!("{}/passwd", text(&base)?)])?;
        for _ in 0..5 {
            // They meet a link, a directory or nothing.
            cp(rvm, &["-q", file, &format!("box:/w/d/{name}")])?;
            cp(rvm, &["-q", "-L", "box:/w/d/", &format!("{}/swapped", text(&base)?)])?;
        }
        let listed = rvm.call(["exec", "box", "cat", &mark, &format!("{mark}2")])?.ok();
        assert_eq!(listed.text(), "texttext");
        assert!(!Path::new(&mark).exists() && !Path::new(&format!("{mark}2")).exists());
        assert_eq!(fs::read_to_string(base.join("secret"))?, "of this machine");
        for name in ["passwd", "swapped/passwd"] {
            let copied = fs::read_to_string(base.join(name)).unwrap_or_default();
            assert!(copied.is_empty() || copied != fs::read_to_string("/etc/passwd")?, "{name}");
        }
        rvm.call(["rm", "-f", "box"])?.ok();
        running.finish(LIMIT)?;
        fs::remove_dir_all(base)?;
    }

    fn files_go_into_a_container_that_does_not_run_and_differ(rvm) {
        let base = source("ended")?;
        let tree = base.join("in");
        let tree = text(&tree)?;
        let script = "cat /t/deep/file; rm -r /etc; \
            mkdir /etc; echo >/etc/passwd; : >/etc/new; rmdir /root; \
            mkdir -p '/d\x1b/e'; : >/d\x1b/e/f; rm -r /odd; mkdir /odd; : >/odd/new";
        // Without a network, for which files would be mounted in /etc.
        let create = ["create", "--network", "none", "--isolation", rvm.isolation().name(), "--name", "box", BUSYBOX];
        rvm.call([&create[..], &["sh", "-c", script]].concat())?.ok();
        assert_eq!(rvm.call(["diff", "box"])?.ok().text(), "");
        cp(rvm, &[&format!("{tree}/."), "box:/t"])?.failed(0, &["to box:/t"]);
        let odd = tar_of(&[("odd/old", "o")]);
        fed(rvm, &["cp", "-", "box:/"], &odd)?.ok();
        assert_eq!(rvm.call(["start", "-a", "box"])?.ok().text(), "text");
        let copied = ["", "/deep", "/deep/er", "/deep/er/again", "/deep/file", "/link", "/open", "/sparse"];
        let copied = copied.map(|name| format!("A /t{name}")).join("\n");
        let expected = format!(
            "A /d\\x1b\nA /d\\x1b/e\nA /d\\x1b/e/f\nC /etc\nD /etc/group\nA /etc/new\nC /etc/passwd\n\
             A /odd\nA /odd/new\nD /root\n{copied}"
        );
        assert_eq!(rvm.call(["diff", "box"])?.ok().text(), expected);
        cp(rvm, &["box:/t/.", &format!("{}/out", text(&base)?)])?.ok();
        assert_copied(&base.join("out"), 0o751, (0, 0))?;

        // A command that is killed leaves a container that works, and nothing else.
        let before = rvm.snapshot()?;
        for round in 1..3 {
            let mut command = rvm.command(["cp", "-", "box:/t"])?;
            command.stdin(Stdio::piped()).stderr(Stdio::piped());
            let mut running = Running::start(command)?;
            let mut stdin = running.stdin().context("no pipe")?;
            let feeder = std::thread::spawn(move || {
                let big = tar_of(&[("big", &"x".repeat(200 << 20))]);
                drop(stdin.write_all(&big));
            });
            let_pass(Duration::from_millis(round * 1500));
            running.signal(Signal::KILL)?;
            running.finish(LIMIT)?;
            let _ = feeder.join();
            rvm.call(["ps", "-a"])?.ok();
            // On the host, what was made of the file is there.
            if rvm.isolation() == Isolation::Vm {
                before.nothing_new()?;
            }
        }
        fed(rvm, &["cp", "-", "box:/t"], &tar_of(&[("deep/file", "other")]))?.ok();
        rvm.call(["commit", "box", "copied:1"])?.ok();
        assert_eq!(rvm.in_the_other_mode().run(["copied:1", "cat", "/t/deep/file"])?.ok().text(), "other");
        rvm.call(["rm", "box"])?.ok();
        rvm.call(["rmi", "copied:1"])?.ok();
        let read_only = ["create", "--isolation", rvm.isolation().name(), "--read-only", "--name", "box", BUSYBOX, "true"];
        rvm.call(read_only)?.ok();
        cp(rvm, &[tree, "box:/t"])?.failed(1, &["read-only"]);
        rvm.call(["rm", "box"])?.ok();
        fs::remove_dir_all(base)?;
    }

    fn an_export_sees_the_container_s_end(rvm) {
        let script = "dd if=/dev/urandom of=/big bs=1M count=40 2>/dev/null; echo up; sleep 1000";
        let running = rvm.start("box", &[BUSYBOX, "sh", "-c", script])?;
        rvm_tests::wait::wait_until("the file is there", LIMIT, || Ok(running.stdout_so_far().contains("up")))?;
        let changes = rvm.call(["diff", "box"])?.ok().text();
        assert_eq!(changes, "A /big");
        let mut command = rvm.command(["export", "box"])?;
        let mut reader = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut archive = reader.stdout.take().context("no pipe")?;
        archive.read_exact(&mut [0; 512])?;
        rvm.call(["stop", "-t", "0", "box"])?.ok();
        running.finish(LIMIT)?;
        io::copy(&mut archive, &mut io::sink())?;
        let mut errors = String::new();
        reader.stderr.take().context("no pipe")?.read_to_string(&mut errors)?;
        match rvm.isolation() {
            Isolation::Vm => assert!(!reader.wait()?.success() && errors.contains("box broke off"), "{errors}"),
            Isolation::Container => drop(reader.wait()?),
        }
    }
}
