//! Tests of what is left when a container ends, however it ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use serde_json::json;

use crate::fixture::{Fixture, spec, wait_until};

pub(crate) fn nothing_is_left_after_destroy() {
    let fixture = Fixture::new();
    let (mut container, [stdout, _stderr]) = fixture
        .create(&spec(&["sh", "-c", "sleep 1000 & echo up; sleep 1000"]))
        .unwrap();
    container.start().unwrap();
    BufReader::new(stdout).read_line(&mut String::new()).unwrap();
    let processes = fs::read_to_string(fixture.cgroup().join("cgroup.procs")).unwrap();
    assert_eq!(processes.lines().count(), 2, "{processes}");
    assert!(!fixture.leftovers().is_empty());
    container.destroy().unwrap();
    assert!(!fixture.cgroup().exists());
    for process in processes.lines() {
        assert!(!Path::new("/proc").join(process).exists(), "{process}");
    }
    wait_until("the end of the mounts and loop devices", || {
        fixture.leftovers().is_empty()
    });
}

pub(crate) fn nothing_is_left_after_a_dropped_container() {
    let fixture = Fixture::new();
    let (mut container, _outputs) = fixture.create(&spec(&["sleep", "1000"])).unwrap();
    container.start().unwrap();
    drop(container);
    assert!(!fixture.cgroup().exists());
    wait_until("the end of the mounts and loop devices", || {
        fixture.leftovers().is_empty()
    });
}

/// Another process that makes a container, says so, and waits to be killed.
pub(crate) fn parent() -> ExitCode {
    let fixture = Fixture::new();
    let (mut container, _outputs) = fixture
        .create(&spec(&["sh", "-c", "sleep 1000 & sleep 1000"]))
        .unwrap();
    container.start().unwrap();
    println!(
        "{}\n{}\n{}",
        container.pid(),
        fixture.cgroup().display(),
        fixture.path().display()
    );
    loop {
        std::thread::park();
    }
}

pub(crate) fn nothing_is_left_after_the_parent_was_killed() {
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .arg("parent")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(parent.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let [pid, cgroup, directory] = [(); 3].map(|()| lines.next().unwrap());
    assert!(Path::new("/proc").join(&pid).exists());
    parent.kill().unwrap();
    parent.wait().unwrap();
    let populated = Path::new(&cgroup).join("cgroup.events");
    wait_until("the end of the workload", || {
        fs::read_to_string(&populated).unwrap().contains("populated 0")
    });
    rvm_isolation::cgroup::remove(Path::new(&cgroup)).unwrap();
    assert!(!Path::new(&cgroup).exists());
    let loops = || {
        let devices = fs::read_dir("/sys/block").unwrap().flatten();
        let mut files = devices.map(|device| fs::read_to_string(device.path().join("loop/backing_file")));
        files.any(|file| file.is_ok_and(|file| file.contains(&directory)))
    };
    wait_until("the end of the loop devices", || !loops());
    fs::remove_dir_all(directory).unwrap();
}

pub(crate) fn failures_of_create_leave_nothing() {
    let fixture = Fixture::new();
    let mut spec = spec(&["sh"]);
    spec["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["no-such-option=1"]
    }));
    let message = fixture.fail_to_create(&spec);
    assert!(
        message.starts_with("cannot set up the container: cannot set the option"),
        "{message}"
    );
    assert!(!fixture.cgroup().exists());
    spec["mounts"].as_array_mut().unwrap().pop();
    spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 10});
    let message = fixture.fail_to_create(&spec);
    assert_eq!(
        message,
        "the container's init died: the memory limit is too small for it"
    );
    spec["linux"]["resources"] = json!({"unified": {"misc.nothing": "1"}});
    let message = fixture.fail_to_create(&spec);
    assert!(
        message.ends_with("the controller is not enabled in cgroup.subtree_control of its parent"),
        "{message}"
    );
    wait_until("the end of the mounts and loop devices", || {
        fixture.leftovers().is_empty()
    });
}

pub(crate) fn nested_cgroups_are_removed() {
    let fixture = Fixture::new();
    let (mut container, _outputs) = fixture.create(&spec(&["sleep", "1000"])).unwrap();
    container.start().unwrap();
    let nested = fixture.cgroup().join("a/b/c");
    fs::create_dir_all(&nested).unwrap();
    fs::write(nested.join("cgroup.procs"), container.pid().to_string()).unwrap();
    assert!(container.cgroup().memory_bytes().unwrap() > 0);
    assert!(container.cgroup().cpu_time().unwrap() > std::time::Duration::ZERO);
    container.destroy().unwrap();
    assert!(!fixture.cgroup().exists());
}
