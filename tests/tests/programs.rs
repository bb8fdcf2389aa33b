//! Images of programs as people run them: what rvm shows of each is, entry by entry, what umoci unpacks of it, fsck.erofs
//! accepts every layer, and services serve in both modes.
//!
//! Compiled with the feature `programs` only. The images have some gigabytes: `scripts/test --soak` makes them, and says in
//! RVM_TEST_PROGRAMS where tests/images/add-probe put them.
#![forbid(unsafe_code)]

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rvm_tests::command::{LIMIT, Output, Running, finish, tool};
use rvm_tests::rvm::{Isolation, Rvm, alone};
use rvm_tests::tree::{self, Entry};
use rvm_tests::wait::wait_until;

/// Images there are.
const PROGRAMS: usize = 6;

fn entries(text: &str) -> Result<Vec<Entry>> {
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

/// Where tests/images/add-probe put the images.
fn directory() -> Result<PathBuf> {
    let directory =
        env::var_os("RVM_TEST_PROGRAMS").context("RVM_TEST_PROGRAMS is not set: run scripts/test")?;
    Ok(directory.into())
}

/// An installation with the images, in container mode.
fn programs() -> Result<&'static Rvm> {
    static LOADED: OnceLock<Rvm> = OnceLock::new();
    if let Some(rvm) = LOADED.get() {
        return Ok(rvm);
    }
    let rvm = Rvm::empty(Isolation::Container, "programs")?;
    let mut load = rvm.command(["load", "-q", "-i"])?;
    load.arg(directory()?.join("packages.layout"));
    finish(load, 15 * LIMIT)?.ok();
    Ok(LOADED.get_or_init(|| rvm))
}

#[test]
fn every_program_s_files_are_those_that_umoci_unpacks() -> Result<()> {
    let _alone = alone();
    let (directory, rvm) = (directory()?, programs()?);
    for layer in fs::read_dir(rvm.root().join("layers/sha256"))? {
        tool("fsck.erofs", &[layer?.path().to_str().context("not text")?])?;
    }
    let mut compared = 0;
    for entry in fs::read_dir(&directory)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "tree") {
            continue;
        }
        let name = path
            .file_stem()
            .and_then(|name| name.to_str())
            .context("no name")?;
        let image = format!("packages.layout:{name}");
        // What is left out was left out on the other side, too: there the runtime mounts something of its own.
        let arguments = ["--rm", &image, "/probe", "tree", "/", "proc", "sys", "dev"];
        let inside = finish(rvm.run_command(arguments)?, 5 * LIMIT)?.ok().text();
        let (unpacked, inside) = (entries(&fs::read_to_string(&path)?)?, entries(&inside)?);
        ensure!(unpacked.len() > 5000, "{name} has {} entries", unpacked.len());
        let differences = tree::differences(&unpacked, &inside);
        ensure!(
            differences.is_empty(),
            "{name}; left: umoci's tree, right: as seen inside\n{differences}"
        );
        compared += 1;
    }
    ensure!(compared == PROGRAMS, "{compared} images were compared");
    Ok(())
}

/// Runs a test body once in each mode.
fn in_both_modes(body: impl Fn(&Rvm) -> Result<()>) -> Result<()> {
    let _alone = alone();
    let rvm = programs()?;
    for rvm in [rvm, &rvm.in_the_other_mode()] {
        let outcome = body(rvm).with_context(|| rvm.isolation().name());
        if outcome.is_err() {
            // Do not let one failure become the next test's.
            let _ = rvm.remove_containers();
        }
        outcome?;
        assert_eq!(rvm.containers()?, [""; 0]);
    }
    Ok(())
}

/// Starts a service and waits until `probe`, run in it, says `answer`.
fn serve(rvm: &Rvm, name: &str, command: &[&str], probe: &[&str], answer: &str) -> Result<()> {
    let image = format!("packages.layout:{name}");
    rvm.detach(
        name,
        &[&["--restart", "unless-stopped", image.as_str()][..], command].concat(),
    )?;
    answers(rvm, name, probe, answer)
}

fn answers(rvm: &Rvm, name: &str, probe: &[&str], answer: &str) -> Result<()> {
    let mut last = None;
    wait_until(name, 2 * LIMIT, || {
        let output = exec(rvm, name, probe)?;
        let fits = output.text().contains(answer);
        last = Some(output);
        Ok(fits)
    })
    .with_context(|| {
        let said = last.map(|output| output.describe()).unwrap_or_default();
        let log = rvm.call(["logs", "--tail", "20", name]).map(|log| log.describe());
        format!("not {answer:?}: {said}\n{}", log.unwrap_or_default())
    })
}

fn exec(rvm: &Rvm, name: &str, command: &[&str]) -> Result<Output> {
    finish(rvm.command([&["exec", name][..], command].concat())?, 2 * LIMIT)
}

/// Runs a query, has everything stand still in the middle of it, and gives what it comes to.
fn interrupted(rvm: &Rvm, name: &str, query: &[&str]) -> Result<Output> {
    let mut command = rvm.command([&["exec", name][..], query].concat())?;
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut query = Running::start(command)?;
    thread::sleep(Duration::from_secs(1));
    rvm.call(["pause", name])?.ok();
    thread::sleep(Duration::from_secs(3));
    ensure!(query.is_running()?, "the query was over before the pause");
    rvm.call(["unpause", name])?.ok();
    query.finish(2 * LIMIT)
}

/// Stops a service, which is to end by itself, and starts it again.
fn restarted(rvm: &Rvm, name: &str, probe: &[&str], answer: &str) -> Result<()> {
    rvm.call(["stop", "-t", "60", name])?.ok();
    let code = rvm
        .call([
            "inspect",
            "--format",
            "{{.State.Status}} {{.State.ExitCode}}",
            name,
        ])?
        .ok()
        .text();
    assert_eq!(code, "exited 0", "{name}");
    rvm.call(["start", name])?.ok();
    answers(rvm, name, probe, answer)?;
    // And as a crash ends it.
    rvm.call(["kill", name])?.ok();
    rvm.call(["start", name])?.ok();
    answers(rvm, name, probe, answer)
}

#[test]
fn redis_serves() -> Result<()> {
    in_both_modes(|rvm| {
        let server = [
            "redis-server",
            "--dir",
            "/var/lib/redis",
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
        ];
        serve(rvm, "redis", &server, &["redis-cli", "ping"], "PONG")?;
        exec(rvm, "redis", &["redis-cli", "set", "greeting", "hello"])?.ok();
        let counted = interrupted(
            rvm,
            "redis",
            &["redis-cli", "-r", "500", "-i", "0.01", "incr", "counter"],
        )?
        .ok();
        assert_eq!(counted.text().lines().last(), Some("500"));
        restarted(rvm, "redis", &["redis-cli", "get", "greeting"], "hello")?;
        assert_eq!(
            exec(rvm, "redis", &["redis-cli", "get", "counter"])?.ok().text(),
            "500"
        );
        rvm.call(["rm", "-f", "redis"])?.ok();
        Ok(())
    })
}

#[test]
fn nginx_serves() -> Result<()> {
    in_both_modes(|rvm| {
        let get = "exec 3<>/dev/tcp/127.0.0.1/80; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
        let probe = ["bash", "-c", get];
        serve(
            rvm,
            "nginx",
            &["nginx", "-g", "daemon off;"],
            &probe,
            "Welcome to nginx",
        )?;
        exec(
            rvm,
            "nginx",
            &["sh", "-c", "echo changed >/var/www/html/index.html"],
        )?
        .ok();
        answers(rvm, "nginx", &probe, "changed")?;
        restarted(rvm, "nginx", &probe, "changed")?;
        rvm.call(["rm", "-f", "nginx"])?.ok();
        Ok(())
    })
}

#[test]
fn postgres_serves() -> Result<()> {
    in_both_modes(|rvm| {
        let server = "exec /usr/lib/postgresql/*/bin/postgres -D /var/lib/postgresql/*/main \
                      -c config_file=$(echo /etc/postgresql/*/main/postgresql.conf)";
        let psql = |query| ["psql", "-Atc", query];
        let flags = [
            "-u",
            "postgres",
            "--stop-signal",
            "INT",
            "packages.layout:postgresql",
        ];
        rvm.detach("postgresql", &[&flags[..], &["sh", "-c", server]].concat())?;
        answers(rvm, "postgresql", &psql("select 'is', 'up'"), "is|up")?;
        let table = "create table numbers as select generate_series(1, 10000) as number";
        exec(rvm, "postgresql", &psql(table))?.ok();
        let slow = "select sum(number) from numbers, pg_sleep(5)";
        assert_eq!(
            interrupted(rvm, "postgresql", &psql(slow))?.ok().text(),
            "50005000"
        );
        restarted(
            rvm,
            "postgresql",
            &psql("select sum(number) from numbers"),
            "50005000",
        )?;
        rvm.call(["rm", "-f", "postgresql"])?.ok();
        Ok(())
    })
}
