//! What the tests want to know from inside, and do there. Static, so that it runs in any image, and added to the test
//! images as /probe; as /init of a made-up initramfs it plays a guest that misbehaves.
#![forbid(unsafe_code)]

use std::env;
use std::fs::File;
use std::hint::black_box;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use rvm_tests::tree;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory as _};

fn main() -> Result<ExitCode> {
    let arguments = env::args().skip(1).collect::<Vec<_>>();
    let words = arguments.iter().map(String::as_str).collect::<Vec<_>>();
    if env::args().next().is_some_and(|name| name == "/init") {
        return Ok(misbehave());
    }
    match words.as_slice() {
        ["tree", top, excluded @ ..] => print_tree(Path::new(top), excluded)?,
        ["hog", mebibytes] => hog(mebibytes.parse()?)?,
        ["spin", milliseconds] => spin(Duration::from_millis(milliseconds.parse()?)),
        ["fill", directory] => fill(Path::new(directory))?,
        ["lock", kind, file, how] => lock(kind, Path::new(file), how)?,
        ["journal", file] => journal(Path::new(file))?,
        ["append", file, word, records] => append(Path::new(file), word, records.parse()?)?,
        ["map", file, "write", text] => write_mapped(Path::new(file), text)?,
        ["map", file, "read"] => read_mapped(Path::new(file))?,
        ["count", file, times] => count(Path::new(file), times.parse()?)?,
        ["sink"] => println!("{}", tree::sha256(io::stdin().lock())?),
        ["copy"] => {
            io::copy(&mut io::stdin().lock(), &mut io::stdout().lock())?;
        }
        ["echo-datagrams", port] => echo_datagrams(port.parse()?)?,
        ["ask-datagram", own, address] => ask_datagram(own.parse()?, address)?,
        _ => bail!("probe: unknown arguments {words:?}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the tree below `top`, one JSON object a line.
fn print_tree(top: &Path, excluded: &[&str]) -> Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for entry in tree::walk(top, excluded)? {
        serde_json::to_writer(&mut out, &entry)?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// Sends each datagram back to where it came from.
fn echo_datagrams(port: u16) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    println!("ready");
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(buffer.get(..length).unwrap_or_default(), from)?;
    }
}

/// Sends a datagram from a port, three times if need be, and prints the answer.
fn ask_datagram(own: u16, address: &str) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, own))?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut buffer = [0; 16];
    for _ in 0..3 {
        socket.send(b"hello")?;
        if let Ok(length) = socket.recv(&mut buffer) {
            println!(
                "{}",
                String::from_utf8_lossy(buffer.get(..length).unwrap_or_default())
            );
            return Ok(());
        }
    }
    bail!("probe: no answer")
}

/// Takes memory a mebibyte at a time and touches it, so that a limit is met in small steps.
fn hog(mebibytes: usize) -> Result<()> {
    let mut held = Vec::new();
    for taken in 1..=mebibytes {
        held.push(black_box(vec![0x5a_u8; 1 << 20]));
        if taken % 16 == 0 {
            println!("{taken} MiB");
            io::stdout().flush()?;
        }
    }
    println!("all {} MiB", held.len());
    Ok(())
}

/// Keeps a processor busy for a stretch of wall time, and prints the share that it had of one, in percent.
fn spin(stretch: Duration) {
    let processor = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        Duration::new(
            time.tv_sec.unsigned_abs(),
            u32::try_from(time.tv_nsec).unwrap_or(0),
        )
    };
    let (wall_start, processor_start) = (Instant::now(), processor());
    while wall_start.elapsed() < stretch {
        for value in 0..10_000_u64 {
            black_box(value);
        }
    }
    let used = processor().saturating_sub(processor_start);
    println!(
        "{}",
        used.as_millis() * 100 / wall_start.elapsed().as_millis().max(1)
    );
}

/// Fills a file system: reserves blocks in ever smaller steps, then writes until that fails too.
fn fill(directory: &Path) -> Result<()> {
    let flags = OFlags::CREATE | OFlags::WRONLY;
    let file = rustix::fs::open(directory.join("fill"), flags, Mode::RUSR | Mode::WUSR)?;
    let mut reserved = 0;
    let mut step = 1_u64 << 33;
    while step >= 4096 {
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), reserved, step) {
            Ok(()) => reserved += step,
            Err(rustix::io::Errno::NOSPC) => step /= 2,
            Err(error) => return Err(error).context("cannot reserve blocks"),
        }
    }
    let error = loop {
        if let Err(error) = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(directory.join("rest"))
            .and_then(|mut file| file.write_all(&[1; 65536]))
        {
            break error;
        }
    };
    println!("{} after {} MiB", error.kind(), reserved >> 20);
    Ok(())
}

/// Locks a file, with `flock` or `fcntl`: says whether it could, or waits, says so, and holds the lock until there is a file
/// with `.done` at the end of its name.
fn lock(kind: &str, path: &Path, how: &str) -> Result<()> {
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    let operation = match how {
        "try" => FlockOperation::NonBlockingLockExclusive,
        _ => FlockOperation::LockExclusive,
    };
    let locked = match kind {
        "flock" => rustix::fs::flock(&file, operation),
        _ => rustix::fs::fcntl_lock(&file, operation),
    };
    match locked {
        Ok(()) => println!("locked"),
        Err(Errno::WOULDBLOCK | Errno::ACCESS) => println!("busy"),
        Err(error) => return Err(error.into()),
    }
    io::stdout().flush()?;
    let done = path.with_extension("done");
    while how == "hold" && !done.exists() {
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Appends numbers to a file, and says each once it is on the disk.
fn journal(path: &Path) -> Result<()> {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    for number in 0_u64.. {
        file.write_all(format!("{number:08}\n").as_bytes())?;
        file.sync_data()?;
        println!("{number}");
        io::stdout().flush()?;
    }
    Ok(())
}

/// Appends records to a file, one write each.
fn append(path: &Path, word: &str, records: u32) -> Result<()> {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    for number in 0..records {
        file.write_all(format!("{word} {number:08}\n").as_bytes())?;
    }
    Ok(())
}

/// Adds one to a number in a file so many times, each time under a lock that is given back in between. The number always has
/// the same length, so that nothing but its contents says that it has changed.
fn count(path: &Path, times: u32) -> Result<()> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    for _ in 0..times {
        rustix::fs::fcntl_lock(&file, FlockOperation::LockExclusive)?;
        let mut text = [0; 8];
        file.read_exact_at(&mut text, 0)?;
        let number: u32 = std::str::from_utf8(&text)?.parse()?;
        file.write_all_at(format!("{:08}", number + 1).as_bytes(), 0)?;
        rustix::fs::fcntl_lock(&file, FlockOperation::Unlock)?;
    }
    Ok(())
}

/// Changes the beginning of a file in memory that is shared with it, and has that reach the file.
fn write_mapped(path: &Path, text: &str) -> Result<()> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let region = mapped(&file)?;
    region
        .as_volatile_slice()
        .subslice(0, text.len())?
        .copy_from(text.as_bytes());
    Ok(file.sync_all()?)
}

/// Prints a file as it is in shared memory.
fn read_mapped(path: &Path) -> Result<()> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let region = mapped(&file)?;
    let mut bytes = vec![0_u8; region.len()];
    region.as_volatile_slice().copy_to(&mut bytes);
    Ok(io::stdout().write_all(&bytes)?)
}

fn mapped(file: &File) -> Result<MmapRegion> {
    let length = usize::try_from(file.metadata()?.len())?;
    Ok(MmapRegion::from_file(
        FileOffset::new(file.try_clone()?, 0),
        length,
    )?)
}

/// The file /behaviour beside it says how: `exit` makes the kernel panic, `sleep` never says anything.
fn misbehave() -> ExitCode {
    match std::fs::read_to_string("/behaviour").unwrap_or_default().trim() {
        "sleep" => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        _ => ExitCode::from(3),
    }
}
