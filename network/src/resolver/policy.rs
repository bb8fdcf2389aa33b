//! What a member with a policy may ask, and where its answers let it go.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::endpoint::{Egress, Endpoint};

/// How much longer than its answer says an address is allowed: the answer is on its way, and then connected to.
const MARGIN: Duration = Duration::from_secs(60);

/// The longest that an answer may be kept (RFC 8767, section 4).
const MOST_TTL: u32 = 7 * 24 * 60 * 60;

/// Where a machine of Amazon's is told its credentials by IPv6; the address by IPv4 is one of the link.
const METADATA: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254));

/// Bytes of the log of refused questions. Then it begins anew.
const MOST_LOG: u64 = 1 << 20;

impl Egress {
    /// Whether a name may be asked about: one without a dot at its end, in lower case.
    #[must_use]
    pub fn allows_name(&self, name: &str) -> bool {
        self.names.iter().any(|allowed| match allowed.strip_prefix("*.") {
            Some(above) => name
                .strip_suffix(above)
                .and_then(|below| below.strip_suffix('.'))
                .is_some_and(|below| !below.is_empty()),
            None => name == allowed,
        })
    }
}

/// Lets a member go to addresses.
pub trait Allow: Send + Sync {
    /// Returns when it may.
    ///
    /// # Errors
    /// What is the matter with the host's rules.
    fn allow(&self, interface: &str, addresses: &[(IpAddr, Duration)]) -> io::Result<()>;
}

/// How long each of the addresses that an answer told is allowed: once each, with the longest time that is told of it. Those are
/// left out that are a loopback interface's, the link's or everybody's, because a name of the world's has no business with them:
/// what it says may not open a way to what listens there. Other addresses of this host are not opened by a name, either, whatever
/// is in the sets ([`crate::rules`]).
#[must_use]
pub fn allowed(told: Vec<(IpAddr, u32)>) -> Vec<(IpAddr, Duration)> {
    let mut longest = BTreeMap::new();
    for (address, ttl) in told.into_iter().filter(|(address, _)| is_global(*address)) {
        let known = longest.entry(address).or_insert(0);
        *known = ttl.min(MOST_TTL).max(*known);
    }
    let time = |ttl: u32| Duration::from_secs(ttl.into()) + MARGIN;
    longest
        .into_iter()
        .map(|(address, ttl)| (address, time(ttl)))
        .collect()
}

fn is_global(address: IpAddr) -> bool {
    let is_nobody_s = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    if is_nobody_s || address == METADATA {
        return false;
    }
    match address {
        IpAddr::V4(address) => !address.is_link_local() && !address.is_broadcast(),
        IpAddr::V6(address) => !is_link_local(address) && address.to_ipv4_mapped().is_none(),
    }
}

fn is_link_local(address: Ipv6Addr) -> bool {
    let [first, ..] = address.segments();
    first & 0xffc0 == 0xfe80
}

/// The log of questions that were refused: a line of JSON for each.
#[derive(Debug)]
pub struct Log(Mutex<File>);

#[derive(Serialize)]
struct Line<'a> {
    time_ms: u64,
    container: &'a str,
    /// `null` where it is none that a host can have.
    name: Option<&'a str>,
    /// Its number.
    #[serde(rename = "type")]
    kind: u16,
}

impl Log {
    /// Writes to the end of a file.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self(Mutex::new(file))
    }

    /// Writes a line. That it cannot changes nothing of the answer, so it is said where the program says all.
    pub fn refused(&self, member: &Endpoint, name: Option<&str>, kind: u16) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = Line {
            time_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            container: &member.container,
            name,
            kind,
        };
        let file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = append(&file, &line) {
            eprintln!("rvm-resolver: cannot write the log of refused names: {error}");
        }
    }
}

fn append(mut file: &File, line: &Line<'_>) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    if file.metadata()?.len() >= MOST_LOG {
        file.set_len(0)?;
    }
    file.write_all(&bytes)
}
