//! An installation of rvm that belongs to the tests: its own directories, its own images.
//!
//! scripts/test says where things are: RVM_TEST_IMAGES (what tests/images/add-probe made), RVM_TEST_ASSETS (what
//! scripts/build-guest made, `rvm` itself included) and RVM_TEST_DIR, a directory on a file system that overlayfs
//! accepts. The probe is taken from beside the test program.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context as _, Result, ensure};

use crate::command::{LIMIT, Output, Running, finish};
use crate::images::{BUSYBOX, DEBIAN, archive};
use crate::leaks::Snapshot;

/// How a container is isolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// In a microVM of its own.
    Vm,
    /// By the host's kernel.
    Container,
}

impl Isolation {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Vm, Self::Container];

    /// As `--isolation` takes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Container => "container",
        }
    }
}

/// One installation, and the mode in which this test uses it.
#[derive(Debug)]
pub struct Rvm {
    isolation: Isolation,
    base: PathBuf,
    assets: PathBuf,
    /// Whether what it runs is on the default network where nobody says otherwise.
    connected: bool,
}

/// Tests run one at a time: each looks at the whole machine for what it left behind.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a test body in one mode, and then looks for what it left behind. Containers that the body leaves on purpose
/// are its own to remove.
///
/// # Errors
/// What the body returns, or what was left behind.
pub fn in_mode(isolation: Isolation, body: impl FnOnce(&Rvm) -> Result<()>) -> Result<()> {
    let _alone = alone();
    let rvm = Rvm::with_images(isolation)?;
    let before = rvm.snapshot()?;
    let result = body(&rvm);
    if result.is_err() {
        // Do not let one failure become the next test's; its own message says enough.
        let _ = rvm.remove_containers();
        let _ = rvm.call(["volume", "prune", "-f", "-a"]);
        return result;
    }
    before.nothing_new()
}

impl Rvm {
    /// The installation that most tests share, with the test images loaded.
    ///
    /// # Errors
    /// If an image cannot be made or loaded.
    pub fn with_images(isolation: Isolation) -> Result<Self> {
        static LOADED: Once = Once::new();
        static WARM: Once = Once::new();
        let rvm = Self::at(isolation, scratch()?.join("shared"))?;
        once(&LOADED, || rvm.load_images()).context("cannot load the test images")?;
        // The other mode as well: some tests go on in it.
        once(&WARM, || {
            rvm.warm_up()?;
            rvm.in_the_other_mode().warm_up()
        })
        .context("cannot run anything")?;
        Ok(rvm)
    }

    /// A new installation without images, in a directory called `name` that is made empty.
    ///
    /// # Errors
    /// If the directory cannot be made.
    pub fn empty(isolation: Isolation, name: &str) -> Result<Self> {
        let base = scratch()?.join(name);
        let _ = fs::remove_dir_all(&base);
        Self::at(isolation, base)
    }

    fn at(isolation: Isolation, base: PathBuf) -> Result<Self> {
        fs::create_dir_all(&base).with_context(|| format!("cannot create {}", base.display()))?;
        let assets =
            env::var_os("RVM_TEST_ASSETS").context("RVM_TEST_ASSETS is not set: run scripts/test")?;
        Ok(Self {
            isolation,
            base,
            assets: assets.into(),
            connected: false,
        })
    }

    /// The same installation with other assets.
    #[must_use]
    pub fn with_assets(&self, assets: &Path) -> Self {
        Self {
            isolation: self.isolation,
            base: self.base.clone(),
            assets: assets.to_owned(),
            connected: self.connected,
        }
    }

    /// The same installation in the other mode.
    #[must_use]
    pub fn in_the_other_mode(&self) -> Self {
        let isolation = match self.isolation {
            Isolation::Vm => Isolation::Container,
            Isolation::Container => Isolation::Vm,
        };
        Self {
            isolation,
            base: self.base.clone(),
            assets: self.assets.clone(),
            connected: self.connected,
        }
    }

    /// The same installation, for a test of networks: what it runs is on the default one, as a person's containers are. Most
    /// tests are of something else, and making a bridge and its rules for each container takes an emulated processor long.
    #[must_use]
    pub fn connected(&self) -> Self {
        Self {
            connected: true,
            isolation: self.isolation,
            base: self.base.clone(),
            assets: self.assets.clone(),
        }
    }

    /// The mode.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// Where it keeps what lasts.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.base.join("root")
    }

    /// Where it keeps sockets.
    #[must_use]
    pub fn run_directory(&self) -> PathBuf {
        self.base.join("run")
    }

    /// The assets it uses.
    #[must_use]
    pub fn assets(&self) -> &Path {
        &self.assets
    }

    /// A call of `rvm`, to be finished or started by the caller; standard input is empty.
    ///
    /// # Errors
    /// If the binary is not there.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Command> {
        let mut command = Command::new(assets()?.join("rvm"));
        command
            .args(arguments)
            .stdin(Stdio::null())
            .env("RVM_ROOT", self.root())
            .env("RVM_RUN", self.run_directory())
            .env("RVM_ASSETS", &self.assets);
        Ok(command)
    }

    /// `rvm ARGUMENTS`, to its end.
    ///
    /// # Errors
    /// If it does not end.
    pub fn call<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Output> {
        finish(self.command(arguments)?, LIMIT)
    }

    /// A call of `rvm run --isolation MODE ARGUMENTS`, without a network unless it is [`Rvm::connected`].
    ///
    /// # Errors
    /// If the binary is not there.
    pub fn run_command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Command> {
        let mut command = self.command(["run", "--isolation", self.isolation.name()])?;
        if !self.connected {
            command.args(["--network", "none"]);
        }
        command.args(arguments);
        Ok(command)
    }

    /// `rvm run --isolation MODE --rm ARGUMENTS`, to its end.
    ///
    /// # Errors
    /// If it does not end.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Output> {
        let mut command = self.run_command(["--rm"])?;
        command.args(arguments);
        finish(command, LIMIT)
    }

    /// `rvm run --isolation MODE --rm --name NAME ARGUMENTS` in the background, its output collected.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self, name: &str, arguments: &[&str]) -> Result<Running> {
        let mut command = self.run_command(["--rm", "--name", name])?;
        command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Running::start(command)
    }

    /// `rvm run --isolation MODE -d --name NAME ARGUMENTS`; its ID.
    ///
    /// # Errors
    /// If it does not run.
    pub fn detach(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.run_command(["-d", "--name", name])?;
        command.args(arguments);
        let output = finish(command, LIMIT)?;
        ensure!(output.code == 0, "{}", output.describe());
        Ok(output.text())
    }

    /// What has happened to the newest container with this name.
    ///
    /// # Errors
    /// If `rvm events` fails.
    pub fn actions(&self, container: &str) -> Result<Vec<String>> {
        let filter = format!("container={container}");
        let output = self.call([
            "events",
            "--since",
            "1h",
            "--until",
            "0s",
            "-f",
            &filter,
            "--format",
            "{{.Action}}",
        ])?;
        ensure!(output.code == 0, "{}", output.describe());
        let mut actions: Vec<_> = output.text().lines().map(str::to_owned).collect();
        let newest = actions.iter().rposition(|action| action == "create").unwrap_or(0);
        Ok(actions.split_off(newest))
    }

    /// IDs of its containers, ended ones included.
    ///
    /// # Errors
    /// If `rvm ps` fails.
    pub fn containers(&self) -> Result<Vec<String>> {
        let output = self.call(["ps", "-a", "-q"])?;
        ensure!(output.code == 0, "{}", output.describe());
        Ok(output.text().lines().map(str::to_owned).collect())
    }

    /// `rvm rm -f` for each of them.
    ///
    /// # Errors
    /// If that fails.
    pub fn remove_containers(&self) -> Result<()> {
        for id in self.containers()? {
            let output = self.call(["rm", "-f", &id])?;
            ensure!(output.code == 0, "{}", output.describe());
        }
        Ok(())
    }

    /// What is on this machine and in this installation's directories now.
    ///
    /// # Errors
    /// If that cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::take(&[&self.root(), &self.run_directory()])
    }

    fn load_images(&self) -> Result<()> {
        for (image, kind) in [(BUSYBOX, "oci-archive"), (DEBIAN, "docker-archive")] {
            let mut command = self.command(["load", "-i"])?;
            command.arg(archive(image, kind)?);
            let output = finish(command, 5 * LIMIT)?;
            ensure!(output.code == 0, "{}", output.describe());
        }
        Ok(())
    }

    /// The first run makes what all later ones share: directories, the parent cgroup, the empty writable layer, the layer with
    /// rvm's own program.
    fn warm_up(&self) -> Result<()> {
        // On the default network, which is defined when somebody is first on it.
        let output = self.connected().run(["--probe", BUSYBOX, "true"])?;
        ensure!(output.code == 0, "{}", output.describe());
        Ok(())
    }
}

/// What has been done once for all tests, and how it went.
type Once = OnceLock<std::result::Result<(), String>>;

fn once(once: &Once, action: impl FnOnce() -> Result<()>) -> Result<()> {
    once.get_or_init(|| action().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(anyhow::Error::msg)
}

/// What is tested: a directory that scripts/build-guest made.
fn assets() -> Result<PathBuf> {
    env::var_os("RVM_TEST_ASSETS")
        .map(PathBuf::from)
        .context("RVM_TEST_ASSETS is not set: run scripts/test")
}

/// Where tests may write a lot: on a file system that overlayfs accepts as an upper directory.
///
/// # Errors
/// If scripts/test did not say.
pub fn scratch() -> Result<PathBuf> {
    env::var_os("RVM_TEST_DIR")
        .map(PathBuf::from)
        .context("RVM_TEST_DIR is not set: run scripts/test")
}

/// A binary of this workspace, built in the profile of the running test.
///
/// # Errors
/// If it is not there.
pub fn beside_this_program(name: &str) -> Result<PathBuf> {
    let program = env::current_exe()?;
    let binary = program
        .parent()
        .and_then(Path::parent)
        .context("no directory")?
        .join(name);
    ensure!(
        binary.is_file(),
        "{} has not been built: run scripts/test",
        binary.display()
    );
    Ok(binary)
}
