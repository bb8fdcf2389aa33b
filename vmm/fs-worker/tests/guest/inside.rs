//! The guest's half: what programs do with files. Each step says on the console how it went.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Gid, Mode, OFlags, RenameFlags, SeekFrom,
    Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

/// Names of tests, and of file systems.
pub(crate) const FILES: &str = "files";
pub(crate) const KILLED: &str = "killed";
pub(crate) const DATA: &str = "data";
pub(crate) const READ_ONLY: &str = "read only, with blanks";
/// What a step that fails says.
pub(crate) const FAILED: &str = "STEP FAILED";
/// Argument of this program as one of a user.
pub(crate) const PROGRAM: &str = "program-in-guest";

type Step = (&'static str, fn() -> Result<()>);

const FILE_STEPS: [Step; 17] = [
    ("mount", mount),
    ("contents", contents),
    ("appending", appending),
    ("renaming", renaming),
    ("links", links),
    ("attributes", attributes),
    ("holes", holes),
    ("syncing", syncing),
    ("special files", special_files),
    ("locks", locks),
    ("programs", programs),
    ("nameless files", nameless_files),
    ("names", names),
    ("users", users),
    ("what others write", what_others_write),
    ("many files", many_files),
    ("read-only", read_only),
];

/// Runs the steps of the test that the kernel's command line names, and ends the machine.
pub(crate) fn init() -> ! {
    let test = std::env::var("rvm_test").unwrap_or_default();
    let steps: &[Step] = match test.as_str() {
        FILES => &FILE_STEPS,
        KILLED => &[("mount", mount_data), ("writing", writing_to_nobody)],
        _ => &[],
    };
    for (name, step) in steps {
        let start = Instant::now();
        match step() {
            Ok(()) => println!("{name}: ok, {:?}", start.elapsed()),
            Err(error) => println!("{name}: {FAILED}: {error:#}"),
        }
    }
    // What is mounted must be given back in order.
    for path in ["/data", "/read-only"] {
        if Path::new(path).exists()
            && let Err(error) = rustix::mount::unmount(path, rustix::mount::UnmountFlags::empty())
        {
            println!("unmounting {path}: {FAILED}: {error}");
        }
    }
    println!("{test}: done");
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    std::process::exit(1)
}

/// Numbers that repeat late.
pub(crate) fn pattern(bytes: usize) -> Vec<u8> {
    (0..251).cycle().take(bytes).collect()
}

fn at(name: &str) -> PathBuf {
    Path::new("/data").join(name)
}

/// What `result` must have failed with.
fn refused<T>(what: &str, result: Result<T, impl Into<io::Error>>, expected: Errno) -> Result<()> {
    match result.map_err(Into::into) {
        Ok(_) => anyhow::bail!("{what} was not refused"),
        Err(error) => {
            let error: io::Error = error;
            ensure!(
                error.raw_os_error() == Some(expected.raw_os_error()),
                "{what}: {error}"
            );
            Ok(())
        }
    }
}

fn mount_tag(tag: &str, path: &str) -> Result<()> {
    fs::create_dir(path)?;
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount(tag, path, "virtiofs", flags, None).with_context(|| tag.to_owned())
}

fn mount_data() -> Result<()> {
    mount_tag(DATA, "/data")
}

fn mount() -> Result<()> {
    mount_data()?;
    mount_tag(READ_ONLY, "/read-only")?;
    fs::create_dir("/nothing")?;
    let flags = rustix::mount::MountFlags::empty();
    let unknown = rustix::mount::mount("unknown", "/nothing", "virtiofs", flags, None);
    refused("an unknown tag", unknown, Errno::INVAL)?;
    ensure!(rustix::fs::statvfs("/data")?.f_blocks > 0, "no blocks");
    Ok(())
}

fn contents() -> Result<()> {
    let expected = pattern(5 << 20);
    fs::write(at("contents"), &expected)?;
    let mut file = File::open(at("contents"))?;
    let mut found = Vec::new();
    file.read_to_end(&mut found)?;
    ensure!(found == expected, "other contents");
    let mut part = [0; 1000];
    file.read_exact_at(&mut part, 1_000_001)?;
    ensure!(part[..] == expected[1_000_001..1_001_001], "another part");
    fs::copy(at("contents"), at("copy"))?;
    ensure!(fs::read(at("copy"))? == expected, "another copy");
    OpenOptions::new().write(true).open(at("copy"))?.set_len(10)?;
    ensure!(fs::read(at("copy"))? == expected[..10], "not cut off");
    Ok(())
}

fn appending() -> Result<()> {
    let open = || OpenOptions::new().create(true).append(true).open(at("appended"));
    let (mut one, mut two) = (open()?, open()?);
    one.write_all(b"first ")?;
    two.write_all(b"second ")?;
    one.write_all(b"third ")?;
    ensure!(
        fs::read(at("appended"))? == b"first second third ",
        "not appended"
    );
    Ok(())
}

fn renaming() -> Result<()> {
    fs::create_dir_all(at("from/deep"))?;
    fs::create_dir(at("to"))?;
    fs::write(at("from/deep/a"), "a")?;
    fs::write(at("b"), "b")?;
    fs::rename(at("from/deep"), at("to/deep"))?;
    let rename = |flags| rustix::fs::renameat_with(CWD, at("to/deep/a"), CWD, at("b"), flags);
    refused("a taken name", rename(RenameFlags::NOREPLACE), Errno::EXIST)?;
    rename(RenameFlags::EXCHANGE)?;
    ensure!(
        fs::read(at("b"))? == b"a" && fs::read(at("to/deep/a"))? == b"b",
        "not exchanged"
    );
    fs::rename(at("b"), at("to/deep/a"))?;
    ensure!(
        fs::read(at("to/deep/a"))? == b"a" && !at("b").exists(),
        "not replaced"
    );
    refused("a full directory", fs::remove_dir(at("to")), Errno::NOTEMPTY)?;
    fs::remove_dir(at("from"))?;
    Ok(())
}

fn links() -> Result<()> {
    fs::write(at("linked"), "linked")?;
    fs::hard_link(at("linked"), at("to/second"))?;
    ensure!(fs::metadata(at("to/second"))?.nlink() == 2, "one link");
    ensure!(
        fs::metadata(at("to/second"))?.ino() == fs::metadata(at("linked"))?.ino(),
        "two files"
    );
    symlink("linked", at("relative"))?;
    ensure!(fs::read(at("relative"))? == b"linked", "not followed");
    // Links are followed in the guest, where their targets are not.
    for name in ["absolute", "upwards"] {
        ensure!(
            fs::read_link(at(name))?.ends_with("outside/secret"),
            "another target"
        );
        refused(name, fs::read(at(name)), Errno::NOENT)?;
        refused(name, fs::write(at(name), "x"), Errno::NOENT)?;
    }
    Ok(())
}

fn attributes() -> Result<()> {
    let path = at("attributes");
    fs::write(&path, "")?;
    let (user, group) = (Uid::from_raw(1000), Gid::from_raw(1001));
    rustix::fs::chown(&path, Some(user), Some(group))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
    let time = Timespec {
        tv_sec: 1_000_000,
        tv_nsec: 5,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())?;
    let set = |name: &str, value: &[u8]| rustix::fs::setxattr(&path, name, value, XattrFlags::empty());
    set("user.note", b"from the guest")?;
    set("user.other", b"")?;
    let mut names = [0; 100];
    let length = rustix::fs::listxattr(&path, names.as_mut_slice())?;
    let names = String::from_utf8_lossy(names.get(..length).unwrap_or_default()).into_owned();
    ensure!(
        names.contains("user.note\0") && names.contains("user.other\0"),
        "{names}"
    );
    rustix::fs::removexattr(&path, "user.other")?;
    let mut value = [0; 10];
    let missing = rustix::fs::getxattr(&path, "user.other", value.as_mut_slice());
    refused("an attribute that was removed", missing, Errno::NODATA)?;
    let short = rustix::fs::getxattr(&path, "user.note", value.as_mut_slice());
    refused("too little room", short, Errno::RANGE)?;
    refused("a trusted attribute", set("trusted.x", b"x"), Errno::PERM)?;
    // CAP_NET_RAW, effective, for a program (struct vfs_cap_data, revision 2).
    fs::write(at("capable"), "")?;
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(
        at("capable"),
        "security.capability",
        &capability,
        XattrFlags::empty(),
    )?;
    Ok(())
}

fn holes() -> Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(at("sparse"))?;
    file.set_len(1 << 30)?;
    file.write_all_at(&[7; 64 << 10], 512 << 20)?;
    let data = rustix::fs::seek(&file, SeekFrom::Data(0))?;
    let hole = rustix::fs::seek(&file, SeekFrom::Hole(data))?;
    ensure!(
        (data, hole) == (512 << 20, (512 << 20) + (64 << 10)),
        "{data} {hole}"
    );
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 512 << 20, 32 << 10)?;
    let data = rustix::fs::seek(&file, SeekFrom::Data(0))?;
    ensure!(data == (512 << 20) + (32 << 10), "{data}");
    let mut bytes = [1; 2];
    file.read_exact_at(&mut bytes, (512 << 20) + (32 << 10) - 1)?;
    ensure!(bytes == [0, 7], "{bytes:?}");
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 4096)?;
    Ok(())
}

fn syncing() -> Result<()> {
    let mut file = File::create(at("synced"))?;
    file.write_all(b"synced")?;
    file.sync_data()?;
    file.sync_all()?;
    File::open("/data")?.sync_all()?;
    rustix::fs::syncfs(&file)?;
    Ok(())
}

fn special_files() -> Result<()> {
    let make = |name, kind, device| rustix::fs::mknodat(CWD, at(name), kind, Mode::RWXU, device);
    make("fifo", FileType::Fifo, 0)?;
    let reader = std::thread::spawn(|| fs::read(at("fifo")));
    fs::write(at("fifo"), "through")?;
    ensure!(
        matches!(reader.join(), Ok(Ok(text)) if text == b"through"),
        "lost"
    );
    let listener = UnixListener::bind(at("socket"))?;
    std::os::unix::net::UnixStream::connect(at("socket"))?;
    drop(listener);
    for kind in [FileType::BlockDevice, FileType::CharacterDevice] {
        let device = rustix::fs::makedev(1, 3);
        refused("a device", make("device", kind, device), Errno::PERM)?;
    }
    Ok(())
}

fn locks() -> Result<()> {
    let open = || File::create(at("locked"));
    let (one, two) = (open()?, open()?);
    rustix::fs::flock(&one, FlockOperation::LockExclusive)?;
    let second = rustix::fs::flock(&two, FlockOperation::NonBlockingLockExclusive);
    refused("a second lock", second, Errno::WOULDBLOCK)?;
    drop(one);
    rustix::fs::flock(&two, FlockOperation::NonBlockingLockExclusive)?;
    Ok(())
}

/// A program is a file that is mapped into memory.
fn programs() -> Result<()> {
    fs::copy("/init", at("program"))?;
    let status = Command::new(at("program")).args([PROGRAM, "exit"]).status()?;
    ensure!(status.code() == Some(7), "{status}");
    refused(
        "a program that runs",
        OpenOptions::new().write(true).open("/init"),
        Errno::TXTBSY,
    )
}

fn nameless_files() -> Result<()> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(at("removed"))?;
    file.write_all(b"removed")?;
    fs::remove_file(at("removed"))?;
    let mut text = [0; 7];
    file.read_exact_at(&mut text, 0)?;
    file.write_all_at(b"again", 0)?;
    ensure!(&text == b"removed" && file.metadata()?.nlink() == 0, "{text:?}");
    // The protocol has it, the worker does not; programs have another way.
    let unnamed = rustix::fs::open("/data", OFlags::TMPFILE | OFlags::RDWR, Mode::RWXU);
    refused("a file that never had a name", unnamed, Errno::OPNOTSUPP)
}

fn names() -> Result<()> {
    fs::create_dir(at("names"))?;
    let longest = "x".repeat(255);
    for name in [" ", "...", "new\nline", "-r", "ä", "a:b", &longest] {
        fs::write(at("names").join(name), name)?;
        ensure!(fs::read(at("names").join(name))? == name.as_bytes(), "{name}");
    }
    ensure!(fs::read_dir(at("names"))?.count() == 7, "not all are listed");
    let longer = fs::write(at("names").join("x".repeat(256)), "");
    refused("a longer name", longer, Errno::NAMETOOLONG)?;
    ensure!(at("..").join("data").exists(), "the guest's own parent directory");
    Ok(())
}

fn users() -> Result<()> {
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    fs::create_dir(at("public"))?;
    mode(&at("public"), 0o777)?;
    fs::create_dir(at("private"))?;
    mode(&at("private"), 0o700)?;
    fs::write(at("set-user-id"), "")?;
    mode(&at("set-user-id"), 0o4777)?;
    let status = Command::new("/init")
        .args([PROGRAM, "user"])
        .uid(1000)
        .gid(1000)
        .status()?;
    ensure!(status.code() == Some(7), "{status}");
    let left = fs::metadata(at("set-user-id"))?.mode() & 0o7777;
    ensure!(
        left == 0o777,
        "a program that was written to keeps its user: {left:o}"
    );
    Ok(())
}

/// Another program in the guest.
pub(crate) fn program(arguments: &[String]) -> ExitCode {
    let result = match arguments {
        [what] if what == "exit" => Ok(()),
        [what] if what == "user" => as_user(),
        _ => Err(anyhow::anyhow!("unknown arguments")),
    };
    if let Err(error) = result {
        println!("a program: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::from(7)
}

fn as_user() -> Result<()> {
    fs::write(at("public/by-user"), "by user")?;
    ensure!(
        fs::metadata(at("public/by-user"))?.uid() == 1000,
        "not the user's"
    );
    refused(
        "a private directory",
        fs::write(at("private/by-user"), ""),
        Errno::ACCESS,
    )?;
    refused(
        "another's file",
        fs::set_permissions(at("linked"), fs::Permissions::from_mode(0o777)),
        Errno::PERM,
    )?;
    refused(
        "another's directory",
        fs::remove_file(at("linked")),
        Errno::ACCESS,
    )?;
    OpenOptions::new()
        .write(true)
        .open(at("set-user-id"))?
        .write_all(b"x")?;
    Ok(())
}

/// The host changes a file that is open here and was read.
fn what_others_write() -> Result<()> {
    let file = File::open(at("shared"))?;
    let read = || -> Result<String> {
        let mut bytes = [0; 100];
        let length = file.read_at(&mut bytes, 0)?;
        Ok(String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned())
    };
    ensure!(read()? == "old", "another text");
    fs::write(at("has-read"), "")?;
    let start = Instant::now();
    while !at("changed").exists() {
        ensure!(start.elapsed() < Duration::from_secs(60), "the host does nothing");
        std::thread::sleep(Duration::from_millis(1));
    }
    ensure!(read()? == "new, and longer", "{}", read()?);
    // Its length and its time stay, as those of a file do that is written twice within a tick of the host's clock.
    fs::write(at("has-read-again"), "")?;
    while !at("changed-again").exists() {
        ensure!(start.elapsed() < Duration::from_secs(60), "the host does nothing");
        std::thread::sleep(Duration::from_millis(1));
    }
    ensure!(read()? == "new, not longer", "{}", read()?);
    ensure!(fs::metadata(at("shared"))?.len() == 15, "the old length");
    Ok(())
}

/// From an open directory, because each name of a path is looked up anew.
fn many_files() -> Result<()> {
    const COUNT: u32 = 300;
    fs::create_dir(at("many"))?;
    let directory = File::open(at("many"))?;
    let name = |index: u32| format!("file-{index}");
    let start = Instant::now();
    for index in 0..COUNT {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
        drop(rustix::fs::openat(&directory, name(index), flags, Mode::RUSR)?);
    }
    println!("{COUNT} files made in {:?}", start.elapsed());
    ensure!(fs::read_dir(at("many"))?.count() == 300, "not all are listed");
    let start = Instant::now();
    for index in (0..COUNT).step_by(2) {
        rustix::fs::unlinkat(&directory, name(index), AtFlags::empty())?;
    }
    println!("half of them removed in {:?}", start.elapsed());
    ensure!(fs::read_dir(at("many"))?.count() == 150, "not all are gone");
    ensure!(
        at("many/file-1").exists() && !at("many/file-2").exists(),
        "others are gone"
    );
    Ok(())
}

fn read_only() -> Result<()> {
    let file = Path::new("/read-only/file");
    ensure!(fs::read(file)? == b"content", "other contents");
    refused("a write", OpenOptions::new().write(true).open(file), Errno::ROFS)?;
    refused("a new file", File::create("/read-only/new"), Errno::ROFS)?;
    refused("a new directory", fs::create_dir("/read-only/new"), Errno::ROFS)?;
    refused("a removal", fs::remove_file(file), Errno::ROFS)?;
    let mode = fs::set_permissions(file, fs::Permissions::from_mode(0o777));
    refused("another mode", mode, Errno::ROFS)?;
    refused("another name", fs::rename(file, "/read-only/new"), Errno::ROFS)
}

/// Writes until the host kills the worker.
fn writing_to_nobody() -> Result<()> {
    let mut file = File::create(at("written"))?;
    let data = vec![1; 64 << 10];
    let end = loop {
        if let Err(error) = file.write_all(&data) {
            break error;
        }
        // Far more than the host waits for.
        ensure!(
            file.metadata().map_or(0, |status| status.len()) < 8 << 30,
            "nobody stops this"
        );
    };
    refused("a write", Err::<(), _>(end), Errno::IO)?;
    refused("an attribute", fs::metadata(at("written")), Errno::IO)?;
    refused("a list", fs::read_dir("/data").map(drop), Errno::IO)?;
    refused("a new file", File::create(at("new")), Errno::IO)?;
    refused("a sync", file.sync_all(), Errno::IO)
}
