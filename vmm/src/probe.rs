//! Finds out whether this machine's KVM can run ordinary guests.
//!
//! Not everything behind `/dev/kvm` is a processor with virtualisation extensions: there are back ends that interpret
//! the guest's kernel, answer CPUID with the host's values, or give up at instructions that every kernel uses. A guest
//! kernel dies on them in ways that tell nothing, so a few tiny guests are run first: 64-bit code at privilege level 0,
//! of a few bytes each.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs};
use kvm_ioctls::{Kvm, VcpuExit};

use crate::arch::x86_64::layout::{PAGE_DIRECTORY, PAGE_DIRECTORY_POINTERS, PAGE_MAP_LEVEL_4};
use crate::arch::x86_64::registers::{self, RegisterError};
use crate::memory::{self, Bytes, GuestAddress, GuestMemory, GuestMemoryError, MemoryError};
use crate::sys::{self, GuestVcpu, GuestVm, RunningVcpu};
use crate::vm::{VmError, check_kvm};

/// Where the code of a tiny guest lies.
const CODE: u64 = 0x10_0000;
/// 16 aligned bytes for instructions that want memory.
const DATA: u64 = 0x10_1000;
/// The stack grows down from here.
const STACK: u64 = 0x10_1f00;
/// Handler of breakpoints.
const HANDLER: u64 = 0x10_2000;
/// An interrupt descriptor table with room for vector 3.
const INTERRUPTS: u64 = 0x10_3000;
const MEMORY_MIB: u32 = 2;
/// Behind the memory, a page that the guest can only read. It has [`ANSWER`].
const READ_ONLY: u64 = (MEMORY_MIB as u64) << 20;

/// A guest says by a write to this port that it is done.
const DONE_PORT: u16 = 0x80;
/// `out 0x80, al`, and a jump to itself in case the machine goes on.
const DONE: [u8; 4] = [0xe6, 0x80, 0xeb, 0xfe];

/// `iretq`.
const RETURN_FROM_INTERRUPT: [u8; 2] = [0x48, 0xcf];

/// Instructions that every kernel uses, by name, and code that runs them once. `rdi` points to 16 bytes.
const INSTRUCTIONS: [(&str, &[u8]); 4] = [
    ("popcnt", &[0xf3, 0x48, 0x0f, 0xb8, 0xc0]),
    ("int3", &[0xcc]),
    ("fwait", &[0x9b]),
    ("cmpxchg16b", &[0x48, 0x0f, 0xc7, 0x0f]),
];

/// The leaf that the first guest asks for, and the answer that only our own table gives.
const LEAF: u32 = 0x4000_0000;
const ANSWER: u32 = 0x5256_4d21;

/// Turns of the loop of two instructions whose time is taken.
const LOOP_TURNS: u32 = 20_000;
/// The best of so many tries counts, because a busy host may take the processor away during one.
const LOOP_TRIES: usize = 3;
/// Slower than this many million instructions a second, the guest's kernel is being interpreted. Processors under full
/// emulation, in which KVM itself is a guest, reach hundreds.
const SLOWEST_MIPS: u64 = 25;
/// The time for all tiny guests together. Conforming machines need about a millisecond, interpreting ones some tens; the
/// rest is patience with a host that is busy: one second was too little where six processes wanted each processor.
const DEADLINE: Duration = Duration::from_secs(5);

/// Page table flag: code at privilege level 3 may use the page.
const USER_PAGE: u64 = 4;
/// RFLAGS: port access from privilege level 3.
const IO_PRIVILEGE_3: u64 = 3 << 12;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Ordinary guests can run.
    pub conforming: bool,
    /// What is wrong, a sentence each. Empty if nothing is.
    pub reasons: Vec<String>,
    /// Speed of code at privilege level 0 in million instructions a second, if it could be measured.
    pub mips: Option<u64>,
}

/// Why nothing was found.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The descriptor is not KVM's.
    #[error("this is not /dev/kvm")]
    NotKvm(#[from] VmError),
    /// A KVM call failed.
    #[error("cannot {operation}")]
    Kvm {
        /// What was tried.
        operation: &'static str,
        /// What KVM said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The host gives no memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The tiny guest's memory cannot be written.
    #[error("cannot write the probe guest")]
    Write(#[from] GuestMemoryError),
    /// Its registers.
    #[error(transparent)]
    Registers(#[from] RegisterError),
    /// A thread or descriptor could not be made.
    #[error("cannot start the probe guest")]
    Start(#[from] io::Error),
}

fn failed(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> ProbeError {
    move |source| ProbeError::Kvm { operation, source }
}

/// Runs the tiny guests on `kvm`, which is an opened `/dev/kvm`. Takes at most about a second, whatever KVM does.
///
/// # Errors
/// [`ProbeError`] if no guest could be run at all.
pub fn probe(kvm: &File) -> Result<Probe, ProbeError> {
    let kvm = sys::kvm_from(kvm.as_fd().try_clone_to_owned()?);
    match check_kvm(&kvm, 1) {
        Ok(()) => {}
        Err(error @ VmError::ApiVersion(_)) => return Err(error.into()),
        // No guest could tell more.
        Err(lacking) => {
            return Ok(Probe {
                conforming: false,
                reasons: vec![lacking.to_string()],
                mips: None,
            });
        }
    }
    let read_only = memory::allocate_pages(READ_ONLY, 1)?;
    read_only.write_obj(ANSWER, GuestAddress(READ_ONLY))?;
    let vm = GuestVm::new(&kvm, memory::allocate(MEMORY_MIB)?, read_only)
        .map_err(failed("create a virtual machine"))?;
    let vcpu = vm.create_vcpu(0).map_err(failed("create a virtual CPU"))?;
    prepare(&kvm, &vm, &vcpu)?;

    let deadline = Instant::now() + DEADLINE;
    let (sender, findings) = mpsc::channel();
    let memory = vm.memory().clone();
    let running = RunningVcpu::start("probe".into(), vcpu, move |vcpu| {
        let mut guest = TinyGuest { vcpu, memory };
        // The receiver is only gone when the time is up.
        let _ = guest.examine(&mut |finding| drop(sender.send(finding)));
    })?;
    let probe = gather(&findings, deadline);
    running.join();
    Ok(probe)
}

/// Collects what is found until the guests are done or the time is up.
fn gather(findings: &mpsc::Receiver<Finding>, deadline: Instant) -> Probe {
    let mut probe = Probe {
        conforming: false,
        reasons: Vec::new(),
        mips: None,
    };
    loop {
        match findings.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Finding::Wrong(reason)) => probe.reasons.push(reason),
            Ok(Finding::Mips(mips)) => probe.mips = Some(mips),
            Err(RecvTimeoutError::Timeout) => {
                let milliseconds = DEADLINE.as_millis();
                probe.reasons.push(format!(
                    "a guest of a few instructions did not end within {milliseconds} ms"
                ));
                break;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if let Some(mips) = probe.mips.filter(|mips| *mips < SLOWEST_MIPS) {
        let slow = format!(
            "code at privilege level 0 is interpreted: it runs {mips} instead of hundreds of million instructions a second"
        );
        probe.reasons.push(slow);
    }
    probe.conforming = probe.reasons.is_empty() && probe.mips.is_some();
    probe
}

/// Puts the vCPU into long mode, with a CPUID leaf of our own and a breakpoint handler.
fn prepare(kvm: &Kvm, vm: &GuestVm, vcpu: &GuestVcpu) -> Result<(), ProbeError> {
    registers::write_tables(vm.memory())?;
    vm.memory()
        .write_slice(&RETURN_FROM_INTERRUPT, GuestAddress(HANDLER))?;
    vm.memory()
        .write_slice(&breakpoint_gate(), GuestAddress(INTERRUPTS + 3 * 16))?;

    let mut leaves = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(failed("ask for CPUID leaves"))?;
    for leaf in leaves
        .as_mut_slice()
        .iter_mut()
        .filter(|leaf| leaf.function == LEAF)
    {
        leaf.ebx = ANSWER;
    }
    vcpu.fd()
        .set_cpuid2(&leaves)
        .map_err(failed("set CPUID leaves"))?;
    registers::set_long_mode(vcpu.fd())?;
    let mut sregs = vcpu.fd().get_sregs().map_err(failed("read registers"))?;
    (sregs.idt.base, sregs.idt.limit) = (INTERRUPTS, 4 * 16 - 1);
    vcpu.fd().set_sregs(&sregs).map_err(failed("set registers"))
}

/// A 64-bit interrupt gate to [`HANDLER`] (Intel SDM volume 3, section 6.14.1).
fn breakpoint_gate() -> [u8; 16] {
    let [low, high, third, ..] = HANDLER.to_le_bytes();
    [low, high, 0x10, 0, 0, 0x8e, third, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// What was found, as it becomes known.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Finding {
    Wrong(String),
    Mips(u64),
}

/// The time is up.
struct Interrupted;

struct TinyGuest<'a> {
    vcpu: &'a mut GuestVcpu,
    memory: GuestMemory,
}

impl TinyGuest<'_> {
    fn examine(&mut self, found: &mut dyn FnMut(Finding)) -> Result<(), Interrupted> {
        for (name, code) in INSTRUCTIONS {
            if let Err(exit) = self.run(&[code, &DONE].concat())? {
                found(Finding::Wrong(format!(
                    "{name} at privilege level 0 ends in {exit}"
                )));
            }
        }
        self.measure_speed(found)?;
        self.write_read_only(found)?;
        self.ask_cpuid("privilege level 0", found)?;
        match self.drop_privilege() {
            Ok(()) => self.ask_cpuid("privilege level 3", found),
            Err(error) => {
                found(Finding::Wrong(format!(
                    "a guest cannot be put to privilege level 3: {error}"
                )));
                Ok(())
            }
        }
    }

    fn measure_speed(&mut self, found: &mut dyn FnMut(Finding)) -> Result<(), Interrupted> {
        // mov ecx, LOOP_TURNS; again: dec ecx; jnz again
        let [a, b, c, d] = LOOP_TURNS.to_le_bytes();
        let code = [&[0xb9, a, b, c, d, 0xff, 0xc9, 0x75, 0xfc], &DONE[..]].concat();
        let mut best = 0;
        for _ in 0..LOOP_TRIES {
            let start = Instant::now();
            if let Err(exit) = self.run(&code)? {
                found(Finding::Wrong(format!(
                    "a loop at privilege level 0 ends in {exit}"
                )));
                return Ok(());
            }
            let microseconds = start.elapsed().as_micros().max(1);
            let mips = u128::from(LOOP_TURNS) * 2 / microseconds;
            best = best.max(u64::try_from(mips).unwrap_or(u64::MAX));
            if best >= SLOWEST_MIPS {
                break;
            }
        }
        found(Finding::Mips(best));
        Ok(())
    }

    /// A write to the page that can only be read leaves the guest, and changes nothing.
    fn write_read_only(&mut self, found: &mut dyn FnMut(Finding)) -> Result<(), Interrupted> {
        // mov dword [rsi], 0; mov eax, [rsi]; out 0x80, eax
        let code = [0xc7, 0x06, 0, 0, 0, 0, 0x8b, 0x06, 0xe7, 0x80, 0xeb, 0xfe];
        match self.run(&code)? {
            Ok(ANSWER) => {}
            Ok(_) => found(Finding::Wrong(
                "a guest can write to memory that it may only read".into(),
            )),
            Err(exit) => found(Finding::Wrong(format!(
                "a guest's access to memory that it may only read ends in {exit}"
            ))),
        }
        Ok(())
    }

    fn ask_cpuid(&mut self, place: &str, found: &mut dyn FnMut(Finding)) -> Result<(), Interrupted> {
        // mov eax, LEAF; cpuid; mov eax, ebx; out 0x80, eax
        let [a, b, c, d] = LEAF.to_le_bytes();
        let code = [0xb8, a, b, c, d, 0x0f, 0xa2, 0x89, 0xd8, 0xe7, 0x80, 0xeb, 0xfe];
        match self.run(&code)? {
            Ok(ANSWER) => {}
            Ok(_) => {
                let text = format!("cpuid at {place} does not show the values that the guest was given");
                found(Finding::Wrong(text));
            }
            Err(exit) => found(Finding::Wrong(format!("cpuid at {place} ends in {exit}"))),
        }
        Ok(())
    }

    /// From now on guests run at privilege level 3, with access to ports.
    fn drop_privilege(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        for table in [PAGE_MAP_LEVEL_4, PAGE_DIRECTORY_POINTERS, PAGE_DIRECTORY] {
            let entry: u64 = self.memory.read_obj(GuestAddress(table))?;
            self.memory.write_obj(entry | USER_PAGE, GuestAddress(table))?;
        }
        let mut sregs = self.vcpu.fd().get_sregs()?;
        (sregs.cs.dpl, sregs.ss.dpl) = (3, 3);
        sregs.cs.selector |= 3;
        sregs.ss.selector |= 3;
        Ok(self.vcpu.fd().set_sregs(&sregs)?)
    }

    /// Runs `code` up to its write to [`DONE_PORT`]; returns what it wrote, or how it ended instead. `rdi` points to [`DATA`], `rsi`
    /// to [`READ_ONLY`], to which it may try to write.
    fn run(&mut self, code: &[u8]) -> Result<Result<u32, String>, Interrupted> {
        let registers = kvm_regs {
            rip: CODE,
            rsp: STACK,
            rdi: DATA,
            rsi: READ_ONLY,
            rflags: 2 | IO_PRIVILEGE_3,
            ..Default::default()
        };
        if let Err(error) = self.memory.write_slice(code, GuestAddress(CODE)) {
            return Ok(Err(error.to_string()));
        }
        if let Err(error) = self.vcpu.fd().set_regs(&registers) {
            return Ok(Err(error.to_string()));
        }
        let mut exit = self.vcpu.run();
        while let Ok(VcpuExit::MmioWrite(READ_ONLY, _)) = exit {
            exit = self.vcpu.run();
        }
        let exit = match exit {
            Ok(VcpuExit::IoOut(DONE_PORT, data)) => {
                let mut value = [0; 4];
                let length = data.len().min(4);
                value[..length].copy_from_slice(&data[..length]);
                return Ok(Ok(u32::from_le_bytes(value)));
            }
            Err(error) if error.errno() == libc::EINTR => return Err(Interrupted),
            Err(error) => error.to_string(),
            Ok(VcpuExit::InternalError) => String::from("KVM_EXIT_INTERNAL_ERROR"),
            Ok(exit) => format!("{exit:?}"),
        };
        match self.vcpu.internal_error() {
            Some((suberror, _)) => Ok(Err(format!("{exit}, suberror {suberror}"))),
            None => Ok(Err(exit)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(findings: &[Finding]) -> Probe {
        let (sender, receiver) = mpsc::channel();
        for finding in findings {
            sender.send(finding.clone()).unwrap();
        }
        drop(sender);
        gather(&receiver, Instant::now() + Duration::from_secs(10))
    }

    #[test]
    fn a_machine_conforms_if_it_is_fast_and_nothing_is_wrong() {
        assert!(gathered(&[Finding::Mips(1000)]).conforming);
        let slow = gathered(&[Finding::Mips(4)]);
        assert!(!slow.conforming && slow.reasons[0].contains("interpreted"));
        let wrong = gathered(&[Finding::Wrong("x".into()), Finding::Mips(1000)]);
        assert_eq!((wrong.conforming, wrong.reasons), (false, vec!["x".to_owned()]));
        assert!(!gathered(&[]).conforming);
    }

    #[test]
    fn a_guest_that_does_not_end_is_a_reason() {
        let (_sender, receiver) = mpsc::channel();
        let probe = gather(&receiver, Instant::now());
        assert!(!probe.conforming && probe.reasons[0].contains("did not end"));
    }

    #[test]
    fn what_is_not_kvm_is_an_error() {
        let said = probe(&File::open("/dev/null").unwrap());
        assert!(matches!(said, Err(ProbeError::NotKvm(_))), "{said:?}");
    }
}
