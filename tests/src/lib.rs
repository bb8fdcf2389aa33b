//! The end-to-end harness: one test body, run once in a microVM and once in a container.
//!
//! A test names its [`rvm::Rvm`] and says what a person would type. Around each body the harness takes a [`leaks`]
//! snapshot, so that every test is also a test that nothing stays behind. What a test must see from inside, `probe` (a
//! binary of this crate that is added to the test images) prints.
//!
//! - [`command`]: processes with a time limit.   - [`wait`]: waiting for a condition.
//! - [`images`]: images made by other tools.     - [`archive`]: hostile images, made by hand.
//! - [`assets`]: kernels and initramfs images that misbehave.
//! - [`tree`]: a file tree, entry by entry.      - [`processes`]: what runs on this machine.
//! - [`registry`]: a real registry.              - [`terminal`]: a person at a terminal.
#![forbid(unsafe_code)]

pub mod archive;
pub mod assets;
pub mod command;
pub mod images;
pub mod leaks;
pub mod processes;
pub mod registry;
pub mod rvm;
pub mod terminal;
pub mod tree;
pub mod wait;

/// Defines tests whose body runs in both modes: `name::vm` and `name::container`.
///
/// The body may use `?`; it gets the [`rvm::Rvm`] under the name in parentheses.
#[macro_export]
macro_rules! both_modes {
    ($($(#[$attribute:meta])* fn $name:ident($rvm:ident) $body:block)*) => {$(
        $(#[$attribute])*
        mod $name {
            use super::*;

            fn body($rvm: &$crate::rvm::Rvm) -> anyhow::Result<()> {
                $body
                Ok(())
            }

            #[test]
            fn vm() -> anyhow::Result<()> {
                $crate::rvm::in_mode($crate::rvm::Isolation::Vm, body)
            }

            #[test]
            fn container() -> anyhow::Result<()> {
                $crate::rvm::in_mode($crate::rvm::Isolation::Container, body)
            }
        }
    )*};
}
