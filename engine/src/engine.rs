//! The operations behind the commands.

use std::env;
use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rvm_images::{Digest, Image, Removed, Store as ImageStore};

use crate::control::{self, Connection, Event};
use crate::files::FilesError;
use crate::inspect::{self, Inspection};
use crate::record::{ImageReference, Isolation, Layer, Machine, Record, State, VERSION, now_ms};
use crate::store::{self, Owned, Store};
use crate::supervisor::{ClientStreams, Handoff};
use crate::timeline::Stamp;
use crate::{Layout, cgroup, config, disk, kvm, layout, memory, names, spec};

/// Virtual CPUs where nobody asked for a number.
const DEFAULT_VCPUS: u8 = 4;

/// CONFIG_NR_CPUS of the guest kernel.
const MAX_VCPUS: u8 = 64;

/// A supervisor that was told to kill its container has done so within this.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// Another command has looked at a container within this.
const GLANCE: Duration = Duration::from_millis(200);

/// Time between two tries.
const TURN: Duration = Duration::from_millis(5);

/// The containers and images of one installation.
#[derive(Debug)]
pub struct Engine {
    layout: Layout,
    store: Store,
}

/// A container to be made.
#[derive(Debug, Clone)]
pub struct Request {
    /// Name or ID of the image.
    pub image: String,
    /// How it is isolated.
    pub isolation: Isolation,
    /// Its name; generated where `None`.
    pub name: Option<String>,
    /// Host name inside; the short ID where `None`.
    pub hostname: Option<String>,
    /// Whether it is removed once it has ended.
    pub auto_remove: bool,
    /// Whether standard input is connected.
    pub open_stdin: bool,
    /// Whether the supervisor collects when what was reached.
    pub timing: bool,
    /// Everything else, which the specification holds. The host name in here is ignored.
    pub options: spec::Options,
}

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directories cannot be used.
    #[error(transparent)]
    Layout(#[from] layout::Error),
    /// The images refused.
    #[error(transparent)]
    Image(#[from] rvm_images::Error),
    /// The configuration file cannot be used.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The containers refused.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The flags and the image make no container.
    #[error(transparent)]
    Spec(#[from] spec::Error),
    /// More processors than there are.
    #[error("{wanted} CPUs were asked for, and this machine has {available}")]
    TooManyCpus {
        /// Rounded up.
        wanted: u64,
        /// The machine's.
        available: u64,
    },
    /// More CPUs than a guest can have.
    #[error("{wanted} CPUs were asked for, and a virtual machine has {MAX_VCPUS} at most")]
    TooManyVcpus {
        /// Rounded up.
        wanted: u64,
    },
    /// More memory than there is.
    #[error("a virtual machine of {wanted_mib} MiB was asked for, and this machine has {available_mib} MiB")]
    TooMuchMemory {
        /// The workload's limit and the guest's own need.
        wanted_mib: u64,
        /// The machine's.
        available_mib: u64,
    },
    /// VM mode is not possible.
    #[error("VM mode is not possible here")]
    Kvm(#[from] kvm::Error),
    /// Container mode is not possible.
    #[error("container mode is not possible here")]
    Cgroup(#[from] cgroup::Error),
    /// Container mode without privilege.
    #[error("container mode needs root")]
    NotRoot,
    /// The empty writable layer could not be made.
    #[error("cannot prepare the writable layer")]
    Disk(#[from] disk::Error),
    /// The supervisor could not be started.
    #[error("cannot start the supervisor")]
    Supervisor(#[source] io::Error),
    /// The supervisor could not be reached.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// The container runs and was not to be killed.
    #[error("container {0} is running")]
    Running(String),
    /// The container's supervisor cannot be ended.
    #[error("container {0} does not end: its supervisor does not answer and cannot be killed")]
    Stuck(String),
    /// A container's files could not be read.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Somebody could not be logged in or out.
    #[error(transparent)]
    Login(#[from] rvm_images::LoginError),
    /// The root directory could not be locked.
    #[error("cannot lock the root directory")]
    Lock(#[source] io::Error),
}

impl Error {
    /// What a person can do about it, where that is not obvious.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Image(rvm_images::Error::NotFound(_)) => {
                Some("`rvm images` lists what is there; `rvm pull IMAGE` fetches one".to_owned())
            }
            Self::Image(rvm_images::Error::Pull { source, .. }) => source.hint(),
            Self::Image(rvm_images::Error::Push { source, .. }) => source.hint(),
            Self::Login(error) => error.hint(),
            Self::Kvm(error) => Some(error.hint().to_owned()),
            Self::Cgroup(cgroup::Error::NotMounted | cgroup::Error::ControllersMissing(_)) => Some(
                "boot with cgroup v2 alone (systemd.unified_cgroup_hierarchy=1); `rvm doctor` shows what is missing"
                    .to_owned(),
            ),
            Self::Files(error) => error.hint().map(str::to_owned),
            Self::NotRoot => Some("use sudo".to_owned()),
            Self::Disk(disk::Error::Run(_)) => Some("install the package e2fsprogs".to_owned()),
            Self::Running(name) => Some(format!("`rvm rm -f {name}` kills it first")),
            Self::Store(store::Error::NameTaken(name)) => {
                Some(format!("`rvm rm {name}` removes the container that has it"))
            }
            Self::Store(store::Error::NotFound(_)) => Some("`rvm ps -a` lists every container".to_owned()),
            Self::Layout(layout::Error::AssetMissing { .. }) => {
                Some("scripts/build-guest builds it; RVM_ASSETS names the directory it is in".to_owned())
            }
            _ => None,
        }
    }
}

/// A container that was made and not started.
#[derive(Debug)]
pub struct Created {
    /// Its ID.
    pub id: String,
    owned: Owned,
    timing: bool,
}

/// The command's side of a container that it started.
#[derive(Debug)]
pub struct Attachment {
    /// Requests and events.
    pub control: Connection,
    /// The command writes; the workload reads until the command shuts it down.
    pub stdin: UnixStream,
    /// The command reads.
    pub stdout: UnixStream,
    /// The command reads.
    pub stderr: UnixStream,
    supervisor: Child,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunEnd {
    /// Exit code for the command.
    pub code: u8,
    /// What went wrong, where the end was not the workload's own.
    pub error: Option<String>,
    /// The supervisor's moments, if they were asked for.
    pub timeline: Vec<Stamp>,
}

impl Attachment {
    /// Waits for the container's end. The supervisor is gone when this returns, and so is everything it owned.
    #[must_use]
    pub fn wait(mut self) -> RunEnd {
        let end = loop {
            match self.control.next() {
                Ok(Event::Ended {
                    code,
                    error,
                    timeline,
                    ..
                }) => {
                    break RunEnd {
                        code,
                        error,
                        timeline,
                    };
                }
                Ok(_) => {}
                Err(_) => {
                    break RunEnd {
                        code: 137,
                        error: Some("the supervisor was killed".to_owned()),
                        timeline: Vec::new(),
                    };
                }
            }
        };
        // It is this process' child; waiting can only fail where somebody else has reaped it.
        let _ = self.supervisor.wait();
        end
    }
}

impl Engine {
    /// Opens the installation at `layout`.
    #[must_use]
    pub fn new(layout: Layout) -> Self {
        let store = Store::new(layout.clone());
        Self { layout, store }
    }

    /// The installation's directories.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The images.
    ///
    /// # Errors
    /// [`Error::Image`] where the store cannot be opened.
    pub fn images(&self) -> Result<ImageStore, Error> {
        Ok(ImageStore::open(self.layout.root())?)
    }

    /// Every container, newest first.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn containers(&self) -> Result<Vec<Record>, Error> {
        Ok(self.store.entries()?)
    }

    /// Makes a container. Everything that can be refused is refused here, before anything is made.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn create(&self, request: &Request) -> Result<Created, Error> {
        let machine = self.require(request)?;
        let _images_stay = self.lock_images(FlockOperation::LockShared)?;
        let image = self.images()?.resolve(&request.image)?;
        let reservation = self.store.reserve(request.name.as_deref())?;
        let short = reservation.id[..names::SHORT_ID].to_owned();
        let mut options = request.options.clone();
        options.hostname = request.hostname.clone().unwrap_or(short);
        let spec = match spec::build(&image.config, &options) {
            Ok(spec) => spec,
            Err(error) => {
                self.store.discard(&reservation)?;
                return Err(error.into());
            }
        };
        let process = spec.process().as_ref();
        let record = Record {
            version: VERSION,
            id: reservation.id.clone(),
            name: reservation.name,
            isolation: request.isolation,
            image: ImageReference {
                id: image.id.to_string(),
                name: request.image.clone(),
            },
            layers: layers(&image),
            command: process
                .and_then(|process| process.args().clone())
                .unwrap_or_default(),
            created_ms: now_ms(),
            auto_remove: request.auto_remove,
            open_stdin: request.open_stdin,
            machine,
            state: State::Created,
        };
        reservation.owned.write_spec(&spec)?;
        reservation.owned.write_record(&record)?;
        Ok(Created {
            id: reservation.id,
            owned: reservation.owned,
            timing: request.timing,
        })
    }

    /// Checks that this machine can do what is asked, and decides on the size of a virtual machine.
    fn require(&self, request: &Request) -> Result<Option<Machine>, Error> {
        let available = thread::available_parallelism().map_or(1, NonZero::get) as u64;
        let wanted = request.options.cpus.map(spec::Cpus::whole);
        if let Some(wanted) = wanted.filter(|wanted| *wanted > available) {
            return Err(Error::TooManyCpus { wanted, available });
        }
        match request.isolation {
            Isolation::Container => {
                if !rustix::process::geteuid().is_root() {
                    return Err(Error::NotRoot);
                }
                let missing = cgroup::missing_controllers()?;
                if !missing.is_empty() {
                    return Err(cgroup::Error::ControllersMissing(missing.join(", ")).into());
                }
                Ok(None)
            }
            Isolation::Vm => {
                layout::Asset::ALL
                    .into_iter()
                    .try_for_each(|asset| asset.find().map(drop))?;
                kvm::require(&self.layout)?;
                disk::prepare(&self.layout.cache())?;
                let vcpus = wanted.unwrap_or(available.min(DEFAULT_VCPUS.into()));
                let limit = request.options.memory_bytes.unwrap_or_else(memory::default_limit);
                let memory_mib = machine_memory(limit)?;
                let vcpus = u8::try_from(vcpus)
                    .ok()
                    .filter(|vcpus| *vcpus <= MAX_VCPUS)
                    .ok_or(Error::TooManyVcpus { wanted: vcpus })?;
                Ok(Some(Machine { vcpus, memory_mib }))
            }
        }
    }

    /// Starts a container under a supervisor of its own and connects to its streams.
    ///
    /// # Errors
    /// [`Error::Supervisor`].
    pub fn start(&self, created: Created) -> Result<Attachment, Error> {
        let Created { id, owned, timing } = created;
        let pair = || UnixStream::pair().map_err(Error::Supervisor);
        let (control, channel) = pair()?;
        let (stdin, supervisor_stdin) = pair()?;
        let (stdout, supervisor_stdout) = pair()?;
        let (stderr, supervisor_stderr) = pair()?;
        let supervisor = self
            .spawn_supervisor(&id, owned.directory(), channel, timing)
            .map_err(Error::Supervisor)?;
        let handoff = Handoff {
            lock: owned.into_lock(),
            streams: ClientStreams {
                stdin: supervisor_stdin,
                stdout: supervisor_stdout,
                stderr: supervisor_stderr,
            },
        };
        handoff.send(&control).map_err(Error::Supervisor)?;
        // The supervisor sees end of file by itself should this command die.
        Ok(Attachment {
            control: Connection::inherited(control),
            stdin,
            stdout,
            stderr,
            supervisor,
        })
    }

    fn spawn_supervisor(
        &self,
        id: &str,
        directory: &Path,
        channel: UnixStream,
        timing: bool,
    ) -> io::Result<Child> {
        let errors = File::create(directory.join("supervisor.log"))?;
        let mut command = Command::new("/proc/self/exe");
        if let Some(assets) = env::var_os(layout::ASSETS_VARIABLE) {
            // The supervisor's working directory is the root.
            command.env(layout::ASSETS_VARIABLE, std::path::absolute(assets)?);
        }
        // A process group of its own: the terminal's signals are for the command, which forwards them.
        command
            .process_group(0)
            .arg("--root")
            .arg(self.layout.root())
            .arg("--run")
            .arg(self.layout.run())
            .args(["supervise", id])
            .args(timing.then_some("--timing"))
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(channel)))
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
    }

    /// Removes a container, killing it first with `force`.
    ///
    /// # Errors
    /// [`Error::Running`] without `force`; [`Error::Store`].
    pub fn remove(&self, wanted: &str, force: bool) -> Result<Record, Error> {
        let record = self.store.find(wanted)?;
        // Without force only a command that looks at the container for a moment is waited for.
        let deadline = Instant::now() + if force { KILL_LIMIT } else { GLANCE };
        loop {
            match self.store.own(&record.id) {
                Ok(Some(owned)) => {
                    let current = owned.read_record()?;
                    self.store.remove(&owned, &current)?;
                    return Ok(record);
                }
                Ok(None) if Instant::now() < deadline => self.press(&record, force)?,
                Ok(None) if force => {
                    // Its supervisor does not answer: end that too. The next turn finds the lock free.
                    self.store.clean_up(&record.id)?;
                    thread::sleep(GLANCE);
                    if self.store.own(&record.id)?.is_none() {
                        return Err(Error::Stuck(record.name));
                    }
                }
                Ok(None) => return Err(Error::Running(record.name)),
                Err(store::Error::Path { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    return Ok(record);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Brings a container that somebody owns nearer to its removal: kills it if that is wanted, cuts the output that
    /// keeps one that has ended, and waits for its supervisor's last word.
    fn press(&self, record: &Record, force: bool) -> Result<(), Error> {
        match record.state {
            State::Running { .. } if !force => return Err(Error::Running(record.name.clone())),
            State::Created if !force => {
                thread::sleep(TURN);
                return Ok(());
            }
            _ => {}
        }
        let Ok(connection) = Connection::open(&self.store.run_directory(&record.id), KILL_LIMIT) else {
            // Between taking the lock and listening, or between the end and the exit: it will not be long.
            thread::sleep(TURN);
            return Ok(());
        };
        // A supervisor that ends by itself meanwhile has closed its end.
        let _ = connection.send(&control::Request::Kill);
        while let Ok(event) = connection.next() {
            if matches!(event, Event::Ended { .. }) {
                break;
            }
        }
        Ok(())
    }

    /// Everything about a container.
    ///
    /// # Errors
    /// [`Error::Store`]. What a running container's supervisor does not say is named in the answer.
    pub fn inspect(&self, wanted: &str) -> Result<Inspection, Error> {
        let record = self.store.find(wanted)?;
        let spec = self.store.read_spec(&record.id)?;
        let run_directory = self.store.run_directory(&record.id);
        Ok(inspect::inspect(&record, &spec, &run_directory))
    }

    /// Keeps a container that has ended as it is; `None` where it runs.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn own(&self, id: &str) -> Result<Option<Owned>, Error> {
        Ok(self.store.own(id)?)
    }

    /// The directory of a container, for reading its log.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn directory(&self, wanted: &str) -> Result<(Record, PathBuf), Error> {
        let record = self.store.find(wanted)?;
        let directory = self.store.directory(&record.id);
        Ok((record, directory))
    }

    /// Removes a name of an image, and with its last name the image, unless a container uses it.
    ///
    /// # Errors
    /// [`Error::Image`], [`Error::Store`].
    pub fn remove_image(&self, wanted: &str, force: bool) -> Result<Removed, Error> {
        let _no_new_users = self.lock_images(FlockOperation::LockExclusive)?;
        let users = self.store.entries()?;
        let in_use = |id: &Digest| {
            let id = id.to_string();
            users
                .iter()
                .find(|record| record.image.id == id)
                .map(|record| format!("container {}", record.name))
        };
        Ok(self.images()?.remove(wanted, &in_use, force)?)
    }

    /// Keeps images from being removed between being looked up and being on a container's record.
    pub(crate) fn lock_images(&self, operation: FlockOperation) -> Result<File, Error> {
        let root = File::open(self.layout.root()).map_err(Error::Lock)?;
        flock(&root, operation).map_err(|error| Error::Lock(error.into()))?;
        Ok(root)
    }
}

fn machine_memory(limit: u64) -> Result<u32, Error> {
    let available_mib = memory::host_mib().unwrap_or(u64::MAX);
    match memory::machine_mib(limit) {
        Some(wanted) if u64::from(wanted) <= available_mib => Ok(wanted),
        wanted => Err(Error::TooMuchMemory {
            wanted_mib: wanted.map_or(limit / memory::MIB, u64::from),
            available_mib,
        }),
    }
}

fn layers(image: &Image) -> Vec<Layer> {
    image
        .layers
        .iter()
        .map(|layer| Layer {
            path: layer.path.clone(),
            bytes: layer.bytes,
        })
        .collect()
}

/// Ends the workload's standard input.
///
/// # Errors
/// The socket's, where the workload has closed it already.
pub fn close_stdin(stdin: &UnixStream) -> io::Result<()> {
    stdin.shutdown(Shutdown::Write)
}
