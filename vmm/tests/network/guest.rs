//! The guest's half: does what the host asks for on a connection, one line for each request and answer.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::process::Command;

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::pattern;

/// The host's address, and the port of the control connection.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub(crate) const CONTROL: u16 = 5000;
/// Where datagrams go to that are counted.
pub(crate) const COUNTED: u16 = 5001;
pub(crate) const DATAGRAM: usize = 1400;

const BUSYBOX: &str = "/bin/busybox";

pub(crate) fn main() -> ! {
    for (source, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(target).unwrap();
        mount(source, target, source, MountFlags::empty(), None).unwrap();
    }
    for command in [
        "ip link set lo up",
        "ip addr add 10.77.0.2/24 dev eth0",
        "ip link set eth0 up",
    ] {
        assert!(busybox(command), "{command}");
    }
    let mut control = TcpStream::connect((HOST, CONTROL)).unwrap();
    let requests = BufReader::new(control.try_clone().unwrap());
    for request in requests.lines() {
        let request = request.unwrap();
        let words: Vec<&str> = request.split(' ').collect();
        let answer = serve(&words);
        writeln!(control, "{answer}").unwrap();
    }
    reboot(RebootCommand::Restart).unwrap();
    unreachable!("the machine was reset");
}

fn busybox(arguments: &str) -> bool {
    Command::new(BUSYBOX)
        .args(arguments.split(' '))
        .status()
        .unwrap()
        .success()
}

fn serve(words: &[&str]) -> String {
    let number = |index: usize| words[index].parse::<u64>().unwrap();
    let connect = || TcpStream::connect((HOST, u16::try_from(number(1)).unwrap())).unwrap();
    match words[0] {
        "ping" => busybox("ping -c 3 -q 10.77.0.1").to_string(),
        "send" => {
            pattern::send(connect(), number(2), number(3));
            "sent".into()
        }
        "receive" => pattern::receive(connect(), number(2)).to_string(),
        // Several streams at once, each from a thread of its own on a CPU of its own.
        "send_on" => {
            let (seed, bytes) = (number(3), number(4));
            let threads: Vec<_> = (0..usize::try_from(number(2)).unwrap())
                .map(|cpu| {
                    let stream = connect();
                    std::thread::spawn(move || {
                        let mut cpus = CpuSet::new();
                        cpus.set(cpu);
                        sched_setaffinity(None, &cpus).unwrap();
                        pattern::send(stream, seed, bytes);
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            "sent".into()
        }
        "queues" => {
            let queues = fs::read_dir("/sys/class/net/eth0/queues").unwrap();
            let names = queues.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name.starts_with("tx-")).count().to_string()
        }
        "address" => format!("{} {}", attribute("address"), attribute("mtu")),
        "flood" => {
            let socket = UdpSocket::bind((GUEST, 0)).unwrap();
            for _ in 0..number(1) {
                socket.send_to(&[7; DATAGRAM], (HOST, COUNTED)).unwrap();
            }
            "sent".into()
        }
        other => panic!("{other}"),
    }
}

fn attribute(name: &str) -> String {
    let text = fs::read_to_string(format!("/sys/class/net/eth0/{name}")).unwrap();
    text.trim().to_owned()
}
