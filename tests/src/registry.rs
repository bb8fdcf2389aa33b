//! A real registry on loopback: Debian's docker-registry, filled by skopeo; and a gate in front of it that lets through only
//! so much.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::command::{Running, tool};
use crate::wait::wait_until;

/// How a registry is protected.
#[derive(Debug, Clone, Copy, Default)]
pub struct Protection {
    /// TLS, with a certificate of an authority that nobody knows.
    pub tls: bool,
    /// The user [`USER`] with [`PASSWORD`], and nobody else.
    pub password: bool,
    /// Over TLS, only who shows a certificate of the same authority.
    pub client_certificate: bool,
}

/// Who may use a registry with a password.
pub const USER: &str = "someone";
/// The password.
pub const PASSWORD: &str = "a pass:word";

/// It is up within this.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A registry that runs until it is dropped.
#[derive(Debug)]
pub struct Registry {
    directory: PathBuf,
    port: u16,
    protection: Protection,
    process: Option<Running>,
}

impl Registry {
    /// Starts one with its files in `directory`, which is made empty.
    ///
    /// # Errors
    /// If a tool is missing or fails.
    pub fn start(directory: &Path, protection: Protection) -> Result<Self> {
        let _ = fs::remove_dir_all(directory);
        fs::create_dir_all(directory)?;
        let mut registry = Self {
            directory: directory.to_owned(),
            port: free_port()?,
            protection,
            process: None,
        };
        registry.configure()?;
        registry.restart()?;
        Ok(registry)
    }

    /// Starts it again, at the same port and with the same content.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn restart(&mut self) -> Result<()> {
        let mut command = Command::new("docker-registry");
        command
            .arg("serve")
            .arg(self.directory.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.directory.join("log"))?);
        self.process = Some(Running::start(command)?);
        let address = format!("127.0.0.1:{}", self.port);
        wait_until("the registry answers", START_LIMIT, || {
            Ok(TcpStream::connect(&address).is_ok())
        })
    }

    /// Starts it again with the same content and under another protection.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn protect(&mut self, protection: Protection) -> Result<()> {
        self.stop();
        self.protection = protection;
        self.configure()?;
        self.restart()
    }

    /// Kills it.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// `localhost:PORT`.
    #[must_use]
    pub fn authority(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// The certificate of its authority.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// Copies an image of the OCI layout directory `layout` to `name`, as it is.
    ///
    /// # Errors
    /// If skopeo fails.
    pub fn push(&self, layout: &Path, name: &str) -> Result<()> {
        let source = format!("oci:{}:latest", layout.display());
        let target = format!("docker://{}/{name}", self.authority());
        let credentials = format!("{USER}:{PASSWORD}");
        let mut arguments = vec!["copy", "-q", "--dest-tls-verify=false"];
        if self.protection.password {
            arguments.extend(["--dest-creds", &credentials]);
        }
        arguments.extend([source.as_str(), &target]);
        tool("skopeo", &arguments).map(drop)
    }

    /// Whether a registry without protection has a blob, by its digest.
    #[must_use]
    pub fn has(&self, name: &str, digest: &str) -> bool {
        self.ask("HEAD", &format!("/v2/{name}/blobs/{digest}"), "", "")
            .is_ok()
    }

    /// Asks a registry without protection over plain HTTP; the whole answer.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 2"), "{method} {path}: {answer}");
        Ok(answer)
    }

    /// The digest and size of a manifest.
    ///
    /// # Errors
    /// If there is none.
    pub fn manifest(&self, name: &str, tag: &str) -> Result<(String, u64)> {
        let accept = "Accept: application/vnd.oci.image.manifest.v1+json";
        let answer = self.ask("HEAD", &format!("/v2/{name}/manifests/{tag}"), accept, "")?;
        let header = |name: &str| {
            let line = answer.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().to_owned())
                .context("a header is missing")
        };
        Ok((
            header("Docker-Content-Digest:")?,
            header("Content-Length:")?.parse()?,
        ))
    }

    /// The certificate and the key of somebody whom its authority knows.
    #[must_use]
    pub fn client(&self) -> [PathBuf; 2] {
        ["client.crt", "client.key"].map(|name| self.directory.join(name))
    }

    fn configure(&self) -> Result<()> {
        let at = |name: &str| self.directory.join(name).display().to_string();
        let mut text = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http:\n  addr: 127.0.0.1:{}\n",
            at("data"),
            self.port
        );
        if self.protection.tls {
            self.certify()?;
            let clients = if self.protection.client_certificate {
                format!(", clientcas: [{}]", at("ca.crt"))
            } else {
                String::new()
            };
            text.push_str(&format!(
                "  tls: {{certificate: {}, key: {}{clients}}}\n",
                at("server.crt"),
                at("server.key")
            ));
        }
        if self.protection.password {
            let line = tool("htpasswd", &["-nbB", USER, PASSWORD])?;
            fs::write(at("htpasswd"), line)?;
            text.push_str(&format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                at("htpasswd")
            ));
        }
        Ok(fs::write(at("config.yml"), text)?)
    }

    /// An authority of its own, and certificates from it for localhost and for a client.
    fn certify(&self) -> Result<()> {
        let at = |name: &str| self.directory.join(name).display().to_string();
        let curve = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ];
        let request =
            |arguments: &[&str]| tool("openssl", &[&["req"], &curve[..], arguments].concat()).map(drop);
        request(&[
            "-x509",
            "-days",
            "2",
            "-subj",
            "/CN=test authority",
            "-keyout",
            &at("ca.key"),
            "-out",
            &at("ca.crt"),
        ])?;
        fs::write(
            at("names"),
            "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n",
        )?;
        for (name, subject) in [("server", "/CN=localhost"), ("client", "/CN=a client")] {
            let file = |extension: &str| at(&format!("{name}.{extension}"));
            let (key, csr) = (file("key"), file("csr"));
            request(&["-subj", subject, "-keyout", &key, "-out", &csr])?;
            let signing = [
                "x509",
                "-req",
                "-days",
                "2",
                "-CAcreateserial",
                "-in",
                &csr,
                "-CA",
                &at("ca.crt"),
                "-CAkey",
                &at("ca.key"),
                "-extfile",
                &at("names"),
                "-out",
                &file("crt"),
            ];
            tool("openssl", &signing)?;
        }
        Ok(())
    }
}

/// A port that nobody has at the moment.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Passes connections on to a registry, and lets through only so many bytes of its answers, or of what is sent to it.
#[derive(Debug)]
pub struct Gate {
    port: u16,
    state: Arc<State>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Allowed {
    /// Bytes that may still pass.
    left: u64,
    /// Whether everything may.
    all: bool,
    /// How often all connections were cut.
    cuts: u32,
}

#[derive(Debug, Default)]
struct State {
    allowed: Mutex<Allowed>,
    changed: Condvar,
    passed: AtomicU64,
    closed: AtomicBool,
    /// Whether it is what is sent that is counted, and not what is answered.
    counts_requests: bool,
}

impl Gate {
    /// A gate before `registry` that stops after `bytes`.
    ///
    /// # Errors
    /// If no port can be had.
    pub fn before(registry: &Registry, bytes: u64) -> Result<Self> {
        Self::with(registry, bytes, State::default())
    }

    /// A gate before `registry` that stops after `bytes` have been sent to it.
    ///
    /// # Errors
    /// If no port can be had.
    pub fn before_uploads(registry: &Registry, bytes: u64) -> Result<Self> {
        let state = State {
            counts_requests: true,
            ..State::default()
        };
        Self::with(registry, bytes, state)
    }

    fn with(registry: &Registry, bytes: u64, state: State) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(state);
        state.change(|allowed| allowed.left = bytes);
        let (shared, target) = (Arc::clone(&state), registry.port);
        let accepting = thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.closed.load(Ordering::SeqCst) {
                    return;
                }
                // Without a registry behind it the client finds its connection closed.
                if let Ok(server) = TcpStream::connect(("127.0.0.1", target)) {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || shared.connect(&client, &server));
                }
            }
        });
        Ok(Self {
            port,
            state,
            accepting: Some(accepting),
        })
    }

    /// `localhost:PORT`.
    #[must_use]
    pub fn authority(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        self.state.change(|allowed| allowed.all = true);
    }

    /// Ends every connection where it is, and lets everything through on later ones.
    pub fn cut(&self) {
        self.state.change(|allowed| {
            allowed.cuts += 1;
            allowed.all = true;
        });
    }

    /// Bytes of answers, or of requests, that have passed.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.state.passed.load(Ordering::SeqCst)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::SeqCst);
        self.open();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.accepting.take().map(JoinHandle::join);
    }
}

impl State {
    fn change(&self, change: impl FnOnce(&mut Allowed)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Allowed> {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self, client: &TcpStream, server: &TcpStream) {
        let (counted, free) = if self.counts_requests {
            ((client, server), (server, client))
        } else {
            ((server, client), (client, server))
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut from, mut to) = free;
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
            let (from, to) = counted;
            let _ = self.pass(from, to);
            let _ = to.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
        });
    }

    fn pass(&self, mut from: &TcpStream, mut to: &TcpStream) -> std::io::Result<()> {
        let mut buffer = [0; 16 << 10];
        let cuts = self.lock().cuts;
        loop {
            let count = from.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            let bytes = count as u64;
            let waits = |allowed: &mut Allowed| !allowed.all && allowed.left < bytes;
            let allowed = self.changed.wait_while(self.lock(), waits);
            let mut allowed = allowed.unwrap_or_else(PoisonError::into_inner);
            if allowed.cuts != cuts {
                return Ok(());
            }
            allowed.left = allowed.left.saturating_sub(bytes);
            drop(allowed);
            to.write_all(&buffer[..count])?;
            self.passed.fetch_add(bytes, Ordering::SeqCst);
        }
    }
}
