//! What the host asks about the workload as a whole. Each question has a connection of its own, with one [`Ask`] and one
//! [`Answer`]. Like [`crate::Create`], the answers carry what the isolation crate works with, as it writes it.

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use crate::message::Failure;

/// Host to guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// Let all processes of the workload stand still. Answered once they do.
    Freeze,
    /// Let them go on.
    Thaw,
    /// Tell which processes there are.
    Processes,
    /// Tell what the workload uses and has used.
    Usage,
    /// Set these limits of the workload's cgroup.
    Limit(Box<LinuxResources>),
}

/// Guest to host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer<T> {
    /// It is done, and this is what was asked for.
    Done(T),
    /// It is not done.
    Failed(Failure),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::FailureKind;

    #[test]
    fn the_wire_format_is_frozen() {
        let check = |ask: Ask, json: &str| assert_eq!(serde_json::to_string(&ask).unwrap(), json);
        check(Ask::Freeze, r#""freeze""#);
        check(Ask::Thaw, r#""thaw""#);
        check(Ask::Processes, r#""processes""#);
        check(Ask::Usage, r#""usage""#);
        check(Ask::Limit(Box::default()), r#"{"limit":{}}"#);
        assert_eq!(
            serde_json::to_string(&Answer::Done(())).unwrap(),
            r#"{"done":null}"#
        );
        let failed = Answer::<()>::Failed(Failure {
            kind: FailureKind::Other,
            message: "m".into(),
        });
        let json = r#"{"failed":{"kind":"other","message":"m"}}"#;
        assert_eq!(serde_json::to_string(&failed).unwrap(), json);
        assert_eq!(serde_json::from_str::<Answer<()>>(json).unwrap(), failed);
    }
}
