//! Registries: the client's side of OCI's distribution specification, which Docker's Registry v2 became.
//!
//! | part | what it owns |
//! | --- | --- |
//! | [`client`] | one request and its answer: authorisation, retries, redirects |
//! | [`transport`] | HTTP and TLS: proxies, time limits |
//! | [`certificates`] | whom a registry is to be known by, and what this side shows it |
//! | [`endpoint`] | where a reference's registry is, and whether it may be asked without TLS |
//! | [`redirect`] | which other place a request may be sent to |
//! | [`auth`] | challenges and tokens |
//! | [`credentials`] | `~/.docker/config.json` and its helpers |
//! | [`config`] | mirrors and insecure registries, as the configuration file has them |
//! | [`manifest`], [`blob`] | what is fetched |
//! | [`upload`] | what is sent |
//! | [`login`], [`helper`] | credentials that are kept, and the programs that keep them |
//!
//! The HTTP library is ureq with rustls and ring: it is blocking, as everything here is (a pull has a handful of
//! connections, each with a thread that also decompresses), has no runtime, links statically without a C library's TLS, and
//! has a time limit for each read, which is what tells a stall from a slow line. What it would do of its own accord and what
//! must be decided here (redirects, status codes, choice of proxy) is switched off. oci-client and reqwest bring tokio, and
//! the former has neither ranges that continue a file nor helpers. docker_credential only reads, with a second base64;
//! what logs in has to write the same file and speak to the same helpers.

mod auth;
mod blob;
mod certificates;
mod client;
mod config;
mod credentials;
mod endpoint;
mod error;
mod helper;
mod login;
mod manifest;
mod redirect;
mod transport;
mod upload;

pub(crate) use blob::{Place, Places, RemoteBlob, was_stopped};
pub(crate) use client::Client;
pub use config::Registries;
pub(crate) use endpoint::Endpoint;
pub(crate) use error::Error;
pub use login::{Kept, LoginError, RegistryName, RegistryNameError, log_in, log_out};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use manifest::kind;
pub(crate) use manifest::{Resolved, config, resolve};
pub(crate) use upload::{LocalBlob, Target};

#[cfg(test)]
pub(crate) mod server;
#[cfg(test)]
mod tests;
