//! The IOAPIC: turns interrupt lines into messages to local APICs (Intel 82093AA datasheet).
//!
//! It is here and not in KVM because KVM's always has 24 lines, and a kernel reads and writes each of them a dozen times as
//! it starts, whatever is connected: with one that has as many lines as the machine needs, most of those exits are gone.
//! An interrupt never passes through this process: what the guest writes here is handed to KVM as a route, by which a
//! device's irqfd becomes a message to a processor. There is no 8259 beside it.
//!
//! Lines are edge-triggered whatever the guest says, because an irqfd makes a pulse: so there is no end of interrupt to
//! wait for.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::event::StopReason;
use crate::stop::StopSignal;

/// Bytes of address space.
pub const BYTES: u64 = 0x1000;
/// Most lines: what the version register can tell of is more, but Linux has no use for it.
pub const MOST_LINES: u8 = 24;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;

const IDENTIFICATION: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
/// Two registers of 32 bits for each line, the lower half first.
const FIRST_ENTRY: u8 = 0x10;

/// Version 1.1 of the chip, the last one that is not tied to an older bus.
const CHIP_VERSION: u32 = 0x11;
/// Where the version register tells the number of the last line.
const LAST_LINE_SHIFT: u32 = 16;
/// The bits of the identification register that can be written.
const IDENTIFICATION_BITS: u32 = 0xf << 24;

// A redirection table entry (datasheet, section 3.2.4).
const VECTOR: u64 = 0xff;
const DELIVERY_MODE: u64 = 7 << 8;
const LOGICAL_DESTINATION: u64 = 1 << 11;
const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const MASKED: u64 = 1 << 16;
const DESTINATION_SHIFT: u32 = 56;
/// The bits that the guest cannot write.
const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;

// A message to a local APIC (Intel SDM volume 3, section 11.11).
const MESSAGE_ADDRESS: u32 = 0xfee0_0000;
const MESSAGE_DESTINATION_SHIFT: u32 = 12;
const MESSAGE_LOGICAL_DESTINATION: u32 = 1 << 2;

/// What a line becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Number of the line.
    pub line: u8,
    /// Address of the message, which names the processor.
    pub address: u32,
    /// Its data, which name the vector.
    pub data: u32,
}

/// Puts routes into force.
pub trait Router: Send {
    /// From now on these routes and no others hold.
    ///
    /// # Errors
    /// Those of the kernel.
    fn set_routes(&self, routes: &[Route]) -> io::Result<()>;
}

/// What a guest can see of the IOAPIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoapicState {
    select: u8,
    identification: u32,
    entries: Vec<u64>,
}

/// The IOAPIC.
pub struct Ioapic<R> {
    state: IoapicState,
    router: R,
    /// What the router has been told.
    routes: Vec<Route>,
    stop: Arc<StopSignal>,
}

impl<R: Router> Ioapic<R> {
    /// An IOAPIC at reset, all of whose `lines` (at most [`MOST_LINES`]) are masked.
    #[must_use]
    pub fn new(lines: u8, router: R, stop: Arc<StopSignal>) -> Self {
        let state = IoapicState {
            select: 0,
            identification: 0,
            entries: vec![MASKED; usize::from(lines.min(MOST_LINES))],
        };
        Self {
            state,
            router,
            routes: Vec::new(),
            stop,
        }
    }

    /// What the guest can see of it.
    #[must_use]
    pub fn save(&self) -> IoapicState {
        self.state.clone()
    }

    /// An IOAPIC that goes on from a saved state.
    #[must_use]
    pub fn restore(mut state: IoapicState, router: R, stop: Arc<StopSignal>) -> Self {
        // More than the chip's registers reach, whoever wrote the state down.
        state.entries.truncate(usize::from(MOST_LINES));
        let mut ioapic = Self {
            state,
            router,
            routes: Vec::new(),
            stop,
        };
        ioapic.update_routes();
        ioapic
    }

    fn register(&self) -> u32 {
        let lines = u32::try_from(self.state.entries.len()).unwrap_or_default();
        match self.state.select {
            IDENTIFICATION | ARBITRATION => self.state.identification,
            VERSION => CHIP_VERSION | (lines.saturating_sub(1) << LAST_LINE_SHIFT),
            register => {
                let (index, shift) = entry_of(register);
                let entry = self.state.entries.get(index).copied().unwrap_or_default();
                u32::try_from((entry >> shift) & u64::from(u32::MAX)).unwrap_or_default()
            }
        }
    }

    fn set_register(&mut self, value: u32) {
        if self.state.select == IDENTIFICATION {
            self.state.identification = value & IDENTIFICATION_BITS;
            return;
        }
        let (index, shift) = entry_of(self.state.select);
        if let Some(entry) = self.state.entries.get_mut(index) {
            let kept = !(u64::from(u32::MAX) << shift) | READ_ONLY;
            *entry = (*entry & kept) | ((u64::from(value) << shift) & !kept);
            self.update_routes();
        }
    }

    /// A change of routes waits for those that are being used, so it is only made if there is one.
    fn update_routes(&mut self) {
        let entries = (0..).zip(&self.state.entries);
        let routes: Vec<Route> = entries.filter_map(|(line, entry)| route(line, *entry)).collect();
        if routes == self.routes {
            return;
        }
        if let Err(error) = self.router.set_routes(&routes) {
            let detail = format!("cannot route interrupts: {error}");
            self.stop.stop(StopReason::KvmFailure, detail);
        }
        self.routes = routes;
    }
}

/// The index of the entry that a register belongs to, and how far its half is shifted; an index beyond all entries for
/// a register that is none.
fn entry_of(register: u8) -> (usize, u32) {
    match register.checked_sub(FIRST_ENTRY) {
        Some(half) => (usize::from(half / 2), u32::from(half % 2) * 32),
        None => (usize::MAX, 0),
    }
}

/// The message that an entry stands for; none if it is masked.
fn route(line: u8, entry: u64) -> Option<Route> {
    if entry & MASKED != 0 {
        return None;
    }
    let narrow = |value| u32::try_from(value).unwrap_or_default();
    let mut address = MESSAGE_ADDRESS | (narrow(entry >> DESTINATION_SHIFT) << MESSAGE_DESTINATION_SHIFT);
    if entry & LOGICAL_DESTINATION != 0 {
        address |= MESSAGE_LOGICAL_DESTINATION;
    }
    Some(Route {
        line,
        address,
        data: narrow(entry & (VECTOR | DELIVERY_MODE)),
    })
}

impl<R: Router> BusDevice for Ioapic<R> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            SELECT => u32::from(self.state.select),
            WINDOW => self.register(),
            _ => 0,
        };
        if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            *word = value.to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(word) = <[u8; 4]>::try_from(data) else {
            return;
        };
        match offset {
            SELECT => self.state.select = word[0],
            WINDOW => self.set_register(u32::from_le_bytes(word)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::bus::lock;

    /// Remembers the routes, and how often they were set.
    #[derive(Clone, Default)]
    struct Recorder(Arc<Mutex<(usize, Vec<Route>)>>);

    impl Router for Recorder {
        fn set_routes(&self, routes: &[Route]) -> io::Result<()> {
            let mut seen = lock(&self.0);
            if routes.iter().any(|route| route.data == 0xad) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            *seen = (seen.0 + 1, routes.to_vec());
            Ok(())
        }
    }

    fn ioapic(lines: u8) -> (Ioapic<Recorder>, Recorder, Arc<StopSignal>) {
        let (router, stop) = (Recorder::default(), Arc::new(StopSignal::new().unwrap()));
        (Ioapic::new(lines, router.clone(), stop.clone()), router, stop)
    }

    fn read(ioapic: &mut Ioapic<Recorder>, register: u8) -> u32 {
        ioapic.write(SELECT, &u32::from(register).to_le_bytes());
        let mut word = [0xff; 4];
        ioapic.read(WINDOW, &mut word);
        u32::from_le_bytes(word)
    }

    fn write(ioapic: &mut Ioapic<Recorder>, register: u8, value: u32) {
        ioapic.write(SELECT, &u32::from(register).to_le_bytes());
        ioapic.write(WINDOW, &value.to_le_bytes());
    }

    #[test]
    fn it_has_the_lines_that_it_was_made_with() {
        let (mut ioapic, _, _) = ioapic(7);
        assert_eq!(read(&mut ioapic, VERSION), 0x0006_0011);
        for line in 0..7 {
            assert_eq!(read(&mut ioapic, FIRST_ENTRY + 2 * line), 0x0001_0000);
            assert_eq!(read(&mut ioapic, FIRST_ENTRY + 2 * line + 1), 0);
        }
        write(&mut ioapic, FIRST_ENTRY + 14, 0x55);
        assert_eq!(read(&mut ioapic, FIRST_ENTRY + 14), 0);
        assert_eq!(read(&mut ioapic, 0xff), 0);
        assert_eq!(read(&mut ioapic, 5), 0);
        write(&mut ioapic, IDENTIFICATION, u32::MAX);
        assert_eq!(read(&mut ioapic, IDENTIFICATION), 0x0f00_0000);
        write(&mut ioapic, VERSION, u32::MAX);
        assert_eq!(read(&mut ioapic, VERSION), 0x0006_0011);
    }

    #[test]
    fn a_line_is_routed_while_it_is_not_masked() {
        let (mut ioapic, router, _) = ioapic(3);
        write(&mut ioapic, FIRST_ENTRY + 5, 0x0300_0000);
        write(&mut ioapic, FIRST_ENTRY + 4, 0x0001_0031);
        assert_eq!(*lock(&router.0), (0, Vec::new()), "a masked line has no route");
        write(&mut ioapic, FIRST_ENTRY + 4, 0x0000_8931);
        let expected = Route {
            line: 2,
            address: 0xfee0_3004,
            data: 0x131,
        };
        assert_eq!(*lock(&router.0), (1, vec![expected]));
        write(&mut ioapic, FIRST_ENTRY + 4, 0x0000_f931);
        assert_eq!(lock(&router.0).0, 1, "read-only bits change nothing");
        assert_eq!(read(&mut ioapic, FIRST_ENTRY + 4), 0x0000_a931);
        write(&mut ioapic, FIRST_ENTRY + 4, 0x0001_0031);
        assert_eq!(*lock(&router.0), (2, Vec::new()));
    }

    #[test]
    fn a_restored_one_has_its_routes() {
        let (mut ioapic, router, stop) = ioapic(3);
        write(&mut ioapic, FIRST_ENTRY + 2, 0x41);
        let routes = lock(&router.0).1.clone();
        let text = serde_json::to_string(&ioapic.save()).unwrap();
        let other = Recorder::default();
        let mut restored = Ioapic::restore(serde_json::from_str(&text).unwrap(), other.clone(), stop);
        assert_eq!(*lock(&other.0), (1, routes));
        assert_eq!(restored.save(), ioapic.save());
        assert_eq!(read(&mut restored, FIRST_ENTRY + 2), 0x41);
    }

    #[test]
    fn a_route_that_fails_ends_the_machine() {
        let (mut ioapic, _, stop) = ioapic(1);
        write(&mut ioapic, FIRST_ENTRY, 0xad);
        assert_eq!(
            stop.cause().map(|cause| cause.reason),
            Some(StopReason::KvmFailure)
        );
    }

    #[test]
    fn accesses_of_another_width_do_nothing() {
        let (mut ioapic, router, _) = ioapic(1);
        ioapic.write(SELECT, &[FIRST_ENTRY]);
        ioapic.write(WINDOW, &[0; 8]);
        let mut half = [7; 2];
        ioapic.read(WINDOW, &mut half);
        assert_eq!((half, lock(&router.0).0), ([7; 2], 0));
    }
}
