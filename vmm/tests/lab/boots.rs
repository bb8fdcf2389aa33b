//! One machine after the other, and nothing of them stays.

use std::fs;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::machine::{Machine, Setup, disk};

/// Boots in the ordinary test run; `RVM_TEST_BOOTS` says otherwise.
const BOOTS: u32 = 15;

/// Boots before the first look: the kernel's caches fill.
const WARM_UP: u32 = 3;

/// Growth of the host's memory that is no leak: one guest takes about this much.
const MOST_GROWTH_KIB: u64 = 24 << 10;

pub(crate) fn in_a_row() {
    let boots = std::env::var("RVM_TEST_BOOTS").map_or(BOOTS, |count| count.parse().unwrap());
    let debug = tempfile::tempdir().unwrap();
    mount("debugfs", debug.path(), "debugfs", MountFlags::empty(), None).unwrap();
    let mut before = None;
    for number in 0..WARM_UP + boots {
        boot(number);
        if number + 1 == WARM_UP {
            before = Some((descriptors(), machines(debug.path()), memory_kib()));
        }
    }
    let (open, alive, memory) = before.unwrap();
    let after = memory_kib();
    println!("{boots} boots, memory of the host from {memory} to {after} KiB");
    assert_eq!((descriptors(), machines(debug.path())), (open, alive));
    assert!(
        after < memory + MOST_GROWTH_KIB,
        "{memory} KiB became {after} KiB"
    );
    unmount(debug.path(), UnmountFlags::empty()).unwrap();
}

/// A machine with everything, whose guest uses some of it.
fn boot(number: u32) {
    let mut setup = Setup::new(format!(
        "mke2fs -F /dev/vda >/tmp/error 2>&1; mount -t ext4 /dev/vda /mnt; echo {number} >/mnt/file; umount /mnt"
    ));
    setup.vcpus = if number.is_multiple_of(2) { 1 } else { 2 };
    setup.vsock = true;
    setup.disks = vec![(vec![disk(16 << 20)], false)];
    Machine::start(&setup).success();
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Virtual machines that KVM knows: it has a directory for each.
fn machines(debug: &Path) -> usize {
    let entries = fs::read_dir(debug.join("kvm")).unwrap();
    entries
        .filter(|entry| entry.as_ref().unwrap().path().is_dir())
        .count()
}

/// What no cache explains: anonymous memory, page tables, kernel stacks, and slabs that cannot be reclaimed.
fn memory_kib() -> u64 {
    let table = fs::read_to_string("/proc/meminfo").unwrap();
    let value = |name: &str| {
        let line = table.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim()
            .strip_suffix(" kB")
            .unwrap()
            .trim()
            .parse::<u64>()
            .unwrap()
    };
    ["AnonPages:", "PageTables:", "KernelStack:", "SUnreclaim:"]
        .into_iter()
        .map(value)
        .sum()
}
