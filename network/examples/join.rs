//! What it costs to join a network and to leave it, by how many members there are already, on the same network and on another.
//! For tests/benches/join: it makes bridges and rules in the network namespace that it is started in.
//!
//! ```sh
//! join DIRECTORY COUNT...
//! ```

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::fs::{FlockOperation, flock};
use rvm_network::endpoint::{Protocol, Published};
use rvm_network::{Addressing, Blueprint, Plane, Port, Wish};

/// Joins and departures of which the median is told.
const ROUNDS: usize = 9;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().context("no DIRECTORY")?);
    println!("members before, join the same network, leave it, join another network, leave it (ms)");
    for count in arguments {
        let count: u16 = count.parse()?;
        let place = directory.join(count.to_string());
        let mut crowd = Crowd::new(&place)?;
        for _ in 0..count {
            crowd.join("crowded")?;
        }
        let [join, leave] = crowd.measure("crowded")?;
        crowd.join("other")?;
        let [join_other, leave_other] = crowd.measure("other")?;
        println!("{count} {join:.2} {leave:.2} {join_other:.2} {leave_other:.2}");
        crowd.end()?;
    }
    Ok(())
}

/// Members, whose owner this process is.
struct Crowd {
    plane: Plane,
    containers: PathBuf,
    locks: Vec<(String, File)>,
    last: u16,
}

impl Crowd {
    fn new(place: &Path) -> Result<Self> {
        let containers = place.join("root/containers");
        fs::create_dir_all(&containers)?;
        let plane = Plane::new(&place.join("root"), &place.join("run"));
        for (name, second) in [("crowded", 64), ("other", 65)] {
            let subnet = Some((Ipv4Addr::new(10, second, 0, 0), 16));
            let ipv4 = Addressing {
                subnet,
                ..Addressing::default()
            };
            let name = name.to_owned();
            let id = format!("{second:064x}");
            plane.create(
                &Blueprint {
                    name,
                    ipv4,
                    ..Blueprint::default()
                },
                format!("{second:08x}{}", &id[8..]),
            )?;
        }
        Ok(Self {
            plane,
            containers,
            locks: Vec::new(),
            last: 0,
        })
    }

    /// As the engine does it: who has the lock of a container's directory owns it.
    fn is_owned(&self, container: &str) -> bool {
        let open = File::open(self.containers.join(container));
        open.is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_err())
    }

    fn join(&mut self, network: &str) -> Result<Duration> {
        self.last += 1;
        let container = format!("{:064x}", self.last);
        let directory = self.containers.join(&container);
        fs::create_dir(&directory)?;
        let lock = File::open(&directory)?;
        flock(&lock, FlockOperation::LockExclusive)?;
        self.locks.push((container.clone(), lock));
        let published = Published {
            protocol: Protocol::Tcp,
            host_address: Ipv4Addr::UNSPECIFIED.into(),
            host_port: 10_000 + self.last,
            container_port: 80,
        };
        let wish = Wish {
            network: self.plane.find(network)?.id,
            container,
            names: vec![format!("c{}", self.last)],
            port: Port::Veth,
            ipv4: None,
            ipv6: None,
            mac: None,
            dns_servers: Vec::new(),
            published: vec![published],
            egress: None,
        };
        let start = Instant::now();
        self.plane.join(&[wish], &|container| self.is_owned(container))?;
        Ok(start.elapsed())
    }

    /// The last one leaves.
    fn leave(&mut self) -> Result<Duration> {
        let (container, lock) = self.locks.pop().context("nobody is there")?;
        let start = Instant::now();
        self.plane
            .leave(&container, None, &|container| self.is_owned(container))?;
        let elapsed = start.elapsed();
        drop(lock);
        fs::remove_dir(self.containers.join(container))?;
        Ok(elapsed)
    }

    /// Medians of joining and leaving, in milliseconds.
    fn measure(&mut self, network: &str) -> Result<[f64; 2]> {
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            times[0].push(self.join(network)?);
            times[1].push(self.leave()?);
        }
        Ok(times.map(|mut times| {
            times.sort_unstable();
            times.get(ROUNDS / 2).copied().unwrap_or_default().as_secs_f64() * 1000.0
        }))
    }

    fn end(mut self) -> Result<()> {
        while !self.locks.is_empty() {
            self.leave()?;
        }
        Ok(())
    }
}
