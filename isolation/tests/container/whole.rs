//! Tests of a workload as a whole: frozen, listed, measured, limited; and of its own files, seen from outside.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use rvm_isolation::cgroup;
use serde_json::json;

use crate::fixture::{Fixture, spec, wait_until};

/// A busy shell, and a child that sleeps.
const BUSY: &str = "sleep 1000 & while :; do :; done";

pub(crate) fn a_frozen_container_stands_still_and_is_killed() {
    let fixture = Fixture::new();
    let (mut container, _outputs) = fixture.create(&spec(&["sh", "-c", BUSY])).unwrap();
    container.start().unwrap();
    let used = || cgroup::usage(fixture.cgroup()).unwrap().processor_us;
    let grows = || {
        let before = used();
        wait_until("it goes on", || used() > before);
    };
    grows();
    cgroup::freeze(fixture.cgroup()).unwrap();
    let before = used();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(used(), before);
    cgroup::freeze(fixture.cgroup()).unwrap();
    cgroup::thaw(fixture.cgroup()).unwrap();
    grows();
    cgroup::thaw(fixture.cgroup()).unwrap();
    cgroup::freeze(fixture.cgroup()).unwrap();
    container.signal(9).unwrap();
    assert_eq!(container.wait().unwrap().code, 137);
    container.destroy().unwrap();
    assert!(cgroup::freeze(fixture.cgroup()).is_err(), "it is gone");
}

pub(crate) fn a_workload_is_listed_measured_and_limited() {
    let fixture = Fixture::new();
    let (mut container, _outputs) = fixture.create(&spec(&["sh", "-c", BUSY])).unwrap();
    container.start().unwrap();
    wait_until("both run", || {
        cgroup::processes(fixture.cgroup()).unwrap().list.len() == 2
    });
    let processes = cgroup::processes(fixture.cgroup()).unwrap();
    let [shell, child] = processes.list.as_slice() else {
        panic!("{processes:?}");
    };
    assert_eq!((shell.pid, child.parent), (container.pid(), container.pid()));
    assert_eq!(shell.command, format!("sh -c {BUSY}"));
    let resources = |value| serde_json::from_value(value).unwrap();
    let limits =
        resources(json!({"memory": {"limit": 32 << 20}, "cpu": {"quota": 20_000}, "pids": {"limit": 9}}));
    cgroup::limit(fixture.cgroup(), &limits).unwrap();
    let set = |file: &str| fs::read_to_string(fixture.cgroup().join(file)).unwrap();
    assert_eq!(
        (set("cpu.max").as_str(), set("pids.max").as_str()),
        ("20000 100000\n", "9\n")
    );
    let usage = cgroup::workload_usage(fixture.cgroup()).unwrap();
    assert_eq!(
        (usage.memory_limit_bytes, usage.pids),
        (Some(32 << 20), Some(2)),
        "{usage:?}"
    );
    assert_eq!(
        usage.traffic,
        Some(cgroup::Traffic::default()),
        "there is but the loopback"
    );
    assert!(
        usage.memory_bytes.unwrap() > 0 && usage.processor_us > 0,
        "{usage:?}"
    );
    // What is none is refused before any is set.
    let wrong = resources(json!({"pids": {"limit": 1}, "unified": {"cgroup.procs": "0"}}));
    assert!(cgroup::limit(fixture.cgroup(), &wrong).is_err());
    assert_eq!(set("pids.max"), "9\n");
    container.destroy().unwrap();
}

pub(crate) fn own_files_are_reached_wherever_the_workload_has_put_them() {
    let mut fixture = Fixture::new();
    fixture.push_file("/own/one", "old\n");
    fixture.push_file("/own/mounted", "not seen\n");
    let script = "mv /own /gone && echo ready
        until grep -q new /gone/one; do sleep 0.01; done; cat /gone/one";
    let mut asked = spec(&["sh", "-c", script]);
    let mount = json!({"destination": "/own/mounted", "type": "bind", "source": "/etc/hostname", "options": ["bind"]});
    asked["mounts"].as_array_mut().unwrap().push(mount);
    let (mut container, [stdout, _stderr]) = fixture.create(&asked).unwrap();
    let own = container.take_own_files();
    // What the user has mounted there is not the container's own.
    let [one] = own.as_slice() else { panic!("{own:?}") };
    assert_eq!(one.path, Path::new("/own/one"));
    container.start().unwrap();
    let mut lines = BufReader::new(stdout).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "ready");
    one.file.write_all_at(b"new\n", 0).unwrap();
    assert_eq!(lines.collect::<Vec<_>>(), ["new"]);
    assert_eq!(container.wait().unwrap().code, 0);
    container.destroy().unwrap();
}
