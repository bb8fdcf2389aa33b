//! Which namespaces a container gets, and what belongs to them: the host name, the loopback interface, kernel settings.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespaceType, Spec};
use rustix::process::{Pid, PidfdFlags};
use rustix::thread::ThreadNameSpaceType;
use serde::{Deserialize, Serialize};

use crate::plan;
use crate::sys;

/// A namespace that a container can have for itself. The mount namespace is not among them: it always has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Namespace {
    Pid,
    Uts,
    Ipc,
    Network,
    Cgroup,
}

/// Why a namespace could not be furnished.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot make a cgroup namespace")]
    Cgroup(#[source] io::Error),
    #[error("cannot join the cgroup namespace")]
    JoinCgroup(#[source] io::Error),
    #[error("cannot set the host name")]
    HostName(#[source] io::Error),
    #[error("cannot set the NIS domain name")]
    DomainName(#[source] io::Error),
    #[error("cannot set the loopback interface up")]
    Loopback(#[source] io::Error),
}

/// The namespaces and the names inside the UTS namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Namespaces {
    own: BTreeSet<Namespace>,
    /// Where the network namespace is another container's.
    network: Option<PathBuf>,
    host_name: Option<String>,
    domain_name: Option<String>,
}

impl Namespaces {
    pub(crate) fn new(spec: &Spec, linux: &Linux) -> Result<Namespaces, plan::Error> {
        let mut own = BTreeSet::new();
        let mut mount = false;
        let mut network = None;
        for (index, namespace) in linux.namespaces().iter().flatten().enumerate() {
            let field = format!("linux.namespaces[{index}]");
            if let (LinuxNamespaceType::Network, Some(path)) = (namespace.typ(), namespace.path()) {
                if network.replace(path.clone()).is_some() || own.contains(&Namespace::Network) {
                    let reason = "is listed twice".into();
                    return Err(plan::Error::Invalid { field, reason });
                }
                continue;
            }
            if let Some(path) = namespace.path() {
                let what = format!("joining the namespace {}", path.display());
                return Err(plan::Error::Unsupported { field, what });
            }
            let new = match namespace.typ() {
                LinuxNamespaceType::Mount if !mount => {
                    mount = true;
                    true
                }
                LinuxNamespaceType::Mount => false,
                LinuxNamespaceType::Pid => own.insert(Namespace::Pid),
                LinuxNamespaceType::Uts => own.insert(Namespace::Uts),
                LinuxNamespaceType::Ipc => own.insert(Namespace::Ipc),
                LinuxNamespaceType::Network => network.is_none() && own.insert(Namespace::Network),
                LinuxNamespaceType::Cgroup => own.insert(Namespace::Cgroup),
                LinuxNamespaceType::User => {
                    return Err(plan::Error::Unsupported {
                        field,
                        what: "a user namespace".into(),
                    });
                }
                LinuxNamespaceType::Time => {
                    return Err(plan::Error::Unsupported {
                        field,
                        what: "a time namespace".into(),
                    });
                }
            };
            if !new {
                return Err(plan::Error::Invalid {
                    field,
                    reason: "is listed twice".into(),
                });
            }
        }
        if !mount {
            let field = "linux.namespaces".into();
            return Err(plan::Error::Invalid {
                field,
                reason: "a mount namespace is needed".into(),
            });
        }
        let (host_name, domain_name) = (non_empty(spec.hostname()), non_empty(spec.domainname()));
        for (field, name) in [("hostname", &host_name), ("domainname", &domain_name)] {
            check_name(field, name.as_deref(), own.contains(&Namespace::Uts))?;
        }
        Ok(Namespaces {
            own,
            network,
            host_name,
            domain_name,
        })
    }

    pub(crate) fn has(&self, namespace: Namespace) -> bool {
        self.own.contains(&namespace)
    }

    /// The network namespace that is joined.
    pub(crate) fn joined_network(&self) -> Option<&Path> {
        self.network.as_deref()
    }

    /// `CLONE_NEW*` flags for clone3. The cgroup namespace is left to [`Namespaces::furnish`]: clone3 would root it at
    /// the cgroup of the parent, even with `CLONE_INTO_CGROUP`.
    pub(crate) fn clone_flags(&self) -> u64 {
        self.own
            .iter()
            .map(|namespace| match namespace {
                Namespace::Pid => libc::CLONE_NEWPID,
                Namespace::Uts => libc::CLONE_NEWUTS,
                Namespace::Ipc => libc::CLONE_NEWIPC,
                Namespace::Network => libc::CLONE_NEWNET,
                Namespace::Cgroup => 0,
            })
            .map(sys::flag)
            .fold(sys::flag(libc::CLONE_NEWNS), |flags, flag| flags | flag)
    }

    /// What a further process joins before it is born: all but the cgroup namespace.
    pub(crate) fn joint(&self) -> ThreadNameSpaceType {
        self.own
            .iter()
            .map(|namespace| match namespace {
                Namespace::Pid => ThreadNameSpaceType::PROCESS_ID,
                Namespace::Uts => ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
                Namespace::Ipc => ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION,
                Namespace::Network => ThreadNameSpaceType::NETWORK,
                Namespace::Cgroup => ThreadNameSpaceType::empty(),
            })
            .chain(self.network.iter().map(|_| ThreadNameSpaceType::NETWORK))
            .fold(ThreadNameSpaceType::MOUNT, |kinds, kind| kinds | kind)
    }

    /// From inside, for a further process: joins the container's cgroup namespace. Where the container has PIDs of its own, its
    /// first process is number 1; else a new namespace shows the same, because the process is in the container's cgroup.
    pub(crate) fn join_cgroup(&self) -> Result<(), Error> {
        if !self.has(Namespace::Cgroup) {
            return Ok(());
        }
        if !self.has(Namespace::Pid) {
            return sys::unshare_cgroup_namespace().map_err(Error::Cgroup);
        }
        let first = rustix::process::pidfd_open(Pid::INIT, PidfdFlags::empty());
        first
            .and_then(|first| {
                rustix::thread::move_into_thread_name_spaces(
                    first.as_fd(),
                    ThreadNameSpaceType::CONTROL_GROUP,
                )
            })
            .map_err(|error| Error::JoinCgroup(error.into()))
    }

    /// From inside: completes the set, and gives the new namespaces what Docker gives them.
    pub(crate) fn furnish(&self) -> Result<(), Error> {
        if self.has(Namespace::Cgroup) {
            sys::unshare_cgroup_namespace().map_err(Error::Cgroup)?;
        }
        if let Some(name) = &self.host_name {
            rustix::system::sethostname(name.as_bytes()).map_err(|error| Error::HostName(error.into()))?;
        }
        if let Some(name) = &self.domain_name {
            rustix::system::setdomainname(name.as_bytes())
                .map_err(|error| Error::DomainName(error.into()))?;
        }
        if self.has(Namespace::Network) {
            sys::interface_up(c"lo").map_err(Error::Loopback)?;
        }
        Ok(())
    }
}

fn non_empty(name: &Option<String>) -> Option<String> {
    name.clone().filter(|name| !name.is_empty())
}

/// Names are limited by the kernel to 64 bytes (`__NEW_UTS_LEN`).
fn check_name(field: &str, name: Option<&str>, own_uts: bool) -> Result<(), plan::Error> {
    let reason = match name {
        None => return Ok(()),
        Some(_) if !own_uts => "needs a UTS namespace",
        Some(name) if name.len() > 64 => "is longer than 64 bytes",
        Some(name) if name.contains('\0') => "contains a NUL byte",
        Some(_) => return Ok(()),
    };
    Err(plan::Error::Invalid {
        field: field.into(),
        reason: reason.into(),
    })
}

/// Checks that every kernel setting of `linux.sysctl` belongs to a namespace the container has for itself: any other
/// would change the host.
pub(crate) fn sysctls(
    linux: &Linux,
    namespaces: &Namespaces,
) -> Result<BTreeMap<String, String>, plan::Error> {
    const IPC: [&str; 8] = [
        "msgmax",
        "msgmnb",
        "msgmni",
        "sem",
        "shmall",
        "shmmax",
        "shmmni",
        "shm_rmid_forced",
    ];
    let mut sysctls = BTreeMap::new();
    for (name, value) in linux.sysctl().iter().flatten() {
        let segments: Vec<&str> = name.split(['.', '/']).collect();
        let owner = match segments.as_slice() {
            ["net", ..] => Some(Namespace::Network),
            ["kernel", setting] if IPC.contains(setting) => Some(Namespace::Ipc),
            ["fs", "mqueue", _] => Some(Namespace::Ipc),
            ["kernel", "hostname" | "domainname"] => Some(Namespace::Uts),
            _ => None,
        };
        let plain = segments
            .iter()
            .all(|segment| !segment.is_empty() && !segment.contains('\0'));
        let reason = match owner {
            Some(owner) if plain && namespaces.has(owner) => {
                // As in sysctl(8), the first separator decides which of the two stands for a level of the tree.
                let slashes = name
                    .find(['.', '/'])
                    .and_then(|at| name.get(at..))
                    .is_some_and(|rest| rest.starts_with('/'));
                let path = if slashes {
                    name.clone()
                } else {
                    swap_separators(name)
                };
                sysctls.insert(path, value.clone());
                continue;
            }
            Some(owner) if plain => format!("needs a namespace of its own: {owner:?}"),
            _ => "does not belong to a namespace, so that setting it would change the host".into(),
        };
        return Err(plan::Error::Invalid {
            field: format!("linux.sysctl[{name:?}]"),
            reason,
        });
    }
    Ok(sysctls)
}

/// From `net.ipv4.conf.eth0/1` to `net/ipv4/conf/eth0.1`.
fn swap_separators(name: &str) -> String {
    let swapped = name.chars().map(|letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    });
    swapped.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> Spec {
        serde_json::from_value(json).unwrap()
    }

    fn namespaces(kinds: &[&str]) -> serde_json::Value {
        kinds
            .iter()
            .map(|kind| serde_json::json!({"type": kind}))
            .collect()
    }

    fn read(spec: &Spec) -> Result<Namespaces, plan::Error> {
        Namespaces::new(spec, spec.linux().as_ref().unwrap())
    }

    #[test]
    fn flags_follow_the_list() {
        let cases: [(&[&str], u64); 3] = [
            (&["mount"], 0x0002_0000),
            (&["mount", "pid", "network"], 0x6002_0000),
            (&["pid", "mount", "uts", "ipc", "network", "cgroup"], 0x6c02_0000),
        ];
        for (kinds, expected) in cases {
            let spec =
                spec(serde_json::json!({"ociVersion": "1.2.0", "linux": {"namespaces": namespaces(kinds)}}));
            assert_eq!(read(&spec).unwrap().clone_flags(), expected, "{kinds:?}");
        }
    }

    #[test]
    fn lists_that_make_no_container_are_refused() {
        let cases: [(&[&str], &str); 4] = [
            (&["pid"], "linux.namespaces: a mount namespace is needed"),
            (&["mount", "pid", "pid"], "linux.namespaces[2]: is listed twice"),
            (
                &["mount", "user"],
                "linux.namespaces[1]: a user namespace is not supported",
            ),
            (&["mount"], "hostname: needs a UTS namespace"),
        ];
        for (kinds, expected) in cases {
            let spec = serde_json::json!({
                "ociVersion": "1.2.0", "hostname": "box", "linux": {"namespaces": namespaces(kinds)}
            });
            assert_eq!(read(&self::spec(spec)).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn only_settings_of_own_namespaces_are_taken() {
        let check = |kinds: &[&str], name: &str, expected: Result<&str, &str>| {
            let spec = spec(serde_json::json!({
                "ociVersion": "1.2.0",
                "linux": {"namespaces": namespaces(kinds), "sysctl": {name: "1"}},
            }));
            let linux = spec.linux().as_ref().unwrap();
            let actual = sysctls(linux, &read(&spec).unwrap());
            let actual = actual
                .map(|map| map.into_keys().next().unwrap())
                .map_err(|error| error.to_string());
            assert_eq!(actual, expected.map(str::to_owned).map_err(str::to_owned));
        };
        let all = ["mount", "network", "ipc"];
        check(&all, "net.ipv4.ip_forward", Ok("net/ipv4/ip_forward"));
        check(
            &all,
            "net/ipv4/conf/eth0.1/forwarding",
            Ok("net/ipv4/conf/eth0.1/forwarding"),
        );
        check(
            &all,
            "net.ipv4.conf.eth0/1.forwarding",
            Ok("net/ipv4/conf/eth0.1/forwarding"),
        );
        check(&all, "kernel.shmmax", Ok("kernel/shmmax"));
        check(
            &["mount"],
            "net.core.somaxconn",
            Err("linux.sysctl[\"net.core.somaxconn\"]: needs a namespace of its own: Network"),
        );
        for name in [
            "kernel.panic",
            "vm.swappiness",
            "net..x",
            "../net",
            "kernel.shm_rmid_forced.x",
        ] {
            let reason = "does not belong to a namespace, so that setting it would change the host";
            check(&all, name, Err(&format!("linux.sysctl[{name:?}]: {reason}")));
        }
    }
}
