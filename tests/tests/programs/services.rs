//! Services that stand still, stop, are killed and start again.

use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use rvm_tests::command::{LIMIT, Output, Running};
use rvm_tests::rvm::Rvm;

use crate::{answers, exec, in_both_modes};

/// Starts a service and waits until `probe`, run in it, says `answer`.
fn serve(rvm: &Rvm, name: &str, command: &[&str], probe: &[&str], answer: &str) -> Result<()> {
    let image = format!("packages.layout:{name}");
    rvm.detach(
        name,
        &[&["--restart", "unless-stopped", image.as_str()][..], command].concat(),
    )?;
    answers(rvm, name, probe, answer)
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
