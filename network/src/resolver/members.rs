//! The names of a network's members, as its directory of endpoints tells them.
//!
//! The directory is looked at for each question and read again when it has changed; every change of it is a rename or a
//! removal, which its time of change tells. Two changes may come within one tick of the clock that gives that time, so a
//! directory that has changed just now is read again for the next question, too.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{Dir, Mode, OFlags};

use super::process::ENDPOINTS;
use crate::definition::Definition;
use crate::endpoint::Endpoint;

/// Longer than a tick of any kernel's clock.
const TICK: Duration = Duration::from_millis(50);

/// Bytes of an endpoint's file: far more than there are ports.
const MOST_FILE: u64 = 16 << 20;

/// A network's members, and those of other networks that one of them is on as well.
#[derive(Debug)]
pub struct Members {
    network: Definition,
    own: Directory,
    /// The directory of all networks.
    networks: Option<File>,
    others: Mutex<HashMap<CString, Arc<Directory>>>,
    turn: AtomicUsize,
}

/// A directory of endpoints.
#[derive(Debug)]
struct Directory {
    file: File,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// When the directory had changed last, where that is enough to know it again.
    changed: Option<SystemTime>,
    table: Arc<Table>,
}

/// All members at one time.
#[derive(Debug, Default)]
pub struct Table {
    endpoints: Vec<Arc<Endpoint>>,
    names: HashMap<String, Vec<usize>>,
    addresses: HashMap<IpAddr, usize>,
}

/// What a name or an address stands for.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<T> {
    /// This.
    Member(T),
    /// Nothing, and nobody else is to be asked.
    Nobody,
    /// Something outside of the network.
    Elsewhere,
}

impl Directory {
    fn new(file: OwnedFd) -> Self {
        Self {
            file: file.into(),
            seen: Mutex::default(),
        }
    }

    fn now(&self) -> io::Result<Arc<Table>> {
        let metadata = self.file.metadata()?;
        if metadata.nlink() == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        let changed = metadata.modified()?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.changed != Some(changed) {
            seen.table = Arc::new(Table::read(&self.file)?);
            let is_settled = SystemTime::now()
                .duration_since(changed)
                .is_ok_and(|age| age > TICK);
            seen.changed = is_settled.then_some(changed);
        }
        Ok(seen.table.clone())
    }
}

impl Members {
    /// Of a network whose endpoints are in a directory. With the directory of all networks, a member is told the names of
    /// its other ones, too: which server a program asks is not its choice.
    #[must_use]
    pub fn new(network: Definition, directory: OwnedFd, networks: Option<OwnedFd>) -> Self {
        Self {
            network,
            own: Directory::new(directory),
            networks: networks.map(File::from),
            others: Mutex::default(),
            turn: AtomicUsize::new(0),
        }
    }

    /// The network.
    #[must_use]
    pub fn network(&self) -> &Definition {
        &self.network
    }

    /// The members now.
    ///
    /// # Errors
    /// A directory that cannot be read, or is gone.
    pub fn now(&self) -> io::Result<Arc<Table>> {
        self.own.now()
    }

    /// The members of the other networks that a container is on.
    ///
    /// # Errors
    /// Those of reading directories. One that has gone meanwhile has no members.
    pub fn others(&self, container: &str) -> io::Result<Vec<Arc<Table>>> {
        let Some(networks) = &self.networks else {
            return Ok(Vec::new());
        };
        let mut known = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = HashMap::new();
        let mut tables = Vec::new();
        for entry in Dir::read_from(networks)? {
            let entry = entry?;
            let id = entry.file_name().to_owned();
            let name = id.to_string_lossy();
            if name.starts_with('.') || name == self.network.id.as_str() {
                continue;
            }
            // Made anew, it is another one.
            let at = format!("{name}/{ENDPOINTS}");
            let known = known.remove(&id).filter(|known| known.now().is_ok());
            let opened = match known {
                Some(known) => Ok(known),
                None => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                    let opened = rustix::fs::openat(networks, at, flags, Mode::empty());
                    opened.map(|file| Arc::new(Directory::new(file)))
                }
            };
            if let Ok(directory) = opened {
                if let Ok(table) = directory.now()
                    && table.has(container)
                {
                    tables.push(table);
                }
                found.insert(id, directory);
            }
        }
        *known = found;
        Ok(tables)
    }

    /// The addresses of a name; each time with another one first.
    pub fn addresses(&self, table: &Table, name: &str) -> Found<Vec<IpAddr>> {
        let suffix = self.network.name.to_lowercase();
        let short = name.strip_suffix(&suffix).and_then(|name| name.strip_suffix('.'));
        let found = table.names.get(name);
        let found = found.or_else(|| short.and_then(|short| table.names.get(short)));
        let Some(found) = found else {
            return Found::Elsewhere;
        };
        let endpoints = found.iter().filter_map(|index| table.endpoints.get(*index));
        let mut endpoints: Vec<_> = endpoints.collect();
        if !endpoints.is_empty() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % endpoints.len();
            endpoints.rotate_left(turn);
        }
        let ipv4 = endpoints.iter().map(|endpoint| IpAddr::V4(endpoint.ipv4));
        let ipv6 = endpoints
            .iter()
            .filter_map(|endpoint| endpoint.ipv6.map(IpAddr::V6));
        Found::Member(ipv4.chain(ipv6).collect())
    }

    /// The name of an address. One of the network that nobody has is nobody's outside either.
    #[must_use]
    pub fn name(&self, table: &Table, address: IpAddr) -> Found<String> {
        if let Some(name) = table.name(address) {
            return Found::Member(format!("{name}.{}", self.network.name));
        }
        let is_ours = match address {
            IpAddr::V4(address) => self.network.ipv4.contains(address),
            IpAddr::V6(address) => self.network.ipv6.is_some_and(|subnet| subnet.contains(address)),
        };
        if is_ours { Found::Nobody } else { Found::Elsewhere }
    }
}

impl Table {
    fn read(directory: &File) -> io::Result<Self> {
        let mut table = Self::default();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            // One that begins with a dot is being written.
            if name.to_bytes().starts_with(b".") || !name.to_bytes().ends_with(b".json") {
                continue;
            }
            match read_endpoint(directory, name) {
                Ok(endpoint) => table.add(endpoint),
                // It left in this moment, and the directory has changed again.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // The others are to be found nevertheless.
                Err(error) => eprintln!("rvm-resolver: {}: {error}", name.to_string_lossy()),
            }
        }
        Ok(table)
    }

    fn add(&mut self, endpoint: Endpoint) {
        let index = self.endpoints.len();
        for name in &endpoint.names {
            let indices = self.names.entry(name.to_lowercase()).or_default();
            if !indices.contains(&index) {
                indices.push(index);
            }
        }
        self.addresses.insert(endpoint.ipv4.into(), index);
        if let Some(address) = endpoint.ipv6 {
            self.addresses.insert(address.into(), index);
        }
        self.endpoints.push(Arc::new(endpoint));
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    fn has(&self, container: &str) -> bool {
        self.endpoints
            .iter()
            .any(|endpoint| endpoint.container == container)
    }

    /// The name of an address's member.
    #[must_use]
    pub fn name(&self, address: IpAddr) -> Option<&str> {
        let endpoint = self.by_address(address)?;
        endpoint.names.first().map(String::as_str)
    }

    /// The member that has an address.
    #[must_use]
    pub fn by_address(&self, address: IpAddr) -> Option<&Arc<Endpoint>> {
        let index = self.addresses.get(&address.to_canonical())?;
        self.endpoints.get(*index)
    }
}

fn read_endpoint(directory: &File, name: &CStr) -> io::Result<Endpoint> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file: File = rustix::fs::openat(directory, name, flags, Mode::empty())?.into();
    let mut content = Vec::new();
    file.take(MOST_FILE).read_to_end(&mut content)?;
    Ok(serde_json::from_slice(&content)?)
}
