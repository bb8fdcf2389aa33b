//! What can be typed about the workload of a running container.

use clap::{ArgGroup, Args as ClapArgs};

use rvm_engine::restart::Policy;

use super::given::Limits;
use super::images::ListFormat;

pub(super) const TOP_EXAMPLES: &str = "\
Examples:
  rvm top web
  rvm top web aux
  rvm top web -eo pid,user,pcpu,rss,args

Options are those of ps for its columns: -ef (which is the default), aux, and -o or -eo with a list of pid, ppid, pgid, sid, uid,
user, gid, c, %cpu, %mem, vsz, rss, tty, stat, stime, start, time, bsdtime, etime, etimes, ni, nlwp, comm, cmd and args, each
also with a title as in pid=PROCESS. Numbers of processes are those that the kernel below the container has for them: this
machine's, or the virtual machine's.";

pub(super) const STATS_EXAMPLES: &str = "\
Examples:
  rvm stats                                every container that runs, again each second
  rvm stats --no-stream web db
  rvm stats --no-stream --format '{{.Name}} {{.CPUPerc}} {{.MemUsage}}'
  rvm stats --format '{{.Name}} {{.MemUsage}}, on this machine {{.HostMemUsage}}' web

The columns are the workload's: in a virtual machine, as its kernel counts. HostCPUPerc, HostMemUsage and HostPIDs are what all of
the container costs this machine: its workload or its virtual machine, and the process that owns it.";

pub(super) const UPDATE_EXAMPLES: &str = "\
Examples:
  rvm update -m 512m web
  rvm update --cpus 1.5 --pids-limit 200 web db
  rvm update --restart unless-stopped web
  rvm update --cpu-shares 512 --cpuset-cpus 0-1 batch

Limits change at once where the container runs, and stay for its next start. A virtual machine that runs has the memory and the
CPUs that it was made with: more of them is refused while it runs, and can be had for its next start once it is stopped.
--cpu-shares and --cpuset-cpus are about this machine's CPUs in both modes.";

#[derive(Debug, ClapArgs)]
pub(crate) struct Pause {
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) containers: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Top {
    /// Name or ID
    pub(crate) container: String,
    /// Options of ps
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
    pub(crate) options: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Stats {
    /// Show also containers that do not run
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Measure once, which takes a second, and end
    #[arg(long)]
    pub(crate) no_stream: bool,
    /// Show whole IDs
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// `table`, `json`, or text with the fields Container, ID, Name, CPUPerc, MemUsage, MemPerc, NetIO, BlockIO, PIDs,
    /// HostCPUPerc, HostMemUsage and HostPIDs
    #[arg(long, default_value = "table")]
    pub(crate) format: ListFormat,
    /// Names or IDs [default: all that run]
    #[arg(value_name = "CONTAINER")]
    pub(crate) containers: Vec<String>,
}

/// Something has to change.
#[derive(Debug, ClapArgs)]
#[command(group = ArgGroup::new("changes").required(true).multiple(true)
    .args(["memory", "memory_swap", "cpus", "cpu_shares", "cpuset_cpus", "pids_limit", "restart"]))]
pub(crate) struct Update {
    #[command(flatten)]
    pub(crate) limits: Limits,
    /// When to start the container again: no, on-failure[:TIMES], always, or unless-stopped
    #[arg(long, value_name = "POLICY")]
    pub(crate) restart: Option<Policy>,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) containers: Vec<String>,
}
