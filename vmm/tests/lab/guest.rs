//! The half of the tests that runs in the guest.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Command, ExitCode};

use rustix::mount::{MountFlags, mount};
use rustix::system::RebootCommand;
use rvm_vmm::machine::POWER_OFF_DOORBELL;

use crate::sys;

/// What the console shows when the job has succeeded.
pub(crate) const SUCCESS: &str = "the job has succeeded";

/// PID 1: runs the job and resets the machine.
pub(crate) fn init() -> ! {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
    ] {
        if let Err(error) = mount(kind, target, kind, MountFlags::empty(), None) {
            println!("cannot mount {target}: {error}");
        }
    }
    let busybox = |arguments: &[&str]| {
        let mut command = Command::new("/bin/busybox");
        command.args(arguments).env("PATH", "/bin").status()
    };
    let installed = busybox(&["--install", "-s", "/bin"]);
    match installed.and_then(|_| busybox(&["sh", "-e", "/job"])) {
        Ok(status) if status.success() => println!("{SUCCESS}"),
        result => println!("the job has failed: {result:?}"),
    }
    sys::ring(POWER_OFF_DOORBELL).unwrap();
    rustix::system::reboot(RebootCommand::Restart).unwrap();
    unreachable!("the machine was reset");
}

/// What a job calls as `/init guest ...`.
pub(crate) fn helper(arguments: &[String]) -> ExitCode {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["ring", value] => sys::ring(value.parse().unwrap()).unwrap(),
        ["echo", port, doorbell] => echo(port.parse().unwrap(), doorbell.parse().unwrap()),
        ["is-refused", port] => {
            let refused = sys::connect_to_host(port.parse().unwrap());
            assert!(refused.is_err(), "the host has no listener: {refused:?}");
        }
        _ => panic!("no such helper: {arguments:?}"),
    }
    ExitCode::SUCCESS
}

/// Sends one connection's bytes back; rings the doorbell when it listens.
fn echo(port: u32, doorbell: u8) {
    let listener = sys::listen_vsock(port).unwrap();
    sys::ring(doorbell).unwrap();
    let mut stream = File::from(rustix::net::accept(&listener).unwrap());
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            return;
        }
        stream.write_all(&buffer[..count]).unwrap();
    }
}
