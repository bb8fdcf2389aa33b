//! The one place where a machine's end is decided: the first cause wins, and the event loop is woken.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::lock;
use crate::event::StopReason;

/// Why a machine ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The kind.
    pub reason: StopReason,
    /// One sentence for a person.
    pub detail: String,
}

/// Shared by everything that can end the machine.
#[derive(Debug)]
pub struct StopSignal {
    first: Mutex<Option<Cause>>,
    set: AtomicBool,
    wake: EventFd,
}

impl StopSignal {
    /// A signal that nobody has given yet.
    ///
    /// # Errors
    /// Those of `eventfd(2)`.
    pub fn new() -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self {
            first: Mutex::new(None),
            set: AtomicBool::new(false),
            wake,
        })
    }

    /// Ends the machine for this cause, unless it is ending already.
    pub fn stop(&self, reason: StopReason, detail: impl Into<String>) {
        lock(&self.first).get_or_insert_with(|| Cause {
            reason,
            detail: detail.into(),
        });
        self.set.store(true, Ordering::SeqCst);
        // An eventfd refuses a write only when its counter is full, and then its reader is awake already.
        let _ = self.wake.write(1);
    }

    /// Whether the machine is ending.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::SeqCst)
    }

    /// The first cause.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        lock(&self.first).clone()
    }
}

impl AsRawFd for StopSignal {
    /// Becomes readable when the machine ends.
    fn as_raw_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cause_wins() {
        let signal = StopSignal::new().unwrap();
        assert!(!signal.is_set());
        signal.stop(StopReason::Reset, "first");
        signal.stop(StopReason::KvmFailure, "second");
        assert!(signal.is_set());
        assert_eq!(
            signal.cause(),
            Some(Cause {
                reason: StopReason::Reset,
                detail: "first".into()
            })
        );
        assert_eq!(signal.wake.read().unwrap(), 2);
    }
}
