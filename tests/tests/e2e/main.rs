//! What a person may rely on, each in both modes, on a real image, with a real kernel.
//!
//! Compiled with the feature `e2e` only: these tests need root, cgroup v2, a conforming KVM and a machine that may be
//! thrown away. scripts/test builds them here and runs them in scripts/lab.
#![forbid(unsafe_code)]

mod attach;
mod bad_input;
mod bench;
mod compare;
mod copy;
mod crash;
mod crash_images;
mod documented;
mod egress;
mod events;
mod exec;
mod faults;
mod files;
mod given;
mod health;
mod images;
mod inspect;
mod leaks;
mod life;
mod lifecycle;
mod limits;
mod logs;
mod machine;
mod names;
mod network;
mod network_verbs;
mod pause;
mod ports;
mod process;
mod prune;
mod push;
mod registry;
mod restart;
mod rootfs;
mod streams;
mod terminals;
mod volumes;
mod volumes_posix;
mod volumes_shared;
mod workload;
