//! End-to-end tests in both modes.
