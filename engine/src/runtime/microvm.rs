//! VM mode: a workload in a guest, made by the agent that calls the isolation crate there.

use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use oci_spec::runtime::Spec;
use rvm_protocol::{Ask, Create, FailureKind, Interface, PrivateFile, Purpose, Request, Stream};
use rvm_vmm::status::Status;
use serde::de::DeserializeOwned;

use super::boot::Guest;
use super::guest::{self, Address, Control};
use super::machine::{self, Commands};
use super::shares::Seals;
use super::{Context, Exit, Input, Streams, Terminal, further, shares};
use crate::control::Exec;
use crate::layout;
use crate::network::Connected;
use crate::{cgroup, disk, spec};

/// A workload in a virtual machine.
pub(crate) struct MicroVm {
    guest: Guest,
    spec: Spec,
}

/// Why a virtual machine could not be made, or how it failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A part of the installation is missing.
    #[error(transparent)]
    Asset(#[from] layout::Error),
    /// The KVM device cannot be used.
    #[error("cannot open /dev/kvm")]
    Kvm(#[source] io::Error),
    /// The writable layer could not be made.
    #[error("cannot make the writable layer")]
    Disk(#[from] disk::Error),
    /// A layer of the image cannot be opened.
    #[error("cannot open the layer {0}")]
    Layer(PathBuf, #[source] io::Error),
    /// A directory or file of the host cannot be given to the guest.
    #[error(transparent)]
    Share(#[from] shares::Error),
    /// A socket or file for the machine could not be made.
    #[error("cannot make {0} for the virtual machine")]
    Resource(&'static str, #[source] io::Error),
    /// The machine could not be held to its processor time.
    #[error("cannot limit the virtual machine's processor time")]
    Limit(#[from] cgroup::Error),
    /// The record does not say how large the machine is.
    #[error("the container's record lacks the size of its virtual machine")]
    NoSize,
    /// The start was given up because a signal arrived.
    #[error("interrupted while the virtual machine started")]
    Interrupted,
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] machine::Error),
    /// The agent failed.
    #[error(transparent)]
    Guest(guest::Error),
    /// No process can be made of what was asked for.
    #[error(transparent)]
    Further(#[from] spec::Error),
}

impl Error {
    pub(crate) fn kind(&self) -> FailureKind {
        match self {
            Self::Guest(guest::Error::Failed(failure)) => failure.kind,
            _ => FailureKind::Other,
        }
    }
}

/// Ends a start that is under way, from another thread.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    state: Mutex<AlarmState>,
    is_raised: Condvar,
}

#[derive(Debug, Default)]
struct AlarmState {
    raised: bool,
    leash: Option<UnixStream>,
}

impl Alarm {
    /// Ends the machine that starts, or the one that will.
    pub(crate) fn raise(&self) {
        if let Ok(mut state) = self.state.lock() {
            state.raised = true;
            self.is_raised.notify_all();
            if let Some(leash) = state.leash.take() {
                // The machine may have ended by itself.
                let _ = leash.shutdown(Shutdown::Both);
            }
        }
    }

    /// Puts the start off; `false` where it was ended meanwhile.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let Ok(state) = self.state.lock() else {
            return false;
        };
        let waited = self
            .is_raised
            .wait_timeout_while(state, time, |state| !state.raised);
        waited.is_ok_and(|(state, _)| !state.raised)
    }

    fn is_raised(&self) -> bool {
        self.state.lock().is_ok_and(|state| state.raised)
    }

    /// Arms the alarm; `false` where it was raised already.
    pub(super) fn arm(&self, leash: UnixStream) -> bool {
        self.state.lock().is_ok_and(|mut state| {
            state.leash = Some(leash);
            !state.raised
        })
    }
}

/// Sends requests to a guest from any thread.
#[derive(Clone)]
pub(crate) struct Remote {
    writer: Arc<Mutex<UnixStream>>,
    leash: Arc<UnixStream>,
    commands: Arc<Commands>,
    address: Address,
    spec: Arc<Spec>,
    /// Number of the next further process.
    next: Arc<AtomicU64>,
}

impl Remote {
    /// Makes a further process.
    pub(super) fn enter(&self, exec: &Exec, open_stdin: bool) -> Result<(Control, Streams), Error> {
        let process = further(&self.spec, exec)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let control = self.address.exec(number).map_err(Error::Guest)?;
        control.enter(process, open_stdin).map_err(Error::Guest)?;
        let terminal = exec.terminal.map(|_| Terminal::Guest(control.writer()));
        let stream = |stream| self.address.exec_stream(number, stream);
        let streams = connect(stream, open_stdin, terminal).map_err(Error::Guest)?;
        Ok((control, streams))
    }

    pub(super) fn signal(&self, signal: i32) {
        // A failure means that the guest has ended, and the workload with it.
        let _ = guest::send(&self.writer, &Request::Signal { signal });
    }

    pub(super) fn status(&self) -> Result<Status, machine::Error> {
        self.commands.status()
    }

    pub(super) fn files(&self, purpose: Purpose) -> Result<UnixStream, Error> {
        self.address.files(purpose).map_err(Error::Guest)
    }

    /// Asks the guest something about the workload as a whole.
    pub(super) fn ask<T: DeserializeOwned>(&self, ask: &Ask) -> Result<T, Error> {
        self.address.ask(ask).map_err(Error::Guest)
    }

    pub(super) fn kill(&self) {
        // A failure means that the machine has ended.
        let _ = self.leash.shutdown(Shutdown::Both);
    }
}

impl MicroVm {
    pub(crate) fn create(context: &Context<'_>) -> Result<(Self, Streams), Error> {
        Self::boot(context).map_err(|error| {
            if context.alarm.is_raised() {
                return Error::Interrupted;
            }
            error
        })
    }

    fn boot(context: &Context<'_>) -> Result<(Self, Streams), Error> {
        let mut guest = Guest::boot(context)?;
        if context.cgroup.is_some() {
            // Not before the guest is up: a boot at a tenth of a processor would take seconds, and nothing of the image runs in it.
            cgroup::limit_machine(&context.record.id, context.spec)?;
        }
        match isolate(context, &guest) {
            Ok(streams) => {
                // Volumes have been filled, and nothing of the image runs yet.
                guest.seals = Seals::default();
                let spec = context.spec.clone();
                Ok((Self { guest, spec }, streams))
            }
            Err(error) => Err(guest.explain(error)),
        }
    }

    pub(crate) fn start(&mut self) -> Result<(), Error> {
        let outcome = self.guest.control.start();
        outcome.map_err(|error| self.guest.explain(error))
    }

    pub(crate) fn pid(&self) -> i32 {
        self.guest.machine.pid()
    }

    pub(crate) fn remote(&self) -> Result<Remote, Error> {
        Ok(Remote {
            writer: self.guest.control.writer(),
            leash: Arc::new(self.guest.machine.leash()?),
            commands: self.guest.machine.commands(),
            address: self.guest.address.clone(),
            spec: Arc::new(self.spec.clone()),
            next: Arc::default(),
        })
    }

    pub(crate) fn wait(&mut self) -> Result<Exit, Error> {
        match self.guest.control.wait() {
            Ok(exited) => Ok(Exit {
                code: exited.code,
                out_of_memory: exited.out_of_memory,
            }),
            Err(error) => Err(self.guest.explain(error)),
        }
    }

    /// Powers the guest off, so that its writable layer is whole, and removes the machine.
    pub(crate) fn end(self) -> Result<(), Error> {
        self.guest.power_off();
        Ok(())
    }
}

/// Makes the container in the guest, and connects its streams.
fn isolate(context: &Context<'_>, guest: &Guest) -> Result<Streams, guest::Error> {
    let open_stdin = context.record.open_stdin;
    let Connected {
        interfaces, files, ..
    } = context.network;
    guest.control.create(Create {
        spec: shares::as_in_guest(context.spec, &guest.mounts),
        stdin: open_stdin,
        interfaces: interfaces.iter().map(interface).collect(),
        files: files
            .iter()
            .map(|file| PrivateFile {
                path: file.path.clone(),
                content: file.content.clone(),
            })
            .collect(),
    })?;
    let process = context.spec.process().as_ref();
    let has_terminal = process.is_some_and(|process| process.terminal() == Some(true));
    let terminal = has_terminal.then(|| Terminal::Guest(guest.control.writer()));
    connect(|stream| guest.address.stream(stream), open_stdin, terminal)
}

/// As the agent is told of it.
fn interface(interface: &rvm_isolation::Interface) -> Interface {
    Interface {
        name: interface.name.clone(),
        mac: interface.mac,
        addresses: interface.addresses.clone(),
        gateways: interface.gateways.clone(),
        mtu: interface.mtu,
    }
}

/// Connects a process' streams.
fn connect(
    stream: impl Fn(Stream) -> Result<UnixStream, guest::Error>,
    open_stdin: bool,
    terminal: Option<Terminal>,
) -> Result<Streams, guest::Error> {
    let output = |kind| stream(kind).map(|connection| File::from(OwnedFd::from(connection)));
    let stdin = open_stdin.then(|| stream(Stream::Stdin)).transpose()?;
    Ok(Streams {
        stdin: stdin.map(Input::Connection),
        stdout: output(Stream::Stdout)?,
        stderr: terminal.is_none().then(|| output(Stream::Stderr)).transpose()?,
        terminal,
    })
}
