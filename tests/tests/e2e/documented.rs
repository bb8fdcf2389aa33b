//! Commands from Docker's own documentation give the documented results: its pages on running containers, exec, logs, restart
//! policies, health checks, and those of the commands themselves.
//!
//! One installation is used from the first command to the last, as a reader of those pages would. A command is written as
//! there, but for the image, which is the tests' own, and times, which are shorter.

use anyhow::{Context as _, Result, ensure};
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, finish};
use rvm_tests::rvm::{Rvm, scratch};
use rvm_tests::wait::wait_until;

/// What is to be seen of a command.
enum Then<'a> {
    /// It succeeds.
    Ok,
    /// It succeeds, and its standard output is this.
    Prints(&'a str),
    /// It succeeds, and all of these are on its standard output.
    Shows(&'a [&'a str]),
    /// In the end it succeeds and prints this: what it asks about takes its time.
    Becomes(&'a str),
    /// It ends with this code.
    Ends(i32),
    /// It ends with this code, and all of these are on its standard error.
    Fails(i32, &'a [&'a str]),
}

use Then::{Becomes, Ends, Fails, Ok as Succeeds, Prints, Shows};

/// The parts of a command line: words, or text in single or double quotes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for character in line.chars() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

/// Types one line, which begins after `docker`.
fn type_line(rvm: &Rvm, line: &str, then: &Then<'_>) -> Result<()> {
    let output = || -> Result<_> {
        let mut command = rvm.command(words(line))?;
        command.env("RVM_ISOLATION", rvm.isolation().name());
        command.current_dir(scratch()?);
        finish(command, LIMIT)
    };
    match then {
        Succeeds => drop(output()?.ok()),
        Prints(text) => assert_eq!(&output()?.ok().text(), text, "{line}"),
        Shows(parts) => {
            let text = output()?.ok().text();
            for part in *parts {
                ensure!(text.contains(part), "{part:?} is missing after {line}: {text}");
            }
        }
        Becomes(text) => wait_until(line, LIMIT, || {
            let output = output()?;
            Ok(output.code == 0 && output.text() == *text)
        })?,
        Ends(code) => drop(output()?.code(*code)),
        Fails(code, parts) => output()?.failed(*code, parts),
    }
    Ok(())
}

fn session(rvm: &Rvm, lines: &[(&str, Then<'_>)]) -> Result<()> {
    for (line, then) in lines {
        type_line(rvm, line, then).with_context(|| format!("docker {line}"))?;
    }
    Ok(())
}

both_modes! {
    fn running_containers(rvm) {
        session(rvm, &[
            ("images --format '{{.Repository}}:{{.Tag}}' busybox", Prints("busybox:test")),
            ("run --rm busybox:test echo 'hello world'", Prints("hello world")),
            // "Exit status" of the page on running containers.
            ("run --foo busybox:test", Fails(125, &["--foo"])),
            ("run --rm busybox:test /etc", Fails(126, &["/etc"])),
            ("run --rm busybox:test foo", Fails(127, &["foo"])),
            ("run --rm busybox:test /bin/sh -c 'exit 3'", Ends(3)),
            // "docker container run".
            ("run --name test -d busybox:test sh -c 'echo hello; exec sleep 1000'", Succeeds),
            ("run --name test busybox:test", Fails(125, &["\"test\" is already in use"])),
            ("run --rm -w /path/to/dir/ busybox:test pwd", Prints("/path/to/dir")),
            ("run --rm --read-only busybox:test touch /icanwrite/here", Fails(1, &["touch"])),
            ("run --rm -e MYVAR1 --env MYVAR2=foo busybox:test sh -c 'echo $MYVAR2'", Prints("foo")),
            ("run --rm -u 1000:50 busybox:test sh -c 'id -u; id -g'", Prints("1000\n50")),
            ("run --rm --entrypoint /bin/echo busybox:test from the entrypoint", Prints("from the entrypoint")),
            ("run --rm --hostname box busybox:test hostname", Prints("box")),
            ("run -it --rm busybox:test sh", Fails(1, &["not a TTY"])),
            ("run --rm -m 64m busybox:test true", Succeeds),
            ("run --cidfile test.cid --name cid busybox:test true", Succeeds),
            ("run --cidfile test.cid busybox:test true", Fails(125, &["test.cid"])),
            ("run -l my-label --label com.example.foo=bar --name labelled busybox:test true", Succeeds),
            ("inspect -f '{{json .State.ExitCode}}' labelled", Prints("0")),
            // "docker container ls".
            ("ps --format '{{.Names}}: {{.Command}}'", Prints("test: \"sh -c 'echo hello; …\"")),
            ("ps -a --filter label=com.example.foo=bar --format '{{.Names}}'", Prints("labelled")),
            ("ps -a --filter exited=0 --filter name=cid --format 'table {{.Names}}\\t{{.Image}}'", Shows(&["NAMES", "IMAGE", "cid", "busybox:test"])),
            ("ps --filter status=paused -q", Prints("")),
            ("ps -a --filter ancestor=busybox:test --filter since=cid --format '{{.Names}}'", Prints("labelled")),
            // "docker container logs", "start", "stop", "rename", "wait", "kill", "rm".
            ("logs test", Prints("hello")),
            ("logs -n 0 test", Prints("")),
            ("stop -t 0 test", Prints("test")),
            ("ps -a --filter name=test --format '{{.State}}'", Prints("exited")),
            ("start test", Prints("test")),
            ("rename test my_new_container", Succeeds),
            ("kill --signal=SIGHUP my_new_container", Prints("my_new_container")),
            ("rm my_new_container", Fails(1, &["running"])),
            ("kill my_new_container", Prints("my_new_container")),
            ("wait my_new_container", Prints("137")),
            ("kill my_new_container", Fails(1, &["is not running"])),
            ("rm my_new_container cid labelled", Prints("my_new_container\ncid\nlabelled")),
            ("rm no_such_container", Fails(1, &["no_such_container"])),
            // "docker container create".
            ("create --name created busybox:test echo 'hello world'", Succeeds),
            ("inspect -f '{{.State.Status}}' created", Prints("created")),
            ("start --attach created", Prints("hello world")),
            ("rm created", Prints("created")),
        ])?;
        std::fs::remove_file(scratch()?.join("test.cid"))?;
    }

    fn a_container_that_goes_on(rvm) {
        let cp_in = "cp example.txt mycontainer:/tmp/";
        std::fs::write(scratch()?.join("example.txt"), "example\n")?;
        session(rvm, &[
            // "docker container exec".
            ("run --name mycontainer -d -i -t busybox:test /bin/sh", Succeeds),
            ("exec -d mycontainer touch /tmp/execWorks", Succeeds),
            ("exec mycontainer ls /tmp/execWorks", Becomes("/tmp/execWorks")),
            ("exec -e VAR_A=1 -e VAR_B=2 mycontainer sh -c 'echo $VAR_A $VAR_B'", Prints("1 2")),
            ("exec mycontainer pwd", Prints("/")),
            ("exec -w /root mycontainer pwd", Prints("/root")),
            ("exec -t mycontainer tty", Shows(&["/dev/pts/"])),
            ("exec -it mycontainer sh", Fails(1, &["not a TTY"])),
            ("exec mycontainer sh -c 'echo a && echo b'", Prints("a\nb")),
            ("exec mycontainer no-such-command", Fails(127, &["no-such-command"])),
            ("pause mycontainer", Prints("mycontainer")),
            ("ps --filter status=paused --format '{{.Names}}'", Prints("mycontainer")),
            ("exec mycontainer sh", Fails(1, &["mycontainer is paused, unpause the container before exec"])),
            ("pause mycontainer", Fails(1, &["already paused"])),
            ("unpause mycontainer", Prints("mycontainer")),
            ("unpause mycontainer", Fails(1, &["is not paused"])),
            // "docker container top", "stats", "update", "cp", "diff", "commit", "export".
            ("top mycontainer", Shows(&["PID", "CMD", "/bin/sh"])),
            ("stats --no-stream --format '{{.Name}}: {{.PIDs}}' mycontainer", Prints("mycontainer: 1")),
            ("update --pids-limit 100 mycontainer", Prints("mycontainer")),
            ("inspect -f '{{.HostConfig.PidsLimit}} {{.Config.Tty}} {{.Config.OpenStdin}}' mycontainer", Prints("100 true true")),
            (cp_in, Succeeds),
            ("exec mycontainer cat /tmp/example.txt", Prints("example")),
            ("cp mycontainer:/tmp/example.txt copy.txt", Succeeds),
            ("diff mycontainer", Shows(&["C /tmp", "A /tmp/execWorks", "A /tmp/example.txt"])),
            ("commit -m 'a message' --change 'CMD [\"cat\", \"/tmp/example.txt\"]' mycontainer svendowideideit/testimage:version3", Shows(&["sha256:"])),
            ("run --rm svendowideideit/testimage:version3", Prints("example")),
            ("history --format '{{.Comment}}' svendowideideit/testimage:version3", Shows(&["a message"])),
            ("tag svendowideideit/testimage:version3 testimage:latest", Succeeds),
            ("rmi testimage svendowideideit/testimage:version3", Shows(&["Untagged: testimage:latest", "Deleted: sha256:"])),
            ("export --output latest.tar mycontainer", Succeeds),
            ("import latest.tar exampleimagelocal:new", Shows(&["sha256:"])),
            ("run --rm exampleimagelocal:new cat /tmp/example.txt", Prints("example")),
            ("image rm exampleimagelocal:new", Shows(&["Deleted: sha256:"])),
            ("rm --force mycontainer", Prints("mycontainer")),
            // "Start containers automatically", and health checks in "Running containers".
            ("run --name always -d --restart=on-failure:2 busybox:test sh -c 'exit 4'", Succeeds),
            ("inspect -f '{{ .RestartCount }} {{.State.Status}}' always", Becomes("2 exited")),
            ("inspect -f '{{.HostConfig.RestartPolicy.Name}}' always", Prints("on-failure")),
            ("run --name=healthy -d --health-cmd='stat /etc/passwd || exit 1' --health-interval=300ms busybox:test sleep 1d", Succeeds),
            ("inspect --format='{{.State.Health.Status}}' healthy", Becomes("healthy")),
            ("exec healthy rm /etc/passwd", Succeeds),
            ("inspect --format='{{.State.Health.Status}}' healthy", Becomes("unhealthy")),
            ("rm -f always healthy", Prints("always\nhealthy")),
        ])?;
        let copied = std::fs::read_to_string(scratch()?.join("copy.txt"))?;
        assert_eq!(copied, "example\n");
        for file in ["example.txt", "copy.txt", "latest.tar"] {
            std::fs::remove_file(scratch()?.join(file))?;
        }
    }
}
