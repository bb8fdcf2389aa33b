//! Settings of this machine's kernel that networks need.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::files::{Error, error};

/// Where they are.
const NET: &str = "/proc/sys/net";

/// Sets `path`, below [`NET`], unless it has that value. A kernel without IPv6 has no settings of it.
fn set(path: &str, value: &str) -> Result<(), Error> {
    let path = Path::new(NET).join(path);
    match fs::read_to_string(&path) {
        Ok(now) if now.trim() == value => Ok(()),
        Err(failure)
            if failure.kind() == io::ErrorKind::NotFound && path.starts_with("/proc/sys/net/ipv6") =>
        {
            Ok(())
        }
        Err(failure) => Err(error("read", &path)(failure)),
        Ok(_) => fs::write(&path, value).map_err(error("write", &path)),
    }
}

/// Lets the host forward packets of IPv4.
pub(crate) fn forward_ipv4() -> Result<(), Error> {
    set("ipv4/ip_forward", "1")
}

/// Lets the host forward packets of IPv6. A host that does so does not listen to routers any more, unless its interfaces
/// say that they do all the same; so those that have listened so far go on.
pub(crate) fn forward_ipv6() -> Result<(), Error> {
    let conf = PathBuf::from(NET).join("ipv6/conf");
    let value = |path: PathBuf| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    if value(conf.join("all/forwarding")) == "1" {
        return Ok(());
    }
    for entry in fs::read_dir(&conf).map_err(error("list", &conf))? {
        let interface = entry.map_err(error("list", &conf))?.path();
        let listens = interface.join("accept_ra");
        if value(listens.clone()) == "1" && value(interface.join("forwarding")) == "0" {
            fs::write(&listens, "2").map_err(error("write", &listens))?;
        }
    }
    set("ipv6/conf/all/forwarding", "1")
}

/// Prepares a bridge: without IPv6 it has none, not even an address of its own making; with it, the host's addresses are
/// usable at once.
pub(crate) fn prepare_bridge(name: &str, has_ipv6: bool) -> Result<(), Error> {
    if has_ipv6 {
        set(&format!("ipv6/conf/{name}/accept_dad"), "0")?;
        set(&format!("ipv6/conf/{name}/accept_ra"), "0")
    } else {
        set(&format!("ipv6/conf/{name}/disable_ipv6"), "1")
    }
}
