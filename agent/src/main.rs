//! PID 1 of the guest. It sets up what a container host has, then does what the host asks over vsock: make one
//! container with the same code as the host would, carry its standard streams, read its files, report its end, power off.
//!
//! The agent decides nothing: all of the container is in the OCI specification that it is sent. It blocks in system
//! calls when there is nothing to do, and holds at most one buffer per stream.

mod archive;
mod boot;
mod guest;
mod power;
mod reaper;
mod server;
mod shares;
mod storage;
mod streams;
mod sys;
mod workload;

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rvm_protocol::{AGENT_PORT, Doorbell};

use crate::guest::Guest;
use crate::server::Server;

fn main() {
    // Before anything else: the container's first process is this program, started again.
    rvm_isolation::init_if_requested();
    if let Err(error) = run() {
        eprintln!("rvm-agent: {error:#}");
    }
    // Only a failure leads here. On a host, where this program has no business, it just ends.
    if std::process::id() == 1 {
        power::reset();
    }
    std::process::exit(1);
}

fn run() -> Result<()> {
    ensure!(
        std::process::id() == 1,
        "this is PID 1 of an rvm guest, not a command"
    );
    sys::ring(Doorbell::Started).context("ring the doorbell")?;
    let config = boot::read_config()?;
    boot::switch_root()?;
    boot::mount_kernel_file_systems()?;
    boot::set_kernel_parameters()?;
    let rootfs = storage::prepare(&config.layers)?;
    shares::mount_all(&config.shares)?;

    let guest = Guest::new(rootfs, config.mounts);
    let server = Arc::new(Server::new(config.token, guest));
    let listener = sys::listen_vsock(AGENT_PORT).context("listen on vsock")?;
    sys::ring(Doorbell::Ready).context("ring the doorbell")?;
    loop {
        let connection = rustix::io::retry_on_intr(|| {
            rustix::net::accept_with(&listener, rustix::net::SocketFlags::CLOEXEC)
        })
        .context("accept a connection")?;
        server.admit(UnixStream::from(connection));
    }
}
