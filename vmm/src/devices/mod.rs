//! The machine's devices.

pub mod console;
pub mod doorbell;
pub mod ioapic;
pub mod limiter;
pub mod reset;
pub mod serial;
pub mod virtio;
