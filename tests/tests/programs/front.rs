//! A web server in a machine in front of an application in a machine and in a container, under load.

use std::env;
use std::fs;
use std::process::{Child, Command};

use anyhow::{Context as _, Result, ensure};
use rvm_tests::command::{LIMIT, Output, finish, tool};
use rvm_tests::rvm::{Isolation, Rvm, alone, scratch};
use rvm_tests::wait::wait_until;

use crate::{answers, background, clear, exec, programs};

/// Requests that are answered without an error.
fn wanted() -> Result<u64> {
    let wanted = env::var("RVM_TEST_REQUESTS");
    wanted.map_or(Ok(100_000), |wanted| wanted.parse().context("RVM_TEST_REQUESTS"))
}

/// Answers each request with its container's name; /count says how many there were.
const APPLICATION: &str = "
    const http = require('http'), name = require('os').hostname();
    let count = 0;
    const server = http.createServer((request, response) => {
      if (request.url != '/count') count++;
      response.end(request.url == '/count' ? String(count) : name);
    });
    server.keepAliveTimeout = 0;
    server.listen(8000);";

/// Everything that goes wrong between it and the applications reaches the client.
const CONFIGURATION: &str = "
    upstream applications { server app1:8000; server app2:8000; keepalive 16; }
    server {
      listen 8080;
      access_log off;
      location / {
        proxy_pass http://applications;
        proxy_next_upstream off;
        proxy_http_version 1.1;
        proxy_set_header Connection '';
      }
    }";

/// A machine beyond this one.
struct Outside {
    process: Child,
}

impl Outside {
    fn new() -> Result<Self> {
        let process = Command::new("unshare").args(["-n", "sleep", "100000"]).spawn()?;
        let outside = Self { process };
        let id = outside.process.id().to_string();
        let own = fs::read_link("/proc/self/ns/net")?;
        wait_until("it is elsewhere", LIMIT, || {
            Ok(fs::read_link(format!("/proc/{id}/ns/net"))? != own)
        })?;
        let peer = ["type", "veth", "peer", "name", "inner1", "netns", &id];
        tool("ip", &[&["link", "add", "outer1"][..], &peer].concat())?;
        tool("ip", &["addr", "add", "198.51.100.1/24", "dev", "outer1"])?;
        tool("ip", &["link", "set", "outer1", "up"])?;
        let inside = ["-t", &id, "-n", "ip"];
        let address = ["addr", "add", "198.51.100.2/24", "dev", "inner1"];
        tool("nsenter", &[&inside[..], &address].concat())?;
        tool(
            "nsenter",
            &[&inside[..], &["link", "set", "inner1", "up"]].concat(),
        )?;
        Ok(outside)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.process.id().to_string(), "-n", program]);
        command
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = tool("ip", &["link", "del", "outer1"]);
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Requests that a run of wrk has seen answered, all of them well.
fn answered(output: &Output) -> Result<u64> {
    ensure!(output.code == 0, "{}", output.describe());
    let text = output.text();
    for fault in ["Socket errors", "Non-2xx"] {
        ensure!(!text.contains(fault), "{}", output.describe());
    }
    let line = text
        .lines()
        .find(|line| line.contains(" requests in "))
        .context(text.clone())?;
    Ok(line.split_whitespace().next().context("no number")?.parse()?)
}

/// Loads a port for a while; how many requests were answered.
fn load(url: &str, mut wrk: Command) -> Result<u64> {
    wrk.args(["-t", "1", "-c", "8", "-d", "20", "--timeout", "60", url]);
    let count = answered(&finish(wrk, 2 * LIMIT)?)?;
    ensure!(count > 0, "{url}: nothing in 20 seconds");
    Ok(count)
}

fn body(machine: &Rvm, container: &Rvm) -> Result<()> {
    machine.call(["network", "create", "front"])?.ok();
    for (rvm, name) in [(machine, "app1"), (container, "app2")] {
        let flags = ["--network", "front", "-h", name, "packages.layout:nodejs"];
        background(rvm, name, &[&flags[..], &["node", "-e", APPLICATION]].concat())?;
        answers(rvm, name, &["node", "-e", ASK], "0")?;
    }
    let file = scratch()?.join("front.conf");
    fs::write(&file, CONFIGURATION)?;
    let mount = format!("{}:/etc/nginx/conf.d/front.conf:ro", file.display());
    let flags = ["--network", "front", "-p", "8080:8080", "-v", &mount];
    let server = ["packages.layout:nginx", "nginx", "-g", "daemon off;"];
    background(machine, "web", &[&flags[..], &server].concat())?;
    wait_until("it serves", LIMIT, || {
        let said = tool("curl", &["-s", "http://127.0.0.1:8080/"]).unwrap_or_default();
        Ok(said.starts_with("app"))
    })?;
    let (outside, mut sent) = (Outside::new()?, 0);
    while sent < wanted()? {
        // By the supervisor, and by the packet filter.
        sent += load("http://127.0.0.1:8080/", Command::new("wrk"))?;
        sent += load("http://198.51.100.1:8080/", outside.command("wrk"))?;
        println!("{sent} requests");
    }

    let mut counted = 0;
    for name in ["app1", "app2"] {
        let count = exec(machine, name, &["node", "-e", ASK])?
            .ok()
            .text()
            .parse::<u64>()?;
        ensure!(count > sent / 3, "{name} had {count} of {sent} requests");
        counted += count;
    }
    ensure!(counted >= sent, "the applications answered {counted} of {sent}");
    let log = exec(machine, "web", &["cat", "/var/log/nginx/error.log"])?
        .ok()
        .text();
    assert_eq!(log, "");
    Ok(())
}

/// Asks an application, in its own container, for its count.
const ASK: &str =
    "require('http').get('http://127.0.0.1:8000/count', response => response.pipe(process.stdout))";

#[test]
fn a_web_server_in_front_of_a_machine_and_a_container() -> Result<()> {
    let _alone = alone();
    let rvm = programs()?.connected();
    clear(&rvm)?;
    ensure!(
        rvm.isolation() == Isolation::Container,
        "the images are loaded in container mode"
    );
    let outcome = body(&rvm.in_the_other_mode(), &rvm);
    let cleared = clear(&rvm);
    outcome?;
    cleared
}
