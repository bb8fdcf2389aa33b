//! The interrupt controller under a guest that writes any register: what it routes are lines that it has, each once, and a
//! guest that goes on elsewhere finds it as it was.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use super::Input;
use crate::bus::BusDevice as _;
use crate::devices::ioapic::{Ioapic, MOST_LINES, Route, Router};
use crate::stop::StopSignal;

/// Accesses before an input ends.
const MOST_STEPS: usize = 64;

/// Only looks at what it is told.
struct Witness(u8);

impl Router for Witness {
    fn set_routes(&self, routes: &[Route]) -> io::Result<()> {
        assert!(
            routes
                .iter()
                .all(|route| route.line < self.0 && route.data < 1 << 16)
        );
        assert!(routes.windows(2).all(|pair| pair[0].line < pair[1].line));
        Ok(())
    }
}

pub(super) fn ioapic(data: &[u8]) {
    thread_local! {
        static STOP: RefCell<Arc<StopSignal>> = RefCell::new(Arc::new(StopSignal::new().unwrap()));
    }
    let stop = STOP.with_borrow(Clone::clone);
    let mut input = Input::new(data);
    let lines = input.byte() % MOST_LINES + 1;
    let mut ioapic = Ioapic::new(lines, Witness(lines), stop.clone());
    for _ in 0..MOST_STEPS {
        if input.is_empty() {
            break;
        }
        match input.byte() {
            0x00..0x60 => ioapic.write(0, &u32::from(input.byte() % 0x48).to_le_bytes()),
            0x60..0xa0 => ioapic.write(0x10, &input.word().to_le_bytes()),
            0xa0..0xd0 => ioapic.read(u64::from(input.byte() & 0x10), &mut [0; 4]),
            0xd0..0xe0 => {
                let offset = u64::from(input.half());
                let width = usize::from(input.byte() % 9);
                ioapic.write(offset, input.take(width));
                ioapic.read(offset, &mut [0; 8][..width]);
            }
            0xe0..0xf0 => ioapic.write(0, &input.word().to_le_bytes()),
            _ => {
                let saved = ioapic.save();
                ioapic = Ioapic::restore(saved.clone(), Witness(lines), stop.clone());
                assert_eq!(ioapic.save(), saved);
            }
        }
    }
    assert!(!stop.is_set());
}
