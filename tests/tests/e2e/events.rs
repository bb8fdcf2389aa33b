//! What happens is told, to whoever listens or asks later.

use std::process::Stdio;

use rustix::process::Signal;
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, Running};
use rvm_tests::images::BUSYBOX;
use rvm_tests::wait::wait_until;

both_modes! {
    fn a_run_is_told_while_it_happens(rvm) {
        let name = format!("told-{}", rvm.isolation().name());
        let format = "{{.Type}} {{.Action}} {{.Actor.Attributes.exitCode}}";
        let filters = ["-f", &format!("container={name}"), "-f", "label=tier"];
        let mut command = rvm.command([&["events", "--since", "1h", "--format", format][..], &filters].concat())?;
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let listener = Running::start(command)?;
        rvm.run(["--name", &name, "-l", "tier=front", BUSYBOX, "sh", "-c", "exit 3"])?.code(3);
        let expected = "container create <no value>\ncontainer attach <no value>\ncontainer start <no value>\n\
                        container die 3\ncontainer destroy <no value>\n";
        wait_until("it is told", LIMIT, || Ok(listener.stdout_so_far() == expected))?;
        listener.signal(Signal::INT)?;
        listener.finish(LIMIT)?.code(130);
        // One that cannot be started ends, too.
        rvm.run(["--name", &name, BUSYBOX, "no-such-command"])?.code(127);
        assert_eq!(rvm.actions(&name)?, ["create", "attach", "die", "destroy"]);
    }

    fn what_commands_do_is_told(rvm) {
        let id = rvm.detach("told", &["-l", "note=a\u{1b}[31m\nb", BUSYBOX, "sleep", "1000"])?;
        rvm.call(["exec", "told", "sh", "-c", "exit 4"])?.code(4);
        rvm.call(["kill", "-s", "HUP", "told"])?.ok();
        rvm.call(["rename", "told", "again"])?.ok();
        rvm.call(["cp", "/etc/passwd", "again:/tmp"])?.ok();
        rvm.call(["restart", "-t", "0", "again"])?.ok();
        rvm.call(["rm", "-f", "again"])?.ok();
        let container = format!("container={}", &id[..12]);
        let events = |flags: &[&str]| rvm.call([&["events", "--since", "1h", "--until", "0s", "-f", &container], flags].concat());
        assert_eq!(
            events(&["--format", "{{.Action}}"])?.ok().text().lines().collect::<Vec<_>>(),
            [
                "create", "start", "exec_create: sh -c exit 4", "exec_start: sh -c exit 4", "exec_die", "kill", "rename",
                "extract-to-dir", "kill", "kill", "die", "stop", "start", "restart", "kill", "die", "destroy"
            ]
        );
        let rename = events(&["-f", "event=rename"])?.ok().text();
        assert!(rename.contains(&format!(" container rename {id} (image={BUSYBOX}, name=again, note=a")), "{rename}");
        assert!(rename.ends_with(", oldName=/told)") && !rename.contains('\u{1b}'), "{rename}");
        assert_eq!(rename.lines().count(), 1, "{rename}");
        let signals = events(&["-f", "event=kill", "-f", "event=exec_die", "--format", "{{.Actor.Attributes.signal}}"])?;
        assert_eq!(signals.ok().text(), "<no value>\n1\n15\n9\n9");
        let json = events(&["-f", "event=exec_die", "--format", "json"])?.ok().text();
        assert!(json.contains(r#""exitCode":"4""#) && json.contains(r"a\u001b[31m\nb"), "{json}");
        rvm.call(["tag", BUSYBOX, "told:1"])?.ok();
        rvm.call(["rmi", "told:1"])?.ok();
        let image = ["events", "--since", "1m", "--until", "0s", "-f", "image=told", "--format", "{{.Action}}"];
        assert!(rvm.call(image)?.ok().text().ends_with("tag\nuntag"));
        rvm.call(["events", "-f", "colour=red"])?.failed(125, &["colour"]);
    }
}
