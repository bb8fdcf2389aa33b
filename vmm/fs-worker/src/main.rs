//! `rvm-fs`: serves one directory to the file system device of one machine.
//!
//! `rvm-fs --directory FD --memory FD --requests FD --answers FD [--read-only]` takes over four descriptors: the directory, and
//! the worker's side of what it shares with a machine (`rvm_vmm::devices::virtio::fs::exchange`). It ends with 0 when the machine
//! has closed its side. Started by root, it serves from a process of its own namespaces, and waits for that. With `--file FD`
//! instead, which only root can do, it serves a directory in which there is nothing but that file, called `file`. With
//! `--seal FD`, a socket, what it serves is read-only from when the other end of that is closed.

#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustix::process::{Signal, set_parent_process_death_signal};
use rvm_fs::confine::{self, Kind, Side};
use rvm_fs::share::{Access, Ended, Share};
use rvm_vmm::devices::virtio::fs::exchange::{Ends, Worker};
use rvm_vmm::sys::Inherited;

/// Threads that serve requests. One waits for the disk as the others go on; more than the lab's and most hosts' disks do
/// at once would only wait for each other.
const THREADS: usize = 4;

struct Arguments {
    shared: RawFd,
    kind: Kind,
    memory: RawFd,
    requests: RawFd,
    answers: RawFd,
    seal: Option<RawFd>,
    access: Access,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("rvm-fs: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let mut inherited = Inherited::once().context("the descriptors were taken over before")?;
    // Whoever started it has to clean up after it, and does not where it is gone.
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot bind to the starter's life")?;
    let arguments = arguments()?;
    let shared = inherited
        .take(arguments.shared)
        .context("cannot use the directory or file")?;
    let mut take = |fd| {
        inherited
            .take(fd)
            .context("cannot use what is shared with the machine")
    };
    let ends = Ends {
        memory: take(arguments.memory)?,
        requests: take(arguments.requests)?,
        answers: take(arguments.answers)?,
    };
    let seal = arguments
        .seal
        .map(|seal| inherited.take(seal).context("cannot use the seal"))
        .transpose()?;
    inherited
        .close_others(&[])
        .context("cannot close the other descriptors")?;
    let nowhere = File::options()
        .write(true)
        .open("/dev/null")
        .context("cannot open /dev/null")?;
    match confine::separate(shared, arguments.kind, arguments.access, ends)? {
        Side::Outside(child) => Ok(child.wait()?),
        Side::Inside(room, ends) => {
            let access = arguments.access;
            let share = Share::open(&room, access, nowhere.into()).context("cannot open the directory")?;
            let machine = Worker::new(ends).context("cannot use what is shared with the machine")?;
            serve(room, share, machine, seal)
        }
    }
}

/// Serves requests until the machine is gone.
fn serve(room: confine::Room, share: Share, machine: Worker, seal: Option<OwnedFd>) -> Result<ExitCode> {
    let filters = room.seal()?;
    let shared = Arc::new((share, machine));
    let (ended, end) = std::sync::mpsc::channel::<Result<Ended>>();
    type Work = Box<dyn FnOnce(&Share, &Worker) -> Ended + Send>;
    let mut work: Vec<Work> = Vec::new();
    work.extend((0..THREADS).map(|_| Box::new(Share::serve_all) as Work));
    work.push(Box::new(Share::serve_locks));
    work.extend(seal.map(|seal| Box::new(move |share: &Share, _: &Worker| share.seal_after(&seal)) as Work));
    for work in work {
        let (shared, filters, ended) = (shared.clone(), filters.clone(), ended.clone());
        let body = move || {
            let result = filters.install_for_requests().map_err(anyhow::Error::from);
            let result = result.map(|()| work(&shared.0, &shared.1));
            // Fails only if the main thread has ended, and the process with it.
            let _ = ended.send(result);
        };
        std::thread::Builder::new()
            .name("requests".into())
            .spawn(body)
            .context("cannot start a thread")?;
    }
    // This thread never serves: a thread that changes its user to create a file loses its parent-death signal.
    filters.install_for_waiting()?;
    loop {
        match end.recv().context("all threads are gone")?? {
            Ended::Sealed => {}
            Ended::Closed => return Ok(ExitCode::SUCCESS),
            Ended::Failed(error) => return Err(error).context("cannot use what is shared with the machine"),
        }
    }
}

fn arguments() -> Result<Arguments> {
    const USAGE: &str = "usage: rvm-fs --directory FD|--file FD --memory FD --requests FD --answers FD [--read-only|--seal FD] (it is started beside rvm-vmm)";
    let (mut shared, mut seal, mut access) = (None, None, Access::ReadWrite);
    let (mut memory, mut requests, mut answers) = (None, None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut descriptor = || -> Result<Option<RawFd>> {
            let fd = arguments.next().context(USAGE)?;
            let number = fd
                .parse()
                .with_context(|| format!("{fd:?} is not a descriptor"))?;
            Ok(Some(number))
        };
        match argument.as_str() {
            "--directory" => shared = descriptor()?.map(|fd| (fd, Kind::Directory)),
            "--file" => shared = descriptor()?.map(|fd| (fd, Kind::File)),
            "--memory" => memory = descriptor()?,
            "--requests" => requests = descriptor()?,
            "--answers" => answers = descriptor()?,
            "--seal" => seal = descriptor()?,
            "--read-only" => access = Access::ReadOnly,
            _ => bail!(USAGE),
        }
    }
    let (shared, kind) = shared.context(USAGE)?;
    Ok(Arguments {
        shared,
        kind,
        memory: memory.context(USAGE)?,
        requests: requests.context(USAGE)?,
        answers: answers.context(USAGE)?,
        seal,
        access,
    })
}
