//! Pushing to a real registry, and logging in to one.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use rvm_tests::command::{LIMIT, Output, Running, finish, tool};
use rvm_tests::images::{LAYERS, layout};
use rvm_tests::registry::{Gate, PASSWORD, Protection, Registry, USER};
use rvm_tests::rvm::{Isolation, Rvm, alone, scratch};
use rvm_tests::wait::wait_until;

const OPEN: Protection = Protection {
    tls: false,
    password: false,
    client_certificate: false,
};

/// What goes over the wire besides blobs.
const SLACK: u64 = 24 << 10;

fn start(protection: Protection) -> Result<Registry> {
    Registry::start(&scratch()?.join("registry"), protection)
}

/// Loads the image of four layers under a name.
fn load_as(rvm: &Rvm, name: &str) -> Result<()> {
    let archive = scratch()?.join("named.tar");
    let _ = fs::remove_file(&archive);
    let source = format!("oci:{}:latest", layout(LAYERS)?.display());
    tool(
        "skopeo",
        &[
            "copy",
            "-q",
            &source,
            &format!("oci-archive:{}:{name}", archive.display()),
        ],
    )?;
    let archive = archive.to_str().context("not text")?;
    rvm.call(["load", "-i", archive])?.ok();
    Ok(())
}

/// Digest and bytes of every blob of the image.
fn blobs() -> Result<Vec<(String, u64)>> {
    let mut blobs = Vec::new();
    for entry in fs::read_dir(layout(LAYERS)?.join("blobs/sha256"))? {
        let entry = entry?;
        let name = entry.file_name().into_string().ok().context("not text")?;
        blobs.push((format!("sha256:{name}"), entry.metadata()?.len()));
    }
    Ok(blobs)
}

#[test]
fn what_was_loaded_is_pushed_and_pulled_back() -> Result<()> {
    let _alone = alone();
    let rvm = Rvm::empty(Isolation::Container, "pushing")?;
    let registry = start(OPEN)?;
    let name = format!("{}/team/app:1", registry.authority());
    load_as(&rvm, &name)?;
    let first = rvm.call(["push", &name])?.ok();
    let (digest, size) = registry.manifest("team/app", "1")?;
    assert_eq!(first.text(), format!("1: digest: {digest} size: {size}"));
    assert_eq!(
        first.errors().matches("Pushed").count(),
        4,
        "{}",
        first.describe()
    );
    // Byte for byte the image that was made, and fit for others.
    let made = fs::read_to_string(layout(LAYERS)?.join("index.json"))?;
    assert!(made.contains(&digest), "{digest} is not in {made}");
    let source = format!("docker://{name}");
    let seen = tool("skopeo", &["inspect", "--tls-verify=false", &source])?;
    assert!(seen.contains(&digest), "{seen}");
    let again = rvm.call(["push", &name])?.ok();
    assert_eq!(
        again.errors().matches("Layer already exists").count(),
        4,
        "{}",
        again.describe()
    );
    let quiet = rvm.call(["push", "-q", &name])?.ok();
    assert_eq!((quiet.text(), quiet.errors()), (name.clone(), String::new()));

    let fresh = Rvm::empty(Isolation::Container, "pushed")?;
    let pulled = fresh.call(["pull", &name])?.ok();
    assert!(pulled.text().contains(&digest), "{}", pulled.describe());
    let id = |rvm: &Rvm| -> Result<String> { Ok(rvm.call(["images", "-q", "--no-trunc"])?.ok().text()) };
    assert_eq!(id(&rvm)?, id(&fresh)?);
    Ok(())
}

#[test]
fn tags_and_repositories_share_what_is_there() -> Result<()> {
    let _alone = alone();
    let rvm = Rvm::empty(Isolation::Container, "sharing")?;
    let registry = start(OPEN)?;
    let gate = Gate::before_uploads(&registry, 0)?;
    gate.open();
    let name = |rest: &str| format!("{}/{rest}", gate.authority());
    for rest in ["app:1", "app:2", "other:1"] {
        load_as(&rvm, &name(rest))?;
    }
    let all = rvm.call(["push", "-a", &name("app")])?.ok();
    let lines = all.text();
    assert!(
        lines.contains("1: digest: ") && lines.contains("2: digest: "),
        "{lines}"
    );
    assert_eq!(registry.manifest("app", "1")?, registry.manifest("app", "2")?);
    let before = gate.passed();
    let mounted = rvm.call(["push", &name("other:1")])?.ok();
    assert_eq!(
        mounted.errors().matches("Mounted").count(),
        4,
        "{}",
        mounted.describe()
    );
    let sent = gate.passed() - before;
    ensure!(sent < SLACK, "{sent} bytes for what the registry had");
    registry.manifest("other", "1")?;
    rvm.call(["push", "-a", &name("app:1")])?
        .failed(1, &["repository"]);
    rvm.call(["push", &name("app:3")])?
        .failed(1, &["not in the local store"]);
    Ok(())
}

/// Starts a push through a gate and waits until it has come to a stop there.
fn stopped_push(rvm: &Rvm, gate: &Gate, name: &str, bytes: u64) -> Result<Running> {
    let mut command = rvm.command(["push", name])?;
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let push = Running::start(command)?;
    wait_until("a part has been sent", LIMIT, || Ok(gate.passed() >= bytes))?;
    Ok(push)
}

const LET_THROUGH: u64 = 700 << 10;
const SENT: u64 = 600 << 10;

#[test]
fn a_killed_push_is_made_good_by_the_next() -> Result<()> {
    let _alone = alone();
    let rvm = Rvm::empty(Isolation::Container, "killed-push")?;
    let registry = start(OPEN)?;
    // The largest layer is on its way when it stops, and the others are there.
    let all: u64 = blobs()?.iter().map(|(_, bytes)| bytes).sum();
    let stop = all - 4 * SLACK;
    let (first, second) = (
        Gate::before_uploads(&registry, stop)?,
        Gate::before_uploads(&registry, 0)?,
    );
    second.open();
    let names = [&first, &second].map(|gate| format!("{}/app:1", gate.authority()));
    for name in &names {
        load_as(&rvm, name)?;
    }
    let push = stopped_push(&rvm, &first, &names[0], stop - SLACK)?;
    // What has passed may not be in the registry's store yet.
    let digests: Vec<_> = blobs()?.into_iter().map(|(digest, _)| digest).collect();
    wait_until("the registry has one of the blobs", LIMIT, || {
        Ok(digests.iter().any(|digest| registry.has("app", digest)))
    })?;
    push.signal(Signal::KILL)?;
    assert_eq!(push.finish(LIMIT)?.code, 128 + 9);
    ensure!(
        registry.manifest("app", "1").is_err(),
        "an image is there that is not whole"
    );
    let missing: u64 = blobs()?
        .iter()
        .filter(|(digest, _)| !registry.has("app", digest))
        .map(|(_, bytes)| bytes)
        .sum();
    rvm.call(["push", &names[1]])?.ok();
    let sent = second.passed();
    ensure!(
        sent <= missing + SLACK,
        "{sent} bytes, and {missing} were missing"
    );
    registry.manifest("app", "1")?;
    Ok(())
}

#[test]
fn a_push_survives_a_connection_that_broke() -> Result<()> {
    let _alone = alone();
    let rvm = Rvm::empty(Isolation::Container, "broken-push")?;
    let registry = start(OPEN)?;
    let gate = Gate::before_uploads(&registry, LET_THROUGH)?;
    let name = format!("{}/app:1", gate.authority());
    load_as(&rvm, &name)?;
    let push = stopped_push(&rvm, &gate, &name, SENT)?;
    gate.cut();
    let output = push.finish(LIMIT)?.ok();
    assert!(output.errors().contains("Retrying"), "{}", output.describe());
    registry.manifest("app", "1")?;
    Ok(())
}

/// `rvm ARGUMENTS` with Docker's configuration in `configuration`, where programs are found too.
fn call_as(rvm: &Rvm, configuration: &Path, arguments: &[&str], input: &str) -> Result<Output> {
    let path = format!("{}:{}", configuration.display(), std::env::var("PATH")?);
    let mut command = rvm.command(arguments)?;
    command.env("DOCKER_CONFIG", configuration).env("PATH", path);
    let file = scratch()?.join("input");
    fs::write(&file, input)?;
    command.stdin(fs::File::open(&file)?);
    finish(command, LIMIT)
}

/// An empty directory for Docker's configuration.
fn configuration() -> Result<PathBuf> {
    let directory = scratch()?.join("docker-login");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

#[test]
fn a_private_registry_takes_from_who_is_logged_in() -> Result<()> {
    let _alone = alone();
    let rvm = Rvm::empty(Isolation::Container, "login")?;
    let registry = start(Protection {
        tls: true,
        password: true,
        ..OPEN
    })?;
    let (host, docker) = (registry.authority(), configuration()?);
    let name = format!("{host}/app:1");
    load_as(&rvm, &name)?;
    let call = |arguments: &[&str], input: &str| call_as(&rvm, &docker, arguments, input);
    let push = ["push", "--tls-verify=false", &name];
    let login = [
        "login",
        "--tls-verify=false",
        "-u",
        USER,
        "--password-stdin",
        &host,
    ];
    call(&push, "")?.failed(1, &["does not give access", &format!("rvm login {host}")]);
    call(&["login", "-u", USER, "--password-stdin", &host], PASSWORD)?.failed(1, &["certificate", "certs.d"]);
    call(&login, "wrong")?.failed(1, &["does not accept the credentials"]);
    call(&["login", &host], "")?.failed(1, &["no terminal", "--password-stdin"]);
    let file = docker.join("config.json");
    ensure!(!file.exists(), "something was kept of a login that failed");

    fs::write(&file, r#"{"detachKeys":"ctrl-q"}"#)?;
    let output = call(&login, &format!("{PASSWORD}\n"))?.ok();
    assert_eq!(output.text(), "Login Succeeded");
    assert!(output.errors().contains("unencrypted"), "{}", output.describe());
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    assert!(fs::read_to_string(&file)?.contains("ctrl-q"));
    call(&push, "")?.ok();
    let pull = ["pull", "--tls-verify=false", &name];
    call(&pull, "")?.ok();
    // Others understand what is kept.
    let auth = file.to_str().context("not text")?;
    tool(
        "skopeo",
        &[
            "inspect",
            "--authfile",
            auth,
            "--tls-verify=false",
            &format!("docker://{name}"),
        ],
    )?;

    let output = call(&["logout", &host], "")?.ok();
    assert_eq!(output.text(), format!("Removing login credentials for {host}"));
    assert_eq!(
        call(&["logout", &host], "")?.ok().text(),
        format!("Not logged in to {host}")
    );
    assert!(fs::read_to_string(&file)?.contains("ctrl-q"));
    call(&pull, "")?.failed(1, &["does not give access"]);
    a_helper_keeps_it(&rvm, &docker, (&login, &pull, &host))
}

/// A program that keeps what it gets in a file, as Docker's helpers do.
fn a_helper_keeps_it(rvm: &Rvm, docker: &Path, (login, pull, host): (&[&str], &[&str], &str)) -> Result<()> {
    let (helper, kept) = (docker.join("docker-credential-test"), docker.join("kept"));
    let script = format!(
        "#!/bin/sh\nkept={}\ncase $1 in\n  store) cat >$kept ;;\n  erase) rm $kept ;;\n  get) cat >/dev/null; \
         cat $kept 2>/dev/null || {{ echo credentials not found in native keychain; exit 1; }} ;;\nesac\n",
        kept.display()
    );
    fs::write(&helper, script)?;
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755))?;
    let file = docker.join("config.json");
    fs::write(&file, r#"{"credsStore":"test"}"#)?;
    let call = |arguments: &[&str], input: &str| call_as(rvm, docker, arguments, input);
    let output = call(login, PASSWORD)?.ok();
    assert!(!output.errors().contains("unencrypted"), "{}", output.describe());
    ensure!(kept.exists(), "the helper was not told");
    assert!(!fs::read_to_string(&file)?.contains("\"auth\""));
    call(pull, "")?.ok();
    call(&["logout", host], "")?.ok();
    ensure!(!kept.exists(), "the helper was not told");
    call(pull, "")?.failed(1, &["does not give access"]);
    Ok(())
}

#[test]
fn a_password_is_typed_unseen() -> Result<()> {
    let _alone = alone();
    let rvm = Rvm::empty(Isolation::Container, "typed")?;
    let registry = start(Protection {
        password: true,
        ..OPEN
    })?;
    let (host, docker) = (registry.authority(), configuration()?);
    let seen = call_as(&rvm, &docker, &["login", "-u", USER, "-p", PASSWORD, &host], "")?.ok();
    assert!(
        seen.errors().contains("WARNING! Using --password"),
        "{}",
        seen.describe()
    );
    call_as(&rvm, &docker, &["logout", &host], "")?.ok();

    let login = rvm.command(["login", &host])?;
    let program = login.get_program().to_str().context("not text")?.to_owned();
    let mut command = Command::new("script");
    command
        .args(["-qec", &format!("{program} login {host}"), "/dev/null"])
        .env("DOCKER_CONFIG", &docker)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut terminal = Running::start(command)?;
    let mut keyboard = terminal.stdin().context("no standard input")?;
    for (question, answer) in [("Username: ", USER), ("Password: ", PASSWORD)] {
        wait_until(question, LIMIT, || {
            Ok(terminal.stdout_so_far().contains(question))
        })?;
        // The question is there a moment before the terminal is silent.
        thread::sleep(Duration::from_millis(500));
        writeln!(keyboard, "{answer}")?;
    }
    wait_until("it has succeeded", LIMIT, || {
        Ok(terminal.stdout_so_far().contains("Login Succeeded"))
    })?;
    drop(keyboard);
    let output = terminal.finish(LIMIT)?.ok();
    assert!(
        output.text().contains(USER),
        "what is no secret is shown\n{}",
        output.describe()
    );
    assert!(!output.text().contains(PASSWORD), "the password was shown");
    Ok(())
}
