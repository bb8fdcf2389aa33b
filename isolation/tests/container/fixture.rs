//! A root file system of busybox, a Spec like Docker's, and a way to run the one with the other.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};
use rvm_isolation::{
    Container, Environment, Exit, Layer, Plan, PrivateFile, Rootfs, StartError, Stdio, create,
};
use serde_json::{Value, json};

/// Commands that the tests use.
const APPLETS: [&str; 22] = [
    "cat", "chmod", "dd", "df", "echo", "grep", "hostname", "id", "ifconfig", "kill", "ls", "mkdir", "mknod",
    "mount", "ps", "readlink", "sh", "sleep", "stat", "touch", "env", "mv",
];

/// A place for one container; removed with everything in it at the end.
pub(crate) struct Fixture {
    directory: tempfile::TempDir,
    cgroup: PathBuf,
    layers: Vec<Layer>,
    files: Vec<PrivateFile>,
}

/// What came of a container.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) exit: Exit,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Fixture {
    /// With the base layer alone.
    pub(crate) fn new() -> Fixture {
        Fixture::with_tree(|_| {})
    }

    /// With the base layer, changed by `change` before it becomes an image.
    pub(crate) fn with_tree(change: impl FnOnce(&Path)) -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        base_tree(&tree);
        change(&tree);
        let mut fixture = Fixture {
            cgroup: parent_cgroup(),
            directory,
            layers: Vec::new(),
            files: Vec::new(),
        };
        let name = fixture.path().file_name().unwrap().to_owned();
        fixture.cgroup.push(name);
        fixture.push_layer(&tree);
        for name in ["upper", "work", "staging"] {
            fs::create_dir(fixture.path().join(name)).unwrap();
        }
        fixture
    }

    /// Puts another layer, made of the directory `tree`, on top.
    pub(crate) fn push_layer(&mut self, tree: &Path) {
        let image = self.path().join(format!("{}.erofs", self.layers.len()));
        let made = Command::new("mkfs.erofs")
            .arg("--quiet")
            .arg(&image)
            .arg(tree)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        self.layers.push(Layer::File(image));
    }

    /// Gives the container a file of its own.
    pub(crate) fn push_file(&mut self, path: &str, content: &str) {
        self.files.push(PrivateFile {
            path: path.into(),
            content: content.into(),
        });
    }

    /// The fixture's own directory on the host.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The container's cgroup.
    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    pub(crate) fn environment(&self) -> Environment {
        let at = |name: &str| self.path().join(name);
        let (upper, work, staging) = (at("upper"), at("work"), at("staging"));
        let rootfs = Rootfs {
            layers: self.layers.clone(),
            upper,
            work,
            staging,
        };
        Environment {
            interfaces: Vec::new(),
            files: self.files.clone(),
            cgroup: self.cgroup.clone(),
            rootfs,
        }
    }

    /// Makes a container and gives back the reading ends of its output.
    pub(crate) fn create(&self, spec: &Value) -> Result<(Container, [File; 2]), rvm_isolation::Error> {
        let plan = Plan::new(
            &serde_json::from_value(spec.clone()).unwrap(),
            &self.environment(),
        )
        .unwrap();
        let ((stdout, stdout_end), (stderr, stderr_end)) = (pipe(), pipe());
        let stdin = File::open("/dev/null").unwrap().into();
        let container = create(
            &plan,
            Stdio {
                stdin,
                stdout: stdout_end,
                stderr: stderr_end,
            },
        )?;
        Ok((container, [stdout.into(), stderr.into()]))
    }

    /// Runs a container to its end and removes it.
    pub(crate) fn run(&self, spec: &Value) -> Outcome {
        let (mut container, outputs) = self
            .create(spec)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        container
            .start()
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let [stdout, stderr] = outputs.map(|output| std::thread::spawn(move || read_all(output)));
        let exit = container.wait().unwrap();
        container.destroy().unwrap();
        Outcome {
            exit,
            stdout: stdout.join().unwrap(),
            stderr: stderr.join().unwrap(),
        }
    }

    /// Runs a shell script; it has to succeed and be silent on stderr. Returns what it printed.
    pub(crate) fn shell(&self, script: &str) -> String {
        self.succeed(&spec(&["sh", "-c", script]))
    }

    /// Runs a container that has to succeed and be silent on stderr. Returns what it printed.
    pub(crate) fn succeed(&self, spec: &Value) -> String {
        let outcome = self.run(spec);
        assert_eq!(
            (outcome.exit.code, outcome.stderr.as_str()),
            (0, ""),
            "stdout: {}",
            outcome.stdout
        );
        outcome.stdout
    }

    /// Creates a container that has to fail to start.
    pub(crate) fn fail_to_start(&self, spec: &Value) -> StartError {
        let (mut container, _outputs) = self
            .create(spec)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let error = container.start().unwrap_err();
        container.destroy().unwrap();
        error
    }

    /// Creates a container, which has to fail, and returns the error with its causes.
    pub(crate) fn fail_to_create(&self, spec: &Value) -> String {
        let error = self.create(spec).map(drop).unwrap_err();
        chain(&error)
    }

    /// What of this fixture is left in the kernel: mounts, loop devices, the cgroup.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let name = self.path().to_str().unwrap();
        let mut left = Vec::new();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let mounts = fs::read_to_string(process.path().join("mountinfo")).unwrap_or_default();
            left.extend(
                mounts
                    .lines()
                    .filter(|line| line.contains(name))
                    .map(|line| format!("mount in {}: {line}", process.path().display())),
            );
        }
        for device in fs::read_dir("/sys/block").unwrap().flatten() {
            let file = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
            left.extend(file.contains(name).then(|| format!("loop device of {file}")));
        }
        left.extend(self.cgroup.exists().then(|| self.cgroup.display().to_string()));
        left
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // A test that failed may have left its container.
        let _ = rvm_isolation::cgroup::remove(&self.cgroup);
    }
}

/// An error with its causes, joined by colons.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Waits until `condition` holds, for at most ten seconds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{what} did not come true within 10 s"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}

fn read_all(mut file: File) -> String {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The cgroup that the containers' cgroups are made in, with the controllers enabled as an engine does.
fn parent_cgroup() -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    let parent = root.join("rvm-isolation-tests");
    fs::create_dir_all(&parent).unwrap();
    for directory in [root, &parent] {
        fs::write(directory.join("cgroup.subtree_control"), "+cpu +memory +pids").unwrap();
    }
    parent
}

fn base_tree(tree: &Path) {
    for directory in ["bin", "etc", "tmp", "srv"] {
        fs::create_dir_all(tree.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
    fs::write(
        tree.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nwww:x:33:34::/srv:/bin/sh\n",
    )
    .unwrap();
    fs::write(tree.join("etc/group"), "root:x:0:\nwww:x:34:\nssl:x:100:www\n").unwrap();
    executable(&tree.join("crash"), &crashing_program());
    executable(&tree.join("not-a-program"), b"\x00\x01 neither ELF nor script\n");
    executable(&tree.join("lost-interpreter"), b"#!/no/such/interpreter\n");
    fs::write(tree.join("data"), "data\n").unwrap();
}

/// Writes a file that may be executed.
pub(crate) fn executable(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A whole ELF program whose only instruction stores to address 0.
fn crashing_program() -> Vec<u8> {
    let code = [0xc6, 0x04, 0x25, 0, 0, 0, 0, 0];
    let (base, headers) = (0x40_0000u64, 64 + 56u64);
    let mut program = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // Executable, x86-64, version 1, entry, program headers, no sections, sizes.
    program.extend([2u16.to_le_bytes(), 62u16.to_le_bytes()].concat());
    program.extend(1u32.to_le_bytes());
    program.extend(
        [
            (base + headers).to_le_bytes(),
            64u64.to_le_bytes(),
            0u64.to_le_bytes(),
        ]
        .concat(),
    );
    program.extend(0u32.to_le_bytes());
    program.extend([64u16, 56, 1, 64, 0, 0].map(u16::to_le_bytes).concat());
    // One segment: load, readable and executable, the whole file.
    program.extend([1u32.to_le_bytes(), 5u32.to_le_bytes()].concat());
    let size = headers + 8;
    program.extend([0, base, base, size, size, 0x1000].map(u64::to_le_bytes).concat());
    program.extend(code);
    program
}

/// A Spec as Docker would make it for `arguments`, apart from a shorter seccomp profile.
pub(crate) fn spec(arguments: &[&str]) -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE"
    ]);
    let mount = |destination: &str, kind: &str, options: &str| {
        let options: Vec<&str> = options.split(',').collect();
        json!({"destination": destination, "type": kind, "source": kind, "options": options})
    };
    let namespaces = ["pid", "mount", "uts", "ipc", "network", "cgroup"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.2.0",
        "hostname": "box",
        "root": {"path": "rootfs"},
        "process": {
            "args": arguments,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0, "username": ""},
            "oomScoreAdj": 0,
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                "inheritable": [], "ambient": [],
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1000, "hard": 2000}],
        },
        "mounts": [
            mount("/proc", "proc", "nosuid,noexec,nodev"),
            mount("/dev", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
            mount("/dev/pts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
            mount("/sys", "sysfs", "nosuid,noexec,nodev,ro"),
            mount("/sys/fs/cgroup", "cgroup", "ro,nosuid,noexec,nodev"),
            mount("/dev/mqueue", "mqueue", "nosuid,noexec,nodev"),
            mount("/dev/shm", "tmpfs", "nosuid,noexec,nodev,mode=1777,size=67108864"),
            // This executable, as a probe.
            {
                "destination": "/probe", "type": "bind", "source": std::env::current_exe().unwrap(),
                "options": ["bind", "ro"],
            },
        ],
        "linux": {
            "namespaces": namespaces,
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/proc/nothing-here"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger", "/proc/nothing-here-either"],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": [
                    {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                ],
            },
        },
    })
}
