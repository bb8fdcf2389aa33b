//! The boot recipe: from resources to a machine that is ready to run, one function per phase.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::arch::x86_64::boot::{self, BootError, Ramdisk};
use crate::arch::x86_64::cmdline::{CommandLine, CommandLineError};
use crate::arch::x86_64::kernel::{Kernel, KernelError};
use crate::arch::x86_64::layout::{self, IOAPIC, SERIAL_INTERRUPT};
use crate::arch::x86_64::mptable::{self, MpTableError};
use crate::arch::x86_64::registers;
use crate::attach::{DeviceError, VirtioDevices};
use crate::bus::{Bus, Overlap};
use crate::devices::console::Console;
use crate::devices::doorbell::Doorbell;
use crate::devices::ioapic::{self, Ioapic};
use crate::devices::reset::{self, KeyboardController};
use crate::devices::serial::{self, InterruptLine, Serial};
use crate::machine::Machine;
use crate::memory::{self, GuestMemory, GuestMemoryError, MemoryError};
use crate::parking::Parking;
use crate::reporter::Reporter;
use crate::resources::Resources;
use crate::seccomp::Filters;
use crate::stop::StopSignal;
use crate::sys::{self, GuestVcpu};
use crate::vcpu::{ExitCounters, Surroundings};
use crate::vm::{Vm, VmError};

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The virtual machine.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The ramdisk, or what is handed to the kernel.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The command line.
    #[error(transparent)]
    CommandLine(#[from] CommandLineError),
    /// The MP table.
    #[error(transparent)]
    MpTable(#[from] MpTableError),
    /// Page tables and descriptors.
    #[error("cannot write the boot page tables")]
    Tables(#[source] GuestMemoryError),
    /// A host resource for a device.
    #[error("cannot make an event descriptor")]
    EventDescriptor(#[source] io::Error),
    /// The doorbell port belongs to another device.
    #[error(transparent)]
    Bus(#[from] Overlap),
    /// The devices on the memory-mapped bus.
    #[error(transparent)]
    Devices(#[from] DeviceError),
}

/// Builds the machine. Its memory is written, its vCPUs exist; of the guest nothing runs yet. Its threads will run under
/// `filters`.
///
/// # Errors
/// [`BuildError`].
pub fn build(
    mut resources: Resources,
    reporter: Arc<Reporter>,
    filters: Filters,
) -> Result<Machine, BuildError> {
    let kvm = sys::kvm_from(resources.kvm);
    let memory = memory::allocate(resources.memory_mib)?;
    let (kernel, ramdisk) = load_kernel(&memory, &resources.kernel, &mut resources.initrd)?;
    let mut command_line = command_line(&resources.cmdline, resources.vcpus)?;
    let vm = Vm::new(&kvm, memory, resources.vcpus)?;
    let stop = Arc::new(StopSignal::new().map_err(BuildError::EventDescriptor)?);
    let console = Console::new(resources.console);

    let mut ports = Bus::default();
    add_legacy_devices(&mut ports, &vm, &console, &stop)?;
    if let Some(port) = resources.doorbell_port {
        let doorbell = Arc::new(Mutex::new(Doorbell::new(reporter.clone())));
        ports.add(u64::from(port)..u64::from(port) + 1, doorbell)?;
    }
    let mut devices = VirtioDevices::new(&vm, resources.vcpus, &mut command_line, &filters);
    for disk in resources.disks {
        devices.add_disk(disk)?;
    }
    for network in resources.networks {
        devices.add_network(network)?;
    }
    if let Some(vsock) = resources.vsock {
        devices.add_vsock(vsock, &stop)?;
    }
    for file_system in resources.file_systems {
        devices.add_file_system(file_system, &stop)?;
    }
    devices.add_rng(&stop)?;
    devices.add_balloon(&stop)?;
    let lines = layout::interrupt_lines(devices.attached());
    let (mut mmio, subscribers, devices) = devices.finish();
    let ioapic = Ioapic::new(lines, vm.interrupt_router(), stop.clone());
    let place = u64::from(IOAPIC)..u64::from(IOAPIC) + ioapic::BYTES;
    mmio.add(place, Arc::new(Mutex::new(ioapic)))?;

    boot::write_parameters(vm.memory(), &command_line, ramdisk, kernel.usable_start())?;
    mptable::write(vm.memory(), resources.vcpus, lines)?;
    registers::write_tables(vm.memory()).map_err(BuildError::Tables)?;
    let vcpus = create_vcpus(&vm, resources.vcpus, kernel.entry)?;
    let surroundings = Surroundings {
        ports: Arc::new(ports),
        mmio: Arc::new(mmio),
        stop,
        parking: Arc::new(Parking::new(vcpus.len())),
        exits: vcpus.iter().map(|_| ExitCounters::default()).collect(),
    };
    Ok(Machine {
        vcpus,
        surroundings,
        subscribers,
        devices,
        console,
        reporter,
        filters,
        vm,
    })
}

fn load_kernel(
    memory: &GuestMemory,
    kernel: &File,
    initrd: &mut [File],
) -> Result<(Kernel, Ramdisk), BuildError> {
    let ramdisk_bytes = boot::ramdisk_bytes(initrd)?;
    let kernel = Kernel::load(memory, kernel, ramdisk_bytes)?;
    Ok((kernel, boot::load_ramdisk(memory, initrd)?))
}

/// The caller's parameters, and defaults for what the caller left open. `quiet` because each character on the console is
/// an exit; a panic is printed all the same. One processor's variables need a tenth of the 2 MiB that the kernel otherwise
/// clears for them.
fn command_line(text: &str, vcpus: u8) -> Result<CommandLine, CommandLineError> {
    let mut line = CommandLine::new(text)?;
    line.add_default("console=ttyS0", &[]);
    line.add_default("reboot=k", &[]);
    line.add_default("panic=-1", &[]);
    line.add_default("quiet", &["debug", "loglevel", "ignore_loglevel"]);
    if vcpus == 1 {
        line.add_default("percpu_alloc=page", &[]);
    }
    Ok(line)
}

fn add_legacy_devices(
    ports: &mut Bus,
    vm: &Vm,
    console: &Console,
    stop: &Arc<StopSignal>,
) -> Result<(), BuildError> {
    let interrupt = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(BuildError::EventDescriptor)?;
    vm.connect_interrupt(&interrupt, SERIAL_INTERRUPT)?;
    let serial = Serial::new(InterruptLine(interrupt), console.clone());
    ports.add(serial::PORTS, Arc::new(Mutex::new(serial)))?;
    ports.add(
        reset::PORTS,
        Arc::new(Mutex::new(KeyboardController::new(stop.clone()))),
    )?;
    Ok(())
}

fn create_vcpus(vm: &Vm, count: u8, entry: u64) -> Result<Vec<GuestVcpu>, VmError> {
    (0..count).map(|index| vm.create_vcpu(index, entry)).collect()
}
