//! What a container wrote: a part of it, followed, bounded.

use std::process::Stdio;
use std::time::Duration;

use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, Running, finish};
use rvm_tests::images::BUSYBOX;
use rvm_tests::wait::{let_pass, wait_until};

both_modes! {
    fn a_part_of_the_log_is_shown(rvm) {
        let script = "echo one; echo error >&2; sleep 2; echo three; printf four";
        rvm.detach("parts", &[BUSYBOX, "sh", "-c", script])?;
        rvm.call(["wait", "parts"])?.ok();
        let logs = |flags: &[&str]| rvm.call([&["logs"], flags, &["parts"]].concat());
        assert_eq!(logs(&["--tail", "2"])?.ok().text(), "three\nfour");
        let output = logs(&["-n", "3"])?.ok();
        // The two streams come by ways of their own: which of the first two lines is the older is not known.
        assert!(output.text().ends_with("three\nfour"), "{}", output.describe());
        assert_eq!(logs(&["--tail", "0"])?.ok().text(), "");
        assert_eq!(logs(&["--tail", "all"])?.ok().text(), "one\nthree\nfour");
        let times = logs(&["--timestamps"])?.ok().text();
        let stamps: Vec<_> = times.lines().filter_map(|line| line.split_once(' ')).collect();
        assert_eq!(stamps.iter().map(|(_, text)| *text).collect::<Vec<_>>(), ["one", "three", "four"]);
        for (time, _) in &stamps {
            assert_eq!((time.len(), &time[10..11]), (30, "T"), "{times}");
        }
        let third = stamps[1].0;
        assert_eq!(logs(&["--since", third])?.ok().text(), "three\nfour");
        assert_eq!(logs(&["--until", stamps[0].0])?.ok().text(), "one");
        logs(&["--since", "yesterday"])?.failed(125, &["yesterday"]);
        // It has ended, so there is nothing to follow.
        assert_eq!(logs(&["-f", "--tail", "1"])?.ok().text(), "four");
        rvm.call(["rm", "parts"])?.ok();
    }

    fn a_log_is_followed_to_the_end(rvm) {
        rvm.detach("talker", &["-i", BUSYBOX, "sh", "-c", "echo up; while read line; do echo \"<$line>\"; done"])?;
        let follow = |flags: &[&str]| {
            let mut command = rvm.command([&["logs", "-f"], flags, &["talker"]].concat())?;
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            Running::start(command)
        };
        let (all, late) = (follow(&[])?, follow(&["--tail", "0"])?);
        wait_until("the beginning is there", LIMIT, || Ok(all.stdout_so_far() == "up\n"))?;
        let mut command = rvm.command(["attach", "talker"])?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut attached = Running::start(command)?;
        let mut stdin = attached.stdin();
        if let Some(stdin) = &mut stdin {
            use std::io::Write as _;
            writeln!(stdin, "hello")?;
        }
        wait_until("it is followed", LIMIT, || Ok(all.stdout_so_far() == "up\n<hello>\n"))?;
        rvm.call(["stop", "-t", "0", "talker"])?.ok();
        assert_eq!(all.finish(LIMIT)?.ok().text(), "up\n<hello>");
        // It may have begun to follow before there was anything.
        assert!(late.finish(LIMIT)?.ok().text().ends_with("<hello>"));
        attached.finish(LIMIT)?.code(137);
        rvm.call(["rm", "talker"])?.ok();
    }

    fn a_log_is_as_large_as_it_may_be(rvm) {
        let limits = ["--log-opt", "max-size=16k", "--log-opt", "max-file=3"];
        let script = "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done; echo over";
        rvm.detach("chatty", &[&limits[..], &[BUSYBOX, "sh", "-c", script]].concat())?;
        let mut command = rvm.command(["logs", "-f", "chatty"])?;
        command.stdout(Stdio::piped());
        let followed = finish(command, LIMIT)?.ok().text();
        assert!(followed.ends_with("over"), "{}", followed.len());
        let kept = rvm.call(["logs", "chatty"])?.ok().text();
        let lines: Vec<_> = kept.lines().collect();
        assert_eq!(lines.last(), Some(&"over"));
        assert!(lines.len() > 500 && lines.len() < 20000, "{}", lines.len());
        let id = rvm.call(["inspect", "--format", "{{.Id}}", "chatty"])?.ok().text();
        let mut bytes = 0;
        for name in ["log", "log.1", "log.2"] {
            bytes += std::fs::metadata(rvm.root().join("containers").join(&id).join(name))?.len();
        }
        assert!(bytes < 3 * (96 << 10) && !rvm.root().join("containers").join(&id).join("log.3").exists(), "{bytes}");
        rvm.call(["rm", "chatty"])?.ok();
        finish(rvm.run_command(["--log-opt", "max-file=0", BUSYBOX, "true"])?, LIMIT)?.failed(125, &["max-file"]);
    }

    /// Who follows and does not read holds up nobody.
    fn a_slow_reader_does_not_block_the_workload(rvm) {
        let script = "echo up; i=0; while [ $i -lt 3 ]; do head -c 1000000 /dev/zero | tr '\\0' x; echo; i=$((i+1)); done; echo over";
        rvm.detach("writer", &["-i", BUSYBOX, "sh", "-c", &format!("read line; {script}")])?;
        let mut reader = Running::start_unread(rvm.command(["logs", "-f", "writer"])?)?;
        let mut command = rvm.command(["attach", "writer"])?;
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut attached = Running::start(command)?;
        if let Some(mut stdin) = attached.stdin() {
            use std::io::Write as _;
            writeln!(stdin, "go")?;
        }
        assert_eq!(rvm.call(["wait", "writer"])?.ok().text(), "0");
        attached.finish(LIMIT)?.ok();
        let_pass(Duration::from_millis(100));
        reader.read_stdout();
        let text = reader.finish(LIMIT)?.ok().text();
        assert!(text.starts_with("up") && text.ends_with("over") && text.len() > 3_000_000, "{}", text.len());
        rvm.call(["rm", "writer"])?.ok();
    }
}
