//! `rvm-vmm` as its supervisor starts it: descriptors in, events out. What needs no KVM.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output};

use rustix::io::{FdFlags, fcntl_setfd};
use rvm_vmm::config::{CONFIG_VERSION, DiskConfig, DiskPart, VmConfig};
use rvm_vmm::event::{Event, StopReason, Stopped};

/// A file that the child inherits.
fn inherited(contents: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(contents).unwrap();
    file.rewind().unwrap();
    fcntl_setfd(&file, FdFlags::empty()).unwrap();
    file
}

/// Starts `rvm-vmm` on a machine of an empty kernel and no KVM, changed by `change`.
fn run(change: impl FnOnce(&mut VmConfig)) -> (Output, Vec<Event>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let theirs = OwnedFd::from(theirs);
    fcntl_setfd(&theirs, FdFlags::empty()).unwrap();
    let (kvm, kernel) = (
        inherited(b""),
        inherited(b"#!/bin/sh\necho I am not a kernel, but as long as its header\n"),
    );
    let mut config = VmConfig {
        version: CONFIG_VERSION,
        vcpus: 1,
        memory_mib: 64,
        kvm_fd: kvm.as_raw_fd(),
        kernel_fd: kernel.as_raw_fd(),
        initrd_fds: Vec::new(),
        cmdline: String::new(),
        console_fd: None,
        disks: Vec::new(),
        networks: Vec::new(),
        vsock: None,
        file_systems: Vec::new(),
        doorbell_port: None,
        events_fd: theirs.as_raw_fd(),
        user: None,
        namespaces: None,
    };
    change(&mut config);
    let file = inherited(&serde_json::to_vec(&config).unwrap());
    let output = Command::new(env!("CARGO_BIN_EXE_rvm-vmm"))
        .args(["--config", &file.as_raw_fd().to_string()])
        .output()
        .unwrap();
    drop(theirs);
    let lines = BufReader::new(ours).lines();
    (
        output,
        lines
            .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
            .collect(),
    )
}

/// The failure is told twice: as the only event, and as one line on standard error.
fn check_setup_failure(change: impl FnOnce(&mut VmConfig), expected: &str) {
    let (output, events) = run(change);
    assert_eq!(output.status.code(), Some(1));
    let [
        Event::Stopped(Stopped {
            reason: StopReason::Setup,
            detail,
            ..
        }),
    ] = events.as_slice()
    else {
        panic!("{events:?}");
    };
    assert!(detail.contains(expected), "{detail}");
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        format!("rvm-vmm: {detail}\n")
    );
}

#[test]
fn a_wrong_kernel_is_reported() {
    check_setup_failure(|_| (), "not an ELF file");
}

#[test]
fn a_descriptor_that_is_not_open_is_reported() {
    check_setup_failure(
        |config| config.kernel_fd = 999,
        "the descriptor for the kernel cannot be used",
    );
    check_setup_failure(|config| config.initrd_fds = vec![998], "initial ramdisk");
    let disk = DiskConfig {
        parts: vec![DiskPart { fd: 997, bytes: 512 }],
        read_only: true,
    };
    check_setup_failure(|config| config.disks = vec![disk], "disk");
}

#[test]
fn standard_streams_are_not_taken_over() {
    check_setup_failure(
        |config| config.kernel_fd = 0,
        "the descriptor for the kernel cannot be used",
    );
}

#[test]
fn a_configuration_that_makes_no_sense_is_told_on_standard_error() {
    let check = |change: fn(&mut VmConfig), expected: &str| {
        let (output, events) = run(change);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), events.len()), (Some(1), 0), "{stderr}");
        assert!(
            stderr.contains(expected) && stderr.lines().count() == 1,
            "{stderr}"
        );
    };
    check(|config| config.version = 77, "version 77");
    check(|config| config.vcpus = 0, "0 virtual CPUs");
    check(|config| config.events_fd = 999, "events socket");
}

#[test]
fn usage_is_told() {
    for arguments in [
        &[][..],
        &["--config"],
        &["--config", "x"],
        &["--config", "3", "4"],
        &["--config", "12345"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_rvm-vmm"))
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(
            stderr.starts_with("rvm-vmm: ") && stderr.lines().count() == 1,
            "{stderr}"
        );
    }
}
