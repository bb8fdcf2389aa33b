//! A driver that means harm, and one that does not, against a directory.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::PathBuf;

use rvm_vmm::devices::virtio::fs::IN_HEADER_BYTES;
use rvm_vmm::devices::virtio::fs::exchange::{Ends, exchange};

#[path = "tests/lists.rs"]
mod lists;

use super::*;
use crate::data::Durability;
use crate::request::{GETXATTR, OPEN, OPENDIR, READ, READDIR, SYMLINK, WRITE, shape_of};

const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const READLINK: u32 = 5;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const LINK: u32 = 13;
const STATFS: u32 = 17;
const FSYNC: u32 = 20;
const RENAME2: u32 = 45;
const LSEEK: u32 = 46;
const ROOT: u64 = 1;
/// The slot that the driver uses.
const SLOT: u8 = 5;

/// A driver whose directory `share` lies beside a directory `outside` that is none of its business.
struct Driver {
    top: tempfile::TempDir,
    share: Share,
    ours: Ends,
    theirs: Worker,
    space: [Vec<u8>; 2],
}

impl Driver {
    fn new() -> Self {
        Self::with(Access::ReadWrite)
    }

    fn with(access: Access) -> Self {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("share")).unwrap();
        fs::create_dir(top.path().join("outside")).unwrap();
        fs::write(top.path().join("outside/secret"), "secret").unwrap();
        let nowhere = fs::File::options().write(true).open("/dev/null").unwrap();
        let room = Room::of_test(&top.path().join("share"));
        let share = Share::open(&room, access, nowhere.into()).unwrap();
        let (ours, theirs) = exchange().unwrap();
        let flags = rustix::fs::fcntl_getfl(&ours.answers).unwrap();
        rustix::fs::fcntl_setfl(&ours.answers, flags | OFlags::NONBLOCK).unwrap();
        Self {
            top,
            share,
            ours,
            theirs: Worker::new(theirs).unwrap(),
            space: [0; 2].map(|_| vec![0; MAX_MESSAGE_BYTES]),
        }
    }

    /// The host's path of a file in the directory.
    fn path(&self, name: &str) -> PathBuf {
        self.top.path().join("share").join(name)
    }

    /// Sends a message, of which nobody says how long it is but itself; returns all answers, which are one or, where there is
    /// none, what was sent.
    fn send(&mut self, message: &mut [u8]) -> Vec<Vec<u8>> {
        let slot = self.theirs.slot(SLOT).unwrap();
        slot.memory().copy_from(&vec![0; MAX_MESSAGE_BYTES]);
        slot.memory().copy_from(message);
        let [first, second] = &mut self.space;
        self.share.serve(&self.theirs, slot, first, second).unwrap();
        let mut said = [0; 8];
        let count = rustix::io::read(&self.ours.answers, &mut said).unwrap_or(0);
        let mut bytes = vec![0; MAX_MESSAGE_BYTES];
        let answers = said[..count].iter().map(|index| {
            assert_eq!(*index, SLOT);
            slot.memory().copy_to(&mut bytes);
            let length = u32_at(&bytes, 0) as usize;
            bytes[..length.min(MAX_MESSAGE_BYTES)].to_vec()
        });
        answers.collect()
    }

    /// Asks for something about a file; returns what follows the answer's head, or the error number.
    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let mut request = message(opcode, node, body);
        let answers = self.send(&mut request);
        let [answer] = answers.as_slice() else {
            panic!("{} answers to {opcode}", answers.len());
        };
        assert_eq!(u32_at(answer, 0) as usize, answer.len());
        assert_eq!(u64_at(answer, 8), 77);
        match u32_at(answer, 4).cast_signed() {
            0 => Ok(answer[16..].to_vec()),
            error => {
                assert_eq!(answer.len(), 16);
                Err(-error)
            }
        }
    }

    fn named(&mut self, opcode: u32, node: u64, fixed: &[u32], names: &[&str]) -> Result<Vec<u8>, i32> {
        let body = words(fixed);
        let names = names.iter().flat_map(|name| [name.as_bytes(), b"\0"].concat());
        self.ask(opcode, node, &[body, names.collect()].concat())
    }

    fn lookup(&mut self, node: u64, name: &str) -> Result<Entry, i32> {
        self.named(LOOKUP, node, &[], &[name])
            .map(|body| Entry::parse(&body))
    }

    fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        self.ask(OPEN, node, &words(&[flags.cast_unsigned(), 0]))
            .map(|body| u64_at(&body, 0))
    }

    fn create(&mut self, name: &str, flags: i32) -> Result<(u64, u64), i32> {
        let fixed = [(flags | libc::O_CREAT).cast_unsigned(), 0o644, 0, 0];
        self.named(CREATE, ROOT, &fixed, &[name])
            .map(|body| (Entry::parse(&body).node, u64_at(&body, 128)))
    }

    fn write(
        &mut self,
        (node, handle): (u64, u64),
        offset: u64,
        flags: i32,
        data: &[u8],
    ) -> Result<u32, i32> {
        let size = u32::try_from(data.len()).unwrap();
        let mut body = [handle.to_le_bytes(), offset.to_le_bytes()].concat();
        body.extend(words(&[size, 0, 0, 0, flags.cast_unsigned(), 0]));
        body.extend(data);
        self.ask(WRITE, node, &body).map(|body| u32_at(&body, 0))
    }

    fn read(&mut self, (node, handle): (u64, u64), offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        let mut body = [handle.to_le_bytes(), offset.to_le_bytes()].concat();
        body.extend(words(&[size, 0, 0, 0, 0, 0]));
        self.ask(READ, node, &body)
    }
}

struct Entry {
    node: u64,
    size: u64,
    mode: u32,
    links: u32,
}

impl Entry {
    /// `struct fuse_entry_out`.
    fn parse(body: &[u8]) -> Self {
        assert_eq!(body[16..40], [0; 24], "nothing may be remembered");
        Self {
            node: u64_at(body, 0),
            size: u64_at(body, 48),
            mode: u32_at(body, 100),
            links: u32_at(body, 104),
        }
    }

    fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }
}

fn message(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(IN_HEADER_BYTES + body.len()).unwrap();
    let mut message = words(&[length, opcode, 77, 0]);
    message.extend(node.to_le_bytes());
    message.extend(words(&[1000, 1000, 5, 0]));
    message.extend(body);
    message
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn a_driver_agrees_on_sizes_and_caches_nothing() {
    let mut driver = Driver::new();
    let all = words(&[7, 39, 1 << 20, u32::MAX, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let agreed = driver.ask(INIT, 0, &all).unwrap();
    assert_eq!(agreed.len(), 64);
    assert_eq!((u32_at(&agreed, 0), u32_at(&agreed, 4)), (7, 33));
    let flags = FsOptions::from_bits_truncate(u64::from(u32_at(&agreed, 12)));
    assert!(
        flags.contains(FsOptions::AUTO_INVAL_DATA | FsOptions::HANDLE_KILLPRIV_V2 | FsOptions::MAX_PAGES)
    );
    assert!(!flags.intersects(
        FsOptions::WRITEBACK_CACHE
            | FsOptions::ZERO_MESSAGE_OPEN
            | FsOptions::ZERO_MESSAGE_OPENDIR
            | FsOptions::POSIX_ACL
            | FsOptions::DO_READDIRPLUS
    ));
    assert_eq!((u32_at(&agreed, 20), agreed[28]), (MAX_DATA_BYTES, 32));
    // Of the upper half, that files past the cache may be mapped, if the driver knows of that.
    assert_eq!(u32_at(&agreed, 32), 0);
    let mut more = all.clone();
    more[16..20].fill(0xff);
    let agreed = driver.ask(INIT, 0, &more).unwrap();
    assert_eq!(u32_at(&agreed, 32), DIRECT_IO_ALLOW_MMAP);
    // Older than the device, and of another age.
    assert_eq!(driver.ask(INIT, 0, &words(&[7, 30, 0, 0])), Err(libc::EPROTO));
    assert_eq!(driver.ask(INIT, 0, &words(&[6, 40, 0, 0])), Err(libc::EPROTO));
    let next = driver.ask(INIT, 0, &words(&[8, 0, 0, 0])).unwrap();
    assert_eq!((u32_at(&next, 0), u32_at(&next, 12)), (7, 0));
    // Another driver knows nothing of what this one had.
    let (node, handle) = driver.create("file", libc::O_RDWR).unwrap();
    let opened = driver.ask(OPEN, node, &words(&[0, 0])).unwrap();
    assert_eq!(u32_at(&opened, 8), 1, "FOPEN_DIRECT_IO alone");
    driver.ask(INIT, 0, &all).unwrap();
    assert_eq!(driver.read((node, handle), 0, 1), Err(libc::EBADF));
    assert_eq!(driver.ask(GETATTR, node, &[0; 16]), Err(libc::EBADF));
    assert!(driver.lookup(ROOT, "file").is_ok());
    assert_eq!(driver.ask(DESTROY, 0, &[]), Ok(vec![]));
}

#[test]
fn names_do_not_lead_out() {
    let mut driver = Driver::new();
    for name in [
        "..",
        ".",
        "",
        "/",
        "../outside",
        "../outside/secret",
        "/etc/passwd",
        "a/b",
    ] {
        assert_eq!(
            driver.lookup(ROOT, name).map(|entry| entry.node),
            Err(libc::EINVAL),
            "{name}"
        );
        assert_eq!(driver.create(name, libc::O_RDWR), Err(libc::EINVAL), "{name}");
        for (opcode, fixed) in [
            (MKDIR, &[0o755, 0][..]),
            (UNLINK, &[]),
            (MKNOD, &[libc::S_IFREG, 0, 0, 0]),
        ] {
            assert_eq!(
                driver.named(opcode, ROOT, fixed, &[name]),
                Err(libc::EINVAL),
                "{name}"
            );
        }
        driver.create("file", libc::O_RDWR).unwrap();
        for names in [["file", name], [name, "file"]] {
            let fixed = [1, 0, 0, 0];
            assert_eq!(
                driver.named(RENAME2, ROOT, &fixed, &names),
                Err(libc::EINVAL),
                "{name}"
            );
        }
        driver.named(UNLINK, ROOT, &[], &["file"]).unwrap();
    }
    let long = "x".repeat(256);
    assert_eq!(driver.create(&long, libc::O_RDWR), Err(libc::ENAMETOOLONG));
    assert!(driver.create(&long[..255], libc::O_RDWR).is_ok());
    for node in [0, 2, 12345, u64::MAX] {
        assert_eq!(driver.lookup(node, "x").map(|entry| entry.node), Err(libc::EBADF));
    }
    let outside: Vec<_> = fs::read_dir(driver.top.path().join("outside")).unwrap().collect();
    assert_eq!(outside.len(), 1);
}

#[test]
fn links_are_read_and_never_followed() {
    let mut driver = Driver::new();
    let outside = driver.top.path().join("outside");
    let secret = outside.join("secret");
    symlink(&secret, driver.path("to-file")).unwrap();
    symlink(&outside, driver.path("to-directory")).unwrap();
    symlink("../outside", driver.path("upwards")).unwrap();
    symlink(outside.join("new"), driver.path("to-nothing")).unwrap();
    for (name, target) in [
        ("to-file", &secret),
        ("to-directory", &outside),
        ("upwards", &PathBuf::from("../outside")),
    ] {
        let entry = driver.lookup(ROOT, name).unwrap();
        assert_eq!(entry.kind(), libc::S_IFLNK);
        assert_eq!(
            driver.ask(READLINK, entry.node, &[]).unwrap(),
            target.as_os_str().as_encoded_bytes()
        );
        assert!(driver.open(entry.node, libc::O_RDONLY).is_err());
        assert!(driver.ask(OPENDIR, entry.node, &[0; 8]).is_err());
        assert_eq!(
            driver.lookup(entry.node, "secret").map(|entry| entry.node),
            Err(libc::ENOTDIR)
        );
        let file = driver.named(MKNOD, entry.node, &[libc::S_IFREG | 0o644, 0, 0, 0], &["new"]);
        assert_eq!(file, Err(libc::ENOTDIR));
    }
    for name in ["to-file", "to-nothing"] {
        assert!(driver.create(name, libc::O_RDWR).is_err(), "{name}");
        assert!(
            driver.create(name, libc::O_WRONLY | libc::O_TRUNC).is_err(),
            "{name}"
        );
    }
    // The guest's own, with any target.
    let made = driver
        .named(SYMLINK, ROOT, &[], &["made", "/../../etc/passwd"])
        .unwrap();
    assert!(driver.open(Entry::parse(&made).node, libc::O_RDONLY).is_err());
    assert_eq!(fs::read(&secret).unwrap(), b"secret");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn a_directory_stays_the_one_that_was_found() {
    let mut driver = Driver::new();
    fs::create_dir(driver.path("directory")).unwrap();
    fs::write(driver.path("directory/secret"), "harmless").unwrap();
    let directory = driver.lookup(ROOT, "directory").unwrap().node;
    // Somebody on the host, or another guest, puts a link in its place.
    fs::rename(driver.path("directory"), driver.path("moved")).unwrap();
    symlink(driver.top.path().join("outside"), driver.path("directory")).unwrap();
    let file = driver.lookup(directory, "secret").unwrap();
    let handle = driver.open(file.node, libc::O_RDWR | libc::O_TRUNC).unwrap();
    driver
        .write((file.node, handle), 0, libc::O_RDWR, b"changed")
        .unwrap();
    assert_eq!(fs::read(driver.path("moved/secret")).unwrap(), b"changed");
    assert_eq!(
        fs::read(driver.top.path().join("outside/secret")).unwrap(),
        b"secret"
    );
    assert_eq!(driver.lookup(ROOT, "directory").unwrap().kind(), libc::S_IFLNK);
}

#[test]
fn special_files_are_seen_and_not_opened() {
    let mut driver = Driver::new();
    let _listener = std::os::unix::net::UnixListener::bind(driver.path("socket")).unwrap();
    // To open it would wait for a writer.
    let fifo = driver
        .named(MKNOD, ROOT, &[libc::S_IFIFO | 0o600, 0, 0, 0], &["fifo"])
        .unwrap();
    assert!(fs::metadata(driver.path("fifo")).unwrap().file_type().is_fifo());
    for node in [
        Entry::parse(&fifo).node,
        driver.lookup(ROOT, "socket").unwrap().node,
    ] {
        for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_NONBLOCK] {
            assert_eq!(driver.open(node, flags), Err(libc::EBADF));
        }
    }
    assert!(driver.create("fifo", libc::O_RDONLY).is_err());
}

#[test]
fn a_file_that_is_there_is_opened_by_who_may() {
    let mut driver = Driver::new();
    let path = driver.path("file");
    fs::write(&path, "content").unwrap();
    let set_mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    // Somebody has made it behind the guest's look. It looks again and judges by what it knows of its user.
    set_mode(0o000);
    for flags in [libc::O_RDONLY, libc::O_RDWR | libc::O_TRUNC] {
        assert_eq!(driver.create("file", flags), Err(libc::ESTALE));
    }
    set_mode(0o666);
    let file = driver.create("file", libc::O_RDWR | libc::O_SYNC).unwrap();
    assert_eq!(driver.read(file, 0, 10).unwrap(), b"content");
    assert_eq!(driver.lookup(ROOT, "file").unwrap().node, file.0);
    assert_eq!(
        driver.share.durable.missing(file.1, libc::O_SYNC.cast_unsigned()),
        None
    );
    assert_eq!(driver.create("file", libc::O_EXCL), Err(libc::EEXIST));
    assert!(driver.create("file", libc::O_WRONLY | libc::O_TRUNC).is_ok());
    assert_eq!(fs::read(&path).unwrap(), b"");
    symlink("file", driver.path("link")).unwrap();
    assert_eq!(driver.create("link", libc::O_RDONLY), Err(libc::ESTALE));
}

#[test]
fn a_file_that_comes_and_goes_can_be_created() {
    let mut driver = Driver::new();
    let (end, path) = (AtomicBool::new(false), driver.path("file"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                let _ = fs::File::options().create(true).append(true).open(&path);
                let _ = fs::remove_file(&path);
            }
        });
        let made: Vec<_> = (0..400).map(|_| driver.create("file", libc::O_RDONLY)).collect();
        end.store(true, Ordering::Relaxed);
        let failed = made.iter().filter(|made| made.is_err()).count();
        assert_eq!(failed, 0);
    });
}

#[test]
fn a_fifo_in_a_file_s_place_is_not_opened_to_lock_it() {
    let mut driver = Driver::new();
    let (node, handle) = driver.create("file", libc::O_RDWR).unwrap();
    let mut body = [handle, 7, 0, i64::MAX.cast_unsigned()]
        .map(u64::to_le_bytes)
        .concat();
    body.extend(words(&[libc::F_WRLCK.cast_unsigned(), 0, 0, 0]));
    assert_eq!(driver.ask(SETLK, node, &body), Ok(vec![]));
    driver
        .ask(RELEASE, node, &[handle, 0, 0].map(u64::to_le_bytes).concat())
        .unwrap();
    // This is what the kernel calls a file whose name is gone.
    fs::remove_file(driver.path("file")).unwrap();
    let fifo = driver.path("file (deleted)");
    let path = fifo.display().to_string();
    driver
        .named(
            MKNOD,
            ROOT,
            &[libc::S_IFIFO | 0o600, 0, 0, 0],
            &["file (deleted)"],
        )
        .unwrap();
    // This waits for somebody to open it.
    let mut writer = std::process::Command::new("sh")
        .args(["-c", "echo > \"$1\"", "sh", &path])
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(driver.ask(SETLK, node, &body), Err(libc::ENOLCK));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(writer.try_wait().unwrap(), None);
    assert_eq!(fs::read(fifo).unwrap(), b"\n");
    assert!(writer.wait().unwrap().success());
}

#[test]
fn files_are_files() {
    let mut driver = Driver::new();
    let file = driver.create("file", libc::O_RDWR).unwrap();
    assert_eq!(driver.write(file, 0, libc::O_RDWR, b"hello world"), Ok(11));
    assert_eq!(driver.write(file, 1 << 20, libc::O_RDWR, b"end"), Ok(3));
    assert_eq!(driver.read(file, 6, 5).unwrap(), b"world");
    assert_eq!(driver.read(file, 2 << 20, 5).unwrap(), b"");
    let most = driver.read(file, 0, MAX_DATA_BYTES).unwrap();
    assert_eq!(most.len(), MAX_DATA_BYTES as usize);
    assert!(driver.read(file, 0, u32::MAX).is_err());
    // Holes.
    let seek = |offset: u64, whence: i32| {
        let body = [file.1.to_le_bytes(), offset.to_le_bytes()].concat();
        [body, words(&[whence.cast_unsigned(), 0])].concat()
    };
    let hole = u64_at(&driver.ask(LSEEK, file.0, &seek(0, libc::SEEK_HOLE)).unwrap(), 0);
    let data = u64_at(
        &driver.ask(LSEEK, file.0, &seek(hole, libc::SEEK_DATA)).unwrap(),
        0,
    );
    assert!(hole >= 11 && hole <= data && data <= 1 << 20, "{hole} {data}");
    let sync = [file.1.to_le_bytes(), [0; 8]].concat();
    assert_eq!(driver.ask(FSYNC, file.0, &sync), Ok(vec![]));
    assert_eq!(driver.ask(SYNCFS, ROOT, &[0; 8]), Ok(vec![]));

    // Appending takes place at the end that the file has now.
    let node = file.0;
    let flags = libc::O_WRONLY | libc::O_APPEND;
    let appender = (node, driver.open(node, flags).unwrap());
    driver.write(appender, 0, flags, b"!").unwrap();
    let content = fs::read(driver.path("file")).unwrap();
    assert_eq!(
        (content.len(), &content[content.len() - 4..]),
        ((1 << 20) + 4, &b"end!"[..])
    );

    // Another name, exchanged names, a name that is taken.
    let linked = driver
        .ask(LINK, ROOT, &[&node.to_le_bytes()[..], b"second\0"].concat())
        .unwrap();
    let linked = Entry::parse(&linked);
    assert_eq!((linked.node, linked.links, linked.size), (node, 2, (1 << 20) + 4));
    driver.create("other", libc::O_RDWR).unwrap();
    let rename = |flags: u32| [1, 0, flags, 0];
    let names = ["other", "second"];
    assert_eq!(
        driver.named(RENAME2, ROOT, &rename(libc::RENAME_NOREPLACE), &names),
        Err(libc::EEXIST)
    );
    assert!(
        driver
            .named(RENAME2, ROOT, &rename(libc::RENAME_EXCHANGE), &names)
            .is_ok()
    );
    assert_eq!(fs::metadata(driver.path("second")).unwrap().size(), 0);
    assert_eq!(driver.lookup(ROOT, "other").unwrap().node, node);

    // A file without a name is still open.
    for name in ["file", "other"] {
        driver.named(UNLINK, ROOT, &[], &[name]).unwrap();
    }
    assert_eq!(driver.read(file, 6, 5).unwrap(), b"world");
    assert!(u64_at(&driver.ask(STATFS, ROOT, &[]).unwrap(), 0) > 0);
    let missing = driver.named(GETXATTR, node, &[64, 0], &["user.none"]);
    assert!(
        matches!(missing, Err(libc::ENODATA | libc::EOPNOTSUPP)),
        "{missing:?}"
    );
    // Kinds of requests that are not served.
    assert_eq!(driver.ask(39, node, &[0; 32]), Err(libc::ENOSYS));
}

#[test]
fn a_write_that_asks_for_it_is_on_the_disk() {
    let mut driver = Driver::new();
    let missing = |driver: &Driver, (_, handle): (u64, u64), flags: i32| {
        driver.share.durable.missing(handle, flags.cast_unsigned())
    };
    let plain = driver.create("file", libc::O_RDWR).unwrap();
    let node = plain.0;
    let data = (node, driver.open(node, libc::O_WRONLY | libc::O_DSYNC).unwrap());
    let all = driver.create("other", libc::O_RDWR | libc::O_SYNC).unwrap();
    for (handle, of_data, of_all) in [
        (plain, Some(Durability::Data), Some(Durability::All)),
        (data, None, Some(Durability::All)),
        (all, None, None),
    ] {
        assert_eq!(missing(&driver, handle, libc::O_RDWR), None);
        assert_eq!(missing(&driver, handle, libc::O_RDWR | libc::O_DSYNC), of_data);
        assert_eq!(missing(&driver, handle, libc::O_RDWR | libc::O_SYNC), of_all);
    }
    for flags in [libc::O_DSYNC, libc::O_SYNC] {
        assert_eq!(driver.write(plain, 0, libc::O_RDWR | flags, b"durable"), Ok(7));
    }
    // Handles that are gone take no room.
    let release = [data.1.to_le_bytes(), [0; 8], [0; 8]].concat();
    driver.ask(RELEASE, node, &release).unwrap();
    assert_eq!(missing(&driver, data, libc::O_DSYNC), Some(Durability::Data));
    driver.ask(DESTROY, 0, &[]).unwrap();
    assert_eq!(missing(&driver, all, libc::O_SYNC), Some(Durability::All));
}

#[test]
fn a_read_only_directory_stays_as_it_is() {
    let mut driver = Driver::with(Access::ReadOnly);
    fs::write(driver.path("file"), "content").unwrap();
    let node = driver.lookup(ROOT, "file").unwrap().node;
    let handle = driver.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(driver.read((node, handle), 0, 100).unwrap(), b"content");
    assert_eq!(driver.open(node, libc::O_RDWR), Err(libc::EROFS));
    assert_eq!(
        driver.open(node, libc::O_RDONLY | libc::O_TRUNC),
        Err(libc::EROFS)
    );
    assert_eq!(driver.create("new", libc::O_RDONLY), Err(libc::EROFS));
    assert_eq!(driver.write((node, handle), 0, 0, b"x"), Err(libc::EROFS));
    assert_eq!(driver.named(UNLINK, ROOT, &[], &["file"]), Err(libc::EROFS));
    assert_eq!(driver.ask(4, node, &[0xff; 88]), Err(libc::EROFS)); // SETATTR
    assert_eq!(fs::read(driver.path("file")).unwrap(), b"content");
}

#[test]
fn a_directory_can_be_sealed() {
    let mut driver = Driver::new();
    let node = driver.create("file", libc::O_RDWR).unwrap();
    assert!(driver.write(node, 0, 0, b"before").is_ok());
    let (seal, of_worker) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(seal);
    assert!(matches!(
        driver.share.seal_after(&of_worker.into()),
        Ended::Sealed
    ));
    assert_eq!(driver.write(node, 0, 0, b"behind"), Err(libc::EROFS));
    assert_eq!(driver.create("new", libc::O_RDONLY).map(drop), Err(libc::EROFS));
    assert_eq!(fs::read(driver.path("file")).unwrap(), b"before");
}

/// Numbers that look random (xorshift64*, Vigna 2016).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }
}

#[test]
fn nonsense_has_one_answer() {
    let factor = std::env::var("RVM_TEST_ROUNDS").map_or(1, |text| text.parse().unwrap());
    let mut driver = Driver::new();
    let mut random = Random(42);
    let (mut answered, mut served) = (0, 0);
    for round in 0..4000 * factor {
        if round % 500 == 0 {
            driver = Driver::new();
            for name in ["a", "b"] {
                driver.create(name, libc::O_RDWR).unwrap();
            }
        }
        let opcode = u32::try_from(random.below(52)).unwrap();
        let (mut fixed, texts) = shape_of(opcode).unwrap_or((8, 1));
        if random.below(8) == 0 {
            fixed = [0, 8, 16, 24, 32, 40, 88][usize::try_from(random.below(7)).unwrap()];
        }
        // Small numbers, which may be nodes, handles and sizes that there are, and large ones.
        let mut body: Vec<u8> = (0..fixed)
            .map(|at| match (at % 8, random.below(8)) {
                (0, _) => u8::try_from(random.below(8)).unwrap(),
                (_, 0) if round % 4 == 0 => 0xff,
                _ => 0,
            })
            .collect();
        for _ in 0..texts {
            let names: [&[u8]; 6] = [b"a\0", b"b\0", b"c\0", b"user.x\0", b"..\0", b"\xff\xfe"];
            body.extend(names[usize::try_from(random.below(6)).unwrap()]);
        }
        let node = [ROOT, ROOT, 2, u64::MAX][usize::try_from(random.below(4)).unwrap()];
        let mut request = message(opcode, node, &body);
        let answers = driver.send(&mut request);
        assert_eq!(answers.len(), 1, "{opcode} {body:?}");
        for answer in answers.iter().filter(|_| has_answer(opcode)) {
            assert_eq!(u32_at(answer, 0) as usize, answer.len());
            assert_eq!(u64_at(answer, 8), 77);
            answered += 1;
            served += u32::from(u32_at(answer, 4) == 0);
        }
    }
    assert!(served > answered / 10, "{served} of {answered}");
    let outside = driver.top.path().join("outside");
    assert_eq!(fs::read_dir(outside).unwrap().count(), 1);
}
