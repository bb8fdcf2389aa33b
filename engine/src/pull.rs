//! Fetching images.

use rvm_images::{Platform, Progress, PullRequest, Pulled, Reference};

use crate::config::Config;
use crate::engine::{Engine, Error};

/// An image to be fetched from its registry.
#[derive(Debug, Clone)]
pub struct Pull {
    /// Its name, as people write it.
    pub image: String,
    /// For what kind of machine; this one's where `None`.
    pub platform: Option<Platform>,
    /// Whether the registry has to prove who it is.
    pub verifies_tls: bool,
}

impl Engine {
    /// Brings an image from its registry into the store, or brings it up to date.
    ///
    /// # Errors
    /// [`Error::Image`], [`Error::Config`].
    pub fn pull(
        &self,
        pull: &Pull,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Reference, Pulled), Error> {
        let reference: Reference = pull.image.parse().map_err(rvm_images::Error::from)?;
        rvm_isolation::resolve_by_files_and_dns();
        let mut registries = Config::read()?.registries;
        if !pull.verifies_tls {
            registries = registries.with_insecure(reference.domain());
        }
        let request = PullRequest {
            reference: reference.clone(),
            platform: pull.platform.clone().unwrap_or_default(),
            registries,
        };
        let pulled = self.images()?.pull(&request, progress)?;
        Ok((reference, pulled))
    }
}
