//! Whether this machine can run both kinds of containers, and what to do where it cannot.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::supervisor::chain;
use crate::{Asset, Layout, cgroup, kvm};

/// Programs are looked for here beside `PATH`, which often lacks the administrator's directories.
const ADMINISTRATOR_PATHS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// `OVERLAYFS_SUPER_MAGIC` of `linux/magic.h`.
const OVERLAYFS_MAGIC: u64 = 0x794c_7630;

/// `VIRTIOFS`' and FUSE's `FUSE_SUPER_MAGIC` of `linux/magic.h`.
const FUSE_MAGIC: u64 = 0x6573_5546;

/// What a check is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// VM mode needs it.
    Vm,
    /// Container mode needs it.
    Container,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The mode that needs it.
    pub mode: Mode,
    /// What was looked at.
    pub name: &'static str,
    /// Whether it is as it must be.
    pub passed: bool,
    /// What was found.
    pub found: String,
    /// What to do, where it did not pass.
    pub advice: Option<String>,
}

impl Check {
    fn pass(mode: Mode, name: &'static str, found: impl Into<String>) -> Self {
        Self {
            mode,
            name,
            passed: true,
            found: found.into(),
            advice: None,
        }
    }

    fn fail(mode: Mode, name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            mode,
            name,
            passed: false,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }
}

/// Looks at everything.
#[must_use]
pub fn examine(layout: &Layout) -> Vec<Check> {
    let mut checks = vec![kvm(layout)];
    checks.extend(Asset::OF_MACHINES.map(|part| asset(Mode::Vm, part)));
    // Of either mode's networks.
    checks.push(asset(Mode::Container, Asset::Resolver));
    checks.push(program(Mode::Vm, "mkfs.ext4", "e2fsprogs"));
    checks.push(program(Mode::Container, "nft", "nftables"));
    checks.extend([bridges(), forwarding()]);
    checks.push(packet_filter());
    checks.push(privilege());
    checks.push(controllers());
    checks.extend(["overlay", "erofs"].map(file_system));
    checks.push(loop_devices());
    checks.push(upper_directory(layout.root()));
    checks
}

fn kvm(layout: &Layout) -> Check {
    match kvm::require(layout) {
        Ok(()) => Check::pass(Mode::Vm, "KVM", "/dev/kvm runs an ordinary guest"),
        Err(error) => Check::fail(Mode::Vm, "KVM", chain(&error), error.hint()),
    }
}

fn asset(mode: Mode, asset: Asset) -> Check {
    let name = match asset {
        Asset::Vmm => "monitor",
        Asset::Kernel => "guest kernel",
        Asset::Initramfs => "guest agent",
        Asset::Probe => "probe",
        Asset::Resolver => "resolver",
        Asset::FileServer => "file server",
    };
    match asset.find() {
        Ok(path) => Check::pass(mode, name, path.display().to_string()),
        Err(error) => Check::fail(
            mode,
            name,
            error.to_string(),
            "scripts/build-guest builds it; RVM_ASSETS names the directory it is in",
        ),
    }
}

fn program(mode: Mode, name: &'static str, package: &str) -> Check {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain(ADMINISTRATOR_PATHS.map(PathBuf::from));
    match places.map(|place| place.join(name)).find(|path| path.is_file()) {
        Some(path) => Check::pass(mode, name, path.display().to_string()),
        None => Check::fail(mode, name, "not found", format!("install the package {package}")),
    }
}

fn privilege() -> Check {
    if rustix::process::geteuid().is_root() {
        Check::pass(Mode::Container, "privilege", "running as root")
    } else {
        Check::fail(Mode::Container, "privilege", "not running as root", "use sudo")
    }
}

fn controllers() -> Check {
    let advice = "boot with cgroup v2 alone (systemd.unified_cgroup_hierarchy=1)";
    match cgroup::missing_controllers() {
        Ok(missing) if missing.is_empty() => Check::pass(
            Mode::Container,
            "cgroup v2",
            format!("controllers {}", cgroup::NEEDED_CONTROLLERS.join(", ")),
        ),
        Ok(missing) => Check::fail(
            Mode::Container,
            "cgroup v2",
            format!("without the controllers {}", missing.join(", ")),
            advice,
        ),
        Err(error) => Check::fail(Mode::Container, "cgroup v2", chain(&error), advice),
    }
}

/// A module that is loaded or in the kernel is known there, as it has a version; another is loaded with the first bridge.
fn bridges() -> Check {
    let name = "bridge";
    if Path::new("/sys/module/bridge").exists() {
        return Check::pass(Mode::Container, name, "in the kernel");
    }
    match module(name) {
        true => Check::pass(Mode::Container, name, "a module of the kernel"),
        false => Check::fail(
            Mode::Container,
            name,
            "the kernel has no bridges, which networks are made of",
            "use a kernel with CONFIG_BRIDGE and CONFIG_VETH, or --network none",
        ),
    }
}

/// What networks need is switched on with the first that needs it.
fn forwarding() -> Check {
    const SETTING: &str = "/proc/sys/net/ipv4/ip_forward";
    let name = "IP forwarding";
    let advice = "run `sysctl net.ipv4.ip_forward=1`, outside where this machine is a container itself";
    match fs::read_to_string(SETTING) {
        Ok(value) if value.trim() == "1" => Check::pass(Mode::Container, name, "on"),
        Ok(_) if rustix::fs::access(SETTING, rustix::fs::Access::WRITE_OK).is_ok() => Check::pass(
            Mode::Container,
            name,
            "off; the first network that needs it switches it on",
        ),
        Ok(_) => Check::fail(Mode::Container, name, "off, and cannot be switched on", advice),
        Err(error) => Check::fail(Mode::Container, name, format!("{SETTING}: {error}"), advice),
    }
}

/// Whether the kernel takes rules, and whether others' rules are in the way.
fn packet_filter() -> Check {
    let name = "packet filter";
    match rvm_network::dropping() {
        Ok(chains) if chains.is_empty() => Check::pass(Mode::Container, name, "nftables"),
        Ok(chains) => Check {
            advice: Some("let through what comes from and goes to rvm's bridges: docs/networks.md, Other packet filters".to_owned()),
            ..Check::pass(
                Mode::Container,
                name,
                format!("{} drops what is forwarded and not let through there", chains.join(", ")),
            )
        },
        Err(error) => Check::fail(
            Mode::Container,
            name,
            chain(&error),
            "networks need root, nft and a kernel with CONFIG_NF_TABLES; --network none does not",
        ),
    }
}

/// Whether there is a module of this name on disk.
fn module(name: &str) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let modules = Path::new("/lib/modules").join(release).join("modules.dep");
    let known = fs::read_to_string(modules).unwrap_or_default();
    known.lines().any(|line| {
        let path = line.split(':').next();
        path.is_some_and(|path| path.contains(&format!("/{name}.ko")))
    })
}

/// The kernel loads the module of a file system when it is first mounted, so one on disk is as good.
fn file_system(name: &'static str) -> Check {
    let builtin = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if builtin
        .lines()
        .any(|line| line.split_whitespace().last() == Some(name))
    {
        return Check::pass(Mode::Container, name, "in the kernel");
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if module(name) {
        return Check::pass(Mode::Container, name, "a module of the kernel");
    }
    Check::fail(
        Mode::Container,
        name,
        format!("kernel {release} does not have it"),
        format!("use a kernel with CONFIG_{}_FS", name.to_uppercase()),
    )
}

fn loop_devices() -> Check {
    if Path::new("/dev/loop-control").exists() {
        Check::pass(Mode::Container, "loop devices", "/dev/loop-control")
    } else {
        Check::fail(
            Mode::Container,
            "loop devices",
            "no /dev/loop-control",
            "run `modprobe loop`",
        )
    }
}

/// overlayfs refuses to write to another overlay and to FUSE (Documentation/filesystems/overlayfs.rst).
fn upper_directory(root: &Path) -> Check {
    let name = "root directory";
    let advice = "give --root a directory on ext4, xfs, btrfs or tmpfs";
    match rustix::fs::statfs(root) {
        Ok(status) => match status.f_type.cast_unsigned() {
            OVERLAYFS_MAGIC => Check::fail(
                Mode::Container,
                name,
                format!("{} is on an overlay, which cannot hold another", root.display()),
                advice,
            ),
            FUSE_MAGIC => Check::fail(
                Mode::Container,
                name,
                format!("{} is on FUSE", root.display()),
                advice,
            ),
            _ => Check::pass(Mode::Container, name, root.display().to_string()),
        },
        Err(error) => Check::fail(Mode::Container, name, error.to_string(), advice),
    }
}
