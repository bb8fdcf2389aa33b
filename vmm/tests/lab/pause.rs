//! A machine that is paused does nothing, and goes on as if nothing had been.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rvm_vmm::event::Event;
use rvm_vmm::status::DriverStatus;

use crate::machine::{Machine, Setup, disk, let_pass, wait_until};

/// How long a machine is looked at that is to do nothing.
const WATCHED: Duration = Duration::from_millis(500);

/// A machine is paused within this, emulated or not.
const BOUND: Duration = Duration::from_secs(5);

/// Rings, then counts on the console for as long as it runs; a second processor, if there is one, sleeps.
const COUNTER: &str = "/init guest ring 7; i=0; while :; do i=$((i+1)); echo count $i; done";

/// Ticks of processor time that a process has used (proc(5): `utime`, `stime`), of which there are 100 in a second.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// The machine makes no progress for a while, and uses no processor time.
fn is_still(machine: &Machine) {
    let before = (machine.console().len(), ticks(machine.pid()));
    let_pass(WATCHED);
    let after = (machine.console().len(), ticks(machine.pid()));
    assert_eq!(before.0, after.0, "a paused guest wrote");
    assert!(
        after.1 - before.1 <= 1,
        "a paused machine used {} ticks",
        after.1 - before.1
    );
}

fn goes_on(machine: &Machine) {
    let before = machine.console().len();
    wait_until("the guest goes on", || machine.console().len() > before);
}

fn paused_in_time(machine: &mut Machine) {
    let start = Instant::now();
    machine.pause();
    assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
}

pub(crate) fn spinning_and_halted() {
    for vcpus in [1, 4] {
        let mut setup = Setup::new(COUNTER);
        setup.vcpus = vcpus;
        let mut machine = Machine::start(&setup);
        machine.wait_for_doorbell(7);
        for _ in 0..5 {
            goes_on(&machine);
            paused_in_time(&mut machine);
            // Once more changes nothing.
            paused_in_time(&mut machine);
            assert!(machine.status().paused);
            is_still(&machine);
            machine.resume();
            machine.resume();
            assert!(!machine.status().paused);
        }
        goes_on(&machine);
        let console = machine.console();
        assert!(
            !console.contains("stall") && !console.contains("lockup"),
            "{console}"
        );
    }
}

/// The kernel is told to leave the second processor alone: it waits for its start-up interrupt for ever.
pub(crate) fn not_started() {
    let mut setup = Setup::new(format!("test $(nproc) = 1; {COUNTER}"));
    setup.vcpus = 2;
    setup.cmdline = "maxcpus=1";
    let mut machine = Machine::start(&setup);
    machine.wait_for_doorbell(7);
    for _ in 0..3 {
        paused_in_time(&mut machine);
        is_still(&machine);
        machine.resume();
        goes_on(&machine);
    }
}

/// Writes and reads without a break while the machine is paused again and again; what is read is what was written.
pub(crate) fn disk_in_use() {
    let mut setup = Setup::new(
        "dd if=/dev/urandom of=/tmp/pattern bs=64k count=64 2>/tmp/error
         for round in 1 2 3 4 5 6; do
           dd if=/tmp/pattern of=/dev/vda bs=4k oflag=direct conv=fsync 2>/tmp/error
           dd if=/dev/vda of=/tmp/back bs=4k count=1024 iflag=direct 2>/tmp/error
           cmp /tmp/pattern /tmp/back
           /init guest ring $((10+round))
         done",
    );
    setup.disks = vec![(vec![disk(16 << 20)], false)];
    let mut machine = Machine::start(&setup);
    for round in 11..16 {
        machine.wait_for_doorbell(round);
        for _ in 0..4 {
            machine.pause();
            is_still(&machine);
            machine.resume();
        }
    }
    machine.success();
}

/// The guest's clock is right after a pause, because it has gone on.
pub(crate) fn time() {
    let mut machine = Machine::start(&Setup::new(
        "/init guest ring 7; while :; do echo now $(date +%s); done",
    ));
    machine.wait_for_doorbell(7);
    machine.pause();
    let shown = machine.console().len();
    let_pass(Duration::from_secs(3));
    machine.resume();
    // The first line may have been begun before.
    wait_until("the guest tells the time", || {
        machine.console()[shown..].matches("now ").count() > 2
    });
    let console = machine.console();
    let guest: u64 = console[shown..]
        .rsplit("now ")
        .find_map(|rest| rest.split_once('\n')?.0.trim().parse().ok())
        .unwrap();
    let host = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(
        guest.abs_diff(host) <= 2,
        "the guest says {guest}, the host {host}"
    );
}

pub(crate) fn nonsense() {
    let mut machine = Machine::start(&Setup::new(COUNTER));
    machine.wait_for_doorbell(7);
    for line in ["", "pause", "{\"command\":\"explode\"}", &"x".repeat(100_000)] {
        let answer = machine.tell(line);
        assert!(matches!(answer, Event::CommandFailed { .. }), "{answer:?}");
    }
    goes_on(&machine);
    machine.pause();
}

pub(crate) fn status() {
    let mut setup = Setup::new(COUNTER);
    setup.vcpus = 2;
    setup.disks = vec![
        (vec![disk(1 << 20), disk(1 << 20)], true),
        (vec![disk(1 << 20)], false),
    ];
    setup.vsock = true;
    let mut machine = Machine::start(&setup);
    machine.wait_for_doorbell(7);
    goes_on(&machine);
    let status = machine.status();
    let memory: u64 = status.memory.iter().map(|part| part.bytes).sum();
    assert_eq!((status.vcpus.len(), memory), (2, 128 << 20));
    assert!(status.vcpus[0].exits.contains_key("io_out"), "{status:?}");
    // The lab's kernel has them.
    assert!(status.kvm.is_some());
    for vcpu in &status.vcpus {
        assert!(vcpu.kvm.as_ref().unwrap()["exits"] > 0, "{vcpu:?}");
    }
    let kinds: Vec<&str> = status.devices.iter().map(|device| device.kind.as_str()).collect();
    for kind in ["block", "socket", "entropy", "balloon"] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
    for device in &status.devices {
        assert_eq!(device.driver, DriverStatus::Ready, "{device:?}");
        assert!(device.queues.iter().any(|queue| queue.ready), "{device:?}");
        assert_eq!(device.features & !device.features_offered, 0, "{device:?}");
        assert_ne!(device.features, 0, "{device:?}");
    }
    assert!(
        status.devices[0].backend.contains("2 files"),
        "{:?}",
        status.devices[0]
    );
}
