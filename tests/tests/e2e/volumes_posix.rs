//! What databases and their like rely on, on one volume that a virtual machine and a container have at the same time.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use anyhow::{Result, ensure};
use rvm_tests::both_modes;
use rvm_tests::command::LIMIT;
use rvm_tests::images::BUSYBOX;
use rvm_tests::rvm::Rvm;
use rvm_tests::wait::wait_until;

/// A new volume of some name, and its directory.
fn volume(rvm: &Rvm, name: &str) -> Result<PathBuf> {
    rvm.call(["volume", "create", name])?.ok();
    Ok(rvm.root().join("volumes").join(name).join("_data"))
}

fn remove(rvm: &Rvm, name: &str) -> Result<()> {
    rvm.call(["volume", "rm", name])?.ok();
    Ok(())
}

/// A container in each mode that has the volume at /data, and stays.
fn pair(rvm: &Rvm, volume: &str) -> Result<()> {
    let mount = format!("{volume}:/data");
    rvm.detach("here", &["-v", &mount, BUSYBOX, "sleep", "1000"])?;
    rvm.in_the_other_mode()
        .detach("there", &["-v", &mount, BUSYBOX, "sleep", "1000"])?;
    Ok(())
}

fn remove_pair(rvm: &Rvm) -> Result<()> {
    rvm.call(["rm", "-f", "here", "there"])?.ok();
    Ok(())
}

/// What a script says in one of the pair.
fn said(rvm: &Rvm, container: &str, script: &str) -> Result<String> {
    Ok(rvm.call(["exec", container, "sh", "-c", script])?.ok().text())
}

/// Has both of a pair do something, both after a file `go` is there.
fn together(rvm: &Rvm, script: impl Fn(&str) -> String) -> Result<()> {
    for name in ["here", "there"] {
        let script = format!(
            "touch /data/ready.{name}; until [ -e /data/go ]; do sleep 0.02; done; {}; echo $? > /data/.{name}; mv /data/.{name} /data/ended.{name}",
            script(name)
        );
        rvm.call(["exec", "-d", name, "sh", "-c", &script])?.ok();
    }
    let are_there = |what: &str| {
        let names = ["here", "there"].map(|name| format!("/data/{what}.{name}"));
        move || Ok(rvm.call(["exec", "here", "ls", &names[0], &names[1]])?.code == 0)
    };
    wait_until("both are ready", LIMIT, are_there("ready"))?;
    said(rvm, "here", "touch /data/go")?;
    wait_until("both have done it", LIMIT, are_there("ended"))?;
    assert_eq!(said(rvm, "there", "cat /data/ended.*")?, "0\n0");
    Ok(())
}

both_modes! {
    fn a_directory_lists_itself_and_the_one_above(rvm) {
        const FILES: usize = 300;
        let data = volume(rvm, "listed")?;
        fs::create_dir(data.join("inner"))?;
        for number in 0..FILES {
            fs::write(data.join("inner").join(number.to_string()), "")?;
        }
        pair(rvm, "listed")?;
        for name in ["here", "there"] {
            let listed = said(rvm, name, "ls -ia /data/inner")?;
            let listed: Vec<Vec<_>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
            assert_eq!(listed.len(), FILES + 2, "{name}");
            let number = |of: &str| -> Result<String> { Ok(fs::metadata(data.join(of))?.ino().to_string()) };
            for (entry, of) in [(".", "inner"), ("..", ""), ("0", "inner/0")] {
                let number = number(of)?;
                ensure!(listed.contains(&vec![number.as_str(), entry]), "{name}: {entry} is not {number}: {listed:?}");
            }
        }
        remove_pair(rvm)?;
        remove(rvm, "listed")?;
    }

    fn no_appended_record_is_lost(rvm) {
        const RECORDS: usize = 2000;
        let data = volume(rvm, "appended")?;
        pair(rvm, "appended")?;
        together(rvm, |name| format!("/probe append /data/log {name} {RECORDS}"))?;
        remove_pair(rvm)?;
        let log = fs::read_to_string(data.join("log"))?;
        for name in ["here", "there"] {
            let prefix = format!("{name} ");
            let of_one: Vec<_> = log.lines().filter_map(|line| line.strip_prefix(&prefix)).collect();
            let expected: Vec<_> = (0..RECORDS).map(|number| format!("{number:08}")).collect();
            assert_eq!(of_one, expected, "{name}");
        }
        assert_eq!(log.lines().count(), 2 * RECORDS);
        remove(rvm, "appended")?;
    }

    fn a_counter_under_a_lock_counts_right(rvm) {
        const TIMES: u32 = 300;
        let data = volume(rvm, "counted")?;
        fs::write(data.join("counter"), "00000000")?;
        pair(rvm, "counted")?;
        together(rvm, |_| format!("/probe count /data/counter {TIMES}"))?;
        remove_pair(rvm)?;
        assert_eq!(fs::read_to_string(data.join("counter"))?, format!("{:08}", 2 * TIMES));
        remove(rvm, "counted")?;
    }

    fn memory_that_is_shared_with_a_file_reaches_the_other_kind(rvm) {
        let data = volume(rvm, "mapped")?;
        fs::write(data.join("file"), "nothing yet, of either of them\n")?;
        pair(rvm, "mapped")?;
        for (writer, reader, text) in [("here", "there", "of here, first"), ("there", "here", "then of there.")] {
            said(rvm, writer, &format!("/probe map /data/file write {text:?}"))?;
            let read = fs::read_to_string(data.join("file"))?;
            ensure!(read.starts_with(text), "{read}");
            for look in ["cat /data/file", "/probe map /data/file read"] {
                assert_eq!(said(rvm, reader, look)?, read.trim_end(), "{look}");
            }
        }
        // What is written by call is in memory that is shared with the file, within one of them.
        said(rvm, "here", "echo by call | dd of=/data/file conv=notrunc 2>/dev/null; /probe map /data/file read | grep -q '^by call'")?;
        remove_pair(rvm)?;
        remove(rvm, "mapped")?;
    }

    fn files_are_what_they_are_on_both_sides(rvm) {
        let data = volume(rvm, "files")?;
        pair(rvm, "files")?;
        // A hole, made by truncating and by writing behind the end.
        said(rvm, "here", "truncate -s 64M /data/sparse; printf x | dd of=/data/sparse bs=1M seek=32 conv=notrunc 2>/dev/null")?;
        let metadata = fs::metadata(data.join("sparse"))?;
        ensure!(metadata.len() == 64 << 20 && metadata.blocks() <= 64, "{} blocks", metadata.blocks());
        assert_eq!(said(rvm, "there", "stat -c '%s %b' /data/sparse")?, format!("{} {}", 64 << 20, metadata.blocks()));
        let mut byte = [0];
        fs::File::open(data.join("sparse"))?.read_exact_at(&mut byte, 32 << 20)?;
        assert_eq!(byte, *b"x");
        // Links.
        said(rvm, "here", "echo linked > /data/one; ln /data/one /data/two; ln -s one /data/symbolic")?;
        assert_eq!(said(rvm, "there", "stat -c %h /data/two; readlink /data/symbolic; echo more >> /data/two; rm /data/one")?, "2\none");
        assert_eq!(said(rvm, "here", "stat -c %h /data/two; cat /data/two; cat /data/symbolic 2>/dev/null || echo gone")?, "1\nlinked\nmore\ngone");
        // Extended attributes: set on the host, seen by both, and copied by either.
        rustix::fs::setxattr(data.join("two"), "user.note", b"a value", rustix::fs::XattrFlags::empty())?;
        for name in ["here", "there"] {
            ensure!(said(rvm, name, "/probe tree /data")?.contains("user.note"), "{name}");
        }
        remove_pair(rvm)?;
        remove(rvm, "files")?;
    }

    fn a_further_group_may_create_what_its_directory_lets_it(rvm) {
        let data = volume(rvm, "grouped")?;
        let (of_group, of_all, of_root) = (data.join("group"), data.join("all"), data.join("root"));
        for (directory, mode) in [(&of_group, 0o2775), (&of_all, 0o2777), (&of_root, 0o755)] {
            fs::create_dir(directory)?;
            std::os::unix::fs::chown(directory, None, Some(2000))?;
            fs::set_permissions(directory, fs::Permissions::from_mode(mode))?;
        }
        let create = "cd /data/$where && touch file && mkdir directory && ln -s file link && mkfifo fifo && echo x > file \
                      && chmod 6755 file && stat -c '%u:%g %a' file directory && echo more >> file && stat -c %a file";
        let run = |flags: &[&str], directory: &str| {
            let where_ = format!("where={directory}");
            let common = ["--isolation", rvm.isolation().name(), "-v", "grouped:/data", "-e", &where_, "-u", "1000:1000"];
            rvm.call([&["run", "--rm"], &common[..], flags, &[BUSYBOX, "sh", "-c", create]].concat())
        };
        let member = ["--group-add", "2000"];
        assert_eq!(run(&member, "group")?.ok().text(), "1000:2000 6755\n1000:2000 2755\n755");
        for name in ["file", "link", "fifo"] {
            let made = fs::symlink_metadata(of_group.join(name))?;
            assert_eq!((made.uid(), made.gid()), (1000, 2000), "{name}");
        }
        // Who is not in a file's group cannot have it run as that group.
        assert_eq!(run(&[], "all")?.ok().text(), "1000:2000 4755\n1000:2000 2755\n755");
        fs::remove_dir_all(&of_group)?;
        for (flags, directory) in [(&member[..], "root"), (&[], "root")] {
            run(flags, directory)?.failed(1, &["Permission denied"]);
        }
        assert_eq!(fs::read_dir(of_root)?.count(), 0);
        remove(rvm, "grouped")?;
    }

    fn a_file_that_comes_and_goes_can_be_opened_at_any_time(rvm) {
        volume(rvm, "flapping")?;
        pair(rvm, "flapping")?;
        let often = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo x >> /data/flag; [ $((i%3)) -gt 0 ] || rm -f /data/flag 2> /dev/null; done; true";
        together(rvm, |name| format!("({often}) 2> /data/errors.{name}"))?;
        assert_eq!(said(rvm, "here", "cat /data/errors.*")?, "");
        remove_pair(rvm)?;
        remove(rvm, "flapping")?;
    }

    fn a_file_that_is_replaced_stays_with_who_has_it_open(rvm) {
        volume(rvm, "renamed")?;
        pair(rvm, "renamed")?;
        said(rvm, "here", "echo old > /data/file")?;
        // It holds the old one open, and reads it once the other side has put another in its place.
        let reader = "exec 3< /data/file; touch /data/open; until [ -e /data/replaced ]; do sleep 0.02; done; \
                      cat <&3 > /data/seen; cat /data/file >> /data/seen; touch /data/done";
        rvm.call(["exec", "-d", "here", "sh", "-c", reader])?.ok();
        let is_there = |file: &'static str| move || Ok(rvm.call(["exec", "there", "ls", file])?.code == 0);
        wait_until("it is open", LIMIT, is_there("/data/open"))?;
        said(rvm, "there", "echo new > /data/other; mv /data/other /data/file; touch /data/replaced")?;
        wait_until("it was read", LIMIT, is_there("/data/done"))?;
        assert_eq!(said(rvm, "there", "cat /data/seen")?, "old\nnew");
        remove_pair(rvm)?;
        remove(rvm, "renamed")?;
    }

    fn an_image_s_volumes_have_what_it_has_there(rvm) {
        rvm.call(["create", "--isolation", "container", "--name", "maker", BUSYBOX, "true"])?.ok();
        rvm.call(["commit", "-c", "VOLUME /etc /new", "maker", "volumes:1"])?.ok();
        rvm.call(["rm", "maker"])?.ok();
        let count = || -> Result<usize> { Ok(rvm.call(["volume", "ls", "-q"])?.ok().text().lines().count()) };
        let look = "grep -c ' /etc \\| /new ' /proc/mounts; ls -A /new; grep -c ^root /etc/passwd; echo x > /etc/own";
        // --rm removes them.
        assert_eq!(rvm.run(["volumes:1", "sh", "-c", look])?.ok().text(), "2\n1");
        assert_eq!(count()?, 0);
        // A mount of one's own comes in its place.
        assert_eq!(rvm.run(["-v", "own:/new", "volumes:1", "sh", "-c", look])?.ok().text(), "2\n1");
        remove(rvm, "own")?;
        let mode = rvm.isolation().name();
        for (flags, left) in [(&["rm", "-v", "user"][..], 0), (&["rm", "user"], 2)] {
            rvm.call(["run", "--isolation", mode, "--name", "user", "volumes:1", "sh", "-c", look])?.ok();
            assert_eq!(count()?, 2);
            rvm.call(flags)?.ok();
            assert_eq!(count()?, left);
        }
        rvm.call(["volume", "prune", "-f"])?.ok();
        assert_eq!(count()?, 0);
        rvm.call(["rmi", "volumes:1"])?.ok();
    }

    fn a_copy_before_the_first_start_finds_a_volume_filled(rvm) {
        let data = rvm.root().join("volumes/early/_data");
        let file = rvm.run_directory().join("early");
        fs::write(&file, "copied\n")?;
        let mode = rvm.isolation().name();
        for mount in ["early:/etc", "early:/etc:ro"] {
            rvm.call(["create", "--isolation", mode, "--name", "user", "-v", mount, BUSYBOX, "cat", "/etc/passwd"])?.ok();
            let out = rvm.call(["cp", "user:/etc/passwd", "-"])?.ok();
            ensure!(out.text().contains("root:x:0:0"), "{mount}");
            ensure!(data.join("passwd").exists() && !rvm.root().join("volumes/early/filling").exists(), "{mount}");
            let target = "user:/etc/own";
            if mount.ends_with(":ro") {
                // It cannot be started either, as with Docker: there is no place for its own /etc/hosts.
                ensure!(rvm.call(["cp", &file.display().to_string(), target])?.code != 0);
            } else {
                rvm.call(["cp", &file.display().to_string(), target])?.ok();
                assert_eq!(fs::read_to_string(data.join("own"))?, "copied\n");
                ensure!(rvm.call(["start", "-a", "user"])?.ok().text().contains("root:x:0:0"));
            }
            rvm.call(["rm", "user"])?.ok();
            remove(rvm, "early")?;
        }
        fs::remove_file(file)?;
    }

    fn volumes_tell_what_happens_to_them(rvm) {
        rvm.run(["--name", "user", "-v", "told:/data:ro", BUSYBOX, "true"])?.ok();
        remove(rvm, "told")?;
        let format = "{{.Action}} {{.Actor.Attributes.destination}} {{.Actor.Attributes.driver}}";
        let told = rvm.call(["events", "--since", "1h", "--until", "0s", "-f", "volume=told", "--format", format])?.ok().text();
        let none = "<no value>";
        let expected = [
            format!("create {none} local"),
            "mount /data local".to_owned(),
            format!("unmount {none} local"),
            format!("destroy {none} local"),
        ];
        let told: Vec<_> = told.lines().collect();
        ensure!(told.ends_with(&expected.each_ref().map(String::as_str)), "{told:?}");
    }
}
