//! Kernel parameters of a container's own namespaces.

use std::collections::{BTreeMap, HashMap};

use super::Error;

/// Every user may listen on low ports and send pings, because the ports are the container's own.
const DEFAULTS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];

/// Those that Docker takes, of the IPC namespace.
const ALLOWED: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Likewise, of the network and the IPC namespace.
const ALLOWED_BELOW: [&str; 2] = ["net.", "fs.mqueue."];

/// All parameters: what was given wins over the defaults. Where the network is another's, there are none of it.
///
/// # Errors
/// [`Error::Sysctl`] for what is not a namespace's, and so would be everybody's; [`Error::SysctlOfNetwork`].
pub(super) fn parameters(
    given: &BTreeMap<String, String>,
    shares_network: bool,
) -> Result<HashMap<String, String>, Error> {
    let defaults = DEFAULTS.into_iter().filter(|_| !shares_network);
    let mut all: HashMap<_, _> = defaults
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    for (name, value) in given {
        let below = ALLOWED_BELOW.iter().any(|above| name.starts_with(above));
        // Neither `..` nor what ends in a directory.
        let plain = name.split(['.', '/']).all(|part| !part.is_empty());
        if !plain || !(below || ALLOWED.contains(&name.as_str())) {
            return Err(Error::Sysctl(name.clone()));
        }
        if shares_network && name.starts_with("net") {
            return Err(Error::SysctlOfNetwork(name.clone()));
        }
        all.insert(name.clone(), value.clone());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_of_namespaces_are_taken() {
        for (name, allowed) in [
            ("net.ipv4.ip_forward", true),
            ("net.ipv4.conf.eth0/1.forwarding", true),
            ("net.ipv4.ip_unprivileged_port_start", true),
            ("kernel.shm_rmid_forced", true),
            ("fs.mqueue.msg_max", true),
            ("kernel.hostname", false),
            ("kernel.panic", false),
            ("kernel.shmmax.x", false),
            ("vm.swappiness", false),
            ("net", false),
            ("net.", false),
            ("net.../kernel.panic", false),
            ("net/ipv4/ip_forward", false),
            ("fs.mqueue", false),
            ("", false),
        ] {
            let given = BTreeMap::from([(name.to_owned(), "1".to_owned())]);
            match parameters(&given, false) {
                Ok(all) => assert!(allowed && all[name] == "1", "{name}"),
                Err(error) => {
                    assert!(
                        !allowed && error.to_string().contains("is not allowed"),
                        "{name}: {error}"
                    );
                }
            }
        }
        assert_eq!(parameters(&BTreeMap::new(), false).unwrap().len(), 2);
        assert_eq!(parameters(&BTreeMap::new(), true).unwrap().len(), 0);
        let given = BTreeMap::from([("net.ipv4.ip_forward".to_owned(), "1".to_owned())]);
        assert!(matches!(parameters(&given, true), Err(Error::SysctlOfNetwork(_))));
    }
}
