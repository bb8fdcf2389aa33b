//! Pulling from a real registry, open and protected, whole and in pieces.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use rvm_tests::both_modes;
use rvm_tests::command::{LIMIT, Output, Running, finish, tool};
use rvm_tests::images::{BUSYBOX, LAYERS, layout};
use rvm_tests::registry::{Gate, PASSWORD, Protection, Registry, USER};
use rvm_tests::rvm::{Isolation, Rvm, alone, scratch};
use rvm_tests::wait::wait_until;

const OPEN: Protection = Protection {
    tls: false,
    password: false,
    client_certificate: false,
};

/// A registry with the image of three layers as `app:1`.
fn with_app(protection: Protection) -> Result<Registry> {
    let registry = Registry::start(&scratch()?.join("registry"), protection)?;
    registry.push(&layout(LAYERS)?, "app:1")?;
    Ok(registry)
}

/// `rvm pull ARGUMENTS` with Docker's configuration in `configuration`.
fn pull_as(rvm: &Rvm, configuration: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = rvm.command(["pull"])?;
    command.args(arguments).env("DOCKER_CONFIG", configuration);
    finish(command, LIMIT)
}

/// Docker's configuration of somebody who is logged in.
fn credentials(authority: &str, user: &str, password: &str) -> Result<PathBuf> {
    let entry = format!(r#"{{"username":"{user}","password":"{password}"}}"#);
    docker_configuration(&format!(r#"{{"auths":{{"{authority}":{entry}}}}}"#))
}

/// A directory with a file called `config.json`.
fn docker_configuration(text: &str) -> Result<PathBuf> {
    let directory = scratch()?.join("docker-configuration");
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("config.json"), text)?;
    Ok(directory)
}

both_modes! {
    fn what_is_missing_is_pulled_and_run(rvm) {
        let registry = with_app(OPEN)?;
        let name = format!("{}/app:1", registry.authority());
        rvm.run(["--pull", "never", &name, "true"])?.failed(125, &["not in the local store", "rvm pull"]);
        let output = rvm.run([name.as_str(), "sh", "-c", "cat /merged/upper"])?.ok();
        assert_eq!(output.text(), "upper", "{}", output.describe());
        assert!(output.errors().contains("Unable to find image"), "{}", output.describe());
        assert!(output.errors().contains("Status: Downloaded newer image"), "{}", output.describe());
        // It is there now, and the registry is not asked again.
        drop(registry);
        let output = rvm.run([name.as_str(), "sh", "-c", "cat /kept/new"])?.ok();
        assert_eq!((output.text().as_str(), output.errors().as_str()), ("new", ""));
        rvm.run(["--pull", "always", &name, "true"])?.failed(125, &["cannot pull"]);
        rvm.run(["--platform", "linux/arm64", &name, "true"])?.failed(125, &["linux/arm64", "cannot run here"]);
        let output = rvm.run(["--platform", "linux/amd64", &name, "sh", "-c", "cat /kept/new"])?.ok();
        assert_eq!(output.text(), "new");
        rvm.call(["rmi", &name])?.ok();
    }
}

#[test]
fn output_is_docker_s() -> Result<()> {
    let _alone = alone();
    let rvm = Rvm::empty(Isolation::Container, "pulled")?;
    let registry = with_app(OPEN)?;
    let name = format!("{}/app:1", registry.authority());
    let (digest, _) = registry.manifest("app", "1")?;
    let first = rvm.call(["pull", &name])?.ok();
    let expected = |status: &str| format!("Digest: {digest}\nStatus: {status} {name}\n{name}");
    assert_eq!(first.text(), expected("Downloaded newer image for"));
    assert_eq!(
        first.errors().matches("Pull complete").count(),
        4,
        "{}",
        first.describe()
    );
    let again = rvm.call(["pull", &name])?.ok();
    assert_eq!(again.text(), expected("Image is up to date for"));
    assert_eq!(
        again.errors().matches("Already exists").count(),
        4,
        "{}",
        again.describe()
    );
    let quiet = rvm.call(["pull", "-q", &name])?.ok();
    assert_eq!(
        quiet.text(),
        rvm.call(["images", "-q", "--no-trunc"])?.ok().text()
    );
    assert_eq!(quiet.errors(), "");
    assert_eq!(rvm.call(["pull", "--progress", "none", &name])?.ok().errors(), "");
    // By digest, and what is not there.
    let by_digest = format!("{}/app@{digest}", registry.authority());
    assert!(rvm.call(["pull", &by_digest])?.ok().text().ends_with(&by_digest));
    let missing = format!("{}/app:2", registry.authority());
    rvm.call(["pull", &missing])?.failed(1, &["has no image"]);
    rvm.call(["pull", "Bad Name"])?
        .failed(1, &["invalid image reference"]);
    // Another program reads what was pulled, and the kernel's checker every layer.
    let source = format!("oci:{}:{name}", rvm.root().join("images").display());
    let target = scratch()?.join("copied");
    let _ = fs::remove_dir_all(&target);
    tool(
        "skopeo",
        &["copy", "-q", &source, &format!("oci:{}:x", target.display())],
    )?;
    for entry in fs::read_dir(rvm.root().join("layers/sha256"))? {
        tool("fsck.erofs", &[entry?.path().to_str().context("not text")?])?;
    }
    Ok(())
}

/// Puts an authority's certificate where rvm looks for it, until dropped.
struct Trusted(PathBuf);

impl Trusted {
    fn new(authority: &str, certificate: &Path) -> Result<Self> {
        let directory = Path::new("/etc/docker/certs.d").join(authority);
        fs::create_dir_all(&directory)?;
        fs::copy(certificate, directory.join("ca.crt"))?;
        Ok(Self(directory))
    }
}

impl Drop for Trusted {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_private_registry_wants_to_know_who_and_proves_itself() -> Result<()> {
    let _alone = alone();
    let rvm = Rvm::empty(Isolation::Container, "private")?;
    let registry = with_app(Protection {
        tls: true,
        password: true,
        ..OPEN
    })?;
    let name = format!("{}/app:1", registry.authority());
    let nobody = docker_configuration("{}")?;
    pull_as(&rvm, &nobody, &[&name])?.failed(1, &["certificate", "certs.d"]);
    pull_as(&rvm, &nobody, &["--tls-verify=false", &name])?.failed(1, &["does not give access", "rvm login"]);
    let trusted = Trusted::new(&registry.authority(), &registry.certificate())?;
    pull_as(&rvm, &nobody, &[&name])?.failed(1, &["does not give access"]);
    let with = |user: &str, password: &str| credentials(&registry.authority(), user, password);
    pull_as(&rvm, &with(USER, "wrong")?, &[&name])?.failed(1, &["does not accept the credentials"]);
    pull_as(&rvm, &with(USER, PASSWORD)?, &[&name])?.ok();
    rvm.call(["rmi", &name])?.ok();
    drop(trusted);
    pull_as(&rvm, &with(USER, PASSWORD)?, &["--tls-verify=false", &name])?.ok();
    rvm.call(["rmi", &name])?.ok();
    a_helper_is_asked(&rvm, &registry, &name)
}

#[test]
fn a_registry_that_wants_a_certificate_gets_it() -> Result<()> {
    let _alone = alone();
    let rvm = Rvm::empty(Isolation::Container, "certified")?;
    // Filled while it does not ask: what fills it has no certificate.
    let protection = Protection { tls: true, ..OPEN };
    let mut registry = with_app(protection)?;
    registry.protect(Protection {
        client_certificate: true,
        ..protection
    })?;
    let name = format!("{}/app:1", registry.authority());
    let trusted = Trusted::new(&registry.authority(), &registry.certificate())?;
    rvm.call(["pull", &name])?.failed(1, &["certificate"]);
    let [certificate, key] = registry.client();
    fs::copy(certificate, trusted.0.join("client.cert"))?;
    rvm.call(["pull", &name])?.failed(1, &["client.cert", "no .key"]);
    fs::copy(registry.certificate(), trusted.0.join("client.key"))?;
    rvm.call(["pull", &name])?
        .failed(1, &["client.key", "no private key"]);
    fs::copy(key, trusted.0.join("client.key"))?;
    rvm.call(["pull", &name])?.ok();
    rvm.call(["push", &name])?.ok();
    Ok(())
}

/// A program that knows the password, as Docker's helpers do.
fn a_helper_is_asked(rvm: &Rvm, registry: &Registry, name: &str) -> Result<()> {
    let _trusted = Trusted::new(&registry.authority(), &registry.certificate())?;
    let text = format!(r#"{{"credHelpers":{{"{}":"test"}}}}"#, registry.authority());
    let configuration = docker_configuration(&text)?;
    let helper = configuration.join("docker-credential-test");
    let script = format!(
        "#!/bin/sh\n[ \"$1 $(cat)\" = 'get {}' ] || exit 1\necho '{{\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\n",
        registry.authority()
    );
    fs::write(&helper, script)?;
    tool("chmod", &["755", helper.to_str().context("not text")?])?;
    let path = format!("{}:{}", configuration.display(), std::env::var("PATH")?);
    let mut command = rvm.command(["pull", name])?;
    command.env("DOCKER_CONFIG", &configuration).env("PATH", path);
    finish(command, LIMIT)?.ok();
    Ok(())
}

#[test]
fn an_index_gives_the_image_for_a_platform() -> Result<()> {
    let _alone = alone();
    let rvm = Rvm::empty(Isolation::Container, "index")?;
    let registry = with_app(OPEN)?;
    let other = scratch()?.join("other-machine");
    let _ = fs::remove_dir_all(&other);
    let other = other.to_str().context("not text")?;
    tool(
        "cp",
        &["-r", layout(BUSYBOX)?.to_str().context("not text")?, other],
    )?;
    let tag = format!("{other}:latest");
    tool("umoci", &["config", "--image", &tag, "--architecture", "arm64"])?;
    registry.push(Path::new(other), "app:other")?;
    let entry = |tag: &str, architecture: &str| -> Result<String> {
        let (digest, size) = registry.manifest("app", tag)?;
        Ok(format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{size},"platform":{{"os":"linux","architecture":"{architecture}"}}}}"#
        ))
    };
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{media_type}","manifests":[{},{}]}}"#,
        entry("other", "arm64")?,
        entry("1", "amd64")?
    );
    let header = format!("Content-Type: {media_type}");
    registry.ask("PUT", "/v2/app/manifests/many", &header, &index)?;
    let pull = |arguments: &[&str]| -> Result<String> {
        let name = format!("{}/app", registry.authority());
        let mut command = rvm.command(["pull", "-q"])?;
        command.args(arguments).arg(format!(
            "{name}:{}",
            if arguments.len() > 1 { "other" } else { "many" }
        ));
        Ok(finish(command, LIMIT)?.ok().text())
    };
    let here = pull(&[])?;
    let plain = rvm
        .call(["pull", "-q", &format!("{}/app:1", registry.authority())])?
        .ok()
        .text();
    assert_eq!(here, plain);
    let there = pull(&["--platform=linux/arm64"])?;
    assert_ne!(here, there);
    // What is here under that name is for another machine: a run says so, or fetches the right one.
    let many = format!("{}/app:many", registry.authority());
    rvm.call(["pull", "-q", "--platform=linux/arm64", &many])?.ok();
    let run = |pull: &str| {
        let mut command = rvm.run_command(["--rm", "--platform=linux/amd64/v1", "--pull", pull])?;
        command.args([many.as_str(), "sh", "-c", "cat /kept/new"]);
        finish(command, LIMIT)
    };
    run("never")?.failed(125, &["is here for linux/arm64 only"]);
    let output = run("missing")?.ok();
    assert_eq!(output.text(), "new");
    assert!(
        output.errors().contains("Unable to find image"),
        "{}",
        output.describe()
    );
    rvm.call([
        "pull",
        "--platform",
        "linux/s390x",
        &format!("{}/app:many", registry.authority()),
    ])?
    .failed(1, &["only for linux/arm64, linux/amd64"]);
    Ok(())
}

/// Bytes of the partial blobs of an installation.
fn partial_bytes(rvm: &Rvm) -> u64 {
    let Ok(entries) = fs::read_dir(rvm.root().join("images/partial")) else {
        return 0;
    };
    entries
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

/// Starts a pull through a gate and waits until it has come to a stop there with `bytes` of blobs.
fn stopped_pull(rvm: &Rvm, name: &str, bytes: u64) -> Result<Running> {
    stopped_pull_as(rvm, &docker_configuration("{}")?, name, bytes)
}

/// The same with Docker's configuration in `configuration`.
fn stopped_pull_as(rvm: &Rvm, configuration: &Path, name: &str, bytes: u64) -> Result<Running> {
    let mut command = rvm.command(["pull", name])?;
    command.env("DOCKER_CONFIG", configuration);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let pull = Running::start(command)?;
    wait_until("a part has been fetched", LIMIT, || {
        Ok(partial_bytes(rvm) >= bytes)
    })?;
    Ok(pull)
}

/// Nothing is to be seen of an image but what can be gone on with.
fn nothing_visible(rvm: &Rvm) -> Result<()> {
    assert_eq!(rvm.call(["images", "-q"])?.ok().text(), "");
    for directory in ["images/staging", "images/blobs/sha256", "layers/sha256"] {
        let left = fs::read_dir(rvm.root().join(directory))?.count();
        ensure!(left == 0, "{left} files in {directory}");
    }
    Ok(())
}

const LET_THROUGH: u64 = 700 << 10;
const FETCHED: u64 = 500 << 10;

#[test]
fn a_killed_pull_leaves_nothing_and_goes_on() -> Result<()> {
    let _alone = alone();
    let rvm = Rvm::empty(Isolation::Container, "killed")?;
    let registry = with_app(OPEN)?;
    let whole = Gate::before(&registry, 0)?;
    whole.open();
    rvm.call(["pull", &format!("{}/app:1", whole.authority())])?.ok();
    let all = whole.passed();
    rvm.call(["rmi", &format!("{}/app:1", whole.authority())])?.ok();
    nothing_visible(&rvm)?;

    let gate = Gate::before(&registry, LET_THROUGH)?;
    let name = format!("{}/app:1", gate.authority());
    let pull = stopped_pull(&rvm, &name, FETCHED)?;
    pull.signal(Signal::KILL)?;
    assert_eq!(pull.finish(LIMIT)?.code, 128 + 9);
    nothing_visible(&rvm)?;
    let kept = partial_bytes(&rvm);
    let gate_after = Gate::before(&registry, 0)?;
    gate_after.open();
    rvm.call(["pull", &format!("{}/app:1", gate_after.authority())])?
        .ok();
    let rest = gate_after.passed();
    ensure!(rest + kept <= all + 8192, "{rest} bytes after {kept} of {all}");
    assert_eq!(partial_bytes(&rvm), 0);
    Ok(())
}

#[test]
fn a_pull_goes_on_after_the_registry_was_stopped() -> Result<()> {
    let _alone = alone();
    let rvm = Rvm::empty(Isolation::Container, "stopped")?;
    // A private one: both connections have to prove themselves.
    let mut registry = with_app(Protection {
        tls: true,
        password: true,
        ..OPEN
    })?;
    let gate = Gate::before(&registry, LET_THROUGH)?;
    let name = format!("{}/app:1", gate.authority());
    let _trusted = Trusted::new(&gate.authority(), &registry.certificate())?;
    let someone = credentials(&gate.authority(), USER, PASSWORD)?;
    let pull = stopped_pull_as(&rvm, &someone, &name, FETCHED)?;
    registry.stop();
    gate.cut();
    pull.finish(LIMIT)?.failed(1, &["cannot pull"]);
    nothing_visible(&rvm)?;
    let (kept, before) = (partial_bytes(&rvm), gate.passed());
    ensure!(kept >= FETCHED, "{kept} bytes are kept");
    registry.restart()?;
    pull_as(&rvm, &someone, &[&name])?.ok();
    let blobs: u64 = fs::read_dir(rvm.root().join("images/blobs/sha256"))?
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum();
    // TLS takes a few kilobytes of its own.
    let rest = gate.passed() - before;
    ensure!(
        rest + kept <= blobs + (64 << 10),
        "{rest} bytes after {kept} of {blobs}"
    );
    Ok(())
}

#[test]
fn a_pull_survives_a_connection_that_broke() -> Result<()> {
    let _alone = alone();
    let rvm = Rvm::empty(Isolation::Container, "broken")?;
    let registry = with_app(OPEN)?;
    let gate = Gate::before(&registry, LET_THROUGH)?;
    let pull = stopped_pull(&rvm, &format!("{}/app:1", gate.authority()), FETCHED)?;
    gate.cut();
    let output = pull.finish(LIMIT)?.ok();
    assert!(output.errors().contains("Retrying"), "{}", output.describe());
    Ok(())
}

#[test]
fn two_pulls_of_an_image_fetch_it_once() -> Result<()> {
    let _alone = alone();
    let rvm = Rvm::empty(Isolation::Container, "both")?;
    let registry = with_app(OPEN)?;
    let gate = Gate::before(&registry, LET_THROUGH)?;
    let first = stopped_pull(&rvm, &format!("{}/app:1", gate.authority()), FETCHED)?;
    // By another way, and so under another name: what is left of the first one's may be too little for the manifest.
    let other = Gate::before(&registry, u64::MAX)?;
    let mut command = rvm.command(["pull", &format!("{}/app:1", other.authority())])?;
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let second = Running::start(command)?;
    wait_until("the second waits", LIMIT, || {
        Ok(second.stderr_so_far().contains("Waiting"))
    })?;
    gate.open();
    for pull in [first, second] {
        pull.finish(LIMIT)?.ok();
    }
    let blobs: u64 = fs::read_dir(rvm.root().join("images/blobs/sha256"))?
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum();
    let passed = gate.passed() + other.passed();
    ensure!(passed <= blobs + 16384, "{passed} bytes for {blobs}");
    Ok(())
}
