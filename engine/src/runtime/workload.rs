//! The workload as a whole: on the host by the isolation crate's functions, in a guest by an agent that calls the same.
//!
//! A frozen guest is not a paused machine: its virtual CPUs go on, so that its agent can be asked, its files be read and its
//! workload be killed. With nothing to run they idle.

use oci_spec::runtime::LinuxResources;
use rvm_isolation::cgroup::{self, Processes, Usage};
use rvm_protocol::Ask;

use super::{Access, Error, container};

impl Access {
    /// Lets all processes of the workload stand still; they do when this returns.
    pub(crate) fn freeze(&self) -> Result<(), Error> {
        match self {
            Self::MicroVm(remote) => Ok(remote.ask(&Ask::Freeze)?),
            Self::Container(remote) => Ok(cgroup::freeze(remote.cgroup()).map_err(container::Error::from)?),
        }
    }

    /// Lets them go on.
    pub(crate) fn thaw(&self) -> Result<(), Error> {
        match self {
            Self::MicroVm(remote) => Ok(remote.ask(&Ask::Thaw)?),
            Self::Container(remote) => Ok(cgroup::thaw(remote.cgroup()).map_err(container::Error::from)?),
        }
    }

    /// Its processes.
    pub(crate) fn processes(&self) -> Result<Processes, Error> {
        match self {
            Self::MicroVm(remote) => Ok(remote.ask(&Ask::Processes)?),
            Self::Container(remote) => {
                Ok(cgroup::processes(remote.cgroup()).map_err(container::Error::from)?)
            }
        }
    }

    /// What it uses and has used.
    pub(crate) fn usage(&self) -> Result<Usage, Error> {
        match self {
            Self::MicroVm(remote) => Ok(remote.ask(&Ask::Usage)?),
            Self::Container(remote) => {
                Ok(cgroup::workload_usage(remote.cgroup()).map_err(container::Error::from)?)
            }
        }
    }

    /// Sets limits of it.
    pub(crate) fn limit(&self, resources: LinuxResources) -> Result<(), Error> {
        match self {
            Self::MicroVm(remote) => Ok(remote.ask(&Ask::Limit(Box::new(resources)))?),
            Self::Container(remote) => {
                Ok(cgroup::limit(remote.cgroup(), &resources).map_err(container::Error::from)?)
            }
        }
    }
}
