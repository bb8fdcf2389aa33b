//! What a machine may do to rvm: its disk is full, its clock jumps, its store has grown.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, finish, tool};
use rvm_tests::images::{BUSYBOX, archive};
use rvm_tests::rvm::{Rvm, scratch};
use rvm_tests::wait::wait_until;

/// A file system of its own for an installation, unmounted at the end.
struct SmallDisk(String);

impl SmallDisk {
    /// Ext4, on which a file is as large as it was promised to be.
    fn mount(directory: &Path, mib: u64) -> Result<Self> {
        let image = scratch()?.join("small-disk");
        File::create(&image)?.set_len(mib << 20)?;
        let image = image.to_str().context("not UTF-8")?;
        let directory = directory.to_str().context("not UTF-8")?;
        tool("mke2fs", &["-q", "-F", "-t", "ext4", image])?;
        tool("mount", &["-o", "loop", image, directory])?;
        Ok(Self(directory.to_owned()))
    }

    /// Leaves no room for anything.
    fn fill(&self) -> Result<()> {
        let mut file = File::create(Path::new(&self.0).join("filler"))?;
        // The last blocks, too.
        for size in [1 << 20, 4096] {
            while file
                .write_all(&vec![1; size])
                .and_then(|()| file.sync_data())
                .is_ok()
            {}
        }
        Ok(())
    }

    fn make_room(&self) -> Result<()> {
        Ok(fs::remove_file(Path::new(&self.0).join("filler"))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // With the namespaces that virtual machines share, which are mounts in the run directory.
        let _ = tool("umount", &["-R", &self.0]);
        let _ = scratch().map(|scratch| fs::remove_file(scratch.join("small-disk")));
    }
}

fn status(rvm: &Rvm, container: &str) -> Result<String> {
    Ok(rvm
        .call(["inspect", "--format", "{{.State.Status}}", container])?
        .ok()
        .text())
}

/// Sets the clock, and sets it right again at the end.
struct Clock {
    seconds: i64,
}

impl Clock {
    fn jump(seconds: i64) -> Result<Self> {
        Self::shift(seconds)?;
        Ok(Self { seconds })
    }

    fn shift(seconds: i64) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let then = now.checked_add_signed(seconds).context("before the epoch")?;
        tool("date", &["-s", &format!("@{then}")]).map(drop)
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        let _ = Self::shift(-self.seconds);
    }
}

const DAY: i64 = 24 * 60 * 60;

both_modes! {
    fn a_full_disk_costs_what_it_must_and_no_more(rvm) {
        let small = Rvm::empty(rvm.isolation(), "full-disk")?;
        let disk = SmallDisk::mount(small.root().parent().context("no directory")?, 160)?;
        let image = archive(BUSYBOX, "oci-archive")?;
        small.call(["load", "-q", "-i", image.to_str().context("not UTF-8")?])?.ok();
        small.detach("talker", &["-i", BUSYBOX, "sh", "-c", "echo before; trap 'echo during' USR1; trap 'echo after' USR2; \
            trap 'exit 7' TERM; while true; do sleep 1000 & wait; done"])?;
        wait_until("it talks", LIMIT, || Ok(small.call(["logs", "talker"])?.ok().text() == "before"))?;
        small.detach("victim", &[BUSYBOX, "sleep", "1000"])?;
        disk.fill()?;
        // What cannot be made is an error that says why, and leaves nothing.
        let refused = finish(small.run_command([BUSYBOX, "true"])?, LIMIT)?;
        refused.failed(125, &["No space left on device"]);
        assert_eq!(small.call(["ps", "-a", "--format", "{{.Names}}"])?.ok().text(), "victim\ntalker");
        small.call(["kill", "-s", "USR1", "talker"])?.ok();
        // The truth is told about what dies meanwhile.
        let supervisor = small.call(["inspect", "--format", "{{.State.SupervisorPid}}", "victim"])?.ok().text();
        rvm_tests::processes::kill(supervisor.parse()?)?;
        wait_until("its death is seen", LIMIT, || Ok(status(&small, "victim")? == "exited"))?;
        assert_eq!(small.call(["ps", "--format", "{{.Names}}"])?.ok().text(), "talker");
        // What is there can be removed, ...
        small.call(["rm", "victim"])?.ok();
        disk.make_room()?;
        // ... and what runs goes on, with its log once there is room.
        small.call(["kill", "-s", "USR2", "talker"])?.ok();
        wait_until("it is heard again", LIMIT, || Ok(small.call(["logs", "talker"])?.ok().text().ends_with("after")))?;
        disk.fill()?;
        small.call(["stop", "talker"])?;
        wait_until("it is stopped", LIMIT, || Ok(small.call(["ps", "-q"])?.ok().text().is_empty()))?;
        assert_eq!(status(&small, "talker")?, "exited");
        disk.make_room()?;
        assert_eq!(status(&small, "talker")?, "exited");
        small.call(["start", "talker"])?.ok();
        small.call(["rm", "-f", "talker"])?.ok();
        assert!(small.containers()?.is_empty());
        drop(disk);
        fs::remove_dir_all(small.root().parent().context("no directory")?)?;
    }

    fn a_clock_may_jump(rvm) {
        rvm.detach("steady", &["--restart", "on-failure", "--health-cmd", "true", "--health-interval", "1s", BUSYBOX, "sh", "-c",
            "trap 'exit 0' TERM; echo up; while true; do sleep 1000 & wait; done"])?;
        wait_until("it is up", LIMIT, || Ok(rvm.call(["logs", "steady"])?.ok().text() == "up"))?;
        for seconds in [-DAY, 2 * DAY] {
            let clock = Clock::jump(seconds)?;
            assert!(rvm.call(["ps", "--format", "{{.Status}}"])?.ok().text().starts_with("Up "));
            rvm.call(["exec", "steady", "true"])?.ok();
            rvm.call(["pause", "steady"])?.ok();
            rvm.call(["unpause", "steady"])?.ok();
            let output = rvm.call(["stop", "-t", "20", "steady"])?.ok();
            assert!(output.elapsed < LIMIT, "{}", output.describe());
            assert_eq!(status(rvm, "steady")?, "exited");
            assert!(rvm.call(["ps", "-a", "--format", "{{.Status}}"])?.ok().text().starts_with("Exited (0) "));
            rvm.call(["start", "steady"])?.ok();
            // Before the jump is undone, and so in a container that was started in another time.
            drop(clock);
            wait_until("it is well", LIMIT, || {
                let health = rvm.call(["inspect", "--format", "{{.State.Health.Status}}", "steady"])?.ok().text();
                Ok(health == "healthy")
            })?;
        }
        rvm.call(["logs", "--since", "1h", "steady"])?.ok();
        rvm.call(["rm", "-f", "steady"])?.ok();
    }
}

/// A store with a thousand containers is used as one with a few.
#[test]
fn a_thousand_containers_are_listed_found_and_removed() -> Result<()> {
    const THOUSAND: u32 = 1000;
    rvm_tests::rvm::in_mode(rvm_tests::rvm::Isolation::Container, |rvm: &Rvm| {
        let original = rvm
            .call([
                "create",
                "--isolation",
                "container",
                "--name",
                "many-0000",
                BUSYBOX,
                "echo",
                "hello",
            ])?
            .ok()
            .text();
        let containers = rvm.root().join("containers");
        let names = fs::read_link(rvm.root().join("names").join("many-0000"))?;
        assert_eq!(names.to_str(), Some(original.as_str()));
        let read = |file: &str| fs::read_to_string(containers.join(&original).join(file));
        let (record, spec) = (read("container.json")?, read("config.json")?);
        for number in 1..THOUSAND {
            let (id, name) = (
                format!("{number:08x}{}", &original[8..]),
                format!("many-{number:04}"),
            );
            fs::create_dir(containers.join(&id))?;
            fs::write(containers.join(&id).join("config.json"), &spec)?;
            let record = record.replace(&original, &id).replace("many-0000", &name);
            fs::write(containers.join(&id).join("container.json"), record)?;
            std::os::unix::fs::symlink(&id, rvm.root().join("names").join(&name))?;
        }
        let listed = rvm.call(["ps", "-a", "--format", "{{.Names}}"])?.ok().text();
        assert_eq!(listed.lines().count(), THOUSAND as usize);
        assert_eq!(rvm.call(["start", "-a", "many-0999"])?.ok().text(), "hello");
        assert_eq!(rvm.call(["logs", "many-0999"])?.ok().text(), "hello");
        let filtered = rvm.call(["ps", "-aq", "--filter", "status=exited"])?.ok().text();
        assert_eq!(filtered, format!("000003e7{}", &original[8..12]));
        assert_eq!(rvm.run([BUSYBOX, "echo", "beside"])?.ok().text(), "beside");
        let mut arguments = vec!["rm".to_owned()];
        arguments.extend(rvm.containers()?);
        let removed = finish(rvm.command(&arguments)?, 2 * LIMIT)?.ok().text();
        assert_eq!(removed.lines().count(), THOUSAND as usize);
        assert!(rvm.containers()?.is_empty());
        Ok(())
    })
}
