//! Tests of further processes in a container.

use std::fs::File;
use std::io::Read as _;

use rvm_isolation::{Container, Entered, EntryPlan, StartError, Stdio, enter};
use serde_json::{Value, json};

use crate::fixture::{Fixture, chain, pipe, spec};

/// Makes a process of `arguments` in a container that was made of `spec`, with the reading end of its output.
fn entered(
    fixture: &Fixture,
    container: &Container,
    spec: &Value,
    arguments: &[&str],
) -> Result<(Entered, File), rvm_isolation::Error> {
    let mut process = spec["process"].clone();
    process["args"] = json!(arguments);
    let plan = EntryPlan::new(
        &serde_json::from_value(spec.clone()).unwrap(),
        &serde_json::from_value(process).unwrap(),
    )
    .unwrap();
    let (stdout, end) = pipe();
    let stdio = Stdio {
        stdin: File::open("/dev/null").unwrap().into(),
        stderr: end.try_clone().unwrap(),
        stdout: end,
    };
    let entered = enter(&plan, container.pidfd(), fixture.cgroup(), stdio)?;
    Ok((entered, stdout.into()))
}

pub(crate) fn a_further_process_is_in_the_container() {
    let fixture = Fixture::new();
    let spec = spec(&["sleep", "1000"]);
    let (mut container, _outputs) = fixture.create(&spec).unwrap();
    container.start().unwrap();
    let links = |process: &str| {
        let script =
            format!("cd /proc/{process}/ns; for n in cgroup ipc mnt net pid uts; do readlink $n; done");
        let (mut entered, mut output) = entered(&fixture, &container, &spec, &["sh", "-c", &script])
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        entered.start().unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(entered.wait().unwrap(), 0);
        text
    };
    let own = links("self");
    assert_eq!((own.lines().count(), own), (6, links("1")));
    let (mut missing, _output) = entered(&fixture, &container, &spec, &["no-such"]).unwrap();
    assert!(matches!(missing.start(), Err(StartError::CommandNotFound { .. })));
    // The container's end waits for its status.
    drop(missing);
    container.destroy().unwrap();
}

pub(crate) fn a_further_process_ends_with_the_container() {
    let fixture = Fixture::new();
    let spec = spec(&["sleep", "1000"]);
    let (mut container, _outputs) = fixture.create(&spec).unwrap();
    container.start().unwrap();
    let (mut running, mut output) = entered(&fixture, &container, &spec, &["sleep", "1000"]).unwrap();
    running.start().unwrap();
    // One that is dropped is gone, and one that was never started holds up nothing.
    drop(entered(&fixture, &container, &spec, &["sleep", "1000"]).unwrap());
    let waiting = std::thread::spawn(move || running.wait().unwrap());
    container.signal(9).unwrap();
    assert_eq!(waiting.join().unwrap(), 137);
    assert_eq!(container.wait().unwrap().code, 137);
    assert_eq!(output.read(&mut [0]).unwrap(), 0);
    assert!(
        entered(&fixture, &container, &spec, &["true"]).is_err(),
        "there is nothing to enter"
    );
    container.destroy().unwrap();
}

/// What the workload puts in the place of its devpts is not taken for one.
pub(crate) fn a_terminal_is_of_the_container_s_devpts() {
    let fixture = Fixture::new();
    let mut spec = spec(&["sleep", "1000"]);
    for set in ["bounding", "effective", "permitted"] {
        let capabilities = spec["process"]["capabilities"][set].as_array_mut().unwrap();
        capabilities.push(json!("CAP_SYS_ADMIN"));
    }
    spec["linux"]["resources"] = json!({});
    let (mut container, _outputs) = fixture.create(&spec).unwrap();
    container.start().unwrap();
    let mut in_terminal = spec.clone();
    in_terminal["process"]["terminal"] = json!(true);
    in_terminal["process"]["consoleSize"] = json!({"height": 7, "width": 70});
    let script = "busybox tty; busybox stty size; echo here >/dev/tty";
    let (mut seated, _none) = entered(&fixture, &container, &in_terminal, &["sh", "-c", script]).unwrap();
    let mut terminal = File::from(seated.take_terminal().unwrap());
    seated.start().unwrap();
    assert_eq!(seated.wait().unwrap(), 0);
    let mut text = Vec::new();
    // Nobody has it open any more.
    assert_eq!(
        terminal.read_to_end(&mut text).unwrap_err().raw_os_error(),
        Some(5)
    );
    assert_eq!(String::from_utf8(text).unwrap(), "/dev/pts/0\r\n7 70\r\nhere\r\n");
    let cases = [
        (
            "mount -t tmpfs none /dev/pts && mknod -m 666 /dev/pts/ptmx c 5 2",
            "/dev/pts/ptmx is not the multiplexer of a devpts",
        ),
        (
            "busybox rm /dev/pts/ptmx && busybox ln -s /dev/ptmx /dev/pts/ptmx",
            "/dev/pts/ptmx of the image is a symbolic link",
        ),
        (
            "busybox rm /dev/pts/ptmx",
            "/dev/pts/ptmx is not the multiplexer of a devpts",
        ),
    ];
    for (script, expected) in cases {
        let (mut changes, _output) = entered(&fixture, &container, &spec, &["sh", "-c", script]).unwrap();
        changes.start().unwrap();
        assert_eq!(changes.wait().unwrap(), 0, "{script}");
        let refused = entered(&fixture, &container, &in_terminal, &["true"])
            .map(drop)
            .unwrap_err();
        let message = chain(&refused);
        assert!(message.ends_with(expected), "{message}");
    }
    container.destroy().unwrap();
}
