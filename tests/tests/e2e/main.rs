//! What a person may rely on, each in both modes, on a real image, with a real kernel.
//!
//! Compiled with the feature `e2e` only: these tests need root, cgroup v2, a conforming KVM and a machine that may be
//! thrown away. scripts/test builds them here and runs them in scripts/lab.
#![forbid(unsafe_code)]

mod bad_input;
mod crash;
mod files;
mod images;
mod inspect;
mod leaks;
mod lifecycle;
mod limits;
mod machine;
mod process;
mod push;
mod registry;
mod rootfs;
mod streams;
