//! Volumes, and directories and files of the host.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rvm_tests::both_modes;
use rvm_tests::command::LIMIT;
use rvm_tests::images::BUSYBOX;
use rvm_tests::rvm::{Rvm, scratch};
use rvm_tests::wait::wait_until;

/// A new directory of the host.
fn directory(name: &str) -> Result<PathBuf> {
    let path = scratch()?.join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path)?;
    Ok(path)
}

fn bind(source: &Path, rest: &str) -> String {
    format!("{}:{rest}", source.display())
}

/// `rvm run` with a script.
fn script(rvm: &Rvm, flags: &[&str], script: &str) -> Result<rvm_tests::command::Output> {
    rvm.run([flags, &[BUSYBOX, "sh", "-c", script]].concat())
}

fn volumes(rvm: &Rvm) -> Result<Vec<String>> {
    let listed = rvm.call(["volume", "ls", "-q"])?.ok().text();
    Ok(listed.lines().map(str::to_owned).collect())
}

both_modes! {
    fn data_outlives_its_container(rvm) {
        script(rvm, &["-v", "kept:/data"], "echo one > /data/file; mkdir -m 700 /data/dir; chown 7:8 /data/dir; ln /data/file /data/dir/link")?.ok();
        let other = rvm.in_the_other_mode();
        let seen = script(&other, &["-v", "kept:/data"], "cat /data/dir/link; stat -c '%u:%g %a' /data/dir; echo two >> /data/file")?.ok();
        assert_eq!(seen.text(), "one\n7:8 700");
        assert_eq!(script(rvm, &["-v", "kept:/x/y"], "cat /x/y/file")?.ok().text(), "one\ntwo");
        rvm.call(["volume", "rm", "kept"])?.ok();
        assert_eq!(volumes(rvm)?, [""; 0]);
    }

    fn a_directory_of_the_host_is_shared(rvm) {
        let directory = directory("bound")?;
        fs::write(directory.join("file"), "of the host\n")?;
        let flag = bind(&directory, "/data");
        assert_eq!(script(rvm, &["-v", &flag], "cat /data/file; echo of the guest > /data/new")?.ok().text(), "of the host");
        assert_eq!(fs::read_to_string(directory.join("new"))?, "of the guest\n");
        // It is made where -v names one that is not there, and not where --mount does.
        let missing = directory.join("a/b");
        script(rvm, &["-v", &bind(&missing, "/data")], "echo x > /data/y")?.ok();
        assert_eq!(fs::read_to_string(missing.join("y"))?, "x\n");
        let none = format!("type=bind,src={}/none,dst=/data", directory.display());
        let words = format!("invalid mount config for type \"bind\": bind source path does not exist: {}/none", directory.display());
        script(rvm, &["--mount", &none], "true")?.failed(125, &[&words]);
        fs::remove_dir_all(directory)?;
    }

    fn read_only_is_read_only(rvm) {
        let directory = directory("read-only")?;
        fs::write(directory.join("file"), "x")?;
        fs::set_permissions(directory.join("file"), fs::Permissions::from_mode(0o666))?;
        for flags in [
            ["-v".to_owned(), bind(&directory, "/data:ro")],
            ["--mount".to_owned(), format!("type=bind,source={},target=/data,readonly", directory.display())],
        ] {
            let flags = flags.each_ref().map(String::as_str);
            let said = script(rvm, &flags, "for do in 'touch /data/new' 'sh -c \"echo y > /data/file\"' 'rm /data/file' 'chmod 600 /data/file'; do \
                eval $do 2>/dev/null && echo not refused: $do; done; cat /data/file")?.ok();
            assert_eq!(said.text(), "x");
            // Nor by who may change mounts.
            let flags = [&flags[..], &["--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined"]].concat();
            script(rvm, &flags, "mount -o remount,rw,bind /data && touch /data/new && exit 0; exit 9")?.code(match rvm.isolation() {
                rvm_tests::rvm::Isolation::Vm => 9,
                // Whoever has that capability on the host's kernel may do so, as with Docker.
                rvm_tests::rvm::Isolation::Container => 0,
            });
            let _ = fs::remove_file(directory.join("new"));
        }
        assert_eq!(fs::read_to_string(directory.join("file"))?, "x");
        fs::remove_dir_all(directory)?;
    }

    fn a_single_file_is_all_there_is(rvm) {
        let directory = directory("file")?;
        let (file, beside) = (directory.join("conf"), directory.join("secret"));
        fs::write(&file, "a=1\n")?;
        fs::write(&beside, "secret")?;
        let flag = bind(&file, "/etc/app.conf");
        assert_eq!(script(rvm, &["-v", &flag], "cat /etc/app.conf; echo a=2 > /etc/app.conf; ls /etc/app.conf")?.ok().text(), "a=1\n/etc/app.conf");
        assert_eq!(fs::read_to_string(&file)?, "a=2\n");
        let flag = bind(&file, "/etc/passwd:ro");
        script(rvm, &["-v", &flag], "echo b > /etc/passwd")?.code(1);
        assert_eq!(script(rvm, &["-v", &flag], "cat /etc/passwd")?.ok().text(), "a=2");
        fs::remove_dir_all(directory)?;
    }

    fn both_kinds_see_each_other_s_writes(rvm) {
        let other = rvm.in_the_other_mode();
        let wait = "until [ -e /data/$1 ]; do sleep 0.1; done; cat /data/$1";
        let one = rvm.start("one", &["-v", "common:/data", BUSYBOX, "sh", "-c", &format!("set -- second; echo 1 > /data/.f; mv /data/.f /data/first; {wait}")])?;
        let two = other.start("two", &["-v", "common:/data", BUSYBOX, "sh", "-c", &format!("set -- first; {wait}; echo 2 > /data/.s; mv /data/.s /data/second")])?;
        assert_eq!(two.finish(LIMIT)?.ok().text(), "1");
        assert_eq!(one.finish(LIMIT)?.ok().text(), "2");
        rvm.call(["volume", "rm", "common"])?.ok();
    }

    fn a_new_volume_gets_what_the_image_has(rvm) {
        // There are links and several modes.
        let look = "cd $1; ls -lA | tail -n +2 | sed 's/  */ /g' | cut -d' ' -f 1,3-; stat -c '%u:%g %a' .";
        let expected = script(rvm, &[], &format!("set -- /bin; {look}"))?.ok().text();
        let found = script(rvm, &["-v", "filled:/bin"], &format!("set -- /bin; {look}"))?.ok().text();
        assert_eq!(found, expected);
        assert_eq!(script(rvm, &["-v", "filled:/x"], &format!("set -- /x; {look}"))?.ok().text(), expected);
        // Once: what there is stays as it is.
        script(rvm, &["-v", "filled:/x"], "rm /x/*; echo 1 > /x/own")?.ok();
        assert_eq!(script(rvm, &["-v", "filled:/usr"], "ls -A /usr")?.ok().text(), "own");
        // Read-only ones as well, and they are so from then on.
        let said = script(rvm, &["-v", "sealed:/bin:ro"], &format!("touch /bin/new 2>/dev/null && echo written; set -- /bin; {look}"))?.ok().text();
        assert_eq!(said, expected);
        assert_eq!(script(rvm, &["-v", "empty:/etc:nocopy"], "ls -A /etc")?.ok().text(), "");
        for name in ["filled", "empty", "sealed"] {
            rvm.call(["volume", "rm", name])?.ok();
        }
    }

    fn volumes_without_a_name_go_with_their_container(rvm) {
        script(rvm, &["-v", "/data"], "echo x > /data/file")?.ok();
        assert_eq!(volumes(rvm)?, [""; 0], "--rm removes them");
        let make = |name: &str| rvm.call(["create", "--isolation", rvm.isolation().name(), "--name", name, "-v", "/data", BUSYBOX, "true"]);
        make("kept")?.ok();
        let inspected = rvm.call(["inspect", "-f", "{{json .Mounts}}", "kept"])?.ok().text();
        let mount = &serde_json::from_str::<serde_json::Value>(&inspected)?[0];
        let name = mount["Name"].as_str().context("no name")?.to_owned();
        ensure!(name.len() == 64 && mount["Type"] == "volume" && mount["Driver"] == "local", "{inspected}");
        ensure!(mount["Destination"] == "/data" && mount["RW"] == true, "{inspected}");
        rvm.call(["volume", "rm", &name])?.failed(1, &["volume is in use - ["]);
        rvm.call(["rm", "kept"])?.ok();
        assert_eq!(volumes(rvm)?, [name.as_str()]);
        let pruned = rvm.call(["volume", "prune", "-f"])?.ok().text();
        ensure!(pruned.starts_with(&format!("Deleted Volumes:\n{name}\n\nTotal reclaimed space: ")), "{pruned}");
        make("gone")?.ok();
        rvm.call(["rm", "-v", "gone"])?.ok();
        assert_eq!(volumes(rvm)?, [""; 0]);
    }

    fn volumes_of_another_container(rvm) {
        let directory = directory("from")?;
        fs::write(directory.join("file"), "bound")?;
        let flag = bind(&directory, "/bound");
        let container = ["create", "--isolation", rvm.isolation().name(), "--name", "source", "-v", "/data", "-v", &flag, BUSYBOX, "true"];
        rvm.call(container)?.ok();
        script(rvm, &["--volumes-from", "source"], "echo x > /data/file; cat /bound/file")?.ok();
        let other = rvm.in_the_other_mode();
        let seen = script(&other, &["--volumes-from", "source:ro"], "cat /data/file; touch /data/new || echo refused")?.ok();
        assert_eq!(seen.text(), "x\nrefused");
        assert_eq!(volumes(rvm)?.len(), 1, "--rm leaves what others use");
        script(rvm, &["--volumes-from", "source:rx"], "true")?.failed(125, &["invalid volumes-from mode"]);
        script(rvm, &["--volumes-from", "nobody"], "true")?.failed(125, &["no such container: nobody"]);
        // Of two on one place the later one is mounted.
        rvm.call(["create", "--isolation", rvm.isolation().name(), "--name", "later", "-v", "later:/data", BUSYBOX, "true"])?.ok();
        let list = |flags: &[&str]| -> Result<String> { Ok(script(rvm, flags, "ls /data; ls /bound")?.ok().text()) };
        assert_eq!(list(&["--volumes-from", "source", "--volumes-from", "later"])?, "file");
        assert_eq!(list(&["--volumes-from", "later", "--volumes-from", "source"])?, "file\nfile");
        rvm.call(["rm", "later"])?.ok();
        rvm.call(["volume", "rm", "later"])?.ok();
        rvm.call(["rm", "-v", "source"])?.ok();
        assert_eq!(volumes(rvm)?, [""; 0]);
        fs::remove_dir_all(directory)?;
    }

    fn a_part_of_a_volume_stays_in_it(rvm) {
        script(rvm, &["-v", "parts:/data"], "mkdir -p /data/a/b; echo x > /data/a/b/file; ln -s / /data/out; ln -s ../../.. /data/a/up")?.ok();
        let mount = |subpath: &str| format!("type=volume,src=parts,dst=/data,volume-subpath={subpath}");
        assert_eq!(script(rvm, &["--mount", &mount("a/b")], "ls -A /data")?.ok().text(), "file");
        for (subpath, code) in [("../parts", 125), ("/a", 125), ("out", 125), ("out/etc", 125), ("a/up", 125), ("none", 125)] {
            let output = script(rvm, &["--mount", &mount(subpath)], "ls /data")?;
            output.failed(code, &[]);
        }
        rvm.call(["volume", "rm", "parts"])?.ok();
    }

    fn links_in_a_share_stay_inside(rvm) {
        let directory = directory("hostile")?;
        symlink("/", directory.join("root"))?;
        symlink("../../../../../../../..", directory.join("up"))?;
        symlink("/proc/self/root", directory.join("magic"))?;
        fs::write(scratch()?.join("host-only"), "host")?;
        let flag = bind(&directory, "/data");
        let path = scratch()?.join("host-only");
        let said = script(rvm, &["-v", &flag], &format!(
            "for link in root up magic; do cat /data/$link{0} 2>/dev/null && echo escaped; done; cat /data/../../..{0} 2>/dev/null; ls -d /data/root/probe", path.display()))?.ok();
        assert_eq!(said.text(), "/data/root/probe");
        fs::remove_dir_all(directory)?;
        fs::remove_file(path)?;
    }

    fn flags_that_make_no_sense_are_refused_in_docker_s_words(rvm) {
        for (flags, expected) in [
            (&["-v", "one:/x", "-v", "two:/x/"][..], "Duplicate mount point: /x"),
            (&["-v", "one:/x", "--tmpfs", "/x"], "Duplicate mount point: /x"),
            (&["-v", "one:/x", "--mount", "type=tmpfs,dst=/x"], "Duplicate mount point: /x"),
            (&["-v", "one:/"], "invalid specification: destination can't be '/'"),
            (&["-v", "one:x"], "invalid mount path: 'x' mount path must be absolute"),
            (&["-v", "a/b:/x"], "includes invalid characters for a local volume name"),
            (&["-v", "/a:/x:rx"], "invalid mode: rx"),
            (&["-v", "a:b:c:d"], "invalid volume specification"),
            (&["-v", "::"], "empty section between colons"),
            (&["-v", "one:/proc/x"], "choose another directory"),
            (&["--mount", "type=bind,dst=/x"], "field Source must not be empty"),
            (&["--mount", "type=nfs,dst=/x"], "mount type unknown"),
            (&["--mount", "src=one"], "target is required"),
            (&["--mount", "dst=/x,colour=red"], "unexpected key 'colour' in 'colour=red'"),
            (&["--mount", "type=bind,src=/,dst=/x,volume-nocopy"], "cannot mix 'volume-*' options with mount type 'bind'"),
        ] {
            script(rvm, flags, "true")?.failed(125, &[expected]);
        }
        let shared = script(rvm, &["-v", "/:/x:rshared"], "true")?;
        if rvm.isolation() == rvm_tests::rvm::Isolation::Vm {
            shared.failed(125, &["bind propagation rshared is not possible in VM mode", "--isolation container"]);
            let many: Vec<_> = (0..17).flat_map(|number| ["-v".to_owned(), format!("/etc:/x{number}")]).collect();
            let many: Vec<_> = many.iter().map(String::as_str).collect();
            script(rvm, &many, "true")?.failed(125, &["17 directories and files", "16 at most"]);
            script(rvm, &["-v", "/dev/null:/x"], "true")?.failed(125, &["neither a directory nor a file"]);
        }
        assert_eq!(volumes(rvm)?, [""; 0]);
    }

    fn later_mounts_arrive_where_that_is_asked_for(rvm) {
        let directory = directory("propagated")?;
        let mount = |arguments: &[&str]| -> Result<()> {
            let done = std::process::Command::new(arguments[0]).args(&arguments[1..]).status()?;
            ensure!(done.success(), "{arguments:?}: {done}");
            Ok(())
        };
        let (top, below) = (directory.display().to_string(), directory.join("below").display().to_string());
        mount(&["mount", "-t", "tmpfs", "tmpfs", &top])?;
        mount(&["mount", "--make-private", &top])?;
        let flag = |mode: &str| format!("{top}:/data:{mode}");
        let refused = script(rvm, &["-v", &flag("rslave")], "true")?;
        if rvm.isolation() == rvm_tests::rvm::Isolation::Vm {
            refused.failed(125, &["bind propagation rslave is not possible in VM mode"]);
        } else {
            refused.failed(125, &["it is not a shared or slave mount"]);
            mount(&["mount", "--make-shared", &top])?;
            rvm.detach("slave", &["-v", &flag("rslave"), BUSYBOX, "sleep", "1000"])?;
            rvm.detach("private", &["-v", &flag("rprivate"), BUSYBOX, "sleep", "1000"])?;
            fs::create_dir(&below)?;
            mount(&["mount", "-t", "tmpfs", "tmpfs", &below])?;
            fs::write(Path::new(&below).join("file"), "later")?;
            let read = |name: &str| rvm.call(["exec", name, "cat", "/data/below/file"]);
            assert_eq!(read("slave")?.ok().text(), "later");
            read("private")?.code(1);
            // The other way around.
            let caps = ["--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined"];
            let shared = flag("rshared");
            let flags = [&caps[..], &["-v", &shared]].concat();
            script(rvm, &flags, "mkdir /data/inner; mount -t tmpfs tmpfs /data/inner; echo x > /data/inner/file")?.ok();
            let inner = directory.join("inner");
            assert_eq!(fs::read_to_string(inner.join("file"))?, "x\n");
            mount(&["umount", &inner.display().to_string()])?;
            for name in ["slave", "private"] {
                rvm.call(["rm", "-f", name])?.ok();
            }
            mount(&["umount", &below])?;
        }
        mount(&["umount", &top])?;
        fs::remove_dir_all(directory)?;
    }

    fn memory_and_order(rvm) {
        let directory = directory("deep")?;
        fs::write(directory.join("file"), "deep")?;
        let inner = bind(&directory, "/a/b/c:ro");
        let said = script(rvm, &["-v", &inner, "-v", "outer:/a", "--mount", "type=tmpfs,dst=/a/b,tmpfs-size=64k,tmpfs-mode=0700"],
            "cat /a/b/c/file; echo; grep -c ' /a/b tmpfs .*size=64k,mode=700' /proc/mounts; touch /a/x /a/b/y")?.ok();
        assert_eq!(said.text(), "deep\n1");
        assert_eq!(script(rvm, &["-v", "outer:/a"], "ls -A /a; ls -A /a/b")?.ok().text(), "b\nx");
        rvm.call(["volume", "rm", "outer"])?.ok();
        fs::remove_dir_all(directory)?;
    }

    fn verbs(rvm) {
        assert_eq!(rvm.call(["volume", "create", "--label", "tier=data", "db"])?.ok().text(), "db");
        assert_eq!(rvm.call(["volume", "create", "db"])?.ok().text(), "db");
        let nameless = rvm.call(["volume", "create"])?.ok().text();
        assert_eq!(nameless.len(), 64);
        let listed = rvm.call(["volume", "ls", "-f", "label=tier"])?.ok().text();
        let lines: Vec<_> = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines, ["DRIVER VOLUME NAME", "local db"]);
        let document = rvm.call(["volume", "inspect", "db"])?.ok().text();
        let document = &serde_json::from_str::<serde_json::Value>(&document)?[0];
        let mountpoint = rvm.root().join("volumes/db/_data");
        assert_eq!(document["Mountpoint"].as_str(), mountpoint.to_str());
        assert_eq!((document["Driver"].as_str(), document["Scope"].as_str()), (Some("local"), Some("local")));
        assert_eq!(document["Labels"]["tier"], "data");
        let metadata = fs::metadata(&mountpoint)?;
        assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o755, 0));
        rvm.call(["volume", "inspect", "none"])?.failed(1, &["get none: no such volume"]);
        rvm.call(["volume", "rm", "none"])?.failed(1, &["get none: no such volume"]);
        rvm.call(["volume", "rm", "-f", "none"])?.ok();
        rvm.call(["volume", "create", "-d", "nfs", "x1"])?.failed(1, &["plugin \"nfs\" not found"]);
        rvm.call(["volume", "create", "-o", "type=tmpfs", "x1"])?.failed(1, &["takes no option"]);
        rvm.call(["volume", "create", "a/b"])?.failed(1, &["includes invalid characters"]);
        let id = rvm.detach("user", &["-v", "db:/data", BUSYBOX, "sleep", "1000"])?;
        rvm.call(["volume", "rm", "db"])?.failed(1, &["remove db: volume is in use - [", &id]);
        assert_eq!(rvm.call(["ps", "-q", "--no-trunc", "-f", "volume=db"])?.ok().text(), id);
        assert_eq!(rvm.call(["ps", "-q", "-f", "volume=/data"])?.ok().text().len(), 12);
        assert_eq!(rvm.call(["ps", "-q", "-f", "volume=other"])?.ok().text(), "");
        assert_eq!(rvm.call(["ps", "--format", "{{.Mounts}} {{.LocalVolumes}}"])?.ok().text(), "db 1");
        assert_eq!(rvm.call(["volume", "ls", "-q", "-f", "dangling=true"])?.ok().text(), nameless);
        let usage = rvm.call(["system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}"])?.ok().text();
        ensure!(usage.lines().any(|line| line == "Local Volumes 2 1"), "{usage}");
        rvm.call(["rm", "-f", "user"])?.ok();
        rvm.call(["volume", "prune", "-f"])?.ok();
        assert_eq!(volumes(rvm)?, ["db"]);
        rvm.call(["volume", "prune", "-f", "-a", "--filter", "label=none"])?.ok();
        assert_eq!(volumes(rvm)?, ["db"]);
        rvm.call(["volume", "prune", "-f", "-a"])?.ok();
        assert_eq!(volumes(rvm)?, [""; 0]);
    }

    fn copies_go_through_mounts_and_other_archives_do_not(rvm) {
        let directory = directory("copied")?;
        fs::write(directory.join("file"), "in\n")?;
        let file = directory.join("file").display().to_string();
        rvm.detach("holder", &["-v", "copied:/holds", BUSYBOX, "sh", "-c", "echo image > /own; sleep 1000"])?;
        wait_until("it has written", LIMIT, || Ok(rvm.call(["exec", "holder", "test", "-e", "/own"])?.code == 0))?;
        rvm.call(["cp", &file, "holder:/holds/running"])?.ok();
        assert_eq!(rvm.call(["exec", "holder", "cat", "/holds/running"])?.ok().text(), "in");
        rvm.call(["kill", "holder"])?.ok();
        rvm.call(["wait", "holder"])?.ok();
        rvm.call(["cp", &file, "holder:/holds/ended"])?.ok();
        assert_eq!(fs::read_to_string(rvm.root().join("volumes/copied/_data/ended"))?, "in\n");
        let back = directory.join("back").display().to_string();
        rvm.call(["cp", "holder:/holds/running", &back])?.ok();
        assert_eq!(fs::read_to_string(&back)?, "in\n");
        let changes = rvm.call(["diff", "holder"])?.ok().text();
        assert_eq!(changes, "A /own");
        let tar = directory.join("out.tar");
        rvm.call(["export", "-o", &tar.display().to_string(), "holder"])?.ok();
        let names = std::process::Command::new("tar").arg("tf").arg(&tar).output()?;
        let names = String::from_utf8_lossy(&names.stdout).into_owned();
        ensure!(names.lines().any(|name| name == "holds/") && !names.contains("holds/running"), "{names}");
        rvm.call(["rm", "holder"])?.ok();
        rvm.call(["volume", "rm", "copied"])?.ok();
        fs::remove_dir_all(directory)?;
    }
}
