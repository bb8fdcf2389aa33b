//! What a container is given by flags, as it is seen from inside and by `inspect`.

use std::fs;

use rvm_tests::both_modes;
use rvm_tests::images::BUSYBOX;
use rvm_tests::rvm::scratch;

both_modes! {
    fn limits_hold_from_the_start(rvm) {
        let flags = ["-m", "64m", "--memory-swap", "96m", "--pids-limit", "30", "--cpu-shares", "512", "--cpuset-cpus", "0"];
        rvm.detach("limited", &[&flags[..], &[BUSYBOX, "sleep", "1000"]].concat())?;
        let script = "cd /sys/fs/cgroup; cat memory.max memory.swap.max pids.max";
        let inside = rvm.call(["exec", "limited", "sh", "-c", script])?.ok().text();
        // A kernel without swap has no limit of it.
        assert!(["67108864\n33554432\n30", "67108864\n30"].contains(&inside.as_str()), "{inside}");
        let format = "{{.Id}} {{.HostConfig.MemorySwap}} {{.HostConfig.PidsLimit}} {{.HostConfig.CpuShares}} {{.HostConfig.CpusetCpus}}";
        let shown = rvm.call(["inspect", "--format", format, "limited"])?.ok().text();
        let (id, limits) = shown.split_once(' ').unwrap_or_default();
        assert_eq!(limits, "100663296 30 512 0");
        let cgroup = std::path::Path::new("/sys/fs/cgroup/rvm").join(id);
        assert_eq!(fs::read_to_string(cgroup.join("cpu.weight"))?.trim(), "20");
        assert_eq!(fs::read_to_string(cgroup.join("cpuset.cpus"))?.trim(), "0");
        rvm.call(["rm", "-f", "limited"])?.ok();
        for (flags, expected) in [
            (&["--memory-swap", "64m"][..], "needs one of memory"),
            (&["-m", "64m", "--memory-swap", "32m"], "less than"),
            (&["--cpu-shares", "1"], "out of range"),
            (&["--cpuset-cpus", "4000"], "available"),
        ] {
            rvm.run([flags, &[BUSYBOX, "true"]].concat())?.failed(125, &[expected]);
        }
    }

    fn surroundings_are_as_asked_for(rvm) {
        let file = scratch()?.join("given.env");
        fs::write(&file, "# none\nONE=file\nTWO=file\n")?;
        let file = file.display().to_string();
        let flags = [
            "--name", "given", "-h", "box", "--domainname", "example", "--env-file", &file, "-e", "TWO=line",
            "--label-file", &file, "-l", "TWO=line", "--ulimit", "nofile=100:200", "--ulimit", "core=0", "--shm-size", "1m",
            "--tmpfs", "/run", "--tmpfs", "/m/e:size=64k,mode=700,exec", "--group-add", "extra", "--group-add", "77",
            "-u", "www", "--sysctl", "net.ipv4.ip_default_ttl=42", "--sysctl", "kernel.msgmax=9000", "--oom-score-adj", "500",
            "--annotation", "com.example=1",
        ];
        let script = "hostname; cat /proc/sys/kernel/domainname; echo $ONE $TWO; ulimit -Sn; ulimit -Hn; ulimit -c; id -G; \
            cat /proc/sys/net/ipv4/ip_default_ttl /proc/sys/kernel/msgmax /proc/self/oom_score_adj; \
            grep -E ' (/dev/shm|/run|/m/e) ' /proc/mounts | sed 's/ 0 0//;s/,inode64//'";
        let command = [&["run"], &flags[..], &[BUSYBOX, "sh", "-c", script]].concat();
        let output = rvm.call([&command[..1], &["--isolation", rvm.isolation().name()], &command[1..]].concat())?.ok().text();
        let lines: Vec<_> = output.lines().collect();
        assert_eq!(lines[..10], ["box", "example", "file line", "100", "200", "0", "33 44 77", "42", "9000", "500"]);
        let mounts = &lines[10..];
        let has = |start: &str, part: &str| mounts.iter().any(|line| line.starts_with(start) && line.contains(part));
        assert!(has("shm /dev/shm tmpfs rw,nosuid,nodev,noexec", "size=1024k"), "{mounts:?}");
        assert!(has("tmpfs /run tmpfs rw,nosuid,nodev,noexec", ""), "{mounts:?}");
        assert!(has("tmpfs /m/e tmpfs rw,nosuid,nodev,relatime", "size=64k,mode=700"), "{mounts:?}");
        let format = "{{json .HostConfig.Ulimits}} {{.HostConfig.ShmSize}} {{json .HostConfig.Tmpfs}} {{json .HostConfig.GroupAdd}} \
            {{.HostConfig.OomScoreAdj}} {{json .HostConfig.Annotations}} {{.Config.Domainname}} {{.Config.User}}";
        let shown = rvm.call(["inspect", "--format", format, "given"])?.ok().text();
        assert_eq!(shown, "[{\"Hard\":200,\"Name\":\"nofile\",\"Soft\":100},{\"Hard\":0,\"Name\":\"core\",\"Soft\":0}] 1048576 \
            {\"/m/e\":\"size=64k,mode=700,exec\",\"/run\":\"\"} [\"extra\",\"77\"] 500 {\"com.example\":\"1\"} example www");
        rvm.call(["rm", "given"])?.ok();
        for (flags, expected) in [
            (&["--env-file", "/dev/zero"][..], "larger than"),
            (&["--ulimit", "nofile=2:1"], "must be less than or equal"),
            (&["--ulimit", "nofile=9223372036854775807"], "RLIMIT_NOFILE"),
            (&["--tmpfs", "/proc"], "hide"),
            (&["--tmpfs", "/a/../proc"], "must be absolute"),
            (&["--tmpfs", "/"], "destination can't be '/'"),
            (&["--tmpfs", "/run:size=much"], "size=much"),
            (&["--group-add", "nobodies"], "nobodies"),
            (&["--sysctl", "kernel.panic=1"], "sysctl 'kernel.panic' is not allowed"),
            (&["--sysctl", "net.no.such=1"], "net/no/such"),
            (&["--oom-score-adj", "1001"], "range for oom score adj"),
        ] {
            let output = rvm.run([flags, &[BUSYBOX, "true"]].concat())?;
            output.failed(output.code.clamp(125, 126), &[expected]);
        }
    }

    fn rights_are_as_asked_for(rvm) {
        let file = scratch()?.join("profile.json");
        fs::write(&file, r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"],
            "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}"#)?;
        let profile = format!("seccomp={}", file.display());
        let script = "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | cut -f 2 | tr '\\n' ' '; mkdir /x 2>&1";
        for (flags, expected) in [
            (&["--cap-drop", "all", "--cap-add", "chown"][..], "0000000000000001 0 2 "),
            (&["--cap-add", "CAP_SYS_TIME", "--cap-drop", "KILL"], "00000000aa0425db 0 2 "),
            (&["--cap-add", "ALL", "--security-opt", "seccomp=unconfined"], "000001ffffffffff 0 0 "),
            (&["--cap-drop", "ALL", "--security-opt", "no-new-privileges"], "0000000000000000 1 2 "),
            (&["--security-opt", &profile], "00000000a80425fb 0 2 mkdir: can't create directory '/x': Function not implemented"),
        ] {
            let output = rvm.run([flags, &[BUSYBOX, "sh", "-c", script]].concat())?;
            assert_eq!(output.text().trim(), expected.trim(), "{flags:?}\n{}", output.describe());
        }
        let writable = "(: >>/proc/sys/vm/panic_on_oom) 2>/dev/null && echo yes || echo no";
        for (flags, expected) in [(&[][..], "no"), (&["--security-opt", "systempaths=unconfined"], "yes")] {
            let output = rvm.run([flags, &[BUSYBOX, "sh", "-c", writable]].concat())?.ok();
            assert_eq!(output.text(), expected, "{flags:?}");
        }
        for (flags, expected) in [
            (["--cap-add", "flying"], "unknown capability: \"CAP_FLYING\""),
            (["--security-opt", "label=type:x"], "invalid --security-opt"),
            (["--security-opt", "seccomp=/dev/zero"], "larger than"),
            (["--security-opt", "seccomp=/etc/passwd"], "seccomp profile"),
        ] {
            rvm.run([&flags[..], &[BUSYBOX, "true"]].concat())?.failed(125, &[expected]);
        }
    }
}
