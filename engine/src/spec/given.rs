//! What a person gives a container beyond what its image says and its limits. It is on record as it was said, because
//! its specification shows only what came of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Error, Ulimit};

/// Greatest and least of them (proc_pid_oom_score_adj(5)).
const OOM_SCORE_ADJ: std::ops::RangeInclusive<i32> = -1000..=1000;

/// Bytes of `/dev/shm`, where nobody said otherwise.
const SHM_BYTES: u64 = 64 << 20;

/// Given to a container. The default is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Given {
    /// Limits of each process.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ulimits: Vec<Ulimit>,
    /// Bytes of `/dev/shm`; see [`Given::shm_bytes`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_bytes: Option<u64>,
    /// Directories in memory and their options, separated by commas.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tmpfs: BTreeMap<String, String>,
    /// Further groups of its processes, by name or number.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Kernel parameters of its namespaces.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// How much sooner than others its processes are ended where memory is short, -1000 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Capabilities beside Docker's default ones, with or without `CAP_`, or `ALL`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<String>,
    /// Those that it is not to have, likewise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// Docker's security options; a seccomp profile as its content.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub security: Vec<String>,
    /// For other tools, in the specification.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Given {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Bytes of `/dev/shm`. As with Docker, 0 is as if nothing was said.
    pub(crate) fn shm_bytes(&self) -> u64 {
        self.shm_bytes.filter(|bytes| *bytes != 0).unwrap_or(SHM_BYTES)
    }

    /// As the specification has it.
    pub(super) fn oom_score_adj(&self) -> Result<i32, Error> {
        let adjustment = self.oom_score_adj.unwrap_or(0);
        if OOM_SCORE_ADJ.contains(&adjustment) {
            return Ok(adjustment);
        }
        Err(Error::OomScoreAdj(adjustment))
    }
}
