//! What goes to and from registries.

use rvm_images::{
    Kept, Platform, Progress, PullRequest, Pulled, PushRequest, Pushed, Reference, Registries, RegistryName,
};

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

/// An image to be sent to its registry.
#[derive(Debug, Clone)]
pub struct Push {
    /// Its name, which says where it goes.
    pub reference: Reference,
    /// Every name of the same repository instead.
    pub all_tags: bool,
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
        let request = PullRequest {
            reference: reference.clone(),
            platform: pull.platform.clone().unwrap_or_default(),
            registries: registries(reference.domain(), pull.verifies_tls)?,
        };
        let pulled = self.images()?.pull(&request, progress)?;
        self.tell_moved(&reference, "pull");
        Ok((reference, pulled))
    }

    /// Sends an image of the store to its registry.
    ///
    /// # Errors
    /// [`Error::Image`], [`Error::Config`].
    pub fn push(&self, push: &Push, progress: &mut dyn FnMut(Progress)) -> Result<Vec<Pushed>, Error> {
        let request = PushRequest {
            reference: push.reference.clone(),
            all_tags: push.all_tags,
            registries: registries(push.reference.domain(), push.verifies_tls)?,
        };
        let pushed = self.images()?.push(&request, progress)?;
        for one in &pushed {
            let tagged = format!("{}:{}", push.reference.familiar_repository(), one.tag);
            // It is one: it has been pushed.
            if let Ok(reference) = tagged.parse() {
                self.tell_moved(&reference, "push");
            }
        }
        Ok(pushed)
    }
}

/// Keeps a password, once its registry has accepted it.
///
/// # Errors
/// [`Error::Login`], [`Error::Config`].
pub fn log_in(
    registry: &RegistryName,
    verifies_tls: bool,
    user: &str,
    password: &str,
) -> Result<Kept, Error> {
    let registries = registries(registry.domain(), verifies_tls)?;
    Ok(rvm_images::log_in(registry, registries, user, password)?)
}

/// Forgets a password; the answer is whether there was one.
///
/// # Errors
/// [`Error::Login`].
pub fn log_out(registry: &RegistryName) -> Result<bool, Error> {
    Ok(rvm_images::log_out(registry)?)
}

/// What is configured of registries. All that asks one comes by here, and so resolves names as a static program can.
fn registries(domain: &str, verifies_tls: bool) -> Result<Registries, Error> {
    rvm_isolation::resolve_by_files_and_dns();
    let registries = Config::read()?.registries;
    Ok(if verifies_tls {
        registries
    } else {
        registries.with_insecure(domain)
    })
}
