//! Isolation of one workload: namespaces, cgroups, root file system, capabilities, seccomp.
