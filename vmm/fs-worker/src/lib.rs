//! The worker of a file system device: it has one directory of the host, and does there what a guest's FUSE requests ask
//! for. They arrive in memory that it shares with a machine, whose guest means harm.
//!
//! What a request means is left to `fuse-backend-rs`, which follows names one at a time from directories that it has
//! open, follows no link, and opens nothing but files and directories. Around it stands what it leaves to its users:
//! [`request`] lets only whole requests of known kinds reach it, [`share`] answers what it has no answer for, `data` hands it the
//! memory to read and write, `locks` does what it does not do, `listing` adds what it leaves out, `creation`
//! is stricter than it, and [`confine`] sees to it that
//! there is nothing to be reached beside the directory.

#![deny(unsafe_code)]

pub mod confine;
mod creation;
mod data;
mod listing;
mod locks;
pub mod request;
pub mod share;
pub mod sys;
