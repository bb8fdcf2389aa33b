//! Questions about the workload as a whole, one on each connection.

use std::os::unix::net::UnixStream;

use anyhow::Result;
use oci_spec::runtime::LinuxResources;
use rvm_isolation::cgroup::{Processes, Usage};
use rvm_protocol::{Answer, Ask, Failure, read_frame, write_frame};
use serde::Serialize;

/// The workload as a whole. All methods block until done.
pub(crate) trait Workload {
    /// Lets its processes stand still.
    fn freeze(&self) -> Result<(), Failure>;
    /// Lets them go on.
    fn thaw(&self) -> Result<(), Failure>;
    /// Tells which there are.
    fn processes(&self) -> Result<Processes, Failure>;
    /// Tells what they use.
    fn usage(&self) -> Result<Usage, Failure>;
    /// Sets limits for them.
    fn limit(&self, resources: &LinuxResources) -> Result<(), Failure>;
}

/// Answers one question.
pub(crate) fn serve(workload: &impl Workload, connection: &UnixStream) -> Result<()> {
    match read_frame(connection)? {
        Ask::Freeze => answer(connection, workload.freeze()),
        Ask::Thaw => answer(connection, workload.thaw()),
        Ask::Processes => answer(connection, workload.processes()),
        Ask::Usage => answer(connection, workload.usage()),
        Ask::Limit(resources) => answer(connection, workload.limit(&resources)),
    }
}

fn answer<T: Serialize>(connection: &UnixStream, outcome: Result<T, Failure>) -> Result<()> {
    let answer = outcome.map_or_else(Answer::Failed, Answer::Done);
    Ok(write_frame(connection, &answer)?)
}
