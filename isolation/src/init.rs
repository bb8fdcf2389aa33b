//! The child's side of a container: the ordered steps from fresh namespaces up to `execve`.

/// Becomes a container's init if this process was started as one (its `argv[0]` says so), and then never returns.
/// To be called first in `main`, before any thread or descriptor exists.
pub fn init_if_requested() {}
