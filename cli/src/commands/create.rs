//! `rvm create`, and making containers for `rvm run`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rvm_engine::network::Mode;
use rvm_engine::record::LogLimits;
use rvm_engine::restart::Policy;
use rvm_engine::spec::Given;
use rvm_engine::{Created, Engine, Error, Pull, Request, health, spec};
use rvm_images::Platform;
use signal_hook::iterator::Signals;

use super::network;
use super::pull;
use super::session::FORWARDED;
use super::{terminal, variables};
use crate::args::{Health, LogOption, New, PullPolicy, Surroundings};
use crate::output;

/// Most bytes of a seccomp profile: Docker's own has 20 KB, and the kernel takes a filter of 4096 instructions.
const LARGEST_PROFILE: u64 = 1 << 20;

pub(super) fn run(engine: &Engine, arguments: New) -> Result<u8> {
    let stdin_once = arguments.interactive;
    let manner = Manner {
        stdin_once,
        ..Manner::default()
    };
    let (_, created) = make(engine, arguments, manner)?;
    output::lines([created.id])?;
    Ok(0)
}

/// What a command wants of a container beyond what its arguments say.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Manner {
    /// Whether the end of the command's standard input is the workload's.
    pub(super) stdin_once: bool,
    /// Whether its supervisor collects when what was reached.
    pub(super) timing: bool,
    /// Whether rvm's own program is in it.
    pub(super) probe: bool,
}

/// Makes a container as the arguments say. The signals that are meant for its workload are caught from before there is
/// anything of it.
pub(super) fn make(engine: &Engine, arguments: New, manner: Manner) -> Result<(Signals, Created)> {
    if let Some(platform) = arguments
        .platform
        .as_ref()
        .filter(|platform| !platform.runs_here())
    {
        bail!(
            "an image for {platform} cannot run here: this machine runs {}",
            Platform::default()
        );
    }
    if arguments.rm && arguments.restart != Policy::No {
        bail!("conflicting options: a container cannot have both --restart and --rm");
    }
    let source = Pull {
        image: arguments.image.clone(),
        platform: arguments.platform.clone(),
        verifies_tls: arguments.tls_verify,
    };
    let (id_path, policy) = (arguments.cidfile.clone(), arguments.pull);
    // What it reads can be wrong.
    let mut request = request(arguments)?;
    let id_file = id_path.as_deref().map(IdFile::create).transpose()?;
    if policy == PullPolicy::Always {
        pull::for_run(engine, &source)?;
    }
    // Before anything is made, so that no signal finds the default action while something half-made exists.
    let signals = Signals::new(FORWARDED).context("cannot catch signals")?;
    request.stdin_once = manner.stdin_once;
    (request.timing, request.probe) = (manner.timing, manner.probe);
    let (signals, created) = create(engine, &request, (&source, policy), signals)?;
    if let Some(file) = id_file {
        file.fill(&created.id)?;
    }
    Ok((signals, created))
}

/// Makes the container; fetches the image first if it is missing and that is wanted.
fn create(
    engine: &Engine,
    request: &Request,
    (source, policy): (&Pull, PullPolicy),
    signals: Signals,
) -> Result<(Signals, Created)> {
    let other = other_platform(engine, source)?;
    if let Some(found) = other.as_ref().filter(|_| policy != PullPolicy::Missing) {
        bail!("image {:?} is here for {found} only", source.image);
    }
    if other.is_none() {
        match engine.create(request) {
            Err(Error::Image(rvm_images::Error::NotFound(_))) if policy == PullPolicy::Missing => {}
            result => return Ok((signals, result?)),
        }
    }
    let kind = source
        .platform
        .as_ref()
        .map(|platform| format!(" for {platform}"));
    output::note(&format!(
        "Unable to find image '{}'{} locally",
        request.image,
        kind.unwrap_or_default()
    ));
    let signals = interruptibly(signals, || pull::for_run(engine, source))?;
    Ok((signals, engine.create(request)?))
}

/// What the image that is here is for, if that is not what is asked for.
fn other_platform(engine: &Engine, source: &Pull) -> Result<Option<Platform>> {
    let Some(wanted) = &source.platform else {
        return Ok(None);
    };
    match engine.images()?.details(&source.image) {
        Ok(details) => Ok(Some(Platform::of(&details.config)).filter(|found| !wanted.accepts(found))),
        Err(rvm_images::Error::NotFound(_)) => Ok(None),
        Err(error) => Err(Error::from(error).into()),
    }
}

/// Does something that a signal may end at any time, although this process catches them. Returns the signals for later.
fn interruptibly(mut signals: Signals, work: impl FnOnce() -> Result<()>) -> Result<Signals> {
    let handle = signals.handle();
    let guard = thread::spawn(move || {
        for signal in signals.forever() {
            // Ends the process, or does nothing for those that by default do nothing.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    });
    let result = work();
    // Before the others are given up, so that there is no moment without.
    let next = Signals::new(FORWARDED).context("cannot catch signals");
    handle.close();
    // A panic aborts the process, so joining cannot fail.
    let _ = guard.join();
    result.and(next)
}

fn request(mut arguments: New) -> Result<Request> {
    let environment = variables::environment(&mut arguments.process)?;
    let entrypoint = arguments.entrypoint.map(|command| {
        if command.is_empty() {
            Vec::new()
        } else {
            vec![command]
        }
    });
    let network = network::networking(arguments.network)?;
    let ports = arguments.publishing.ports();
    if matches!(network.mode, Mode::Host) && !ports.wishes().is_empty() {
        output::note("WARNING: Published ports are discarded when using host network mode");
    }
    Ok(Request {
        image: arguments.image,
        isolation: arguments.isolation.into(),
        name: arguments.name,
        hostname: arguments.hostname,
        auto_remove: arguments.rm,
        open_stdin: arguments.interactive,
        stdin_once: false,
        stop_signal: arguments.stop_signal,
        stop_timeout: arguments.stop_timeout,
        labels: variables::labels(&arguments.label_file, arguments.label)?,
        log: log_limits(&arguments.log_opt),
        mounts: arguments.mounts.into(),
        restart: arguments.restart,
        health: health(arguments.health),
        probe: false,
        timing: false,
        network,
        ports,
        egress: arguments.publishing.egress(),
        options: spec::Options {
            arguments: arguments.command,
            entrypoint,
            environment,
            working_directory: arguments.process.workdir,
            user: arguments.process.user,
            domainname: arguments.domainname,
            limits: arguments.limits.into(),
            given: given(arguments.surroundings)?,
            read_only: arguments.read_only,
            init: arguments.init,
            terminal: arguments.tty.then(|| terminal::size().unwrap_or_default()),
            ..spec::Options::default()
        },
    })
}

/// As with Docker, 0 is as if nothing was said.
fn health(given: Health) -> health::Options {
    let time = |given: Option<Duration>| given.filter(|time| !time.is_zero());
    health::Options {
        disabled: given.no_healthcheck,
        command: given.health_cmd,
        interval: time(given.health_interval),
        timeout: time(given.health_timeout),
        start_period: time(given.health_start_period),
        start_interval: time(given.health_start_interval),
        retries: given.health_retries,
    }
}

/// The last of several tmpfs on one directory counts, and of several values of one parameter.
fn given(given: Surroundings) -> Result<Given> {
    let tmpfs = given
        .tmpfs
        .iter()
        .map(|text| text.split_once(':').unwrap_or((text, "")));
    Ok(Given {
        ulimits: given.ulimit,
        shm_bytes: given.shm_size,
        tmpfs: tmpfs
            .map(|(path, options)| (path.to_owned(), options.to_owned()))
            .collect(),
        groups: given.group_add,
        sysctls: given.sysctl.into_iter().collect(),
        oom_score_adj: given.oom_score_adj,
        cap_add: given.cap_add,
        cap_drop: given.cap_drop,
        security: given
            .security_opt
            .into_iter()
            .map(with_profile)
            .collect::<Result<_>>()?,
        annotations: variables::pairs(given.annotation),
    })
}

/// A seccomp profile travels as what is in its file, as with Docker.
fn with_profile(option: String) -> Result<String> {
    let file = option
        .strip_prefix("seccomp=")
        .or_else(|| option.strip_prefix("seccomp:"));
    match file {
        None | Some("unconfined" | "builtin") => Ok(option),
        Some(file) => {
            let profile = variables::read_text(Path::new(file), LARGEST_PROFILE)
                .context("opening seccomp profile failed")?;
            Ok(format!("seccomp={profile}"))
        }
    }
}

/// The last of several values counts.
fn log_limits(options: &[LogOption]) -> LogLimits {
    options
        .iter()
        .fold(LogLimits::default(), |limits, option| match *option {
            LogOption::MaxSize(max_bytes) => LogLimits { max_bytes, ..limits },
            LogOption::MaxFile(max_files) => LogLimits { max_files, ..limits },
        })
}

/// A file for a container's ID. It is made first, so that nothing runs whose ID could not be kept, and removed again
/// where no container came of it.
struct IdFile {
    path: PathBuf,
    file: Option<File>,
}

impl IdFile {
    fn create(path: &Path) -> Result<Self> {
        match OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(file) => Ok(Self {
                path: path.to_owned(),
                file: Some(file),
            }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => bail!(
                "the file for the container's ID is there: make sure that the other container does not run, or delete {}",
                path.display()
            ),
            Err(error) => Err(error).with_context(|| format!("cannot create {}", path.display())),
        }
    }

    fn fill(mut self, id: &str) -> Result<()> {
        let Some(mut file) = self.file.take() else {
            return Ok(());
        };
        file.write_all(id.as_bytes())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            // An empty file is no ID, whether or not it can be removed.
            let _ = fs::remove_file(&self.path);
        }
    }
}
