//! What a container is, whichever way it is isolated.

pub mod spec;
