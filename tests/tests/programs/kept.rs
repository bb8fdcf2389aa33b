//! What a database on a volume has acknowledged is there after kill -9 of its machine, its process or its supervisor.

use std::env;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rvm_tests::command::{LIMIT, Running};
use rvm_tests::processes;
use rvm_tests::rvm::Rvm;
use rvm_tests::wait::{let_pass, wait_until};

use crate::{answers, background, exec, in_both_modes};

/// Kills of each kind of database in each mode.
fn rounds() -> Result<usize> {
    env::var("RVM_TEST_ROUNDS").map_or(Ok(4), |rounds| rounds.parse().context("RVM_TEST_ROUNDS"))
}

/// Acknowledgements that a round has at least.
const ENOUGH: usize = 20;

/// A command in a container in the background, its output collected.
fn beside(rvm: &Rvm, name: &str, command: &[&str]) -> Result<Running> {
    let mut command = rvm.command([&["exec", name][..], command].concat())?;
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Running::start(command)
}

/// Numbers that a writer has said to be written. The last line may be half a one.
fn acknowledged(writer: &Running) -> Vec<u64> {
    let said = writer.stdout_so_far();
    let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Waits until a writer has had enough acknowledged and some time more, which is another in each round, kills the database by one
/// of its processes, and gives what was acknowledged until then.
fn killed(rvm: &Rvm, name: &str, writer: Running, round: usize) -> Result<Vec<u64>> {
    wait_until("enough is acknowledged", 2 * LIMIT, || {
        Ok(acknowledged(&writer).len() >= ENOUGH)
    })
    .with_context(|| writer.stderr_so_far())?;
    let_pass(Duration::from_millis(u64::try_from(round * 370 % 1000)?));
    // The machine, or the database itself; and what looks after either.
    let victim = ["{{.State.Pid}}", "{{.State.SupervisorPid}}"][round % 2];
    let pid = rvm.call(["inspect", "--format", victim, name])?.ok().text();
    processes::kill(pid.parse()?)?;
    wait_until("it is seen to have ended", LIMIT, || {
        let status = rvm.call(["inspect", "--format", "{{.State.Status}}", name])?;
        Ok(status.text() == "exited")
    })?;
    let written = writer.finish(LIMIT)?;
    ensure!(
        written.code != 0,
        "it ended before the kill\n{}",
        written.describe()
    );
    let numbers = written.text();
    Ok(numbers.lines().filter_map(|line| line.parse().ok()).collect())
}

#[test]
fn redis_keeps_what_it_has_acknowledged() -> Result<()> {
    in_both_modes(|rvm| {
        let image = "packages.layout:redis";
        let mut command = vec!["-v", "redis:/var/lib/redis", image, "redis-server"];
        command.extend(["--dir", "/var/lib/redis", "--appendonly", "yes"]);
        command.extend(["--appendfsync", "always", "--save", ""]);
        background(rvm, "redis", &command)?;
        for round in 0..rounds()? {
            answers(rvm, "redis", &["redis-cli", "ping"], "PONG")?;
            let first = round * 1_000_000 + 1;
            let last = first + 900_000;
            // Each number that INCR answers stands for the key that was set before it.
            let write = format!(
                "redis-cli set counter {} >/dev/null; \
                 seq {first} {last} | sed 's/.*/set key:& value&\\nincr counter/' | redis-cli",
                first - 1
            );
            let writer = beside(rvm, "redis", &["sh", "-c", &write])?;
            let numbers = killed(rvm, "redis", writer, round)?;
            let newest = numbers.last().context("nothing was acknowledged")?.to_string();
            rvm.call(["start", "redis"])?.ok();
            answers(rvm, "redis", &["redis-cli", "ping"], "PONG")?;
            let count = exec(rvm, "redis", &["redis-cli", "get", "counter"])?
                .ok()
                .text()
                .parse::<u64>()?;
            ensure!(
                count >= newest.parse()?,
                "round {round}: {newest} acknowledged, {count} kept"
            );
            let missing = "local missing = 0; for number = ARGV[1], ARGV[2] do \
                if redis.call('get', string.format('key:%d', number)) ~= string.format('value%d', number) \
                then missing = missing + 1 end end return missing";
            let first = first.to_string();
            let missing = exec(
                rvm,
                "redis",
                &["redis-cli", "eval", missing, "0", &first, &newest],
            )?
            .ok();
            assert_eq!(missing.text(), "0", "round {round}: {first} to {newest}");
        }
        rvm.call(["rm", "-f", "redis"])?.ok();
        rvm.call(["volume", "rm", "redis"])?.ok();
        Ok(())
    })
}

/// What pgbench's transactions leave equal, however many there were, and how many there were.
const BALANCES: &str = "select (select sum(tbalance) from pgbench_tellers) = sum(delta) \
    and (select sum(bbalance) from pgbench_branches) = sum(delta) \
    and (select sum(abalance) from pgbench_accounts) = sum(delta), count(*) from pgbench_history";

#[test]
fn postgres_keeps_what_it_has_acknowledged() -> Result<()> {
    in_both_modes(|rvm| {
        let server = "exec /usr/lib/postgresql/*/bin/postgres -D /var/lib/postgresql/*/main \
                      -c config_file=$(echo /etc/postgresql/*/main/postgresql.conf)";
        let volume = "postgres:/var/lib/postgresql";
        let image = "packages.layout:postgresql";
        background(
            rvm,
            "postgres",
            &["-u", "postgres", "-v", volume, image, "sh", "-c", server],
        )?;
        let psql = |query: &str| exec(rvm, "postgres", &["psql", "-Atc", query]);
        let is_up = || answers(rvm, "postgres", &["psql", "-Atc", "select 'is', 'up'"], "is|up");
        is_up()?;
        exec(rvm, "postgres", &["pgbench", "-i", "-q"])?.ok();
        psql("create table acknowledged (number bigint primary key)")?.ok();
        let mut transactions = 0;
        for round in 0..rounds()? {
            let load = beside(rvm, "postgres", &["pgbench", "-n", "-c", "4", "-T", "3600"])?;
            wait_until("pgbench has had something acknowledged", 2 * LIMIT, || {
                let count = psql("select count(*) from pgbench_history")?.ok().text();
                Ok(count.parse::<u64>()? > transactions)
            })
            .with_context(|| load.stderr_so_far())?;
            let first = round * 1_000_000 + 1;
            let insert = "insert into acknowledged values (&) returning number;";
            let write = format!(
                "seq {first} {} | sed 's/.*/{insert}/' | psql -At",
                first + 900_000
            );
            let writer = beside(rvm, "postgres", &["sh", "-c", &write])?;
            let numbers = killed(rvm, "postgres", writer, round)?;
            load.finish(LIMIT)?;
            rvm.call(["start", "postgres"])?.ok();
            is_up()?;
            let query = format!("select number from acknowledged where number >= {first}");
            let kept = psql(&query)?.ok().text();
            let kept: Vec<u64> = kept.lines().map(str::parse).collect::<Result<_, _>>()?;
            let lost: Vec<_> = numbers.iter().filter(|number| !kept.contains(number)).collect();
            ensure!(
                lost.is_empty(),
                "round {round}: of {} acknowledged are lost: {lost:?}",
                numbers.len()
            );
            let balances = psql(BALANCES)?.ok().text();
            let (balanced, count) = balances.split_once('|').context("no balances")?;
            assert_eq!(balanced, "t", "round {round}");
            let count = count.parse::<u64>()?;
            ensure!(count > transactions, "round {round}: pgbench did nothing");
            transactions = count;
        }
        rvm.call(["rm", "-f", "postgres"])?.ok();
        rvm.call(["volume", "rm", "postgres"])?.ok();
        Ok(())
    })
}
