//! One image in both modes under the same limits, and what differs, each difference with where it was read.
//!
//! A look at each mode ([`observe`]) is a set of facts from inside, from the host, and of small experiments; what is told of
//! them ([`rows`]) is a function of the two looks. Nothing here calls one of them secure.

mod calls;
mod host;
mod observe;
mod rows;

use serde::Serialize;

use crate::engine::Engine;
use crate::probe::SessionError;
use crate::record::Isolation;
use crate::spec::Changes;

pub use rows::{ROWS, Row};

/// What is compared.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Name or ID of an image that is here.
    pub image: String,
    /// Limits of both.
    pub limits: Changes,
    /// A command of the image that is run in both; none where this is empty.
    pub command: Vec<String>,
    /// Instances of which the last one's memory is measured beside the first one's.
    pub instances: usize,
    /// Starts of which the middle one is told.
    pub starts: usize,
}

/// What has come of it.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The image as it was named.
    pub image: String,
    /// The host's kernel.
    pub host: String,
    /// In the order in which they are best read.
    pub rows: Vec<Row>,
}

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// One of the containers could not be looked at.
    #[error("cannot look at the image in a {isolation}")]
    Look {
        /// In which mode.
        isolation: Isolation,
        /// The cause.
        #[source]
        source: SessionError,
    },
    /// What the probe printed is not what it prints.
    #[error("the probe printed something else than its facts in a {0}")]
    Facts(Isolation, #[source] serde_json::Error),
}

impl Engine {
    /// Compares an image in both modes; `progress` is told what is done next. No container of it is left afterwards.
    ///
    /// # Errors
    /// As [`CompareError`] says.
    pub fn compare(
        &self,
        subject: &Subject,
        progress: &mut dyn FnMut(Isolation, &str),
    ) -> Result<Comparison, CompareError> {
        let vm = observe::observe(self, subject, Isolation::Vm, progress)?;
        let container = observe::observe(self, subject, Isolation::Container, progress)?;
        let host = rustix::system::uname();
        Ok(Comparison {
            image: subject.image.clone(),
            host: host.release().to_string_lossy().into_owned(),
            rows: rows::rows(&vm, &container),
        })
    }
}
