//! What is particular to a processor architecture.

pub mod x86_64;
