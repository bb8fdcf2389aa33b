//! The size of a terminal. Whoever changed it last decides, and may do so before there is a terminal.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rvm_protocol::TerminalSize;

use crate::runtime::Terminal;

/// A terminal, as commands see it.
#[derive(Default)]
pub(super) struct Screen(Mutex<State>);

enum State {
    /// It is not there yet, and will have this size.
    Awaited(Option<TerminalSize>),
    Open(Terminal),
    /// Its process has ended, or never had one.
    Closed,
}

impl Default for State {
    fn default() -> Self {
        Self::Awaited(None)
    }
}

impl Screen {
    /// The terminal is there, if there is to be one.
    pub(super) fn open(&self, terminal: Option<Terminal>) {
        let mut state = self.lock();
        if let (Some(terminal), State::Awaited(Some(size))) = (&terminal, &*state) {
            terminal.resize(*size);
        }
        *state = terminal.map_or(State::Closed, State::Open);
    }

    /// Changes the size.
    pub(super) fn resize(&self, size: TerminalSize) {
        match &mut *self.lock() {
            State::Awaited(awaited) => *awaited = Some(size),
            State::Open(terminal) => terminal.resize(size),
            State::Closed => {}
        }
    }

    /// Nobody is there any more to see it.
    pub(super) fn close(&self) {
        *self.lock() = State::Closed;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic aborts the process.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
