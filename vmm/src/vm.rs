//! The KVM side of a machine: its memory, interrupt controllers and vCPUs.

use std::io;
use std::sync::Arc;

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_enable_cap,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi,
};
use kvm_ioctls::{Cap, Kvm};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::x86_64::cpuid::{CpuidError, Template};
use crate::arch::x86_64::layout::{DEVICE_INTERRUPTS, IDENTITY_MAP, MMIO_START, TSS};
use crate::arch::x86_64::registers::{self, RegisterError};
use crate::devices::ioapic::{self, Route, Router};
use crate::memory::{self, GuestMemory, GuestMemoryBackend, MemoryError};
use crate::sys::GuestVcpu;
use crate::sys::GuestVm;

/// What KVM must be able to do.
const REQUIRED: [(Cap, &str); 8] = [
    (
        Cap::SplitIrqchip,
        "a local interrupt controller without the others",
    ),
    (Cap::UserMemory, "guest memory from user space"),
    (Cap::ReadonlyMem, "memory that a guest can only read"),
    (Cap::SetTssAddr, "a task state segment"),
    (Cap::ExtCpuid, "CPUID leaves"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::ImmediateExit, "immediate exit"),
];

/// Why there is no virtual machine.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// Another KVM, or no KVM at all.
    #[error("the KVM descriptor answers API version {0}, not {KVM_API_VERSION}")]
    ApiVersion(i32),
    /// KVM lacks something.
    #[error("this KVM does not offer {0}")]
    Capability(&'static str),
    /// More vCPUs than KVM gives.
    #[error("{wanted} virtual CPUs are more than the {most} of this KVM")]
    Vcpus {
        /// What the configuration says.
        wanted: u8,
        /// What KVM says.
        most: usize,
    },
    /// More memory than guest addresses reach.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A KVM call failed.
    #[error("cannot {operation}")]
    Kvm {
        /// What was tried.
        operation: &'static str,
        /// What KVM said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The CPUID table.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// A vCPU's registers.
    #[error("virtual CPU {vcpu}")]
    Registers {
        /// Its index.
        vcpu: u8,
        /// What failed.
        #[source]
        source: RegisterError,
    },
}

fn failed(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Kvm { operation, source }
}

/// A virtual machine with memory; its vCPUs have local interrupt controllers.
#[derive(Debug)]
pub struct Vm {
    guest: Arc<GuestVm>,
    registers: GuestMemory,
    cpuid: Template,
}

impl Vm {
    /// Makes a machine with `memory`.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn new(kvm: &Kvm, memory: GuestMemory, vcpus: u8) -> Result<Self, VmError> {
        check_kvm(kvm, vcpus)?;
        let cpuid = Template::new(kvm, vcpus)?;
        let bits = cpuid.physical_address_bits().min(63);
        if memory.last_addr().0 >> bits != 0 {
            let mib = u32::try_from(memory.last_addr().0 >> 20).unwrap_or(u32::MAX);
            return Err(MemoryError::Size { mib }.into());
        }
        // Memory first: with an interrupt controller present, each change of the memory map waits for an RCU grace
        // period.
        let registers = memory::allocate_pages(MMIO_START, DEVICE_INTERRUPTS.len())?;
        let guest = GuestVm::new(kvm, memory, registers.clone())
            .map_err(failed("create a virtual machine with its memory"))?;
        let fd = guest.fd();
        fd.set_identity_map_address(IDENTITY_MAP)
            .map_err(failed("place the identity map"))?;
        let tss = usize::try_from(TSS).map_err(|_| VmError::Capability("a task state segment"))?;
        fd.set_tss_address(tss)
            .map_err(failed("place the task state segment"))?;
        // Local APICs are KVM's, the IOAPIC is ours; there is no 8259. The number is that of the routes whose end of
        // interrupt we might want to know.
        let split = kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            args: [u64::from(ioapic::MOST_LINES), 0, 0, 0],
            ..Default::default()
        };
        fd.enable_cap(&split)
            .map_err(failed("create the local interrupt controllers"))?;
        let guest = Arc::new(guest);
        Ok(Self {
            guest,
            registers,
            cpuid,
        })
    }

    /// The machine as KVM has it.
    pub(crate) fn guest(&self) -> &GuestVm {
        &self.guest
    }

    /// All guest memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        self.guest.memory()
    }

    /// The pages of the memory-mapped devices at [`MMIO_START`], which the guest can read. Its writes leave it, and reach the bus.
    #[must_use]
    pub fn registers(&self) -> &GuestMemory {
        &self.registers
    }

    /// Makes vCPU `index`. The first one starts in long mode at `entry`; the others wait for the guest to start them.
    ///
    /// # Errors
    /// [`VmError`].
    pub(crate) fn create_vcpu(&self, index: u8, entry: u64) -> Result<GuestVcpu, VmError> {
        let guest = self
            .guest
            .create_vcpu(index)
            .map_err(failed("create a virtual CPU"))?;
        let vcpu = guest.fd();
        let cpuid = self.cpuid.for_vcpu(index)?;
        vcpu.set_cpuid2(&cpuid).map_err(failed("set the CPUID leaves"))?;
        let in_registers = |source| VmError::Registers { vcpu: index, source };
        registers::set_model_specific(vcpu).map_err(in_registers)?;
        if index == 0 {
            registers::set_long_mode(vcpu).map_err(in_registers)?;
            registers::set_entry(vcpu, entry).map_err(in_registers)?;
        }
        Ok(guest)
    }

    /// What puts the routes of interrupt lines into force.
    #[must_use]
    pub fn interrupt_router(&self) -> InterruptRouter {
        InterruptRouter(self.guest.clone())
    }

    /// Raises interrupt line `line` whenever `event` is written.
    ///
    /// # Errors
    /// [`VmError::Kvm`].
    pub fn connect_interrupt(&self, event: &EventFd, line: u8) -> Result<(), VmError> {
        self.guest
            .fd()
            .register_irqfd(event, u32::from(line))
            .map_err(failed("connect an interrupt"))
    }

    /// Writes `event` instead of leaving the guest when it writes the 32-bit `value` at `address`.
    ///
    /// # Errors
    /// [`VmError::Kvm`].
    pub fn connect_doorbell(&self, event: &EventFd, address: u64, value: u32) -> Result<(), VmError> {
        let address = kvm_ioctls::IoEventAddress::Mmio(address);
        self.guest
            .fd()
            .register_ioevent(event, &address, value)
            .map_err(failed("connect a queue notification"))
    }
}

/// Tells KVM the routes of interrupt lines.
#[derive(Debug)]
pub struct InterruptRouter(Arc<GuestVm>);

impl Router for InterruptRouter {
    fn set_routes(&self, routes: &[Route]) -> io::Result<()> {
        let entry = |route: &Route| kvm_irq_routing_entry {
            gsi: u32::from(route.line),
            type_: KVM_IRQ_ROUTING_MSI,
            u: kvm_irq_routing_entry__bindgen_ty_1 {
                msi: kvm_irq_routing_msi {
                    address_lo: route.address,
                    data: route.data,
                    ..Default::default()
                },
            },
            ..Default::default()
        };
        let entries: Vec<_> = routes.iter().map(entry).collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let set = self.0.fd().set_gsi_routing(&table);
        set.map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}

/// Whether `kvm` offers what a machine with so many vCPUs needs.
///
/// # Errors
/// [`VmError::ApiVersion`] where it is another KVM or none; [`VmError::Capability`] and [`VmError::Vcpus`] where it lacks something.
pub(crate) fn check_kvm(kvm: &Kvm, vcpus: u8) -> Result<(), VmError> {
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(VmError::ApiVersion(version));
    }
    if let Some((_, name)) = REQUIRED
        .iter()
        .find(|(capability, _)| !kvm.check_extension(*capability))
    {
        return Err(VmError::Capability(name));
    }
    let most = kvm.get_max_vcpus();
    if usize::from(vcpus) > most {
        return Err(VmError::Vcpus { wanted: vcpus, most });
    }
    Ok(())
}
