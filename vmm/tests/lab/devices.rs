//! Every device at work, with the process and its threads under the filters that they have in service: a system call that
//! a filter lacks ends the machine with SIGSYS, and the test with it.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::thread;

use crate::machine::{Machine, Setup, disk, wait_until};

const MIB: usize = 1 << 20;

/// One device after the other. `use_disks` and `use_vsock` are run again after each driver has let its device go and taken
/// it again.
const JOB: &str = r#"
use_disks() {
  dd if=/dev/urandom of=/tmp/pattern bs=64k count=32 2>/tmp/error
  dd if=/tmp/pattern of=/dev/vdb bs=64k conv=fsync 2>/tmp/error
  dd if=/tmp/pattern of=/dev/vdb bs=64k seek=32 oflag=direct 2>/tmp/error
  sync
  for skip in 0 32; do
    dd if=/dev/vdb of=/tmp/back bs=64k count=32 skip=$skip iflag=direct 2>/tmp/error
    cmp /tmp/pattern /tmp/back
  done
  blkdiscard -o 0 -l 1048576 /dev/vdb
  dd if=/dev/vdb of=/tmp/back bs=64k count=16 iflag=direct 2>/tmp/error
  head -c 1048576 /dev/zero | cmp - /tmp/back
  dd if=/dev/vda bs=64k count=2 iflag=direct 2>/tmp/error | od -A n -t c | head -n 1
  if dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync 2>/tmp/error; then echo 'vda was written'; false; fi
  mke2fs -F /dev/vdb >/tmp/error 2>&1
  mount -t ext4 /dev/vdb /mnt
  cp /tmp/pattern /mnt/file
  umount /mnt
  mount -t ext4 -o discard /dev/vdb /mnt
  cmp /tmp/pattern /mnt/file
  rm /mnt/file
  sync
  umount /mnt
}
use_vsock() { # PORT DOORBELL
  if /init guest is-refused 99; then :; else false; fi
  /init guest echo "$1" "$2"
}
use_entropy() {
  test "$(cat /sys/class/misc/hw_random/rng_current)" != none
  test "$(dd if=/dev/hwrng bs=1024 count=64 2>/tmp/error | wc -c)" = 65536
}
use_balloon() { # frees enough to be reported
  head -c 50331648 /dev/zero >/tmp/large
  rm /tmp/large
}
use_disks
use_vsock 1000 11
use_entropy
use_balloon
devices=0
for device in /sys/bus/virtio/devices/*; do
  name=${device##*/}
  driver=$(readlink -f "$device/driver")
  echo "$name" >"$driver/unbind"
  test ! -e "$device/driver"
  echo "$name" >"$driver/bind"
  test -e "$device/driver"
  devices=$((devices + 1))
done
echo "$devices devices were taken again"
use_disks
use_vsock 1001 12
use_entropy
use_balloon
"#;

pub(crate) fn all() {
    let mut setup = Setup::new(JOB);
    setup.memory_mib = 256;
    setup.vcpus = 2;
    setup.vsock = true;
    let lower = ["the first file", "the second file"].map(|text| {
        let mut file = disk(64 << 10);
        file.write_all(text.as_bytes()).unwrap();
        file
    });
    setup.disks = vec![(lower.into(), true), (vec![disk(32 << 20)], false)];
    let mut machine = Machine::start(&setup);
    for (port, doorbell) in [(1000, 11), (1001, 12)] {
        machine.wait_for_doorbell(doorbell);
        every_thread_is_filtered(machine.pid());
        echo(&machine, port);
    }
    let console = machine.success();
    // Two disks, a socket device, entropy and a balloon.
    assert!(console.contains("5 devices were taken again"), "{console}");
}

/// What is sent comes back, more of it than either side holds at a time.
fn echo(machine: &Machine, port: u32) {
    let mut stream = machine.connect(port);
    let sent: Vec<u8> = (0..4 * MIB).map(|index| (index % 251).to_le_bytes()[0]).collect();
    let mut sender = stream.try_clone().unwrap();
    let copy = sent.clone();
    let sending = thread::spawn(move || {
        sender.write_all(&copy).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    sending.join().unwrap();
    assert!(
        sent == received,
        "{} bytes came back of {}",
        received.len(),
        sent.len()
    );
}

fn every_thread_is_filtered(pid: u32) {
    let mut threads = String::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap()
                .trim()
        };
        let _ = writeln!(threads, "{} {}", field("Name:"), field("Seccomp:"));
    }
    assert!(threads.lines().count() >= 5, "{threads}");
    assert!(threads.lines().all(|line| line.ends_with(" 2")), "{threads}");
}

/// Resident memory of a process in bytes.
fn resident(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim()
        .strip_suffix(" kB")
        .unwrap()
        .trim()
        .parse::<usize>()
        .unwrap()
        * 1024
}

pub(crate) fn balloon() {
    let mut setup = Setup::new(
        "head -c 100663296 /dev/zero >/tmp/large; /init guest echo 1000 7; rm /tmp/large; sleep 1000",
    );
    setup.memory_mib = 256;
    setup.vsock = true;
    let mut machine = Machine::start(&setup);
    machine.wait_for_doorbell(7);
    let used = resident(machine.pid());
    assert!(used > 96 * MIB, "{used}");
    // The end of the connection is what the guest waits for.
    drop(machine.connect(1000));
    wait_until("the host has got it back", || {
        resident(machine.pid()) < used - 84 * MIB
    });
}

/// More memory than the host has, most of it beyond the hole; Linux takes pages from the top, so that devices read and
/// write there.
pub(crate) fn large_memory() {
    let mut setup = Setup::new(
        r#"
        test "$(awk '/^MemTotal/ {print int($2 / 1048576)}' /proc/meminfo)" -ge 31
        grep -i ' : system ram' /proc/iomem
        dd if=/dev/urandom of=/tmp/pattern bs=1M count=32 2>/tmp/error
        dd if=/tmp/pattern of=/dev/vda bs=1M oflag=direct 2>/tmp/error
        dd if=/dev/vda of=/tmp/back bs=1M iflag=direct 2>/tmp/error
        cmp /tmp/pattern /tmp/back
        "#,
    );
    setup.memory_mib = 32 << 10;
    setup.disks = vec![(vec![disk(32 << 20)], false)];
    let console = Machine::start(&setup).success();
    assert!(console.contains("100000000-83fffffff : System RAM"), "{console}");
}
