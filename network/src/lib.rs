//! Bridge networks of a host: their interfaces, addresses, rules, names and published ports.
//!
//! There is no daemon. What a network is lies in the store ([`definition`]); who is on it lies in the run directory, a file for
//! each member ([`endpoint`]), and the host's interfaces and rules are a function of the two that whoever holds the lock
//! makes true again ([`Plane`]). So a file that is left by a process that was killed is all that is ever to be cleaned up by
//! the next command: TAP and veth interfaces end with the process or the namespace that has them.
#![forbid(unsafe_code)]

pub mod address;
mod conntrack;
pub mod definition;
pub mod egress;
pub mod endpoint;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod host;
mod netfilter;
mod nft;
mod plane;
pub mod proxy;
pub mod publish;
mod random;
pub mod resolver;
mod rules;
mod store;

pub use files::Error as FileError;
pub use nft::{NftError, dropping, require_nft};
pub use plane::{Error, Owners, Plane, Port, Wish, check_addresses};
pub use random::random;
pub use rules::table;
pub use rvm_netlink::Error as LinkError;
pub use store::{Addressing, Blueprint, DEFAULT, StoreError, is_valid_name};
