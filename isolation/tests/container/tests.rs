//! The tests themselves.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use rvm_isolation::{Plan, StartError};
use serde_json::{Value, json};

use crate::endings::{
    failures_of_create_leave_nothing, nested_cgroups_are_removed, nothing_is_left_after_a_dropped_container,
    nothing_is_left_after_destroy, nothing_is_left_after_the_parent_was_killed,
};
use crate::entering::{
    a_further_process_ends_with_the_container, a_further_process_is_in_the_container,
    a_terminal_is_of_the_container_s_devpts,
};
use crate::fixture::{Fixture, Outcome, chain, executable, spec, wait_until};
use crate::whole::{
    a_frozen_container_stands_still_and_is_killed, a_workload_is_listed_measured_and_limited,
    own_files_are_reached_wherever_the_workload_has_put_them,
};

/// A test's name and body.
type Test = (&'static str, fn());

macro_rules! tests {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name as fn())),*] };
}

/// Every test.
pub(crate) const ALL: &[Test] = tests![
    exit_codes,
    streams_arrive_apart,
    null_streams_are_the_containers_own,
    the_workload_is_pid_1_with_docker_privileges,
    namespaces_are_its_own,
    mounts_and_devices_are_dockers,
    paths_are_masked_and_read_only,
    the_root_can_be_read_only,
    commands_that_cannot_run,
    commands_of_others_cannot_run,
    users_are_resolved_in_the_image,
    user_files_are_regular_files,
    the_working_directory_is_made,
    nothing_is_inherited,
    limits_and_settings_are_set,
    a_hog_is_killed,
    processor_time_is_limited,
    devices_are_restricted,
    the_init_cannot_be_overwritten,
    seccomp_filters_are_in_force,
    signals_reach_the_workload,
    bind_mounts_show_files_of_the_host,
    links_of_the_image_stay_inside,
    many_layers_are_joined,
    own_files_are_reached_wherever_the_workload_has_put_them,
    changes_land_in_the_upper_directory,
    the_root_directory_looks_like_the_images,
    nothing_is_left_after_destroy,
    nothing_is_left_after_a_dropped_container,
    nothing_is_left_after_the_parent_was_killed,
    failures_of_create_leave_nothing,
    nested_cgroups_are_removed,
    a_further_process_is_in_the_container,
    a_further_process_ends_with_the_container,
    a_frozen_container_stands_still_and_is_killed,
    a_workload_is_listed_measured_and_limited,
    a_terminal_is_of_the_container_s_devpts,
];

fn exit_codes() {
    let fixture = Fixture::new();
    let check = |arguments: &[&str], code: u8| {
        let outcome = fixture.run(&spec(arguments));
        assert_eq!(
            (outcome.exit.code, outcome.exit.out_of_memory),
            (code, false),
            "{arguments:?} {outcome:?}"
        );
    };
    check(&["sh", "-c", "exit 7"], 7);
    check(&["sh", "-c", "exit 0"], 0);
    check(&["/crash"], 139);
    check(&["sh", "-c", "exit 255"], 255);
}

fn streams_arrive_apart() {
    let Outcome { stdout, stderr, .. } = Fixture::new().run(&spec(&["sh", "-c", "echo out; echo err >&2"]));
    assert_eq!((stdout.as_str(), stderr.as_str()), ("out\n", "err\n"));
}

fn null_streams_are_the_containers_own() {
    let fixture = Fixture::new();
    // The fixture's standard input is the host's null device.
    let printed = fixture.shell("stat -Lc %d:%i:%t:%T /proc/self/fd/0 /dev/null; chmod 0 /proc/self/fd/0");
    let [stdin, null] = printed.lines().collect::<Vec<_>>()[..] else {
        panic!("{printed}");
    };
    assert_eq!(stdin, null);
    assert!(stdin.ends_with(":1:3"), "{stdin}");
    let mode = fs::metadata("/dev/null").unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
    // The other two, which have to be as writable as before.
    let plan = Plan::new(
        &serde_json::from_value(spec(&[
            "sh",
            "-c",
            // In a shell of its own, because this one redirects itself for the time of a command.
            "(stat -Lc %d:%i /dev/null /proc/1/fd/[12] >/out) && echo",
        ]))
        .unwrap(),
        &fixture.environment(),
    );
    let null = |write: bool| {
        fs::File::options()
            .read(!write)
            .write(write)
            .open("/dev/null")
            .unwrap()
            .into()
    };
    let (stdin, stdout, stderr) = (null(false), null(true), null(true));
    let streams = rvm_isolation::Stdio {
        stdin,
        stdout,
        stderr,
    };
    let mut container = rvm_isolation::create(&plan.unwrap(), streams).unwrap();
    container.start().unwrap();
    assert_eq!(container.wait().unwrap().code, 0);
    container.destroy().unwrap();
    let printed = fs::read_to_string(fixture.path().join("upper/out")).unwrap();
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines.iter().all(|line| *line == lines[0]), "{printed}");
}

fn the_workload_is_pid_1_with_docker_privileges() {
    let status = Fixture::new().succeed(&spec(&["cat", "/proc/self/status"]));
    let value = |key: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
        line.unwrap_or_else(|| panic!("no {key} in {status}")).to_owned()
    };
    let expected = [
        ("Pid", "1"),
        ("PPid", "0"),
        ("Umask", "0022"),
        ("NoNewPrivs", "0"),
        ("Seccomp", "2"),
        ("CapInh", "0000000000000000"),
        ("CapPrm", "00000000a80425fb"),
        ("CapEff", "00000000a80425fb"),
        ("CapBnd", "00000000a80425fb"),
        ("CapAmb", "0000000000000000"),
    ];
    for (key, expected) in expected {
        assert_eq!(value(key), expected, "{key}");
    }
}

fn namespaces_are_its_own() {
    let printed = Fixture::new().shell(
        "hostname; cat /proc/self/cgroup; ls /sys/class/net; ifconfig lo | grep -c UP; echo /proc/[0-9]*; \
         readlink /proc/self/ns/net",
    );
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    let mut lines = printed.lines();
    for expected in ["box", "0::/", "lo", "1", "/proc/1"] {
        assert_eq!(lines.next(), Some(expected), "{printed}");
    }
    assert_ne!(lines.next().unwrap(), host.to_str().unwrap());
}

fn mounts_and_devices_are_dockers() {
    let fixture = Fixture::new();
    let printed = fixture
        .shell("cd /dev; ls; for d in null zero full random urandom tty; do stat -c %n:%t:%T:%a $d; done");
    let expected = "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    let devices = [
        "null:1:3",
        "zero:1:5",
        "full:1:7",
        "random:1:8",
        "urandom:1:9",
        "tty:5:0",
    ];
    let devices = devices.map(|device| format!("{device}:666"));
    let expected: Vec<String> = expected.split(' ').map(str::to_owned).chain(devices).collect();
    assert_eq!(printed.lines().collect::<Vec<_>>(), expected);
    let printed = fixture.shell(
        "cd /dev; readlink ptmx; readlink fd; readlink stdin; echo through >/dev/stdout; cat /proc/mounts",
    );
    let printed = printed
        .strip_prefix("pts/ptmx\n/proc/self/fd\n/proc/self/fd/0\nthrough\n")
        .unwrap_or(&printed);
    let mounts: Vec<_> = printed
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .collect();
    let points: Vec<_> = mounts.iter().map(|mount| mount[1]).collect();
    let expected = [
        "/",
        "/proc",
        "/dev",
        "/dev/pts",
        "/sys",
        "/sys/fs/cgroup",
        "/dev/mqueue",
        "/dev/shm",
        "/probe",
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/sys/firmware",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ];
    // A kernel may lack one of the masked files.
    let others: Vec<_> = points.iter().filter(|point| !expected.contains(point)).collect();
    assert!(others.is_empty(), "{others:?} in {printed}");
    assert!(points.starts_with(&expected[..9]), "{points:?}");
    // Nothing tells where the container lies on the host.
    assert!(
        !printed.contains(fixture.path().file_name().unwrap().to_str().unwrap()),
        "{printed}"
    );
    let check = |point: &str, option: &str| {
        let mount = mounts.iter().find(|mount| mount[1] == point).unwrap();
        assert!(
            mount[3].split(',').any(|has| has == option),
            "{option} of {mount:?}"
        );
    };
    for (point, option) in [
        ("/sys", "ro"),
        ("/proc", "noexec"),
        ("/dev", "nosuid"),
        ("/probe", "ro"),
        ("/", "rw"),
    ] {
        check(point, option);
    }
    check("/dev/shm", "size=65536k");
    check("/sys/fs/cgroup", "ro");
}

fn paths_are_masked_and_read_only() {
    let fixture = Fixture::new();
    let printed = fixture.shell(
        "cat /proc/keys /proc/timer_list; ls -A /sys/firmware; \
         (echo x >/proc/sysrq-trigger) 2>&1; (echo x >/proc/sys/kernel/hostname) 2>&1; touch /sys/firmware/x 2>&1; true",
    );
    let expected = "sh: can't create /proc/sysrq-trigger: Read-only file system\n\
        sh: can't create /proc/sys/kernel/hostname: Read-only file system\n\
        touch: /sys/firmware/x: Read-only file system\n";
    assert_eq!(printed, expected);
}

fn the_root_can_be_read_only() {
    let mut spec = spec(&[
        "sh",
        "-c",
        "touch /x 2>&1; touch /dev/shm/y && echo tmpfs; ls -d /made",
    ]);
    spec["root"]["readonly"] = json!(true);
    spec["process"]["cwd"] = json!("/made");
    assert_eq!(
        Fixture::new().succeed(&spec),
        "touch: /x: Read-only file system\ntmpfs\n/made\n"
    );
}

fn commands_that_cannot_run() {
    let fixture = Fixture::new();
    let check = |arguments: &[&str], expected: &str| {
        let (kind, reason) = match fixture.fail_to_start(&spec(arguments)) {
            StartError::CommandNotFound { reason } => (127, reason),
            StartError::CommandNotExecutable { reason } => (126, reason),
            other => panic!("{}", chain(&other)),
        };
        assert_eq!(format!("{kind} {reason}"), expected);
    };
    check(&["nothing"], "127 \"nothing\" is not in $PATH");
    check(
        &["/nothing"],
        "127 \"/nothing\": No such file or directory (os error 2)",
    );
    check(&["data"], "127 \"data\" is not in $PATH");
    check(
        &["/lost-interpreter"],
        "127 \"/lost-interpreter\": No such file or directory (os error 2)",
    );
    check(&["/data"], "126 \"/data\": Permission denied (os error 13)");
    check(&["/srv"], "126 \"/srv\": Is a directory (os error 21)");
    check(
        &["/not-a-program"],
        "126 \"/not-a-program\": Exec format error (os error 8)",
    );
}

fn commands_of_others_cannot_run() {
    let fixture = Fixture::with_tree(|tree| {
        for (directory, mode) in [("private", 0o700), ("public", 0o755)] {
            let program = tree.join(directory).join("program");
            fs::create_dir(tree.join(directory)).unwrap();
            executable(&program, b"#!/bin/sh\nexec grep ^Cap[BE] /proc/self/status\n");
            fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(tree.join("closed")).unwrap();
        executable(&tree.join("closed/program"), b"#!/bin/sh\n");
        fs::set_permissions(tree.join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    });
    // With a filter and without: the privilege to install one must not help either.
    for seccomp in [spec(&[])["linux"]["seccomp"].clone(), Value::Null] {
        for program in ["/private/program", "/closed/program"] {
            let mut spec = spec(&[program]);
            spec["linux"]["seccomp"] = seccomp.clone();
            spec["process"]["user"]["username"] = json!("1000");
            let error = fixture.fail_to_start(&spec);
            assert!(
                matches!(error, StartError::CommandNotExecutable { .. }),
                "{program} {error:?}"
            );
        }
        let mut spec = spec(&["/public/program"]);
        spec["linux"]["seccomp"] = seccomp;
        spec["process"]["user"]["username"] = json!("1000");
        assert_eq!(
            fixture.succeed(&spec),
            "CapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\n"
        );
        spec["process"]["args"][0] = json!("/private/program");
        spec["process"]["user"]["username"] = json!("");
        let expected = "CapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\n";
        assert_eq!(fixture.succeed(&spec), expected);
    }
}

fn users_are_resolved_in_the_image() {
    let fixture = Fixture::new();
    let run = |user: &str| {
        let mut spec = spec(&[
            "sh",
            "-c",
            "id -u; id -g; id -G; echo $HOME; echo >/dev/stdout; grep CapEff /proc/self/status",
        ]);
        spec["process"]["user"] = json!({"uid": 0, "gid": 0, "username": user});
        fixture
            .succeed(&spec)
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(run("www"), "33 34 34 100 /srv CapEff: 0000000000000000");
    assert_eq!(run("1000"), "1000 0 0 / CapEff: 0000000000000000");
    assert_eq!(run("www:ssl"), "33 100 100 /srv CapEff: 0000000000000000");
    assert_eq!(run(""), "0 0 0 /root CapEff: 00000000a80425fb");
    let mut spec = spec(&["id", "-G"]);
    spec["process"]["user"] = json!({"uid": 5, "gid": 6, "additionalGids": [7, 8]});
    assert_eq!(fixture.succeed(&spec), "6 7 8\n");
    spec["process"]["user"] = json!({"uid": 0, "gid": 0, "username": "nobody"});
    let expected = "cannot set up the container: cannot find out who to run as: \
        no user \"nobody\" in /etc/passwd of the image";
    assert_eq!(fixture.fail_to_create(&spec), expected);
}

fn user_files_are_regular_files() {
    let refused = |place: &dyn Fn(&Path), reason: &str| {
        let fixture = Fixture::with_tree(|tree| {
            let path = tree.join("etc/passwd");
            fs::remove_file(&path).unwrap();
            place(&path);
        });
        let message = fixture.fail_to_create(&spec(&["sh"]));
        let expected =
            format!("cannot find out who to run as: cannot read /etc/passwd of the image: {reason}");
        assert!(message.ends_with(&expected), "{message}");
    };
    let not_regular = "not a regular file";
    // A device without a driver: to open it would be another error.
    let device = |path: &Path| {
        let (kind, number) = (FileType::CharacterDevice, rustix::fs::makedev(240, 77));
        rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), number).unwrap();
    };
    refused(&device, not_regular);
    refused(&|path| symlink("/dev/zero", path).unwrap(), not_regular);
    refused(&|path| symlink("/proc/kmsg", path).unwrap(), not_regular);
    refused(&|path| fs::create_dir(path).unwrap(), not_regular);
    let large = |path: &Path| fs::write(path, vec![b'x'; (16 << 20) + 1]).unwrap();
    refused(&large, "larger than 16777216 bytes");
}

fn the_working_directory_is_made() {
    let fixture = Fixture::new();
    let run = |directory: &str| {
        let mut spec = spec(&["sh", "-c", "pwd; stat -c %u:%g:%a ."]);
        spec["process"]["cwd"] = json!(directory);
        spec
    };
    assert_eq!(fixture.succeed(&run("/deep/new")), "/deep/new\n0:0:755\n");
    assert_eq!(fixture.succeed(&run("/srv")), "/srv\n0:0:755\n");
    let expected = "cannot set up the container: cannot use the working directory: /data of the image is not a directory";
    assert_eq!(fixture.fail_to_create(&run("/data")), expected);
    // A descriptor of the host's must not become the working directory (CVE-2024-21626).
    let message = fixture.fail_to_create(&run("/proc/self/fd/3"));
    assert!(message.contains("cannot use the working directory"), "{message}");
}

fn nothing_is_inherited() {
    let fixture = Fixture::new();
    // Of this process: a descriptor that is not closed on execve, a variable, an ignored signal.
    let _inherited = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 50)
        .and_then(|descriptor| {
            rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::empty()).map(|()| descriptor)
        })
        .unwrap();
    assert_eq!(
        fixture.succeed(&spec(&["/probe", "probe", "descriptors"])),
        "[0, 1, 2]\n"
    );
    assert_eq!(fixture.succeed(&spec(&["env"])), "PATH=/bin\nHOME=/root\n");
    let signals = fixture.succeed(&spec(&["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"]));
    assert_eq!(signals, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
    let mut spec = spec(&["env"]);
    spec["process"]["env"] = json!(["A=1", "PATH=/bin", "HOME=/x", "B="]);
    assert_eq!(fixture.succeed(&spec), "A=1\nPATH=/bin\nHOME=/x\nB=\n");
}

fn limits_and_settings_are_set() {
    let mut spec = spec(&[
        "sh",
        "-c",
        "ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj /proc/sys/net/core/somaxconn; ls /sys/fs/cgroup/memory.max; \
         cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max",
    ]);
    spec["process"]["oomScoreAdj"] = json!(17);
    spec["linux"]["sysctl"] = json!({"net.core.somaxconn": "99"});
    spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20, "swap": 128 << 20});
    spec["linux"]["resources"]["pids"] = json!({"limit": 20});
    spec["linux"]["resources"]["cpu"] = json!({"quota": 50_000, "period": 100_000});
    let printed = Fixture::new().succeed(&spec);
    let expected = "1000\n2000\n17\n99\n/sys/fs/cgroup/memory.max\n67108864\n20\n50000 100000\n";
    assert_eq!(printed, expected);
}

fn a_hog_is_killed() {
    let mut spec = spec(&["/probe", "probe", "hog"]);
    spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20, "swap": 64 << 20});
    let Outcome { exit, stdout, .. } = Fixture::new().run(&spec);
    assert_eq!((exit.code, exit.out_of_memory), (137, true));
    let mebibytes: u32 = stdout.lines().last().unwrap().parse().unwrap();
    assert!((32..64).contains(&mebibytes), "{mebibytes} MiB");
}

fn processor_time_is_limited() {
    let mut spec = spec(&[
        "sh",
        "-c",
        "/probe probe spin; grep nr_throttled /sys/fs/cgroup/cpu.stat",
    ]);
    spec["linux"]["resources"]["cpu"] = json!({"quota": 50_000, "period": 100_000});
    let printed = Fixture::new().succeed(&spec);
    let (percent, throttled) = printed.split_once("\nnr_throttled ").unwrap();
    // An emulated machine's clocks are not exact, but a free loop gets 99 %.
    let (percent, throttled): (u32, u32) = (percent.parse().unwrap(), throttled.trim().parse().unwrap());
    assert!(
        (25..=80).contains(&percent) && throttled >= 10,
        "{percent} %, throttled {throttled} times"
    );
}

fn devices_are_restricted() {
    let fixture = Fixture::new();
    let script = "mknod /tmp/mem c 1 1 && cat /tmp/mem 2>&1; mknod /tmp/kmsg c 1 11; cat /tmp/kmsg 2>&1; \
        mknod /tmp/null c 1 3 && cat /tmp/null && dd if=/dev/zero bs=1 count=1 2>/dev/null | cat >/dev/null && echo fine";
    let denied = "cat: can't open '/tmp/mem': Operation not permitted\n\
        cat: can't open '/tmp/kmsg': Operation not permitted\n";
    assert_eq!(fixture.shell(script), format!("{denied}fine\n"));
    let mut spec = spec(&[
        "sh",
        "-c",
        "stat -c %t:%T:%a:%g /dev/extra; cat /dev/extra; echo open",
    ]);
    spec["linux"]["devices"] = json!([
        {"path": "/dev/extra", "type": "c", "major": 5, "minor": 3, "fileMode": 0o640, "gid": 5}
    ]);
    spec["linux"]["resources"]["devices"]
        .as_array_mut()
        .unwrap()
        .push(json!({"allow": true, "type": "c", "major": 5, "minor": 3, "access": "rw"}));
    // The device does not exist, which is another error than not being allowed to open it.
    let outcome = fixture.run(&spec);
    assert_eq!(outcome.stdout, "5:3:640:5\nopen\n");
    assert!(outcome.stderr.contains("No such device"), "{}", outcome.stderr);
}

fn the_init_cannot_be_overwritten() {
    // The command is what init runs at that time: the host's file.
    let outcome = Fixture::new().run(&spec(&["/proc/self/exe", "probe", "overwrite"]));
    assert_eq!((outcome.exit.code, outcome.stdout.as_str()), (1, ""));
    assert!(
        outcome.stderr.ends_with(": Read-only file system\n"),
        "{}",
        outcome.stderr
    );
}

fn seccomp_filters_are_in_force() {
    let fixture = Fixture::new();
    let mut spec = spec(&[
        "sh",
        "-c",
        "mkdir /tmp/x 2>&1; grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status",
    ]);
    let blocked = "mkdir: can't create directory '/tmp/x': Function not implemented\n";
    assert_eq!(
        fixture.succeed(&spec),
        format!("{blocked}NoNewPrivs:\t0\nSeccomp:\t2\n")
    );
    spec["process"]["noNewPrivileges"] = json!(true);
    assert_eq!(
        fixture.succeed(&spec),
        format!("{blocked}NoNewPrivs:\t1\nSeccomp:\t2\n")
    );
    spec["process"]["user"] = json!({"uid": 33, "gid": 33});
    spec["process"]["noNewPrivileges"] = json!(false);
    assert_eq!(
        fixture.succeed(&spec),
        format!("{blocked}NoNewPrivs:\t0\nSeccomp:\t2\n")
    );
    // Whatever the profile forbids, after the filter init needs these two calls only; the program needs none.
    let mut spec = self::spec(&["/crash"]);
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["capset", "execve"], "action": "SCMP_ACT_ALLOW"}],
    });
    assert_eq!(fixture.run(&spec).exit.code, 139);
    spec["linux"]["seccomp"] = Value::Null;
    assert_eq!(fixture.run(&spec).exit.code, 139);
}

fn signals_reach_the_workload() {
    let fixture = Fixture::new();
    let script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.01; done";
    let (mut container, [stdout, _stderr]) = fixture.create(&spec(&["sh", "-c", script])).unwrap();
    container.start().unwrap();
    let mut lines = BufReader::new(stdout).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    container.signal(15).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "caught");
    assert_eq!(container.wait().unwrap().code, 5);
    assert_eq!(container.wait().unwrap().code, 5, "waiting again");
    assert!(container.signal(15).is_err());
    container.destroy().unwrap();
    // Killed by name of a signal, and killed before it was ever started.
    let (mut container, _outputs) = fixture.create(&spec(&["sleep", "1000"])).unwrap();
    container.start().unwrap();
    container.signal(9).unwrap();
    assert_eq!(container.wait().unwrap().code, 137);
    container.destroy().unwrap();
    let (container, _outputs) = fixture.create(&spec(&["sleep", "1000"])).unwrap();
    container.destroy().unwrap();
}

fn bind_mounts_show_files_of_the_host() {
    let fixture = Fixture::new();
    let host = fixture.path().join("host");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("hosts"), "of the host\n").unwrap();
    let mut spec = spec(&[
        "sh",
        "-c",
        "cat /etc/hosts /volume/hosts; (echo x >/etc/hosts) 2>&1; echo new >/volume/new; cat /data",
    ]);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    let bind = |source: &str, destination: &str, options: &[&str]| json!({"destination": destination, "type": "bind", "source": host.join(source), "options": options});
    mounts.push(bind("hosts", "/etc/hosts", &["rbind", "ro", "rprivate"]));
    mounts.push(bind("", "/volume", &["rbind", "rw", "nosuid"]));
    mounts.push(bind("hosts", "/data", &["bind"]));
    let printed = fixture.succeed(&spec);
    let blocked = "sh: can't create /etc/hosts: Read-only file system\n";
    assert_eq!(
        printed,
        format!("of the host\nof the host\n{blocked}of the host\n")
    );
    assert_eq!(fs::read_to_string(host.join("new")).unwrap(), "new\n");
    spec["mounts"]
        .as_array_mut()
        .unwrap()
        .push(bind("missing", "/missing", &["bind"]));
    let message = fixture.fail_to_create(&spec);
    assert!(
        message.contains("cannot open the bind mount's source"),
        "{message}"
    );
}

fn links_of_the_image_stay_inside() {
    let fixture = Fixture::with_tree(|tree| {
        symlink("/srv", tree.join("link")).unwrap();
        symlink("../../../../../../srv", tree.join("climbing")).unwrap();
        fs::remove_file(tree.join("etc/group")).unwrap();
        let made = Command::new("mkfifo")
            .arg(tree.join("etc/group"))
            .status()
            .unwrap();
        assert!(made.success());
    });
    let mut spec = spec(&["sh", "-c", "ls /srv"]);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    for destination in ["/link/one", "/climbing/two"] {
        mounts.push(json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": []}));
    }
    let message = fixture.fail_to_create(&spec);
    assert!(
        message.ends_with("cannot read /etc/group of the image: not a regular file"),
        "{message}"
    );
    spec["process"]["user"] = json!({"uid": 0, "gid": 0});
    assert_eq!(fixture.succeed(&spec), "one\ntwo\n");
    // A link in the place of /proc is refused.
    let fixture = Fixture::with_tree(|tree| symlink("/srv", tree.join("proc")).unwrap());
    let message = fixture.fail_to_create(&spec);
    assert!(
        message.ends_with("cannot make the mount point /proc: /proc of the image is a symbolic link"),
        "{message}"
    );
}

fn many_layers_are_joined() {
    let mut fixture = Fixture::new();
    let tree = fixture.path().join("layer");
    for number in 1..=126 {
        fs::create_dir_all(tree.join("srv")).unwrap();
        fs::write(tree.join("srv").join(format!("only-{number}")), "").unwrap();
        fs::write(tree.join("srv/top"), format!("{number}\n")).unwrap();
        fixture.push_layer(&tree);
        fs::remove_dir_all(&tree).unwrap();
    }
    assert_eq!(
        fixture.shell("cat /srv/top; echo /srv/only-* | wc -w | cat"),
        "126\n126\n"
    );
    wait_until("the end of the loop devices", || fixture.leftovers().is_empty());
}

fn changes_land_in_the_upper_directory() {
    let fixture = Fixture::new();
    fixture.shell("echo changed >/data; touch /new; chmod 4755 /new");
    assert_eq!(
        fs::read_to_string(fixture.path().join("upper/data")).unwrap(),
        "changed\n"
    );
    let mode = fs::metadata(fixture.path().join("upper/new"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o4755);
    // The same directories serve a second container.
    assert_eq!(fixture.shell("cat /data"), "changed\n");
}

fn the_root_directory_looks_like_the_images() {
    let fixture = Fixture::with_tree(|tree| {
        fs::set_permissions(tree, fs::Permissions::from_mode(0o1711)).unwrap();
        std::os::unix::fs::chown(tree, Some(3), Some(4)).unwrap();
        for name in ["security.test", "trusted.overlay.test", "trusted.test"] {
            rustix::fs::setxattr(tree, name, b"value", XattrFlags::empty()).unwrap();
        }
    });
    let attribute = |name: &str| {
        let mut value = [0; 16];
        let length = rustix::fs::getxattr(fixture.path().join("upper"), name, &mut value)?;
        Ok(String::from_utf8_lossy(&value[..length]).into_owned())
    };
    assert_eq!(fixture.shell("stat -c %a:%u:%g /; chmod 755 /"), "1711:3:4\n");
    assert_eq!(
        fixture.shell("stat -c %a:%u:%g /"),
        "755:3:4\n",
        "as the workload left it"
    );
    assert_eq!(attribute("security.test"), Ok("value".into()));
    assert_eq!(attribute("trusted.test"), Ok("value".into()));
    assert_eq!(attribute("trusted.overlay.test"), Err(rustix::io::Errno::NODATA));
}
