//! The operations behind the commands.

mod settings;

use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rvm_images::{Digest, Image, Removed, Store as ImageStore};
use rvm_network::endpoint::Egress;
use rvm_network::publish::Ports;

use crate::attachment::Attachment;
use crate::control::{self, Connection, Event};
use crate::files::FilesError;
use crate::inspect::{self, Inspection};
use crate::life::{LifeError, RELEASE_LIMIT};
use crate::limits::{available_cpus, default_vcpus, machine_memory, virtual_cpus};
use crate::mounts::{Decided, MountError, MountPoint, Wishes};
use crate::network::{self, Mode, Networking};
use crate::record::{
    ImageReference, Isolation, Layer, LogLimits, Machine, Record, Settings, State, VERSION, now_ms,
};
use crate::restart::{Policy, Restarts};
use crate::store::{self, Owned, Store};
use crate::supervisor::{self, ClientStreams, Handoff, Invocation, Wanted};
use crate::{
    Layout, cgroup, config, disk, health, kvm, layout, memory, names, path, ports, probe, spec, volumes,
};

/// CONFIG_NR_CPUS of the guest kernel.
pub(crate) const MAX_VCPUS: u8 = 64;

/// A supervisor that was told to kill its container has done so within this.
pub(crate) const KILL_LIMIT: Duration = Duration::from_secs(20);

/// Another command has looked at a container within this.
const GLANCE: Duration = Duration::from_millis(200);

/// Time between two tries.
pub(crate) const TURN: Duration = Duration::from_millis(5);

/// The containers and images of one installation.
#[derive(Debug)]
pub struct Engine {
    layout: Layout,
    pub(crate) store: Store,
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
    /// Whether the end of the first attached command's standard input is the workload's.
    pub stdin_once: bool,
    /// The signal that asks it to end; the image's where `None`.
    pub stop_signal: Option<i32>,
    /// Seconds from that signal to `SIGKILL`, -1 for ever.
    pub stop_timeout: Option<i32>,
    /// Labels beside the image's.
    pub labels: BTreeMap<String, String>,
    /// How much of its output is kept.
    pub log: LogLimits,
    /// What is mounted in it.
    pub mounts: Wishes,
    /// When it is started again.
    pub restart: Policy,
    /// How its health is found out.
    pub health: health::Options,
    /// Whether rvm's own program is in it, at [`probe::PATH`].
    pub probe: bool,
    /// Whether the supervisor collects when what was reached.
    pub timing: bool,
    /// What it is connected to, with networks and containers by name.
    pub network: Networking,
    /// Its ports, beside those that the image exposes.
    pub ports: Ports,
    /// Where it may connect to outside of its networks; everywhere where `None`.
    pub egress: Option<Egress>,
    /// Everything else, which the specification holds. The host name and the mounts in here are
    /// ignored.
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
    /// The volumes refused.
    #[error(transparent)]
    Volume(#[from] volumes::Error),
    /// Nothing can be mounted as asked.
    #[error(transparent)]
    Mount(#[from] MountError),
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
    /// rvm's own program cannot be put into it.
    #[error(transparent)]
    Probe(#[from] probe::Error),
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
    /// The networks refused.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// A container is not in the state for it.
    #[error(transparent)]
    Life(#[from] LifeError),
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
            Self::Network(error) => error.hint(),
            Self::Files(error) => error.hint().map(str::to_owned),
            Self::Life(error) => error.hint(),
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

/// A container that does not run and is this process' to start.
#[derive(Debug)]
pub struct Created {
    /// Its ID.
    pub id: String,
    /// What is on record of it.
    pub record: Record,
    pub(crate) owned: Owned,
    pub(crate) timing: bool,
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
        let probe = request.probe.then(|| probe::layer(&self.layout)).transpose()?;
        let _images_stay = self.lock_images(FlockOperation::LockShared)?;
        let image = self.images()?.resolve(&request.image)?;
        if request.probe {
            probe::require_place(&image)?;
        }
        let renamed = request.hostname.is_some();
        let network = network::resolve(&self.store, &request.network, request.isolation, renamed)?;
        ports::check(&request.ports, request.egress.as_ref(), &network.mode)?;
        let reservation = self.store.reserve(request.name.as_deref())?;
        let short = reservation.id[..names::SHORT_ID].to_owned();
        let mut options = request.options.clone();
        options.hostname = match &request.hostname {
            Some(name) => name.clone(),
            None => self.store.shared_hostname(&network.mode)?.unwrap_or(short),
        };
        options.shares_network = matches!(network.mode, Mode::Host | Mode::Container(_));
        let decided = match self.decide_mounts(request, &volumes_of(&image)) {
            Ok(decided) => decided,
            Err(error) => {
                self.store.discard(&reservation)?;
                return Err(error);
            }
        };
        let spec = match self.specify(&image, options, &decided) {
            Ok(spec) => spec,
            Err(error) => {
                decided.discard(&self.volumes()?);
                self.store.discard(&reservation)?;
                return Err(error);
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
            layers: probe.into_iter().chain(layers(&image)).collect(),
            command: process
                .and_then(|process| process.args().clone())
                .unwrap_or_default(),
            created_ms: now_ms(),
            auto_remove: request.auto_remove,
            open_stdin: request.open_stdin,
            machine,
            settings: Settings {
                network,
                ..settings::settings(request, &image)
            },
            mounts: decided.mounts.clone(),
            restarts: Restarts::default(),
            stopped: false,
            state: State::Created,
        };
        reservation.owned.write_spec(&spec)?;
        reservation.owned.write_record(&record)?;
        self.store.journal.container(&record, "create", &[]);
        Ok(Created {
            id: reservation.id,
            record,
            owned: reservation.owned,
            timing: request.timing,
        })
    }

    fn specify(
        &self,
        image: &Image,
        mut options: spec::Options,
        decided: &Decided,
    ) -> Result<oci_spec::runtime::Spec, Error> {
        options.given.tmpfs.clone_from(&decided.tmpfs);
        let mounts = decided.mounts.shared().map(MountPoint::as_mount);
        options.mounts = mounts.collect::<Result<_, _>>().map_err(MountError::from)?;
        Ok(spec::build(&image.config, &options)?)
    }

    /// Checks that this machine can do what is asked, and decides on the size of a virtual machine.
    fn require(&self, request: &Request) -> Result<Option<Machine>, Error> {
        let available = available_cpus();
        let wanted = request.options.limits.cpus.map(spec::Cpus::whole);
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
                layout::Asset::OF_MACHINES
                    .into_iter()
                    .try_for_each(|asset| asset.find().map(drop))?;
                kvm::require(&self.layout)?;
                disk::prepare(&self.layout.cache())?;
                let limit = request
                    .options
                    .limits
                    .memory_bytes
                    .unwrap_or_else(memory::default_limit);
                let memory_mib = machine_memory(limit)?;
                let vcpus = wanted.map_or_else(|| Ok(default_vcpus()), virtual_cpus)?;
                Ok(Some(Machine { vcpus, memory_mib }))
            }
        }
    }

    /// Starts a container under a supervisor of its own and connects to the streams that are wanted.
    ///
    /// # Errors
    /// [`Error::Supervisor`].
    pub fn start(&self, created: Created, wanted: Wanted) -> Result<Attachment, Error> {
        let Created {
            id,
            record,
            owned,
            timing,
        } = created;
        let (control, channel) = UnixStream::pair().map_err(Error::Supervisor)?;
        let (near, far) = ClientStreams::pair(wanted).map_err(Error::Supervisor)?;
        if wanted.stdin || wanted.stdout || wanted.stderr {
            self.store.journal.container(&record, "attach", &[]);
        }
        let supervisor = self
            .spawn_supervisor(&id, owned.directory(), channel, timing)
            .map_err(Error::Supervisor)?;
        let handoff = Handoff {
            lock: owned.into_lock(),
            streams: far,
        };
        handoff.send(&control).map_err(Error::Supervisor)?;
        // The supervisor sees end of file by itself should this command die.
        Ok(Attachment {
            control: Connection::inherited(control),
            streams: near,
            supervisor: Some(supervisor),
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
            .args(Invocation::new(&self.layout, id, timing).arguments())
            .envs(supervisor::ENVIRONMENT)
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(channel)))
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
    }

    /// Removes a container, killing it first with `force`, and with `volumes` the volumes without a name that it alone uses.
    ///
    /// # Errors
    /// [`Error::Running`] without `force`; [`LifeError::Busy`], [`Error::Stuck`], [`Error::Store`].
    pub fn remove(&self, wanted: &str, force: bool, volumes: bool) -> Result<Record, Error> {
        let record = self.store.find(wanted)?;
        let limit = match record.state {
            _ if force => KILL_LIMIT,
            // Its supervisor is taking apart what it ran in.
            State::Exited(_) => RELEASE_LIMIT,
            // Only a command that looks at the container for a moment is waited for.
            State::Created | State::Running { .. } | State::Restarting { .. } => GLANCE,
        };
        let deadline = Instant::now() + limit;
        loop {
            match self.store.own(&record.id) {
                Ok(Some(owned)) => {
                    let current = owned.read_record()?;
                    self.store
                        .remove(&owned, &current, volumes || current.auto_remove)?;
                    return Ok(record);
                }
                Ok(None) if Instant::now() < deadline => self.press(&record, force)?,
                Ok(None) if force => {
                    // Its supervisor does not answer: end that too. The next turn finds the lock free.
                    self.store.clean_up(&record.id)?;
                    thread::sleep(GLANCE);
                    if self.store.own(&record.id)?.is_none() {
                        return Err(held(record, Error::Stuck));
                    }
                }
                Ok(None) => return Err(held(record, Error::Running)),
                Err(store::Error::Path(path::Error { source, .. }))
                    if source.kind() == io::ErrorKind::NotFound =>
                {
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
            State::Running { paused: true, .. } if !force => {
                return Err(LifeError::RemovePaused(record.name.clone()).into());
            }
            State::Running { .. } | State::Restarting { .. } if !force => {
                return Err(Error::Running(record.name.clone()));
            }
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
        let health = self.health(&record);
        let known = self.store.known_networks(&record.id)?;
        Ok(inspect::inspect(&record, &spec, health, &run_directory, &known))
    }

    /// What is known of a container's health; `None` where it is not looked at.
    #[must_use]
    pub fn health(&self, record: &Record) -> Option<health::Report> {
        record.settings.health.as_ref()?;
        health::Report::read(&self.store.directory(&record.id))
    }

    /// The containers.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Keeps a container that has ended as it is; `None` where it runs.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn own(&self, id: &str) -> Result<Option<Owned>, Error> {
        Ok(self.store.own(id)?)
    }

    /// What is on record of a container.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn container(&self, wanted: &str) -> Result<Record, Error> {
        Ok(self.store.find(wanted)?)
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
        let images = self.images()?;
        // What cannot be listed has no names to be told.
        let before = images.list().unwrap_or_default();
        let removed = images.remove(wanted, &in_use, force)?;
        self.tell_removed(&before, &removed);
        Ok(removed)
    }

    /// Keeps images from being removed between being looked up and being on a container's record.
    pub(crate) fn lock_images(&self, operation: FlockOperation) -> Result<File, Error> {
        let root = File::open(self.layout.root()).map_err(Error::Lock)?;
        flock(&root, operation).map_err(|error| Error::Lock(error.into()))?;
        Ok(root)
    }
}

/// Why a container that somebody owns is not removed: its supervisor is the owner only where it runs.
fn held(record: Record, by_supervisor: fn(String) -> Error) -> Error {
    match record.state {
        State::Running { .. } | State::Restarting { .. } => by_supervisor(record.name),
        State::Created | State::Exited(_) => LifeError::Busy(record.name).into(),
    }
}

/// Where the image wants volumes.
fn volumes_of(image: &Image) -> Vec<String> {
    let config = image.config.config().as_ref();
    config
        .and_then(|config| config.volumes().clone())
        .unwrap_or_default()
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
